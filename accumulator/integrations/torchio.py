"""torchio: a `Stitcher` in place of ``GridAggregator``."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import Stitcher
from accumulator._inputs.extras import need
from accumulator.exceptions import LocationError, NothingPushedError, OptionError

need("torchio", "torchio")
import torch  # noqa: E402  behind an error that names the extra

from accumulator.integrations._maps import as_tensors, check_options  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator import StitchedMap

__all__ = ["StitcherAggregator"]

# Cropped patches do not overlap but where the grid's last one was moved in: there it counts, as in torchio.
_BLENDS: Final = {"crop": "last", "average": "average", "hann": "hann"}
_N_AXES: Final = 3


class StitcherAggregator:
    """Aggregates the patches of torchio's ``GridSampler``, in place of its ``GridAggregator``.

    Parameters
    ----------
    sampler : torchio.GridSampler
        The sampler of the patches: its locations are those that will come.
    overlap_mode : {"crop", "average", "hann"}, default "crop"
        What becomes of pixels that several patches cover, as in ``GridAggregator``: half the overlap is cut
        off each patch; their mean; or their mean by Hann's window.
    downsampling_factor : int, default 1
        How many times smaller the output is than the input, on each axis. With a padded sampler it divides
        half of the overlap.
    **options
        Others of `Stitcher`: ``dtype``, ``fill_value``, ``nodata``, ``reduce``, ``on_duplicate``,
        ``on_band``, ``progress``, ``store``, ``save_path``, ``memory_limit``, ``memory_threshold``,
        ``chunks``, ``shards``, ``compressors``.

    Raises
    ------
    MissingExtraError
        At import: torchio is not installed, the extra ``torchio``; an ImportError.
    OptionError
        ``overlap_mode`` or ``downsampling_factor`` is not what it can be, or an option cannot be given here;
        a ValueError.

    Notes
    -----
    The output has the dtype of the patches, and a mean of integers or bools that of ``dtype``, by default
    float32. Dropped before it was asked for its output, it leaves no temporary folder.

    Examples
    --------
    >>> sampler = GridSampler(subject, patch_size=64, patch_overlap=8)  # doctest: +SKIP
    >>> aggregator = StitcherAggregator(sampler, overlap_mode="hann")
    >>> for batch in SubjectsLoader(sampler, batch_size=4):
    ...     aggregator.add_batch(network(batch["t1"][DATA]), batch[LOCATION])
    >>> output = aggregator.get_output_tensor()
    """

    def __init__(
        self, sampler: Any, overlap_mode: str = "crop", downsampling_factor: int = 1, **options: Any
    ) -> None:
        if overlap_mode not in _BLENDS:
            raise OptionError(f"overlap_mode is {overlap_mode!r}: choose from {', '.join(_BLENDS)}")
        check_options(options, "blend")
        factor = downsampling_factor
        if not isinstance(factor, (int, np.integer)) or isinstance(factor, bool) or factor < 1:
            raise OptionError(f"downsampling_factor is {factor!r}: give a whole number from 1 on")
        half = np.asarray(sampler.patch_overlap, np.int64) // 2
        self._shape = np.asarray(sampler.subject.spatial_shape, np.int64)  # padded, if the sampler pads
        border = half if sampler.padding_mode is not None else 0 * half
        if (border % factor).any():
            raise OptionError(
                f"the sampler pads by {half.tolist()}, half of patch_overlap, which downsampling_factor="
                f"{factor} does not divide: choose another patch_overlap"
            )
        self._mode, self._factor, self._half = overlap_mode, factor, half
        self._is_padded = sampler.padding_mode is not None
        self._locations = np.asarray(sampler.locations, np.int64)
        self._options: dict[str, Any] = {
            **options,
            "blend": _BLENDS[overlap_mode],
            "channels_first": True,
            "axes": "zyx",
            "origin": (border // factor)[::-1].tolist(),
            "output_shape": ((self._shape - 2 * border) // factor).tolist(),
        }
        self._stitcher: Stitcher | None = None
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)  # dropped by an error in the loop, it has no other end

    def add_batch(self, batch_tensor: Any, locations: Any) -> None:
        """Take a batch of patches; after an error nothing of it was taken.

        Parameters
        ----------
        batch_tensor : (n, C, w, h, d) torch.Tensor
            What the network made of it, on any device.
        locations : (n, 6) torch.Tensor
            ``batch[torchio.LOCATION]``.

        Raises
        ------
        LocationError
            ``locations`` are not six whole numbers a patch, or not as large as the patches; a ValueError.
        UnknownLocationError
            A location is not the sampler's; a KeyError.
        DuplicateLocationError
            A patch of that location has come, and ``on_duplicate`` is "error"; a ValueError.
        HeadError
            There are not as many patches as locations, or they have other shapes than the first; a
            ValueError.
        ClosedError
            The output was asked for before; a ValueError.
        AccumulatorError
            What else `Stitcher` and `Stitcher.push` raise.
        """
        where = np.asarray(locations.cpu() if isinstance(locations, torch.Tensor) else locations)
        if where.ndim != 2 or where.shape[1] != 2 * _N_AXES or where.dtype.kind not in "iu":
            raise LocationError(
                f"locations are {where.dtype} of shape {where.shape}: give batch[torchio.LOCATION], six "
                "whole numbers a patch"
            )
        where = where.astype(np.int64)
        stitcher = self._begin(batch_tensor) if self._stitcher is None else self._stitcher
        weights = None
        if self._mode == "crop" and self._half.any():
            weights = self._uncropped(where, batch_tensor.shape[2:])
        stitcher.push(batch_tensor, where // self._factor, weights=weights)

    def _begin(self, batch: Any) -> Stitcher:
        options = self._options
        if self._mode != "crop" and not (batch.is_floating_point() or batch.is_complex()):
            options = {"dtype": np.float32, **options}  # a mean of labels is no label
        stitcher = self._stitcher = Stitcher(self._locations // self._factor, **options)
        self._open.callback(stitcher.close)
        return stitcher

    def _uncropped(self, where: NDArray[np.int64], size: Any) -> NDArray[np.bool_]:
        """Return which pixels of patches are left: half of the overlap is cut off, but at the borders."""
        half = np.broadcast_to(self._half // self._factor, (len(where), _N_AXES))
        before, after = half, half
        if not self._is_padded:  # otherwise what is cut off there is padding
            before = half * (where[:, :_N_AXES] > 0)
            after = half * (where[:, _N_AXES:] != self._shape)
        is_left = np.ones((len(where), *size), dtype=bool)
        for axis, n in enumerate(size):
            at = np.arange(n)
            is_in = (at >= before[:, axis, None]) & (at < n - after[:, axis, None])
            is_left &= np.expand_dims(is_in, [1 + other for other in range(_N_AXES) if other != axis])
        return is_left

    def get_output_map(self) -> StitchedMap:
        """Return the volume as a map ``(W, H, D, C)``, on disk if it does not fit, or there is a ``store``.

        Returns
        -------
        StitchedMap
            ``output[0]`` is a numpy.ndarray or a zarr.Array; the same object when called again.

        Raises
        ------
        NothingPushedError
            No batch was added; a ValueError.
        StorageError
            The disk refused the last rows; an OSError. Nothing is lost: make room and call again.
        """
        if self._stitcher is None:
            raise NothingPushedError("no batch was added: there is no output")
        return self._stitcher.finalize()

    def get_output_tensor(self) -> Any:
        """Return the volume.

        Returns
        -------
        (C, W, H, D) torch.Tensor
            With ``fill_value`` where no patch came. If the map is on disk all of it is read: take
            `get_output_map` then.

        Raises
        ------
        NothingPushedError
            No batch was added; a ValueError.
        StorageError
            The disk refused the last rows, as for `get_output_map`.
        """
        return as_tensors(self.get_output_map(), _N_AXES)[0]

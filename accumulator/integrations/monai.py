"""MONAI: ``PatchInferer`` merges with a `Stitcher`, and patches need not fit in memory."""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatchAccumulator, Stitcher
from accumulator._inputs.arguments import as_limit
from accumulator._inputs.extras import need
from accumulator._inputs.validation import as_locations, as_place
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadError,
    NothingPushedError,
    OptionError,
    ResultExistsError,
)

need("monai.inferers", "monai")
import torch  # noqa: E402  behind an error that names the extra
from monai.inferers import Merger, SlidingWindowSplitter, WSISlidingWindowSplitter  # noqa: E402

from accumulator.integrations._maps import as_tensors, check_options  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator import StitchedMap
    from accumulator.typing import ArrayLike

__all__ = ["StitcherMerger", "splitter_locations"]

_FIRST_ROWS: Final = 64  # of the first part of patches that are kept; each other has twice as many
_UNUSED: Final[weakref.WeakSet[StitcherMerger]] = weakref.WeakSet()  # have a store, and no patch yet


class StitcherMerger(Merger):
    """Merges the patches of MONAI's ``PatchInferer``, in place of its ``AvgMerger``.

    Parameters
    ----------
    merged_shape, cropped_shape, device
        As ``PatchInferer`` gives them: ``(B, C, H, W[, D])`` with the splitter's padding and without it, and
        where the merged tensor goes, by default to the CPU.
    locations : (N, 2) or (N, 3) array-like of whole numbers, optional
        Where the patches of the output will be, as `splitter_locations` returns them. Patches are then
        blended as they come, and none is kept. Otherwise all are kept until `finalize`, in RAM or on disk,
        as it fits: the list is what came.
    **options
        Others of `Stitcher`: ``blend``, ``reduce``, ``dtype``, ``fill_value``, ``nodata``, ``on_duplicate``,
        ``on_band``, ``progress``, ``store``, ``save_path``, ``memory_limit`` (of the patches that are kept,
        and then of the maps), ``memory_threshold``, ``chunks``, ``shards``, ``compressors``. Each image of
        the batch is a head, which is called by its number. ``store`` is for one output of the network.

    Raises
    ------
    MissingExtraError
        At import: MONAI is not installed, the extra ``monai``; an ImportError.
    OptionError
        An option cannot be given here, or two outputs of a network have one ``store``; a ValueError.
    ResultExistsError
        Something is at ``store`` already; a FileExistsError.
    LocationError
        ``locations`` are not whole numbers, one column an axis; a ValueError.

    Notes
    -----
    Tensors have the dtype of the patches, unless ``dtype`` says another: not always float32. Dropped by an
    error in the loop, it leaves no temporary folder.

    Examples
    --------
    >>> splitter = SlidingWindowSplitter(patch_size=(512, 512), overlap=0.25)  # doctest: +SKIP
    >>> inferer = PatchInferer(splitter, merger_cls=StitcherMerger, batch_size=8, blend="hann")
    >>> merged = inferer(image, network)
    """

    is_finalized: bool  # set by the base class

    def __init__(
        self,
        merged_shape: Sequence[int],
        cropped_shape: Sequence[int] | None = None,
        device: Any = None,
        *,
        locations: ArrayLike | None = None,
        **options: Any,
    ) -> None:
        super().__init__(merged_shape, cropped_shape, device)
        check_options(options)
        shape = self.cropped_shape[2:]
        self._starts = None if locations is None else as_locations(locations, "locations", len(shape))
        self._options = {
            **options,
            "channels_first": True,
            "axes": "zyx"[-len(shape) :],
            "output_shape": shape,
        }
        self._sink: Stitcher | _Kept | None = None
        self._result: Any = None
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)  # dropped by an error, it has no other end
        self._store = None if options.get("store") is None else as_place(options["store"], "store")
        if self._store is not None:
            self._check_store(self._store)

    def _check_store(self, store: os.PathLike[str]) -> None:
        """Refuse a store that cannot be made in the end, before the network has run for hours."""
        if any(other._store == store for other in _UNUSED):  # noqa: SLF001  this class's own
            raise OptionError(
                f"store={os.fspath(store)!r} is for one output, and there are two: choose one by output_keys "
                "or postprocessing, or give memory_threshold=0 for store, and save() each map that comes out"
            )
        if os.path.lexists(store):
            raise ResultExistsError(errno.EEXIST, "something is there: give another store", os.fspath(store))
        _UNUSED.add(self)

    def aggregate(self, values: Any, location: Sequence[int]) -> None:
        """Take one patch, ``(B, C, h, w[, d])``, which begins at a location of the output.

        Raises
        ------
        ClosedError
            It was finalized; a ValueError, as ``AvgMerger``'s.
        DuplicateLocationError
            A patch has come from there; a ValueError.
        UnknownLocationError
            It is not in ``locations``; a KeyError.
        HeadError
            The patch is not as large as the first, or the output has other images or channels; a ValueError.
        AccumulatorError
            What else `Stitcher`, `Stitcher.push` and `FullBatchAccumulator.push` raise.
        """
        if self.is_finalized:
            raise ClosedError("cannot aggregate: the merger was finalized; make a new one")
        if tuple(values.shape[:2]) != self.cropped_shape[:2]:
            raise HeadError(
                f"the patch is {tuple(values.shape)}, and the output {self.cropped_shape}: they must have "
                "the same images and channels"
            )
        box = np.hstack([location, np.add(location, values.shape[2:])])[None]
        images = tuple(values[:, None])  # a head each, of one patch
        if self._sink is None:
            self._sink = self._begin(images, box)
        self._sink.push(images, box)

    def _begin(self, images: tuple[Any, ...], box: NDArray[Any]) -> Stitcher | _Kept:
        _UNUSED.discard(self)
        sink: Stitcher | _Kept
        if self._starts is not None:
            size = np.asarray(images[0].shape[2:])
            sink = Stitcher(np.hstack([self._starts, self._starts + size]), **self._options)
        else:
            # What is wrong with the options has to be found now: patches are stitched in the end.
            tried = {**self._options, "store": None, "progress": False}
            Stitcher(box, heads=list(images), **tried).close()
            sink = _Kept(self._options, self._open)
        self._open.callback(sink.close)
        return sink

    def finalize(self) -> Any:
        """Return what was merged.

        Returns
        -------
        torch.Tensor or StitchedMap
            ``(B, C, *cropped)`` on ``device``, if maps are in RAM; C is 1 where ``reduce`` leaves no
            channels. If they are on disk, because they do not fit or there is a ``store``, the `StitchedMap`,
            with a map ``(H, W[, D], C)`` for each image; ``memory_threshold=0`` makes it always one. Where no
            patch came they hold ``fill_value``. The same object when called again.

        Raises
        ------
        NothingPushedError
            No patch came; a ValueError.
        AccumulatorError
            What `Stitcher.finalize` raises, and, where no ``locations`` were given, `Stitcher.push`.
        """
        if not self.is_finalized:
            if self._sink is None:
                raise NothingPushedError("no patch came: there is nothing to merge")
            maps = self._sink.finalize()
            self._result = _as_output(maps, len(self.cropped_shape) - 2, self.device)
            self._sink, self.is_finalized = None, True
            self._open.close()
        return self._result


class _Kept:
    """Patches whose list is known when all have come: a `Stitcher` gets them then.

    Parts have twice the rows of the one before, as an accumulator has to know how many there will be.
    """

    def __init__(self, options: dict[str, Any], opened: ExitStack) -> None:
        self._options, self._opened = options, opened
        self._where = {
            name: options[name] for name in ("save_path", "memory_threshold") if options.get(name) is not None
        }
        limit = as_limit(options.get("memory_limit"))
        # Parts that are in RAM are together less than twice the largest.
        self._where["memory_limit"] = None if limit is None else limit // 2
        self._rows: dict[tuple[int, ...], None] = {}  # boxes in their order
        self._boxes: list[NDArray[Any]] = []
        self._parts: list[FullBatchAccumulator] = []
        self._n_rows = 0  # of all parts

    def push(self, images: tuple[Any, ...], box: NDArray[Any]) -> None:
        key = tuple(box[0].tolist())
        if key in self._rows and self._options.get("on_duplicate", "error") == "error":
            raise DuplicateLocationError(
                f"a patch at {list(key[: len(key) // 2])} has come before: give each location once, or say "
                "on_duplicate",
                np.zeros(1, np.intp),
                box,
            )
        row = len(self._boxes)
        if row == self._n_rows:
            n = _FIRST_ROWS << len(self._parts)
            part = FullBatchAccumulator(np.arange(row, row + n)[:, None], **self._where)
            self._opened.callback(part.close)
            self._parts.append(part)
            self._n_rows += n
        self._parts[-1].push(images, [[row]])
        self._rows[key] = None
        self._boxes.append(box[0])

    def finalize(self) -> StitchedMap:
        boxes = np.array(self._boxes)
        with Stitcher(np.array(list(self._rows)), **self._options) as stitcher:
            for part in self._parts:
                with part.finalize() as batch:
                    first, n = int(batch.output_locs[0, 0]), int(batch.written.sum())
                    heads = list(batch.values())
                    step = min(getattr(head, "chunks", (_FIRST_ROWS,))[0] for head in heads)  # whole chunks
                    for start in range(0, n, step):
                        rows = slice(start, min(start + step, n))
                        at = boxes[first + rows.start : first + rows.stop]
                        stitcher.push(tuple(head[rows] for head in heads), at, copy=False)
        return stitcher.finalize()

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _as_output(maps: StitchedMap, n_axes: int, device: Any) -> Any:
    if not all(isinstance(array, np.ndarray) for array in maps.values()):
        return maps
    tensors = as_tensors(maps, n_axes)
    whole = tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
    return whole if device is None else whole.to(device)


def splitter_locations(
    splitter: Any, inputs: Any, *, ratio: float | Sequence[float] = 1
) -> NDArray[np.int64]:
    """Return where the patches of a splitter lie: ``locations`` of `StitcherMerger`.

    MONAI's own splitters are asked without cutting a patch. With a ``filter_fn``, and of others, all patches
    are cut.

    Parameters
    ----------
    splitter : monai.inferers.Splitter
        What ``PatchInferer`` is given.
    inputs : torch.Tensor, or path of a slide
        What is inferred.
    ratio : float or sequence of float, default 1
        The pixels of the output that one of the input has, on all axes or one number an axis.

    Returns
    -------
    (N, 2) or (N, 3) int64 numpy.ndarray
        Where each patch of the output begins, in the order of the axes of an array.

    Examples
    --------
    >>> locations = splitter_locations(splitter, image)  # doctest: +SKIP
    >>> inferer = PatchInferer(splitter, merger_cls=StitcherMerger, locations=locations, store="map.zarr")
    >>> maps = inferer(image, network)
    """
    pairs, n_axes = splitter, len(splitter.get_input_shape(inputs))
    if type(splitter) in {SlidingWindowSplitter, WSISlidingWindowSplitter} and splitter.filter_fn is None:
        grid = (splitter.patch_size, splitter.overlap, splitter.offset)
        pairs = SlidingWindowSplitter(*grid, pad_mode=splitter.pad_mode)
        inputs = torch.empty(1, 1, *splitter.get_input_shape(inputs), device="meta")
    starts = np.array([location for _, location in pairs(inputs)], np.int64).reshape(-1, n_axes)
    # As PatchInferer rounds: a tie to the even one.
    return np.rint(starts * np.asarray(ratio, np.float64)).astype(np.int64)

"""The list of boxes that a loop over patches begins with.

Each axis is cut by itself, and boxes are what the starts of all axes make together. What a mask has in
them is summed axis by axis, too: nothing here is a loop over boxes.
"""

from __future__ import annotations

import math
import operator
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from accumulator._core.memory import available_memory
from accumulator._inputs import tuning
from accumulator._inputs.arguments import as_ints, each_axis
from accumulator._inputs.arrays import as_array
from accumulator._inputs.text import as_text
from accumulator.exceptions import MemoryLimitError, OptionError
from accumulator.typing import Border

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike

_ROUNDING: Final = 1e-6  # of a pixel: 0.9 of 20 pixels are 18, whatever floats make of it
_RATIO_NBYTES: Final = 24  # of a box: what the mask has of it, its volume, and the quotient
_INT64_LIMIT: Final = 2**63
_FLOAT64_LIMIT: Final = 2**53  # whole numbers up to it are floats


def grid_locations(  # noqa: PLR0913  each is told by its name
    shape: Sequence[int],
    patch: int | Sequence[int],
    *,
    overlap: float | Sequence[float] | None = None,
    stride: int | Sequence[int] | None = None,
    border: Border = "shift",
    origin: Sequence[int] | None = None,
    mask: ArrayLike | None = None,
    min_mask_ratio: float = 0,
) -> NDArray[np.int64]:
    """Return the boxes of a grid over an image: what a loop over patches begins with.

    Together they cover every pixel of the image, unless a mask leaves some out; no two are the same; and they
    are in raster order, x running fastest. `FullBatchAccumulator` and `Stitcher` take them as they are.

    What is said of the image is in the order of its array's axes, ``(height, width)`` or ``(depth, height,
    width)``, as NumPy, MONAI and torchio have it; locations, and ``origin``, are x first.

    Parameters
    ----------
    shape : sequence of int
        The spatial shape of the image, without channels: ``image.shape[:2]``, or OpenSlide's
        ``slide.dimensions[::-1]``. With as many axes as it has, in the unit that boxes shall have.
    patch : int or sequence of int
        The size of a box, on all axes, or one number an axis. Of patches with a halo this is the part that
        counts (``Stitcher(crop="center")``): read more than the box, all around.
    overlap : int, float or sequence of them, optional
        What neighbours share on an axis: pixels, if it is a whole number, such as torchio's
        ``patch_overlap``; or, as a float below 1, a share of the patch, such as MONAI's ``overlap``, rounded
        up to pixels. By default nothing.
    stride : int or sequence of int, optional
        How far neighbours are apart, instead of ``overlap``: no more than the patch.
    border : {"shift", "over"}, default "shift"
        Where the last box of an axis lies. "shift": moved in, to end with the image, and so to share more
        with its neighbour. "over": on the grid, where it may reach over the image's end; pad what is read
        there, and give ``output_shape=shape`` to `Stitcher`. An image that is smaller than the patch needs
        "over": the box begins where the image does.
    origin : sequence of int, optional
        The location ``[x, y]`` of the image's first pixel, by default ``[0, 0]``: that of a region in its
        slide. `Stitcher` takes the same.
    mask : array-like of bool, optional
        Where the image is of interest: an array with the image's axes, at any scale, a thumbnail say, which
        spans the image from end to end. Boxes without any of it are left out.
    min_mask_ratio : float, default 0
        The least share of a box that the mask has to cover, 0.5 say, from 0 (any at all) to 1 (all of it).
        What of the box lies outside of the image does not count. Pixels of the mask that lie in a box partly
        count partly, to their exact area.

    Returns
    -------
    (N, 2 * len(shape)) int64 array
        ``[start_x, start_y, end_x, end_y]``, or for other than two axes all starts and then all ends, x
        before y before z. Where the mask is False throughout, N is 0. What a mask leaves are rows of the list
        that is made without it, in the same order.

    Raises
    ------
    OptionError
        An argument is not what it can be; both ``overlap`` and ``stride`` are given; boxes would leave gaps;
        the image is smaller than the patch, and ``border`` is "shift"; or the mask is not bool, or has other
        axes than the image. A ValueError.
    MemoryLimitError
        There would be more boxes than memory holds, such as with a stride of 1 over a slide; a MemoryError.

    See Also
    --------
    FullBatchAccumulator : takes the list as it is.
    Stitcher : takes it, too.

    Examples
    --------
    >>> grid_locations((4, 10), 4, overlap=0.25).tolist()
    [[0, 0, 4, 4], [3, 0, 7, 4], [6, 0, 10, 4]]
    >>> grid_locations((4, 9), 4).tolist()
    [[0, 0, 4, 4], [4, 0, 8, 4], [5, 0, 9, 4]]
    >>> grid_locations((4, 9), 4, border="over").tolist()
    [[0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4]]
    >>> thumbnail = np.array([[True, False, False]])
    >>> grid_locations((4, 12), 4, stride=2, mask=thumbnail, min_mask_ratio=0.5).tolist()
    [[0, 0, 4, 4], [2, 0, 6, 4]]
    """
    lengths = _as_shape(shape)
    n_axes = len(lengths)
    sizes = _as_sizes(
        patch,
        n_axes,
        f"patch is {patch!r}: it is a positive whole number, or one for each axis of shape={shape!r}, which "
        "is without channels",
    )
    steps = _as_strides(overlap, stride, sizes)
    first = [0] * n_axes if origin is None else as_ints(origin, n_axes, "origin", "[x, y]")
    _check_border(border, lengths, sizes)
    ratio = _as_ratio(min_mask_ratio, has_mask=mask is not None)
    chosen = None if mask is None else _as_mask(mask, lengths)

    over = map(operator.sub, lengths, sizes)  # what is left behind the first box
    counts = [1 + max(0, -(-rest // step)) for rest, step in zip(over, steps, strict=True)]
    box_nbytes = 2 * n_axes * np.dtype(np.int64).itemsize
    _refuse_too_many(math.prod(counts), box_nbytes if chosen is None else _RATIO_NBYTES)
    starts = [np.arange(count, dtype=np.int64) * step for count, step in zip(counts, steps, strict=True)]
    if border == "shift":
        starts = [np.minimum(each, n - size) for each, n, size in zip(starts, lengths, sizes, strict=True)]
    if chosen is None:
        at = np.ix_(*starts)
    else:
        kept = np.nonzero(_has_enough(chosen, starts, sizes, lengths, ratio))
        _refuse_too_many(len(kept[0]), box_nbytes)
        at = tuple(each[rows] for each, rows in zip(starts, kept, strict=True))
    boxes = np.empty((*np.broadcast_shapes(*(each.shape for each in at)), 2 * n_axes), dtype=np.int64)
    for column, (each, size, begin) in enumerate(zip(at[::-1], sizes[::-1], first, strict=True)):
        boxes[..., column] = each + begin
        boxes[..., n_axes + column] = each + (begin + size)
    return boxes.reshape(-1, 2 * n_axes)


def _check_border(border: Any, lengths: list[int], sizes: list[int]) -> None:
    if not isinstance(border, str) or border not in get_args(Border):
        raise OptionError(f'border is {border!r}: it is "shift" or "over"')
    if border == "shift" and any(map(operator.gt, sizes, lengths)):
        raise OptionError(
            f"shape is {tuple(lengths)}, on an axis less than the patch of {tuple(sizes)}: leave out "
            'channels, or say border="over" and pad what is read beyond the image'
        )


def _as_shape(raw: Any) -> list[int]:
    try:
        n_axes = len(raw)
    except TypeError:
        n_axes = 0
    lengths = as_ints(raw, n_axes, "shape", "(height, width)") if n_axes else [0]
    if min(lengths) < 1:
        raise OptionError(
            f"shape is {raw!r}: it is an image's without channels, positive numbers such as (height, width)"
        )
    return lengths


def _as_sizes(raw: Any, n_axes: int, message: str) -> list[int]:
    try:
        sizes = as_ints(each_axis(raw, n_axes), n_axes, "", "")
    except OptionError:
        sizes = [0]
    if min(sizes) < 1:
        raise OptionError(message)
    return sizes


def _as_strides(overlap: Any, stride: Any, sizes: list[int]) -> list[int]:
    """Return how far boxes are apart on each axis."""
    n_axes = len(sizes)
    if stride is None:
        shared = each_axis(0 if overlap is None else overlap, n_axes)
        if len(shared) != n_axes or not all(map(_is_overlap, shared, sizes)):
            raise OptionError(
                f"overlap is {overlap!r}: it is a whole number of pixels, less than the patch of "
                f"{tuple(sizes)}; or a float from 0 to less than 1, a share of it; or one of them an axis"
            )
        return list(map(_stride_of, shared, sizes))
    if overlap is not None:
        raise OptionError(f"overlap is {overlap!r} and stride is {stride!r}: give one of both")
    steps = _as_sizes(
        stride, n_axes, f"stride is {stride!r}: it is a positive whole number of pixels, or one an axis"
    )
    if any(step > size for step, size in zip(steps, sizes, strict=True)):
        raise OptionError(
            f"stride is {stride!r}, more than the patch of {tuple(sizes)}: there would be gaps between them; "
            "for a sample of the image make the whole list, and take some of its rows"
        )
    return steps


def _is_overlap(raw: float, size: int) -> bool:
    if isinstance(raw, bool) or not isinstance(raw, Real):
        return False
    return bool(0 <= raw < (size if isinstance(raw, Integral) else 1))


def _stride_of(overlap: Any, size: int) -> int:
    if isinstance(overlap, Integral):
        return size - int(overlap)
    return size - min(size - 1, math.ceil(size * float(overlap) - _ROUNDING))


def _as_ratio(raw: float, *, has_mask: bool) -> float:
    if isinstance(raw, bool) or not isinstance(raw, Real) or not 0 <= raw <= 1:
        raise OptionError(f"min_mask_ratio is {raw!r}: it is a share of the box, from 0 to 1")
    if raw > 0 and not has_mask:
        raise OptionError(f"min_mask_ratio is {raw!r}, but there is no mask: give mask=")
    return float(raw)


def _as_mask(raw: ArrayLike, lengths: list[int]) -> NDArray[np.bool_]:
    mask = as_array(raw, "mask", OptionError)
    if mask.dtype != np.bool_:
        raise OptionError(f"mask has dtype {mask.dtype}: it is bool, such as mask > 0")
    if mask.ndim != len(lengths) or mask.size == 0:
        raise OptionError(
            f"mask has shape {mask.shape}: it has the axes of the image, whose shape is {tuple(lengths)}, at "
            "any scale"
        )
    return mask


def _refuse_too_many(n_boxes: int, box_nbytes: int) -> None:
    nbytes, available = n_boxes * box_nbytes, available_memory()
    if nbytes > available:
        raise MemoryLimitError(
            f"{n_boxes:,} boxes take {as_text(nbytes)}, and {as_text(available)} of memory are left: take a "
            "larger stride (that is, less overlap), or one region after the other (shape= and origin=)"
        )


def _has_enough(
    mask: NDArray[np.bool_],
    starts: list[NDArray[np.int64]],
    sizes: list[int],
    lengths: list[int],
    ratio: float,
) -> NDArray[np.bool_]:
    """Return for each box, in an array with the axes of the grid, whether the mask has so much of it.

    All numbers are whole: on each axis the unit is such a part of a pixel that pixels of image and mask are
    whole numbers of it. Only the quotient is rounded, as is the ratio that the user wrote: 0.1 is a tenth.
    """
    divisors = map(math.gcd, lengths, mask.shape)
    # Units of a pixel of the image, and of one of the mask.
    units = [
        (n // common, length // common)
        for n, length, common in zip(mask.shape, lengths, divisors, strict=True)
    ]
    largest = math.prod(
        min(size, length) * fine for size, length, (fine, _) in zip(sizes, lengths, units, strict=True)
    )
    furthest = max(
        (length + size) * fine for length, size, (fine, _) in zip(lengths, sizes, units, strict=True)
    )
    # Sums over the whole mask may wrap around, as the difference of two is right again if it fits.
    kind = np.dtype(np.int64 if max(largest, furthest) < _INT64_LIMIT else object)
    counts: NDArray[Any] = mask
    extents: list[NDArray[Any]] = []
    for axis in reversed(range(mask.ndim)):
        fine, coarse = units[axis]
        begin = starts[axis].astype(kind)
        end = np.minimum(begin + sizes[axis], lengths[axis])
        counts = _summed(counts, begin * fine, end * fine, coarse)
        extents.insert(0, (end - begin) * fine)
    # Beyond 53 bits NumPy rounds both before it divides, and Python does not.
    one = np.ones((), dtype=object if largest > _FLOAT64_LIMIT else kind)
    share: NDArray[Any] = counts / math.prod(np.ix_(*extents), start=one)
    enough: NDArray[np.bool_] = (counts > 0) & (share >= ratio)
    return enough


def _summed(values: NDArray[Any], begin: NDArray[Any], end: NDArray[Any], length: int) -> NDArray[Any]:
    """Return integrals along the last axis, on which each value is so long; it becomes the first axis."""
    rows = values.reshape(-1, values.shape[-1])
    n, kind = rows.shape[1], begin.dtype
    places = [((at // length).astype(np.intp), at % length) for at in (begin, end)]
    sums = np.empty((len(rows), len(begin)), dtype=kind)
    n_rows = max(1, tuning.now.mask_values // max(n, len(begin)))
    for first in range(0, len(rows), n_rows):
        part = rows[first : first + n_rows]
        up_to = np.zeros((len(part), n + 1), dtype=kind)
        np.cumsum(part, axis=1, dtype=kind, out=up_to[:, 1:])
        below, above = (
            up_to[:, whole] * length + part[:, np.minimum(whole, n - 1)] * rest for whole, rest in places
        )
        sums[first : first + n_rows] = above - below
    return np.moveaxis(sums.reshape(*values.shape[:-1], -1), -1, 0)

"""A small map of a head: every n-th pixel, read chunk by chunk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator._pictures.coverage import are_boxes
from accumulator._report.reading import Reading, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import RowArray

MAX_PX: Final = 1024
_MOST_CHANNELS: Final = 8  # a head may be an embedding of a thousand numbers
_MOST_PLACE: Final = 2**62
_MOST_EXTENT: Final = 2**31
_MOST_PAINTED: Final = 2**31  # px: boxes that lie over each other a thousand times are no map
_PAINTED_ROWS: Final = 2**16


class NoMapError(ValueError):
    """A head that has no picture; the message says why."""


def thumbnail(
    array: RowArray,
    output_locs: NDArray[Any],
    written: NDArray[np.bool_],
    max_px: int = MAX_PX,
    *,
    reading: Reading | None = None,
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return a small map of a head, every n-th pixel, and how many boxes cover each.

    Where boxes lie over each other floating-point values are averaged; whole numbers may be labels, which
    have no mean, and the last one counts. Patches that are coarser or finer than their box are stretched; a
    row without height and width colours its whole box.
    """
    grid = Grid.of(output_locs, max_px)
    axis = channel_axis(array, grid)
    n_shown = min(_MOST_CHANNELS, n_channels(array, axis))
    dtype = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}.get(array.dtype.kind)
    image = np.zeros((*grid.shape, n_shown), dtype or array.dtype)
    counts = np.zeros(grid.shape, np.int32)
    wanted = np.flatnonzero(written & (grid.areas > 0))
    with np.errstate(all="ignore"):  # what becomes infinite is shown as such
        for rows, values in read_rows(array, wanted, Reading() if reading is None else reading):
            patches = _channels_last(values, axis)[..., :n_shown]
            if grid.areas[rows].mean() <= tuning.now.pasted_px:
                step = tuning.now.pasted_rows
                for first in range(0, len(rows), step):
                    block = slice(first, first + step)
                    at, source = grid.few_samples(rows[block], *patches.shape[1:3])
                    if dtype is None:
                        image[at] = patches[block][source]
                    else:
                        np.add.at(image, at, patches[block][source])
                    np.add.at(counts, at, 1)
                continue
            for row, patch in zip(rows.tolist(), patches, strict=True):
                x0, y0, x1, y1 = grid.boxes[row].tolist()
                xs, ys = (grid.samples(row, axis, patch.shape[1 - axis]) for axis in (0, 1))
                if dtype is None:
                    image[y0:y1, x0:x1] = 0
                image[y0:y1, x0:x1] += patch[ys[:, None], xs]
                counts[y0:y1, x0:x1] += 1
        if dtype is not None:
            np.divide(image, counts[..., None], out=image, where=counts[..., None] > 0)
    return image, counts


def decimated(array: RowArray, grid: Grid, reading: Reading) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return every n-th pixel of a whole map, ``(H, W)`` or ``(H, W, C)``, and which lines were read."""
    n_shown = min(_MOST_CHANNELS, array.shape[2] if array.ndim == 3 else 1)
    image = np.zeros((*grid.shape, n_shown), array.dtype)
    is_read = np.zeros(grid.shape[0], np.bool_)
    for rows, values in read_rows(array, np.arange(0, array.shape[0], grid.step), reading):
        lines = rows // grid.step
        image[lines] = values[:, :: grid.step].reshape(len(rows), grid.shape[1], -1)[..., :n_shown]
        is_read[lines] = True
    return image, is_read


@attrs.frozen(eq=False)
class Grid:
    """Every n-th pixel of the plane that all boxes lie in."""

    step: int  # n
    shape: tuple[int, int]  # (height, width): of the small map
    size: tuple[int, int]  # (width, height): of the whole map, in px
    boxes: NDArray[np.int64]  # (N, 4): which pixels of the small map are each row's own
    # (N, 2): where each box begins in the whole map, and how large it is: (x, y), in px
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    areas: NDArray[np.int64]  # (N,): of ``boxes``; 0 where a row is not seen

    @classmethod
    def of(cls, output_locs: NDArray[Any], max_px: int, whole: tuple[int, int] | None = None) -> Grid:
        """Return the grid of all boxes, or of a ``whole`` that they lie in; or raise `NoMapError`."""
        if output_locs.shape[1] != 4:
            raise NoMapError(
                f"its locations have {output_locs.shape[1]} numbers: a map needs boxes of four, start_x, "
                "start_y, end_x and end_y"
            )
        if not are_boxes(output_locs):
            raise NoMapError(
                "locations that end before they start are no boxes [start_x, start_y, end_x, end_y]"
            )
        if whole is not None:
            left, top, right, bottom = 0, 0, *whole
        elif len(output_locs) == 0:
            raise NoMapError("there are no locations")
        else:
            left, top = (int(each) for each in output_locs[:, :2].min(axis=0))
            right, bottom = (int(each) for each in output_locs[:, 2:].max(axis=0))
        width, height = right - left, bottom - top
        if min(width, height) < 1:
            raise NoMapError("its boxes have no area")
        farthest = max(map(abs, (left, top, right, bottom)))
        if farthest >= _MOST_PLACE or max(width, height) >= _MOST_EXTENT:
            raise NoMapError("its boxes are too far apart")
        corners = output_locs.astype(np.int64) - np.array([left, top, left, top])
        step = max(1, math.ceil(max(width, height) / max_px))
        boxes = np.maximum(-(-corners // step), 0)
        areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
        if int(areas.sum()) > _MOST_PAINTED:
            raise NoMapError("too many of its boxes lie over each other")
        shape = (-(-height // step), -(-width // step))
        offsets = corners[:, :2]
        return cls(step, shape, (width, height), boxes, offsets, corners[:, 2:] - offsets, areas)

    def samples(self, row: int, axis: int, length: int) -> Any:
        """Return which of so many columns (axis 0) or lines (axis 1) of a patch the small map shows."""
        shown = np.arange(self.boxes[row, axis], self.boxes[row, axis + 2])
        return (shown * self.step - self.offsets[row, axis]) * length // self.sizes[row, axis]

    def few_samples(self, rows: NDArray[np.intp], height: int, width: int) -> tuple[Any, Any]:
        """Return which pixels of the small map some rows have, and which of their patches these are.

        Where boxes lie over each other the last one is the last in both, too.
        """
        boxes, counts = self.boxes[rows], self.areas[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        inside = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        y, x = np.divmod(inside, (boxes[:, 2] - boxes[:, 0])[of])
        at = boxes[of, :2] + np.stack([x, y], axis=1)
        place = (at * self.step - self.offsets[rows][of]) * np.array([width, height]) // self.sizes[rows][of]
        return (at[:, 1], at[:, 0]), (of, place[:, 1], place[:, 0])

    def paint(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return where the boxes of some rows are."""
        mask = np.zeros(self.shape, np.bool_)
        rows = rows[self.areas[rows] > 0]
        for first in range(0, len(rows), _PAINTED_ROWS):  # lists of Python take memory
            for x0, y0, x1, y1 in self.boxes[rows[first : first + _PAINTED_ROWS]].tolist():
                mask[y0:y1, x0:x1] = True
        return mask


def channel_axis(array: RowArray, grid: Grid) -> int | None:
    """Return which axis of the array has the channels; None where there is none."""
    patch_shape = array.shape[1:]
    if array.dtype.kind not in "biufc":
        raise NoMapError(f"{array.dtype} cannot be painted")
    if 0 in patch_shape:
        raise NoMapError("its patches are empty")
    if len(patch_shape) > 3:
        raise NoMapError(
            f"its patches have {len(patch_shape)} axes, and a map has height, width and channels"
        )
    if len(patch_shape) in {0, 2}:
        return None
    if len(patch_shape) == 1:
        return 1
    width, height = grid.sizes[0].tolist()
    if (height, width) in {patch_shape[:2], patch_shape[1:]}:
        return 3 if patch_shape[:2] == (height, width) else 1
    return 1 if patch_shape[0] < min(patch_shape[1:]) else 3


def n_channels(array: RowArray, axis: int | None) -> int:
    """Return how many channels a head has."""
    return 1 if axis is None else int(array.shape[axis])


def _channels_last(values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Return rows as ``(n, H, W, C)``."""
    if values.ndim < 3:
        return values.reshape(len(values), 1, 1, -1)
    return values[..., None] if axis is None else np.moveaxis(values, axis, -1)

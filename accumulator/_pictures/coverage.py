"""Which part of the plane is listed, and how much of it is written, as a small raster.

Areas are exact and cost the same for every box: a box is four corners of alternating sign, each corner is
shared among the four cells around it, and two running sums turn corners into areas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_CELLS: Final = 96
_EDGE: Final = 1e-9  # of a cell: an edge is believed to be where it is but for this
_NO_BOXES: Final = (
    "as points: locations that end before they start are no boxes [start_x, start_y, end_x, end_y]"
)
_TINY: Final = 1e-6  # of a cell: less is what rounding leaves


@attrs.frozen(eq=False)
class Coverage:
    """How much of each cell is written."""

    # (rows, columns): the share of what is listed in it that is written, NaN where nothing is
    share: NDArray[np.float64]
    # where the raster lies: left, top, right, bottom. For a strip 0, 0, N, 1
    extent: tuple[float, float, float, float]
    kind: str  # what a location is; a strip has the rows in canonical order
    n: int  # locations
    n_written: int
    n_left_out: int = 0  # those that will never come; which ones is not known
    note: str = ""  # why it is not drawn as boxes, where locations have four numbers

    @property
    def n_missing(self) -> int:
        """How many are still to come."""
        return self.n - self.n_written - self.n_left_out


def left_out(n: int, n_written: int, n_expected: int | None) -> int:
    """Return how many of n locations will never come; more may come than were expected."""
    return 0 if n_expected is None else n - max(n_expected, n_written)


def coverage(
    locs: NDArray[Any], written: NDArray[np.bool_], most_cells: int = MOST_CELLS, n_left_out: int = 0
) -> Coverage:
    """Return the raster of a list of locations."""
    note = "" if are_boxes(locs) else _NO_BOXES
    locs = locs[:, :2] if note else locs
    n, n_columns = locs.shape
    n_written = int(np.count_nonzero(written))
    if n == 0 or n_columns not in {2, 4}:
        strip = _strip(written, most_cells)
        return Coverage(strip, (0.0, 0.0, float(n), 1.0), "strip", n, n_written, n_left_out)
    columns = locs.T.astype(np.float64)
    (left, right), (top, bottom), cell = _grid(columns, most_cells)
    origin = np.array([left, top])[:, None]
    shape = (_count(bottom - top, cell, most_cells), _count(right - left, cell, most_cells))
    places = (columns - np.tile(origin, (n_columns // 2, 1))) / cell
    listed, done = _totals(places, written, shape)
    share = np.full(shape, np.nan)
    np.divide(done, listed, out=share, where=listed > 0)
    share[share > 1 - _TINY] = 1  # all of it, but for rounding
    extent = (left, top, left + shape[1] * cell, top + shape[0] * cell)
    kind = "points" if n_columns == 2 else "boxes"
    return Coverage(np.clip(share, 0, 1), extent, kind, n, n_written, n_left_out, note)


def are_boxes(locs: NDArray[Any]) -> bool:
    """Whether no location of four numbers ends before it starts, as ``[x, y, width, height]`` mostly does."""
    return locs.shape[1] != 4 or bool((locs[:, :2] <= locs[:, 2:]).all())


def _strip(written: NDArray[np.bool_], most_cells: int) -> NDArray[np.float64]:
    n = len(written)
    if n == 0:
        return np.full((1, 1), np.nan)
    starts = np.linspace(0, n, min(n, most_cells), endpoint=False).astype(np.intp)
    return (np.add.reduceat(written, starts, dtype=np.int64) / np.diff(starts, append=n))[None]


def _grid(columns: NDArray[np.float64], most_cells: int) -> tuple[Any, Any, float]:
    """Return left and right, top and bottom, and a cell's side: the least step or box if that will do."""
    starts = columns[:2]
    steps = [step for axis in starts if (step := _step(axis)) > 0]
    ends = columns[2:] if len(columns) == 4 else starts + max(1.0, min(steps, default=1.0))
    low, high = starts.min(axis=1), np.maximum(starts, ends).max(axis=1)
    longest = max(float((high - low).max()), 1.0)
    if len(columns) == 4:
        sides = ends - starts
        steps += [float(side[side > 0].min()) for side in sides if (side > 0).any()] or [longest]
    cell = max(min(steps, default=1.0), longest / most_cells)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1])), cell


def _step(numbers: NDArray[np.float64]) -> float:
    """Return the smallest step between different numbers; 0 where all are the same."""
    if len(numbers) > 1 and numbers.min() < numbers.max():
        return float(np.diff(np.unique(numbers)).min())
    return 0.0


def _count(length: float, cell: float, most_cells: int) -> int:
    return int(min(most_cells, max(1, np.ceil(length / cell - _EDGE))))


def _totals(
    places: NDArray[np.float64], written: NDArray[np.bool_], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each cell how much is listed, and how much of that is written."""
    middle = places[:2] if len(places) == 2 else (places[:2] + places[2:]) / 2
    column = np.clip(middle[0], 0, shape[1] - 1).astype(np.intp)
    row = np.clip(middle[1], 0, shape[0] - 1).astype(np.intp)
    cells = row * shape[1] + column
    n_cells = shape[0] * shape[1]
    counts = np.bincount(cells, minlength=n_cells).reshape(shape).astype(np.float64)
    n_done = np.bincount(cells[written], minlength=n_cells).reshape(shape).astype(np.float64)
    if len(places) == 2:
        return counts, n_done
    listed, done = _areas(places, shape), _areas(places[:, written], shape)
    # Boxes too small to have an area here are counted instead, so that none is invisible.
    is_small = listed <= _TINY * max(1.0, float(listed.max()))
    return np.where(is_small, counts, listed), np.where(is_small, n_done, done)


def _areas(boxes: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return how many cells' worth of boxes lie in each cell; overlaps count as often as they are listed."""
    wide = (shape[0] + 2, shape[1] + 2)
    corners = np.zeros(wide[0] * wide[1])
    axes = [_split(column) for column in boxes]
    for x, y, sign in ((0, 1, 1), (2, 1, -1), (0, 3, -1), (2, 3, 1)):
        (column, right), (row, below) = axes[x], axes[y]
        first = row * wide[1] + column
        for offset, weight in (
            (0, (1 - right) * (1 - below)),
            (1, right * (1 - below)),
            (wide[1], (1 - right) * below),
            (wide[1] + 1, right * below),
        ):
            corners += sign * np.bincount(first + offset, weight, minlength=len(corners))[: len(corners)]
    areas = corners.reshape(wide).cumsum(axis=0).cumsum(axis=1)
    return areas[: shape[0], : shape[1]]


def _split(numbers: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    whole = np.floor(numbers + _EDGE)  # an edge that is a hair before a cell's is that cell's
    return whole.astype(np.intp), np.maximum(numbers - whole, 0)

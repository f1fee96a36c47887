"""Where rows lie in a map: locations in, boxes out. Nothing here knows of values, memory or disks.

Locations name x before y before z, as the field does; arrays have them the other way round. Inside this
package everything is in the order of the array's axes, and a 1-d map gets a second axis of length one, so
that there is always one axis that bands are cut along, and others.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.text import named
from accumulator.exceptions import LocationError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_FAR: Final = 2**61  # beyond it sums of coordinates could overflow


@attrs.frozen(eq=False)
class Grid:
    """Boxes of all rows in a map, cropped to it."""

    shape: tuple[int, ...]  # the map's spatial shape, at least two axes
    patch: tuple[int, ...]  # a patch's spatial shape
    # (N, d): each row's box in the map; empty (``stop <= start`` on an axis) for rows that lie outside
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    skip: NDArray[np.int64]  # (N, d): where in the patch the box begins
    n_spatial: int  # axes the user sees: `shape` has one more for 1-d maps
    is_inside: NDArray[np.bool_] = attrs.field(init=False)  # (N,): which rows have any pixel in the map

    @is_inside.default
    def _find_inside(self) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = np.all(self.stop > self.start, axis=1)
        return inside

    def of(self, rows: NDArray[Any]) -> Grid:
        """Return the boxes of some rows."""
        return attrs.evolve(self, start=self.start[rows], stop=self.stop[rows], skip=self.skip[rows])

    def most_overlaps(self) -> int:
        """Return how many rows cover a pixel at most: never too few, up to a few times too many."""
        inside = self.is_inside
        start, stop = self.start[inside], self.stop[inside]
        if not len(start):
            return 0
        # Rows are counted in the cells of a lattice that they touch, at most two a axis.
        size = np.array(self.patch)
        first, last = start // size, (stop - 1) // size
        counts = np.array(self.shape) // size + 1
        cells = []
        for corner in np.ndindex(*(2,) * len(size)):
            cell = first + np.minimum(corner, last - first)
            is_new = (np.array(corner) <= last - first).all(axis=1)
            cells.append(_flat(cell[is_new], counts))
        return int(np.unique(np.concatenate(cells), return_counts=True)[1].max())

    def not_covered(self, rows: NDArray[np.intp], box: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pixels of a box, its start and stop, none of some rows covers."""
        free = np.ones(box[1] - box[0], dtype=bool)
        start = np.maximum(self.start[rows] - box[0], 0)
        stop = np.minimum(self.stop[rows] - box[0], free.shape)
        for low, high in zip(start.tolist(), stop.tolist(), strict=True):
            if all(a < b for a, b in zip(low, high, strict=True)):
                free[tuple(map(slice, low, high))] = False
        return free

    def parts(self, row: int, start: int, stop: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return which part of a row's box lies between two rows of the map: there, and in the patch."""
        first, last, skip = self.start[row].tolist(), self.stop[row].tolist(), self.skip[row].tolist()
        skip[0] += max(0, start - first[0])
        first[0], last[0] = max(first[0], start), min(last[0], stop)
        in_patch = tuple(slice(at, at + b - a) for at, a, b in zip(skip, first, last, strict=True))
        return tuple(map(slice, first, last)), in_patch


def as_grid(
    locs: NDArray[Any],
    patch: tuple[int, ...] | None,
    output_shape: Sequence[int] | None,
    origin: Sequence[int] | None,
    *,
    name: str = "full_output_locs",
) -> Grid:
    """Return the boxes of locations ``[start_x, start_y, ..., end_x, end_y, ...]``.

    Without a patch, the largest box is taken for its shape. Messages call the locations ``name``.
    """
    n_spatial = count_axes(locs.shape[1], name)
    first = _as_ints(origin, n_spatial, "origin") if origin is not None else [0] * n_spatial
    boxes = np.asarray(locs, dtype=np.int64)
    far = np.flatnonzero(((boxes > _FAR) | (boxes < -_FAR)).any(axis=1))
    if len(far):
        raise LocationError(f"coordinates beyond 2**61: {named(far, name)}")
    start = boxes[:, :n_spatial][:, ::-1] - np.array(first[::-1], dtype=np.int64)
    extent = boxes[:, n_spatial:][:, ::-1] - boxes[:, :n_spatial][:, ::-1]
    if patch is None:
        patch = tuple(extent.max(axis=0, initial=1).tolist())
    _check_extents(extent, patch, boxes, name)
    stop = start + extent
    if output_shape is not None:
        shape = _as_ints(output_shape, n_spatial, "output_shape")
    else:
        shape = stop.max(axis=0).tolist() if len(stop) else [0] * n_spatial
    if output_shape is None and not len(locs):
        raise OptionError(
            f"{name} is empty, so that the maps have no size of their own: give output_shape (--shape)"
        )
    if min(shape) < 1:
        raise OptionError(
            f"the map would have the spatial shape {tuple(shape)}: nothing lies behind origin {first}; give "
            "output_shape, or another origin"
        )
    low = np.clip(start, 0, shape)
    high = np.clip(stop, 0, shape)
    skip = low - start
    if n_spatial == 1:
        zeros = np.zeros_like(low)
        low, high, skip = (np.hstack(pair) for pair in ((low, zeros), (high, zeros + 1), (skip, zeros)))
        shape, patch = [*shape, 1], (*patch, 1)
    return Grid(tuple(shape), patch, low, high, skip, n_spatial)


def count_axes(n_columns: int, name: str = "full_output_locs") -> int:
    """Return how many spatial axes locations of so many numbers have."""
    if n_columns % 2:
        raise LocationError(
            f"{name} has {n_columns} columns: a map needs boxes such as [start_x, start_y, end_x, end_y], a "
            "start and an end for each axis"
        )
    return n_columns // 2


def _check_extents(
    extent: NDArray[np.int64], patch: tuple[int, ...], boxes: NDArray[np.int64], name: str
) -> None:
    wrong = np.flatnonzero((extent < 1).any(axis=1))
    if len(wrong):
        raise LocationError(
            f"no boxes: {named(wrong, name)}, the first being {boxes[wrong[0]].tolist()}; each end has to be "
            "behind its start: [start_x, start_y, end_x, end_y]"
        )
    wrong = np.flatnonzero((extent > patch).any(axis=1))
    if len(wrong):
        raise LocationError(
            f"boxes larger than the patches, which are {patch}: {named(wrong, name)}, the first being "
            f"{boxes[wrong[0]].tolist()}; channels come last, (n, h, w, C); and locations are in pixels of "
            "the output: where that is smaller than a model's input, divide them by the same factor"
        )


def _as_ints(raw: Sequence[int], n_spatial: int, name: str) -> list[int]:
    try:
        numbers = [operator.index(number) for number in raw if not isinstance(number, bool)]
    except TypeError:
        numbers = []
    if len(numbers) != n_spatial or any(abs(number) > _FAR for number in numbers):
        order = "[x, y, ...]" if name == "origin" else "(height, width)"
        raise OptionError(
            f"{name} is {raw!r}: give {n_spatial} whole numbers, one a spatial axis, such as {order}"
        )
    return numbers


def _flat(cells: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each cell; numbers beyond 64 bits wrap, which only makes counts larger."""
    flat = np.zeros(len(cells), dtype=np.int64)
    for axis, n in enumerate(counts.tolist()):
        flat = flat * n + cells[:, axis]
    return flat

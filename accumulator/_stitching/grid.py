"""Boxes of rows in a map. Nothing here knows of values, memory or disks.

Locations name x before y before z, as the field does; arrays have them the other way round. Inside this
package everything is in the order of the array's axes, and a 1-d map gets a second axis of length one, so
that there is always one axis that bands are cut along, and others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


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

    @property
    def n_outside(self) -> int:
        """How many rows lie wholly outside."""
        return len(self.is_inside) - int(np.count_nonzero(self.is_inside))

    def of(self, rows: NDArray[Any]) -> Grid:
        """Return the boxes of some rows."""
        return attrs.evolve(self, start=self.start[rows], stop=self.stop[rows], skip=self.skip[rows])

    def between(self, first: int, last: int) -> Grid:
        """Return all boxes in those rows of the map alone, which are a map of their own."""
        start, stop, skip = self.start.copy(), self.stop.copy(), self.skip.copy()
        start[:, 0] = start[:, 0].clip(first, last)
        stop[:, 0] = stop[:, 0].clip(first, last)
        skip[:, 0] += start[:, 0] - self.start[:, 0]
        start[:, 0] -= first
        stop[:, 0] -= first
        return attrs.evolve(self, shape=(last - first, *self.shape[1:]), start=start, stop=stop, skip=skip)

    def cuts(self, rows: NDArray[np.intp], n_parts: int) -> NDArray[np.int64]:
        """Return rows of the map, ``n_parts - 1`` of them, between which some boxes have as much to do."""
        start, stop = self.start[rows, 0], self.stop[rows, 0]
        edges, where = np.unique(np.concatenate([start, stop]), return_inverse=True)
        depth = np.cumsum(np.bincount(where.ravel(), np.repeat([1.0, -1.0], len(rows))))
        area = np.concatenate([[0], np.cumsum(depth[:-1] * np.diff(edges))])
        between: NDArray[np.int64] = np.interp(
            np.arange(1, n_parts) / n_parts * area[-1], area, edges
        ).astype(np.int64)
        return between

    def most_overlaps(self) -> int:
        """Return how many rows cover a pixel at most: never too few, up to a few times too many."""
        return int(np.unique(self._cells()[1], return_counts=True)[1].max(initial=0))

    def has_overlaps(self) -> bool:
        """Whether two rows share a pixel."""
        rows, cells = self._cells()
        order = np.argsort(cells, kind="stable")
        rows, cells = rows[order], cells[order]
        for step in range(1, len(rows)):  # each with those that touch its cell
            near = np.flatnonzero(cells[step:] == cells[:-step])
            a, b = rows[near], rows[near + step]
            if ((self.start[a] < self.stop[b]) & (self.start[b] < self.stop[a])).all(axis=1).any():
                return True
            if not len(near):
                break
        return False

    def _cells(self) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return rows and the cells of a lattice that they touch, at most two an axis."""
        inside = np.flatnonzero(self.is_inside)
        start, stop = self.start[inside], self.stop[inside]
        size = np.array(self.patch)
        first, last = start // size, (stop - 1) // size
        counts = np.array(self.shape) // size + 1
        rows, cells = [], []
        for corner in np.ndindex(*(2,) * len(size)):
            cell = first + np.minimum(corner, last - first)
            is_new = (np.array(corner) <= last - first).all(axis=1)
            rows.append(inside[is_new])
            cells.append(_flat(cell[is_new], counts))
        return np.concatenate(rows), np.concatenate(cells)

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


def n_outside(grids: Sequence[Grid]) -> int:
    """Return how many rows lie wholly outside of all maps."""
    return int(np.count_nonzero(~np.any([grid.is_inside for grid in grids], axis=0)))


def _flat(cells: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each cell; numbers beyond 64 bits wrap, which only makes counts larger."""
    flat = np.zeros(len(cells), dtype=np.int64)
    for axis, n in enumerate(counts.tolist()):
        flat = flat * n + cells[:, axis]
    return flat

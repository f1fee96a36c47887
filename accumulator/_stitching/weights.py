"""The sum of what patches count over a band of the map, where they overlap.

The sums come from the boxes of the rows alone, in float64: no map of counts is kept, and none can wrap. Rows
of a grid are summed axis by axis: all patches of one row of the grid make one line, and all its lines are
multiples of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator._stitching.blends import Window
    from accumulator._stitching.grid import Grid

_LINES_NBYTES: Final = 2**25  # kept, with a multiple of each: a grid has one line, tissue a few a band


class Line:
    """Sums of weights over all axes but the first, from which many rows of the map have multiples."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values
        self.has_zeros = not values.all()
        self._last: tuple[tuple[Any, ...], NDArray[Any] | None] | None = None

    def times(self, factor: float, n_channels: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """Return a multiple with a number for each channel, None if it is 1 throughout; not to be changed."""
        key, last = (factor, n_channels, dtype), self._last
        if last is not None and last[0] == key:  # as for the rows before
            return last[1]
        made = _repeated(factor * self.values, n_channels).astype(dtype)
        product = None if (made == 1).all() else made
        self._last = key, product  # in one go, as threads share the line
        return product


@attrs.frozen(eq=False)
class Sums:
    """The sums of weights over a band: all of them, or a line that its rows are multiples of."""

    factors: NDArray[np.float64]  # (n,): what of the line each row has, or 1
    line: Line | NDArray[np.float64]  # the line, or the sums

    @property
    def array(self) -> NDArray[np.float64]:
        """The sums, ``(n, ...)``."""
        values = self.line.values[None] if isinstance(self.line, Line) else self.line
        return _upright(self.factors, values.ndim - 1) * values

    @property
    def has_gaps(self) -> bool:
        """Whether any of them is 0."""
        if isinstance(self.line, Line):
            return self.line.has_zeros or not bool(self.factors.all())
        return not bool(self.line.all())

    def divisors(
        self, n_channels: int, dtype: np.dtype[Any], step: int
    ) -> Iterator[tuple[slice, NDArray[Any] | None]]:
        """Yield some rows, and what their numbers are to be divided by until the next: None for ones."""
        products: NDArray[Any] | None = None
        for start in range(0, len(self.factors), step):
            part = slice(start, start + step)
            factors = self.factors[part]
            if not isinstance(self.line, Line):
                yield part, _repeated(self.line[part], n_channels).astype(dtype)
            elif (factors == factors[0]).all():
                yield part, self.line.times(float(factors[0]), n_channels, dtype)
            else:
                values = _repeated(self.line.values, n_channels)
                if products is None:
                    products = np.empty((min(step, len(self.factors)), *values.shape), dtype)
                own = products[: len(factors)]
                # In float64, and rounded once; block by block, as NumPy does it, that is in the cache.
                yield part, np.multiply(_upright(factors, values.ndim), values, out=own, casting="same_kind")


class Summer:
    """Sums the weights of rows over a band of the map."""

    def __init__(self, grid: Grid, window: Window, n_channels: int = 1) -> None:
        self._grid, self._window, self._n_channels = grid, window, n_channels
        self._lines: dict[tuple[int, bytes], Line] = {}

    def band(self, rows: NDArray[np.intp], start: int, stop: int) -> Sums:
        """Return the sums of some rows between two rows of the map."""
        grid = self._grid
        rows = np.sort(rows[(grid.start[rows, 0] < stop) & (grid.stop[rows, 0] > start)])
        groups = [] if self._window.lines is None else [rows[each] for each in self._by_place(rows, 0)]
        if groups and all(self._key(each, 1) == self._key(groups[0], 1) for each in groups[1:]):
            factors = np.zeros(stop - start)
            for each in groups:
                self._add_line(factors, each[0], 0, start)
            return Sums(factors, self._line(groups[0], 1))
        sums = np.zeros((stop - start, *grid.shape[1:]))
        for each in groups or [rows]:
            if not groups or len(each) * math.prod(grid.patch[1:]) < math.prod(grid.shape[1:]) // 2:
                self._place(each, sums, start)
                continue
            factors = np.zeros(stop - start)
            self._add_line(factors, each[0], 0, start)
            at = np.flatnonzero(factors)
            part = slice(at[0], at[-1] + 1) if len(at) else slice(0)
            line = self._line(each, 1).values
            sums[part] += _upright(factors[part], line.ndim) * line
        return Sums(np.ones(stop - start), sums)

    def _key(self, rows: NDArray[np.intp], axis: int) -> tuple[int, bytes]:
        """Return what two lists of rows have in common if they have the same places from an axis on."""
        grid = self._grid
        return axis, np.stack([each[rows, axis:] for each in (grid.start, grid.stop, grid.skip)]).tobytes()

    def _line(self, rows: NDArray[np.intp], axis: int) -> Line:
        """Return the sums of rows of one place on the axes before, over the axes from one on."""
        grid = self._grid
        key = self._key(rows, axis)
        known = self._lines.get(key)
        if known is not None:
            return known
        line = np.zeros(grid.shape[axis:])
        for members in self._by_place(rows, axis):
            first = rows[members[0]]
            if axis == len(grid.shape) - 1:
                for _ in members:
                    self._add_line(line, first, axis, 0)
            else:
                part = slice(grid.start[first, axis], grid.stop[first, axis])
                own = self._weights(first, axis)
                inner = self._line(rows[members], axis + 1).values
                line[part] += _upright(own, inner.ndim) * inner
        if (len(self._lines) + 1) * line.nbytes * (1 + self._n_channels) > _LINES_NBYTES:
            self._lines.clear()
        made = self._lines[key] = Line(line)
        return made

    def _by_place(self, rows: NDArray[np.intp], axis: int) -> list[NDArray[np.intp]]:
        """Return positions in a list of rows, one array for each place that they have on an axis."""
        grid = self._grid
        places = np.stack([each[rows, axis] for each in (grid.start, grid.stop, grid.skip)], axis=1)
        _, inverse = np.unique(places, axis=0, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1) if len(rows) else []

    def _weights(self, row: np.intp, axis: int) -> NDArray[np.float64]:
        grid = self._grid
        n, skip = int(grid.stop[row, axis] - grid.start[row, axis]), int(grid.skip[row, axis])
        lines: Any = self._window.lines
        own: NDArray[np.float64] = lines[axis][skip : skip + n]
        return own

    def _add_line(self, line: NDArray[np.float64], row: np.intp, axis: int, start: int) -> None:
        first, last = int(self._grid.start[row, axis]) - start, int(self._grid.stop[row, axis]) - start
        own = self._weights(row, axis)[max(0, -first) : len(line) - first]
        line[max(0, first) : last] += own

    def _place(self, rows: NDArray[np.intp], sums: NDArray[np.float64], start: int) -> None:
        for row in rows.tolist():
            (in_map, *rest), in_patch = self._grid.parts(row, start, start + len(sums))
            in_band = slice(in_map.start - start, in_map.stop - start)
            sums[in_band, *rest] += self._window.weights[in_patch]


def _upright(factors: NDArray[np.float64], n_axes: int) -> NDArray[np.float64]:
    """Return one factor for each row of an array that has so many more axes."""
    return factors.reshape(-1, *(1 for _ in range(n_axes)))


def _repeated(values: NDArray[Any], n_channels: int) -> NDArray[Any]:
    """Return numbers with one for each channel, which lie one after the other."""
    return values if n_channels == 1 else np.repeat(values, n_channels, axis=-1)

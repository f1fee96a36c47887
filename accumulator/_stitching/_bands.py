"""Bands of the map that rows are still expected for.

A band is a number of whole rows of the map, made when the first patch touches it and let go when the last
one has come. What has not been touched takes no memory.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator import _memory
from accumulator._plan import as_text
from accumulator._stitching._blend import PARALLEL_NBYTES, Layer, Task, Workers, finish
from accumulator._stitching._numbers import lowest, wider
from accumulator._stitching._parts import parts_of, shares
from accumulator._stitching._weights import Summer
from accumulator._stores import Pages
from accumulator.exceptions import MemoryLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from accumulator._stitching._grid import Grid
    from accumulator._stitching._parts import Part
    from accumulator._stitching._weights import Window

_BAND_NBYTES: Final = 64 * 2**20
_MOST_SPARE: Final = 2


@attrs.frozen(eq=False)
class MapSpec:
    """One head of the map.

    Attributes
    ----------
    channels : tuple of int
        The shape behind the spatial axes: ``(C,)``, or nothing.
    dtype : dtype
        Of the map.
    fill_value : scalar
        Of pixels that nothing covers.
    sum_dtype : dtype
        Of bands.
    is_checked : bool
        Whether values may be so large that their sum is infinite in `sum_dtype`.
    """

    channels: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    sum_dtype: np.dtype[Any]
    is_checked: bool

    @property
    def n_channels(self) -> int:
        """Numbers a pixel."""
        return math.prod(self.channels)


@attrs.define(eq=False)
class _Band:
    """Rows of the map: one array a head, ``(height, ..., channels)``, and which rows have come.

    Its home is where its values belong, if that is in RAM; the sums may be made there.
    """

    sums: list[NDArray[Any]]
    home: list[NDArray[Any]] | None
    rows: list[int] = attrs.field(factory=list)
    last: int = -1  # the greatest of them


class Bands:
    """All open bands.

    Parameters
    ----------
    grid : Grid
        Where rows lie.
    window : Window
        How they are blended.
    specs : sequence of MapSpec
        The heads.
    home : callable
        Returns, for some rows of the map, each head's array that they belong to; None if that is not in RAM.
    memory_limit : int, optional
        Bytes that a band may take at most, down to one row.

    Attributes
    ----------
    height : int
        Rows of the map in a band.
    """

    def __init__(
        self,
        grid: Grid,
        window: Window,
        specs: Sequence[MapSpec],
        home: Callable[[int, int], list[NDArray[Any]] | None],
        memory_limit: int | None = None,
    ) -> None:
        self._home = home
        self._grid, self._window, self._specs = grid, window, list(specs)
        self._weights = [self._repeated(spec) for spec in specs]
        self._summer = Summer(grid, window)
        self._workers = Workers()
        self._open: dict[int, _Band] = {}
        self._spare: list[_Band] = []
        nbytes = _memory.buffer_nbytes(_BAND_NBYTES, memory_limit)
        fitting = max(1, nbytes // max(1, self._row_nbytes))
        self.height: int = min(grid.shape[0], 2 ** (fitting.bit_length() - 1))
        # In the order in which the map gets complete: nothing above the first that is missing changes.
        inside = np.flatnonzero(grid.is_inside)
        self._order = inside[np.argsort(grid.start[inside, 0], kind="stable")]
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all open bands."""
        return len(self._open) * self.height * self._row_nbytes

    @property
    def least_nbytes(self) -> int:
        """Bytes of the bands that one row of patches lies in."""
        n_bands = 1 + -(-self._grid.patch[0] // self.height)
        return n_bands * self.height * self._row_nbytes

    def open(self, rows: NDArray[np.intp]) -> None:
        """Make the bands that rows lie in; nothing has changed if this raises.

        Raises
        ------
        MemoryLimitError
            There is no memory for them.
        """
        new = sorted({band for spans in self._spans(rows) for band in spans} - self._open.keys())
        needed = (len(new) - len(self._spare)) * self.height * self._row_nbytes
        if needed > 0 and not _memory.fits_in_memory(needed, 0, 100):
            raise MemoryLimitError(
                f"{len(self._open)} bands of the map wait for rows that have not come, and take "
                f"{as_text(self.nbytes)}; {len(new)} more do not fit in memory: push in the order of the "
                "list, leave out what will not come, or collect all with FullBatchAccumulator and stitch that"
            )
        self._open.update({band: self._make(band) for band in new})

    def add(self, rows: NDArray[np.intp], heads: Sequence[NDArray[Any]]) -> None:
        """Blend patches, one for each row, into their bands, which are open."""
        if self._window.blend == "last":
            order = np.argsort(rows, kind="stable")
            rows, heads = rows[order], [head[order] for head in heads]
        n_shares = self._workers.n if sum(head.nbytes for head in heads) >= PARALLEL_NBYTES else 1
        cut = [
            parts_of(self._grid, rows, low, high, self.height)
            for low, high in shares(self._grid, rows, n_shares)
        ]
        done = [0] * len(cut)
        while True:
            layers = self._layers(heads)
            tasks = [
                Task(self._window.blend, layers, parts, n, partial(self._mask, rows))
                for parts, n in zip(cut, done, strict=True)
            ]
            self._workers.run(tasks)
            done = [task.n_done for task in tasks]
            too_large = {task.too_large for task in tasks if task.too_large is not None}
            if not too_large:
                break
            for head in too_large:
                self._widen(head)
        for row, spans in zip(rows.tolist(), self._spans(rows), strict=True):
            for number in spans:
                band = self._open[number]
                band.rows.append(row)
                band.last = max(band.last, row)

    def complete(self, written: NDArray[np.bool_]) -> list[int]:
        """Return the open bands that no row is outstanding for, in order."""
        order = self._order
        while self._next < len(order) and written[order[self._next]]:
            self._next += 1
        is_over = self._next == len(order)
        edge = self._grid.shape[0] if is_over else int(self._grid.start[order[self._next], 0])
        return [number for number in sorted(self._open) if self._extent(number)[1] <= edge]

    def all_open(self) -> list[int]:
        """Return all open bands, in order."""
        return sorted(self._open)

    def finish(self, number: int) -> tuple[slice, list[NDArray[Any]]]:
        """Let go of a band: return which rows of the map it is, and each head's values there.

        The memory of the arrays serves for the next band that is opened.
        """
        band = self._open[number]
        start, stop = self._extent(number)
        sums = self._summer.band(np.array(band.rows, dtype=np.intp), start, stop)
        values, tasks = [], []
        for head, (spec, array) in enumerate(zip(self._specs, band.sums, strict=True)):
            own = array[: stop - start]
            if band.home is not None:
                target = band.home[head].reshape(own.shape)
            else:
                target = own if spec.dtype == own.dtype else np.empty(own.shape, spec.dtype)
            is_in_place = target.ctypes.data == own.ctypes.data
            values.append(target.reshape(-1, *self._grid.shape[1 : self._grid.n_spatial], *spec.channels))
            step = -(-len(own) // self._workers.n)
            tasks += [
                partial(
                    finish,
                    own[first : first + step],
                    target[first : first + step],
                    sums.part(first, first + step),
                    spec.fill_value,
                    is_sum=self._window.is_sum,
                    is_in_place=is_in_place,
                )
                for first in range(0, len(own), step)
            ]
        self._workers.run(tasks)
        del self._open[number]
        is_own = band.home is None
        if (
            is_own
            and len(self._spare) < _MOST_SPARE
            and [a.dtype for a in band.sums] == [s.sum_dtype for s in self._specs]
        ):
            self._spare.append(band)
        return slice(start, stop), values

    def close(self) -> None:
        """End the threads, and let go of all bands."""
        self._workers.close()
        self._open.clear()
        self._spare.clear()

    @property
    def _row_nbytes(self) -> int:
        """Bytes of a row of the map in all bands."""
        pixels = math.prod(self._grid.shape[1:])
        return sum(pixels * spec.n_channels * spec.sum_dtype.itemsize for spec in self._specs)

    def _extent(self, number: int) -> tuple[int, int]:
        return number * self.height, min(self._grid.shape[0], (number + 1) * self.height)

    def _spans(self, rows: NDArray[np.intp]) -> list[range]:
        """Return for each row which bands it lies in."""
        first, stop = self._grid.start[rows, 0] // self.height, -(-self._grid.stop[rows, 0] // self.height)
        stop = np.where(self._grid.is_inside[rows], stop, first)
        return list(map(range, first.tolist(), stop.tolist()))

    def _make(self, number: int) -> _Band:
        home = self._home(*self._extent(number))
        spare = self._spare.pop().sums if self._spare and home is None else None
        arrays = []
        for head, spec in enumerate(self._specs):
            blank = lowest(spec.sum_dtype) if self._window.blend == "max" else 0
            is_blank = spare is None and not blank
            if home is not None and spec.sum_dtype == spec.dtype:
                array = home[head].reshape(-1, *self._grid.shape[1:], spec.n_channels)
                is_blank &= not any(np.asarray(spec.fill_value, spec.dtype).tobytes())
            else:
                array = self._fresh(spec) if spare is None else spare[head]
            if not is_blank:
                array[...] = blank
            arrays.append(array)
        return _Band(arrays, home)

    def _fresh(self, spec: MapSpec) -> NDArray[Any]:
        shape = (self.height, *self._grid.shape[1:], spec.n_channels)
        nbytes = math.prod(shape) * spec.sum_dtype.itemsize
        try:
            return Pages(nbytes, is_huge=True).array(shape, spec.sum_dtype)
        except MemoryError as cause:
            raise MemoryLimitError(f"a band of {self.height} rows of the map: {cause}") from cause

    def _widen(self, head: int) -> None:
        """Go on in a dtype in which the values of a head can be added up."""
        old = self._specs[head]
        new = wider(old.sum_dtype)
        self._specs[head] = attrs.evolve(old, sum_dtype=new, is_checked=False)
        self._weights[head] = self._repeated(self._specs[head])
        self._spare.clear()
        for band in self._open.values():
            array = self._fresh(self._specs[head])
            array[...] = band.sums[head]
            band.sums[head] = array

    def _repeated(self, spec: MapSpec) -> NDArray[Any] | None:
        """Return the weights with one number for each of a patch; None where all are 1."""
        if not self._window.is_weighted:
            return None
        real = np.zeros((), spec.sum_dtype).real.dtype
        return np.repeat(self._window.weights.astype(real), spec.n_channels, axis=-1)

    def _layers(self, heads: Sequence[NDArray[Any]]) -> list[Layer]:
        """Return the heads of a push and where they go, the last axis and the channels laid in one."""
        return [
            Layer(
                _flat(np.ascontiguousarray(head).reshape(len(head), *self._grid.patch, spec.n_channels)),
                {number: _flat(band.sums[i]) for number, band in self._open.items()},
                self._weights[i],
                spec.n_channels,
                spec.is_checked,
            )
            for i, (head, spec) in enumerate(zip(heads, self._specs, strict=True))
        ]

    def _mask(self, rows: NDArray[np.intp], part: Part, n_channels: int) -> NDArray[np.bool_] | None:
        """Return which numbers of a part no row covers that has come and is later; None for all."""
        band, row = self._open[part.band], int(rows[part.patch])
        if band.last < row:
            return None
        top = part.band * self.height
        (first, last), *rest = part.at
        box = (slice(first + top, last + top), *(slice(*each) for each in rest))
        mask = self._not_covered([other for other in band.rows if other > row], box)
        return np.repeat(mask, n_channels, axis=-1)

    def _not_covered(self, others: list[int], box: tuple[slice, ...]) -> NDArray[np.bool_]:
        """Return which pixels of a box none of some rows covers."""
        free = np.ones([part.stop - part.start for part in box], dtype=bool)
        origin = np.array([part.start for part in box])
        start = np.maximum(self._grid.start[others] - origin, 0)
        stop = np.minimum(self._grid.stop[others] - origin, free.shape)
        for low, high in zip(start.tolist(), stop.tolist(), strict=True):
            if all(a < b for a, b in zip(low, high, strict=True)):
                free[tuple(map(slice, low, high))] = False
        return free


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array with its channels laid one after the other: a view, where they lie so."""
    *axes, last, n_channels = array.shape
    return array.reshape(*axes, last * n_channels)

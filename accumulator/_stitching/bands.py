"""Bands of the map that rows are still expected for.

A band is a number of whole rows of the map, made when the first patch touches it and let go when the last
one has come. What has not been touched takes no memory.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core import memory
from accumulator._inputs import tuning
from accumulator._inputs.text import as_text
from accumulator._stitching.band import Band, fresh
from accumulator._stitching.blend import Layer, blend_share, finish, flat, quick
from accumulator._stitching.numbers import MapSpec, repeated_weights, wider
from accumulator._stitching.parts import Prepared, cuts, share_of
from accumulator._stitching.votes import Votes
from accumulator._stitching.weights import Summer, Sums
from accumulator._stores.memory.threads import Pool, n_cores
from accumulator.exceptions import MemoryLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from accumulator._stitching.grid import Grid
    from accumulator._stitching.parts import Share

_MOST_SPARE: Final = 2
_MOST_THREADS: Final = 4  # more do not make memory faster
_SUMS_NBYTES: Final = 8 * 2**20  # of the sums of weights that a thread makes at a time


class Bands:
    """All open bands.

    ``home`` returns the arrays that rows of the map belong to; it is None, or returns None, where those are
    not in RAM. ``written`` gets which rows were blended; those that are ``left_out`` are not
    waited for. `is_torn` says that an interrupt left a push half-done.
    """

    def __init__(  # noqa: PLR0913  what they depend on
        self,
        grid: Grid,
        *,
        specs: Sequence[MapSpec],
        written: NDArray[np.bool_],
        left_out: NDArray[np.bool_] | None = None,
        home: Callable[[int, int], list[NDArray[Any]] | None] | None,
        memory_limit: int | None = None,
    ) -> None:
        self._home, self._written, self._left_out = home, written, left_out
        self.grid, self._specs = grid, list(specs)
        self._weights = [repeated_weights(spec) for spec in specs]
        self._has_zeros = [not spec.window.weights.all() for spec in specs]
        self._distances = [
            spec.window.distances if spec.window.blend == "nearest" else None for spec in specs
        ]
        # One for all heads that are blended alike.
        most_channels = max(spec.n_channels for spec in specs)
        self._summers = {id(spec.window): Summer(grid, spec.window, most_channels) for spec in specs}
        self.is_torn = False
        self._lock = threading.RLock()  # of which bands are open
        self._pool = Pool(min(n_cores(), _MOST_THREADS), "accumulator-stitch")
        self._open: dict[int, Band] = {}
        self._spare: list[Band] = []
        nbytes = memory.buffer_nbytes(self._most_nbytes, memory_limit)
        fitting = max(1, nbytes // max(1, self._row_nbytes))
        self.height: int = min(grid.shape[0], 2 ** (fitting.bit_length() - 1))
        # In the order in which the map gets complete: nothing above the first that is missing changes.
        inside = np.flatnonzero(grid.is_inside)
        self._order = inside[np.argsort(grid.start[inside, 0], kind="stable")]
        self._tops = grid.start[self._order, 0]
        self._next = 0
        self._last = -1  # the greatest of all rows that have come

    @property
    def nbytes(self) -> int:
        """Bytes of all open bands."""
        slots = sum(band.more_nbytes for band in list(self._open.values()))
        return len(self._open) * self.height * self._row_nbytes + slots

    @property
    def least_nbytes(self) -> int:
        """Bytes of the bands that one row of patches lies in."""
        n_bands = 1 + -(-self.grid.patch[0] // self.height)
        return n_bands * self.height * self._row_nbytes

    def leave(self, n: int) -> None:
        """Leave so many cores to others from now on."""
        self._pool.n = max(1, min(n_cores() - n, _MOST_THREADS))

    def open(self, rows: NDArray[np.intp]) -> None:
        """Make the bands that rows lie in; or MemoryLimitError, and nothing has changed."""
        rows = rows[self.grid.is_inside[rows]]
        first, last = self.grid.start[rows, 0] // self.height, (self.grid.stop[rows, 0] - 1) // self.height
        spans = set(zip(first.tolist(), last.tolist(), strict=True))
        with self._lock:  # another thread may be blending what came before
            self._open_all({band for a, b in spans for band in range(a, b + 1)} - self._open.keys())

    def _open_all(self, new: Collection[int]) -> None:
        if not new:
            return
        needed = (len(new) - len(self._spare)) * self.height * self._row_nbytes
        if needed > 0 and not memory.fits_in_memory(needed, 0, 100):
            if not self._open:
                nbytes = as_text(self.height * self._row_nbytes)
                raise MemoryLimitError(
                    f"{len(new)} bands of the map, {nbytes} each, do not fit in memory: let go of "
                    "what else is in it, or give memory_limit for lower bands"
                )
            raise MemoryLimitError(
                f"{len(self._open)} bands of the map wait for rows that have not come, and take "
                f"{as_text(self.nbytes)}; {len(new)} more do not fit in memory: push in the order of the "
                "list, leave out what will not come, or collect all with FullBatchAccumulator and stitch that"
            )
        made = {number: self._make(number) for number in sorted(new)}
        self._open.update(made)

    def prepare(
        self,
        rows: NDArray[np.intp],
        heads: Sequence[NDArray[Any]],
        given: Sequence[NDArray[Any] | None] | None = None,
    ) -> Prepared:
        """Do what may fail of blending patches, one for each row, whose bands are open.

        Pixels of each head count as much as is ``given``, ``(n, h, ...)``, besides their weights.
        """
        given = [None] * len(heads) if given is None else given
        if any(spec.window.blend == "last" for spec in self._specs):
            order = np.argsort(rows, kind="stable")
            rows, heads = rows[order], [head[order] for head in heads]
            given = [None if each is None else each[order] for each in given]
        native = [
            np.ascontiguousarray(head, head.dtype.newbyteorder("=")).reshape(spec.patches_shape(len(head)))
            for head, spec in zip(heads, self._specs, strict=True)
        ]
        nbytes = self._patch_nbytes
        shares = [
            share_of(self.grid, rows, low, high, self.height, nbytes)
            for low, high in cuts(self.grid, rows, nbytes, self._pool.n)
        ]
        return Prepared(rows, native, [share for share in shares if share is not None], given)

    def add(self, push: Prepared) -> None:
        """Blend what was prepared into its bands; `is_torn` if that is interrupted.

        MemoryLimitError if sums need a wider dtype and there is no memory for it; `is_torn` then, unless that
        was found before anything was blended.
        """
        while large := self._add_until_large(push):
            self.is_torn = any(share.done for share in push.shares)
            with self._lock:
                for head in large:
                    self._widen(head)
        self._last = max(self._last, int(push.rows.max(initial=-1)))
        self._written[push.rows] = True
        self.is_torn = False

    def _add_until_large(self, push: Prepared) -> set[int]:
        """Blend what is not done yet; return the heads with values too large, if any stopped it."""
        with self._lock:
            opened = dict(self._open)
        for number in {band for share in push.shares for band in share.bands}:
            self._blank(opened[number])
        self.is_torn = True
        mask, large = partial(self._mask, push.rows), set[int]()
        layers = self._layers(push.heads, opened, self._specs, push.rows, push.given)
        tasks = [partial(blend_share, layers, share, large, mask) for share in push.shares]
        self._pool.run(quick, tasks)
        return large

    def _layers(
        self,
        heads: Sequence[NDArray[Any]],
        bands: Mapping[int, Band],
        specs: Sequence[MapSpec],
        rows: NDArray[np.intp] | None = None,
        given: Sequence[NDArray[Any] | None] | None = None,
    ) -> list[Layer]:
        layers = []
        for i, (head, spec) in enumerate(zip(heads, specs, strict=True)):
            known = {number: band.known[i] for number, band in bands.items()}
            layers.append(
                Layer(
                    spec.window.blend,
                    head if spec.is_spread else flat(head),
                    {number: flat(band.sums[i]) for number, band in bands.items()},
                    self._weights[i] if spec is self._specs[i] else repeated_weights(spec),
                    self._has_zeros[i],
                    spec.n_channels,
                    spec.is_checked,
                    spec.nodata,
                    {
                        number: each if isinstance(each, Votes) else flat(each)
                        for number, each in known.items()
                        if each is not None
                    },
                    spec.is_known_by_pixel,
                    rows,
                    spec.patch if spec.is_spread else None,
                    None if given is None else given[i],
                    self._distances[i],
                    len(self._written) + 1,
                )
            )
        return layers

    def complete(self) -> list[int]:
        """Return the open bands that no row is outstanding for, in order."""
        order, left_out = self._order, self._left_out
        while self._next < len(order) and (
            self._written[order[self._next]] or (left_out is not None and left_out[order[self._next]])
        ):
            self._next += 1
        is_over = self._next == len(order)
        edge = self.grid.shape[0] if is_over else int(self.grid.start[order[self._next], 0])
        return [number for number in self.all_open() if self._extent(number)[1] <= edge]

    def all_open(self) -> list[int]:
        """Return all open bands, in order."""
        with self._lock:
            return sorted(self._open)

    def finish(self, number: int) -> tuple[slice, list[NDArray[Any]]]:
        """Return which rows of the map a band is, and each head's values there; `is_torn` if interrupted.

        The memory of the arrays serves for other bands after `let_go`.
        """
        band = self._open[number]
        start, stop = self._extent(number)
        if band.values is None:
            self._blank(band)  # where the push that opened it failed
            tasks = self._strips(band, start, stop)
            self.is_torn = True
            self._pool.run(quick, tasks)
            self.is_torn = False
        shape = self.grid.shape[1 : self.grid.n_spatial]
        return slice(start, stop), [
            each.reshape(len(each), *shape, *spec.channels)
            for each, spec in zip(band.values or (), self._specs, strict=True)
        ]

    def _strips(self, band: Band, start: int, stop: int) -> list[Callable[[], None]]:
        """Return what finishes a band, between two rows of the map: a task for each thread or more."""
        rows, values = self._rows_between(start, stop), []
        for head, (spec, array) in enumerate(zip(self._specs, band.sums, strict=True)):
            own = array[: stop - start]
            if band.home is not None:
                values.append(band.home[head].reshape(own.shape))
            else:
                values.append(own if spec.dtype == own.dtype else np.empty(own.shape, spec.dtype))
        band.values = values
        # Strips whose sums of weights, in float64, are small.
        line_nbytes = 8 * math.prod(self.grid.shape[1:])
        # However many threads there are just now: sums of weights are rounded as strips are cut.
        step = max(1, min(-(-(stop - start) // _MOST_THREADS), _SUMS_NBYTES // line_nbytes))
        return [
            partial(self._finish_strip, band, values, rows, start, first, min(first + step, stop))
            for first in range(start, stop, step)
        ]

    def _finish_strip(  # noqa: PLR0913, PLR0917  what it works on
        self,
        band: Band,
        targets: list[NDArray[Any]],
        rows: NDArray[np.intp],
        top: int,
        start: int,
        stop: int,
    ) -> None:
        sums: dict[int, Sums] = {key: summer.band(rows, start, stop) for key, summer in self._summers.items()}
        part = slice(start - top, stop - top)
        for spec, array, known, target in zip(self._specs, band.sums, band.known, targets, strict=True):
            own = None if known is None else known[part]
            finish(array[part], own, target[part], sums[id(spec.window)], spec)

    def gaps(self, number: int) -> list[NDArray[np.bool_] | None]:
        """Return which pixels of a band, still open, no patch gives a value to in each head; None if none.

        Known for heads that are reduced alone: others have the fill value there already.
        """
        band, (start, stop) = self._open[number], self._extent(number)
        gaps: list[NDArray[np.bool_] | None] = []
        for spec, known in zip(self._specs, band.known, strict=True):
            if spec.reduced is None:
                gaps.append(None)
                continue
            sums = self._summers[id(spec.window)].band(self._rows_between(start, stop), start, stop)
            found = sums.array == 0 if sums.has_gaps else None
            if known is not None:
                won = known.won()[1] if isinstance(known, Votes) else known
                has_none = ~(won[: stop - start] != 0).any(axis=-1)
                found = has_none if found is None else found | has_none
            shape = self.grid.shape[1 : self.grid.n_spatial]
            gaps.append(None if found is None else found.reshape(-1, *shape))
        return gaps

    def let_go(self, number: int) -> None:
        """Forget a band that is finished."""
        with self._lock:
            band = self._open.pop(number)
            is_alike = [a.dtype for a in band.sums] == [spec.sum_dtype for spec in self._specs]
            if band.home is None and is_alike and len(self._spare) < _MOST_SPARE:
                self._spare.append(band)

    def close(self) -> None:
        """End the threads, and let go of all bands."""
        self._pool.close()
        self._open.clear()
        self._spare.clear()

    @property
    def _most_nbytes(self) -> int:
        """Bytes that a band may take."""
        return tuning.now.band_nbytes

    @property
    def _patch_nbytes(self) -> int:
        """Bytes of all heads' values that a patch has in the maps."""
        pixels = math.prod(self.grid.patch)
        return sum(pixels * spec.n_channels * spec.dtype.itemsize for spec in self._specs)

    @property
    def _row_nbytes(self) -> int:
        """Bytes of a row of the map in all bands."""
        pixels = math.prod(self.grid.shape[1:])
        return sum(pixels * spec.pixel_nbytes for spec in self._specs)

    def _extent(self, number: int) -> tuple[int, int]:
        return number * self.height, min(self.grid.shape[0], (number + 1) * self.height)

    def _rows_between(self, start: int, stop: int) -> NDArray[np.intp]:
        """Return the rows that have come and lie between two rows of the map, or near."""
        rows = self._near(start, stop)
        return rows[self._written[rows]]

    def _near(self, start: int, stop: int) -> NDArray[np.intp]:
        low, high = np.searchsorted(self._tops, [start - self.grid.patch[0], stop])
        return self._order[low:high]

    def _make(self, number: int) -> Band:
        home = None if self._home is None else self._home(*self._extent(number))
        spare = self._spare.pop() if self._spare and home is None else None
        if spare is not None:
            return Band(spare.sums, None, spare.known, is_used=True)
        return Band.make((self.height, *self.grid.shape[1:]), self._specs, home)

    def _blank(self, band: Band) -> None:
        if not band.is_blank:
            band.blank(self._specs)

    def _fresh(self, spec: MapSpec) -> NDArray[Any]:
        return fresh((self.height, *self.grid.shape[1:], spec.n_channels), spec.sum_dtype)

    def _widen(self, head: int) -> None:
        """Go on in a dtype in which the values of a head can be added up."""
        old = self._specs[head]
        new = attrs.evolve(old, sum_dtype=wider(old.sum_dtype), is_checked=False)
        needed = sum(band.sums[head].size for band in self._open.values()) * new.sum_dtype.itemsize
        if needed and not memory.fits_in_memory(needed, 0, 100):
            raise MemoryLimitError(
                f"values are so large that their sums need {new.sum_dtype}, and {as_text(needed)} of memory"
            )
        made = {number: self._fresh(new) for number in self._open}
        for number, array in made.items():
            sums = self._open[number].sums
            array[: len(sums[head])] = sums[head]
            sums[head] = array
        self._specs[head], self._weights[head] = new, repeated_weights(new)
        self._spare.clear()

    def _mask(
        self, rows: NDArray[np.intp], share: Share, part: int, n_channels: int
    ) -> NDArray[np.bool_] | bool:
        """Return which numbers of a part no row covers that has come and is later; True for all."""
        row = rows[share.patches[part]]
        if self._last < row:
            return True
        box = share.at[part].copy()
        box[:, 0] += share.bands[part] * self.height
        others = self._rows_between(*box[:, 0].tolist())
        mask = self.grid.not_covered(others[others > row], box)
        return np.repeat(mask, n_channels, axis=-1)

"""The canvas: what has been accumulated, one array a head, and which rows are real.

It decides when the heads are known whether the rows live in RAM or on disk, moves them out of RAM when
memory gets short, and makes every placement all or nothing. It is told rows, not locations: those are
matched above.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core import memory
from accumulator._core.plan import Plan, make_plan
from accumulator._inputs import tuning
from accumulator._inputs.heads import Heads
from accumulator._inputs.options import StorageOptions
from accumulator._inputs.text import as_text, named
from accumulator._inputs.validation import HeadSpec, as_specs, as_stored_heads, check_specs
from accumulator._inputs.warn import warn
from accumulator._stores import (
    BUFFER_NBYTES,
    FolderStore,
    KeptRun,
    RamRows,
    RowStore,
    TemporaryFolder,
    ZarrRows,
    as_numbers,
    check_options,
    count,
    cut,
)
from accumulator._stores.kept.fit import check_heads, fit_options
from accumulator.exceptions import AccumulatorError, DuplicateLocationError, StorageWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import OnDuplicate, RowArray, Rows

_log: Final = logging.getLogger("accumulator")


@attrs.frozen
class Budget:
    """What decides between RAM and disk, and where on disk."""

    save_path: str
    memory_threshold: float
    memory_limit: int | None = None
    held_nbytes: int = 0  # accumulated elsewhere, and counted against the same share of the memory

    @property
    def buffer_nbytes(self) -> int:
        """Bytes that may be in memory of a result on disk."""
        return memory.buffer_nbytes(BUFFER_NBYTES, self.memory_limit)


@attrs.define(eq=False)
class Canvas:
    """N rows a head, the record of which are written, and the policy for those that come twice.

    Parameters
    ----------
    n_rows : int
        N, the number of canonical locations.
    budget : Budget
        What decides between RAM and disk.
    on_duplicate : {"error", "first", "last"}
        What a row put twice does.
    options : StorageOptions
        How heads are stored.
    n_expected : int
        How many rows will come at least.
    run : KeptRun, optional
        The store that rows are kept in; they are on disk then, whatever the budget.
    checkpoint_interval : float
        Seconds after which a run that is kept records what has come. It takes longer where recording takes
        more than a twentieth of the time.
    """

    n_rows: int
    budget: Budget
    on_duplicate: OnDuplicate = "error"
    options: StorageOptions = attrs.field(factory=StorageOptions)
    n_expected: int = 0
    run: KeptRun | None = None
    checkpoint_interval: float = math.inf
    written: NDArray[np.bool_] = attrs.field(init=False)
    specs: Heads[HeadSpec] = attrs.field(init=False, factory=Heads)  # none until the first batch
    rows: RowStore | None = attrs.field(init=False, default=None)
    zarr_store: FolderStore | None = attrs.field(init=False, default=None)  # None in RAM
    n_consumed: int = attrs.field(init=False, default=0)
    row_nbytes: int = attrs.field(init=False, default=0)  # of all heads
    _is_counted: bool = attrs.field(init=False, default=True)  # whether all that is written was committed
    _n_written: int = attrs.field(init=False, default=0)
    _watch: memory.Watch | None = attrs.field(init=False, default=None)  # None on disk
    _stale: list[Rows] = attrs.field(init=False, factory=list)  # may hold what a failed push left there
    _restore: list[tuple[Rows, list[NDArray[Any]]]] = attrs.field(init=False, factory=list)
    _is_confirmed: bool = attrs.field(init=False, default=True)  # whether a resumed store fits what is pushed
    _next_checkpoint: float = attrs.field(init=False, default=math.inf)

    def __attrs_post_init__(self) -> None:
        """Start with no row written, or with those of an earlier run."""
        self.written = np.zeros(self.n_rows, dtype=bool)
        if self.run is not None and self.run.is_resumed:
            most = memory.available_memory()
            fit = partial(fit_options, self.run.root, self.n_rows, self.options)
            self.rows, self.zarr_store, self.specs = self.run.resume(self.budget.buffer_nbytes, most, fit)
            self.row_nbytes = sum(spec.row_nbytes for spec in self.specs)
            self.written = self.run.recorded.copy()
            self._n_written = int(np.count_nonzero(self.written))
            self.n_consumed = int(np.flatnonzero(self.written)[-1]) + 1 if self._n_written else 0
            self._is_confirmed = False
        self._next_checkpoint = time.monotonic() + self.checkpoint_interval

    @property
    def arrays(self) -> list[RowArray]:
        """One array a head, ``(N, *patch_shape)``; call `flush` before reading those on disk."""
        return [] if self.rows is None else self.rows.arrays

    def views(self, start: int, stop: int) -> list[NDArray[Any]] | None:
        """Return rows of each head in RAM, to be written in place and placed afterwards; None on disk."""
        return self.rows.views(start, stop) if isinstance(self.rows, RamRows) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all rows of all heads, written or not."""
        return self.n_rows * self.row_nbytes

    @property
    def n_written(self) -> int:
        """How many rows hold a prediction, without counting them."""
        return self._n_written

    @property
    def held_nbytes(self) -> int:
        """Bytes of memory it takes: its rows in RAM, at most its buffers on disk."""
        if isinstance(self.rows, ZarrRows):
            return min(self.rows.buffer_nbytes, self.nbytes)
        return self._n_written * self.row_nbytes

    @property
    def n_unrecorded(self) -> int:
        """How many rows a run that is kept has not recorded."""
        return 0 if self.run is None else int(np.count_nonzero(self.written & ~self.run.recorded))

    def empty_batch(self) -> list[NDArray[Any]] | dict[str, NDArray[Any]]:
        """Return a batch without rows, with heads like those of the first batch."""
        return self.specs.like(np.empty((0, *spec.patch_shape), spec.dtype) for spec in self.specs).as_given()

    def plan(self, heads: Heads[NDArray[Any]] | None = None) -> Plan:
        """Return what the result needs and what there is; ``heads`` stand for the first batch."""
        specs = self.specs
        if heads is not None and not specs:
            specs = as_specs(heads, self.options)
            check_options(self.n_rows, specs.values)
        budget = self.budget
        return make_plan(
            self.n_rows,
            specs,
            save_path=budget.save_path,
            threshold=budget.memory_threshold,
            limit=budget.memory_limit,
            held=budget.held_nbytes,
            n_expected=max(self.n_expected, self._n_written),
            n_written=self._n_written,
            is_in_ram=self._is_in_ram,
            made=(self.rows.layouts, self.rows.buffer_nbytes) if isinstance(self.rows, ZarrRows) else None,
            is_kept=self.run is not None,
            n_on_disk=0 if self.run is None else int(np.count_nonzero(self.run.recorded)),
        )

    @property
    def _is_in_ram(self) -> bool | None:
        """Whether the rows are in RAM; None while that is open."""
        if self.run is not None:
            return False
        return None if self.rows is None else self.zarr_store is None

    def place(self, heads: Heads[NDArray[Any]], rows: Rows, n_consumed: int, locs: NDArray[Any]) -> None:
        """Put each prediction in its row: all of them, or none.

        The first call fixes number, names, patch shapes and dtypes of the heads, and makes the stores.

        Parameters
        ----------
        heads : Heads
            One row for each of ``rows``.
        rows : slice or int array
            Where they go, no row twice.
        n_consumed : int
            How many rows are consumed once these are placed.
        locs : (N, K) array
            The canonical locations, to name culprits.

        Raises
        ------
        HeadError, HeadDtypeError, HeadValueError
            The heads are not like those of the first batch, or cannot be stored.
        OptionError
            The storage options do not fit the heads.
        DuplicateLocationError
            A row is written already and ``on_duplicate`` is "error".
        StorageError
            The disk refused, now or what was put earlier.
        """
        is_first = self.rows is None
        if not self._is_confirmed:
            self._confirm(heads)
        if self.specs:
            heads = check_specs(heads, self.specs)
        specs = self.specs or as_specs(heads, self.options)
        arrays = as_stored_heads(heads, specs)
        seen = self.written[rows]
        repeats = bool(seen.any())
        if repeats and self.on_duplicate == "error":
            self._refuse(np.flatnonzero(seen), locs[rows])
        if repeats and self.on_duplicate == "first":
            rows = as_numbers(rows)[~seen]
            arrays = tuple(head[~seen] for head in arrays)
            repeats = False
        self._retry_checkpoint()
        try:
            if is_first:
                self._open(specs, arrays, count(rows))
                self._tell_place()
            elif self.run is not None and count(rows):
                self.run.begin()
            self._settle()
            self._leave_ram_if_tight(count(rows) - repeats * int(np.count_nonzero(seen)))
            self._put(rows, arrays, seen if repeats else None, n_consumed)
        except BaseException:
            if is_first:
                self.close()
                if self.run is not None:
                    self.run.abandon()
                self.written[:], self._n_written, self.n_consumed = False, 0, 0
            raise
        self._checkpoint_if_due()

    def flush(self) -> None:
        """Make `arrays` show every row that was placed, and no other; record them in a run that is kept."""
        if self.rows is None:
            return
        if self.run is None or not isinstance(self.rows, ZarrRows):
            self._show_rows()
            return
        start, self._next_checkpoint = time.monotonic(), -math.inf
        self._show_rows()
        self.run.checkpoint(self.rows, self.written)
        now = time.monotonic()
        _log.debug("checkpoint of %s: %d rows recorded, %.3f s", self.run.root, self._n_written, now - start)
        pause = tuning.now.checkpoint_share * (now - start)
        self._next_checkpoint = now + max(self.checkpoint_interval, pause)

    def _retry_checkpoint(self) -> None:
        """Have the last checkpoint succeed, if it failed, before anything else is taken."""
        if self._next_checkpoint == -math.inf:
            self.flush()

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() >= self._next_checkpoint:
            # The batch was taken: it is the next call that tries again, and tells.
            with contextlib.suppress(AccumulatorError, MemoryError):
                self.flush()

    def complete(self) -> None:
        """Say in a run that is kept that it is complete, after `flush`."""
        if self.run is None or self.run.is_complete:
            return
        if self.rows is None:  # there is no location, and so nothing was pushed
            self.rows, self.zarr_store = self.run.create(Heads(), 0)
        self.run.complete()

    def _show_rows(self) -> None:
        if self.rows is None:
            return
        self._settle()
        while self._stale:
            rows = as_numbers(self._stale[-1])
            rows = rows[~self.written[rows]]
            blank = [np.full((1, *s.patch_shape), s.storage.fill_value, s.dtype) for s in self.specs]
            for start, stop in self._parts(count(rows)):
                part = cut(rows, start, stop)
                self._make_room(stop - start)
                self._put_part(part, [np.broadcast_to(b, (stop - start, *b.shape[1:])) for b in blank])
                self._commit()
            self._stale.pop()
        self.rows.flush()

    def stop(self) -> None:
        """End the threads, after `flush`: no more rows are placed."""
        if self.rows is not None:
            self.rows.close()
        if self.run is not None:
            self.run.release()

    def close(self) -> None:
        """Forget all rows and remove the temporary folder; the canvas is as if never used."""
        rows, self.rows = self.rows, None
        self.specs, self._watch, self._stale, self._restore = Heads(), None, [], []
        self.row_nbytes, self._is_counted = 0, True
        if rows is not None:
            rows.close()
        store, self.zarr_store = self.zarr_store, None
        if store is not None:
            store.shut()

    def _confirm(self, heads: Heads[NDArray[Any]]) -> None:
        """Refuse a first batch that the store of an earlier run was not made for."""
        if self.run is not None:
            check_heads(self.run.root, heads, self.specs)
        self._is_confirmed = True

    def _refuse(self, repeats: NDArray[np.intp], batch_locs: NDArray[Any]) -> None:
        locations = batch_locs[repeats]
        raise DuplicateLocationError(
            f"pushed before: {named(repeats, 'batch_locs')}, the first being {locations[0].tolist()}; "
            'push each location once, or say on_duplicate="first" or "last"',
            repeats,
            locations,
        )

    def _open(self, specs: Heads[HeadSpec], arrays: tuple[NDArray[Any], ...], n_rows: int) -> None:
        self.specs = specs
        self.row_nbytes = sum(spec.row_nbytes for spec in specs)
        budget = self.budget
        check_options(self.n_rows, specs.values)
        if self.run is not None:
            self.plan().check_disk(n_rows)
            self.rows, self.zarr_store = self.run.create(specs, budget.buffer_nbytes)
            return
        if memory.fits_in_memory(
            self.nbytes, budget.held_nbytes, budget.memory_threshold, budget.memory_limit
        ):
            # What was there a moment ago may be refused all the same: then the disk serves.
            with contextlib.suppress(MemoryError):
                self.rows = RamRows(self.n_rows, specs.values, arrays)
                self._watch = memory.Watch(budget.memory_threshold)
                return
        self.plan().check_disk(n_rows)
        self.rows, self.zarr_store = self._make_zarr(budget.buffer_nbytes)

    def _make_zarr(self, buffer_nbytes: int) -> tuple[ZarrRows, FolderStore]:
        folder = TemporaryFolder(self.budget.save_path)
        store = FolderStore(folder.path / "result.zarr", folder=folder)
        try:
            return ZarrRows(store, self.n_rows, self.specs.values, buffer_nbytes), store
        except BaseException:
            store.shut()
            raise

    def _leave_ram_if_tight(self, n_new: int) -> None:
        """Move to disk, from now on and bit by bit, if memory has become short."""
        held = (self._n_written + n_new) * self.row_nbytes
        if (
            n_new == 0
            or self._watch is None
            or not isinstance(self.rows, RamRows)
            or not self._watch.is_tight(held)
        ):
            return
        ram, nbytes = self.rows, self.budget.buffer_nbytes
        try:
            self.plan().check_disk(self._n_written + n_new)
            # Under pressure hardly anything may be left; what moves out makes room for its own buffers.
            rows, store = self._make_zarr(max(nbytes, min(BUFFER_NBYTES, held // 20)))
        except AccumulatorError as refusal:
            self._watch.rest()
            warn(f"memory is short, but the result has to stay there: {refusal}", StorageWarning)
            return
        try:
            rows.take_over(ram, self.written)
            self.rows, self.zarr_store, self._watch = rows, store, None
        except BaseException:
            rows.close()
            store.shut()
            self.rows, self.zarr_store = ram, None
            raise
        ram.close()
        _log.info(
            "memory is short: %d rows (%s) move from RAM to zarr in %s, while the run goes on",
            self._n_written,
            as_text(self._n_written * self.row_nbytes),
            store,
        )

    def _tell_place(self) -> None:
        """Log where the rows go."""
        if _log.isEnabledFor(logging.INFO):
            place = "RAM" if self.zarr_store is None else f"zarr in {self.zarr_store}"
            n_heads, nbytes = len(self.specs), as_text(self.nbytes)
            _log.info("%d rows of %d heads, %s, go to %s", self.n_rows, n_heads, nbytes, place)

    def _parts(self, n: int) -> list[tuple[int, int]]:
        """Return pieces of a batch that may be put at a time: mostly one."""
        if self.rows is None or n * self.row_nbytes <= self.rows.part_nbytes:
            return [(0, n)] * (n > 0)
        step = max(1, self.rows.part_nbytes // self.row_nbytes)
        return [(start, min(n, start + step)) for start in range(0, n, step)]

    def _put(
        self,
        rows: Rows,
        arrays: tuple[NDArray[Any], ...],
        seen: NDArray[np.bool_] | None,
        n_consumed: int,
    ) -> None:
        """Put values in all heads; ``seen`` marks rows that hold something, which a failure puts back."""
        new, again, held = rows, None, []
        if seen is not None and self.rows is not None:
            new, again = as_numbers(rows)[~seen], as_numbers(rows)[seen]
            held = self.rows.get(again)
        touched, parts = 0, self._parts(count(rows))
        try:
            for start, stop in parts:
                self._make_room(stop - start)
                touched = stop
                self._put_part(cut(rows, start, stop), [head[start:stop] for head in arrays])
                if stop != count(rows):
                    self._commit()
            self._is_counted = False
            self.written[rows] = True
            self.n_consumed = max(self.n_consumed, n_consumed)
        except BaseException:
            if not self._is_counted and self.rows is not None:  # interrupted between two lines
                self.rows.discard()
                self.written[new], self._is_counted = False, True
            # On disk the last part does not show, unless it was put over others.
            self._stale += [cut(rows, 0, touched)] * (len(parts) > 1 or self.zarr_store is None)
            self._restore += [] if again is None or not touched else [(again, held)]
            raise
        self._n_written += count(new)
        self._commit()

    def _commit(self) -> None:
        """Let count what is written; interrupted, it is gone on with before anything else."""
        if self.rows is not None:
            self.rows.commit()
        self._is_counted = True

    def _make_room(self, n_rows: int) -> None:
        if self.rows is not None:
            self.rows.make_room(n_rows * self.row_nbytes)

    def _put_part(self, rows: Rows, arrays: list[NDArray[Any]]) -> None:
        if self.rows is None:
            return
        try:
            self.rows.put(rows, arrays)
        except BaseException:
            self.rows.discard()
            raise

    def _settle(self) -> None:
        """Finish what an interrupted call has left."""
        if not self._is_counted:
            self._commit()
        while self._restore:
            rows, values = self._restore[-1]
            for start, stop in self._parts(count(rows)):
                self._make_room(stop - start)
                self._put_part(cut(rows, start, stop), [head[start:stop] for head in values])
                self._commit()
            self._restore.pop()

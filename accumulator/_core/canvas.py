"""The canvas: what has been accumulated, one array a head, and which rows are real.

It is told rows, not locations: those are matched above.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np

from accumulator._core.all_or_nothing import AllOrNothing
from accumulator._core.memory import available_memory
from accumulator._core.plan import Budget, Plan, make_plan
from accumulator._core.ram_or_disk import RamOrDisk
from accumulator._inputs import tuning
from accumulator._inputs.arrays import is_foreign
from accumulator._inputs.heads import Heads
from accumulator._inputs.options import HeadOptions
from accumulator._inputs.text import as_text, named
from accumulator._inputs.validation import HeadSpec, as_specs, as_stored_heads, check_specs
from accumulator._inputs.warn import log
from accumulator._pictures import left_out
from accumulator._stores.format.layout import check_options
from accumulator._stores.kept.fit import check_heads
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.memory.row_numbers import as_numbers, count, without_repeats
from accumulator._stores.ranks.part import PartRun
from accumulator.exceptions import AccumulatorError, DuplicateLocationError, HeadDtypeError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._stores.format.store import FolderStore
    from accumulator._stores.memory.row_store import RowStore
    from accumulator.typing import Mode, OnDuplicate, RowArray, Rows


@attrs.define(eq=False)
class Canvas:
    """N rows a head, the record of which are written, and the policy for those that come twice."""

    n_rows: int
    budget: Budget
    on_duplicate: OnDuplicate = "error"
    options: HeadOptions = attrs.field(factory=HeadOptions)
    n_expected: int | None = None  # rows that are to come, where that is known
    run: KeptRun | None = None  # which keeps them, on disk whatever the budget
    checkpoint_interval: float = math.inf  # seconds between two records of a run that is kept, or longer
    takes_over: bool = False  # the arrays that are placed: they do not change before `flush`
    is_one_call: bool = False  # of the function: its arrays are the caller's, who may have many such calls
    written: NDArray[np.bool_] = attrs.field(init=False)
    specs: Heads[HeadSpec] = attrs.field(init=False, factory=Heads)  # none before the first batch
    _told_by: str = attrs.field(init=False, default="the first batch")  # what the heads are, in messages
    _batches: AllOrNothing | None = attrs.field(init=False, default=None)  # None before the first batch
    _n_consumed: int = attrs.field(init=False, default=0)  # when it was closed
    _place: RamOrDisk | None = attrs.field(init=False, default=None)  # None in a run that is kept
    _is_confirmed: bool = attrs.field(init=False, default=True)  # whether a resumed store fits what is pushed
    _next_checkpoint: float = attrs.field(init=False, default=math.inf)

    @written.default
    def _no_rows(self) -> NDArray[np.bool_]:
        return np.zeros(self.n_rows, dtype=bool)

    @classmethod
    def open(  # noqa: PLR0913, PLR0917  those of the class, and of the run
        cls,
        locs: NDArray[Any],
        budget: Budget,
        on_duplicate: OnDuplicate,
        options: HeadOptions,
        n_expected: int | None = None,
        store: str | None = None,
        mode: Mode = "w-",
        resume_token: str | None = None,
        checkpoint_interval: float | None = None,
        declared: Heads[NDArray[Any]] | None = None,
        part: PartRun | None = None,
    ) -> Self:
        """Return a canvas of one row a location; with ``store`` it has the rows that are recorded there.

        Where several processes write it, ``part`` is that of this one, which is released after an error.

        Where heads are declared, it is made for them, as if a batch without rows had come. Errors are those
        of `KeptRun.claim`, `KeptRun.resume` and `place`; nobody holds the store then.
        """
        if store is None:
            canvas = cls(len(locs), budget, on_duplicate, options, n_expected)
            canvas._declare(declared, locs)
            return canvas
        run = KeptRun.claim(store, mode, locs, resume_token, n_expected) if part is None else part
        budget = attrs.evolve(budget, save_path=str(Path(store).parent))
        interval = 30 if checkpoint_interval is None else checkpoint_interval
        if run.n_expected is not None:  # as an earlier run, or another rank, was told
            n_expected = run.n_expected
        canvas = cls(len(locs), budget, on_duplicate, options, n_expected, run, interval)
        try:
            if run.is_resumed:
                canvas._resume(run)
            canvas._declare(declared, locs)
            canvas._next_checkpoint = time.monotonic() + interval
        except BaseException:
            canvas.close()
            run.release()
            raise
        return canvas

    def _declare(self, heads: Heads[NDArray[Any]] | None, locs: NDArray[Any]) -> None:
        if heads is not None:
            self.place(heads, slice(0, 0), 0, locs)
            self._told_by = "heads="

    def _resume(self, run: KeptRun) -> None:
        store, self.specs = run.resume(self.options, self.budget.buffer_nbytes, available_memory())
        self.written[:] = run.recorded
        self._batches = AllOrNothing(store, self.specs, self.written)
        self._is_confirmed = False

    def _join(self, part: PartRun, heads: Heads[NDArray[Any]]) -> None:
        """Take the heads that all ranks have, which are these if nobody has told any yet."""
        specs = as_specs(heads, self.options)
        self._check(specs)
        as_stored_heads(heads, specs)  # a push that is refused fixes nothing
        part.offer(specs)
        self._resume(part)
        self._tell_place()

    @property
    def store(self) -> RowStore | None:
        return None if self._batches is None else self._batches.store

    @property
    def zarr_store(self) -> FolderStore | None:
        return None if self._batches is None else self._batches.store.zarr_store

    @property
    def arrays(self) -> list[RowArray]:
        """One array a head, ``(N, *patch_shape)``; call `flush` before reading those on disk."""
        return [] if self._batches is None else self._batches.store.arrays

    def readable(self) -> tuple[FolderStore | None, list[RowArray]]:
        """Return where `arrays` are, and the arrays for others to read, who are told of damage."""
        if self._batches is not None:
            self._batches.store.settle()
        if self.run is None or self._batches is None:
            return self.zarr_store, self.arrays
        store, arrays = self.run.reader()
        return store, list(arrays)

    def views(self, start: int, stop: int) -> list[NDArray[Any]] | None:
        """Return rows of each head in RAM, to be written in place and placed afterwards; None on disk."""
        return None if self._batches is None else self._batches.store.views(start, stop)

    @property
    def nbytes(self) -> int:
        return 0 if self._batches is None else self.n_rows * self._batches.row_nbytes

    @property
    def n_written(self) -> int:
        return 0 if self._batches is None else self._batches.n_written

    @property
    def n_left_out(self) -> int:
        """How many rows will never come, as a mask leaves them out."""
        return left_out(self.n_rows, self.n_written, self.n_expected)

    @property
    def n_consumed(self) -> int:
        return self._n_consumed if self._batches is None else self._batches.n_consumed

    @property
    def held_nbytes(self) -> int:
        """Bytes of memory it takes: its rows in RAM, at most its buffers on disk."""
        if self._batches is None:
            return 0
        if self.zarr_store is not None:
            return min(self._batches.store.buffer_nbytes, self.nbytes)
        return self._batches.n_written * self._batches.row_nbytes

    @property
    def n_unrecorded(self) -> int:
        """How many rows a run that is kept has not recorded."""
        return 0 if self.run is None else int(np.count_nonzero(self.written & ~self.run.recorded))

    def empty_batch(self) -> list[NDArray[Any]] | dict[str, NDArray[Any]]:
        return self.specs.like(np.empty((0, *spec.patch_shape), spec.dtype) for spec in self.specs).as_given()

    def plan(self, heads: Heads[NDArray[Any]] | None = None) -> Plan:
        """Return what the result needs and what there is; ``heads`` stand for the first batch."""
        specs = self.specs
        if heads is not None and not specs:
            specs = as_specs(heads, self.options)
            self._check(specs)
        return make_plan(
            self.n_rows,
            specs,
            self.budget,
            self.store,
            n_expected=max(self.n_expected or 0, self.n_written),
            n_written=self.n_written,
            recorded=None if self.run is None else self.run.recorded,
        )

    @property
    def takes_repeats(self) -> bool:
        """Whether a row may come twice."""
        return self.on_duplicate != "error"

    def place(
        self,
        heads: Heads[NDArray[Any]],
        rows: Rows,
        n_consumed: int,
        locs: NDArray[Any],
        *,
        has_repeats: bool = False,
    ) -> None:
        """Put each prediction in its row: all of them, or none.

        The first call fixes number, names, patch shapes and dtypes of the heads, and makes the store. Where a
        row comes twice in ``rows`` it ``has_repeats``; ``n_consumed`` are consumed then, and ``locs`` name
        culprits.
        """
        if self._batches is None and isinstance(self.run, PartRun):
            self._join(self.run, heads)
        heads, specs = self._fit(heads)
        values = as_stored_heads(heads, specs)
        if has_repeats:
            kept = without_repeats(as_numbers(rows), is_last=self.on_duplicate == "last")
            rows, values = as_numbers(rows)[kept], tuple(head[kept] for head in values)
        rows, values, seen = self._without_repeats(rows, values, locs)
        self._retry_checkpoint()
        is_first = self._batches is None
        try:
            if self._batches is None:
                self._batches = self._open(specs, values, count(rows))
                self._tell_place()
            elif self.run is not None and count(rows):
                self.run.begin()
            self._batches.settle()
            if self._place is not None:
                n_new = count(rows) if seen is None else int(np.count_nonzero(~seen))
                self._place.leave_if_tight(self._batches, n_new, self._check_disk)
            self._batches.put(rows, values, seen, n_consumed, is_lent=self.takes_over)
        except BaseException:
            if is_first:
                self.close()
                if self.run is not None:
                    self.run.abandon()
                self.written[:], self._n_consumed = False, 0
            raise
        self._checkpoint_if_due()

    def flush(self) -> None:
        """Make `arrays` show every row that was placed, and no other; record them in a run that is kept."""
        if self._batches is None:
            return
        if self.run is None:
            self._batches.show()
            return
        start, self._next_checkpoint = time.monotonic(), -math.inf
        try:
            self._batches.show()
        except StorageError:
            self._rescue()
            raise
        self.run.checkpoint(self.written)
        now = time.monotonic()
        what, root = "checkpoint of %s: %d rows recorded, %.3f s", self.run.root
        log(logging.DEBUG, what, root, self.n_written, now - start)
        pause = tuning.now.checkpoint_share * (now - start)
        self._next_checkpoint = now + max(self.checkpoint_interval, pause)

    def _rescue(self) -> None:
        """Record what is in files, now that not all can be; what is refused is told by who calls."""
        unsettled = None if self._batches is None else self._batches.unsettled
        if self.run is not None and unsettled is not None:
            with contextlib.suppress(AccumulatorError, MemoryError):
                self.run.rescue(self.written, unsettled)

    def complete(self) -> None:
        """Say in a run that is kept that it is complete, after `flush`."""
        if self.run is None or self.run.is_complete:
            return
        # Without a location nothing is pushed; a rank without rows leaves the heads to others.
        if self._batches is None and not isinstance(self.run, PartRun):
            self._batches = AllOrNothing(self.run.create(Heads(), 0), (), self.written)
        self.run.complete()

    def stop(self) -> None:
        """End the threads, after `flush`: no more rows are placed."""
        if self._batches is not None:
            self._batches.store.close()
        if self.run is not None:
            self.run.release()

    def close(self) -> None:
        """Forget all rows and remove the temporary folder."""
        batches, self._batches, self._place = self._batches, None, None
        self.specs = Heads()
        if batches is not None:
            self._n_consumed = batches.n_consumed
            batches.store.remove()

    def _retry_checkpoint(self) -> None:
        if self._next_checkpoint == -math.inf:  # the last one failed
            self.flush()

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() >= self._next_checkpoint:
            # The batch was taken: the next call tries again, and reports what fails.
            with contextlib.suppress(AccumulatorError, MemoryError):
                self.flush()

    def _fit(self, heads: Heads[NDArray[Any]]) -> tuple[Heads[NDArray[Any]], Heads[HeadSpec]]:
        """Return heads in the order of the first batch, and what each of their rows looks like."""
        if not self._is_confirmed and self.run is not None:
            check_heads(self.run.root, heads, self.specs)
        self._is_confirmed = True
        if self.specs.values:
            return check_specs(heads, self.specs, self._told_by), self.specs
        return heads, as_specs(heads, self.options)

    def _without_repeats(
        self, rows: Rows, values: tuple[NDArray[Any], ...], locs: NDArray[Any]
    ) -> tuple[Rows, tuple[NDArray[Any], ...], NDArray[np.bool_] | None]:
        """Return what is to be put, and which rows hold something already; None where none does."""
        seen = self.written[rows]
        if not np.count_nonzero(seen):  # a tenth of the time of any()
            return rows, values, None
        if self.on_duplicate == "last":
            return rows, values, seen
        if self.on_duplicate == "first":
            return as_numbers(rows)[~seen], tuple(head[~seen] for head in values), None
        repeats = np.flatnonzero(seen)
        locations = locs[rows][repeats]
        raise DuplicateLocationError(
            f"pushed before: {named(repeats, 'batch_locs')}, the first being {locations[0].tolist()}; "
            'push each location once, or say on_duplicate="first" or "last"',
            repeats,
            locations,
        )

    def _open(self, specs: Heads[HeadSpec], first: tuple[NDArray[Any], ...], n_first: int) -> AllOrNothing:
        self.specs = specs
        self._check(specs)
        if self.run is None:
            self._place = RamOrDisk(self.n_rows, self.budget, specs)
            store = self._place.make(first, partial(self._check_disk, n_first))
        else:
            self._check_disk(n_first)
            store = self.run.create(specs, self.budget.buffer_nbytes)
        return AllOrNothing(store, specs, self.written)

    def _tell_place(self) -> None:
        where = "RAM" if self.zarr_store is None else f"zarr in {self.zarr_store}"
        nbytes = as_text(self.nbytes)
        level = logging.DEBUG if self.is_one_call else logging.INFO
        log(level, "%d rows of %d heads, %s, go to %s", self.n_rows, len(self.specs), nbytes, where)

    def _check(self, specs: Heads[HeadSpec]) -> None:
        """Refuse what a result cannot be stored as, even if the rows may never go to zarr."""
        check_options(self.n_rows, specs.values)
        for i, spec in enumerate(specs):
            if is_foreign(spec.dtype) and not self.is_one_call:
                raise HeadDtypeError(
                    f"{specs.label(i)} has dtype {spec.dtype}, which zarr cannot store: push float64 or "
                    "complex128, or say so with dtype="
                )

    def _check_disk(self, n_rows: int) -> None:
        self.plan().check_disk(n_rows)

"""A run whose store is kept: claimed, resumed after a crash, and recorded in an order that no crash breaks.

What was pushed is on disk first, then the checksums, then ``written``; each step is synced before the next.
A row that the record has is therefore whole, and nothing else is believed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import numpy as np
import zarr

from accumulator._inputs.warn import warn
from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import ClaimedFolder, names_in
from accumulator._stores.files.unsynced import Unsynced
from accumulator._stores.format.arrays import layout_of, open_group, over
from accumulator._stores.format.mark import (
    COMPLETE,
    CREATING,
    MARK,
    RUNNING,
    Mark,
    hash_locations,
    hash_written,
    read_mark,
)
from accumulator._stores.format.names import OUTPUTS, PARTS, RECORD, head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.kept.fit import check_run, fit_options
from accumulator._stores.kept.record import Record
from accumulator._stores.kept.reserve import Reserve
from accumulator._stores.kept.restore import remove_partial, restore
from accumulator._stores.memory.threads import to_its_end
from accumulator._stores.reading.check import RowChecker
from accumulator._stores.reading.saved import SavedResult, is_map, open_result, stamp_of
from accumulator._stores.reading.trust import check_tree
from accumulator._stores.writing.record import create_record, hash_parts, write_mark
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import DamagedError, ResultExistsError, ResumeError, StorageError, StorageWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import HeadOptions
    from accumulator._inputs.validation import HeadSpec

_log: Final = logging.getLogger("accumulator")


@attrs.define(eq=False)
class KeptRun:
    """The store of one run, which nobody else may write until `release`; see `claim`."""

    root: Path
    recorded: NDArray[np.bool_]  # which rows are on disk for good
    _locs: NDArray[Any]
    _folder: ClaimedFolder
    _mark: Mark
    is_resumed: bool = False  # whether an earlier run's rows are there
    _is_marked: bool = True  # whether the disk certainly says what the mark does
    _broken: tuple[str, NDArray[np.intp]] | None = None  # why no call can succeed, and which rows are lost
    _unsynced: Unsynced = attrs.field(factory=Unsynced)
    _store: FolderStore = attrs.field(init=False)  # of the record; the rows have one of their own
    _reserve: Reserve = attrs.field(init=False)
    _record: Record = attrs.field(init=False)
    _group: Any = None  # from `create` or `resume` on, like all that follows
    _rows: ZarrRows | None = None

    @_store.default
    def _open_store(self) -> FolderStore:
        return FolderStore(self.root, unsynced=self._unsynced)

    @_reserve.default
    def _keep_nothing(self) -> Reserve:
        return Reserve(self.root, len(self._locs))

    @_record.default
    def _record_nothing(self) -> Record:
        return Record(self.root, self._reserve, self._unsynced)

    @classmethod
    def claim(
        cls, path: str, mode: str, locs: NDArray[Any], resume_token: str | None, n_expected: int | None = None
    ) -> Self:
        """Take over the folder of a store, there or not yet, and find out whose it is.

        Mode "w-" never touches what is there; "a" resumes it. After an error all is as it was:
        ResultExistsError tells that something is there, which the mode or its content forbids to touch,
        ResultFormatError that it is damaged beyond its rows, or no store, ResumeError that it is another
        run's, LockedError that somebody writes it, StorageError that the disk refused.
        """
        root, recorded = Path(path), np.zeros(len(locs), dtype=bool)
        mark = Mark(CREATING, None, 0, len(locs), hash_locations(locs), resume_token, n_expected=n_expected)
        run = cls(root, recorded, locs, ClaimedFolder.claim(root, mode), mark)
        try:
            run._look(mode)
        except BaseException:
            run.release()
            raise
        return run

    @property
    def n_expected(self) -> int | None:
        """How many rows are to come, as this run or an earlier one was told."""
        return self._mark.n_expected

    @property
    def is_complete(self) -> bool:
        """Whether the store says that the run is complete."""
        return self._is_marked and self._mark.is_complete

    def create(self, specs: Heads[HeadSpec], buffer_nbytes: int) -> ZarrRows:
        """Make the group and its arrays; after a failure the folder is empty again."""
        mark = self._mark.of_heads(specs.names, len(specs))
        try:
            with telling(f"no store can be made in {self.root}"):
                self._empty()  # a first push may have failed after this
                rows = to_its_end(partial(self._create, specs, mark, buffer_nbytes))
                self._mark = attrs.evolve(mark, arrays=hash_parts(self.root, mark))
                self._set_state(RUNNING)
        except BaseException:
            self.abandon()
            raise
        return rows

    def _create(self, specs: Heads[HeadSpec], mark: Mark, buffer_nbytes: int) -> ZarrRows:
        """Make the group, with its mark first, and all arrays."""
        self._group = zarr.create_group(self._store, zarr_format=3, attributes={MARK: mark.to_json()})
        self._unsynced.sync()  # what comes next is known to be ours by this mark
        self._rows = self._open_rows(specs, buffer_nbytes)
        self._record.arrays = create_record(self._group, specs, self._locs)
        self._unsynced.sync()
        return self._rows

    def resume(
        self, options: HeadOptions, buffer_nbytes: int, most_nbytes: int
    ) -> tuple[ZarrRows, Heads[HeadSpec]]:
        """Open what an earlier run has recorded, and check every byte of it.

        Damaged rows are missing from then on, with a StorageWarning. Whatever the record does not have is
        removed. Before anything is changed, ResumeError tells that the store was made with other options,
        ResultFormatError that it is damaged beyond its rows.
        """
        saved = open_result(
            self.root, mark=self._mark, is_partial=True, is_written=True, most_nbytes=most_nbytes
        )
        stored = saved.heads.like(layout_of(array).spec for array in saved.arrays)
        specs = fit_options(self.root, len(self._locs), options, stored)
        self.recorded = saved.written.copy()
        with telling(f"{self.root} cannot be resumed"):
            self._group = open_group(self._store)
            self._record.arrays = {name: over(self._group[name], self._store) for name in RECORD}
            self._rows = rows = self._open_rows(specs, buffer_nbytes, saved.arrays)
        try:
            with telling(f"{self.root} cannot be resumed"):
                lost = restore(RowChecker(saved), rows, self.recorded, self._unsynced)
                self._tell_lost(saved, rows, lost)
        except BaseException as cause:
            rows.close()
            if isinstance(cause, MemoryError):
                what = f"there is not enough memory for the chunks of {self.root} to resume it"
                raise StorageError(errno.ENOMEM, what) from cause
            raise
        n, n_recorded = len(self.recorded), int(np.count_nonzero(self.recorded))
        n_damaged = int(np.count_nonzero(saved.written)) - n_recorded
        text = "resumed %s: %d of %d rows recorded, %d damaged and missing again"
        _log.info(text, self.root, n_recorded, n, n_damaged)
        return rows, specs.like(made.spec for made in rows.layouts)

    def reader(self) -> tuple[FolderStore, list[zarr.Array[Any]]]:
        """Return the arrays as others read them, and their store: files that were changed are checked."""
        store = FolderStore(self.root, read_only=True)
        if self._rows is None:
            return store, []
        arrays = [over(head.array, store) for head in self._rows.heads]
        sums, stamp = self._rows.checksums, stamp_of(self.root)
        saved = SavedResult(store, self._mark, arrays, self._locs, self.recorded, sums, stamp)
        guarded = FolderStore(self.root, read_only=True, stamps=self._rows.zarr_store.stamps)
        return guarded, RowChecker(saved).guarded(guarded)

    def abandon(self) -> None:
        """Make the folder empty again: nothing of the first push was taken."""
        if self._rows is not None:
            self._rows.close()
        with contextlib.suppress(OSError):
            self._empty()
        self._unsynced.clear()
        self._mark = attrs.evolve(self._mark, state=CREATING)
        self._rows = None

    def begin(self) -> None:
        """Let a complete store be a running one again, before its rows change."""
        self._refuse_if_broken()
        if self._mark.is_complete or not self._is_marked:
            self._set_state(RUNNING)
        else:
            self._reserve.hold(self._mark.n_heads)

    def checkpoint(self, written: NDArray[np.bool_]) -> None:
        """Return when all written rows, which are in their files, are on the disk and recorded.

        Raises
        ------
        StorageError
            The disk refused; the next call tries again. Or the disk has lost rows that it had taken, or the
            store is not where it was: then no call will succeed.
        """
        self._refuse_if_broken()
        if self._rows is None:
            return
        what = f"rows cannot be recorded in {self.root}"
        try:
            with telling(what):
                self._checkpoint(self._rows, written)
        except StorageError:
            raise
        except Exception as cause:  # zarr's, for what somebody else has put there
            raise StorageError(errno.EIO, f"{what} ({type(cause).__name__}: {cause})") from cause

    def complete(self) -> None:
        """Say that the run is complete, after the last checkpoint."""
        with telling(f"{self.root} cannot be completed"):
            self._reserve.drop()
        self._set_state(COMPLETE, hash_written(self.recorded))

    def release(self) -> None:
        """Let others write the store, once no thread does; a folder that nothing was put into is removed."""
        if self._rows is not None:
            self._rows.close()
        if self._folder.is_current():  # else it is somebody else's folder
            with contextlib.suppress(OSError):  # the next resume removes it
                self._reserve.drop()
        self._folder.release(is_unused=self._mark.state == CREATING)

    def _look(self, mode: str) -> None:
        """Find out whose store it is, now that nobody else can change it."""
        found = self._found()
        if not found:
            return
        if "zarr.json" not in found:
            what = "the folder holds other things: give another path"
            raise ResultExistsError(errno.EEXIST, what, str(self.root))
        if mode == "w-":
            raise ResultExistsError(errno.EEXIST, "another run has just made it", str(self.root))
        mark = read_mark(self.root)
        if mark.state == CREATING:
            check_tree(self.root)
            with telling(f"{self.root} cannot be made anew"):
                self._empty()
            return
        check_run(self.root, mark, self._mark)
        told, self.is_resumed = self._mark.n_expected, True
        self._is_marked = told in {None, mark.n_expected}  # else the first push, or the end, writes it
        self._mark = mark if told is None else attrs.evolve(mark, n_expected=told)

    def _found(self) -> list[str]:
        """Return what is in the folder; a run of several ranks is theirs."""
        found = [name for name in names_in(self.root) if not system.is_partial(name)]
        if PARTS in found:
            raise ResumeError(f"{self.root} is a run of several ranks: publish it, or join it with rank=")
        if "zarr.json" in found and is_map(self.root):
            what = "maps are there, which are not resumed: give another path, or remove them"
            raise ResultExistsError(errno.EEXIST, what, str(self.root))
        return found

    def _empty(self) -> None:
        """Remove a group that holds no rows."""
        if self._group is not None and (self._mark.state != CREATING or not self._is_marked):
            self._set_state(CREATING)  # else what is left by a crash in here would look damaged
        for part in (OUTPUTS, *RECORD):
            system.clear(self.root / part)
        system.sync(self.root)  # parts without a mark would be somebody else's
        system.remove(self.root / "zarr.json")
        remove_partial(self.root)
        self._group = None

    def _open_rows(
        self, specs: Heads[HeadSpec], buffer_nbytes: int, there: Sequence[zarr.Array[Any]] | None = None
    ) -> ZarrRows:
        return ZarrRows(
            FolderStore(self.root, unsynced=self._unsynced),
            len(self._locs),
            specs.values,
            buffer_nbytes,
            keys=head_keys(specs.names, len(specs)),
            recorded=self.recorded,
            there=there,
            has_checksums=True,
        )

    def _set_state(self, state: str, written: str = "") -> None:
        self._is_marked = False  # a sync that fails comes after the change
        arrays = {} if state == CREATING else self._mark.arrays
        mark = attrs.evolve(self._mark, state=state, arrays=arrays, written=written)
        with telling(f"{self.root} cannot be marked as {state}"):
            self._reserve.used(partial(write_mark, self._group, mark))
            self._mark = mark
            self._unsynced.sync()
        self._is_marked = True
        if state == RUNNING:
            self._reserve.hold(self._mark.n_heads)

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise StorageError(errno.EIO, self._broken[0], str(self.root), rows=self._broken[1])
        if not self._folder.is_current():
            what = "the store was removed, moved or replaced while it was written: close(), and resume it"
            raise StorageError(errno.ENOENT, f"{what} where it is now", str(self.root))

    def _checkpoint(self, rows: ZarrRows, written: NDArray[np.bool_]) -> None:
        self._record_rows(rows, written, np.zeros_like(written))
        for redo in rows.redo:
            redo.apply()
        self._reserve.hold(self._mark.n_heads)

    def rescue(self, written: NDArray[np.bool_], unsettled: NDArray[np.intp]) -> None:
        """Record the rows that are in their files, where others could not be written.

        Rows that replace recorded ones stay beside their place, where there may be no room for them. Some
        rows are ``unsettled``, and hold what does not count. Errors are those of `checkpoint`.
        """
        self._refuse_if_broken()
        rows, what = self._rows, f"rows cannot be recorded in {self.root}"
        if rows is None:
            return
        try:
            with telling(what):
                held = rows.not_in_files()
                held[unsettled] = True
                self._record_rows(rows, written, held)
        finally:
            self._reserve.hold(self._mark.n_heads)  # else the rows that wait for room would take it

    def _record_rows(self, rows: ZarrRows, written: NDArray[np.bool_], held: NDArray[np.bool_]) -> None:
        """Record what was written, but for rows that are ``held`` in memory, or do not count."""
        new = np.greater(written, self.recorded)  # few arrays of all rows: a rank has a share
        np.greater(new, held, out=new)
        again = [waiting[~held[waiting]] for waiting in (redo.rows_waiting() for redo in rows.redo)]
        self._unsynced.sync()
        if self._unsynced.doubtful:
            self._compare_doubtful(rows, written & ~held)
        changed = np.concatenate([np.flatnonzero(new), *again])
        if len(changed):
            self._record.put(changed, new, self.recorded | new, rows.checksums, held & self.recorded)
            self.recorded[new] = True

    def _compare_doubtful(self, rows: ZarrRows, written: NDArray[np.bool_]) -> None:
        """Find out whether files whose sync failed once still have their rows, now that one succeeded."""
        for path in sorted(self._unsynced.doubtful):
            for number, head in enumerate(rows.heads):
                if not path.is_relative_to(self.root / head.array.path):
                    continue
                first = int(path.name.removeprefix("c.").split(".")[0]) * head.chunk_rows
                part = np.flatnonzero(written[first : first + head.chunk_rows]) + first
                try:
                    head.get(part)
                except DamagedError as damage:
                    lost = damage.rows
                    what = (
                        f"after it failed once, the disk has lost {len(lost)} rows of head {number}, the "
                        f"first being row {lost[0]}: close() and resume the run, which then misses all rows "
                        "since the last checkpoint"
                    )
                    self._broken = what, lost
                    self._refuse_if_broken()
            self._unsynced.doubtful.discard(path)

    def _tell_lost(self, saved: SavedResult, rows: ZarrRows, lost: NDArray[np.bool_]) -> None:
        """Record and warn that rows are missing again, ``(heads, N)``."""
        gone = np.flatnonzero(saved.written & ~self.recorded)
        if len(gone) == 0:
            return
        self.begin()
        self._record.write("written", gone, self.recorded)
        self._record.write("checksums", gone, self.recorded, rows.checksums)
        heads = [saved.heads.label(number) for number in np.flatnonzero(lost.any(axis=1)).tolist()]
        warn(
            f"{len(gone)} rows of {self.root} were damaged and are missing again, the first being row "
            f"{gone[0]}, in {', '.join(heads)}: missing_locs has them",
            StorageWarning,
        )

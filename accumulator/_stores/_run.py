"""A run whose store is kept: claimed, resumed after a crash, and recorded in an order that no crash breaks.

What was pushed is on disk first, then the checksums, then ``written``; each step is synced before the next.
A row that the record has is therefore whole, and nothing else is believed.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr

from accumulator._stores import _system
from accumulator._stores._check import RowChecker, layout_of
from accumulator._stores._checksums import spoil
from accumulator._stores._disk import OUTPUTS, ZarrRows
from accumulator._stores._folder import make_parents, remove_empty, storage_error
from accumulator._stores._folder_store import FolderStore
from accumulator._stores._group import RECORD_ROWS, create_parts, name_heads, open_record
from accumulator._stores._lock import StoreLock
from accumulator._stores._look import open_result
from accumulator._stores._mark import (
    COMPLETE,
    CREATING,
    MARK,
    RUNNING,
    Mark,
    hash_locations,
    hash_written,
    read_mark,
    set_mark,
)
from accumulator._stores._reading import check_tree
from accumulator._stores._restore import remove_partial, restore
from accumulator._validation import head_label
from accumulator.exceptions import ResultExistsError, ResumeError, StorageWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._stores._reading import SavedResult
    from accumulator._validation import HeadSpec

_PARTS: Final = (OUTPUTS, *RECORD_ROWS)


class KeptRun:
    """The store of one run, locked until `release`.

    Parameters
    ----------
    path : str
        The store's folder, there or not yet.
    mode : {"w-", "a"}
        "w-" never touches what is there; "a" resumes it.
    locs : (N, K) array
        The canonical locations.
    resume_token : str, optional
        What else has to be the same.

    Attributes
    ----------
    is_resumed : bool
        Whether an earlier run's rows are there.
    recorded : (N,) bool array
        Which rows are on disk for good.

    Raises
    ------
    ResultExistsError
        Something is there, which the mode or its content forbids to touch.
    ResultFormatError
        What is there is damaged beyond its rows, or no store.
    ResumeError
        It is the store of another run.
    LockedError
        Somebody writes it.
    StorageError
        The disk refused.
    """

    def __init__(self, path: str, mode: str, locs: NDArray[Any], resume_token: str | None) -> None:
        self.root, self._locs = Path(path), locs
        self._mark = Mark(CREATING, None, 0, len(locs), hash_locations(locs), resume_token)
        self.recorded = np.zeros(len(locs), dtype=bool)
        self.is_resumed = False
        self._unsynced = _system.Unsynced()
        self._is_made = self._claim(mode)
        try:
            self._lock = StoreLock(self.root)
        except BaseException:
            self._unclaim()
            raise
        try:
            self._look(mode)
        except BaseException:
            self.release()
            raise

    @property
    def is_complete(self) -> bool:
        """Whether the store says that the run is complete."""
        return self._mark.state == COMPLETE

    def create(
        self, specs: Sequence[HeadSpec], names: Sequence[str] | None, buffer_nbytes: int
    ) -> tuple[ZarrRows, FolderStore]:
        """Make the group and its arrays; after a failure the folder is empty again.

        Raises
        ------
        StorageError
            The disk refused.
        HeadDtypeError, OptionError
            zarr refused the heads or their options.
        """
        store, rows = FolderStore(self.root, unsynced=self._unsynced), None
        fresh = attrs.evolve(self._mark, names=None if names is None else list(names), n_heads=len(specs))
        try:
            self._empty()  # a first push may have failed after this
            zarr.create_group(store, zarr_format=3, attributes={MARK: fresh.to_json()})
            self._unsynced.sync()  # what comes next is known to be ours by this mark
            rows = ZarrRows(
                store, len(self._locs), specs, buffer_nbytes, recorded=self.recorded, has_checksums=True
            )
            name_heads(store, names, len(specs))
            create_parts(store, self._locs, len(specs))
            self._unsynced.sync()
            self._mark = set_mark(store, attrs.evolve(fresh, state=RUNNING))
            self._unsynced.add_folder(self.root.parent)
            self._unsynced.sync()
        except BaseException as cause:
            if rows is not None:
                rows.close()
            with contextlib.suppress(OSError):
                self._empty()
            self._mark = attrs.evolve(self._mark, state=CREATING)
            if isinstance(cause, OSError):
                raise storage_error(cause, f"no store can be made in {self.root}") from cause
            raise
        return rows, store

    def resume(self, buffer_nbytes: int, most_nbytes: int) -> tuple[ZarrRows, FolderStore, list[str] | None]:
        """Open what an earlier run has recorded, and check every byte of it.

        Damaged rows are missing from then on, with a StorageWarning. Whatever the record does not have is
        removed.
        """
        saved = open_result(self.root, is_partial=True, most_nbytes=most_nbytes)
        check_tree(self.root, is_written=True)
        self._mark, self.recorded = saved.mark, saved.written.copy()
        checker, store = RowChecker(saved), FolderStore(self.root, unsynced=self._unsynced)
        specs = [layout_of(array).spec for array in saved.arrays]
        rows = ZarrRows(
            store,
            len(self._locs),
            specs,
            buffer_nbytes,
            recorded=self.recorded,
            is_there=True,
            has_checksums=True,
        )
        try:
            self._tell_lost(saved, rows, restore(checker, rows, self.recorded, self._unsynced))
        except MemoryError as cause:
            rows.close()
            no_memory = OSError(errno.ENOMEM, "there is not enough memory for its chunks")
            raise storage_error(no_memory, f"{self.root} cannot be resumed") from cause
        except OSError as cause:
            rows.close()
            raise storage_error(cause, f"{self.root} cannot be resumed") from cause
        except BaseException:
            rows.close()
            raise
        return rows, store, saved.mark.names

    def begin(self) -> None:
        """Let a complete store be a running one again, before its rows change.

        Raises
        ------
        StorageError
            The disk refused.
        """
        if self._mark.state == COMPLETE:
            self._set_state(RUNNING)

    def checkpoint(self, rows: ZarrRows, written: NDArray[np.bool_]) -> None:
        """Return when all written rows, which are in their files, are on the disk and recorded.

        Raises
        ------
        StorageError
            The disk refused; nothing is lost, and the next call tries again.
        """
        try:
            self._checkpoint(rows, written)
        except OSError as cause:
            raise storage_error(cause, f"rows cannot be recorded in {self.root}") from cause

    def complete(self) -> None:
        """Say that the run is complete, after the last checkpoint.

        Raises
        ------
        StorageError
            The disk refused.
        """
        self._set_state(COMPLETE, hash_written(self.recorded))

    def release(self) -> None:
        """Let others write the store; a folder that nothing was put into is removed."""
        if self._mark.state == CREATING and not self.is_resumed:
            self._unclaim()
        self._lock.release()

    def _set_state(self, state: str, written: str = "") -> None:
        try:
            store = FolderStore(self.root, unsynced=self._unsynced)
            mark = set_mark(store, attrs.evolve(self._mark, state=state, written=written))
            self._unsynced.sync()
        except OSError as cause:
            raise storage_error(cause, f"{self.root} cannot be marked as {state}") from cause
        self._mark = mark

    def _claim(self, mode: str) -> bool:
        """Make the folder; return whether it was not there."""
        try:
            made = [self.root, *(folder for folder in self.root.parents if not folder.exists())]
            make_parents(self.root.parent)
            self.root.mkdir()
            for folder in made:
                _system.sync(folder.parent)
        except FileExistsError:
            is_folder = self.root.is_dir() and not self.root.is_symlink()
            if not is_folder or (mode == "w-" and any(self.root.iterdir())):
                raise ResultExistsError(
                    errno.EEXIST,
                    'something is there already: give another path, or resume it with mode="a"'
                    if is_folder
                    else "a store is a folder, and no link to one: give another path",
                    str(self.root),
                ) from None
            return False
        except OSError as cause:
            raise storage_error(cause, f"the store {self.root} cannot be made") from cause
        return True

    def _unclaim(self) -> None:
        if self._is_made:
            with contextlib.suppress(OSError):
                self.root.rmdir()
                remove_empty(self.root.parent)

    def _look(self, mode: str) -> None:
        """Find out whose store it is, now that nobody else can change it."""
        found = [path for path in self.root.iterdir() if not path.name.endswith(_system.PARTIAL)]
        if not any(path.name == "zarr.json" for path in found):
            if found:
                raise ResultExistsError(
                    errno.EEXIST, "the folder holds other things: give another path", str(self.root)
                )
            return
        if mode == "w-":
            raise ResultExistsError(errno.EEXIST, "another run has just made it", str(self.root))
        mark = read_mark(self.root)
        if mark.state == CREATING:
            check_tree(self.root)
            try:
                self._empty()
            except OSError as cause:
                raise storage_error(cause, f"{self.root} cannot be made anew") from cause
            return
        wanted, differences = self._mark, []
        if mark.n_rows != wanted.n_rows:
            differences.append(f"it has {mark.n_rows} locations, and {wanted.n_rows} are given")
        elif mark.locations != wanted.locations:
            differences.append("its locations are others, or in another order")
        if mark.resume_token != wanted.resume_token:
            differences.append(
                f"its resume_token is {mark.resume_token!r}, and {wanted.resume_token!r} is given"
            )
        if differences:
            raise ResumeError(
                f"{self.root} is the store of another run: {'; '.join(differences)}. Give another path, or "
                "what that run was given"
            )
        self.is_resumed = True

    def _empty(self) -> None:
        """Remove a group that holds no rows."""
        if (self.root / "zarr.json").exists() and read_mark(self.root).state != CREATING:
            self._set_state(CREATING)  # else what is left by a crash in here would look damaged
        for part in _PARTS:
            if (self.root / part).exists():
                shutil.rmtree(self.root / part)
        _system.remove(self.root / "zarr.json")
        remove_partial(self.root)

    def _checkpoint(self, rows: ZarrRows, written: NDArray[np.bool_]) -> None:
        new = written & ~self.recorded
        again = [redo.rows_waiting() for redo in rows.redo]
        self._unsynced.sync()
        changed = np.concatenate([np.flatnonzero(new), *again])
        if len(changed) == 0:
            return
        self._write_record("checksums", rows.checksums, changed, self.recorded | new)
        self._write_record("written", [written], np.flatnonzero(new))
        self.recorded |= new
        for redo in rows.redo:
            redo.apply()

    def _write_record(
        self,
        name: str,
        columns: Sequence[NDArray[Any]],
        rows: NDArray[np.intp],
        known: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write those chunks of a record's array that rows lie in, each in one step; then sync.

        Checksums of rows that are not known are those of no row: see `spoil`.
        """
        array = open_record(FolderStore(self.root, unsynced=self._unsynced))[name]
        step = RECORD_ROWS[name]
        for chunk in np.unique(rows // step).tolist():
            part = slice(chunk * step, (chunk + 1) * step)
            values = np.stack([column[part] for column in columns], axis=1)
            if known is not None:
                spoil(values, known[part])
            array[part] = values if array.ndim == 2 else values[:, 0]
        self._unsynced.sync()

    def _tell_lost(self, saved: SavedResult, rows: ZarrRows, lost: NDArray[np.bool_]) -> None:
        """Record and warn that rows are missing again, ``(heads, N)``."""
        gone = np.flatnonzero(saved.written & ~self.recorded)
        if len(gone) == 0:
            return
        self._write_record("written", [self.recorded], gone)
        self._write_record("checksums", rows.checksums, gone, self.recorded)
        heads = [
            head_label(number, None if saved.names is None else tuple(saved.names))
            for number in np.flatnonzero(lost.any(axis=1)).tolist()
        ]
        warnings.warn(
            f"{len(gone)} rows of {self.root} were damaged and are missing again, the first being row "
            f"{gone[0]}, in {', '.join(heads)}: missing_locs has them",
            StorageWarning,
            stacklevel=7,
        )

"""A folder that a kept run may write: made or taken over, empty or resumed, and locked."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from accumulator._stores.files import system
from accumulator._stores.files.errors import storage_error
from accumulator._stores.files.lock import StoreLock
from accumulator._stores.files.temporary import make_parents, remove_empty
from accumulator.exceptions import LockedError, ResultExistsError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

_ATTEMPTS: Final = 5


class ClaimedFolder:
    """A store's folder, made if it is not there, and locked until `release`.

    Parameters
    ----------
    root : Path
        The folder.
    mode : {"w-", "a"}
        "w-" takes a folder only if nothing is in it.

    Raises
    ------
    ResultExistsError
        Something is there that is no folder, a link, or not empty in mode "w-".
    LockedError
        Somebody writes it.
    StorageError
        The disk refused; nothing is left.
    """

    def __init__(self, root: Path, mode: str) -> None:
        self._root, self._is_made = root, False
        self._lock = self._make_and_lock(mode)
        try:
            self._check_access()
        except BaseException:
            self.release(is_unused=True)
            raise

    def is_current(self) -> bool:
        """Whether it is still the folder at its path."""
        return self._lock.is_current()

    def content(self) -> list[Path]:
        """Return what is in it.

        Raises
        ------
        StorageError
            It may not be read.
        """
        try:
            return list(self._root.iterdir())
        except OSError as cause:
            raise storage_error(cause, f"{self._root} cannot be read") from cause

    def release(self, *, is_unused: bool) -> None:
        """Let others have it; one that was made here, and that nothing was put into, is removed."""
        if is_unused and self.is_current():
            self._remove()
        self._lock.release()

    def _make_and_lock(self, mode: str) -> StoreLock:
        for _ in range(_ATTEMPTS):
            self._make(mode)
            try:
                lock = StoreLock(self._root)
            except LockedError:
                raise
            except FileNotFoundError:  # whoever had it removed it, as nothing was in it
                continue
            except BaseException:
                self._remove()
                raise
            if lock.is_current():
                return lock
            lock.release()
        raise LockedError(errno.EAGAIN, "others make and remove this store again and again", str(self._root))

    def _make(self, mode: str) -> None:
        self._is_made = False
        try:
            made = [self._root, *(folder for folder in self._root.parents if not folder.exists())]
            make_parents(self._root.parent)
            self._root.mkdir()
            self._is_made = True
            for folder in made:
                system.sync(folder.parent)
        except FileExistsError:
            self._refuse_what_is_there(mode)
        except OSError as cause:
            self._remove()
            raise storage_error(cause, f"the store {self._root} cannot be made") from cause

    def _refuse_what_is_there(self, mode: str) -> None:
        """Refuse all but a folder that is empty or may be resumed."""
        if self._root.is_symlink():
            remedy = f"a store is a folder, and no link to one: give {self._root.resolve()}, where it leads"
        elif not self._root.is_dir():
            remedy = "a store is a folder: give another path"
        elif mode == "w-" and self.content():
            remedy = 'something is there already: give another path, or resume it with mode="a"'
        else:
            return
        raise ResultExistsError(errno.EEXIST, remedy, str(self._root)) from None

    def _check_access(self) -> None:
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            is_fixed = os.statvfs(self._root).f_flag & os.ST_RDONLY
            code = errno.EROFS if is_fixed else errno.EACCES
            raise StorageError(code, "the store may not be written", str(self._root))

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._is_made:
                self._root.rmdir()
            remove_empty(self._root.parent)

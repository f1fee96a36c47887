"""Who may write a store: one process, by a lock that the system takes back when it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final, Self

from accumulator._stores.files import system
from accumulator._stores.files.errors import storage_error, telling
from accumulator._stores.files.temporary import make_parents, remove_empty
from accumulator.exceptions import LockedError, ResultExistsError, StorageError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

_CLAIMS: Final = 5
_ATTEMPTS: Final = 200  # who only looks whether it is locked holds it for microseconds, and shares it
_PAUSE_SECONDS: Final = 0.005
_HELD: weakref.WeakSet[ClaimedFolder] = weakref.WeakSet()


class ClaimedFolder:
    """A store's folder that nobody else may write until `release`, or until the process has ended."""

    def __init__(self, root: Path, descriptor: int, *, is_made: bool) -> None:
        self._root, self._is_made = root, is_made
        self._descriptor: int | None = descriptor
        _HELD.add(self)

    @classmethod
    def claim(cls, root: Path, mode: str) -> Self:
        """Make a folder or take one over, and lock it; in mode "w-" only one that nothing is in.

        Raises
        ------
        ResultExistsError
            Something is there that is no folder, a link, or not empty in mode "w-".
        LockedError
            Somebody writes it.
        StorageError
            The disk refused, or knows no locks; nothing is left.
        """
        for _ in range(_CLAIMS):
            is_made = _make(root, mode)
            try:
                descriptor = _lock(root)
            except BaseException as cause:
                if is_made and not isinstance(cause, LockedError):
                    _unmake(root)
                raise
            if descriptor is None:  # whoever had it removed it, as nothing was in it
                continue
            claimed = cls(root, descriptor, is_made=is_made)
            try:
                if claimed.is_current():
                    _check_access(root)
                    return claimed
            except BaseException:
                claimed.release(is_unused=True)
                raise
            claimed.release(is_unused=False)
        raise LockedError(errno.EAGAIN, "others make and remove this store again and again", str(root))

    def is_current(self) -> bool:
        """Whether the folder that is locked is still the one at its path."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(self._root.lstat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self, *, is_unused: bool) -> None:
        """Let others have it, once; one that was made here, and that nothing was put into, is removed."""
        if is_unused and self._is_made and self.is_current():
            _unmake(self._root)
        self._unlock()

    def _unlock(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        """Let go of it with the last user."""
        self._unlock()


def names_in(folder: Path) -> list[str]:
    """Return what is in a folder."""
    with telling(f"{folder} cannot be read"):
        return [path.name for path in folder.iterdir()]


def is_locked(folder: Path) -> bool | None:
    """Whether somebody holds the lock of a folder; None where the system does not tell.

    Whoever takes the lock at the very moment of looking tries again, and so is not disturbed.
    """
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _make(root: Path, mode: str) -> bool:
    """Make a folder, and return whether it was not there; a crash does not take it away again."""
    try:
        with telling(f"the store {root} cannot be made"):
            made = [root, *(folder for folder in root.parents if not folder.exists())]
            make_parents(root.parent)
            if system.make_folder(root):
                for folder in made:
                    system.sync(folder.parent)
                return True
    except StorageError:
        _unmake(root)
        raise
    _refuse_what_is_there(root, mode)
    with telling(f"the name of {root} cannot be synced"), contextlib.suppress(PermissionError):
        system.sync(root.parent)  # who made it may have been killed before; where we may not, we did not
    return False


def _unmake(root: Path) -> None:
    system.remove_folder(root)
    remove_empty(root.parent)


def _refuse_what_is_there(root: Path, mode: str) -> None:
    """Refuse all but a folder that is empty or may be resumed."""
    if root.is_symlink():
        remedy = "a link that leads nowhere is there: remove it, or make the folder where it leads"
    elif not root.is_dir():
        remedy = "a store is a folder: give another path"
    elif mode == "w-" and names_in(root):
        remedy = 'something is there already: give another path, or resume it with mode="a"'
    else:
        return
    raise ResultExistsError(errno.EEXIST, remedy, str(root))


def _check_access(root: Path) -> None:
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        is_fixed = os.statvfs(root).f_flag & os.ST_RDONLY
        code = errno.EROFS if is_fixed else errno.EACCES
        raise StorageError(code, "the store may not be written", str(root))


def _lock(folder: Path) -> int | None:
    """Lock a folder, and return the descriptor that holds it; None where the folder is gone."""
    if sys.platform == "win32":
        raise LockedError(errno.ENOTSUP, "a kept store needs POSIX locks", str(folder))
    with telling(f"{folder} cannot be opened"):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
    try:
        _take(descriptor)
    except BaseException as cause:
        os.close(descriptor)
        if isinstance(cause, BlockingIOError):
            what = "another accumulator, in this process or another, is writing this store: "
            what += "wait until it has ended, or close() it"
            raise LockedError(errno.EAGAIN, what, str(folder)) from cause
        if isinstance(cause, OSError):
            what = f"{folder} cannot be locked, and a store needs that: keep it on a file system with flock()"
            raise storage_error(cause, what) from cause
        raise
    return descriptor


def _take(descriptor: int) -> None:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused while somebody writes
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_PAUSE_SECONDS)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _forget() -> None:
    """In a forked child: the lock is the parent's, and must not outlive it."""
    for folder in list(_HELD):
        folder._unlock()  # noqa: SLF001  this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

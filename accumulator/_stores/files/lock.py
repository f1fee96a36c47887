"""One writer a store: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final

from accumulator._stores.files.errors import storage_error
from accumulator.exceptions import LockedError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

_ATTEMPTS: Final = 200  # who only looks whether it is locked holds it for microseconds, and shares it
_PAUSE_SECONDS: Final = 0.005
_HELD: weakref.WeakSet[StoreLock] = weakref.WeakSet()


class StoreLock:
    """The lock of a folder, held until `release`, or until the process has ended.

    Raises
    ------
    LockedError
        Somebody else holds it.
    StorageError
        The file system knows no locks.
    FileNotFoundError
        The folder is gone.
    """

    def __init__(self, folder: Path) -> None:
        if sys.platform == "win32":
            raise LockedError(errno.ENOTSUP, "a kept store needs POSIX locks", str(folder))
        self._descriptor: int | None = None
        self._folder = folder
        try:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise
        except OSError as cause:
            raise storage_error(cause, f"{folder} cannot be opened") from cause
        try:
            self._take(self._descriptor)
        except OSError as cause:
            self.release()
            if isinstance(cause, BlockingIOError):
                raise LockedError(
                    errno.EAGAIN,
                    "another accumulator, in this process or another, is writing this store: wait until it "
                    "has ended, or close() it",
                    str(folder),
                ) from cause
            what = f"{folder} cannot be locked, and a store needs that: keep it on a file system with flock()"
            raise storage_error(cause, what) from cause
        _HELD.add(self)

    def _take(self, descriptor: int) -> None:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # refused while somebody writes
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            time.sleep(_PAUSE_SECONDS)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def is_current(self) -> bool:
        """Whether the folder that is locked is still the one at its path."""
        if self._descriptor is None:
            return False
        try:
            there, ours = self._folder.lstat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return os.path.samestat(there, ours)

    def release(self) -> None:
        """Let go of the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        """Let go of it with the last user."""
        self.release()


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


def _forget() -> None:
    """In a forked child: the lock is the parent's, and must not outlive it."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

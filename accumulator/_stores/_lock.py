"""One writer a store: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from typing import TYPE_CHECKING

from accumulator._stores._folder import storage_error
from accumulator.exceptions import LockedError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

_HELD: weakref.WeakSet[StoreLock] = weakref.WeakSet()


class StoreLock:
    """The lock of a folder, held until `release`, or until the process has ended.

    Raises
    ------
    LockedError
        Somebody else holds it.
    StorageError
        The file system knows no locks.
    """

    def __init__(self, folder: Path) -> None:
        if sys.platform == "win32":
            raise LockedError(errno.ENOTSUP, "a kept store needs POSIX locks", str(folder))
        try:
            self._descriptor: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as cause:
            raise storage_error(cause, f"{folder} cannot be opened") from cause
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            self.release()
            if isinstance(cause, BlockingIOError):
                raise LockedError(
                    errno.EAGAIN,
                    "another accumulator, in this process or another, is writing this store: wait until it "
                    "has ended, or close() it",
                    str(folder),
                ) from cause
            raise storage_error(cause, f"{folder} cannot be locked") from cause
        _HELD.add(self)

    def release(self) -> None:
        """Let go of the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __del__(self) -> None:
        """Let go of it with the last user."""
        self.release()


def _forget() -> None:
    """In a forked child: the lock is the parent's, and must not outlive it."""
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

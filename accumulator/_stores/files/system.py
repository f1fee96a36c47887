"""The only place where files of a store are changed: each function is one or two calls of the system.

What has to reach the disk in some order goes through here, so that a test can replay every order in which
a crash may keep or lose it. Nothing follows a symbolic link at the end of a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
import uuid
from typing import TYPE_CHECKING, Final

from accumulator._stores.files.errors import SizeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
CHANGE: Final = os.O_RDWR
READ: Final = os.O_RDONLY
_PARTIAL: Final = ".partial"  # ends the names of files that are not whole yet
_PARTIAL_NAME: Final = re.compile(r".+\.[0-9a-f]{32}\.partial", re.DOTALL)
_STEP: Final = 2**20


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Open a file, and yield its descriptor."""
    descriptor = os.open(path, flags | _FLAGS, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_at(descriptor: int, left: memoryview, offset: int) -> None:
    """Write all bytes from an offset on."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    while left:
        left = left[os.write(descriptor, left) :]


def read_at(descriptor: int, left: memoryview, offset: int) -> None:
    """Fill memory with bytes from an offset on.

    Raises
    ------
    SizeError
        There are not as many.
    """
    os.lseek(descriptor, offset, os.SEEK_SET)
    while left:
        n_read = os.readv(descriptor, [left])
        if n_read == 0:
            raise SizeError(errno.EIO, "the file was cut")
        left = left[n_read:]


def set_size(descriptor: int, nbytes: int) -> None:
    """Cut a file, or let it end in a hole."""
    os.ftruncate(descriptor, nbytes)


def sync(path: Path) -> None:
    """Return when a file or a folder is on the disk as it is: a folder's names, a file's bytes."""
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        os.fsync(descriptor)
    except OSError as refusal:
        # Some network file systems know no fsync of a folder; they sync names by themselves.
        if refusal.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def replace(path: Path, content: memoryview, *, is_synced: bool) -> None:
    """Put a file with this content at a path, in one step: a reader sees the old one or the new one.

    When ``is_synced``, also after a crash: the name then never shows a file whose bytes are not on disk.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        with opened(partial, NEW) as descriptor:
            write_at(descriptor, content, 0)
            if is_synced:
                os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def rewrite(path: Path) -> None:
    """Write a file's bytes once more, so that the system has them to sync."""
    with opened(path, CHANGE) as descriptor:
        size = os.fstat(descriptor).st_size
        buffer = memoryview(bytearray(min(size, _STEP)))
        for start in range(0, size, _STEP):
            part = buffer[: min(_STEP, size - start)]
            read_at(descriptor, part, start)
            write_at(descriptor, part, start)


def is_partial(name: str) -> bool:
    """Whether a name is one that `replace` gives to files that are not whole yet."""
    return _PARTIAL_NAME.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def make_folder(path: Path) -> None:
    """Make a folder that may be there already."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there and nothing is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(path)


class Unsynced:
    """Files and folders that were changed since they were synced last; threads may add to it.

    Attributes
    ----------
    doubtful : set of Path
        Files whose sync failed once. The system then takes what it has of them in memory for written, and may
        drop it: they were written once more, and have to be compared with what they should hold.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Path, None] = {}
        self._folders: dict[Path, None] = {}
        self.doubtful: set[Path] = set()

    def add(self, path: Path, *, is_new: bool) -> None:
        """Take note of a changed file, and of its name where that is new."""
        with self._lock:
            self._files[path] = None
            if is_new:
                self._folders[path.parent] = None

    def add_folder(self, path: Path) -> None:
        """Take note of changed names in a folder."""
        with self._lock:
            self._folders[path] = None

    def clear(self) -> None:
        """Take note that everything was removed."""
        with self._lock:
            self._files.clear()
            self._folders.clear()
            self.doubtful.clear()

    def forget(self, path: Path) -> None:
        """Take note that a file was removed, by us: else a file that is gone is an error."""
        with self._lock:
            self._files.pop(path, None)
            self.doubtful.discard(path)

    def sync(self) -> None:
        """Sync all files, and then their names; what fails is tried again by the next call."""
        for noted in (self._files, self._folders):
            for path in list(noted):
                with self._lock:
                    noted.pop(path, None)  # whoever changes it from now on notes it again
                try:
                    if path in self.doubtful:
                        rewrite(path)
                    sync(path)
                except BaseException:
                    with self._lock:
                        noted[path] = None
                        if noted is self._files:
                            self.doubtful.add(path)
                    raise

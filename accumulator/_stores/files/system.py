"""The one module that changes the file system: each function is a call or two of the system.

All others go through it, so that a test can see every change, replay each order in which a crash may keep or
lose them, and let any call fail. Nothing follows a symbolic link at the end of a path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING, Final

from accumulator._stores.files.errors import SizeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
CHANGE: Final = os.O_RDWR
READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe in a file's place would be waited for
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


def begin_to_sync(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the system write bytes of a file to the disk now, where it knows how, without waiting for it."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # some file systems take no advice
            os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def read_at(descriptor: int, left: memoryview, offset: int) -> None:
    """Fill memory with bytes from an offset on; SizeError says that there are not as many."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    while left:
        n_read = os.readv(descriptor, [left])
        if n_read == 0:
            raise SizeError(errno.EIO, "the file was cut")
        left = left[n_read:]


def set_size(descriptor: int, nbytes: int) -> None:
    """Cut a file, or let it end in a hole."""
    os.ftruncate(descriptor, nbytes)


def allocate(path: Path, nbytes: int) -> None:
    """Take so much room on the disk for a new file; nothing is left of it where there is not enough."""
    try:
        with opened(path, NEW) as descriptor:
            if nbytes == 0:
                return
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(descriptor, 0, nbytes)
            else:
                write_at(descriptor, memoryview(bytes(nbytes)), 0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def is_short(folder: Path, nbytes: int, n_files: int) -> bool:
    """Whether a disk has less free than so many bytes, or files, where it counts them."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < nbytes or (found.f_files > 0 and found.f_favail < n_files)


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
    with made_whole(path, unique_name()) as partial, opened(partial, NEW) as descriptor:
        write_at(descriptor, content, 0)
        if is_synced:
            os.fsync(descriptor)


@contextlib.contextmanager
def made_whole(path: Path, maker: str) -> Iterator[Path]:
    """Yield another name for a file, which gets its own when it is whole; or nothing is left of it.

    But where its folder was moved meanwhile: the same maker, a `unique_name`, writes over it then.
    """
    partial = path.with_name(f"{path.name}.{maker}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def unique_name() -> str:
    """Return a name that nobody else has."""
    return uuid.uuid4().hex


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


def clear(path: Path) -> None:
    """Remove whatever is there: a file, a link, or a folder and all that is in it; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        remove(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it; links are removed, not followed."""
    shutil.rmtree(folder)


def remove_folder(path: Path) -> bool:
    """Remove a folder unless something is in it, and return whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def make_folder(path: Path) -> bool:
    """Make a folder, and return whether nothing was there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner may enter; nothing may be there."""
    os.mkdir(path, 0o700)


def rename(source: Path | str, target: Path | str) -> None:
    """Give a file or a folder another name on the same file system."""
    os.rename(source, target)

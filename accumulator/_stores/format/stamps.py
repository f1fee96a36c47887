"""How files were left by whoever wrote them: one that is gone, or was changed since, is not believed.

A file is known by its size and the times of its last change. The system sets those itself: bytes that are
written over others, a file that is moved over another one, and one that is removed all show. Comparing them
costs a call of the system a reading.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

import numpy as np

from accumulator._stores.files import system
from accumulator._stores.files.errors import SizeError
from accumulator.exceptions import DamagedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Stamp = tuple[int, int, int]

UNSURE: Final[Stamp] = (-1, -1, -1)  # of a file that changed while it was read: no file is like that
NO_FILE: Final = (FileNotFoundError, NotADirectoryError)
NOT_AS_LEFT: Final = (*NO_FILE, SizeError)  # whose cause is what somebody did to a file, not the system


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what changes whenever a file does; not its inode, which some file systems make up anew."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_at(path: Path) -> Stamp | None:
    """Return the stamp of what is at a path; None where nothing is."""
    try:
        return stamp_of(path.lstat())
    except NO_FILE:
        return None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file to read it; SizeError tells of a folder, a link, or whatever else has its name."""
    try:
        with system.opened(path, system.READ) as file:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise SizeError(errno.EIO, "it is not a file", os.fspath(path))
            yield file
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise SizeError(errno.EIO, "it is a symbolic link", os.fspath(path)) from cause
        raise


class Stamps:
    """The files below a folder as they were left, by their names from there; threads share it.

    Where nothing but this tells whether a file is right, it ``is_strict``; else whoever reads a changed file
    compares it with checksums.
    """

    def __init__(self, root: Path, *, is_strict: bool) -> None:
        self.is_strict = is_strict
        self._n_root = len(os.fspath(root)) + 1
        self._known: dict[str, Stamp] = {}
        self._arrays: dict[str, tuple[int, int, dict[int, NDArray[np.bool_] | None]]] = {}

    def tell_rows(
        self, array: str, n_rows: int, unit_rows: int, on_disk: dict[int, NDArray[np.bool_] | None]
    ) -> None:
        """Let errors name rows: of an array of so many, which rows of which chunks there are; None is all."""
        self._arrays[array] = n_rows, unit_rows, on_disk

    def move_to(self, root: Path) -> None:
        """Take note that the folder has another name."""
        self._n_root = len(os.fspath(root)) + 1

    def get(self, key: str) -> Stamp | None:
        """Return the stamp that a file must have; None where none must be there.

        While it is being written it has one that no file has. After that it is another object.
        """
        return self._known.get(key)

    def knows(self, path: Path) -> bool:
        """Whether a file must be there."""
        return self._key(path) in self._known

    def learn(self, key: str, stamp: Stamp | None) -> None:
        """Take a file for right that has this stamp."""
        if stamp is None:
            self._known.pop(key, None)
        else:
            self._known[key] = stamp

    def forget(self, path: Path) -> None:
        """Take note that a file was removed, by us."""
        self.learn(self._key(path), None)

    def forget_below(self, folder: str) -> None:
        """Take note that a folder was removed, by us."""
        for key in [key for key in self._known if key.startswith(f"{folder}/")]:
            self._known.pop(key, None)

    @contextlib.contextmanager
    def changing(self, path: Path, key: str = "", *, is_whole: bool) -> Iterator[None]:
        """Take note of a file that is written meanwhile: as a whole, or only some of its bytes.

        DamagedError tells that somebody has changed the others.
        """
        key = key or self._key(path)
        was = self._known.get(key)
        is_right = is_whole or was == stamp_at(path)
        if not is_right and self.is_strict:
            raise self.damaged(path)
        self._known[key] = UNSURE
        try:
            yield
        except BaseException:
            self.learn(key, was if is_whole else stamp_at(path) if is_right else None)
            raise
        self.learn(key, stamp_at(path) if is_right else None)

    def check(self, path: Path, stamp: Stamp | None) -> None:
        """Raise DamagedError if a file that was just read is not as it was left."""
        if self.is_strict and stamp != self._known.get(self._key(path)):
            raise self.damaged(path)

    def damaged(self, path: Path) -> DamagedError:
        """Return the error that tells what became of a file, and of which rows."""
        folder, _, name = self._key(path).rpartition("/")
        rows = self._rows(folder, name)
        of = f", which has {len(rows)} rows from row {rows[0]} on," if len(rows) else ""
        fate = "is gone" if stamp_at(path) is None else "is not what was written"
        what = f"a file of the result{of} {fate}: somebody has removed, cut or changed it"
        return DamagedError(errno.EIO, f"{what}, and it has to be made anew", os.fspath(path), rows=rows)

    def _key(self, path: Path) -> str:
        return os.fspath(path)[self._n_root :]

    def _rows(self, array: str, name: str) -> NDArray[np.intp]:
        """Return which rows that were written a chunk's file has; none for other files."""
        n_rows, unit_rows, on_disk = self._arrays.get(array, (0, 0, {}))
        number = name.split(".")[1] if name.startswith("c.") else ""
        chunk = int(number) if number.isdecimal() else -1
        known, first = on_disk.get(chunk, np.empty(0, np.bool_)), chunk * unit_rows
        if known is None:
            return np.arange(first, min(first + unit_rows, n_rows), dtype=np.intp)
        return np.flatnonzero(known) + first

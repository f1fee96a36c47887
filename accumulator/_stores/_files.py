"""Chunk files without compression: the rows of a chunk, one after the other.

A whole chunk is written in one go past the page cache, which would cost the processor more than the
disk costs. Rows that come alone are written to their place, and what lies between them stays a hole.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._stores._chunks import spans
from accumulator._stores._pages import padded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_NBYTES: Final = 4096  # what file systems allocate at once: a gap below it saves nothing
_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class ChunkFiles:
    """The files of one head's chunks.

    Parameters
    ----------
    path_of : callable
        From a chunk's number to its file.
    chunk_shape : tuple of int
        Of a whole chunk: ``(rows, *patch_shape)``.
    dtype : dtype
        As it is in the files.
    fill_value : scalar
        What rows hold that are not written.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        chunk_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        fill_value: Any = 0,
    ) -> None:
        self.path_of = path_of
        self._patch_shape, self._dtype = chunk_shape[1:], dtype
        self._row_nbytes = dtype.itemsize * int(np.prod(chunk_shape[1:], dtype=np.int64))
        self._file_nbytes = chunk_shape[0] * self._row_nbytes
        self._fill = np.asarray(fill_value, dtype)
        self._fill_is_hole = not any(self._fill.tobytes())
        self._is_direct = bool(_DIRECT)

    def write(
        self,
        chunk: int,
        rows: NDArray[Any],
        filled: NDArray[np.bool_],
        memory: memoryview | None,
        *,
        is_there: bool,
    ) -> None:
        """Write those rows of a chunk that are filled; others stay as they are.

        Parameters
        ----------
        chunk : int
            Its number.
        rows : (n, *patch_shape) array
            All its rows. Those not filled may hold anything, and are changed.
        filled : (n,) bool array
            Which of them are to be written.
        memory : memoryview, optional
            The same bytes in whole, aligned pages.
        is_there : bool
            Whether the chunk has a file already.

        Raises
        ------
        OSError
            The operating system refused. A new file is removed.
        """
        path = self.path_of(chunk)
        if is_there:
            with path.open("r+b", buffering=0) as file:
                self._write_spans(file, rows, filled, is_there=True)
            return
        if not self._fill_is_hole:
            rows[~filled] = self._fill
            filled = np.ones_like(filled)
        try:
            if filled.all():
                self._write_whole(path, rows, memory)
            else:
                with path.open("wb", buffering=0) as file:
                    self._write_spans(file, rows, filled, is_there=False)
                    file.truncate(self._file_nbytes)  # zarr wants whole chunks
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        """Read rows that follow each other from a chunk that has a file. Not by mmap: see decision 003."""
        with self.path_of(chunk).open("rb", buffering=0) as file:
            return self._read(file, start, stop)

    def _write_whole(self, path: Path, rows: NDArray[Any], memory: memoryview | None) -> None:
        if memory is not None and self._is_direct:
            try:
                self._write_direct(path, memory[: padded(rows.nbytes)])
            except OSError as refusal:
                if refusal.errno != errno.EINVAL:
                    raise
                self._is_direct = False  # this file system has no such thing
            else:
                return
        with path.open("wb", buffering=0) as file:
            _write_all(file.fileno(), _bytes(rows), 0)
            file.truncate(self._file_nbytes)

    def _write_direct(self, path: Path, memory: memoryview) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _DIRECT | _CLOEXEC, 0o666)
        try:
            _write_all(descriptor, memory, 0)
            if len(memory) != self._file_nbytes:
                os.ftruncate(descriptor, self._file_nbytes)
        finally:
            os.close(descriptor)

    def _write_spans(
        self, file: Any, rows: NDArray[Any], filled: NDArray[np.bool_], *, is_there: bool
    ) -> None:
        """Write filled rows, those close to each other in one piece with what lies between them."""
        gap = BLOCK_NBYTES // self._row_nbytes
        for start, stop in spans(np.flatnonzero(filled), gap):
            between = np.flatnonzero(~filled[start:stop])
            if len(between):
                rows[start + between] = self._read(file, start, stop)[between] if is_there else self._fill
            _write_all(file.fileno(), _bytes(rows[start:stop]), start * self._row_nbytes)

    def _read(self, file: Any, start: int, stop: int) -> NDArray[Any]:
        values = np.empty((stop - start, *self._patch_shape), self._dtype)
        left = _bytes(values)
        file.seek(start * self._row_nbytes)
        while left and (n_read := file.readinto(left)):
            left = left[n_read:]
        if left:
            raise OSError(errno.EIO, "the chunk file was cut", str(file.name))
        return values


def _bytes(rows: NDArray[Any]) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def _write_all(descriptor: int, left: memoryview, offset: int) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while left:
        left = left[os.write(descriptor, left) :]

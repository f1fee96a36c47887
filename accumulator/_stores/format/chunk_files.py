"""Chunk files without compression: the rows of a chunk, one after the other.

A whole chunk is written in one go past the page cache, which would cost the processor more than the
disk costs. Rows that come alone are written to their place, and what lies between them stays a hole.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from accumulator._inputs import tuning
from accumulator._stores.files import system
from accumulator._stores.format.stamps import NOT_AS_LEFT, opened, stamp_of
from accumulator._stores.memory.pages import padded
from accumulator._stores.memory.row_numbers import spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.files.unsynced import Unsynced
    from accumulator._stores.format.stamps import Stamps

_LARGE_NBYTES: Final = 2**16  # less is written together with what comes beside it


class Part(NamedTuple):
    """Rows of a chunk that are to be written."""

    chunk: int
    values: NDArray[Any]  # all its rows, of which those not filled hold anything, and are changed
    filled: NDArray[np.bool_]  # which are to be written
    memory: memoryview | None = None  # the same bytes in whole, aligned pages


class ChunkFiles:
    """The files of one head's chunks, ``(rows, *patch_shape)``.

    ``unsynced`` notes what has to be synced, ``stamps`` how each file was left.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what it needs to know
        self,
        path_of: Callable[[int], Path],
        chunk_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        fill_value: Any = 0,
        unsynced: Unsynced | None = None,
        stamps: Stamps | None = None,
    ) -> None:
        self.path_of, self._unsynced, self._stamps = path_of, unsynced, stamps
        self._patch_shape, self._dtype = chunk_shape[1:], dtype
        self._row_nbytes = dtype.itemsize * int(np.prod(chunk_shape[1:], dtype=np.int64))
        self.file_nbytes = chunk_shape[0] * self._row_nbytes
        self._fill = np.asarray(fill_value, dtype)
        self._fill_is_hole = not any(self._fill.tobytes())
        self._maker = system.unique_name()
        self._is_direct = bool(tuning.now.direct_flag)

    def write(self, part: Part, *, is_there: bool) -> None:
        """Write rows of a chunk that has a file already, or to a new one; others stay as they are.

        A new file is removed if the system refuses something. Where nothing but ``stamps`` tells,
        DamagedError says that somebody has changed a file that rows were to be added to.
        """
        path = self.path_of(part.chunk)
        if self._stamps is None:
            self._write(path, part, is_there=is_there)
            return
        with self._stamps.changing(path, is_whole=not is_there):
            self._write(path, part, is_there=is_there)

    def _write(self, path: Path, part: Part, *, is_there: bool) -> None:
        _, values, filled, memory = part
        if self._unsynced is not None:
            self._unsynced.add(path, is_new=not is_there)
        if is_there:
            with system.opened(path, system.CHANGE) as file:
                self._write_spans(file, values, filled, is_there=True)
            return
        if not self._fill_is_hole:
            values[~filled] = self._fill
            filled = np.ones_like(filled)
        try:
            with system.made_whole(path, self._maker) as partial:  # zarr would read one without its end
                if filled.all():
                    self._write_whole(partial, values, memory)
                else:
                    with system.opened(partial, system.NEW) as file:
                        self._write_spans(file, values, filled, is_there=False)
                        system.set_size(file, self.file_nbytes)  # zarr wants whole chunks
        except BaseException:
            if self._unsynced is not None:
                self._unsynced.forget(path)
            raise

    def read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        """Read rows that follow each other from a chunk that has a file. Not by mmap: see decision 003.

        Where nothing but ``stamps`` tells, DamagedError says that it is not as it was left.
        """
        path = self.path_of(chunk)
        try:
            with opened(path) as file:
                values = self._read(file, start, stop)
                stamp = stamp_of(os.fstat(file))
        except NOT_AS_LEFT:
            if self._stamps is not None:
                self._stamps.check(path, None)
            raise
        if self._stamps is not None:
            self._stamps.check(path, stamp)
        return values

    def read_rows(self, chunk: int, wanted: NDArray[np.bool_], values: NDArray[Any]) -> None:
        """Read wanted rows of a chunk that has a file, each to its place in ``values``; no stamp is asked."""
        with opened(self.path_of(chunk)) as file:
            for start, stop in self.pieces(wanted):
                is_wanted = wanted[start:stop]
                if is_wanted.all():
                    system.read_at(file, _bytes(values[start:stop]), start * self._row_nbytes)
                else:
                    values[start:stop][is_wanted] = self._read(file, start, stop)[is_wanted]

    def pieces(self, rows: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
        """Yield where some rows of a chunk lie; small ones together with what lies between them."""
        return spans(np.flatnonzero(rows), _LARGE_NBYTES // max(1, self._row_nbytes))

    def remove(self, chunk: int) -> None:
        """Remove a chunk's file."""
        path = self.path_of(chunk)
        system.remove(path)
        if self._stamps is not None:
            self._stamps.forget(path)

    def _write_whole(self, path: Path, values: NDArray[Any], memory: memoryview | None) -> None:
        if memory is not None and self._is_direct:
            try:
                self._write_direct(path, memory[: padded(values.nbytes)], values.nbytes)
            except OSError as refusal:
                if refusal.errno != errno.EINVAL:
                    raise
                self._is_direct = False  # this file system has no such thing
            else:
                return
        with system.opened(path, system.NEW) as file:
            system.write_at(file, _bytes(values), 0)
            system.set_size(file, self.file_nbytes)

    def _write_direct(self, path: Path, memory: memoryview, nbytes: int) -> None:
        with system.opened(path, system.NEW | tuning.now.direct_flag) as file:
            system.write_at(file, memory, 0)
            if len(memory) != nbytes:  # what follows the rows in memory is something else
                system.set_size(file, nbytes)
            if nbytes != self.file_nbytes:
                system.set_size(file, self.file_nbytes)

    def _write_spans(
        self, file: int, values: NDArray[Any], filled: NDArray[np.bool_], *, is_there: bool
    ) -> None:
        """Write filled rows, those close to each other in one piece with what lies between them."""
        gap = tuning.now.gap_nbytes // self._row_nbytes
        for start, stop in spans(np.flatnonzero(filled), gap):
            between = np.flatnonzero(~filled[start:stop])
            if len(between):
                values[start + between] = self._read(file, start, stop)[between] if is_there else self._fill
            offset, nbytes = start * self._row_nbytes, (stop - start) * self._row_nbytes
            system.write_at(file, _bytes(values[start:stop]), offset)
            if nbytes >= _LARGE_NBYTES:  # else the disk would idle until all is synced
                system.begin_to_sync(file, offset, nbytes)

    def _read(self, file: int, start: int, stop: int) -> NDArray[Any]:
        values = np.empty((stop - start, *self._patch_shape), self._dtype)
        system.read_at(file, _bytes(values), start * self._row_nbytes)
        return values


def _bytes(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data

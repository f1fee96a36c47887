"""Chunks that only zarr can write: compressed, sharded, or cut within a patch.

Such a chunk is encoded when all its rows have come, or before its rows are read. Rows that have to leave
memory earlier wait in a scratch file, which need not survive a crash.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores.files import system
from accumulator._stores.format.chunk_files import ChunkFiles, Part
from accumulator._stores.memory.threads import to_its_end

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from accumulator._stores.format.stamps import Stamps


class EncodedChunks:
    """One head's chunks, or its shards if it has any, written through zarr."""

    def __init__(self, array: zarr.Array[Any], unit_rows: int, scratch: Path, stamps: Stamps) -> None:
        self._array, self._unit_rows, self._folder = array, unit_rows, scratch
        self._fill = np.asarray(array.fill_value, array.dtype)
        shape, dtype = (unit_rows, *array.shape[1:]), array.dtype.newbyteorder("<")
        self._scratch = ChunkFiles(lambda chunk: scratch / str(chunk), shape, dtype, stamps=stamps)
        self.waiting: dict[int, NDArray[np.bool_]] = {}  # chunks with a scratch file, and its rows
        self._encoded: dict[int, NDArray[np.bool_]] = {}  # chunks that zarr has, and which rows are real
        self._finished: set[int] = set()  # chunks whose scratch file is to be removed

    def write(self, part: Part, *, is_there: bool) -> None:
        """Write those rows of a chunk that are filled: to its scratch file, until it is complete."""
        del is_there  # it knows
        chunk, values, filled, _ = part
        if not filled.all():
            none = np.zeros_like(filled)
            waiting, encoded = self.waiting.get(chunk, none), self._encoded.get(chunk, none)
            if not (filled | waiting | encoded).all():
                system.make_folder(self._folder)
                self._finished.discard(chunk)
                self._scratch.write(part, is_there=chunk in self.waiting)
                self.waiting[chunk] = waiting | filled
                return
            values[~filled] = self.read(chunk, 0, len(values))[~filled]
        self._encode(chunk, values, np.ones_like(filled))

    def finish(self, chunk: int) -> None:
        """Encode a chunk that waits in a scratch file, with the fill value for rows that never came."""
        waiting = self.waiting.get(chunk)
        if waiting is None:  # it was encoded, and then the scratch file could not be removed
            return
        self._encode(chunk, self.read(chunk, 0, len(waiting)), waiting | self._encoded.get(chunk, False))

    def tidy(self) -> None:
        """Remove scratch files that are of no use, and their folder once there are none."""
        for chunk in list(self._finished):
            self._scratch.remove(chunk)
            self._finished.discard(chunk)
        system.remove_folder(self._folder)

    def restore(self, chunk: int, real: NDArray[np.bool_]) -> None:
        """Take note of a chunk that zarr has from an earlier run, of which these rows are real."""
        self._encoded[chunk] = real

    def read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        first = chunk * self._unit_rows
        if chunk in self._encoded:
            values = np.array(self._array[first + start : first + stop])
            values[~self._encoded[chunk][start:stop]] = self._fill
        else:
            values = np.full((stop - start, *self._array.shape[1:]), self._fill)
        waiting = self.waiting.get(chunk)
        if waiting is not None:
            part = waiting[start:stop]
            values[part] = self._scratch.read(chunk, start, stop)[part]
        return values

    def _encode(self, chunk: int, values: NDArray[Any], real: NDArray[np.bool_]) -> None:
        first = chunk * self._unit_rows
        to_its_end(partial(self._array.__setitem__, slice(first, first + len(values)), values))
        self._encoded[chunk] = real
        if chunk in self.waiting:
            self._finished.add(chunk)
            del self.waiting[chunk]  # before the file goes: an interrupt may come between any two lines
            self._scratch.remove(chunk)
            self._finished.discard(chunk)

"""Predictions that replace recorded ones, and so must not be written over them before they are recorded too.

They wait in files of their own. Once those are on disk and the record says their checksums, they are written
to their place. After a crash in between, a row's checksum tells which of its two places is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores.files import system
from accumulator._stores.format.chunk_files import ChunkFiles, Part
from accumulator._stores.writing.encoded import EncodedChunks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.files.unsynced import Unsynced


class RedoChunks:
    """One head's chunks in a store that is kept; rows that are not recorded go to ``inner`` at once."""

    def __init__(  # noqa: PLR0913, PLR0917  what it needs to know
        self,
        inner: ChunkFiles | EncodedChunks,
        folder: Path,
        chunk_shape: tuple[int, ...],
        dtype: np.dtype[Any],
        recorded: NDArray[np.bool_],
        unsynced: Unsynced,
    ) -> None:
        self.inner, self._folder, self._recorded, self._unsynced = inner, folder, recorded, unsynced
        self._chunk_rows = chunk_shape[0]
        self._files = ChunkFiles(lambda chunk: folder / str(chunk), chunk_shape, dtype, unsynced=unsynced)
        self._waiting: dict[int, NDArray[np.bool_]] = {}
        self._applied: set[int] = set()  # chunks that have what waited: their files are to be removed

    def write(self, part: Part, *, is_there: bool) -> None:
        chunk, values, filled, _ = part
        first = chunk * self._chunk_rows
        again = filled & self._recorded[first : first + len(values)]
        if not again.any():
            self.inner.write(part, is_there=is_there)
            return
        kept, new = values[filled].copy(), filled & ~again
        try:
            if new.any():
                self.inner.write(part._replace(filled=new), is_there=is_there)
                values[filled] = kept
            if not self._waiting:
                system.make_folder(self._folder)
                self._unsynced.add_folder(self._folder.parent)
            waiting = self._waiting.get(chunk, np.zeros_like(again))
            self._applied.discard(chunk)
            self._files.write(Part(chunk, values, again), is_there=chunk in self._waiting)
            self._waiting[chunk] = waiting | again
        finally:
            values[filled] = kept  # both change the rows of the other, and what fails is written again

    def read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        values = self.inner.read(chunk, start, stop)
        waiting = self._waiting.get(chunk)
        if waiting is not None and waiting[start:stop].any():
            values[waiting[start:stop]] = self._files.read(chunk, start, stop)[waiting[start:stop]]
        return values

    def rows_waiting(self) -> NDArray[np.intp]:
        """Return which rows of the head wait."""
        rows = [np.flatnonzero(mask) + chunk * self._chunk_rows for chunk, mask in self._waiting.items()]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.intp)

    def apply(self) -> None:
        """Write to their place what waits, once the record has it, and remove the redo files.

        What interrupts it may come between any two lines: the next call goes on.
        """
        if not (self._waiting or self._applied):
            return
        for chunk, mask in self._waiting.items():
            values = self._files.read(chunk, 0, len(mask))
            self.inner.write(Part(chunk, values, mask), is_there=True)
            if isinstance(self.inner, EncodedChunks) and chunk in self.inner.waiting:
                self.inner.finish(chunk)
        if isinstance(self.inner, EncodedChunks):
            self.inner.tidy()
        self._unsynced.sync()
        self._applied.update(self._waiting)
        self._waiting.clear()  # before the first file goes: nothing is looked for in it any more
        for chunk in list(self._applied):
            system.remove(self._files.path_of(chunk))
            self._unsynced.forget(self._files.path_of(chunk))
            self._applied.discard(chunk)
        system.remove_folder(self._folder)

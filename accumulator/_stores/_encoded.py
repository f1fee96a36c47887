"""Chunks that only zarr can write: compressed, sharded, or cut within a patch.

Such a chunk is encoded once, when all its rows have come. Rows that have to leave memory before wait
in a scratch file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores._files import ChunkFiles

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray


class EncodedChunks:
    """One head's chunks, written through zarr; the same face as `ChunkFiles`.

    Parameters
    ----------
    array : zarr.Array
        The head.
    unit_rows : int
        Rows of a chunk, or of a shard where there are shards.
    scratch : Path
        The folder for scratch files, made when it is needed.
    """

    def __init__(self, array: zarr.Array[Any], unit_rows: int, scratch: Path) -> None:
        self._array, self._unit_rows, self._folder = array, unit_rows, scratch
        self._fill = np.asarray(array.fill_value, array.dtype)
        shape, dtype = (unit_rows, *array.shape[1:]), array.dtype.newbyteorder("<")
        self._scratch = ChunkFiles(lambda chunk: scratch / str(chunk), shape, dtype)
        self.waiting: dict[int, NDArray[np.bool_]] = {}  # chunks with a scratch file, and its rows

    def write(
        self,
        chunk: int,
        rows: NDArray[Any],
        filled: NDArray[np.bool_],
        memory: memoryview | None,
        *,
        is_there: bool,
    ) -> None:
        """Write those rows of a chunk that are filled: to its scratch file, until it is complete.

        Parameters and errors are those of `ChunkFiles.write`.
        """
        waiting = self.waiting.get(chunk)
        if not filled.all():
            if waiting is not None and (waiting | filled).all():
                rows[~filled] = self._scratch.read(chunk, 0, len(rows))[~filled]
            elif waiting is None and is_there:
                rows[~filled] = self._encoded(chunk)[~filled]
            else:
                self._folder.mkdir(exist_ok=True)
                self._scratch.write(chunk, rows, filled, memory, is_there=waiting is not None)
                self.waiting[chunk] = filled.copy() if waiting is None else waiting | filled
                return
        self._encode(chunk, rows)

    def finish(self, chunk: int) -> None:
        """Encode a chunk that waits in a scratch file, with the fill value for what never came."""
        waiting = self.waiting[chunk]
        rows = self._scratch.read(chunk, 0, len(waiting))
        rows[~waiting] = self._fill
        self._encode(chunk, rows)

    def read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        """Read rows that follow each other from a chunk that was written to."""
        if chunk in self.waiting:
            return self._scratch.read(chunk, start, stop)
        return self._encoded(chunk)[start:stop]

    def _encode(self, chunk: int, rows: NDArray[Any]) -> None:
        first = chunk * self._unit_rows
        self._array[first : first + len(rows)] = rows
        if self.waiting.pop(chunk, None) is not None:
            self._scratch.path_of(chunk).unlink()

    def _encoded(self, chunk: int) -> NDArray[Any]:
        first = chunk * self._unit_rows
        values: Any = self._array[first : first + self._unit_rows]
        return np.asarray(values)

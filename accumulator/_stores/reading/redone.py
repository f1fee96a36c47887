"""Recorded rows that are not in their place yet: a run that replaced them ended before it had put them there.

Their predictions wait in `redo` files, raw rows beside the chunk, whatever the chunk is stored with.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import zarr
from zarr.storage import MemoryStore, StorePath

from accumulator._stores.files.errors import SizeError
from accumulator._stores.format.chunk_files import ChunkFiles
from accumulator._stores.format.names import REDO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.format.layout import Layout

_HELD: Final = 4  # units in memory: as many as a few readers look at


class Redone:
    """The rows that wait beside their chunks, a head, and units as they are with them."""

    def __init__(self, root: Path, arrays: Sequence[zarr.Array[Any]], layouts: Sequence[Layout]) -> None:
        self._arrays = arrays
        self._files = [
            ChunkFiles(
                partial(_path, root / array.path / REDO),
                (made.unit_rows, *array.shape[1:]),
                array.dtype.newbyteorder("<"),
            )
            for array, made in zip(arrays, layouts, strict=True)
        ]
        self._served: OrderedDict[tuple[int, int], MemoryStore] = OrderedDict()

    def read(self, head: int, number: int, n_rows: int) -> NDArray[Any] | None:
        """Return what waits for a unit's rows, right or not; None where nothing does."""
        try:
            return self._files[head].read(number, 0, n_rows)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, SizeError):
            return None

    def served(self, head: int, number: int) -> MemoryStore | None:
        """Return what `serve` made of a unit, unless that was long ago."""
        return self._served.get((head, number))

    async def serve(self, head: int, number: int, rows: slice, values: NDArray[Any]) -> MemoryStore:
        """Return a store with the files of one unit as they will be, once its rows are in their place."""
        array, store = self._arrays[head], MemoryStore()
        config: Any = {"write_empty_chunks": True}
        place = StorePath(store, array.path)
        made = zarr.AsyncArray(metadata=array.metadata, store_path=place, config=config)
        await made.setitem(rows, values)
        self._served[head, number] = store
        while len(self._served) > _HELD:
            self._served.popitem(last=False)
        return store


def _path(folder: Path, number: int) -> Path:
    return folder / str(number)

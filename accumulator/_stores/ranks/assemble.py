"""A chunk of the result, put together from what parts have of it; its file changes in one step.

What was recorded is in some file: in a part's, in one that waits beside it, or, after a publishing that was
killed, in the result's own place already. Every row is compared with its checksum before it counts.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import zarr
from zarr.storage import MemoryStore, StorePath

from accumulator._stores.files import system
from accumulator._stores.files.unsynced import Unsynced
from accumulator._stores.format.arrays import chunk_path, layout_of, over
from accumulator._stores.format.chunk_files import ChunkFiles, Part
from accumulator._stores.format.layout import CONFIG
from accumulator._stores.format.mark import RUNNING, Mark
from accumulator._stores.format.names import OUTPUTS, head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory.pages import Pages
from accumulator._stores.memory.threads import Pool
from accumulator._stores.ranks.gather import PUBLISHED
from accumulator._stores.reading.check import RowChecker, Unit
from accumulator._stores.reading.saved import SavedResult
from accumulator.exceptions import ProcessError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


_FIRST: Final = "c."  # of the name of a chunk's file
_THREADS: Final = 2  # of a process
Found = tuple[int, int, "NDArray[np.bool_]"]  # head, unit, and which rows nobody has


class Task(NamedTuple):
    """Units of one head to put together: of each the arguments of `put_together`."""

    head: int
    units: list[tuple[int, NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64], list[int]]]


class Assembler:
    """Puts units of the result in ``root`` together.

    ``heads`` are the arrays of all ``parts``, and but for their ``keys`` those of the result.
    """

    def __init__(
        self, root: Path, keys: Sequence[str], heads: Sequence[zarr.Array[Any]], parts: Sequence[Path]
    ) -> None:
        self.unsynced = Unsynced()
        self.arguments = root, keys, heads, parts  # of one that does the same in another process
        self._sources = [_checker(root, heads, keys), *(_checker(folder, heads) for folder in parts)]
        self._arrays = self._sources[0].saved.arrays
        self._layouts = self._sources[0].layouts
        self._folders = [root, *parts]
        self._tails = [_tails(array) for array in self._arrays]
        self._pool, self._spare = Pool(_THREADS, "accumulator"), list[Pages]()

    def names(self, head: int, number: int) -> list[str]:
        """Return the names of a unit's files."""
        return [f"{_FIRST}{number}{tail}" for tail in self._tails[head]]

    def folder(self, head: int, source: int = 0) -> Path:
        """Return where the files of a head are, in the result or in a part."""
        return self._folders[source] / self._sources[source].saved.arrays[head].path

    def do(self, task: Task) -> list[Found]:
        """Put all units of a task together; one is read while another is written."""
        found: list[Found] = []

        def work(unit: tuple[Any, ...]) -> None:
            found.append((task.head, unit[0], self.put_together(task.head, *unit)))

        try:
            self._pool.run(work, task.units)
        except MemoryError as cause:
            what = "there is not enough memory to put chunks together"
            raise StorageError(errno.ENOMEM, what, str(self.arguments[0])) from cause
        finally:
            self._pool.close()
        return found

    def put_together(  # noqa: PLR0913, PLR0917  those of `Task.units`
        self,
        head: int,
        number: int,
        needed: NDArray[np.bool_],
        published: NDArray[np.bool_],
        checksums: NDArray[np.uint64],
        sources: Sequence[int],
    ) -> NDArray[np.bool_]:
        """Write those rows of a unit that are needed, and no others; return which nobody has.

        ``checksums`` are of all its rows. Rows that were ``published`` and are damaged stay as they are, so
        that whoever reads them is told.
        """
        array, made = self._arrays[head], self._layouts[head]
        unit = Unit(head, number, slice(number * made.unit_rows, number * made.unit_rows + len(needed)))
        pages = self._memory(made.unit_rows * made.spec.row_nbytes)
        values = pages.array((len(needed), *array.shape[1:]), array.dtype.newbyteorder("<"))
        left = needed.copy()
        for source in sources:
            if not left.any():
                break
            was = values[left & published] if source != PUBLISHED else None  # few rows, as they are damaged
            is_right = self._sources[source].fill(unit, values, left, checksums)
            if was is not None:
                values[left & published & ~is_right] = was[~is_right[left & published]]
            left &= ~is_right
        left &= ~published
        self._write(head, unit, Part(number, values, needed & ~left, pages.memory))
        self._spare.append(pages)
        return left

    def _memory(self, nbytes: int) -> Pages:
        """Return memory of another unit, or new: to touch that takes as long as to write it."""
        with contextlib.suppress(IndexError):
            pages = self._spare.pop()
            if pages.nbytes >= nbytes:
                return pages
        return Pages(nbytes, is_huge=True)

    def _write(self, head: int, unit: Unit, part: Part) -> None:
        array, made = self._arrays[head], self._layouts[head]
        values, filled = part.values, part.filled
        if not filled.any():
            for name in self.names(head, unit.number):
                system.clear(self.folder(head) / name)
            self.unsynced.add_folder(self.folder(head))
        elif made.is_raw:
            files = ChunkFiles(
                partial(chunk_path, array),
                made.chunks,
                values.dtype,
                array.fill_value,
                unsynced=self.unsynced,
            )
            files.write(part, is_there=False)
        else:
            values[~filled] = array.fill_value
            store, config = MemoryStore(), CONFIG
            place = StorePath(store, array.path)
            whole: Any = zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=place, config=config))
            whole[unit.rows] = values
            for name in self.names(head, unit.number):
                content: Any = store._store_dict[f"{array.path}/{name}"]  # noqa: SLF001  where its bytes are
                system.replace(self.folder(head) / name, memoryview(content.to_bytes()), is_synced=True)
            self.unsynced.add_folder(self.folder(head))


def _tails(array: zarr.Array[Any]) -> list[str]:
    """Return how the names of a unit's files go on behind its number."""
    inner = array.shards or array.chunks
    grid = [range(-(-n // size)) for n, size in zip(array.shape[1:], inner[1:], strict=True)]
    keys = (array.metadata.encode_chunk_key((0, *piece)) for piece in itertools.product(*grid))
    return [key.removeprefix(f"{_FIRST}0") for key in keys]


def _checker(folder: Path, heads: Sequence[zarr.Array[Any]], keys: Sequence[str] | None = None) -> RowChecker:
    """Return what reads a folder's rows, by the metadata that all share; each look is told its record."""
    store = FolderStore(folder, read_only=True)
    keys = head_keys(None, len(heads)) if keys is None else keys
    arrays = [over(head, store, f"{OUTPUTS}/{key}") for head, key in zip(heads, keys, strict=True)]
    n_rows = heads[0].shape[0] if len(heads) else 0
    none = np.broadcast_to(np.False_, n_rows)
    mark = Mark(RUNNING, None, len(arrays), n_rows)
    return RowChecker(SavedResult(store, mark, arrays, np.empty((0, 1), np.int64), none, [], ()))


def unit_rows_of(heads: Sequence[zarr.Array[Any]]) -> list[int]:
    """Return how many rows of each head lie in one file, or in a few that belong together."""
    return [layout_of(head).unit_rows for head in heads]


def put_together(assembler: Assembler, tasks: Sequence[Task], processes: int) -> Iterator[Found]:
    """Put units together, in several processes if so many are wanted; all is synced at the end."""
    is_daemon = multiprocessing.current_process().daemon  # which may have no processes of its own
    if processes == 1 or len(tasks) <= 1 or is_daemon:
        for task in tasks:
            yield from assembler.do(task)
        assembler.unsynced.sync()
        return
    spawn = multiprocessing.get_context("spawn")  # no thread of this process is there
    n = min(processes, len(tasks))
    with ProcessPoolExecutor(n, spawn, initializer=_begin, initargs=assembler.arguments) as pool:
        try:
            for found in pool.map(_work, tasks):
                yield from found
        except BrokenExecutor as cause:
            raise ProcessError(
                "a process that put chunks together has ended: publish again, in fewer processes if memory "
                'was short; a script that asks for several needs if __name__ == "__main__":'
            ) from cause


_ours: list[Assembler] = []  # of a process that does nothing else


def _begin(root: Path, keys: Sequence[str], heads: Sequence[zarr.Array[Any]], parts: Sequence[Path]) -> None:
    _ours.append(Assembler(root, keys, heads, parts))


def _work(task: Task) -> list[Found]:
    found = _ours[0].do(task)
    _ours[0].unsynced.sync()
    return found

"""Rows on local disk: ordinary zarr v3 arrays, one a head, filled in the background.

zarr makes the metadata and reads everything. Chunks without compression are written here, as files that
hold just the rows one after the other: a fraction of the cost of going through a zarr array. All others
are encoded by zarr, whole and once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr

from accumulator._inputs import tuning
from accumulator._stores.files import system
from accumulator._stores.files.errors import storage_error, telling
from accumulator._stores.format.arrays import chunk_path, is_there, open_group, over
from accumulator._stores.format.chunk_files import ChunkFiles
from accumulator._stores.format.layout import BUFFER_NBYTES, HANDED_CHUNKS, layout, layout_as_stored
from accumulator._stores.format.names import LOG, OUTPUTS, REDO, SCRATCH, head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory.copying import Copier
from accumulator._stores.memory.threads import n_cores
from accumulator._stores.writing.encoded import EncodedChunks
from accumulator._stores.writing.head import Head
from accumulator._stores.writing.loose import NOTE_NBYTES
from accumulator._stores.writing.redo import RedoChunks
from accumulator._stores.writing.writer import Writer
from accumulator.exceptions import AccumulatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.format.layout import Layout
    from accumulator._stores.memory.ram import RamRows
    from accumulator._stores.writing.block import Block
    from accumulator.typing import RowArray, Rows

N_THREADS: Final = 2  # one writes while the other takes the next; more do not make a disk faster
KEPT_THREADS: Final = 6  # some of which make checksums


class ZarrRows:
    """A `RowStore` of zarr arrays, of which only what was written takes space.

    With a small ``buffer_nbytes`` blocks are few, then small; one row at least. Stored chunks are as large as
    they are: without room for them none is held between two pushes, and one at a time is encoded. For a
    store that survives crashes ``recorded`` says which rows its record has, as it changes: such rows are not
    written over before `RedoChunks.apply`. ``there`` are the arrays of an earlier run; new ones are called as
    ``keys`` say, or by their numbers.
    """

    def __init__(  # noqa: PLR0913  what it needs to know
        self,
        zarr_store: FolderStore,
        n_rows: int,
        specs: Sequence[HeadSpec],
        buffer_nbytes: int = BUFFER_NBYTES,
        *,
        keys: Sequence[str] | None = None,
        recorded: NDArray[np.bool_] | None = None,
        there: Sequence[zarr.Array[Any]] | None = None,
        has_checksums: bool = False,
    ) -> None:
        lay_out = layout if there is None else layout_as_stored
        self.layouts, self.open_chunks = layouts, open_chunks = lay_out(n_rows, specs, buffer_nbytes)
        self.part_nbytes = max(1, sum(each.unit_nbytes for each in layouts))
        is_encoded = any(not each.is_raw for each in layouts)
        n_threads = max(KEPT_THREADS if has_checksums else N_THREADS, n_cores() * is_encoded)
        if open_chunks == 0:
            row_nbytes = sum(each.spec.row_nbytes for each in layouts)
            self.part_nbytes, n_threads = max(1, row_nbytes, buffer_nbytes // (1 + HANDED_CHUNKS)), 1
        self._writer = Writer(n_threads, 2 * self.part_nbytes)
        self._row_nbytes = max(1, sum(each.spec.row_nbytes for each in layouts))
        self._loose_rows = 0  # that are gathered of each head with small rows: their notes count, too
        loose = [each.spec.row_nbytes for each in layouts if self._may_be_loose(each)]
        if loose:
            self._loose_rows = max(1, self.part_nbytes // (sum(loose) + NOTE_NBYTES * len(loose)))
            self.part_nbytes = min(self.part_nbytes, self._loose_rows * self._row_nbytes)
        self._writer.in_memory = self._rows_in_memory
        self._copier = Copier()
        self.heads: list[Head] = []
        self.redo: list[RedoChunks] = []  # what waits for the record, a head, in a store that is kept
        self.zarr_store, self._recorded, self._has_checksums = zarr_store, recorded, has_checksums
        self._moves_out = False
        self._moving: Block | None = None
        try:
            system.make_folder(zarr_store.root_folder)
            if there is None:
                group = (
                    zarr.create_group(store=zarr_store, zarr_format=3)
                    if recorded is None
                    else open_group(zarr_store)
                )
                outputs = group.require_group(OUTPUTS)
                keys = head_keys(None, len(layouts)) if keys is None else keys
                there = [each.create(outputs, key) for key, each in zip(keys, layouts, strict=True)]
            for array, each in zip(there, layouts, strict=True):
                self.heads.append(self._make_head(over(array, zarr_store), each, open_chunks))
        except BaseException as cause:
            self.close()
            if isinstance(cause, OSError):
                raise storage_error(cause, f"no zarr group can be made in {zarr_store}") from cause
            raise

    @property
    def buffer_nbytes(self) -> int:
        if self.open_chunks:
            return sum(each.buffer_nbytes(self.open_chunks) for each in self.layouts)
        return HANDED_CHUNKS * self.part_nbytes + sum(each.unit_nbytes for each in self.layouts)

    @property
    def n_files(self) -> int:
        return sum(each.n_files for each in self.layouts)

    @property
    def arrays(self) -> list[RowArray]:
        return [head.array for head in self.heads]

    @property
    def checksums(self) -> list[NDArray[np.uint64]]:
        """Of each head's rows as they were written last, where they are made."""
        return [head.checksums for head in self.heads if head.checksums is not None]

    def views(self, start: int, stop: int) -> None:
        del start, stop

    def make_room(self, nbytes: int) -> None:
        self._writer.make_room(nbytes)
        with telling("loose rows cannot be gathered"):
            for head in self.heads:
                head.make_room(-(-nbytes // self._row_nbytes))

    def put(self, rows: Rows, values: Sequence[NDArray[Any] | None], *, is_lent: bool = False) -> None:
        """Copy each head's values to their rows, None for a head without any."""
        pieces = [
            piece
            for head, array in zip(self.heads, values, strict=True)
            if array is not None
            for piece in head.pieces(rows, array)
        ]
        if is_lent and not self._loose_rows:
            n = self._copier.copy_behind(pieces)
            for head in self.heads:
                head.wait_for(n)
        else:
            self._copier.copy(pieces)

    def settle(self) -> None:
        self._copier.settle()

    def commit(self) -> None:
        for head in self.heads:
            head.commit()
        if self._moves_out:
            self._move_out()

    def discard(self) -> None:
        for head in self.heads:
            head.discard()

    def get(self, rows: Rows) -> list[NDArray[Any]]:
        self.settle()
        try:
            return [head.get(rows) for head in self.heads]
        except AccumulatorError:
            raise
        except OSError as cause:
            raise storage_error(cause, "rows cannot be read back") from cause

    def flush(self) -> None:
        self._writer.make_room(0)
        for head in self.heads:
            head.hand_over_all()  # they are written while loose rows are sorted
        with telling("loose rows cannot be gathered"):
            for head in self.heads:
                head.sort_in()
        for head in self.heads:
            head.hand_over_all()
        self._writer.drain()
        for head in self.heads:
            for job in head.unfinished():
                self._writer.make_room(job.nbytes)
                self._writer.submit(job)
        self._wait_for_all()
        with telling("scratch files cannot be removed"):
            for head in self.heads:
                head.free()

    def _wait_for_all(self) -> None:
        self._writer.drain()

    def close(self) -> None:
        self._copier.close()  # first, as threads that write wait for it
        self._writer.close()
        for head in self.heads:
            head.drop()

    def remove(self) -> None:
        self.close()
        self.zarr_store.shut()

    def take_over(self, ram: RamRows, written: NDArray[np.bool_]) -> None:
        """Move rows out of RAM from the next `commit` on, and give their memory back as they are written.

        Unless somebody looks at it: a view must not turn to zeros.
        """
        ram.settle()
        gives_back = not ram.is_looked_at
        for head, array, pages, start in zip(self.heads, ram.held, ram.pages, ram.starts, strict=True):
            head.lend(array, pages, start, written, gives_back=gives_back)
        self._writer.after, self._moves_out = self._move_out, True

    def not_in_files(self) -> NDArray[np.bool_]:
        """Wait until nothing is written, and return which rows no reader finds in the files of all heads."""
        self._writer.wait()
        rows = np.zeros(self.heads[0].array.shape[0] if self.heads else 0, dtype=bool)
        with self._writer.lock:
            rows[self._rows_in_memory()] = True
        for head in self.heads:
            for job in head.unfinished():
                rows[job.rows] = True
        return rows

    def _rows_in_memory(self) -> NDArray[np.intp]:
        rows = [rows for head in self.heads for rows in head.rows_in_memory()]
        return np.concatenate(rows) if rows else np.empty(0, dtype=np.intp)

    def _make_head(self, array: zarr.Array[Any], made: Layout, open_chunks: int) -> Head:
        dtype, folder = array.dtype.newbyteorder("<"), self.zarr_store.root / array.path
        chunks: ChunkFiles | EncodedChunks
        redo = encoded = None
        stamps = self.zarr_store.stamps
        if made.is_raw:
            path_of = partial(chunk_path, array)
            unsynced = self.zarr_store.unsynced
            chunks = ChunkFiles(path_of, made.chunks, dtype, array.fill_value, unsynced, stamps)
        else:
            chunks = encoded = EncodedChunks(array, made.unit_rows, folder / SCRATCH, stamps)
        if self._recorded is not None and self.zarr_store.unsynced is not None:
            shape = (made.unit_rows, *array.shape[1:])
            redo = RedoChunks(chunks, folder / REDO, shape, dtype, self._recorded, self.zarr_store.unsynced)
            self.redo.append(redo)
        head = Head(
            array,
            redo or chunks,
            made.unit_rows,
            open_chunks,
            self._writer,
            encoded,
            folder / SCRATCH / LOG,
            self._copier.settle,
            loose_rows=self._loose_rows * self._may_be_loose(made),
            has_checksums=self._has_checksums,
        )
        stamps.tell_rows(array.path, array.shape[0], made.unit_rows, head.on_disk)
        return head

    def _may_be_loose(self, made: Layout) -> bool:
        """Whether rows of a head are small, in more chunks than may be open, with memory to gather them."""
        n_chunks = -(-made.n_rows // made.unit_rows)
        is_small = 0 < made.spec.row_nbytes <= tuning.now.loose_row_nbytes
        return is_small and n_chunks > self.open_chunks > 0

    def _move_out(self) -> None:
        """Have the first block that is still in RAM written, one at a time; its end calls this again."""
        with self._writer.lock:
            if self._moving is not None and self._moving.head.has_handed_over(self._moving):
                return
            waiting = [block for head in self.heads if (block := head.next_lent()) is not None]
            self._moving = min(waiting, key=lambda block: int(block.rows[0]), default=None)
            if self._moving is not None:
                self._moving.head.move_out(self._moving)


def copy_rows(
    sources: Sequence[RowArray], target: ZarrRows, written: NDArray[np.bool_], *, only_written: bool
) -> None:
    """Copy all rows that hold anything, chunk by chunk, so that gaps stay gaps; or only those written."""
    for number, (source, head) in enumerate(zip(sources, target.heads, strict=True)):
        copy = head.array
        values: list[NDArray[Any] | None] = [None] * len(sources)
        blank = np.full((1, *copy.shape[1:]), copy.fill_value, source.dtype).reshape(1, -1).view(np.uint8)
        unit = next(each.shards or each.chunks for each in (source, copy) if isinstance(each, zarr.Array))
        is_ours = isinstance(source, zarr.Array) and isinstance(source.store, FolderStore)
        is_plain = is_ours and unit[1:] == source.shape[1:]  # one file for each chunk of rows
        for chunk, start in enumerate(range(0, source.shape[0], unit[0])):
            known = written[start : start + unit[0]]
            if not known.any() and (only_written or (is_plain and not is_there(source, chunk))):
                continue
            block = np.ascontiguousarray(source[start : start + unit[0]])
            # Not its values: minus zero is something too.
            differs = (block.reshape(len(block), -1).view(np.uint8) != blank).any(axis=1)
            rows = np.flatnonzero(differs & known if only_written else differs)
            values[number] = block[rows]
            target.make_room(block.nbytes)
            target.put(start + rows, values)
            target.commit()
    target.flush()

"""All rows of one head on disk, and which of its chunks are in memory.

A chunk's rows are gathered in a block until all have come; then a thread writes it whole. A block is

- open: rows are put into it. Only few are open at a time; the one used longest ago has to go early.
- handed over: it waits to be written, is being written, or could not be written.
- lent: its memory is that of a result that was in RAM, and moves out when the disk has time.

Rows that come for a chunk on disk get a new block, which is written over it. Small rows that are scattered
over more chunks than may be open are gathered by `LooseRows`; a block that is made takes those of its chunk.
"""

from __future__ import annotations

import errno
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.memory.copying import Piece
from accumulator._stores.memory.pages import Pages
from accumulator._stores.memory.row_numbers import as_numbers, by_chunk, count
from accumulator._stores.writing.block import Block, Finish
from accumulator._stores.writing.loose import LooseRows
from accumulator._stores.writing.spare import SpareMemory
from accumulator.exceptions import DamagedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from accumulator._stores.format.chunk_files import ChunkFiles
    from accumulator._stores.writing.encoded import EncodedChunks
    from accumulator._stores.writing.redo import RedoChunks
    from accumulator._stores.writing.writer import Writer
    from accumulator.typing import Rows

_FEW_CHUNKS: Final = 8  # of a put: so many are looked at one by one
_WORTH: Final = 2  # a block with half of its rows is written as a whole: its bytes are twice its rows'


class Head:
    """All rows of one head; ``encoded`` are its chunks where zarr encodes them.

    So many ``loose_rows`` are gathered in memory, and then in a ``log``; 0 for a head that has none.
    `rows_in_memory`, `next_lent`, `move_out` and `written` are called under the writer's lock.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what it needs to know
        self,
        array: zarr.Array[Any],
        chunks: ChunkFiles | EncodedChunks | RedoChunks,
        chunk_rows: int,
        open_chunks: int,
        writer: Writer,
        encoded: EncodedChunks | None,
        log: Path,
        settle: Callable[[int], None],
        *,
        loose_rows: int,
        has_checksums: bool,
    ) -> None:
        self.array, self.chunks, self._encoded = array, chunks, encoded
        self.settle = settle  # until so many lots of lent values are copied
        self.chunk_rows = chunk_rows  # that are written at once
        self.name = array.basename
        self.on_disk: dict[int, NDArray[np.bool_] | None] = {}  # chunks, and which rows; None for all
        self.lent: OrderedDict[int, Block] = OrderedDict()
        self.finishing: dict[int, Finish] = {}
        self.dtype = array.dtype.newbyteorder("<")
        self._fill = np.asarray(array.fill_value, self.dtype)
        self._n_rows, self._patch_shape = array.shape[0], array.shape[1:]
        self.row_nbytes = array.dtype.itemsize * int(np.prod(self._patch_shape, dtype=np.int64))
        self.checksums: NDArray[np.uint64] | None = None  # of each row as it was written last
        if has_checksums:
            # Small pages: a rank of many has few rows of each huge one.
            self.checksums = Pages(8 * self._n_rows).array((self._n_rows,), np.uint64)
            if blank := row_checksums(np.broadcast_to(self._fill, (1, *self._patch_shape)))[0]:
                self.checksums[:] = blank
        self._writer, self._most_open = writer, open_chunks  # between two pushes
        self._open: OrderedDict[int, Block] = OrderedDict()
        self._handed: dict[int, Block] = {}
        self._pending: deque[tuple[Block, Rows]] = deque()
        self._spare = SpareMemory(chunk_rows, self.row_nbytes, open_chunks * chunk_rows)
        shape = self._patch_shape
        self._loose = LooseRows(self._n_rows, shape, self.dtype, loose_rows, log) if loose_rows else None

    def pieces(self, rows: Rows, values: NDArray[Any]) -> list[Piece]:
        """Return what has to be copied to put values in their rows."""
        if self.row_nbytes == 0:
            return []
        pieces, of, loose = [], None, self._loose
        if loose is not None and (alone := self._scattered(rows)) is not None:
            numbers, of = as_numbers(rows), np.flatnonzero(~alone)
            source: Rows = np.flatnonzero(alone) if len(of) else slice(0, len(numbers))
            pieces.append(loose.piece(numbers[alone], values, source))
            rows = numbers[of]
        for chunk, local, where in by_chunk(rows, self.chunk_rows):
            source = where if of is None else of[where]
            block = self._in_memory(chunk)
            if block is None and loose is not None and not self._is_worth(chunk, count(local)):
                first = chunk * self.chunk_rows
                pieces.append(loose.piece(as_numbers(local) + first, values, source))
                continue
            if block is None:
                first = local.start if isinstance(local, slice) else int(local[0])
                block = self._new_block(chunk, count(local), first)
            self._pending.append((block, local))
            pieces.append(Piece(block.values, local, values, source))
        return pieces

    def wait_for(self, n: int) -> None:
        """Have the blocks that values were put into wait for those until they are written."""
        for block, _ in self._pending:
            block.n_lots = n

    def commit(self) -> None:
        """Count what was put, and hand over what is complete or has been open for long."""
        if self._loose is not None:
            self._loose.commit()
        while self._pending:
            block, local = self._pending[0]
            block.count(local)
            if self._loose is not None and self._loose.is_used:
                self._loose.forget(as_numbers(local) + block.chunk * self.chunk_rows)
            block.is_busy = False
            if block.n_missing == 0 and self._open.get(block.chunk) is block:
                self._hand_over(self._open, block.chunk)
            self._pending.popleft()
        while len(self._open) > self._most_open:
            self._hand_over(self._open, self._next_to_go().chunk)

    def discard(self) -> None:
        for block, _ in self._pending:
            block.is_busy = False
            if block.n_filled == 0 and not block.is_lent:
                self._open.pop(block.chunk, None)
        self._pending.clear()
        if self._loose is not None:
            self._loose.discard()

    def get(self, rows: Rows) -> NDArray[Any]:
        values = np.full((count(rows), *self._patch_shape), self._fill)
        if self.row_nbytes == 0:
            return values
        for chunk, local, where in by_chunk(rows, self.chunk_rows):
            block = self._in_memory(chunk)
            held = None if block is None else block.filled[local]
            if chunk in self.on_disk:
                numbers = as_numbers(local)
                first, stop = int(numbers.min()), int(numbers.max()) + 1
                known = self.on_disk[chunk]
                found = self.chunks.read(chunk, first, stop)
                if known is not None:
                    found[~known[first:stop]] = self._fill
                values[where] = found[numbers - first]
                if self.checksums is not None:
                    is_read = np.ones(len(numbers), bool) if known is None else known[numbers]
                    is_read &= True if held is None else ~held
                    if self._loose is not None and self._loose.is_used:
                        is_read &= ~self._loose.held(numbers + chunk * self.chunk_rows)
                    self._compare(numbers[is_read], chunk, found[(numbers - first)[is_read]], self.checksums)
            if self._loose is not None and self._loose.is_used:
                numbers = as_numbers(local) + chunk * self.chunk_rows
                alone = self._loose.held(numbers)
                values[as_numbers(where)[alone]] = self._loose.read(numbers[alone])
            if block is not None and held is not None:
                mask = held.reshape(len(held), *(1 for _ in self._patch_shape))
                values[where] = np.where(mask, block.values[local], values[where])
                block.is_busy = False
        return values

    def _compare(
        self, rows: NDArray[np.intp], chunk: int, found: NDArray[Any], checksums: NDArray[np.uint64]
    ) -> None:
        """Raise DamagedError if rows of a chunk are not those that were written."""
        rows += chunk * self.chunk_rows
        wrong = rows[row_checksums(found) != checksums[rows]]
        if len(wrong):
            what = f"{len(wrong)} rows of head {self.name} are not those that were written, the first being"
            raise DamagedError(errno.EIO, f"{what} row {wrong[0]}", str(self.array.store), rows=wrong)

    def make_room(self, n_rows: int) -> None:
        """Let so many rows more be loose: sort those there are into their chunks, or into the log."""
        loose = self._loose
        if loose is None or loose.room >= n_rows or not loose.is_used:
            return
        if loose.is_long:
            self.sort_in()
            return
        for chunk in np.flatnonzero(_WORTH * loose.gathered(self.chunk_rows) >= self.chunk_rows).tolist():
            self._sort_in(chunk)
        loose.spill()

    def sort_in(self) -> None:
        """Have all loose rows written, chunk by chunk."""
        if self._loose is not None and self._loose.is_used:
            for chunk in self._loose.chunks(self.chunk_rows).tolist():
                self._sort_in(chunk)
            self._loose.clear()

    def _sort_in(self, chunk: int) -> None:
        self._writer.make_room(self.chunk_rows * self.row_nbytes)
        block = self._in_memory(chunk)
        if block is None:
            self._new_block(chunk, 0)
        else:  # an interrupt came between two lines
            self._take_loose(block)
            block.is_busy = False
        if chunk in self._open:
            self._hand_over(self._open, chunk)

    def hand_over_all(self) -> None:
        with self._writer.lock:  # which moves lent blocks out, too
            for blocks in (self._open, self.lent):
                while blocks:
                    self._hand_over(blocks, next(iter(blocks)))
            for block in list(self._handed.values()):
                if not self._writer.knows(block):  # an interrupt came between two lines
                    self._writer.submit(block)

    def unfinished(self) -> list[Finish]:
        """Return the chunks that a reader does not find yet, once nothing is in memory."""
        if self._encoded is not None:
            self.finishing = {
                chunk: Finish(self, chunk, self._encoded) for chunk in sorted(self._encoded.waiting)
            }
        return list(self.finishing.values())

    def rows_in_memory(self) -> list[NDArray[np.intp]]:
        blocks = [*self._open.values(), *self._handed.values(), *self.lent.values()]
        loose = [] if self._loose is None else [self._loose.rows()]
        return loose + [block.rows for block in blocks]

    def restore(self, chunk: int, rows: NDArray[np.bool_]) -> None:
        """Take note of rows of a chunk that an earlier run has written."""
        self.on_disk[chunk] = None if rows.all() else rows.copy()
        if self._encoded is not None:
            self._encoded.restore(chunk, rows.copy())

    def free(self) -> None:
        """Let go of memory that is kept for the next blocks, and of folders that are empty."""
        self._spare.clear()
        if self._loose is not None:
            self._loose.clear()
            self._loose.tidy()
        if self._encoded is not None:
            self._encoded.tidy()

    def drop(self) -> None:
        for blocks in (self._open, self.lent, self._handed, self._pending, self._spare, self.finishing):
            blocks.clear()
        if self._loose is not None:
            self._loose.drop()

    def lend(
        self, values: NDArray[Any], pages: Pages, start: int, written: NDArray[np.bool_], *, gives_back: bool
    ) -> None:
        """Take over the written rows of an array in RAM, whose bytes begin there in its pages."""
        for chunk in range(-(-self._n_rows // self.chunk_rows) if self.row_nbytes else 0):
            first = chunk * self.chunk_rows
            filled = written[first : first + self.chunk_rows].copy()
            n_filled = int(np.count_nonzero(filled))
            if n_filled:
                part = values[first : first + self.chunk_rows]
                at = start + first * self.row_nbytes
                block = Block(self, chunk, part, filled, pages, at, n_filled=n_filled)
                block.n_missing = len(filled) - n_filled
                block.is_lent, block.gives_back = True, gives_back
                self.lent[chunk] = block

    def next_lent(self) -> Block | None:
        return next((block for block in self.lent.values() if not block.is_busy), None)

    def move_out(self, block: Block) -> None:
        self._hand_over(self.lent, block.chunk)

    def has_handed_over(self, block: Block) -> bool:
        return self._handed.get(block.chunk) is block

    def written(self, block: Block) -> None:
        known = self.on_disk.get(block.chunk, np.zeros_like(block.filled))
        known = None if known is None else known | block.filled
        self.on_disk[block.chunk] = None if known is None or known.all() else known
        self._handed.pop(block.chunk, None)
        if block.is_lent:
            if block.gives_back:
                block.pages.give_back(block.start, block.start + block.values.nbytes)
        else:
            self._spare.give(block.pages, block.filled)

    def _scattered(self, rows: Rows) -> NDArray[np.bool_] | None:
        """Return which rows are loose if they lie in many chunks; None if each chunk is to be looked at."""
        loose = self._loose
        if isinstance(rows, slice) or len(rows) <= _FEW_CHUNKS or loose is None or loose.room < len(rows):
            return None
        chunks = rows // self.chunk_rows
        if np.count_nonzero(np.diff(np.sort(chunks))) < _FEW_CHUNKS:
            return None
        with self._writer.lock:
            there = [*self._open, *self._handed, *self.lent]
        return ~np.isin(chunks, there)

    def _is_worth(self, chunk: int, n_rows: int) -> bool:
        """Whether a chunk gets a block for so many rows, for which another may have to go."""
        loose = self._loose
        if loose is None or loose.room < n_rows or len(self._open) < self._most_open:
            return True
        next_one = self._next_to_go()
        size = min(self.chunk_rows, self._n_rows - chunk * self.chunk_rows)
        is_full = _WORTH * next_one.n_filled >= len(next_one.filled)
        return is_full or self._is_left(next_one, loose) or _WORTH * n_rows >= size

    def _next_to_go(self) -> Block:
        """Return the open block that was used longest ago; where rows may be loose, the fullest one."""
        loose = self._loose
        if loose is None:
            return next(iter(self._open.values()))
        return max(self._open.values(), key=lambda block: (self._is_left(block, loose), block.n_filled))

    def _is_left(self, block: Block, loose: LooseRows) -> bool:
        """Whether a block was not used while as many rows were loose as a chunk has."""
        return loose.n_put - block.touched >= self.chunk_rows

    def _new_block(self, chunk: int, n_rows: int, first: int = 0) -> Block:
        """Return a block that so many rows of a chunk are put into, with the loose rows there are."""
        size = min(self.chunk_rows, self._n_rows - chunk * self.chunk_rows)
        if self._loose is not None and self._loose.is_used:
            start = chunk * self.chunk_rows
            n_rows += int(np.count_nonzero(self._loose.held(slice(start, start + size))))
        with self._writer.lock:
            pages = self._spare.take(first, n_rows)
        values = pages.array((size, *self._patch_shape), self.dtype)
        block = Block(self, chunk, values, np.zeros(size, dtype=bool), pages)
        block.known = self.on_disk.get(chunk)
        block.n_missing = size if block.known is None else size - int(np.count_nonzero(block.known))
        self._take_loose(block)
        if self._loose is not None:
            block.touched = self._loose.n_put
        return block

    def _take_loose(self, block: Block) -> None:
        """Open a block, or go on with it, with the loose rows of its chunk."""
        loose, first = self._loose, block.chunk * self.chunk_rows
        rows = np.empty(0, dtype=np.intp)
        if loose is not None and loose.is_used:
            rows = np.flatnonzero(loose.held(slice(first, first + len(block.filled))) & ~block.filled)
            if len(rows) == len(block.filled):
                loose.read(rows + first, block.values)
            else:
                block.values[rows] = loose.read(rows + first)
            block.count(rows)
        if not self._is_there(block):
            self._open[block.chunk] = block
        if loose is not None and len(rows):
            loose.forget(rows + first)

    def _in_memory(self, chunk: int) -> Block | None:
        """Return a chunk's block, which is not being written then and will not be before `commit`."""
        if chunk in self._open:
            self._open.move_to_end(chunk)
            if self._loose is not None:
                self._open[chunk].touched = self._loose.n_put
            return self._open[chunk]
        finish = self.finishing.get(chunk)
        if finish is not None:  # a flush was interrupted
            self._writer.forget(finish)
            self.finishing.pop(chunk, None)
        with self._writer.lock:
            lent = self.lent.get(chunk)
            if lent is not None:
                lent.is_busy = True
                return lent
            handed = self._handed.get(chunk)
        if handed is None:
            return None
        self._writer.take_back(handed)
        with self._writer.lock:
            if self._handed.get(chunk) is not handed:  # it is written
                return None
            if not self._writer.has_failed(handed):
                (self.lent if handed.is_lent else self._open)[chunk] = handed
                handed.is_busy = True
                del self._handed[chunk]
        return handed

    def _is_there(self, block: Block) -> bool:
        """Whether a block is in memory, where all see it; one that is written meanwhile is not taken back."""
        return any(blocks.get(block.chunk) is block for blocks in (self._open, self._handed, self.lent))

    def _hand_over(self, blocks: OrderedDict[int, Block], chunk: int) -> None:
        with self._writer.lock:  # wherever an interrupt comes, the block is in one of them, and found again
            self._handed[chunk] = block = blocks[chunk]
            del blocks[chunk]
            self._writer.submit(block)

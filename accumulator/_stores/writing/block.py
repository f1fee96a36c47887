"""What the writer writes: rows of one chunk in memory, or the last encoding of a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.format.chunk_files import Part
from accumulator._stores.memory.pages import PAGE_NBYTES, Pages
from accumulator._stores.memory.row_numbers import spans

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._stores.writing.encoded import EncodedChunks
    from accumulator._stores.writing.head import Head
    from accumulator.typing import Rows

_STEP_NBYTES: Final = 2**20
_ROWS_PER_CALL: Final = 8  # rows that lie alone are copied side by side, rather than a call for each


@attrs.define(eq=False)
class Block:
    """Rows of one chunk in memory."""

    head: Head
    chunk: int
    values: NDArray[Any]  # (rows of the chunk, *patch_shape); rows not filled hold anything
    filled: NDArray[np.bool_]
    pages: Pages
    start: int = 0  # where in the pages the values begin, in bytes
    is_lent: bool = False
    gives_back: bool = True  # whether its pages are given back when it is written
    is_busy: bool = False  # rows are being put into it
    n_filled: int = 0
    touched: int = 0  # how many loose rows of its head there had been when it was used last
    known: NDArray[np.bool_] | None = None  # rows that are on disk already
    n_missing: int = 0  # rows that are neither here nor on disk
    n_lots: int = 0  # of lent values, that are copied when all of its rows are

    @property
    def nbytes(self) -> int:
        """Bytes of memory it takes until it is written: what was touched before is there."""
        return max(self.n_filled, self.pages.n_touched) * self.head.row_nbytes

    @property
    def rows(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.filled) + self.chunk * self.head.chunk_rows

    @property
    def label(self) -> str:
        return f"head {self.head.name}"

    def count(self, local: Rows) -> None:
        """Count rows that were put into it."""
        is_new = ~self.filled[local]
        self.filled[local] = True
        self.n_filled += int(np.count_nonzero(is_new))
        if self.known is not None:
            is_new &= ~self.known[local]
        self.n_missing -= int(np.count_nonzero(is_new))

    def write(self) -> None:
        head, values, pages, start = self.head, self.values, self.pages, self.start
        head.settle(self.n_lots)
        if self.is_lent and (values.dtype != head.dtype or start % PAGE_NBYTES):
            # Of the other byte order, or not aligned as direct I/O wants it.
            pages, start = Pages(values.nbytes, is_huge=True), 0
            values = pages.array(values.shape, head.dtype)
            values[...] = self.values
        if head.checksums is not None:
            first = self.chunk * head.chunk_rows
            rows = np.flatnonzero(self.filled)
            if len(rows) < _ROWS_PER_CALL * np.count_nonzero(np.diff(rows) > 1):
                step = max(1, _STEP_NBYTES // head.row_nbytes)
                for some in (rows[start : start + step] for start in range(0, len(rows), step)):
                    head.checksums[first + some] = row_checksums(values[some])
            else:
                for begin, end in spans(rows, 0):
                    head.checksums[first + begin : first + end] = row_checksums(values[begin:end])
        part = Part(self.chunk, values, self.filled, pages.memory[start:])
        head.chunks.write(part, is_there=self.chunk in head.on_disk)

    def done(self) -> None:
        self.head.written(self)


@attrs.define(eq=False)
class Finish:
    """The last encoding of a chunk of which rows never came."""

    head: Head
    chunk: int
    chunks: EncodedChunks

    @property
    def nbytes(self) -> int:
        return self.head.chunk_rows * self.head.row_nbytes

    @property
    def rows(self) -> NDArray[np.intp]:
        waiting = self.chunks.waiting.get(self.chunk, np.empty(0, dtype=bool))
        return np.flatnonzero(waiting) + self.chunk * self.head.chunk_rows

    @property
    def label(self) -> str:
        return f"head {self.head.name}"

    def write(self) -> None:
        self.chunks.finish(self.chunk)

    def done(self) -> None:
        self.head.finishing.pop(self.chunk, None)

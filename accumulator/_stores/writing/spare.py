"""Memory of blocks that were written, kept for the next: to touch new memory takes as long as to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from accumulator._stores.memory.pages import PAGE_NBYTES, Pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_MOST: Final = 128  # that are looked through: a push may have many rows, each in a chunk of its own

_LARGE_NBYTES: Final = 4 * PAGE_NBYTES  # of a row: smaller ones here and there touch most pages of a chunk


class SpareMemory:
    """Memory for blocks of so many rows, kept while no more than ``limit_rows`` of all were touched.

    A row that comes alone gets memory where a row of its number was touched before. Called under a lock.
    """

    def __init__(self, chunk_rows: int, row_nbytes: int, limit_rows: int) -> None:
        self._chunk_rows, self._row_nbytes, self._limit_rows = chunk_rows, row_nbytes, limit_rows
        self._kept: list[Pages] = []

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Pages]:
        return iter(self._kept)

    def take(self, first: int, n_rows: int) -> Pages:
        """Return memory for a block that begins with so many rows, the first of them at ``first``."""
        is_many, half = 2 * n_rows > self._chunk_rows, self._chunk_rows // 2
        fit = [each for each in self._kept if (each.n_touched > half if is_many else each.touched[first])]
        if fit:
            found = (max if is_many else min)(fit, key=lambda pages: pages.n_touched)
            self._kept.remove(found)
            return found
        # Huge pages come four times as fast, but a row alone would take a multiple of its bytes.
        return Pages(self._chunk_rows * self._row_nbytes, is_huge=is_many)

    def give(self, pages: Pages, filled: NDArray[np.bool_]) -> None:
        """Keep memory of which some more rows were filled, in place of what was kept longest ago."""
        if len(pages.touched) == 0:
            pages.touched = np.zeros(self._chunk_rows, dtype=bool)
        pages.touched[: len(filled)] |= filled | (self._row_nbytes < _LARGE_NBYTES)
        pages.n_touched = int(np.count_nonzero(pages.touched))
        self._kept.append(pages)
        while len(self._kept) > _MOST or sum(each.n_touched for each in self._kept) > self._limit_rows:
            del self._kept[0]

    def clear(self) -> None:
        self._kept.clear()

"""Copies of what a caller may change at once, in memory that is used again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._stores.memory.copying import Copier, Piece
from accumulator._stores.memory.pages import PAGE_NBYTES, Pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MOST_SPARE: Final = 8  # arrays whose memory is kept


class Copies:
    """Copies of arrays, whose memory is used again; so many bytes of it may be kept for that."""

    def __init__(self) -> None:
        self.most_nbytes = 0
        self._copier, self._spare, self._lock = Copier(), list[Pages](), threading.RLock()
        self._sizes: list[int] = []  # of the last arrays

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(pages.nbytes for pages in self._spare)

    def make(self, arrays: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[Pages]]:
        """Return copies that lie in memory in the order of the arrays, without gaps, and their memory."""
        self._sizes = [array.nbytes for array in arrays]
        used = list(map(self._pages, self._sizes))
        copies = [_laid_like(array, pages) for array, pages in zip(arrays, used, strict=True)]
        self._copier.copy(
            [
                Piece(copy, slice(0, len(copy)), array, slice(0, len(array)))
                for copy, array in zip(copies, arrays, strict=True)
            ]
        )
        return copies, used

    def make_ready(self, n: int) -> None:
        """Have memory for n times as large arrays, which to touch first takes longer than to copy them."""
        fitting = self.most_nbytes // max(1, sum(self._sizes))
        used = [self._pages(nbytes) for nbytes in min(n, fitting) * self._sizes]
        for pages in used:
            pages.fault_in()
        self.give_back(used)

    def give_back(self, used: Sequence[Pages]) -> None:
        """Take memory that nobody looks at any more."""
        with self._lock:
            self._spare = [*used, *self._spare][:_MOST_SPARE]
            while self.nbytes > self.most_nbytes:
                self._spare.pop()

    def close(self) -> None:
        """Let go of all memory, and end the threads."""
        with self._lock:
            self._spare.clear()
        self._copier.close()

    def _pages(self, nbytes: int) -> Pages:
        with self._lock:
            for i, pages in enumerate(self._spare):
                if nbytes <= pages.nbytes <= max(2 * nbytes, PAGE_NBYTES):
                    return self._spare.pop(i)
        return Pages(nbytes, is_huge=True)


def _laid_like(array: NDArray[Any], pages: Pages) -> NDArray[Any]:
    """Return an array over pages that has an array's shape, dtype and order of axes."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    laid = pages.array([array.shape[axis] for axis in order], array.dtype)
    return laid.transpose(np.argsort(order))

"""Memory straight from the operating system: page-aligned, zero until touched, and given back in parts.

Direct I/O wants aligned buffers, and a result that leaves RAM gives its pages back while it is still
being written; NumPy's own memory can do neither.
"""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

PAGE_NBYTES: Final = mmap.PAGESIZE
_HUGE_NBYTES: Final = 4 * 2**20  # what NumPy asks huge pages for, too


class Pages:
    """A number of bytes, all zero, that take memory page by page as they are written.

    Huge pages are quicker to get, but come 2 MiB at a time. Raises MemoryError where the system refuses.
    """

    def __init__(self, nbytes: int, *, is_huge: bool = False) -> None:
        self.nbytes = padded(max(1, nbytes))
        self.touched = np.zeros(0, dtype=bool)  # rows, and how many: for whoever keeps them to say
        self.n_touched = 0
        try:
            if sys.platform == "win32":
                self._map = mmap.mmap(-1, self.nbytes)
            else:
                self._map = mmap.mmap(-1, self.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as cause:
            raise MemoryError(f"{nbytes} bytes of memory cannot be had: {cause}") from cause
        if is_huge and self.nbytes >= _HUGE_NBYTES:
            self._advise("MADV_HUGEPAGE", 0, self.nbytes)

    @property
    def memory(self) -> memoryview:
        """All bytes, in whole pages."""
        return memoryview(self._map)

    def array(self, shape: Sequence[int], dtype: DTypeLike, offset: int = 0) -> NDArray[Any]:
        """Return an array over bytes from the offset on; it keeps the memory alive."""
        return np.ndarray(shape, dtype, buffer=self._map, offset=offset)

    def fault_in(self) -> None:
        """Write to each page, so that all of the memory is there."""
        self.array((self.nbytes // PAGE_NBYTES, PAGE_NBYTES), np.uint8)[:, 0] = 0

    def give_back(self, start: int, stop: int) -> None:
        """Let go of the pages that lie wholly between two bytes; they read as zeros then."""
        start, stop = padded(start), stop // PAGE_NBYTES * PAGE_NBYTES
        if start < stop:
            self._advise("MADV_DONTNEED", start, stop - start)

    def _advise(self, advice: str, start: int, nbytes: int) -> None:
        if sys.platform == "linux":  # elsewhere the same names promise less
            self._map.madvise(getattr(mmap, advice), start, nbytes)


def padded(nbytes: int) -> int:
    """Return a number of bytes rounded up to whole pages."""
    return -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES

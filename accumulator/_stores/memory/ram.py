"""Rows in RAM: one array a head, made at once; the kernel gives it pages as rows are written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._stores.memory.copying import Copier, Piece
from accumulator._stores.memory.pages import PAGE_NBYTES, Pages
from accumulator._stores.memory.row_numbers import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.validation import HeadSpec
    from accumulator.typing import RowArray, Rows

_ALIGNMENT: Final = 16  # what NumPy aligns to, and every dtype asks for


class RamRows:
    """A `RowStore` of NumPy arrays; raises MemoryError where the system refuses them.

    ``first`` is what will be put first: memory is copied up to half as fast again where source and target lie
    alike in their pages, and all batches of a model lie alike.
    """

    zarr_store = None
    part_nbytes = sys.maxsize  # put as many as there are
    buffer_nbytes = n_files = 0

    def __init__(self, n_rows: int, specs: Sequence[HeadSpec], first: Sequence[NDArray[Any]]) -> None:
        # Each head's first byte in its pages.
        self.starts = [head.ctypes.data % PAGE_NBYTES // _ALIGNMENT * _ALIGNMENT for head in first]
        self.pages = [
            Pages(start + n_rows * spec.row_nbytes, is_huge=True)
            for start, spec in zip(self.starts, specs, strict=True)
        ]
        self.held = [
            pages.array((n_rows, *spec.patch_shape), spec.dtype, start)
            for pages, spec, start in zip(self.pages, specs, self.starts, strict=True)
        ]
        self._copier = Copier()
        for array, spec in zip(self.held, specs, strict=True):
            if any(np.asarray(spec.storage.fill_value, spec.dtype).tobytes()):  # minus zero is something, too
                array[...] = spec.storage.fill_value

    @property
    def arrays(self) -> list[RowArray]:
        return list(self.held)

    @property
    def is_looked_at(self) -> bool:
        """Whether somebody else holds one of the arrays, or a view of it."""
        unseen = [np.empty(0)]
        counts = [sys.getrefcount(array) for array in (*unseen, *self.held)]
        return max(counts) > counts[0]

    def settle(self) -> None:
        self._copier.settle()

    def views(self, start: int, stop: int) -> list[NDArray[Any]]:
        self.settle()
        return [array[start:stop] for array in self.held]

    def make_room(self, nbytes: int) -> None:
        del nbytes  # there is room for all rows

    def put(self, rows: Rows, values: Sequence[NDArray[Any]], *, is_lent: bool = False) -> None:
        """Copy each head's values to their rows, unless they are those rows."""
        n = slice(0, count(rows))
        pieces = [
            Piece(array, rows, head, n)
            for array, head in zip(self.held, values, strict=True)
            if not _is_there(array, rows, head)
        ]
        if is_lent:
            self._copier.copy_behind(pieces)
        else:
            self._copier.copy(pieces)

    def commit(self) -> None:
        """Do nothing: what was put counts, until whoever put it puts other values over it."""

    def discard(self) -> None:
        """Do nothing, as `commit`."""

    def get(self, rows: Rows) -> list[NDArray[Any]]:
        self.settle()
        return [np.array(array[rows]) for array in self.held]

    def flush(self) -> None:
        self.settle()

    def close(self) -> None:
        self._copier.close()

    def remove(self) -> None:
        self.close()


def _is_there(array: NDArray[Any], rows: Rows, values: NDArray[Any]) -> bool:
    """Whether values are a view of just those rows: made where they belong, as maps are."""
    base = values.base  # a look at addresses takes longer than to copy a small batch
    if not isinstance(rows, slice) or base is None or (base is not array and base is not array.base):
        return False
    at = array[rows]
    place, own = at.__array_interface__, values.__array_interface__
    return all(place[key] == own[key] for key in ("data", "shape", "strides", "typestr"))

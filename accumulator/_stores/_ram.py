"""Rows in RAM: one array a head, allocated once; the kernel gives it pages as rows are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._validation import HeadSpec
    from accumulator.typing import Rows


class RamRows:
    """All rows of one head in one NumPy array of zeros.

    Raises
    ------
    MemoryError
        The operating system refuses the array.
    """

    def __init__(self, n_rows: int, spec: HeadSpec) -> None:
        self.array = np.zeros((n_rows, *spec.patch_shape), spec.dtype)

    def put(self, rows: Rows, values: NDArray[Any]) -> None:
        """Copy values to their rows."""
        self.array[rows] = values

    def get(self, rows: Rows) -> NDArray[Any]:
        """Return a copy of rows."""
        return np.array(self.array[rows])

    def erase(self, rows: Rows) -> None:
        """Make rows zero again."""
        self.array[rows] = 0

    def flush(self) -> None:
        """Do nothing: the array is always up to date."""

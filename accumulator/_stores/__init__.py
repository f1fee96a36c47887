"""Where rows are kept: in RAM or in zarr on local disk, behind one small protocol.

The only room that knows zarr. It does not decide which of the two is used, nor what a location is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from accumulator._stores._disk import BUFFER_NBYTES, ZarrRows, copy_rows, create_zarr_rows, read_only
from accumulator._stores._folder import TemporaryFolder, make_parents, remove_empty, storage_error
from accumulator._stores._folder_store import FolderStore
from accumulator._stores._group import complete_result, read_result
from accumulator._stores._ram import RamRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import RowArray, Rows

__all__ = [
    "BUFFER_NBYTES",
    "FolderStore",
    "RamRows",
    "RowStore",
    "TemporaryFolder",
    "ZarrRows",
    "complete_result",
    "copy_rows",
    "create_zarr_rows",
    "make_parents",
    "read_only",
    "read_result",
    "remove_empty",
    "storage_error",
]


class RowStore(Protocol):
    """All rows of one head. Rows never put read as zeros and take neither memory nor disk."""

    @property
    def array(self) -> RowArray:
        """The rows, ``(N, *patch_shape)``; what was put is in it after `flush`."""

    def put(self, rows: Rows, values: NDArray[Any]) -> None:
        """Copy values to their rows."""

    def get(self, rows: Rows) -> NDArray[Any]:
        """Return a copy of rows."""

    def erase(self, rows: Rows) -> None:
        """Make rows zero again."""

    def flush(self) -> None:
        """Make `array` show every row that was put."""

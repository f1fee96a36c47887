"""Where rows are kept: in RAM or in zarr on local disk, behind one small protocol.

The only room that knows zarr. It does not decide which of the two is used, nor what a location is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from accumulator._stores.files.errors import storage_error
from accumulator._stores.files.lock import is_locked
from accumulator._stores.files.temporary import TemporaryFolder, make_parents, remove_empty
from accumulator._stores.format.arrays import read_only, storage_of, stored_layout
from accumulator._stores.format.layout import BUFFER_NBYTES, Layout, check_options, layout
from accumulator._stores.format.mark import CREATING
from accumulator._stores.format.record import complete_result
from accumulator._stores.format.store import FolderStore
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.memory.pages import Pages
from accumulator._stores.memory.ram import RamRows
from accumulator._stores.memory.row_numbers import as_numbers, count, cut
from accumulator._stores.reading.check import RowChecker, make_checksums
from accumulator._stores.reading.look import disk_nbytes, head_details, open_mark, open_result
from accumulator._stores.reading.saved import SavedResult
from accumulator._stores.writing.zarr_rows import ZarrRows, copy_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator.typing import RowArray, Rows

__all__ = [
    "BUFFER_NBYTES",
    "CREATING",
    "FolderStore",
    "KeptRun",
    "Layout",
    "Pages",
    "RamRows",
    "RowChecker",
    "RowStore",
    "SavedResult",
    "TemporaryFolder",
    "ZarrRows",
    "as_numbers",
    "check_options",
    "complete_result",
    "copy_rows",
    "count",
    "cut",
    "disk_nbytes",
    "head_details",
    "is_locked",
    "layout",
    "make_checksums",
    "make_parents",
    "open_mark",
    "open_result",
    "read_only",
    "remove_empty",
    "storage_error",
    "storage_of",
    "stored_layout",
]


class RowStore(Protocol):
    """All rows of all heads. Rows never put hold the fill value, and take neither memory nor disk."""

    @property
    def part_nbytes(self) -> int:
        """How many bytes may be put at a time."""

    @property
    def arrays(self) -> list[RowArray]:
        """One array a head, ``(N, *patch_shape)``; what was put is in it after `flush`."""

    def make_room(self, nbytes: int) -> None:
        """Wait until so many bytes may be put; raises what failed earlier."""

    def put(self, rows: Rows, values: Sequence[NDArray[Any]]) -> None:
        """Copy each head's values to their rows; they count from `commit` on."""

    def commit(self) -> None:
        """Let what was put count."""

    def discard(self) -> None:
        """Forget what was put since `commit`."""

    def get(self, rows: Rows) -> list[NDArray[Any]]:
        """Return a copy of rows of each head."""

    def flush(self) -> None:
        """Make `arrays` show every row that was put."""

    def close(self) -> None:
        """End all threads; what was not flushed is dropped."""

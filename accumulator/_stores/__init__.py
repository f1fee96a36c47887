"""Where rows are kept: in RAM or in zarr on local disk, behind one small protocol.

The only room that knows zarr. It does not decide which of the two is used, nor what a location is.
"""

from __future__ import annotations

from accumulator._stores.files.errors import storage_error
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.files.target import check_free, reaching, staged, write_file
from accumulator._stores.files.temporary import TemporaryFolder, make_parents
from accumulator._stores.format.arrays import read_only, storage_of, stored_layout
from accumulator._stores.format.layout import BUFFER_NBYTES, Layout, check_options, layout
from accumulator._stores.format.mark import CREATING
from accumulator._stores.format.record import complete_result
from accumulator._stores.format.store import FolderStore
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.memory.pages import Pages
from accumulator._stores.memory.ram import RamRows
from accumulator._stores.memory.row_numbers import as_numbers, count, cut
from accumulator._stores.memory.row_store import RowStore
from accumulator._stores.reading.check import RowChecker, make_checksums
from accumulator._stores.reading.look import disk_nbytes, head_details, open_mark, open_result
from accumulator._stores.reading.saved import SavedResult
from accumulator._stores.writing.zarr_rows import ZarrRows, copy_rows

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
    "check_free",
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
    "reaching",
    "read_only",
    "staged",
    "storage_error",
    "storage_of",
    "stored_layout",
    "write_file",
]

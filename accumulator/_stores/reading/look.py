"""Looking at a store that somebody else may be writing, without changing or disturbing anything."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

from accumulator._stores.files.errors import storage_error
from accumulator._stores.format.arrays import layout_of
from accumulator._stores.format.mark import read_mark
from accumulator._stores.reading.saved import read_result, walk
from accumulator.exceptions import AccumulatorError, ResultFormatError, ResultNotFoundError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    import zarr

    from accumulator._stores.format.mark import Mark
    from accumulator._stores.reading.saved import SavedResult


def open_mark(source: Path) -> Mark:
    """Return what a store says of itself.

    Raises
    ------
    ResultNotFoundError
        There is nothing.
    ResultFormatError
        It is no store.
    StorageError
        The operating system does not let us look.
    """
    try:
        source.stat()
    except FileNotFoundError as cause:
        raise ResultNotFoundError(errno.ENOENT, "there is no saved result", str(source)) from cause
    except OSError as cause:
        raise _unreadable(cause, source) from cause
    if not source.is_dir():
        raise ResultFormatError(f"{source} is a file: a saved result is a folder")
    try:
        return read_mark(source)
    except AccumulatorError:
        raise
    except OSError as cause:
        raise _unreadable(cause, source) from cause


def open_result(source: Path, *, is_partial: bool, most_nbytes: int) -> SavedResult:
    """Open a result for reading alone, as `read_result` does; errors are those of `open_mark` and of that."""
    open_mark(source)
    try:
        return read_result(source, is_partial=is_partial, most_nbytes=most_nbytes)
    except AccumulatorError:
        raise
    except OSError as cause:
        raise _unreadable(cause, source) from cause


def head_details(array: zarr.Array[Any]) -> dict[str, Any]:
    """Return how a head is stored, in terms of JSON."""
    fill = array.fill_value
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "fill_value": fill.item() if isinstance(fill.item(), bool | int) else str(fill),
        "chunks": list(array.chunks),
        "shards": None if array.shards is None else list(array.shards),
        "codecs": [
            codec.to_dict()["name"] for codec in (*array.filters, array.serializer, *array.compressors)
        ],
        "nbytes": int(array.nbytes),
        "files": layout_of(array).n_files,
    }


def disk_nbytes(root: Path) -> int:
    """Return what the files of a store take on disk: holes do not count."""
    nbytes = 0
    for entry in walk(root):
        with contextlib.suppress(FileNotFoundError):  # whoever writes it replaces files
            status = entry.stat(follow_symlinks=False)
            nbytes += getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
    return nbytes


def _unreadable(cause: OSError, source: Path) -> StorageError:
    return storage_error(cause, f"{source} cannot be read")

"""What can be told of a store without reading its rows."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from accumulator._stores.format.arrays import layout_of
from accumulator._stores.reading.trust import walk

if TYPE_CHECKING:
    from pathlib import Path

    import zarr


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

"""The zarr arrays and groups of a store: opened, seen as they are laid out, and where their chunks lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import zarr
from zarr.storage import StorePath

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.format.layout import CONFIG, Layout
from accumulator._stores.format.like_numpy import HeadArray

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from accumulator._stores.format.store import FolderStore
    from accumulator.typing import RowArray


def open_group(store: FolderStore, path: str = "", *, mode: Literal["r", "r+"] = "r+") -> zarr.Group:
    """Open a group as it is now: not in zarr's older format, nor by copies of its arrays' metadata."""
    return zarr.open_group(store, path=path, mode=mode, zarr_format=3, use_consolidated=False)


def over(array: zarr.Array[Any], store: Store, path: str | None = None) -> zarr.Array[Any]:
    """Return an array over another store of its files, at its path by default.

    It writes chunks of the fill value, too.
    """
    place = StorePath(store, array.path if path is None else path)
    return HeadArray(zarr.AsyncArray(metadata=array.metadata, store_path=place, config=CONFIG))


def read_only(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array for reading alone."""
    return over(array, array.store.with_read_only(read_only=True))


def storage_of(array: RowArray) -> Storage:
    """Return how a head is stored in zarr, to store a copy the same way."""
    if not isinstance(array, zarr.Array):
        return Storage()
    metadata: Any = array.metadata
    names = metadata.dimension_names  # of a stranger, who may have named some, or none in an earlier version
    return Storage(
        chunks=array.chunks,
        shards=array.shards,
        compressors=array.compressors or None,
        fill_value=array.fill_value,
        dimension_names=names if names and all(names) else None,
    )


def chunk_path(array: Any, chunk: int) -> Path:
    """Return the file of a chunk of whole rows."""
    key = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
    return Path(array.store.root, array.path, key)


def is_there(array: Any, chunk: int) -> bool:
    """Whether a chunk of whole rows has a file, or must have one: this process wrote it."""
    path = chunk_path(array, chunk)
    return array.store.stamps.knows(path) or path.exists()


def layout_of(array: zarr.Array[Any]) -> Layout:
    """Return how an array is laid out."""
    storage = storage_of(array)
    spec = HeadSpec(array.shape[1:], array.dtype.newbyteorder("<"), storage)
    return Layout(array.shape[0], spec, (array.shards or array.chunks)[0], array.chunks, array.shards)

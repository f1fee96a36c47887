"""The zarr arrays and groups of a store: opened, seen as they are laid out, and where their chunks lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import zarr
from zarr.storage import StorePath

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.format.layout import BUFFER_NBYTES, Layout, layout

if TYPE_CHECKING:
    from accumulator._stores.format.store import FolderStore
    from accumulator.typing import RowArray


def open_group(store: FolderStore, path: str = "", *, mode: Literal["r", "r+"] = "r+") -> zarr.Group:
    """Open a group as it is now: not in zarr's older format, nor by copies of its arrays' metadata."""
    return zarr.open_group(store, path=path, mode=mode, zarr_format=3, use_consolidated=False)


def read_only(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array for reading alone."""
    store = array.store.with_read_only(read_only=True)
    return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=StorePath(store, array.path)))


def write_all(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array, that writes chunks of the fill value like all others: zarr would remove them."""
    config: Any = {"write_empty_chunks": True}
    return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=array.store_path, config=config))


def storage_of(array: RowArray) -> Storage:
    """Return how a head is stored in zarr, to store a copy the same way."""
    if not isinstance(array, zarr.Array):
        return Storage()
    return Storage(
        chunks=array.chunks,
        shards=array.shards,
        compressors=array.compressors or None,
        fill_value=array.fill_value,
    )


def chunk_path(array: Any, chunk: int) -> Path:
    """Return the file of a chunk of whole rows."""
    key = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
    return Path(array.store.root, array.path, key)


def layout_of(array: zarr.Array[Any]) -> Layout:
    """Return how an array is laid out."""
    storage = storage_of(array)
    spec = HeadSpec(array.shape[1:], array.dtype.newbyteorder("<"), storage)
    return Layout(array.shape[0], spec, (array.shards or array.chunks)[0], array.chunks, array.shards)


def stored_layout(n_rows: int, spec: HeadSpec) -> Layout:
    """Return how a head would be laid out once it is stored, with its options as zarr understands them."""
    group = zarr.create_group(store={}, zarr_format=3)
    made, _ = layout(n_rows, [spec], BUFFER_NBYTES)
    return layout_of(made[0].create(group, "0"))

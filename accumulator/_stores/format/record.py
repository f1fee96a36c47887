"""A whole result as one zarr group: ``outputs/0`` and so on, ``output_locs``, ``written``, ``checksums``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from zarr.codecs import Crc32cCodec

from accumulator._stores.files.errors import storage_error
from accumulator._stores.format.arrays import open_group, write_all
from accumulator._stores.format.mark import COMPLETE, Mark, hash_locations, hash_written, set_mark
from accumulator._stores.format.names import OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stores.format.store import FolderStore

RECORD_ROWS: Final = {"written": 2**20, "checksums": 2**16, "output_locs": 2**18}  # of a chunk


def create_parts(store: FolderStore, output_locs: NDArray[Any], n_heads: int) -> None:
    """Add to a group the arrays that belong to all heads; no row is written yet."""
    group = open_group(store)
    n = len(output_locs)
    _create(group, "written", (n,), np.bool_)[:] = np.zeros(n, dtype=np.bool_)
    _create(group, "checksums", (n, n_heads), np.uint64)
    locs = output_locs.astype(np.int64) if output_locs.dtype.char == "g" else output_locs  # zarr has no such
    _create(group, "output_locs", locs.shape, locs.dtype)[:] = locs


def open_record(store: FolderStore) -> dict[str, Any]:
    """Return the arrays that belong to all heads, of which every chunk is written, empty or not."""
    group: Any = open_group(store)
    return {name: write_all(group[name]) for name in RECORD_ROWS}


def name_heads(store: FolderStore, heads: Heads[Any]) -> None:
    """Write each head's name to its array."""
    outputs: Any = open_group(store, OUTPUTS)
    for head, key in enumerate(heads.keys):
        outputs[str(head)].attrs["name"] = str(key)


def complete_result(
    store: FolderStore,
    heads: Heads[Any],
    output_locs: NDArray[Any],
    written: NDArray[np.bool_],
    checksums: Sequence[NDArray[np.uint64]],
) -> None:
    """Add to a group of outputs all that makes it a result; the mark comes last.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    n_heads = len(heads)
    try:
        name_heads(store, heads)
        create_parts(store, output_locs, n_heads)
        record = open_record(store)
        record["written"][:] = written
        if n_heads:
            record["checksums"][:] = np.stack(checksums, axis=1)
        names = None if heads.names is None else list(heads.names)
        mark = Mark(COMPLETE, names, n_heads, len(written), hash_locations(output_locs))
        set_mark(store, attrs.evolve(mark, written=hash_written(written)))
    except OSError as cause:
        raise storage_error(cause, f"the result in {store} cannot be completed") from cause


def record_chunks(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks of one of the arrays that belong to all heads."""
    return (max(1, min(RECORD_ROWS[name], shape[0])), *(max(1, length) for length in shape[1:]))


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=record_chunks(name, shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
        overwrite=True,
    )

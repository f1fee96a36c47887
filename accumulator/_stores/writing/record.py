"""The record: what makes of arrays a result. ``written``, ``checksums``, ``output_locs``, and the mark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from zarr.codecs import Crc32cCodec

from accumulator._inputs.heads import LOCATION
from accumulator._stores.files.errors import telling
from accumulator._stores.format.arrays import open_group
from accumulator._stores.format.layout import CONFIG
from accumulator._stores.format.mark import COMPLETE, MARK, Mark, hash_locations, hash_of, hash_written
from accumulator._stores.format.names import COORDINATES, OUTPUTS, head_keys, record_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import zarr
    from numpy.typing import DTypeLike, NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stores.format.store import FolderStore


def create_record(group: zarr.Group, heads: Heads[Any], output_locs: NDArray[Any]) -> dict[str, Any]:
    """Name the heads of a group, and add the arrays that belong to all of them; no row is written yet."""
    outputs: Any = group[OUTPUTS]
    rows = LOCATION
    for name, key in zip(head_keys(heads.names, len(heads)), heads.keys, strict=True):
        array = outputs[name]
        array.attrs["name"] = str(key)
        rows = (array.metadata.dimension_names or [rows])[0]
    # Patches have a record of their own below that of their maps: no name has two lengths on the way down.
    own = "" if rows == LOCATION else f"{rows}_"
    n = len(output_locs)
    locs = output_locs.astype(np.int64) if output_locs.dtype.char == "g" else output_locs  # zarr has no such
    record = {
        "written": _create(group, "written", (n,), np.bool_, (rows,)),
        "checksums": _create(group, "checksums", (n, len(heads)), np.uint64, (rows, f"{own}head")),
        "output_locs": _create(group, "output_locs", locs.shape, locs.dtype, (rows, f"{own}column")),
    }
    record["written"][:] = False
    record["output_locs"][:] = locs
    return record


def write_mark(group: zarr.Group, mark: Mark) -> None:
    """Write what a group says of itself, and what xarray is to take for coordinates."""
    group.update_attributes({MARK: mark.to_json(), "coordinates": COORDINATES})


def hash_parts(root: Path, mark: Mark) -> dict[str, str]:
    """Return the hash of the metadata of each part that a mark speaks of."""
    return {name: hash_of(root / name / "zarr.json") for name in mark.parts}


def complete_result(  # noqa: PLR0913, PLR0917  what a result is
    store: FolderStore,
    heads: Heads[Any],
    output_locs: NDArray[Any],
    written: NDArray[np.bool_],
    checksums: Sequence[NDArray[np.uint64]],
    n_expected: int | None = None,
) -> None:
    """Add to a group of outputs all that makes it a result; the mark comes last."""
    mark = Mark(
        COMPLETE, n_rows=len(written), locations=hash_locations(output_locs), n_expected=n_expected
    ).of_heads(heads.names, len(heads))
    with telling(f"the result in {store} cannot be completed"):
        group = open_group(store)
        record = create_record(group, heads, output_locs)
        record["written"][:] = written
        if len(heads):
            record["checksums"][:] = np.stack(checksums, axis=1)
        hashes = hash_parts(store.root, mark)
        write_mark(group, attrs.evolve(mark, arrays=hashes, written=hash_written(written)))


def _create(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: DTypeLike, dimension_names: tuple[str, ...]
) -> Any:
    return group.create_array(
        name,
        shape=shape,
        chunks=record_chunks(name, shape),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
        dimension_names=dimension_names,
        chunk_key_encoding={"name": "default", "separator": "."},
        config=CONFIG,
        overwrite=True,
    )

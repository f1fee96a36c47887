"""Arrays as dask and xarray have them: those on disk are read when something is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._inputs.extras import need
from accumulator._inputs.text import listed
from accumulator.exceptions import HeadError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray

    from accumulator._inputs.heads import Heads
    from accumulator.typing import RowArray


def as_dask(heads: Heads[RowArray], *, extra: str = "dask") -> Heads[Any]:
    """Return dask arrays, whose chunks are those stored, or shards."""
    from_array = need("dask.array", extra).from_array

    def lazy(head: Any) -> Any:
        stored = getattr(head, "shards", None) or getattr(head, "chunks", "auto")
        return from_array(head, chunks=stored, name=False)  # a name of its own: no hash of all values

    return heads.like(map(lazy, heads))


def as_xarray(
    heads: Heads[RowArray],
    dimensions: Heads[tuple[str, ...]],
    coordinates: Mapping[str, tuple[tuple[str, ...], Any]],
    attributes: Heads[dict[str, Any]],
) -> xarray.Dataset:
    """Return a variable a head: those in RAM as they are, those on disk as dask arrays.

    HeadError tells of a head that is called as a coordinate or dimension is.
    """
    make = need("xarray", "xarray").Dataset
    others = set(coordinates).union(*dimensions, *(names for names, _ in coordinates.values()))
    if taken := [name for name in heads.by_name() if name in others]:
        raise HeadError(
            f"xarray has a coordinate or dimension that is called as heads are: {listed(map(repr, taken))}; "
            "to_dask() has no such names"
        )
    is_on_disk = any(not isinstance(head, np.ndarray) for head in heads)
    arrays = as_dask(heads, extra="xarray") if is_on_disk else heads
    variables = zip(dimensions, arrays, attributes, strict=True)
    return make(dict(zip(heads.by_name(), variables, strict=True)), dict(coordinates))

"""Numbers that do not count where another patch has one.

Beside the band of a head there is a second one, which knows of each number what has come: the sum of weights,
for "last" which row it is from, for "max" whether any has. 0 means that none has come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator._inputs.options import as_fill_value, by_plain_key, check_heads
from accumulator._stitching.numbers import convert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.numbers import MapSpec
    from accumulator._stitching.weights import Sums, Window
    from accumulator.typing import FillValue, StorageOption


def as_nodata(raw: StorageOption[FillValue | None], heads: Sequence[int | str]) -> Any:
    """Return what does not count, for all heads or in a dict of those that there are."""
    given = by_plain_key("nodata", raw)
    check_heads({"nodata": given}, heads)
    return given


def with_nodata(maps: Heads[MapSpec], given: Any, window: Window, n_rows: int) -> Heads[MapSpec]:
    """Return maps that know which number does not count; an OptionError if it is none that they hold."""
    made = []
    for key, spec in zip(maps.keys, maps, strict=True):
        value = given.get(key) if isinstance(given, Mapping) else given
        if value is not None:
            real = np.zeros((), spec.sum_dtype).real.dtype
            last = np.dtype(np.uint32 if n_rows < 2**32 - 1 else np.uint64)
            known = real if window.is_sum else last if window.blend == "last" else np.dtype(np.bool_)
            value = as_fill_value(value, spec.dtype, key, "nodata")
            spec = attrs.evolve(spec, nodata=value, known_dtype=known)  # noqa: PLW2901
        made.append(spec)
    return maps.like(made)


def is_nodata(values: NDArray[Any], nodata: Any) -> NDArray[np.bool_]:
    """Return which numbers do not count."""
    found: NDArray[np.bool_] = np.isnan(values) if nodata != nodata else values == nodata  # noqa: PLR0124  NaN
    return found


def blend_counting(  # noqa: PLR0913, PLR0917  what it depends on
    blend: str,
    target: NDArray[Any],
    known: NDArray[Any],
    patch: NDArray[Any],
    weights: NDArray[Any] | None,
    nodata: Any,
    row: int,
) -> None:
    """Blend what counts of a part of a patch, that of a row of the list, and let it be known."""
    counts = ~is_nodata(patch, nodata)
    if blend == "last":
        counts &= known <= row
        np.copyto(target, patch, where=counts)
        known[counts] = row + 1
    elif blend == "max":
        np.maximum(target, patch, out=target, where=counts)
        known |= counts
    elif weights is None:
        np.add(target, patch, out=target, where=counts)
        np.add(known, counts, out=known)
    else:
        own = np.where(counts, weights, weights.dtype.type(0))
        product = np.multiply(np.where(own == 0, patch.dtype.type(0), patch), own, dtype=target.dtype)
        np.add(target, product, out=target)
        np.add(known, own, out=known, casting="same_kind")


def finish_counting(  # noqa: PLR0913  what it depends on
    band: NDArray[Any],
    known: NDArray[Any],
    target: NDArray[Any],
    sums: Sums,
    spec: MapSpec,
    *,
    is_sum: bool,
    is_in_place: bool,
) -> None:
    """Do what `finish` does, with what is known of each number for the sums of weights."""
    step = max(1, tuning.now.divided_nbytes // max(1, band[:1].nbytes))
    for part, covered in sums.divisors(band.shape[-1], np.dtype(np.float64), step):
        rows, own, written = (
            each[part].reshape(*each[part].shape[:-2], -1) for each in (band, known, target)
        )
        is_empty = own == 0
        if is_sum:
            np.divide(rows, np.where(is_empty, own.dtype.type(1), own), out=rows, casting="same_kind")
        if not is_in_place:
            convert(rows, written)
        np.copyto(written, spec.nodata, where=is_empty)
        if covered is not None:
            np.copyto(written, spec.fill_value, where=covered == 0)

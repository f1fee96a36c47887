"""Blends in which it is known of each number what has come.

Beside the band of a head there is a second one. It has the sum of weights, for "last" which row a number is
from, for "nearest" how far its patch's centre is, for "max" and "min" whether any has come. 0 means that none
has. It is needed where some numbers do not count: those that are nodata, or that the user gave no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator._inputs.options import as_fill_value, by_plain_key, check_heads
from accumulator._stitching.numbers import convert, wider
from accumulator._stitching.votes import ROUNDED, Votes, votes_dtype
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.blend import Layer
    from accumulator._stitching.numbers import MapSpec
    from accumulator._stitching.weights import Sums
    from accumulator.typing import FillValue, StorageOption


def as_nodata(raw: StorageOption[FillValue | None], heads: Sequence[int | str]) -> Any:
    """Return what does not count, for all heads or in a dict of those that there are."""
    given = by_plain_key("nodata", raw)
    check_heads({"nodata": given}, heads)
    return given


def with_nodata(maps: Heads[MapSpec], given: Any) -> Heads[MapSpec]:
    """Return maps that know which number does not count; an OptionError if it is none that they hold."""
    made = []
    for key, spec in zip(maps.keys, maps, strict=True):
        value = given.get(key) if isinstance(given, Mapping) else given
        value = None if value is None else as_fill_value(value, spec.dtype, key, "nodata")
        made.append(attrs.evolve(spec, nodata=value))
    return maps.like(made)


def counting(spec: MapSpec, n_rows: int, *, has_weights: bool) -> MapSpec:
    """Return a map that knows of each number what has come, if it has to; the list has so many rows."""
    blend, real = spec.window.blend, np.zeros((), spec.sum_dtype).real.dtype
    if blend == "vote":
        slack = ROUNDED if spec.window.is_weighted and not has_weights else 0
        return attrs.evolve(spec, known_dtype=votes_dtype(spec.window, has_weights=has_weights), slack=slack)
    if blend == "nearest":
        most = int(spec.window.distances.max())
        if (most + 1) * (n_rows + 1) >= 2**63:
            raise OptionError(
                f'patches of {spec.window.weights.shape} are too large for blend="nearest" in a list of '
                f"{n_rows} boxes: take another blend, or a smaller scale"
            )
        return attrs.evolve(spec, known_dtype=np.dtype(np.int64), is_known_by_pixel=spec.nodata is None)
    if spec.nodata is None and not has_weights:
        return spec
    if spec.window.is_sum:
        # Weights may be of any size: their products are made in a dtype in which none is lost.
        sums = wider(np.dtype(np.result_type(spec.sum_dtype, np.float32))) if has_weights else spec.sum_dtype
        real = np.zeros((), sums).real.dtype
        is_checked = spec.is_checked and not has_weights
        return attrs.evolve(spec, known_dtype=real, sum_dtype=sums, is_checked=is_checked)
    last = np.dtype(np.uint32 if n_rows < 2**32 - 1 else np.uint64)
    return attrs.evolve(spec, known_dtype=last if blend == "last" else np.dtype(np.bool_))


def is_nodata(values: NDArray[Any], nodata: Any) -> NDArray[np.bool_]:
    """Return which numbers do not count."""
    found: NDArray[np.bool_] = np.isnan(values) if nodata != nodata else values == nodata  # noqa: PLR0124  NaN
    return found


def blend_counting(  # noqa: PLR0913, PLR0917  what it depends on
    layer: Layer,
    target: NDArray[Any],
    known: NDArray[Any] | Votes,
    patch: NDArray[Any],
    number: int,
    of: tuple[slice, ...],
    of_pixels: tuple[slice, ...],
) -> None:
    """Blend what counts of a part of a patch, by its number, and let it be known.

    The part is told in an array whose last axis has all channels of a pixel, and in one of pixels.
    """
    counts = None if layer.nodata is None else ~is_nodata(patch, layer.nodata)
    given = layer.given_at(number, of_pixels)
    row = number if layer.rows is None else int(layer.rows[number])
    if isinstance(known, Votes):
        votes = None if layer.weights is None else layer.weights[of]
        known.add(patch, _times(counts, _times(_repeated(given, layer.n_channels), votes)))
    elif layer.distances is not None:  # "nearest"
        # Of patches that are as near the first of the list counts; those without rows come in its order.
        key = layer.distances[of_pixels] * layer.n_rows + (1 if layer.rows is None else row + 1)
        if not layer.is_known_by_pixel:
            key = _repeated(key, layer.n_channels)
        is_nearer = (known == 0) | (key < known)
        if given is not None:
            is_nearer &= (given > 0) if layer.is_known_by_pixel else _repeated(given > 0, layer.n_channels)
        if counts is not None:
            is_nearer &= counts
        np.copyto(known, key, where=is_nearer)
        if layer.is_known_by_pixel:
            is_nearer = _repeated(is_nearer, layer.n_channels)
        np.copyto(target, patch, where=is_nearer)
    elif layer.blend in {"last", "max", "min"}:
        chosen = np.ones(patch.shape, dtype=bool) if counts is None else counts
        if given is not None:
            chosen &= _repeated(given > 0, layer.n_channels)
        _choose(layer.blend, target, known, patch, chosen, row)
    else:
        own = _times(_repeated(given, layer.n_channels), None if layer.weights is None else layer.weights[of])
        _add(target, known, patch, counts, own)


def _choose(  # noqa: PLR0913, PLR0917  what it depends on
    blend: str,
    target: NDArray[Any],
    known: NDArray[Any],
    patch: NDArray[Any],
    counts: NDArray[np.bool_],
    row: int,
) -> None:
    if blend == "last":
        counts &= known <= row
        np.copyto(target, patch, where=counts)
        known[counts] = row + 1
        return
    (np.maximum if blend == "max" else np.minimum)(target, patch, out=target, where=counts)
    known |= counts


def _add(
    target: NDArray[Any],
    known: NDArray[Any],
    patch: NDArray[Any],
    counts: NDArray[np.bool_] | None,
    weights: NDArray[Any] | None,
) -> None:
    """Add numbers, each as much as it weighs."""
    if weights is None:
        where: Any = True if counts is None else counts
        np.add(target, patch, out=target, where=where)
        np.add(known, True if counts is None else counts, out=known)
        return
    own = weights if counts is None else np.where(counts, weights, weights.dtype.type(0))
    values = np.where(own == 0, patch.dtype.type(0), patch)  # what counts nothing may be NaN
    np.add(target, np.multiply(values, own, dtype=target.dtype, casting="same_kind"), out=target)
    np.add(known, own, out=known, casting="same_kind")


def _times(one: NDArray[Any] | None, other: NDArray[Any] | None) -> NDArray[Any] | None:
    if one is None or other is None:
        return other if one is None else one
    product: NDArray[Any] = one * other
    return product


def _repeated(values: Any, n_channels: int) -> Any:
    """Return what pixels have for each of their channels, which lie one after the other.

    What has one number on the last axis is the same for all of it, and stays so.
    """
    is_one = values is None or n_channels == 1 or values.shape[-1] == 1
    return values if is_one else np.repeat(values, n_channels, axis=-1)


def finish_counting(
    band: NDArray[Any],
    known: NDArray[Any] | Votes,
    target: NDArray[Any],
    sums: Sums,
    spec: MapSpec,
) -> None:
    """Do what `finish` does, with what is known of each number for the sums of weights."""
    if isinstance(known, Votes):
        band, known = known.won()
    is_in_place = target.ctypes.data == band.ctypes.data
    step = max(1, tuning.now.divided_nbytes // max(1, band[:1].nbytes))
    n_channels, empty = band.shape[-1], spec.fill_value if spec.nodata is None else spec.nodata
    for part, covered in sums.divisors(n_channels, np.dtype(np.float64), step):
        rows, own, written = (
            each[part].reshape(*each[part].shape[:-2], -1) for each in (band, known, target)
        )
        is_empty = own == 0
        if spec.is_known_by_pixel:
            is_empty = _repeated(is_empty, n_channels)
        if spec.window.is_sum:
            np.divide(rows, np.where(is_empty, own.dtype.type(1), own), out=rows, casting="same_kind")
        if not is_in_place:
            convert(rows, written)
        np.copyto(written, empty, where=is_empty)
        if covered is not None and spec.nodata is not None:
            np.copyto(written, spec.fill_value, where=covered == 0)

"""The arithmetic of a band: patches are added to it on all cores, and at the end it is divided.

The cores share a push by rows of the map, so that no two write one pixel. NumPy's loops run as fast as the
memory once its buffer is made smaller than a row: otherwise it copies each row through it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from accumulator._inputs import tuning
from accumulator._stitching.counting import blend_counting, finish_counting, is_nodata
from accumulator._stitching.numbers import convert, is_large
from accumulator._stitching.votes import Votes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from accumulator._stitching.numbers import MapSpec
    from accumulator._stitching.parts import Share
    from accumulator._stitching.weights import Sums

Mask: TypeAlias = "Callable[[Share, int, int], NDArray[np.bool_] | bool]"

_BUFFER_ITEMS: Final = 1024


class Layer(NamedTuple):
    """One head of a push."""

    blend: str
    patches: NDArray[Any]  # (n, h, ..., w * channels): what was pushed, contiguous; or ``(n, channels)``
    bands: dict[int, NDArray[Any]]  # where it goes, by the number of the band
    # (h, ..., w * channels): what its numbers count; None where all count the same
    weights: NDArray[Any] | None
    has_zeros: bool  # whether some of them count nothing, whatever they are
    n_channels: int  # how many numbers a pixel has
    is_checked: bool  # whether values may be too large to be added up
    nodata: Any = None  # what does not count where another patch has a number
    known: Mapping[int, NDArray[Any] | Votes] = {}  # of each number then, by the number of the band
    is_known_by_pixel: bool = False
    rows: NDArray[np.intp] | None = None  # of the list, of each patch; None where patches are in its order
    box: tuple[int, ...] | None = None  # the spatial shape that a patch fills with its one value
    given: NDArray[Any] | None = None  # (n, h, ..., w): what the user says that pixels count
    distances: NDArray[np.int64] | None = None  # (h, ..., w): of pixels from the patch's centre
    n_rows: int = 0  # of the list

    def patch(self, number: int) -> NDArray[Any]:
        """Return a patch, ``(h, ..., w * channels)``."""
        values: NDArray[Any] = self.patches[number]
        if self.box is None:
            return values
        line: NDArray[Any] = np.tile(values, self.box[-1])
        return np.broadcast_to(line, (*self.box[:-1], len(line)))

    def counting(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values with nothing for what does not count."""
        return values if self.nodata is None else np.where(is_nodata(values, self.nodata), 0, values)


def blend_share(layers: Sequence[Layer], share: Share, large: set[int], mask: Mask) -> None:
    """Blend the parts of a share that are not done yet, until one has values too large to be added up.

    ``large`` gets the numbers of such layers. ``mask`` tells which numbers of a part "last" takes.
    """
    slices = [share.slices(layer.n_channels) for layer in layers]
    pixels = share.slices(1) if any(layer.known for layer in layers) else slices[0]
    checked = [number for number, layer in enumerate(layers) if layer.is_checked]
    scratch = [_scratch(layer, share) for layer in layers]
    n_checked = share.done
    for part in range(share.done, len(share.patches)):
        if checked and part == n_checked:
            n_checked = _look_ahead(layers, share, part, checked, large)
        if large:
            return
        number, band = share.patches[part], share.bands[part]
        for layer, (at, of), products in zip(layers, slices, scratch, strict=True):
            target, patch = layer.bands[band][at[part]], layer.patch(number)[of[part]]
            if layer.known:
                place = pixels[0][part] if layer.is_known_by_pixel else at[part]
                known = layer.known[band]
                known = known.part(partial(_at, place)) if isinstance(known, Votes) else known[place]
                blend_counting(layer, target, known, patch, number, of[part], pixels[1][part])
            elif layer.blend == "last":
                np.copyto(target, patch, where=mask(share, part, layer.n_channels))
            elif layer.blend == "max":
                np.maximum(target, patch, out=target)
            elif layer.blend == "min":
                np.minimum(target, patch, out=target)
            elif layer.weights is None:
                np.add(target, patch, out=target)
            else:
                weights = layer.weights[of[part]]
                _add_weighted(target, patch, weights, products, has_zeros=layer.has_zeros)
        share.done = part + 1


def _at(place: tuple[slice, ...], array: NDArray[Any]) -> NDArray[Any]:
    return flat(array)[place]


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array with its channels laid one after the other: a view, where they lie so."""
    *axes, last, n_channels = array.shape
    return array.reshape(*axes, last * n_channels)


def _scratch(layer: Layer, share: Share) -> NDArray[Any]:
    """Return room for the products of a part, used again and again as it is in the cache."""
    if layer.weights is None or layer.known:
        return np.empty(0)
    largest = int((share.of[:, 1] - share.of[:, 0]).prod(axis=1).max())
    return np.empty(largest * layer.n_channels, layer.bands[share.bands[0]].dtype)


def _look_ahead(layers: Sequence[Layer], share: Share, part: int, checked: list[int], large: set[int]) -> int:
    """Look for large values in parts of patches that follow each other, before they are added from the cache.

    Returns the first part that was not looked at.
    """
    patches = share.patches
    first, stop = patches[part], part + 1
    nbytes = sum(layers[number].patches[first].nbytes for number in checked)
    most = tuning.now.patch_part_nbytes // max(1, nbytes)
    while stop < min(part + most, len(patches)) and patches[stop] == patches[stop - 1] + 1:
        stop += 1
    for number in checked:
        layer = layers[number]
        box: tuple[Any, ...] = (slice(first, first + stop - part),)
        if stop == part + 1 and layer.box is None:
            box = (first, slice(*share.of[part, :, 0].tolist()))
        if _has_large(layer.counting(layer.patches[box])):
            large.add(number)
    return stop


def _has_large(values: NDArray[Any]) -> bool:
    flat = values.reshape(-1).view(values.real.dtype)
    # The sum of squares is finite, unless there is much to look at: it takes one reading, not two.
    return not math.isfinite(np.dot(flat, flat)) and is_large(flat)


def _add_weighted(
    target: NDArray[Any],
    patch: NDArray[Any],
    weights: NDArray[Any],
    products: NDArray[Any],
    *,
    has_zeros: bool,
) -> None:
    # What counts nothing may be NaN.
    values = np.where(weights == 0, 0, patch) if has_zeros else patch
    product = products[: target.size].reshape(target.shape)
    np.multiply(values, weights, out=product, dtype=target.dtype)
    np.add(target, product, out=target)


def finish(
    band: NDArray[Any], known: NDArray[Any] | Votes | None, target: NDArray[Any], sums: Sums, spec: MapSpec
) -> None:
    """Divide rows of a band, which are changed, by the sums of weights, and write them as rows of the map.

    Where it is ``known`` of each number what has come, that decides.
    """
    if known is not None:
        finish_counting(band, known, target, sums, spec)
        return
    is_in_place = target.ctypes.data == band.ctypes.data
    n_channels, is_sum = band.shape[-1], spec.window.is_sum
    real = np.zeros((), band.dtype).real.dtype if band.dtype.kind in "fc" else np.dtype(np.float32)
    has_gaps = sums.has_gaps
    step = max(1, tuning.now.divided_nbytes // max(1, band[:1].nbytes))
    for part, divisor in sums.divisors(n_channels, real, step) if is_sum or has_gaps else _strips(band, step):
        rows, written = (each[part].reshape(*each[part].shape[:-2], -1) for each in (band, target))
        gaps = divisor == 0 if has_gaps and divisor is not None else None
        if is_sum and divisor is not None:
            np.divide(rows, divisor if gaps is None else np.where(gaps, real.type(1), divisor), out=rows)
        if not is_in_place:
            convert(rows, written)
        if gaps is not None:
            np.copyto(written, spec.fill_value, where=gaps)


def _strips(band: NDArray[Any], step: int) -> Iterator[tuple[slice, None]]:
    for start in range(0, len(band), step):
        yield slice(start, start + step), None


def quick(task: Callable[[], None]) -> None:
    """Do a task with a small buffer for NumPy, for which NaN and infinity are values like others."""
    size = np.getbufsize()
    with np.errstate(all="ignore"):
        np.setbufsize(_BUFFER_ITEMS)
        try:
            task()
        finally:
            np.setbufsize(size)

"""In which dtype patches are added up, and how a sum becomes a value of the map.

Sums are made in a dtype that holds them: float32 where that is as exact as the result needs, a wider one
otherwise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._stitching.votes import N_SLOTS
from accumulator.exceptions import HeadDtypeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from accumulator._stitching.blends import Window
    from accumulator._stitching.reduce import Reduced

FEW: Final = 64  # additions after which float32 is still float32: an error of a few last digits
# Weights up to which a dtype holds the products: of any value whose square is finite, too, and a few of them.
_MOST_WEIGHT: Final[Mapping[str, float]] = {"f": 2.0**50, "F": 2.0**50, "d": 2.0**500, "D": 2.0**500}
_WIDER: Final[Mapping[np.dtype[Any], np.dtype[Any]]] = {
    np.dtype(np.float32): np.dtype(np.float64),
    np.dtype(np.float64): np.dtype(np.longdouble),
    np.dtype(np.complex64): np.dtype(np.complex128),
    np.dtype(np.complex128): np.dtype(np.clongdouble),
}


@attrs.frozen(eq=False)
class MapSpec:
    """One head of the map."""

    window: Window
    patch: tuple[int, ...]  # a patch's spatial shape
    channels: tuple[int, ...]  # the shape behind the spatial axes: ``(C,)``, or nothing
    dtype: np.dtype[Any]  # of the blended values
    fill_value: Any  # of pixels that nothing covers
    sum_dtype: np.dtype[Any]  # of bands
    is_checked: bool  # whether values may be so large that their sum is infinite in `sum_dtype`
    nodata: Any = None  # what does not count where another patch has a number
    known_dtype: np.dtype[Any] | None = None  # of what is known of each number; None where that is not needed
    is_known_by_pixel: bool = False  # as all channels of a pixel come from one patch
    is_spread: bool = False  # whether a patch has one value for its whole box
    slack: int = 0  # votes that differ by no more are as many
    reduced: Reduced | None = None  # what is made of bands before they are stored

    @property
    def pixel_nbytes(self) -> int:
        """Bytes of a pixel in a band."""
        known = 0 if self.known_dtype is None else self.known_dtype.itemsize
        if self.window.blend == "vote":
            known = N_SLOTS * (known + self.dtype.itemsize)
        return self.n_channels * self.sum_dtype.itemsize + known * (
            1 if self.is_known_by_pixel else self.n_channels
        )

    @property
    def stored_channels(self) -> tuple[int, ...]:
        """The shape behind the spatial axes of what is stored."""
        return self.channels if self.reduced is None else self.reduced.channels

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The dtype of what is stored."""
        return self.dtype if self.reduced is None else self.reduced.dtype

    def patches_shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of so many patches, channels in one axis."""
        return (n, self.n_channels) if self.is_spread else (n, *self.patch, self.n_channels)

    @property
    def n_channels(self) -> int:
        """Numbers a pixel."""
        return math.prod(self.channels)


def sum_dtype(head: np.dtype[Any], window: Window, n_overlaps: int) -> np.dtype[Any]:
    """Return the dtype in which patches of a dtype are blended."""
    head = head.newbyteorder("=")
    if not window.is_sum:
        return head
    if head.kind in "biu":
        # A mean of integers is rounded, so that it must not be off by half of 1 / n_overlaps.
        bits = 1 if head.kind == "b" else 8 * head.itemsize
        if not window.is_weighted and 2 * n_overlaps * 2**bits <= 2**24:
            return np.dtype(np.float32)
        return _for_weights(np.dtype(np.float64 if bits <= 32 else np.longdouble), window)
    single = np.result_type(head, np.float32)
    return _for_weights(single if n_overlaps <= FEW else wider(single), window)


def _for_weights(sums: np.dtype[Any], window: Window) -> np.dtype[Any]:
    """Return a dtype that holds products with the largest weight, too."""
    while window.is_weighted and window.largest > _MOST_WEIGHT.get(sums.char, np.inf):
        sums = wider(sums)
    return sums


def is_large(values: NDArray[Any]) -> bool:
    """Whether the sum of a few such values, times a weight, may be infinite in their dtype."""
    if values.dtype.kind == "c":
        return is_large(values.real) or is_large(values.imag)
    largest = max(values.max(initial=0), -values.min(initial=0))
    if not np.isfinite(largest):  # what is infinite or none at all stays so, whatever the dtype
        largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    largest = float(largest) * _MOST_WEIGHT.get(values.dtype.char, 1)
    return bool(largest >= np.finfo(values.dtype).max / (2 * FEW))


def wider(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the next dtype whose numbers go further; the same where there is none."""
    return _WIDER.get(dtype, dtype)


def mean_dtype(head: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which several passes are averaged."""
    return np.dtype(np.complex128 if head.kind == "c" else np.float64)


def result_dtype(head: np.dtype[Any], label: str) -> np.dtype[Any]:
    """Return the dtype of a map."""
    if head.char in "gG":
        raise HeadDtypeError(f"{label} has dtype {head}, which zarr cannot store: use float64")
    return head


def blank(dtype: np.dtype[Any], blend: str) -> Any:
    """Return what a band of a dtype has before anything is blended into it."""
    if blend not in {"max", "min"} or dtype.kind == "b":
        return blend == "min"
    if dtype.kind == "f":
        return -np.inf if blend == "max" else np.inf
    return np.iinfo(dtype).min if blend == "max" else np.iinfo(dtype).max


def convert(values: NDArray[Any], target: NDArray[Any]) -> None:
    """Write means to an array of the map's dtype: integers to the nearest, bools to what half or more are.

    Numbers beyond the dtype's range become its nearest; a tie goes to the even one. ``values`` may be
    changed.
    """
    if target.dtype.kind == "b" and values.dtype.kind != "b":
        np.greater_equal(values, 0.5, out=target)
    elif target.dtype.kind in "iu":
        if values.dtype.kind not in "fc":  # they were chosen, and are of this dtype
            np.copyto(target, values)
            return
        limits = np.iinfo(target.dtype)
        np.rint(values, out=values)
        # The largest integers of 64 bits have no float64 of their own: what is above them is set after.
        is_over, is_under = values >= limits.max, values <= limits.min
        with np.errstate(invalid="ignore"):
            np.copyto(target, values, casting="unsafe")
        target[is_over], target[is_under] = limits.max, limits.min
    else:
        with np.errstate(over="ignore"):
            np.copyto(target, values, casting="same_kind")
        if values.dtype.itemsize > target.dtype.itemsize:
            _stay_finite(values, target)


def _stay_finite(values: NDArray[Any], target: NDArray[Any]) -> None:
    """Let what became infinite when it was rounded be the largest number."""
    if target.dtype.kind == "c":
        _stay_finite(values.real, target.real)
        _stay_finite(values.imag, target.imag)
        return
    became = np.isinf(target)
    if became.any():
        became &= np.isfinite(values)
        largest = np.finfo(target.dtype).max
        target[became] = np.where(values[became] > 0, largest, -largest)


def repeated_weights(spec: MapSpec) -> NDArray[Any] | None:
    """Return the weights with one number for each of a patch; None where all are 1."""
    window = spec.window
    if not window.is_weighted:
        return None
    weights = window.votes if window.blend == "vote" else window.weights
    real = np.float64 if window.blend == "vote" else np.zeros((), spec.sum_dtype).real.dtype
    return np.repeat(weights.astype(real), spec.n_channels, axis=-1)

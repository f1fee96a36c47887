"""Boxes in pixels of one map: where they begin and end, and how large the map is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs.arguments import FAR
from accumulator._stitching.grid import Grid
from accumulator.exceptions import LocationError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._stitching.explain import Misfit
    from accumulator._stitching.frame import Frame


@attrs.frozen(eq=False)
class Boxes:
    """Boxes in pixels of one map."""

    first: NDArray[np.int64]  # (N, d): where they begin
    last: NDArray[np.int64]  # where they end, or where their patch has to, if they are as long
    length: NDArray[Any]  # exactly
    shape: NDArray[np.int64] | None  # of the map, if it is known
    ends: NDArray[np.int64]  # (d,): where the last box ends
    slack: int  # pixels by which an end may be off, as it is rounded

    @classmethod
    def of(
        cls, frame: Frame, scale: NDArray[np.float64] | None, shape: list[int] | None, label: str
    ) -> Boxes:
        if scale is not None and len(frame.start):
            largest = max(np.abs(frame.start).max(), np.abs(frame.stop).max(), np.abs(frame.first).max())
            if float(largest) * scale.max() > FAR:
                raise LocationError(f"scale makes coordinates of {label} that are beyond 2**61")
        origin = pixels(frame.first, scale)
        first, last = pixels(frame.start, scale) - origin, pixels(frame.stop, scale) - origin
        length = frame.stop - frame.start if scale is None else (frame.stop - frame.start) * scale
        asked = None if shape is None else np.array(shape, dtype=np.int64)
        return cls(first, last, length, asked, last.max(axis=0, initial=0), int(scale is not None))

    @property
    def may_be_cut(self) -> NDArray[np.bool_]:
        """Which boxes end with the map, and do not begin with it, ``(N, d)``."""
        end = self.ends if self.shape is None else self.shape
        may_be: NDArray[np.bool_] = (np.abs(self.last - end) <= self.slack) & (self.first > 0)
        return may_be

    def laid(
        self, patch: NDArray[np.int64], misfit: Misfit, *, may_be_shorter: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
        """Return where boxes begin and end, and the map's shape."""
        misfit.refuse_larger(self.length >= patch + 1)
        is_shorter = self.length <= patch - 1
        stop = np.where(
            is_shorter,
            np.maximum(self.first + 1, np.minimum(self.last, self.first + patch)),
            self.first + patch,
        )
        shape = np.array(shape_of(stop, self.shape, misfit.label))
        if is_shorter.any() and not may_be_shorter:
            is_inside = np.all((stop > 0) & (self.first < shape), axis=1, keepdims=True)
            ends, begins = np.abs(self.last - shape) <= self.slack, self.first <= 0
            # Where the map ends is known from boxes alone, if nobody said it: one of them has to be whole.
            is_known = np.array([self.shape is not None or not column.all() for column in is_shorter.T])
            is_wrong = is_shorter & ~(ends & ~begins & is_known) & is_inside
            with_boxes = np.abs(self.last - self.ends) <= self.slack
            if self.shape is not None and not (is_shorter & ~(with_boxes & ~begins)).any():
                misfit.refuse_shape(is_wrong, tuple(shape.tolist()), tuple(self.ends.tolist()))
            misfit.refuse_shorter(is_wrong, begins, ends, is_known, tuple(shape.tolist()))
        return self.first, stop, tuple(shape.tolist())


def pixels(places: NDArray[Any], scale: NDArray[np.float64] | None) -> NDArray[np.int64]:
    """Return the nearest whole pixels of places, half-way the next."""
    if scale is None and places.dtype.kind == "i":
        return places
    exact = places if scale is None else places * scale
    below = np.floor(exact)
    nearest: NDArray[np.int64] = (below + (exact - below >= 0.5)).astype(np.int64)
    return nearest


def shape_of(stop: NDArray[np.int64], asked: NDArray[np.int64] | None, label: str) -> tuple[int, ...]:
    """Return the shape of a map, which ends with the last box if nobody asked for another."""
    shape: tuple[int, ...] = tuple((stop.max(axis=0, initial=0) if asked is None else asked).tolist())
    if min(shape) < 1:
        raise OptionError(
            f"the map of {label} would have the spatial shape {shape} in its scale: nothing lies behind "
            'origin; give origin="min", another origin, or output_shape'
        )
    return shape


def as_grid(
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    shape: tuple[int, ...],
    patch: tuple[int, ...],
    before: NDArray[np.int64] | int = 0,
) -> Grid:
    """Return boxes cropped to the map; so many pixels of their patches lie before them."""
    n = len(shape)
    low, high = np.clip(start, 0, shape), np.clip(stop, 0, shape)
    skip = low - start + before
    if n == 1:
        zeros = np.zeros_like(low)
        low, high, skip = (np.hstack(pair) for pair in ((low, zeros), (high, zeros + 1), (skip, zeros)))
        shape, patch = (*shape, 1), (*patch, 1)
    return Grid(shape, patch, low, high, skip, n)

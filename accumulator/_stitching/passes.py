"""Several passes over one box become one patch: their mean, which is blended when all have come.

Bands cannot know how many passes are to come. So the mean of each box is kept, as an accumulator keeps rows,
in RAM or on disk, and the maps are made of the means at the end. A box counts once however often it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._core.canvas import Canvas
from accumulator._inputs import tuning
from accumulator._inputs.heads import Heads
from accumulator._stitching.counting import is_nodata
from accumulator._stitching.numbers import mean_dtype
from accumulator._stores.memory.row_numbers import without_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator._core.plan import Budget
    from accumulator._stitching.grid import Grid
    from accumulator._stitching.numbers import MapSpec


@attrs.define(eq=False)
class Passes:
    """The mean of each box so far; for heads with nodata also how many passes each number has."""

    locs: NDArray[Any]
    maps: Heads[MapSpec]
    canvas: Canvas
    n: NDArray[np.int64]  # (N,): passes over each box
    is_torn: bool = False  # whether an interrupt left a push half-done
    _came: NDArray[np.intp] | None = None  # the boxes to be blended, once no pass comes any more
    _blended: NDArray[np.bool_] = attrs.field(factory=lambda: np.zeros(0, dtype=bool))

    @classmethod
    def start(
        cls,
        locs: NDArray[Any],
        maps: Heads[MapSpec],
        budget: Budget,
    ) -> Passes:
        """Make room for the means of all boxes."""
        canvas = Canvas(len(locs), budget, "last")
        passes = cls(locs, maps, canvas, np.zeros(len(locs), dtype=np.int64))
        blank = [np.empty(spec.patches_shape(0), mean_dtype(spec.dtype)) for spec in maps]
        counts = [
            np.empty(head.shape, np.uint32) for head, spec in zip(blank, maps, strict=True) if _counts(spec)
        ]
        canvas.place(Heads((*blank, *counts)), slice(0, 0), 0, locs)
        return passes

    def add(self, rows: NDArray[np.intp], heads: list[NDArray[Any]]) -> None:
        """Take patches into the means of their boxes; a box may come twice. After an error none was taken."""
        boxes, place = np.unique(rows, return_inverse=True)
        store = self.canvas.store
        if not len(rows) or store is None:
            return
        held, n = store.get(boxes), self.n[boxes]
        means, counts = held[: len(heads)], iter(held[len(heads) :])
        by_head = [next(counts) if _counts(spec) else None for spec in self.maps]
        for part in _one_by_one(place):
            at = place[part]
            n[at] += 1
            for mean, known, head, spec in zip(means, by_head, heads, self.maps, strict=True):
                values = head[part].reshape(len(part), *mean.shape[1:]).astype(mean.dtype)
                k: NDArray[Any] = n[at].reshape(-1, *(1 for _ in mean.shape[1:]))
                if known is not None:
                    is_value = ~is_nodata(values, spec.nodata)
                    known[at] += is_value
                    k, values = np.maximum(known[at], 1), np.where(is_value, values, mean[at])
                mean[at] = _joined(mean[at], values, k)
        self.is_torn = True
        try:
            self.canvas.place(Heads(tuple(held)), boxes, 0, self.locs)
        except Exception:
            self.is_torn = False
            raise
        self.n[boxes] = n
        self.is_torn = False

    @property
    def is_ended(self) -> bool:
        """Whether no pass comes any more."""
        return self._came is not None

    def end(self, grid: Grid) -> tuple[Grid, NDArray[np.bool_]]:
        """Return the boxes that came, and a record of which of them are blended."""
        self._came = np.flatnonzero(self.n)
        self._blended = np.zeros(len(self._came), dtype=bool)
        return grid.of(self._came), self._blended

    def left(self, grid: Grid) -> Iterator[NDArray[np.intp]]:
        """Yield some of those boxes that are not blended, by their numbers among them, from top to bottom."""
        rows = np.flatnonzero(~self._blended)
        rows = rows[np.argsort(grid.start[rows, 0], kind="stable")]
        step = max(1, tuning.now.read_nbytes * len(self.n) // max(1, self.canvas.nbytes))
        for first in range(0, len(rows), step):
            yield rows[first : first + step]

    def close(self) -> None:
        """Forget all passes."""
        self.canvas.stop()
        self.canvas.close()

    def means(self, rows: NDArray[np.intp]) -> list[NDArray[Any]]:
        """Return the patches that boxes count as, by their numbers among those that came."""
        store, boxes = self.canvas.store, rows if self._came is None else self._came[rows]
        held = [] if store is None else store.get(boxes)
        counts = iter(held[len(self.maps) :])
        patches = []
        for mean, spec in zip(held, self.maps, strict=False):
            k: NDArray[Any] = self.n[boxes].reshape(-1, *(1 for _ in mean.shape[1:]))
            known = next(counts) if _counts(spec) else None
            k = k if known is None else np.maximum(known, 1)
            if spec.dtype.kind in "biu":
                mean = np.rint(mean * k) / k  # noqa: PLW2901  the sum is a whole number: ties are ties
            if known is not None:
                mean[is_nodata(mean, spec.nodata) & (known > 0)] = _beside(spec.nodata)
                mean[known == 0] = spec.nodata
            patches.append(mean)
        return patches


def _counts(spec: MapSpec) -> bool:
    return spec.nodata is not None


def _one_by_one(places: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Yield positions of which none has the place of another, those that come first first."""
    left = np.arange(len(places))
    while len(left):
        kept = without_repeats(places[left], is_last=False)
        yield left[kept]
        left = np.delete(left, kept)


def _joined(mean: NDArray[Any], values: NDArray[Any], k: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of k numbers, from that of the others and the last; no sum of them gets too large."""
    with np.errstate(all="ignore"):
        joined: NDArray[Any] = mean + (values / k - mean / k)
        # What is infinite stays so, and what is none, too.
        return np.where(np.isfinite(mean) & np.isfinite(values), joined, mean + values)


def _beside(nodata: Any) -> complex:
    """Return nearly the number that does not count: for a mean that happens to be it."""
    real = float(np.nextafter(float(np.real(nodata)), np.inf))
    return complex(real, float(np.imag(nodata))) if np.iscomplexobj(nodata) else real

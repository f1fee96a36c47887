"""Maps of a result: tiles side by side, tiles blended, and how steep their seams are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from accumulator import FullBatch, StitchedMap, stitch
from accumulator._demo.tiles import STRIDE, TILE, without_overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator.typing import RowArray


class Maps(NamedTuple):
    """One result stitched twice."""

    beside: StitchedMap  # "probability" of tiles that lie side by side: what a loop without overlap gives
    blended: StitchedMap  # both heads of all tiles, which overlap by half, with Hann weights

    @property
    def seams(self) -> tuple[float, float]:
        """The `seam_ratio` of both; blended tiles have twice as many borders."""
        beside, blended = (
            seam_ratio(head_of(stitched, "probability"), stitched.coverage(), period)
            for stitched, period in zip(self, (TILE, STRIDE), strict=True)
        )
        return beside, blended


@contextlib.contextmanager
def stitch_maps(result: FullBatch, shape: tuple[int, ...], **options: Any) -> Iterator[Maps]:
    """Stitch a result of the demo with and without overlap; ``options`` say where the maps go."""
    is_beside = without_overlap(result.output_locs) & result.written
    alone = FullBatch(result.outputs, result.output_locs, is_beside)
    with (
        stitch(alone, heads=["probability"], blend="last", output_shape=shape, **options) as beside,
        stitch(result, blend="hann", output_shape=shape, **options) as blended,
    ):
        yield Maps(beside, blended)


def heads_of(result: FullBatch | StitchedMap) -> dict[str, RowArray]:
    """Return all heads: a dict, because named ones were pushed."""
    return cast("dict[str, RowArray]", result.outputs)


def head_of(result: FullBatch | StitchedMap, name: str) -> NDArray[Any]:
    """Return one head as an array in memory."""
    return np.asarray(heads_of(result)[name])


def seam_ratio(values: NDArray[Any], coverage: NDArray[np.uint32], period: int) -> float:
    """Return how much steeper a map is across the borders of its tiles than elsewhere; 1 is no seam.

    The mean absolute difference of neighbours with a border between them, divided by that of all others, over
    both directions and all channels. Only pixels that tiles cover count. NaN if no border is among them.
    """
    across, elsewhere = [], []
    for axis in (0, 1):
        upright, covered = np.moveaxis(values, axis, 0), np.moveaxis(coverage > 0, axis, 0)
        steps = np.abs(np.diff(upright.astype(np.float32), axis=0)).mean(axis=-1)
        is_inside = covered[1:] & covered[:-1]
        is_border = np.arange(1, len(upright)) % period == 0
        across.append(steps[is_border][is_inside[is_border]])
        elsewhere.append(steps[~is_border][is_inside[~is_border]])
    borders, others = np.concatenate(across), np.concatenate(elsewhere)
    if not borders.size or not others.any():
        return float("nan")
    return float(borders.mean(dtype=np.float64) / others.mean(dtype=np.float64))

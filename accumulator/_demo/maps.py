"""Maps of a result, in five ways, and how steep their seams are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from accumulator import FullBatch, StitchedMap, stitch
from accumulator._demo.tiles import HALO, STRIDE, TILE, middles_of, without_overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator.typing import RowArray

NO_CLASS: Final = 255


class Maps(NamedTuple):
    """One result stitched in five ways."""

    beside: StitchedMap  # "probability" of tiles that lie side by side: what a loop without overlap gives
    blended: StitchedMap  # it and "stain" of all tiles, which overlap by half, with Hann weights
    middles: StitchedMap  # "probability" of the middle of each tile, whose halo is cut off
    classes: StitchedMap  # which class is largest where "probability" is blended, `NO_CLASS` where no tile is
    heat: StitchedMap  # "epithelium", one number a tile, over the whole tile

    @property
    def seams(self) -> tuple[float, float, float]:
        """The `seam_ratio` of the first three: tiles and their middles have borders of their own."""
        beside, blended, middles = (
            seam_ratio(head_of(stitched, "probability"), stitched.coverage(), period, first)
            for stitched, period, first in zip(self[:3], (TILE, STRIDE, STRIDE), (0, 0, HALO), strict=True)
        )
        return beside, blended, middles


@contextlib.contextmanager
def stitch_maps(result: FullBatch, shape: tuple[int, ...], **options: Any) -> Iterator[Maps]:
    """Stitch a result of the demo in each way; ``options`` say where the maps go."""
    locs, written = result.output_locs, result.written
    alone = FullBatch(result.outputs, locs, without_overlap(locs) & written)
    cut = FullBatch(result.outputs, middles_of(locs), written)
    only: dict[str, Any] = {"heads": ["probability"], "output_shape": shape, **options}
    hann: dict[str, Any] = {"blend": "hann", "output_shape": shape, **options}
    with (
        stitch(alone, blend="last", **only) as beside,
        stitch(result, heads=["probability", "stain"], **hann) as blended,
        stitch(cut, blend="last", crop="center", **only) as middles,
        stitch(result, heads=["probability"], reduce="argmax", fill_value=NO_CLASS, **hann) as classes,
        stitch(result, heads=["epithelium"], spread=True, output_shape=shape, **options) as heat,
    ):
        yield Maps(beside, blended, middles, classes, heat)


def heads_of(result: FullBatch | StitchedMap) -> dict[str, RowArray]:
    """Return all heads: a dict, because named ones were pushed."""
    return cast("dict[str, RowArray]", result.outputs)


def head_of(result: FullBatch | StitchedMap, name: str) -> NDArray[Any]:
    """Return one head as an array in memory."""
    return np.asarray(heads_of(result)[name])


def seam_ratio(values: NDArray[Any], coverage: NDArray[np.uint32], period: int, first: int = 0) -> float:
    """Return how much steeper a map is across the borders of its tiles than elsewhere; 1 is no seam.

    The mean absolute difference of neighbours with a border between them, divided by that of all others, over
    both directions and all channels; borders are ``period`` px apart, and one is at ``first``. Only pixels
    that tiles cover count. NaN if no border is among them.
    """
    across, elsewhere = [], []
    for axis in (0, 1):
        upright, covered = np.moveaxis(values, axis, 0), np.moveaxis(coverage > 0, axis, 0)
        steps = np.abs(np.diff(upright.astype(np.float32), axis=0)).mean(axis=-1)
        is_inside = covered[1:] & covered[:-1]
        is_border = (np.arange(1, len(upright)) - first) % period == 0
        across.append(steps[is_border][is_inside[is_border]])
        elsewhere.append(steps[~is_border][is_inside[~is_border]])
    borders, others = np.concatenate(across), np.concatenate(elsewhere)
    if not borders.size or not others.any():
        return float("nan")
    return float(borders.mean(dtype=np.float64) / others.mean(dtype=np.float64))

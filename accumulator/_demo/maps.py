"""Maps of a result: tiles side by side, tiles blended, and how much their seams are to be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import attrs
import numpy as np

from accumulator import Stitcher, stitch
from accumulator._demo.tiles import STRIDE, TILE, without_overlap

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from accumulator import FullBatch, StitchedMap
    from accumulator.typing import RowArray


@attrs.frozen(eq=False)
class Maps:
    """One result stitched twice.

    Attributes
    ----------
    beside : StitchedMap
        "probability" of every second tile in x and y, which lie side by side: what a loop without overlap
        gives.
    blended : StitchedMap
        Both heads of all tiles, which overlap by half, with Hann's weights.
    n_beside, n_blended : int
        How many tiles each was made of.
    """

    beside: StitchedMap
    blended: StitchedMap
    n_beside: int
    n_blended: int

    @property
    def seams_beside(self) -> float:
        """The `seam_ratio` of tiles side by side."""
        return seam_ratio(head_of(self.beside, "probability"), self.beside.coverage(), TILE)

    @property
    def seams_blended(self) -> float:
        """The `seam_ratio` of blended tiles, whose borders are twice as dense."""
        return seam_ratio(head_of(self.blended, "probability"), self.blended.coverage(), STRIDE)

    def __enter__(self) -> Self:
        """Return the maps."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close both maps."""
        self.beside.close()
        self.blended.close()


def stitch_maps(result: FullBatch, shape: tuple[int, ...], **options: Any) -> Maps:
    """Stitch a result of the demo with and without overlap.

    Parameters
    ----------
    result : FullBatch
        With the heads "probability" and "stain"; rows may be missing.
    shape : (height, width)
        Of the slide, in px.
    **options
        Where the maps go, as `Stitcher` takes it.
    """
    blended = stitch(result, blend="hann", output_shape=shape, **options)
    head = cast("dict[str, RowArray]", result.outputs)["probability"]
    rows = np.flatnonzero(without_overlap(result.output_locs) & result.written)
    with Stitcher(result.output_locs, blend="last", output_shape=shape, **options) as stitcher:
        # Without any rows the shapes are told, should the mask leave out all of these tiles.
        nothing = np.empty((0, *head.shape[1:]), head.dtype)
        stitcher.push({"probability": nothing}, result.output_locs[:0])
        for row in rows.tolist():
            patch = np.asarray(head[row : row + 1])
            stitcher.push({"probability": patch}, result.output_locs[row : row + 1])
    return Maps(stitcher.finalize(), blended, len(rows), int(result.written.sum()))


def head_of(maps: StitchedMap, name: str) -> NDArray[Any]:
    """Return one map as an array in memory."""
    return np.asarray(cast("dict[str, RowArray]", maps.outputs)[name])


def seam_ratio(values: NDArray[Any], coverage: NDArray[np.uint32], period: int) -> float:
    """Return how much steeper a map is across the borders of its tiles than elsewhere; 1 is no seam.

    The mean absolute difference of neighbours between which a border is, divided by that of all others, over
    both directions and all channels. Only pixels that tiles cover count. NaN if no border is among them.

    Parameters
    ----------
    values : (height, width, channels) array
        The map.
    coverage : (height, width) array
        How many tiles cover each pixel.
    period : int
        Tiles begin and end at its multiples, in x and in y.
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

"""Maps of one shape: their rows, and the boxes of what has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from accumulator._stitching.blends import Blending, as_window
from accumulator._stitching.weights import Summer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._core.full_batch import FullBatch
    from accumulator._stitching.frame import Lay
    from accumulator._stitching.grid import Grid


@attrs.frozen(eq=False)
class Sheet:
    """The maps of heads whose patches lie alike."""

    heads: tuple[int, ...]  # their numbers
    lay: Lay
    rows: FullBatch  # the maps as rows, which own the files
    grid: Grid  # of the boxes that have come

    def coverage(self, start: int, stop: int | None) -> NDArray[np.uint32]:
        """Return how many boxes cover each pixel of some rows."""
        grid = self.grid
        first, last, _ = slice(start, stop).indices(grid.shape[0])
        touching = grid.is_inside & (grid.start[:, 0] < last) & (grid.stop[:, 0] > first)
        summer = Summer(grid, as_window(Blending("average"), grid.patch))
        counts = summer.band(np.flatnonzero(touching), first, max(first, last))
        return counts.array.astype(np.uint32).reshape(-1, *grid.shape[1 : grid.n_spatial])

"""Tiles, which overlap by half, so that every second one in x and y is a grid without overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from accumulator import grid_locations

if TYPE_CHECKING:
    from numpy.typing import NDArray

TILE: Final = 320
STRIDE: Final = TILE // 2
HALO: Final = (TILE - STRIDE) // 2  # around the middle of a tile, which touches those of its neighbours


def tile_locations(
    height: int, width: int, tissue: NDArray[np.bool_] | None = None, min_tissue: float = 0
) -> NDArray[np.int64]:
    """Return ``[start_x, start_y, end_x, end_y]`` of tiles, all or those with tissue, row by row: ``(N, 4)``.

    The grid starts at the corner of the slide and covers all of it, so that the last tiles reach beyond.
    """
    return grid_locations(
        (height, width), TILE, stride=STRIDE, border="over", mask=tissue, min_mask_ratio=min_tissue
    )


def pad_to_grid(image: NDArray[np.uint8], locs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the image continued by its reflection on the right and below, as far as the tiles reach."""
    height, width = image.shape[:2]
    below, right = locs[:, 3].max() - height, locs[:, 2].max() - width
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="reflect")


def cut_tiles(image: NDArray[np.uint8], locs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the tiles of a padded image: ``(n, TILE, TILE, channels)``."""
    return np.stack([image[y0:y1, x0:x1] for x0, y0, x1, y1 in locs])


def without_overlap(locs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tiles lie side by side, if the others are left out: ``(N,)``."""
    beside: NDArray[np.bool_] = (locs[:, :2] % TILE == 0).all(axis=1)
    return beside


def middles_of(locs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the boxes of the middles of tiles, which lie side by side: ``(N, 4)``."""
    middles: NDArray[np.int64] = np.add(locs, [HALO, HALO, -HALO, -HALO])
    return middles

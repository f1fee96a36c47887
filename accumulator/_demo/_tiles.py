"""Tiles: where they are, how they are cut out of the slide, and how they are laid over it again.

Laying out is plain: later tiles cover earlier ones where they overlap, so that seams are seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import RowArray

TILE: Final = 320
STRIDE: Final = 240


def tile_locations(height: int, width: int) -> NDArray[np.int64]:
    """Return ``[start_x, start_y, end_x, end_y]`` of every tile, row by row: ``(N, 4)``.

    The grid starts at the corner of the slide and covers all of it, so that the last tiles reach beyond.
    """
    start_y, start_x = np.meshgrid(_starts(height), _starts(width), indexing="ij")
    corner = np.stack([start_x.ravel(), start_y.ravel()], axis=1)
    return np.concatenate([corner, corner + TILE], axis=1)


def tissue_share(tissue: NDArray[np.bool_], locs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return which share of each tile, as far as it lies on the slide, is tissue: ``(N,)``."""
    return np.array([tissue[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in locs])


def pad_to_grid(image: NDArray[np.uint8], locs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the image continued by its reflection on the right and below, as far as the tiles reach."""
    height, width = image.shape[:2]
    below, right = locs[:, 3].max() - height, locs[:, 2].max() - width
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="reflect")


def cut_tiles(image: NDArray[np.uint8], locs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the tiles of a padded image: ``(n, TILE, TILE, channels)``."""
    return np.stack([image[y0:y1, x0:x1] for x0, y0, x1, y1 in locs])


def lay_out(
    head: RowArray, locs: NDArray[Any], written: NDArray[np.bool_], shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a head laid over a slide of this height and width, and where on the slide a tile is.

    Returns
    -------
    laid : (height, width, channels) array
        The head; zeros where no tile is.
    covered : (height, width) bool array
        Whether a tile is there.
    """
    height, width = shape
    laid = np.zeros((height, width, *head.shape[3:]), dtype=head.dtype)
    covered = np.zeros((height, width), dtype=np.bool_)
    for row in map(int, np.flatnonzero(written)):
        x0, y0, x1, y1 = locs[row]
        laid[y0:y1, x0:x1] = np.asarray(head[row])[: height - y0, : width - x0]
        covered[y0:y1, x0:x1] = True
    return laid, covered


def _starts(length: int) -> NDArray[np.int64]:
    n_tiles = 1 + max(0, -(-(length - TILE) // STRIDE))
    return np.arange(n_tiles, dtype=np.int64) * STRIDE

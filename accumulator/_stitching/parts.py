"""A push is cut into parts: where patches cross bands, and so that threads share the rows of the map.

All is worked out for many patches at once; what is left for each part is a pair of slices.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs import tuning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._stitching.grid import Grid


@attrs.define(eq=False)
class Share:
    """The parts of patches that one thread blends, in order."""

    patches: list[int]  # each part's patch, by its number in the push
    bands: list[int]  # the band that it goes to
    at: NDArray[np.int64]  # (n, 2, d): where it begins and stops in the band
    of: NDArray[np.int64]  # (n, 2, d): the same in the patch
    done: int = 0  # how many are blended

    def slices(self, n_channels: int) -> tuple[list[tuple[slice, ...]], list[tuple[slice, ...]]]:
        """Return the same as slices of arrays whose channels lie one after the other on the last axis."""
        return _slices(self.at, n_channels), _slices(self.of, n_channels)


@attrs.frozen(eq=False)
class Prepared:
    """A push of which nothing but the blending is left: rows, heads, and what of them each thread does."""

    rows: NDArray[np.intp]
    heads: list[NDArray[Any]]
    shares: list[Share]
    given: Sequence[NDArray[Any] | None]  # what the user says that pixels of each head count


def cuts(grid: Grid, rows: NDArray[np.intp], patch_nbytes: int, n_threads: int) -> list[tuple[int, int]]:
    """Cut the map between its rows, so that each thread has about as much of some patches as the others."""
    now = tuning.now
    is_shared = patch_nbytes >= now.shared_patch_nbytes and patch_nbytes * len(rows) >= now.shared_push_nbytes
    if n_threads == 1 or not is_shared or not len(rows):
        return [(0, grid.shape[0])]
    return list(itertools.pairwise([0, *grid.cuts(rows, n_threads).tolist(), grid.shape[0]]))


def share_of(  # noqa: PLR0913, PLR0917  what it depends on
    grid: Grid, rows: NDArray[np.intp], low: int, high: int, height: int, patch_nbytes: int
) -> Share | None:
    """Return the parts of patches between two rows of the map, None if there are none.

    They are cut at the edges of bands, and large ones so that they stay in the cache; parts of the same rows
    of the map follow each other, so that these stay there, too.
    """
    start, stop = grid.start[rows, 0].clip(low), grid.stop[rows, 0].clip(None, high)
    patches = np.flatnonzero((start < stop) & grid.is_inside[rows])
    if not len(patches):
        return None
    rows, start, stop = rows[patches], start[patches], stop[patches]
    top, bottom = int(start.min()), int(stop.max())
    thickness = -(-grid.patch[0] // -(-patch_nbytes // tuning.now.patch_part_nbytes))
    edges = np.arange(top // height, -(-bottom // height) + 1) * height
    if thickness < grid.patch[0]:
        edges = np.unique(np.concatenate([edges, np.arange(top, bottom, thickness)]))
    first = np.searchsorted(edges, start, "right") - 1
    n_parts = np.searchsorted(edges, stop, "left") - first
    which = np.repeat(np.arange(len(rows)), n_parts)
    strip = np.arange(len(which)) - np.repeat(np.cumsum(n_parts) - n_parts - first, n_parts)
    order = np.argsort(strip, kind="stable")
    which, strip = which[order], strip[order]
    at = np.stack([grid.start[rows], grid.stop[rows]], axis=1)[which]
    at[:, 0, 0] = np.maximum(start[which], edges[strip])
    at[:, 1, 0] = np.minimum(stop[which], edges[strip + 1])
    of = at + (grid.skip[rows] - grid.start[rows])[which][:, None]
    bands = edges[strip] // height
    at[..., 0] -= (bands * height)[:, None]
    return Share(patches[which].tolist(), bands.tolist(), at, of)


def _slices(boxes: NDArray[np.int64], n_channels: int) -> list[tuple[slice, ...]]:
    last = boxes.shape[2] - 1
    ends = [boxes[:, :, axis] * n_channels if axis == last else boxes[:, :, axis] for axis in range(last + 1)]
    return list(zip(*(map(slice, *each.T.tolist()) for each in ends), strict=True))

"""A push is cut into parts: where patches cross bands, and so that threads share the rows of the map.

All is worked out for the whole push at once; what is left for each patch is a pair of slices.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator._stitching._grid import Grid

_GROUP_NBYTES: Final = 2**19  # of patches that are looked at and blended while they are in the cache


class Part(NamedTuple):
    """What of a patch goes to a band: slices of the spatial axes, pixels of the last one counted."""

    patch: int  # its number in the push
    band: int
    at: tuple[tuple[int, int], ...]  # in the band
    of: tuple[tuple[int, int], ...]  # in the patch


def shares(grid: Grid, rows: NDArray[np.intp], n_shares: int) -> list[tuple[int, int]]:
    """Cut the map between two of its rows so that all parts have about as many pixels of patches."""
    height = grid.shape[0]
    if n_shares == 1 or not len(rows):
        return [(0, height)]
    start, stop = grid.start[rows, 0], grid.stop[rows, 0]
    edges, where = np.unique(np.concatenate([start, stop]), return_inverse=True)
    depth = np.cumsum(np.bincount(where.ravel(), np.repeat([1.0, -1.0], len(rows))))
    area = np.concatenate([[0], np.cumsum(depth[:-1] * np.diff(edges))])
    cuts = np.interp(np.arange(1, n_shares) / n_shares * area[-1], area, edges).astype(int).tolist()
    return list(itertools.pairwise([0, *cuts, height]))


def parts_of(grid: Grid, rows: NDArray[np.intp], low: int, high: int, height: int) -> list[Part]:
    """Return the parts of patches that lie between two rows of the map, cut at the edges of bands.

    Parameters
    ----------
    grid : Grid
        Where rows lie.
    rows : int array
        The patches, in the order in which they are to be blended.
    low, high : int
        The rows of the map.
    height : int
        Of a band.
    """
    start, stop, skip = grid.start[rows], grid.stop[rows], grid.skip[rows]
    first, end = start[:, 0].clip(low), stop[:, 0].clip(None, high)
    end = np.where(grid.is_inside[rows], end, first)
    bands = first // height
    n_bands = np.where(first < end, -(-end // height) - bands, 0)
    which = np.repeat(np.arange(len(rows)), n_bands)
    number = np.arange(len(which)) - np.repeat(np.cumsum(n_bands) - n_bands, n_bands) + bands[which]
    top = number * height
    begin = np.maximum(first[which], top)
    size = np.minimum(end[which], top + height) - begin
    in_band = begin - top
    in_patch = skip[which, 0] + begin - start[which, 0]
    across = [
        (tuple(zip(a, b, strict=True)), tuple((c, c + y - x) for x, y, c in zip(a, b, s, strict=True)))
        for a, b, s in zip(start[:, 1:].tolist(), stop[:, 1:].tolist(), skip[:, 1:].tolist(), strict=True)
    ]
    return [
        Part(i, band, ((t, t + n), *across[i][0]), ((p, p + n), *across[i][1]))
        for i, band, t, p, n in zip(
            which.tolist(), number.tolist(), in_band.tolist(), in_patch.tolist(), size.tolist(), strict=True
        )
    ]


def groups(parts: list[Part], patch_nbytes: int) -> Iterator[list[Part]]:
    """Yield parts that stay in the cache together, all of one band and one place on the first axis."""
    most = max(1, _GROUP_NBYTES // max(1, patch_nbytes))
    for _, alike in itertools.groupby(parts, key=lambda part: (part.band, part.at[0], part.of[0])):
        while group := list(itertools.islice(alike, most)):
            yield group


def run_step(group: list[Part]) -> int:
    """Return how far apart on the last axis patches lie that follow each other in a row of a grid, else 0."""
    first, second = group[0], group[1]
    step = second.at[-1][0] - first.at[-1][0]
    width = first.at[-1][1] - first.at[-1][0]
    if step <= 0:
        return 0
    for number, part in enumerate(group):
        begin = first.at[-1][0] + number * step
        is_next = part.patch == first.patch + number and part.at[-1] == (begin, begin + width)
        if not is_next or part.of != first.of or part.at[1:-1] != first.at[1:-1]:
            return 0
    return step

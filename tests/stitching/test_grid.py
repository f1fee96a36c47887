"""Where patches lie: how many meet, and how they are shared and summed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from helpers.map_cases import cases
from helpers.maps import boxes, raster, reference
from hypothesis import given

from accumulator import Stitcher
from accumulator._stitching import parts as _parts
from accumulator._stitching.frame import as_frame
from accumulator._stitching.geometry import as_geometry


def as_grid(locs, patch, shape=None, origin=None):
    """Return the boxes of patches that may be larger."""
    geometry = as_geometry(np.shape(locs)[1], output_shape=shape, origin=origin, crop="start")
    return as_frame(locs, geometry).lay(0, "head 0", tuple(patch)).grid


@pytest.mark.parametrize("starts", [[2, 4], [[2, 2], [2, 4], [4, 2], [4, 4]], [[2, 2, 2], [4, 4, 4]]])
def test_bound_of_overlaps_counts_patches_on_both_sides_of_a_line(starts):
    """Patches of four that begin in different cells of four meet in one pixel, all of them."""
    starts = np.asarray(starts).reshape(len(starts), -1)
    patch = (4,) * starts.shape[1]
    grid = as_grid(boxes(starts, patch), patch)
    assert grid.most_overlaps() >= len(starts)


@given(case=cases())
def test_bound_of_overlaps_is_one(case):
    """No pixel is covered more often than the bound that dtypes are chosen by."""
    locs, shape, origin, values, *_ = case
    grid = as_grid(locs, values.shape[1 : 1 + len(shape)], shape, origin)
    _, coverage, _ = reference(np.zeros(values.shape[: 1 + len(shape)]), locs, shape, origin, "average", 0)
    assert coverage.max() <= grid.most_overlaps() <= 3 ** len(shape) * max(1, coverage.max()) * 2


def test_patches_are_cut_to_equal_shares():
    """A push that is worth it is shared by all threads, each of which has as many pixels to add as others."""
    locs = boxes([[y, x] for y in [*range(0, 40, 4), *range(40, 80, 2)] for x in (0, 8, 9)], (8, 8))
    grid, rows = as_grid(locs, (8, 8)), np.arange(0, len(locs), 2)
    pixels = np.zeros(grid.shape[0], int)
    for row in rows:
        pixels[locs[row, 1] : locs[row, 3]] += 8
    for n in (2, 3, 4):
        parts = _parts.cuts(grid, rows, 2**20, n)
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
        assert parts[-1][1] == grid.shape[0]
        shares = [pixels[start:stop].sum() for start, stop in parts]
        assert len(shares) == n
        assert max(abs(share - pixels.sum() / n) for share in shares) <= pixels.max()
        assert _parts.cuts(grid, rows, 16, n) == _parts.cuts(grid, rows[:0], 2**20, n) == [(0, grid.shape[0])]
    assert _parts.cuts(grid, rows, 2**20, 1) == [(0, grid.shape[0])]


def test_far_apart_patches_take_no_memory_for_what_is_between():
    """What a push is cut into follows from its patches, not from how far apart they lie."""
    locs = np.array([[0, 0, 4, 4], [0, 10**9, 4, 10**9 + 4]])
    grid = as_grid(locs, (4, 4), (10**9 + 4, 4))
    tracemalloc.start()
    try:
        share = _parts.share_of(grid, np.arange(2), 0, grid.shape[0], 2**22, 64)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert share.patches == [0, 1]


def test_grid_that_repeats_is_summed_line_by_line_and_tissue_is_not():
    """Sums of weights of a whole grid and of one with holes agree where no patch is missing."""
    locs = raster((64, 64), (8, 8), (4, 4))
    values = np.random.default_rng(0).random((len(locs), 8, 8), dtype=np.float32)
    whole, holey = (Stitcher(locs, blend="gaussian") for _ in range(2))
    keep = np.arange(len(locs)) != 100
    with whole, holey:
        whole.push(values, locs)
        holey.push(values[keep], locs[keep])
    first, second = whole.finalize(), holey.finalize()
    x, y, *_ = locs[100]
    far = np.ones((64, 64), dtype=bool)
    far[y : y + 8, x : x + 8] = False
    np.testing.assert_allclose(first.outputs[0][far], second.outputs[0][far], rtol=1e-6)
    assert (first.coverage() - second.coverage()).sum() == 64

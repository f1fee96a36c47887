"""Maps of other libraries, made by their own functions, are those that this one makes.

The tests are left out where these libraries are not installed, as in CI. To run them::

    pip install -e . --group test --group bench
    python -m pytest tests/stitching/test_stitch_peers.py

tiatoolbox leaves a patch that is zero throughout out of its counts, so that the mean around it is too large.
"""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
from helpers.peers import leave_out

from accumulator import Stitcher

ROUNDING = 1e-6  # relative; a few last digits of float32


def load(name):
    """Import a library whose own warnings are not this one's, or leave the test out."""
    try:
        return importlib.import_module(name)
    except ImportError:
        leave_out()


@pytest.fixture(autouse=True)
def _peers_may_warn():
    """Let them warn of what is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def random_case(seed, n_axes=2, most_overlaps=4):
    """Return map shape, patch shape, starts in raster order, and patches with channels last."""
    rng = np.random.default_rng(seed)
    patch = rng.integers(4, 13, n_axes)
    strides = [int(rng.integers(-(-size // most_overlaps), size + 1)) for size in patch]
    counts = rng.integers(1, 8 if n_axes == 2 else 4, n_axes)
    shape = patch + strides * (counts - 1)
    starts = np.array(list(np.ndindex(*counts)), dtype=np.int64) * strides
    patches = rng.normal(size=(len(starts), *patch, int(rng.integers(1, 4)))).astype(np.float32)
    return tuple(shape.tolist()), tuple(patch.tolist()), starts, patches


def locs_of(starts, patch):
    """Return boxes, x before y before z."""
    return np.hstack([starts[:, ::-1], starts[:, ::-1] + np.array(patch[::-1])])


def ours(patches, locs, size=5, **options):
    """Stream patches into a map, a few at a time."""
    with Stitcher(locs, memory_threshold=100, **options) as stitcher:
        for start in range(0, len(locs), size):
            stitcher.push(patches[start : start + size], locs[start : start + size])
    return stitcher.finalize().outputs[0]


def assert_same(output, right):
    """Compare maps up to the rounding of float32."""
    assert output.shape == right.shape
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, right, rtol=ROUNDING, atol=ROUNDING)


def toolbox_map(patches, locs, shape, tmp_path):
    """Do what `SemanticSegmentor.infer_wsi` does behind the model: row by row, and then all rows."""
    segmentor = load("tiatoolbox.models.engine.semantic_segmentor")
    locs = locs.copy()  # it changes them
    last = [*(np.flatnonzero(np.diff(locs[:, 1])) + 1).tolist(), len(locs)]
    canvas, count, _, _, rows = segmentor.merge_horizontal(None, None, None, patches, locs, last, shape[1])
    merged = segmentor.merge_vertical_chunkwise(
        canvas, count, rows, None, tmp_path / "merged.zarr", 100, output_shape=shape, verbose=False
    )
    return merged.compute()


@pytest.mark.parametrize("seed", range(12))
def test_a_map_is_that_of_tiatoolbox(seed, tmp_path):
    """However many rows of patches overlap, as long as none is zero throughout."""
    shape, patch, starts, patches = random_case(seed, most_overlaps=6)
    locs = locs_of(starts, patch)
    assert_same(ours(patches, locs), toolbox_map(patches, locs, shape, tmp_path))


def test_boxes_at_the_edge_are_cut_as_tiatoolbox_cuts_them(tmp_path):
    """A box that is smaller than its patch takes the first part of it."""
    starts = 6 * np.array(list(np.ndindex(4, 5)))
    locs = locs_of(starts, (8, 8))
    locs[:, 2:] = np.minimum(locs[:, 2:], [29, 23])
    patches = np.random.default_rng(0).normal(size=(len(locs), 8, 8, 2)).astype(np.float32)
    assert_same(ours(patches, locs), toolbox_map(patches, locs, (23, 29), tmp_path))


def test_rows_with_gaps_are_those_of_tiatoolbox(tmp_path):
    """Patches that a mask leaves out leave zeros behind, or fewer that overlap."""
    rng = np.random.default_rng(1)
    shape, patch = (44, 56), (8, 8)
    starts = 4 * np.array(list(np.ndindex(10, 13)))
    is_corner = (starts == 0).all(axis=1) | (starts == np.array(shape) - patch).all(axis=1)
    starts = starts[(rng.random(len(starts)) < 0.5) | is_corner]
    locs = locs_of(starts, patch)
    patches = rng.normal(size=(len(locs), *patch, 1)).astype(np.float32)
    assert_same(ours(patches, locs), toolbox_map(patches, locs, shape, tmp_path))


def test_canvas_and_counts_are_those_of_tiatoolbox():
    """A row of patches, merged by its innermost function and divided."""
    segmentor = load("tiatoolbox.models.engine.semantic_segmentor")
    locs = np.array([[x, 0, x + 9, 7] for x in range(0, 40, 4)])
    patches = np.random.default_rng(2).normal(size=(len(locs), 7, 9, 3)).astype(np.float32)
    canvas, count = segmentor.merge_batch_to_canvas(patches, locs, (7, 45, 3))
    with Stitcher(locs, memory_threshold=100) as stitcher:
        stitcher.push(patches, locs)
    maps = stitcher.finalize()
    np.testing.assert_array_equal(maps.coverage(), count[..., 0])
    assert_same(maps.outputs[0], canvas / count)


def test_a_patch_of_zeros_counts_here_and_not_in_tiatoolbox(tmp_path):
    """The mean of 2 and 0 is 1: what is different, and why it is."""
    locs = np.array([[0, 0, 4, 4], [2, 0, 6, 4]])
    patches = np.stack([np.full((4, 4, 1), 2, np.float32), np.zeros((4, 4, 1), np.float32)])
    assert ours(patches, locs)[0, :, 0].tolist() == [2, 2, 1, 1, 0, 0]
    assert toolbox_map(patches, locs, (4, 6), tmp_path)[0, :, 0].tolist() == [2, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_axes", [2, 3])
def test_a_map_is_that_of_monai(seed, n_axes):
    """AvgMerger, called a patch at a time."""
    torch, merger_of = load("torch"), load("monai.inferers.merger").AvgMerger
    shape, patch, starts, patches = random_case(seed, n_axes)
    merger = merger_of(merged_shape=(1, patches.shape[-1], *shape))
    for values, start in zip(patches, starts.tolist(), strict=True):
        merger.aggregate(torch.from_numpy(np.moveaxis(values, -1, 0)[None].copy()), start)
    right = np.moveaxis(merger.finalize().numpy()[0], 0, -1)
    assert_same(ours(patches, locs_of(starts, patch)), right)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("blend", ["average", "hann"])
def test_a_map_is_that_of_torchio(seed, blend):
    """GridAggregator, with the patches that its own sampler asks for."""
    torch, torchio = load("torch"), load("torchio")
    rng = np.random.default_rng(seed)
    patch = rng.integers(4, 11, 3)
    overlap = 2 * rng.integers(0, (patch + 1) // 2)
    shape = patch + rng.integers(0, 14, 3)
    image = torchio.ScalarImage(tensor=torch.zeros((1, *shape.tolist())))
    sampler = torchio.GridSampler(torchio.Subject(image=image), tuple(patch), tuple(overlap))
    starts, patch = sampler.locations[:, :3].astype(np.int64), tuple(patch.tolist())
    patches = rng.normal(size=(len(starts), *patch, 2)).astype(np.float32)
    aggregator = torchio.GridAggregator(sampler, overlap_mode=blend)
    for first in range(0, len(starts), 5):
        values = torch.from_numpy(np.moveaxis(patches[first : first + 5], -1, 1).copy())
        aggregator.add_batch(values, torch.from_numpy(sampler.locations[first : first + 5]))
    right = np.moveaxis(aggregator.get_output_tensor().numpy(), 0, -1)
    assert_same(ours(patches, locs_of(starts, patch), blend=blend), right)

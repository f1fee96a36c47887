"""Stitching: maps against a brute-force reference, while streaming and from a result, in RAM and in zarr."""

from __future__ import annotations

import copy
import gc
import itertools
import math
import os
import pickle
import subprocess
import sys
import tracemalloc
from functools import partial

import numpy as np
import pytest
import tifffile
import zarr
from helpers.maps import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, stitch
from accumulator._core.canvas import Canvas
from accumulator._stitching import bands as _bands
from accumulator._stitching import blend as _blend
from accumulator._stitching import parts as _parts
from accumulator._stitching.grid import as_grid
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadDtypeError,
    HeadError,
    LocationError,
    MemoryLimitError,
    NothingPushedError,
    OptionError,
    ProcessError,
    ResultExistsError,
    StorageError,
    StorageWarning,
    UnknownLocationError,
)

BLENDS = ["average", "gaussian", "hann", "max", "last"]
DTYPES = ["?", "u1", "i1", "u2", "<i4", ">i4", "u4", "i8", "u8", "f2", "<f4", ">f4", "f8", "c8", "c16"]
EPSILON = {2: 2**-10, 4: 2**-22, 8: 2**-47}  # a few roundings; weights themselves are float64


def boxes(starts, patch):
    """Return locations of patches that start there, given in the order of the array's axes."""
    starts = np.asarray(starts).reshape(len(starts), -1)
    return np.hstack([starts[:, ::-1], (starts + np.asarray(patch))[:, ::-1]])


def raster(shape, patch, stride):
    """Return the locations of a grid that covers a map, row by row."""
    axes = [range(0, n - p + 1, s) for n, p, s in zip(shape, patch, stride, strict=True)]
    return boxes(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape)), patch)


def assert_right(values, expected, size, dtype):
    """Compare a map with the reference: to the rounding of its dtype, or of float32 if that is wider."""
    dtype = np.dtype(dtype)
    assert values.dtype == dtype
    assert values.shape == expected.shape
    if dtype.kind == "b":
        is_tie = np.abs(expected.astype(float) - 0.5) < 1e-9
        assert ((values == (expected.astype(float) >= 0.5)) | is_tie).all()
    elif dtype.kind in "iu":
        # A weight and a sum of weights are products of one float64 an axis: up to eight roundings of half an
        # epsilon, which 64-bit integers show.
        limit = 0.5 * (1 + 1e-9) + size.astype(float) * 8 * 2**-53
        assert (np.abs(values.astype(np.longdouble) - expected.astype(np.longdouble)) <= limit).all()
    else:
        single = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        least = np.longdouble(np.finfo(dtype).smallest_subnormal)
        limit = np.maximum(EPSILON[single] * size.astype(np.longdouble), least)
        assert (np.abs(values - expected) <= limit).all()


@pytest.fixture(params=["one band", "many bands"])
def bands(request, tuned):
    """Blend in one band and thread, or in bands of a few rows shared by threads."""
    if request.param == "many bands":
        tuned(
            band_nbytes=600,
            least_band_nbytes=600,
            shared_push_nbytes=0,
            shared_patch_nbytes=0,
            patch_part_nbytes=300,
            divided_nbytes=64,
            read_nbytes=700,
        )


@st.composite
def cases(draw):
    """Draw patches on a grid or anywhere, what of them comes, and how they are to be blended."""
    n_axes = draw(st.integers(1, 3))
    most = {1: 12, 2: 6, 3: 4}[n_axes]
    patch = tuple(draw(st.lists(st.integers(1, most), min_size=n_axes, max_size=n_axes)))
    shape = tuple(p + draw(st.integers(0, 2 * p)) for p in patch)
    if draw(st.booleans()):
        stride = [max(1, round(p * draw(st.sampled_from([0.2, 0.5, 0.75, 1, 1.5, 2])))) for p in patch]
        locs = raster(shape, patch, stride)
    else:
        spots = st.tuples(*(st.integers(-p, n + 1) for p, n in zip(patch, shape, strict=True)))
        locs = boxes(draw(st.lists(spots, min_size=1, max_size=20, unique=True)), patch)
        cut = draw(hnp.arrays(np.int64, (len(locs), n_axes), elements=st.integers(0, 1)))
        locs[:, n_axes:] -= np.minimum(cut, np.array(patch[::-1]) - 1)
    locs = locs[: draw(st.integers(1, 40))]
    origin = draw(st.lists(st.integers(-5, 5), min_size=n_axes, max_size=n_axes))
    locs = locs + np.array([*origin, *origin])
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    blend = draw(st.sampled_from([b for b in BLENDS if dtype.kind != "c" or b != "max"]) | st.none())
    if blend is None:
        blend = draw(hnp.arrays(np.float64, patch, elements=st.floats(0.01, 100)))
    channels = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random_values(rng, (len(locs), *patch, *channels), dtype)
    order = draw(st.permutations(range(len(locs))))
    come = order[: draw(st.integers(1, len(order)))]
    fill = draw(st.sampled_from([0, 1])) if dtype.kind in "bui" else draw(st.sampled_from([0, 7, math.nan]))
    return locs, shape, origin, values, np.array(come), blend, fill


def random_values(rng, shape, dtype):
    """Return values over the whole range of a dtype that sums are to be right in, none of them the same."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype.newbyteorder("="), endpoint=True).astype(
            dtype
        )
    values = rng.normal(size=shape)
    return (values + 1j * rng.normal(size=shape) if dtype.kind == "c" else values).astype(dtype)


@pytest.mark.usefixtures("bands")
@given(case=cases(), is_streamed=st.booleans(), threshold=st.sampled_from([100, 100, 100, 0]))
@settings(max_examples=int(os.environ.get("ACCUMULATOR_STITCH_EXAMPLES", "150")))
def test_map_is_the_reference(case, is_streamed, threshold):
    """Every pixel is that of the reference, whatever overlaps, is missing, late, or reaches over the edge."""
    locs, shape, origin, values, come, blend, fill = case
    where = {"memory_threshold": threshold}
    options = {"blend": blend, "output_shape": shape, "origin": origin, "fill_value": fill, **where}
    if is_streamed:
        with Stitcher(locs, **options) as stitcher:
            for rows in np.array_split(come, max(1, len(come) // 4)):
                stitcher.push((values[rows], values[rows][..., ::-1]), locs[rows])
        maps = stitcher.finalize()
    else:
        with FullBatchAccumulator(locs, **where) as accumulator:
            accumulator.push((values[come], np.zeros(len(come))), locs[come])
        maps = stitch(accumulator.finalize(), heads=[0], **options)
    rows = np.sort(come)
    expected, coverage, size = reference(values[rows], locs[rows], shape, origin, blend, fill)
    covered = (coverage > 0).reshape(*shape, *(1 for _ in values.shape[1 + len(shape) :]))
    result = np.array(maps.outputs[0][...])
    gaps = np.broadcast_to(~covered, result.shape)
    np.testing.assert_array_equal(result[gaps], np.asarray(fill, result.dtype))
    if is_streamed and values.ndim == len(shape) + 2:
        np.testing.assert_array_equal(maps.outputs[1][...], result[..., ::-1])
    result[gaps] = expected[gaps] = 0
    assert_right(result, expected, size, values.dtype)
    np.testing.assert_array_equal(maps.coverage(), coverage)
    np.testing.assert_array_equal(maps.coverage(1, 2), coverage[1:2])
    np.testing.assert_array_equal(maps.written, np.isin(np.arange(len(locs)), come))
    assert maps.origin == tuple(origin)
    maps.close()


def test_all_zero_patch_counts():
    """A patch of zeros is a prediction like others: with one of ones it makes a half."""
    locs = [[0, 0, 2, 2], [0, 0, 2, 1]]
    with Stitcher(locs) as stitcher:
        stitcher.push(np.stack([np.zeros((2, 2)), np.ones((2, 2))]), locs)
    assert stitcher.finalize().outputs[0].tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f2", "f4", "f8", "?"])
@pytest.mark.parametrize("blend", ["average", "hann"])
def test_three_hundred_patches_on_a_pixel(dtype, blend):
    """No count wraps and no sum overflows, however many patches meet."""
    n, length = 300, 400
    locs = boxes([[0, x] for x in range(n)], (1, length))
    top = {"f2": 60000, "f4": 1, "f8": 1, "?": True}.get(dtype) or np.iinfo(dtype).max
    values = np.full((n, 1, length), top).astype(dtype)
    values[::3] = 0
    with Stitcher(locs, blend=blend) as stitcher:
        stitcher.push(values, locs)
    maps = stitcher.finalize()
    expected, coverage, size = reference(values, locs, (1, n + length - 1), (0, 0), blend, 0)
    assert coverage.max() == n
    assert_right(maps.outputs[0], expected, size, dtype)
    np.testing.assert_array_equal(maps.coverage(), coverage)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", ">f8", "c8"])
@pytest.mark.parametrize("blend", ["average", "gaussian"])
@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("is_streamed", [True, False])
def test_sum_beyond_the_dtype_is_right(dtype, blend, is_streamed):
    """A mean of the largest numbers is one of them, also when sums of earlier patches were small."""
    locs = raster((8, 12), (4, 4), (2, 2))
    largest = np.finfo(dtype).max
    values = np.ones((len(locs), 4, 4, 2), dtype)
    values[len(locs) // 2 :] = largest
    if np.dtype(dtype).kind == "c":
        values *= 1j
    kind = Stitcher if is_streamed else FullBatchAccumulator
    with kind(locs, **({"blend": blend} if is_streamed else {})) as taker:
        taker.push(values[:3], locs[:3])
        taker.push(values[3:], locs[3:])
    maps = taker.finalize() if is_streamed else stitch(taker.finalize(), blend=blend)
    expected, _, size = reference(values, locs, (8, 12), (0, 0), blend, 0)
    assert_right(maps.outputs[0], expected, size, dtype)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_each_head_is_as_exact_as_its_dtype(is_streamed):
    """Heads of the same shape share sums of weights, but not their rounding."""
    locs = raster((1, 12), (1, 4), (1, 2))
    values = np.random.default_rng(0).random((len(locs), 1, 4))
    heads = [values.astype(np.float32), values]
    kind = Stitcher if is_streamed else FullBatchAccumulator
    with kind(locs, **({"blend": "hann"} if is_streamed else {})) as taker:
        taker.push(heads, locs)
    maps = taker.finalize() if is_streamed else stitch(taker.finalize(), blend="hann")
    expected, _, _ = reference(values, locs, (1, 12), (0, 0), "hann", 0)
    np.testing.assert_allclose(maps.outputs[0], expected.astype(float), rtol=1e-6)
    np.testing.assert_allclose(maps.outputs[1], expected.astype(float), rtol=1e-13)


def test_half_is_true():
    """Where one of two patches says so a bool is True, where one of three does it is not."""
    locs = [[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 2], [3, 0, 4, 1]]
    values = np.zeros((4, 2, 4), bool)
    values[2] = True
    with Stitcher(locs) as stitcher:
        stitcher.push(values, locs)
    np.testing.assert_array_equal(stitcher.finalize().outputs[0], [[True, True, True, False], [True] * 4])


def test_infinity_and_nan_stay_where_they_are():
    """They show where their patch lies, and nowhere else."""
    locs = raster((4, 8), (4, 4), (2, 2))
    values = np.ones((3, 4, 4), np.float32)
    values[0, 1, 1], values[2, 2, 3] = np.inf, np.nan
    with Stitcher(locs) as stitcher:
        stitcher.push(values, locs)
    got = stitcher.finalize().outputs[0]
    assert np.isinf(got).sum() == 1
    assert np.isinf(got[1, 1])
    assert np.isnan(got).sum() == 1
    assert np.isnan(got[2, 7])


def test_order_of_batches_makes_no_difference(where):
    """The map is the same however batches come: to the last bit where nothing is added."""
    locs = raster((30, 30), (10, 10), (3, 4))
    values = np.random.default_rng(0).random((len(locs), 10, 10, 2), dtype=np.float32)
    maps = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(locs)) if seed else np.arange(len(locs))
        with Stitcher(locs, blend="last", **where) as stitcher:
            for rows in np.array_split(order, 9):
                stitcher.push(values[rows], locs[rows])
        maps.append(np.asarray(stitcher.finalize().outputs[0][...]))
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])


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


@pytest.mark.parametrize(
    ("head", "asked", "expected"),
    [
        ("u1", "f4", [[1.0, 1.5, 2.0]]),
        ("u1", "i2", [[1, 2, 2]]),
        ("i2", "u1", [[1, 2, 2]]),
        ("f4", "f2", [[1.0, 1.5, 2.0]]),
        ("f4", "f8", [[1.0, 1.5, 2.0]]),
        ("?", "f4", [[1.0, 1.0, 1.0]]),
        ("?", "u1", [[1, 1, 1]]),
    ],
)
@pytest.mark.parametrize("blend", ["average", "max", "last"])
def test_map_in_the_dtype_asked_for(where, head, asked, expected, blend):
    """It has that dtype, with the values that it can hold."""
    locs = [[0, 0, 2, 1], [1, 0, 3, 1]]
    values = np.array([[[1, 1]], [[2, 2]]]).astype(head)
    with Stitcher(locs, dtype=asked, blend=blend, **where) as stitcher:
        stitcher.push(values, locs)
    got = stitcher.finalize().outputs[0]
    assert got.dtype == asked
    if blend == "average":
        assert got[...].tolist() == expected
    else:
        assert got[...].tolist() == [[expected[0][0], expected[0][2], expected[0][2]]]


def test_integers_beyond_the_dtype_asked_for_become_its_nearest():
    """What a smaller integer cannot hold is its largest or smallest."""
    locs = [[0, 0, 3, 1]]
    for blend in ("average", "max"):
        with Stitcher(locs, dtype="i1", blend=blend) as stitcher:
            stitcher.push(np.array([[[-1000, 5, 1000]]], dtype="i4"), locs)
        assert stitcher.finalize().outputs[0].tolist() == [[-128, 5, 127]]


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_largest_integers_are_themselves(dtype):
    """The mean of one value is that value, though no float64 holds it."""
    locs = [[0, 0, 2, 1]]
    values = np.array([[[np.iinfo(dtype).max, np.iinfo(dtype).min]]], dtype=dtype)
    with Stitcher(locs) as stitcher:
        stitcher.push(values, locs)
    np.testing.assert_array_equal(stitcher.finalize().outputs[0], values[0])


def test_bands_come_to_the_callback_once_from_top_to_bottom(where, tuned):
    """Together they are the map; a band is complete when its last patch has come, late ones too."""
    tuned(band_nbytes=600)
    locs = raster((39, 12), (6, 6), (3, 3))
    values = np.random.default_rng(0).random((len(locs), 6, 6), dtype=np.float32)
    seen = np.full((39, 12), np.nan, np.float32)
    slices = []

    def keep(rows, maps):
        slices.append(rows)
        seen[rows] = maps["a"]

    late = [4, 17]
    first = [row for row in range(len(locs)) if row not in late]
    with Stitcher(locs, on_band=keep, **where) as stitcher:
        for row in first[:20]:
            stitcher.push({"a": values[[row]]}, locs[[row]])
        assert slices == []
        stitcher.push({"a": values[[4]]}, locs[[4]])
        assert slices
        for row in first[20:] + late[1:]:
            stitcher.push({"a": values[[row]]}, locs[[row]])
    maps = stitcher.finalize()
    assert slices == sorted(slices, key=lambda rows: rows.start)
    assert slices[0].start == 0
    assert all(a.stop == b.start for a, b in itertools.pairwise(slices))
    np.testing.assert_array_equal(seen, maps.outputs["a"][...])
    expected, _, size = reference(values, locs, (39, 12), (0, 0), "average", 0)
    assert_right(seen, expected, size, np.float32)


def test_raising_callback_loses_nothing(tuned):
    """The batch was taken, the band counts as delivered, and the next ones come all the same."""
    tuned(band_nbytes=64)
    locs = raster((16, 4), (4, 4), (4, 4))
    got = []

    def refuse_first(rows, _maps):
        got.append(rows)
        if len(got) == 1:
            raise RuntimeError("first")

    stitcher = Stitcher(locs, on_band=refuse_first)
    with pytest.raises(RuntimeError, match="first"):
        stitcher.push(np.ones((2, 4, 4), np.float32), locs[:2])
    assert stitcher.written.tolist() == [True, True, False, False]
    stitcher.push(np.ones((2, 4, 4), np.float32), locs[2:])
    assert (stitcher.finalize().outputs[0] == 1).all()
    assert [rows.start for rows in got] == sorted(range(0, 16, got[0].stop))


def test_only_open_bands_are_in_memory(tuned):
    """Patches in order keep as many rows of the map open as they have, and not many more."""
    tuned(band_nbytes=2**12)
    locs = raster((512, 64), (16, 16), (8, 8))
    most = 0
    with Stitcher(locs, memory_threshold=0) as stitcher:
        for start in range(0, len(locs), 7):
            some = locs[start : start + 7]
            stitcher.push(np.ones((len(some), 16, 16), np.float32), some)
            most = max(most, stitcher.open_nbytes)
    assert most <= (16 + 8 + 2 * 16) * 64 * 4
    assert stitcher.open_nbytes == 0


def test_shuffled_patches_open_more_bands_and_say_so(monkeypatch, tuned):
    """Memory that gets short is a warning; bands that do not fit are an error, which changes nothing."""
    tuned(band_nbytes=2**12)
    locs = raster((512, 64), (16, 16), (8, 8))
    order = np.random.default_rng(0).permutation(len(locs))
    with Stitcher(locs, memory_threshold=0) as stitcher:
        stitcher.push(np.ones((0, 16, 16), np.float32), locs[:0])
        monkeypatch.setattr(_bands.memory, "available_memory", lambda **_: 2**15 - stitcher.open_nbytes)
        taken = []

        def push_all():
            for row in order:
                stitcher.push(np.ones((1, 16, 16), np.float32), locs[[row]])
                taken.append(row)

        is_warned = pytest.warns(StorageWarning, match="wait for rows")
        with is_warned, pytest.raises(MemoryLimitError, match="push in the order"):
            push_all()
        assert 0 < stitcher.open_nbytes <= 2**15
        np.testing.assert_array_equal(np.flatnonzero(stitcher.written), np.sort(taken))
        stitcher.close()


@pytest.mark.parametrize("order", ["raster", "columns", "shuffled"])
def test_result_is_read_in_an_order_that_keeps_few_bands_open(order, where, monkeypatch, tuned):
    """Whatever the order of the list: top to bottom where memory is short, and the map is right."""
    tuned(band_nbytes=2**10, whole_band_nbytes=2**10, least_band_nbytes=2**10)
    locs = raster((128, 32), (8, 8), (4, 4))
    if order == "columns":
        locs = locs[np.lexsort((locs[:, 1], locs[:, 0]))]
    elif order == "shuffled":
        locs = locs[np.random.default_rng(0).permutation(len(locs))]
    values = np.random.default_rng(1).random((len(locs), 8, 8), dtype=np.float32)
    with FullBatchAccumulator(locs, chunks=5, **where) as accumulator:
        accumulator.push(values, locs)
    batch = accumulator.finalize()
    most = []
    open_all = _bands.Bands._open_all

    def watch(bands, *arguments):
        open_all(bands, *arguments)
        most.append(bands.nbytes)

    monkeypatch.setattr(_bands.Bands, "_open_all", watch)
    tuned(read_nbytes=10 * 256, small_percent=0)
    maps = stitch(batch, memory_threshold=100)
    expected, _, size = reference(values, locs, (128, 32), (0, 0), "average", 0)
    assert_right(maps.outputs[0], expected, size, np.float32)
    assert max(most) <= 32 * 32 * 4


def test_partial_run_is_stitched_as_far_as_it_came(where):
    """Only recorded rows count; the map has the size of the whole."""
    locs = raster((16, 16), (4, 4), (4, 4))
    accumulator = FullBatchAccumulator(locs, store="run.zarr")
    accumulator.push({"a": np.ones((5, 4, 4), np.float32), "score": np.ones((5, 1))}, locs[:5])
    accumulator.flush()
    accumulator.push({"a": np.ones((5, 4, 4), np.float32), "score": np.ones((5, 1))}, locs[5:10])
    maps = stitch(FullBatch.load("run.zarr", partial=True), heads=["a"], fill_value=np.nan, **where)
    assert maps.outputs["a"].shape == (16, 16)
    assert np.isfinite(maps.outputs["a"][...]).sum() == 5 * 16
    maps.close()
    accumulator.close()


def test_result_without_any_row_gives_empty_maps():
    """Nothing was predicted: the maps are there, and hold the fill value."""
    locs = raster((8, 8), (4, 4), (4, 4))
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.empty((0, 4, 4, 2), np.float32), locs[:0])
    maps = stitch(accumulator.finalize(), fill_value=3)
    assert maps.outputs[0].shape == (8, 8, 2)
    assert (maps.outputs[0] == 3).all()
    assert not maps.coverage().any()


def test_region_of_a_slide():
    """``output_shape`` and ``origin`` cut a region out, or place one in a slide."""
    locs = boxes([[100, 200], [104, 204]], (8, 8))
    values = np.arange(1, 129, dtype=np.float32).reshape(2, 8, 8)

    def made(**options):
        with Stitcher(locs, **options) as stitcher:
            stitcher.push(values, locs)
        return stitcher.finalize().outputs[0]

    slide = made()
    assert slide.shape == (112, 212)
    assert not slide[:100].any()
    np.testing.assert_array_equal(made(origin=[200, 100]), slide[100:, 200:])
    np.testing.assert_array_equal(made(origin=[203, 101], output_shape=(4, 5)), slide[101:105, 203:208])
    larger = made(origin=[190, 90], output_shape=(40, 50))
    np.testing.assert_array_equal(larger[10:22, 10:22], slide[100:, 200:])
    assert larger.sum() == slide.sum()


def test_channel_first_views_and_reused_buffers():
    """Arrays of any layout are read as they are, and may be reused when the push has returned."""
    locs = raster((8, 8), (4, 4), (2, 2))
    values = np.random.default_rng(0).random((len(locs), 3, 4, 4), dtype=np.float32)
    buffer = np.empty_like(values[:2])
    with Stitcher(locs) as stitcher:
        for start in range(0, len(locs), 2):
            some = values[start : start + 2]
            buffer[: len(some)] = some
            stitcher.push(np.moveaxis(buffer[: len(some)], 1, -1), locs[start : start + 2])
            buffer[:] = np.nan
    expected, _, size = reference(np.moveaxis(values, 1, -1), locs, (8, 8), (0, 0), "average", 0)
    assert_right(stitcher.finalize().outputs[0], expected, size, np.float32)


def test_kept_map_is_a_result_like_others():
    """With ``store`` it lies there, checked and complete; ``save`` keeps any other."""
    locs = raster((8, 8), (4, 4), (2, 2))
    values = np.random.default_rng(0).random((len(locs), 4, 4), dtype=np.float32)
    with Stitcher(locs, store="map.zarr") as stitcher:
        stitcher.push({"a": values}, locs)
    kept = stitcher.finalize()
    with Stitcher(locs) as stitcher:
        stitcher.push({"a": values}, locs)
    stitcher.finalize().save("saved.zarr")
    for name in ("map.zarr", "saved.zarr"):
        loaded = FullBatch.load(name)
        np.testing.assert_array_equal(loaded.outputs["a"][...], kept.outputs["a"][...])
        assert loaded.written.all()
    with pytest.raises(ResultExistsError):
        Stitcher(locs, store="map.zarr")


@pytest.mark.usefixtures("tiny_chunks")
def test_map_with_storage_options():
    """Chunks, shards and compressors are zarr's, as for rows."""
    from zarr.codecs import ZstdCodec  # noqa: PLC0415  only here

    locs = raster((16, 16), (4, 4), (2, 2))
    options = {"chunks": (4, 8, 1), "compressors": ZstdCodec(), "memory_threshold": 0, "fill_value": np.nan}
    with Stitcher(locs[:20], output_shape=(16, 16), **options) as stitcher:
        stitcher.push(np.ones((20, 4, 4, 1), np.float32), locs[:20])
    maps = stitcher.finalize()
    assert maps.outputs[0].chunks == (4, 8, 1)
    assert np.isnan(maps.outputs[0][...]).sum() == (maps.coverage() == 0).sum() > 0


def test_full_disk_keeps_the_band_and_the_next_call_writes_it(monkeypatch, tuned):
    """A batch whose band cannot be written was taken; the next call raises until there is room."""
    tuned(band_nbytes=4 * 4 * 8)
    locs = raster((16, 8), (4, 4), (4, 4))
    values = np.arange(len(locs) * 16, dtype=np.float32).reshape(-1, 4, 4)
    stitcher = Stitcher(locs, memory_threshold=0)
    place = Canvas.place
    is_full = True

    def refuse(canvas, heads, rows, *others):
        if is_full and rows.start < rows.stop:
            raise StorageError(28, "no space left")
        place(canvas, heads, rows, *others)

    monkeypatch.setattr(Canvas, "place", refuse)
    stitcher.push(values[:2], locs[:2])
    assert stitcher.written[:2].all()
    for _ in range(2):
        with pytest.raises(StorageError):
            stitcher.push(values[2:4], locs[2:4])
    assert stitcher.written.sum() == 2
    with pytest.raises(StorageError):
        stitcher.finalize()
    is_full = False
    stitcher.push(values[2:], locs[2:])
    expected, _, size = reference(values, locs, (16, 8), (0, 0), "average", 0)
    assert_right(stitcher.finalize().outputs[0][...], expected, size, np.float32)


def test_interrupt_in_the_middle_is_told(monkeypatch):
    """Half a batch cannot be taken out again: nothing goes on as if it were right."""
    locs = raster((8, 8), (4, 4), (4, 4))
    stitcher = Stitcher(locs)
    stitcher.push(np.ones((1, 4, 4)), locs[:1])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_bands, "blend_share", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stitcher.push(np.ones((1, 4, 4)), locs[1:2])
    for call in (lambda: stitcher.push(np.ones((1, 4, 4)), locs[1:2]), stitcher.finalize):
        with pytest.raises(ClosedError, match="half-way"):
            call()
    stitcher.close()


LOCS = raster((8, 8), (4, 4), (4, 4))
ONES = np.ones((1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("locs", "options", "error", "message"),
    [
        ([[0, 0, 4]], {}, LocationError, "3 columns"),
        ([[0, 0, 4, 0]], {}, LocationError, "row 0 of full_output_locs.*behind its start"),
        ([[4, 0, 0, 4]], {}, LocationError, "behind its start"),
        ([[0, 0, 2**62, 4]], {}, LocationError, "2\\*\\*61"),
        (LOCS, {"origin": [100, 0]}, OptionError, "nothing lies behind origin"),
        (LOCS, {"origin": [0, 0, 0]}, OptionError, "origin"),
        (LOCS, {"origin": 3}, OptionError, "origin"),
        (LOCS, {"output_shape": (0, 4)}, OptionError, "spatial shape"),
        (LOCS, {"output_shape": (4.5, 4)}, OptionError, "output_shape"),
        (LOCS, {"blend": "mean"}, OptionError, "average, gaussian, hann, max, last"),
        (LOCS, {"blend": np.zeros((4, 4))}, OptionError, "zero"),
        (LOCS, {"blend": -np.ones((4, 4))}, OptionError, "negative"),
        (LOCS, {"blend": [[1, np.nan]]}, OptionError, "NaN"),
        (LOCS, {"blend": object()}, OptionError, "object"),
        (LOCS, {"on_band": 3}, OptionError, "on_band"),
        (LOCS, {"memory_threshold": 200}, OptionError, "memory_threshold"),
        (LOCS, {"memory_limit": "much"}, OptionError, "memory_limit"),
        (np.concatenate([LOCS, LOCS[:1]]), {}, DuplicateLocationError, "row"),
    ],
)
def test_wrong_construction_is_refused(locs, options, error, message):
    """What is wrong is found before anything is pushed, and named."""
    with pytest.raises(error, match=message):
        Stitcher(locs, **options)


@pytest.mark.parametrize(
    ("options", "heads", "locs", "error", "message"),
    [
        ({}, ONES, [[1, 0, 5, 4]], UnknownLocationError, "row 0"),
        ({}, ONES, LOCS[:2], HeadError, "rows differ"),
        ({}, np.ones((1, 4)), LOCS[:1], HeadError, "heads=\\[...\\]"),
        ({}, np.ones((1, 4, 4, 1, 1)), LOCS[:1], HeadError, "one more for channels"),
        ({}, np.ones((1, 3, 4)), LOCS[:1], LocationError, "larger than the patches"),
        ({}, (ONES, np.ones((1, 8, 8))), LOCS[:1], HeadError, "one by one"),
        ({}, (), LOCS[:1], HeadError, "no heads"),
        ({"blend": np.ones((3, 4))}, ONES, LOCS[:1], OptionError, "shape"),
        ({"blend": "max"}, ONES * 1j, LOCS[:1], HeadError, "complex"),
        ({"dtype": "u1"}, ONES, LOCS[:1], OptionError, "same kind"),
        ({"dtype": "f4"}, ONES * 1j, LOCS[:1], OptionError, "same kind"),
        ({"fill_value": np.nan}, np.ones((1, 4, 4), int), LOCS[:1], OptionError, "fill_value"),
        ({"dtype": {"b": "f4"}}, {"a": ONES}, LOCS[:1], OptionError, "'b'"),
        ({"chunks": (0, 4)}, ONES, LOCS[:1], OptionError, "chunks"),
        ({}, np.ones((1, 4, 4), np.longdouble), LOCS[:1], HeadDtypeError, "float64"),
        ({}, np.array([[["a"]]]), LOCS[:1], HeadDtypeError, "dtype"),
    ],
)
def test_refused_push_changes_nothing(options, heads, locs, error, message):
    """It raises a typed error, and the stitcher goes on as if it had not been called."""
    stitcher = Stitcher(LOCS, **options)
    with pytest.raises(error, match=message):
        stitcher.push(heads, locs)
    assert not stitcher.written.any()
    assert stitcher.open_nbytes == 0
    if not options:
        stitcher.push(ONES, LOCS[:1])
        assert stitcher.finalize().outputs[0].sum() == 16
    stitcher.close()


def test_later_pushes_are_like_the_first():
    """Another dtype, shape, name, or a box for the second time is refused."""
    stitcher = Stitcher(LOCS)
    stitcher.push({"a": ONES}, LOCS[:1])
    for heads, locs, error in [
        ({"a": ONES.astype("f8")}, LOCS[1:2], HeadDtypeError),
        ({"a": ONES[..., None]}, LOCS[1:2], HeadError),
        ({"b": ONES}, LOCS[1:2], HeadError),
        ({"a": ONES}, LOCS[:1], DuplicateLocationError),
    ]:
        with pytest.raises(error):
            stitcher.push(heads, locs)
    assert stitcher.written.sum() == 1
    assert stitcher.missing_locs.tolist() == LOCS[1:].tolist()
    assert stitcher.finalize().outputs["a"].sum() == 16


def test_lifecycle():
    """As the accumulator's: finalize is idempotent, close ends without maps, a dropped one warns."""
    with pytest.raises(NothingPushedError), Stitcher(LOCS) as stitcher:
        pass
    assert "closed" in repr(stitcher)
    stitcher = Stitcher(LOCS)
    stitcher.push(ONES, LOCS[:1])
    maps = stitcher.finalize()
    assert stitcher.finalize() is maps
    assert "StitchedMap" in repr(maps)
    assert maps.nbytes == 256
    with pytest.raises(ClosedError, match="finalized"):
        stitcher.push(ONES, LOCS[1:2])
    stitcher.close()
    with pytest.raises(LocationError), Stitcher(LOCS) as stitcher:
        stitcher.push(ONES, [[0.5, 0, 4, 4]])
    with pytest.raises(ClosedError, match="closed"):
        stitcher.finalize()
    stitcher = Stitcher(LOCS)
    stitcher.push(ONES, LOCS[:1])
    with pytest.warns(ResourceWarning, match="Stitcher"):
        del stitcher


@pytest.mark.parametrize("heads", [["c"], [], ["a", "a"], [0]])
def test_unknown_heads_are_refused(heads):
    """A head that is not there, none, or one twice."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push({"a": ONES}, LOCS[:1])
    with pytest.raises(OptionError, match="choose from"):
        stitch(accumulator.finalize(), heads=heads)


def test_small_maps_are_made_where_they_belong_and_large_ones_may_leave(tuned):
    """Both ways give the same map; a large one in RAM is not held by its bands."""
    locs = raster((32, 32), (8, 8), (4, 4))
    values = np.random.default_rng(0).random((len(locs), 8, 8), dtype=np.float32)
    maps = []
    for small in (100, 0):
        tuned(small_percent=small)
        with Stitcher(locs, memory_threshold=100) as stitcher:
            stitcher.push(values, locs)
        maps.append(stitcher.finalize().outputs[0])
    np.testing.assert_array_equal(maps[0], maps[1])


def test_maps_become_files_that_others_open():
    """OME-Zarr with all heads, where the region lies in the slide; OME-TIFF with one of them."""
    locs = np.add(raster((40, 60), (20, 20), (10, 10)), [100, 200, 100, 200])
    values = np.random.default_rng(0).random((len(locs), 20, 20, 2), dtype=np.float32)
    with Stitcher(locs, origin=[100, 200]) as stitcher:
        stitcher.push({"p": values, "q": values[..., 0]}, locs)
    maps = stitcher.finalize()
    maps.save_ome_zarr("map.ome.zarr", pixel_size=0.5, channel_names={"p": ["a", "b"]})
    group = zarr.open_group("map.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["p/s0"][:], np.moveaxis(maps.outputs["p"], -1, 0))
    (scales,) = group["q"].attrs["ome"]["multiscales"]
    shift = scales["datasets"][0]["coordinateTransformations"][1]
    assert shift == {"type": "translation", "translation": [100.0, 50.0]}
    maps.save_ome_tiff("map.ome.tif", head="p", pixel_size=[0.5, 0.25])
    with tifffile.TiffFile("map.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), np.moveaxis(maps.outputs["p"], -1, 0))
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
        assert 'PhysicalSizeY="0.25"' in file.ome_metadata
    with pytest.raises(OptionError, match="choose one"):
        maps.save_ome_tiff("other.ome.tif")


def test_notebooks_and_plots_show_maps():
    """Heads, coverage and place in a table; a panel a channel, where the map lies in its slide."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    with Stitcher(LOCS, origin=[-8, -4], output_shape=(16, 20)) as stitcher:
        stitcher.push({"p<q": np.ones((2, 4, 4, 2), np.float32)}, LOCS[:2])
    maps = stitcher.finalize()
    assert "p&lt;q" in maps._repr_html_()
    assert "2 of 4" in maps._repr_html_()
    panels = maps.plot()
    assert len(panels) == 2
    assert panels[0].get_xlim() == (-8, 12)
    assert len(maps.plot("p<q", channel=1)) == 1
    with pytest.raises(OptionError, match="choose one"):
        maps.plot("r")
    matplotlib.pyplot.close("all")
    with Stitcher([[0, 0, 0, 2, 2, 2]]) as stitcher:
        stitcher.push(np.ones((1, 2, 2, 2)), [[0, 0, 0, 2, 2, 2]])
    with pytest.raises(OptionError, match="3 spatial axes"):
        stitcher.finalize().plot()


def test_progress_counts_patches(capsys):
    """The bar shows patches and open bands, and is silent by default."""
    with Stitcher(LOCS, progress=True) as stitcher:
        stitcher.push(np.ones((3, 4, 4), np.float32), LOCS[:3])
    assert "3/4" in capsys.readouterr().err
    with Stitcher(LOCS) as stitcher:
        stitcher.push(np.ones((3, 4, 4), np.float32), LOCS[:3])
    assert capsys.readouterr() == ("", "")


def test_patches_are_cut_to_equal_shares():
    """A push that is worth it is shared by all threads, each of which has as many pixels to add as others."""
    locs = boxes([[y, x] for y in [*range(0, 40, 4), *range(40, 80, 2)] for x in (0, 8, 9)], (8, 8))
    grid, rows = as_grid(locs, (8, 8), None, None), np.arange(0, len(locs), 2)
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


@pytest.mark.parametrize("starts", [[2, 4], [[2, 2], [2, 4], [4, 2], [4, 4]], [[2, 2, 2], [4, 4, 4]]])
def test_bound_of_overlaps_counts_patches_on_both_sides_of_a_line(starts):
    """Patches of four that begin in different cells of four meet in one pixel, all of them."""
    starts = np.asarray(starts).reshape(len(starts), -1)
    grid = as_grid(boxes(starts, (4,) * starts.shape[1]), None, None, None)
    assert grid.most_overlaps() >= len(starts)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.usefixtures("bands")
def test_last_of_a_list_in_no_order_wins(where, heads):
    """In a result whose list is not in raster order "last" is the last of the list, wherever it lies."""
    locs = raster((24, 12), (6, 6), (3, 3))
    locs = locs[np.random.default_rng(3).permutation(len(locs))]
    values = np.random.default_rng(4).integers(1, 10**6, (len(locs), 6, 6)).astype(np.int32)
    with FullBatchAccumulator(locs, **where) as accumulator:
        accumulator.push([values] * heads, locs)
    maps = stitch(accumulator.finalize(), blend="last")
    expected, _, _ = reference(values, locs, (24, 12), (0, 0), "last", 0)
    for output in maps.outputs:
        np.testing.assert_array_equal(output[...], expected)


@given(case=cases())
def test_bound_of_overlaps_is_one(case):
    """No pixel is covered more often than the bound that dtypes are chosen by."""
    locs, shape, origin, values, *_ = case
    grid = as_grid(locs, values.shape[1 : 1 + len(shape)], shape, origin)
    _, coverage, _ = reference(np.zeros(values.shape[: 1 + len(shape)]), locs, shape, origin, "average", 0)
    assert coverage.max() <= grid.most_overlaps() <= 3 ** len(shape) * max(1, coverage.max()) * 2


@pytest.mark.parametrize("value", [np.nan, np.inf, np.finfo("f4").max])
def test_value_of_any_kind_in_a_last_band_that_is_short(tuned, value):
    """The last band has fewer rows than others, also when its sums have to go on in another dtype."""
    tuned(band_nbytes=8 * 4 * 4)
    locs = raster((20, 4), (4, 4), (2, 4))
    values = np.ones((len(locs), 4, 4), np.float32)
    values[-1] = value
    with Stitcher(locs) as stitcher:
        for row in range(len(locs)):
            stitcher.push(values[[row]], locs[[row]])
    got = stitcher.finalize().outputs[0]
    assert (got[:16] == 1).all()
    np.testing.assert_array_equal(got[18:], np.full((2, 4), value, np.float32))


@pytest.mark.parametrize("blend", ["average", "gaussian", "hann"])
@pytest.mark.parametrize("dtype", ["i8", "f8"])
def test_lone_patch_is_itself(blend, dtype):
    """What nothing overlaps comes out as it went in, to the last bit of 64."""
    values = np.random.default_rng(0).integers(2**62, 2**63, (1, 6, 6, 6)).astype(dtype)
    with Stitcher([[0, 0, 0, 6, 6, 6]], blend=blend) as stitcher:
        stitcher.push(values, [[0, 0, 0, 6, 6, 6]])
    got = stitcher.finalize().outputs[0]
    if dtype == "i8":
        assert abs(got - values[0]).max() <= (
            blend != "average"
        )  # of weights, long double rounds the product
    else:
        np.testing.assert_allclose(got, values[0], rtol=2**-52)


def test_weight_of_zero_excludes_whatever_is_there():
    """NaN in a margin that does not count does not show; where nothing counts is the fill value."""
    locs = boxes([[0, 0], [0, 2]], (1, 4))
    values = np.ones((2, 1, 4), np.float32)
    values[:, :, -1] = np.nan
    with Stitcher(locs, blend=[[1, 1, 1, 0]], fill_value=7) as stitcher:
        stitcher.push(values, locs)
    assert stitcher.finalize().outputs[0].tolist() == [[1, 1, 1, 1, 1, 7]]


def test_errors_of_the_callback_come_out_whatever_they_are(tuned):
    """Also those of this library, which a callback may well raise."""
    tuned(band_nbytes=64)

    def refuse(_rows, _maps):
        raise StorageError(28, "the callback's disk is full")

    stitcher = Stitcher(raster((16, 4), (4, 4), (4, 4)), on_band=refuse)
    with pytest.raises(StorageError, match="callback's"):
        stitcher.push(np.ones((1, 4, 4), np.float32), [[0, 0, 4, 4]])
    assert stitcher.written[0]
    stitcher.close()


def test_callback_reads_and_does_not_push(tuned):
    """What it is given cannot be written, and it cannot push or finalize."""
    tuned(band_nbytes=64)
    errors = []

    def try_all(_rows, maps):
        for call in (
            lambda: maps[0].__setitem__(0, 5),
            lambda: stitcher.push(ONES, [[0, 4, 4, 8]]),
            stitcher.finalize,
        ):
            with pytest.raises(ValueError, match=r"read-only|within on_band") as error:
                call()
            errors.append(error)

    with Stitcher(raster((8, 4), (4, 4), (4, 4)), on_band=try_all) as stitcher:
        stitcher.push(ONES, [[0, 0, 4, 4]])
    assert len(errors) == 3
    assert stitcher.finalize().outputs[0].sum() == 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_other_processes_are_refused():
    """A forked child cannot push or finalize, and does not hang; copies are refused, too."""
    script = """
import os, sys, warnings
import numpy as np
from accumulator import Stitcher
from accumulator.exceptions import ProcessError
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
locs = np.array([[0, y, 1024, y + 1024] for y in (0, 512)])
stitcher = Stitcher(locs)
stitcher.push(np.ones((1, 1024, 1024), np.float32), locs[:1])
if os.fork() == 0:
    for call in (stitcher.finalize, lambda: stitcher.push(np.ones((1, 1024, 1024), np.float32), locs[1:])):
        try:
            call()
        except ProcessError:
            continue
        os._exit(1)
    del stitcher, call
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]), stitcher.finalize().outputs[0].sum() == 2**20)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["0", "True"]
    stitcher = Stitcher(LOCS)
    for copying in (copy.copy, pickle.dumps):
        with pytest.raises(ProcessError):
            copying(stitcher)
    stitcher.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dropped_in_a_cycle_with_a_bar(capsys):
    """What a closure holds is collected all the same, threads and bar end."""
    holder = []
    holder.append(Stitcher(LOCS, progress=True, on_band=partial(print, holder)))
    holder[0].push(ONES, LOCS[:1])
    del holder
    gc.collect()
    assert "1/4" in capsys.readouterr().err


def test_memory_of_sums_is_bounded_where_patches_lie_anywhere():
    """In volumes with patches off any grid, no plane of weights is kept for each of them."""
    script = """
import sys
import tracemalloc
import numpy as np
from accumulator import Stitcher
rng = np.random.default_rng(0)
starts = np.unique(rng.integers(0, [60, 700, 700], (200, 3)), axis=0)
locs = np.hstack([starts[:, ::-1], (starts + 16)[:, ::-1]])
patches = np.ones((len(locs), 16, 16, 16), np.float32)
def rss(key):
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before = rss("VmRSS")
with Stitcher(locs) as stitcher:
    stitcher.push(patches, locs)
    held = stitcher.nbytes / 2**20
print(rss("VmHWM") - before - held, (stitcher.finalize().outputs[0].max() == 1))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("memory is measured as Linux tells it")
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    more, is_right = ended.stdout.split()
    assert is_right == "True"
    assert float(more) < 100


def test_no_memory_for_a_wider_dtype_changes_nothing(monkeypatch):
    """The push is refused before anything of it was taken, and the next one is welcome."""
    stitcher = Stitcher(LOCS)
    stitcher.push(ONES, LOCS[:1])
    available = _bands.memory.available_memory
    monkeypatch.setattr(_bands.memory, "available_memory", lambda **_: 0)
    with pytest.raises(MemoryLimitError, match="so large"):
        stitcher.push(ONES * np.finfo("f4").max, LOCS[1:2])
    monkeypatch.setattr(_bands.memory, "available_memory", available)
    assert stitcher.written.sum() == 1
    stitcher.push(ONES * 2, LOCS[1:2])
    assert stitcher.finalize().outputs[0].sum() == 48


def test_no_memory_for_a_wider_dtype_in_the_middle_of_a_batch_is_told(monkeypatch, tuned):
    """What was blended before cannot be taken out: nothing goes on as if it were right."""
    tuned(patch_part_nbytes=1)  # look at one patch at a time
    stitcher = Stitcher(LOCS)
    monkeypatch.setattr(_bands.memory, "available_memory", lambda **_: 2**20)
    stitcher.push(ONES, LOCS[:1])
    monkeypatch.setattr(_bands.memory, "available_memory", lambda **_: 0)
    with pytest.raises(MemoryLimitError, match="so large"):
        stitcher.push(np.concatenate([ONES, ONES * np.finfo("f4").max]), LOCS[1:3])
    with pytest.raises(ClosedError, match="half-way"):
        stitcher.push(ONES, LOCS[3:4])
    stitcher.close()


def test_far_apart_patches_take_no_memory_for_what_is_between():
    """What a push is cut into follows from its patches, not from how far apart they lie."""
    locs = np.array([[0, 0, 4, 4], [0, 10**9, 4, 10**9 + 4]])
    grid = as_grid(locs, (4, 4), None, None)
    tracemalloc.start()
    try:
        share = _parts.share_of(grid, np.arange(2), 0, grid.shape[0], 2**22, 64)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert share.patches == [0, 1]


@pytest.mark.parametrize("order", ["raster", "shuffled"])
@pytest.mark.usefixtures("bands")
def test_every_patch_is_looked_at_about_once(order, monkeypatch, tuned):
    """Whatever their order: no patch is read for large values because others are added."""
    looked = []
    tuned(patch_part_nbytes=4 * 64)
    monkeypatch.setattr(_blend, "_has_large", lambda values: looked.append(values.size))
    locs = raster((40, 40), (4, 4), (4, 4))
    if order == "shuffled":
        locs = locs[np.random.default_rng(0).permutation(len(locs))]
    values = np.ones((len(locs), 4, 4), np.float32)
    with Stitcher(locs) as stitcher:
        stitcher.push(values, locs)
    assert values.size <= sum(looked) <= 2 * values.size  # those that lie in two bands


def test_interrupt_after_blending_lets_nothing_be_blended_again(monkeypatch):
    """What is in the map counts as come, whatever happens next."""
    add = _bands.Bands.add

    def interrupt(*arguments):
        add(*arguments)
        raise KeyboardInterrupt

    stitcher = Stitcher(LOCS)
    monkeypatch.setattr(_bands.Bands, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stitcher.push(ONES, LOCS[:1])
    monkeypatch.setattr(_bands.Bands, "add", add)
    with pytest.raises(DuplicateLocationError):
        stitcher.push(ONES, LOCS[:1])
    stitcher.push(ONES * 3, LOCS[1:2])
    assert stitcher.finalize().outputs[0].sum() == 16 + 48


@pytest.mark.parametrize("blend", ["average", "max"])
def test_bands_that_cannot_be_had_leave_the_map_as_it_was(blend, monkeypatch, tuned):
    """No memory for the second of two bands: nothing of the first is in the result."""
    tuned(band_nbytes=8 * 4 * 4)
    make = _bands.Bands._make

    def fail(bands, number):
        if number == 1:
            raise MemoryLimitError("no")
        return make(bands, number)

    stitcher = Stitcher([[0, 0, 8, 8]], blend=blend, fill_value=np.nan)
    monkeypatch.setattr(_bands.Bands, "_make", fail)
    with pytest.raises(MemoryLimitError):
        stitcher.push(np.ones((1, 8, 8), np.float32), [[0, 0, 8, 8]])
    assert np.isnan(stitcher.finalize().outputs[0]).all()


def test_no_memory_to_finish_a_band_is_no_end(monkeypatch):
    """The batch was taken; the next call finishes the band."""
    strips = _bands.Bands._strips

    def fail(*_):
        raise MemoryError

    stitcher = Stitcher(LOCS)
    monkeypatch.setattr(_bands.Bands, "_strips", fail)
    with pytest.raises(MemoryError):
        stitcher.push(np.ones((len(LOCS), 4, 4), np.float32), LOCS)
    assert stitcher.written.all()
    monkeypatch.setattr(_bands.Bands, "_strips", strips)
    assert stitcher.finalize().outputs[0].sum() == 64


def test_result_in_memory_is_told_of_band_by_band(tuned):
    """What has come grows with the bands, and stays where an error ends them."""
    tuned(least_band_nbytes=4 * 8 * 4)
    locs = raster((32, 8), (4, 4), (4, 4))
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.ones((len(locs), 4, 4), np.float32), locs)
    come = []

    def on_band(rows, _values):
        stitchers = [each for each in gc.get_objects() if isinstance(each, Stitcher) and each._delivery]
        come.append((rows.start, max(int(each.written.sum()) for each in stitchers)))
        if len(come) == 5:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        stitch(accumulator.finalize(), on_band=on_band)
    assert come == [(row, row // 2) for row in range(0, 20, 4)]

"""Every pixel is right: that of a reference, in any dtype and blend."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers.map_cases import cases
from helpers.maps import assert_right, boxes, raster, reference
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator.exceptions import BlendWarning, HeadDtypeError, HeadValueError


@pytest.mark.usefixtures("bands")
@given(case=cases(), is_streamed=st.booleans(), threshold=st.sampled_from([100, 100, 100, 0]))
@settings(max_examples=examples(150, "ACCUMULATOR_STITCH_EXAMPLES"))
def test_map_is_the_reference(case, is_streamed, threshold):
    """Every pixel is that of the reference, whatever overlaps, is missing, late, or reaches over the edge."""
    locs, shape, origin, values, come, blend, fill = case
    where = {"memory_threshold": threshold}
    options = {"blend": blend, "output_shape": shape, "origin": origin, "fill_value": fill, **where}
    options["crop"] = "start"  # some boxes are cut anywhere
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
    with Stitcher(locs, crop="start") as stitcher:
        stitcher.push(np.stack([np.zeros((2, 2)), np.ones((2, 2))]), locs)
    assert stitcher.finalize().outputs[0].tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("dtype", "blend"),
    [
        *((dtype, "average") for dtype in ("u1", "i2", "u2", "f2", "f4", "f8", "?")),
        ("u1", "hann"),
        ("f2", "hann"),
    ],
)
def test_three_hundred_patches_on_a_pixel(dtype, blend):
    """No count wraps and no sum overflows, however many patches meet."""
    n, length = 300, 301
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
    with Stitcher(locs, crop="start") as stitcher:
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


@pytest.mark.parametrize("kind", ["Stitcher", "FullBatchAccumulator", "stitch"])
def test_dtype_means_the_same_everywhere(where, kind):
    """A batch of any dtype is taken as the one asked for; what that cannot hold is refused."""
    locs = raster((1, 6), (1, 1), (1, 1))
    kinds = {"Stitcher": Stitcher, "FullBatchAccumulator": FullBatchAccumulator}
    batches = [np.array([[[3]]], dtype) for dtype in ("u2", "u4", "f4", "i8", "?", "f8")]
    asked = "uint32" if kind in kinds else None
    with kinds.get(kind, FullBatchAccumulator)(locs, dtype=asked, **where) as taker:
        for row, batch in enumerate(batches):
            taker.push(batch if kind in kinds else batch.astype("f8"), locs[[row]])
            for wrong in [2.5, -1, 2**32, np.nan, 1j] if kind in kinds and row < 5 else []:
                with pytest.raises((HeadValueError, HeadDtypeError), match="dtype=uint32 cannot hold"):
                    taker.push(np.array([[[wrong]]]), locs[[row + 1]])
    result = taker.finalize()
    if kind == "stitch":
        result = stitch(result, dtype="uint32", **where)
    output = np.asarray(result.outputs[0][:])
    assert output.dtype == np.uint32
    assert output.ravel().tolist() == [3, 3, 3, 3, 1, 3]


def test_first_value_that_the_dtype_cannot_hold_leaves_the_heads_open():
    """A first push that is refused has fixed nothing."""
    with Stitcher([[0, 0, 3, 1]], dtype="i1") as stitcher:
        with pytest.raises(HeadValueError, match="-1000"):
            stitcher.push([np.array([[[-1000, 5, 1000]]], dtype="i4")], [[0, 0, 3, 1]])
        stitcher.push({"a": np.array([[[[-100.0], [5], [100]]]])}, [[0, 0, 3, 1]])
    assert stitcher.finalize().outputs["a"][..., 0].tolist() == [[-100, 5, 100]]


MEETING = np.array([[0, 0, 2, 1], [1, 0, 3, 1]])
CLASSES = np.array([[[0, 0]], [[2, 2]]])


@pytest.mark.parametrize("is_streamed", [True, False])
def test_mean_of_integers_that_nobody_asked_for_warns(is_streamed):
    """Once, with the blends that are for labels: class 1 appears where 0 and 2 meet."""
    kind = Stitcher if is_streamed else FullBatchAccumulator
    with pytest.warns(BlendWarning, match=r'"vote", "last" or "max"') as caught:  # noqa: PT031
        with kind(MEETING) as taker:
            for row in range(2):
                heads = {"class": CLASSES.astype("u1"), "p": CLASSES.astype("f4")}
                taker.push({name: head[[row]] for name, head in heads.items()}, MEETING[[row]])
        maps = taker.finalize() if is_streamed else stitch(taker.finalize())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert maps.outputs["class"].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("options", "dtype", "locs"),
    [
        ({"blend": "average"}, "u1", MEETING),
        ({"blend": "last"}, "i8", MEETING),
        ({"blend": "hann"}, "i2", MEETING),
        ({"blend": np.ones((1, 2))}, "i2", MEETING),
        ({"dtype": "f4"}, "u1", MEETING),
        ({}, "f4", MEETING),
        ({}, "?", MEETING),
        ({}, "u1", [[0, 0, 2, 1], [2, 0, 4, 1]]),
        ({}, "u1", [[1, 0, 3, 1], [3, 0, 5, 1]]),
    ],
)
def test_mean_that_is_meant_or_makes_nothing_new_does_not_warn(options, dtype, locs):
    """One that was said, of floats or bools, or of tiles that do not meet."""
    with Stitcher(locs, **options) as stitcher:
        stitcher.push(CLASSES.astype(dtype), locs)


@given(
    starts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6, unique=True),
    patch=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_boxes_that_meet_are_found(starts, patch):
    """Whether any two share a pixel, whatever the cells are that they are looked up by."""
    locs = boxes(starts, patch) if starts else np.empty((0, 4), int)
    covered = np.zeros((20, 20), int)
    for x, y, end_x, end_y in locs.tolist():
        covered[y:end_y, x:end_x] += 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Stitcher(locs, heads=[(patch, "u1")], output_shape=(20, 20)):
            pass
    assert any(each.category is BlendWarning for each in caught) == (covered.max() > 1)


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_largest_integers_are_themselves(dtype):
    """The mean of one value is that value, though no float64 holds it."""
    locs = [[0, 0, 2, 1]]
    values = np.array([[[np.iinfo(dtype).max, np.iinfo(dtype).min]]], dtype=dtype)
    with Stitcher(locs) as stitcher:
        stitcher.push(values, locs)
    np.testing.assert_array_equal(stitcher.finalize().outputs[0], values[0])


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


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_hann_is_the_formula_that_is_documented(size):
    """``np.hanning(n + 2)[1:-1]`` on each axis of the whole patch, also where its box was cut."""
    locs = np.array([[0, 0, size, size], [1, 0, 1 + size, size], [2, 0, 1 + size, size]])[: 2 + (size > 1)]
    patches = np.random.default_rng(0).random((len(locs), size, size))
    window = np.hanning(size + 2)[1:-1]
    sums, weights = np.zeros((2, size, size + 1))
    for (x, _, end, _), patch in zip(locs, patches, strict=True):
        sums[:, x:end] += (patch * np.outer(window, window))[:, : end - x]
        weights[:, x:end] += np.outer(window, window)[:, : end - x]
    with Stitcher(locs, blend="hann") as stitcher:
        stitcher.push(patches, locs)
    np.testing.assert_allclose(stitcher.finalize().outputs[0], sums / weights, rtol=1e-12)


@pytest.mark.parametrize("blend", ["average", "gaussian", "hann"])
@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_mean_of_the_largest_64_bit_integers_is_near_them(dtype, blend):
    """A sum of weighted ones may be rounded beyond them, which would turn over."""
    locs = raster((40, 40), (16, 16), (3, 5))
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        with Stitcher(locs, blend=blend) as stitcher:
            stitcher.push(np.full((len(locs), 16, 16), value, dtype), locs)
        made = stitcher.finalize().outputs[0]
        assert (abs(made.astype(np.longdouble) - value) <= 2**13).all()  # what float64 rounds

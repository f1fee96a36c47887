"""A number that is no prediction does not count where another patch has one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers.map_cases import cases
from helpers.maps import LOCS, ONES, assert_right, raster, reference_with_nodata
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, stitch
from accumulator._cli.commands import main
from accumulator.exceptions import OptionError

MEETING = np.array([[0, 0, 3, 1], [1, 0, 4, 1]])


@pytest.mark.usefixtures("bands")
@given(
    case=cases(),
    is_streamed=st.booleans(),
    threshold=st.sampled_from([100, 100, 0]),
    has_zeros=st.booleans(),
    data=st.data(),
)
@settings(max_examples=examples(50, "ACCUMULATOR_STITCH_EXAMPLES"))
def test_map_with_nodata_is_the_reference(case, is_streamed, threshold, has_zeros, data):
    """Number by number, whatever overlaps, is late, or reaches over the edge; in every blend."""
    locs, shape, origin, values, come, blend, fill = case
    choices = (
        [0, 1] if values.dtype.kind in "?b" else [3, 0] + [math.nan, -3.25] * (values.dtype.kind in "fc")
    )
    nodata = data.draw(st.sampled_from(choices))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = np.where(rng.random(values.shape) < 0.4, np.asarray(nodata).astype(values.dtype), values).astype(
        values.dtype
    )
    if not isinstance(blend, str) and has_zeros:
        blend = blend * (rng.random(blend.shape) < 0.7)
        blend.flat[0] = 1
    where = {"memory_threshold": threshold}
    options = {"blend": blend, "output_shape": shape, "origin": origin, "fill_value": fill, "nodata": nodata}
    options |= where | {"crop": "start"}
    if is_streamed:
        with Stitcher(locs, **options) as stitcher:
            for rows in np.array_split(come, max(1, len(come) // 4)):
                stitcher.push(values[rows], locs[rows])
        maps = stitcher.finalize()
    else:
        with FullBatchAccumulator(locs, **where) as accumulator:
            accumulator.push(values[come], locs[come])
        maps = stitch(accumulator.finalize(), **options)
    rows = np.sort(come)
    expected, size = reference_with_nodata(values[rows], locs[rows], shape, origin, blend, fill, nodata)
    got = np.array(maps.outputs[0][...])
    is_empty = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), is_empty)
    got[is_empty] = expected[is_empty] = 0
    assert_right(got, expected, np.maximum(size, np.abs(expected)), values.dtype)
    maps.close()


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("blend", ["average", "gaussian", "hann", "max", "last", np.ones((1, 3))], ids=str)
@pytest.mark.parametrize(("dtype", "nodata"), [("f4", np.nan), ("u1", 255), ("f4", -3.4028234663852886e38)])
def test_one_tile_without_data_and_one_with_it(is_streamed, blend, dtype, nodata):
    """The valid one counts; where both have none, the map has none; where no patch is, the fill value."""
    values = np.array([[[[7, nodata], [nodata, nodata], [nodata, 5]]], [[[3, nodata], [4, 4], [nodata, 6]]]])
    values = values.astype(dtype)
    options = {"blend": blend, "nodata": nodata, "output_shape": (1, 5), "fill_value": 9}
    for order in ([0, 1], [1, 0]):
        if is_streamed:
            with Stitcher(MEETING, **options) as stitcher:
                for row in order:
                    stitcher.push(values[[row]], MEETING[[row]])
            got = stitcher.finalize().outputs[0]
        else:
            with FullBatchAccumulator(MEETING) as accumulator:
                accumulator.push(values, MEETING)
            got = stitch(accumulator.finalize(), **options).outputs[0]
        expected = [[[7, nodata], [3, nodata], [4, np.nan], [nodata, 6], [9, 9]]]
        expected[0][2][1] = {"max": 5, "last": 4}.get(str(blend), got[0, 2, 1])
        np.testing.assert_allclose(got, np.array(expected).astype(dtype), rtol=1e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_last_of_the_list_that_has_data_counts_in_whatever_order_they_come(order):
    """All four cover pixel 3, and the last of the list has nothing there."""
    locs = np.array([[row, 0, row + 4, 1] for row in range(4)])
    values = np.repeat(np.arange(1, 5, dtype="f4"), 4).reshape(4, 1, 4)
    values[3, 0, 0] = np.nan
    with Stitcher(locs, blend="last", nodata=np.nan) as stitcher:
        for row in order:
            stitcher.push(values[[row]], locs[[row]])
    assert stitcher.finalize().outputs[0].tolist() == [[1, 2, 3, 3, 4, 4, 4]]


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("is_streamed", [True, False])
def test_values_too_large_to_be_added_up_beside_nodata(is_streamed):
    """A band that goes on in a wider dtype knows what it knew."""
    locs = raster((8, 12), (4, 4), (2, 2))
    values = np.ones((len(locs), 4, 4), np.float32)
    values[len(locs) // 2 :] = np.finfo("f4").max
    values[::3] = np.nan
    kind = Stitcher if is_streamed else FullBatchAccumulator
    with kind(locs, **({"blend": "hann", "nodata": np.nan} if is_streamed else {})) as taker:
        taker.push(values[:3], locs[:3])
        taker.push(values[3:], locs[3:])
    maps = taker.finalize() if is_streamed else stitch(taker.finalize(), blend="hann", nodata=np.nan)
    expected, size = reference_with_nodata(values, locs, (8, 12), (0, 0), "hann", 0, np.nan)
    got = np.array(maps.outputs[0])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    got[np.isnan(got)] = expected[np.isnan(expected)] = 0
    assert_right(got, expected, size, "f4")


def test_nodata_by_head():
    """Heads that the dict does not name have none; the map of the other head is what it was."""
    values = np.array([[[1, np.nan, 1]], [[3, 3, 3]]], np.float32)
    with Stitcher(MEETING, nodata={"a": np.nan}) as stitcher:
        stitcher.push({"a": values, "b": values}, MEETING)
    maps = stitcher.finalize().outputs
    assert maps["a"].tolist() == [[1, 3, 2, 3]]
    np.testing.assert_array_equal(maps["b"], [[1, np.nan, 2, 3]])


@pytest.mark.parametrize(
    ("nodata", "said"),
    [
        (np.nan, "nodata of head 0 is nan, which uint8 cannot hold"),
        (-9999, "nodata of head 0 is -9999"),
        (1.5, "nodata"),
        ("none", "nodata"),
        ({3: 0}, "nodata has an entry for head 3"),
        ([1, 2], "nodata"),
    ],
)
def test_nodata_that_a_head_cannot_have_is_refused(nodata, said):
    """At the first push, of which nothing was taken."""
    with Stitcher(LOCS, nodata=nodata) as stitcher:
        with pytest.raises(OptionError, match=said):
            stitcher.push(ONES.astype("u1"), LOCS[:1])
        assert not stitcher.written.any()
        stitcher.close()


def test_memory_of_nodata_is_known():
    """Open bands say what they take, with what is known of each number."""
    sizes = {}
    for nodata in (None, 255):
        for blend in ("average", "max", "last"):
            stitcher = Stitcher(LOCS, blend=blend, nodata=nodata)
            stitcher.push(ONES.astype("u1"), LOCS[:1])
            sizes[nodata, blend] = stitcher.open_nbytes
            stitcher.close()
    assert sizes[255, "average"] == 2 * sizes[None, "average"]
    assert sizes[255, "max"] == 2 * sizes[None, "max"]
    assert sizes[255, "last"] == 5 * sizes[None, "last"]


def test_command_takes_nodata():
    """As `stitch` does."""
    values = np.array([[[1, np.nan, 1]], [[3, 3, 3]]], np.float32)
    with FullBatchAccumulator(MEETING, store="run.zarr") as accumulator:
        accumulator.push(values, MEETING)
    assert main(["stitch", "run.zarr", "-o", "map.zarr", "--nodata", "nan"]) == 0
    assert FullBatch.load("map.zarr").outputs[0][:].tolist() == [[1, 3, 2, 3]]

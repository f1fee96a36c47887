"""Blends by name or by head, weights that come with a batch, and values that are spread over their boxes."""

from __future__ import annotations

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from helpers.blends import blended
from helpers.map_cases import cases
from helpers.maps import assert_right, raster
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, Stitcher, publish, stitch
from accumulator._stitching.frame import Frame
from accumulator._stitching.votes import Votes
from accumulator.exceptions import (
    BlendWarning,
    HeadError,
    HeadValueError,
    LocationError,
    OptionError,
    ResumeError,
)

EXAMPLES = examples(170, "ACCUMULATOR_STITCH_EXAMPLES")  # in one band, in many, and behind the caller
MEETING = np.array([[0, 0, 4, 1], [2, 0, 6, 1]])


def draw_weights(data, rng, n, patch):
    """Draw what pixels of patches count: nothing, a number a patch, masks, or any numbers."""
    kind = data.draw(st.sampled_from(["none", "a number a patch", "masks", "any"]))
    if kind == "none":
        return None, None
    if kind == "a number a patch":
        weights = rng.choice([0, 0.25, 1, 3], n).astype("f4")
        return weights, np.broadcast_to(weights.reshape(n, *(1 for _ in patch)), (n, *patch))
    if kind == "masks":
        weights = rng.random((n, *patch)) < 0.7
        return weights, weights
    weights = np.where(rng.random((n, *patch)) < 0.2, 0, rng.random((n, *patch)) + 0.01)
    return weights, weights


@pytest.mark.usefixtures("bands")
@given(
    case=cases(),
    how=st.sampled_from(["streamed", "whole", "stored"]),
    threshold=st.sampled_from([100, 100, 0]),
    blend=st.sampled_from(["min", "nearest", "vote", ("vote", "hann"), ("vote", "gaussian"), None]),
    has_nodata=st.booleans(),
    data=st.data(),
)
@settings(max_examples=EXAMPLES)
def test_map_is_the_reference(case, how, threshold, blend, has_nodata, data):
    """Number by number, whatever overlaps, is missing, late, counts more or not at all, or reaches over."""
    locs, shape, origin, values, come, drawn, fill = case
    blend = drawn if blend is None else blend
    kind, patch = values.dtype.kind, values.shape[1 : 1 + len(shape)]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    if isinstance(blend, tuple) or (isinstance(blend, str) and blend == "vote"):
        if kind in "fc":
            values, kind, fill = np.zeros(values.shape, "i4"), "i", 0 if fill != 7 else 7
        few = rng.integers(0, 2 if kind == "b" else 4, values.shape)
        values = few.astype(values.dtype)
    if kind == "c" and isinstance(blend, str) and blend in {"min", "max"}:
        blend = "nearest"
    nodata = None
    if has_nodata:
        nodata = data.draw(st.sampled_from([1] if kind in "bui" else [3.0, math.nan]))
        hole = np.asarray(nodata).astype(values.dtype)
        values = np.where(rng.random(values.shape) < 0.3, hole, values).astype(values.dtype)
    weights, laid = draw_weights(data, rng, len(locs), patch)
    options = {"blend": blend, "output_shape": shape, "origin": origin, "fill_value": fill, "nodata": nodata}
    options |= {"memory_threshold": threshold, "crop": "start"}
    if how == "streamed":
        with Stitcher(locs, **options) as stitcher:
            for rows in np.array_split(come, max(1, len(come) // 4)):
                own = {} if weights is None else {"weights": weights[rows]}
                stitcher.push(values[rows], locs[rows], **own)
        maps = stitcher.finalize()
    else:
        with FullBatchAccumulator(locs, memory_threshold=100 if how == "whole" else 0) as accumulator:
            heads = {"a": values[come]} | ({} if weights is None else {"w": weights[come]})
            accumulator.push(heads, locs[come])
        maps = stitch(accumulator.finalize(), weights=None if weights is None else "w", **options)
    rows = np.sort(come)
    expected, gaps, size = blended(
        values[rows],
        locs[rows],
        shape,
        origin,
        blend,
        fill,
        nodata=nodata,
        given=None if laid is None else laid[rows],
    )
    (got,) = maps.outputs.values() if isinstance(maps.outputs, dict) else maps.outputs
    got = np.array(got[...])
    if nodata is not None:  # where boxes are and nothing counts there is nodata, whose weight may be 0
        is_empty = gaps & (got == nodata if nodata == nodata else np.isnan(got))  # noqa: PLR0124  NaN
        got[is_empty] = expected[is_empty] = 0
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    got[np.isnan(got)] = expected[np.isnan(expected)] = 0
    assert_right(got, expected, np.maximum(size, np.abs(expected)), values.dtype)
    maps.close()


def maps_of(heads, locs, how, tmp_path=None, *, order=None, **options):
    """Return maps of a dict of heads: streamed in an order, or from a result in RAM or on disk."""
    order = np.arange(len(locs)) if order is None else np.asarray(order)
    if how == "streamed":
        with Stitcher(locs, **options) as stitcher:
            for rows in np.array_split(order, 3):
                stitcher.push({name: head[rows] for name, head in heads.items()}, locs[rows])
        return stitcher.finalize()
    with FullBatchAccumulator(locs, memory_threshold=0 if how == "stored" else 100) as accumulator:
        accumulator.push({name: head[order] for name, head in heads.items()}, locs[order])
    if how != "ranks":
        return stitch(accumulator.finalize(), **options)
    store = tmp_path / "maps.zarr"
    for rank in (1, 0, 2):
        stitch(accumulator.finalize(), store=store, rank=rank, world_size=3, chunks=2, **options)
    publish(store).close()
    return StitchedMap.load(store)


HOW = ["streamed", "whole", "stored", "ranks"]
TILES = raster((9, 14), (4, 6), (2, 3))


@pytest.mark.parametrize("how", HOW)
def test_each_head_has_its_own_blend(how, tmp_path):
    """A dict by head: each map is what it is with that blend alone."""
    rng = np.random.default_rng(0)
    heads = {
        "p": rng.random((len(TILES), 4, 6, 2), dtype="f4"),
        "label": rng.integers(0, 3, (len(TILES), 4, 6)).astype("u1"),
        "top": rng.random((len(TILES), 4, 6)),
    }
    blends = {"p": "hann", "label": ("vote", "hann"), "top": "min"}
    order = rng.permutation(len(TILES))
    maps = maps_of(heads, TILES, how, tmp_path, order=order, blend=blends)
    for name, blend in blends.items():
        alone = maps_of({name: heads[name]}, TILES, "whole", blend=blend).outputs[name]
        np.testing.assert_allclose(maps.outputs[name][...], alone, rtol=1e-6, err_msg=name)
        expected, _, size = blended(heads[name], TILES, (8, 12), (0, 0), blend, 0)
        assert_right(np.array(maps.outputs[name][...]), expected, size, alone.dtype)


def test_head_that_a_dict_of_blends_does_not_name_has_the_default():
    """So integers warn, as nobody has said what they are."""
    heads = {"a": np.array([[[0, 0, 0, 0]], [[2, 2, 2, 2]]]), "b": np.array([[[0, 0, 0, 0]], [[2, 2, 2, 2]]])}
    with pytest.warns(BlendWarning, match="'b'") as caught:
        maps = maps_of(heads, MEETING, "streamed", blend={"a": "max"})
    assert len(caught) == 1
    assert maps.outputs["a"].tolist() == [[0, 0, 2, 2, 2, 2]]
    assert maps.outputs["b"].tolist() == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("blend", "said"),
    [
        ("nearby", "'nearby'.*nearest"),
        (("vote", "box"), "'box'"),
        (("average", "hann"), "average"),
        ({"c": "max"}, "head 'c'"),
        (("vote", -np.ones((1, 4))), "negative"),
    ],
)
def test_blends_that_there_are_not_are_refused(blend, said):
    """With those that there are."""
    with pytest.raises(OptionError, match=said), Stitcher(MEETING, blend=blend) as stitcher:
        stitcher.push({"a": np.zeros((2, 1, 4), int)}, MEETING)


@pytest.mark.parametrize(("dtype", "blend"), [("f4", "vote"), ("c8", "min"), ("c8", "vote")])
def test_blends_that_values_have_not_are_refused(dtype, blend):
    """Classes are integers, and complex numbers have no smallest."""
    with Stitcher(MEETING, blend=blend) as stitcher:
        with pytest.raises(HeadError, match="head 0"):
            stitcher.push(np.zeros((2, 1, 4), dtype), MEETING)
        stitcher.close()


def test_votes_for_many_classes_on_one_pixel(where):
    """Each of 40 patches says something else, and one class is said twice; no class is too large."""
    locs = np.array([[-row, 0, 40 - row, 1] for row in range(40)])
    values = np.repeat(np.arange(40, dtype="i8") * -(2**40), 40).reshape(40, 1, 40)
    values[7] = values[3]
    with Stitcher(locs, blend="vote", output_shape=(1, 1), origin=(0, 0), **where) as stitcher:
        for rows in np.array_split(np.random.default_rng(0).permutation(40), 7):
            stitcher.push(values[rows], locs[rows])
    assert stitcher.finalize().outputs[0][...].tolist() == [[-3 * 2**40]]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "blend", ["average", "hann", "max", "min", "last", "nearest", "vote", np.ones((4, 6))], ids=str
)
def test_spread_values_are_those_of_patches_that_have_them_everywhere(how, blend, tmp_path):
    """With channels or without, in any blend, with a fill value where none is."""
    rng = np.random.default_rng(1)
    locs = np.vstack([TILES, [[20, 2, 26, 6]]])
    values = rng.integers(0, 3, (len(locs), 2)).astype("f4" if str(blend) != "vote" else "i4")
    order = rng.permutation(len(locs))
    wide = np.broadcast_to(values[:, None, None, :], (len(locs), 4, 6, 2))
    got = maps_of(
        {"c": values, "s": values[:, 0]},
        locs,
        how,
        tmp_path,
        order=order,
        blend=blend,
        spread=True,
        fill_value=9,
    )
    expected = maps_of({"c": wide, "s": wide[..., 0]}, locs, "whole", blend=blend, fill_value=9)
    for name in ("c", "s"):
        assert got.outputs[name].shape == expected.outputs[name].shape
        np.testing.assert_allclose(got.outputs[name][...], expected.outputs[name][...], rtol=1e-6)
    np.testing.assert_array_equal(got.coverage(), expected.coverage())
    path = tmp_path / "kept.zarr"
    got.save(path)
    np.testing.assert_array_equal(StitchedMap.load(path).coverage(), expected.coverage())


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("how", ["streamed", "whole"])
def test_votes_that_are_rounded_tie(how):
    """Two votes that add up to a third are as many, though each is rounded: the lowest class wins."""
    locs = np.array([[0, 0, 0, 4, 3, 2], [1, 0, 0, 5, 3, 2], [0, 1, 0, 4, 4, 2], [1, 1, 0, 5, 4, 2]])
    locs = np.vstack([locs, [[0, 2, 0, 4, 5, 2]]])
    values = np.random.default_rng(0).integers(0, 4, (5, 2, 3, 4)).astype("u1")
    options = {"blend": ("vote", "hann"), "output_shape": (2, 5, 5), "origin": [0, 0, 0], "crop": "start"}
    expected, _, _ = blended(values, locs, (2, 5, 5), [0, 0, 0], ("vote", "hann"), 0)
    assert expected[0, 2, 0] == 0
    np.testing.assert_array_equal(maps_of({"a": values}, locs, how, **options)["a"], expected)


@pytest.mark.parametrize(
    ("votes", "slack", "expected"),
    [
        ([(5, 100), (3, 80)], 32, 3),
        ([(3, 80), (5, 100)], 32, 3),
        ([(5, 100), (3, 67)], 32, 5),
        ([(3, 67), (5, 100)], 32, 5),
        ([(5, 100), (3, 80)], 0, 5),
        ([(5, 100), (3, 100), (4, 100)], 0, 3),
        ([(9, 90), (5, 70), (3, 50), (7, 100)], 32, 5),  # what is compared is the most, not the last winner
        ([(3, 20), (5, 0)], 32, 3),
    ],
)
def test_votes_that_are_nearly_as_many(votes, slack, expected):
    """The lowest class of those whose votes differ from the most by no more than what rounding does."""
    slots = [(np.array([each], "u1"), np.array([n], "f8")) for each, n in votes]
    winner, most = Votes(slots, lambda: slots[0], slack=slack).won()
    assert winner == expected
    assert most == max(n for _, n in votes)


@pytest.mark.parametrize("how", ["streamed", "whole"])
def test_a_box_smaller_than_a_pixel_fills_one(how):
    """It is seen on the map, however coarse that is."""
    locs = np.array([[0, 0, 2, 2], [20, 0, 22, 2], [31, 0, 33, 2]])
    heads = {"a": np.array([[1], [2], [3]], "f4")}
    maps = maps_of(heads, locs, how, spread=True, scale=1 / 10, fill_value=9)
    assert maps["a"][..., 0].tolist() == [[1, 9, 2, 3]]


@given(
    n_axes=st.integers(1, 3),
    size=st.integers(1, 40),
    factor=st.fractions(1 / 50, 2),
    n=st.integers(1, 5),
    is_streamed=st.booleans(),
)
@settings(max_examples=EXAMPLES // 3)
def test_spread_boxes_side_by_side_leave_no_gap_in_any_scale(n_axes, size, factor, n, is_streamed):
    """Each pixel is that of a box whose rounded edges are around it; as many as one a patch, or fewer."""
    locs = raster((size * n,) * n_axes, (size,) * n_axes, (size,) * n_axes)
    values = np.arange(1.0, len(locs) + 1)
    options = {"scale": float(factor), "spread": True, "blend": "last"}
    maps = maps_of({"v": values}, locs, "streamed" if is_streamed else "whole", **options)
    edges = np.floor(np.arange(n + 1) * size * float(factor) + 0.5).astype(int)
    stop = np.maximum(edges[1:], edges[:-1] + 1)
    expected = np.zeros((stop.max(),) * n_axes)
    for value, at in zip(values, np.ndindex(*(n,) * n_axes), strict=True):
        expected[tuple(slice(edges[i], stop[i]) for i in at)] = value
    np.testing.assert_array_equal(maps.outputs["v"], expected)


def test_heat_map_with_one_pixel_a_patch():
    """The commonest wish: classes of tiles, beside the segmentation of the same tiles."""
    locs = raster((8, 12), (4, 4), (4, 4))
    probability = np.random.default_rng(0).random((len(locs), 3), dtype="f4")
    mask = np.random.default_rng(1).random((len(locs), 4, 4), dtype="f4")
    maps = maps_of({"p": probability, "m": mask}, locs, "whole", spread=True, scale={"p": 1 / 4})
    np.testing.assert_array_equal(maps.outputs["p"], probability.reshape(2, 3, 3))
    assert maps.outputs["m"].shape == (8, 12)
    assert maps.scale == {"p": (0.25, 0.25), "m": (1.0, 1.0)}


@pytest.mark.parametrize(
    ("values", "spread", "said"),
    [
        (np.zeros((2, 3)), False, "spread=True"),
        (np.zeros((2, 1, 4)), {0: True}, "one value a patch"),
        (np.zeros(2), "yes", "spread is 'yes'"),
        (np.zeros(2), {1: True}, "head 1"),
    ],
)
def test_what_cannot_be_spread_is_refused(values, spread, said):
    """And who has one value a patch is told the word."""
    with pytest.raises((HeadError, OptionError), match=said), Stitcher(MEETING, spread=spread) as stitcher:
        stitcher.push(values, MEETING)


@pytest.mark.parametrize("how", HOW)
def test_argmax_is_that_of_the_map(how, tmp_path):
    """Of the blended probabilities, which are not stored; gaps have the fill value of the classes."""
    rng = np.random.default_rng(2)
    locs = np.vstack([TILES, [[20, 2, 26, 6]]])
    values = rng.random((len(locs), 4, 6, 5), dtype="f4")
    order = rng.permutation(len(locs))
    options = {"blend": "hann", "fill_value": 255}
    got = maps_of({"p": values}, locs, how, tmp_path, order=order, reduce="argmax", **options).outputs["p"]
    whole = maps_of({"p": values}, locs, "whole", blend="hann", fill_value=-1)
    expected = np.where(whole.coverage() > 0, whole.outputs["p"].argmax(-1), 255)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[...], expected)


@pytest.mark.parametrize("how", HOW)
def test_any_function_of_a_band(how, tmp_path):
    """Of one head of two; the other is what it was. Numbers that no patch has count as gaps."""
    values = np.random.default_rng(3).random((len(TILES), 4, 6, 2), dtype="f4")
    values[3] = np.nan
    maps = maps_of(
        {"p": values, "q": values},
        TILES,
        how,
        tmp_path,
        reduce={"p": lambda rows: rows.max(-1) > 0.5},
        nodata={"p": np.nan},
    )
    whole = maps_of({"p": values}, TILES, "whole", nodata=np.nan).outputs["p"]
    np.testing.assert_array_equal(maps.outputs["p"][...], np.nan_to_num(whole).max(-1) > 0.5)
    np.testing.assert_allclose(
        maps.outputs["q"][...], maps_of({"q": values}, TILES, "whole").outputs["q"], rtol=1e-6
    )


def test_on_band_gets_what_is_stored_and_it_is_made_once():
    """A function may be dear."""
    bands, called = [], []

    def halve(rows):
        called.append(len(rows))
        return rows.sum(-1)

    with Stitcher(TILES, reduce=halve, on_band=lambda _, maps: bands.append(maps[0].copy())) as stitcher:
        stitcher.push(np.ones((len(TILES), 4, 6, 3), "f4"), TILES)
    got = stitcher.finalize().outputs[0]
    np.testing.assert_array_equal(np.concatenate(bands), got)
    assert sum(called) == len(got) + 1  # and a row to see what it makes


@pytest.mark.parametrize(
    ("reduce", "error", "said"),
    [
        (lambda rows: rows.sum(), HeadError, r"<lambda> made \(\) of head 0"),
        (lambda rows: rows.astype(object), HeadError, "object"),
        ({3: "argmax"}, OptionError, "head 3"),
        (lambda _: 1 / 0, ZeroDivisionError, "zero"),
    ],
)
def test_what_makes_no_map_of_a_band_is_refused(reduce, error, said):
    """At the first push, before anything is taken."""
    stitcher = Stitcher(TILES, reduce=reduce)
    with pytest.raises(error, match=said):
        stitcher.push(np.ones((1, 4, 6, 3), "f4"), TILES[:1])
    assert not stitcher.written.any()
    stitcher.close()


def test_a_word_that_there_is_not():
    """It is refused before anything is pushed."""
    with pytest.raises(OptionError, match="argmin"):
        Stitcher(TILES, reduce="argmin")


def test_argmax_needs_channels():
    """The error names the head."""
    with Stitcher(TILES, reduce="argmax") as stitcher:
        with pytest.raises(HeadError, match="head 0 has no channels"):
            stitcher.push(np.ones((1, 4, 6), "f4"), TILES[:1])
        stitcher.close()


def test_a_function_that_fails_half_way_is_called_again():
    """Its band waits, and nothing is lost."""
    fails = [True]

    def picky(rows):
        if rows.any() and fails.pop():
            fails.append(False)
            raise ZeroDivisionError("of the user's")
        fails[:] = fails or [False]
        return rows[..., 0]

    stitcher = Stitcher(MEETING, reduce=picky)
    with pytest.raises(ZeroDivisionError):
        stitcher.push(np.ones((2, 1, 4, 1), "f4"), MEETING)
    with stitcher:
        assert stitcher.written.all()
    assert stitcher.finalize().outputs[0].tolist() == [[1.0] * 6]


def test_bands_do_not_wait_for_what_will_not_come(where):
    """They are delivered at once, those that waited before too; what came stays."""
    locs = raster((64, 4), (4, 4), (4, 4))
    values = np.arange(1.0, 17).repeat(16).reshape(16, 4, 4)
    tops = []
    with Stitcher(locs, fill_value=-1, on_band=lambda rows, _: tops.append(rows.start), **where) as stitcher:
        stitcher.push(values[1:12], locs[1:12])
        assert not tops
        stitcher.will_not_come(locs[[0, 3]])
        stitcher.will_not_come(locs[12:])
        assert tops
        assert stitcher.open_nbytes == 0
        with pytest.raises(LocationError, match="will_not_come"):
            stitcher.push(values[:1], locs[:1])
        with pytest.raises(KeyError):
            stitcher.will_not_come([[1, 1, 2, 2]])
    maps = stitcher.finalize()
    np.testing.assert_array_equal(maps.written, (np.arange(16) > 0) & (np.arange(16) < 12))
    assert maps.outputs[0][:, 0].tolist() == [*[-1] * 4, *np.arange(2.0, 13).repeat(4), *[-1] * 16]


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        (np.ones((2, 1, 3)), HeadError, r"\(2, 1, 3\).*\(2,\) or \(2, 1, 4\)"),
        (np.ones(3), HeadError, r"\(3,\)"),
        ([1, -1], HeadValueError, "-1"),
        ([1, np.nan], HeadValueError, "nan"),
        ([1, np.inf], HeadValueError, "inf"),
        ([1, 1e-200], HeadValueError, "e-200"),
        (["a", "b"], OptionError, "weights"),
        ({"b": [1, 1]}, OptionError, "head 'b'"),
    ],
)
def test_weights_that_are_none_are_refused(weights, error, said):
    """Nothing of the batch is taken then."""
    with Stitcher(MEETING) as stitcher:
        with pytest.raises(error, match=said):
            stitcher.push(np.ones((2, 1, 4)), MEETING, weights=weights)
        assert not stitcher.written.any()
        stitcher.push(np.ones((2, 1, 4)), MEETING)
    assert stitcher.finalize().outputs[0].tolist() == [[1.0] * 6]


def test_weights_come_from_the_first_batch_on():
    """Later ones are refused, as what came before counts already; without them a batch counts 1."""
    values = np.array([[[0.0] * 4], [[4.0] * 4]])
    with Stitcher(MEETING) as stitcher:
        stitcher.push(values[:1], MEETING[:1])
        with pytest.raises(OptionError, match="from the first batch on"):
            stitcher.push(values[1:], MEETING[1:], weights=[1])
        stitcher.close()
    for heads in (None, [((1, 4), "f8")]):
        with Stitcher(MEETING, heads=heads) as stitcher:
            stitcher.push(values[:1], MEETING[:1], weights=[3])
            stitcher.push(values[1:], MEETING[1:])
        assert stitcher.finalize().outputs[0].tolist() == [[0, 0, 1, 1, 4, 4]]


def test_weights_with_passes_that_are_averaged_are_refused():
    """A box counts as one there, whatever its passes say."""
    with Stitcher(MEETING, on_duplicate="average") as stitcher:
        with pytest.raises(OptionError, match="average"):
            stitcher.push(np.ones((2, 1, 4)), MEETING, weights=[1, 1])
        stitcher.close()


def test_weights_by_head_and_under_a_crop():
    """They are of patches as they are pushed; a head that is not named counts 1."""
    patches = np.stack([np.full((4, 6), 2.0), np.full((4, 6), 6.0)])
    weights = np.ones((2, 4, 6))
    weights[0, 1:3, 1:5] = 3
    locs = np.array([[0, 0, 4, 2], [2, 0, 6, 2]])
    with Stitcher(locs, crop="center") as stitcher:
        stitcher.push({"a": patches, "b": patches}, locs, weights={"a": weights})
    maps = stitcher.finalize().outputs
    assert maps["a"][0].tolist() == [2, 2, 3, 3, 6, 6]
    assert maps["b"][0].tolist() == [2, 2, 4, 4, 6, 6]


def test_stitch_takes_weights_from_a_head():
    """Which is no map then, unless it is asked for."""
    heads = {"p": np.array([[[0.0] * 4], [[4.0] * 4]]), "w": np.array([[[[1.0]] * 4], [[[3.0]] * 4]])}
    with FullBatchAccumulator(MEETING) as accumulator:
        accumulator.push(heads, MEETING)
    batch = accumulator.finalize()
    assert isinstance(batch, FullBatch)
    maps = stitch(batch, weights="w").outputs
    assert list(maps) == ["p"]
    assert maps["p"].tolist() == [[0, 0, 3, 3, 4, 4]]
    assert list(stitch(batch, heads=["p", "w"], weights="w").outputs) == ["p", "w"]
    with pytest.raises(OptionError, match="weights is"):
        stitch(batch, weights="v")


@pytest.mark.parametrize("blend", ["average", "min", "nearest", "vote", ("vote", "hann")], ids=str)
def test_passes_that_are_averaged_first(blend):
    """Their means are patches like others, spread or not; of integers they are rounded at the end."""
    values = np.array([[[0] * 4], [[4] * 4], [[2] * 4], [[4] * 4]])
    rows = [0, 1, 0, 1]
    with Stitcher(MEETING, blend=blend, on_duplicate="average", spread=True) as stitcher:
        if blend != "average":
            with pytest.warns(BlendWarning, match="passes"):
                stitcher.push([values, values[:, 0, :2].astype("i2")], MEETING[rows])
        else:
            stitcher.push([values, values[:, 0, :2].astype("i2")], MEETING[rows])
    maps = stitcher.finalize().outputs
    meet = {"average": 2, "nearest": [1, 4], ("vote", "hann"): [1, 4]}.get(blend, 1)
    expected = np.array([1, 1, 0, 0, 4, 4])
    expected[2:4] = meet
    assert maps[0].tolist() == [expected.tolist()]
    assert maps[1].tolist() == [[[number] * 2 for number in expected]]


@pytest.mark.parametrize("how", ["streamed", "whole", "ranks"])
@pytest.mark.parametrize(("blend", "value"), [("max", -5), ("min", 5)])
def test_values_too_large_in_one_head_leave_the_others_alone(how, blend, value, tmp_path):
    """A band that goes on in a wider dtype has in each head what its blend begins with."""
    heads = {"a": np.full((2, 1, 4), 3e38, "f4"), "b": np.full((2, 1, 4), value, "f4")}
    maps = maps_of(heads, MEETING, how, tmp_path, blend={"a": "average", "b": blend})
    assert (maps.outputs["a"][...] == np.float32(3e38)).all()
    assert (maps.outputs["b"][...] == value).all()


@pytest.mark.parametrize(
    "blend", ["average", "hann", "max", "min", "last", "nearest", ("vote", "hann")], ids=str
)
def test_what_has_no_weights_counts_one(blend):
    """A batch after one that had some, and a head that a dict does not name."""
    values = np.array([[[3] * 4], [[1] * 4]])
    plain = maps_of({"a": values}, MEETING, "streamed", blend=blend).outputs["a"]
    for weights in ([{"weights": [1]}, {}], [{"weights": {"b": [0]}}, {}]):
        with Stitcher(MEETING, blend=blend) as stitcher:
            for row, own in enumerate(weights):
                stitcher.push({"a": values[[row]], "b": values[[row]]}, MEETING[[row]], **own)
        np.testing.assert_array_equal(stitcher.finalize().outputs["a"], plain)


SIZES = np.array([[0, 0, 8, 4], [0, 4, 6, 8], [3, 4, 9, 8]])  # the largest does not come


@pytest.mark.parametrize("blend", ["average", "hann", "nearest", "last"])
def test_spread_boxes_of_other_sizes(blend, tmp_path):
    """Streamed and stitched are the same, with weights and without, whichever came."""
    rows, values, weights = [1, 2], np.array([1.0, 3.0]), np.array([1.0, 2.0])
    options = {"blend": blend, "spread": True, "output_shape": (8, 9)}
    for own in (None, weights):
        with Stitcher(SIZES, **options) as stitcher:
            stitcher.push({"a": values}, SIZES[rows], weights=own)
        expected = stitcher.finalize().outputs["a"]
        heads = {"a": values, "w": np.ones(2) if own is None else own}
        for threshold in (100, 0):
            with FullBatchAccumulator(SIZES, memory_threshold=threshold) as accumulator:
                accumulator.push(heads, SIZES[rows])
            batch = accumulator.finalize()
            maps = stitch(batch, weights="w", **options).outputs["a"]
            np.testing.assert_allclose(maps[...], expected, rtol=1e-12)
        store = tmp_path / f"{blend}-{own is None}"
        for rank in (0, 1):
            stitch(batch, weights="w", rank=rank, world_size=2, store=store, **options)
        publish(store).close()
        np.testing.assert_allclose(StitchedMap.load(store).outputs["a"][...], expected, rtol=1e-12)


def test_the_nearest_of_boxes_of_different_size():
    """Each box has its own centre; of two that are as near the first of the list counts."""
    locs = [[0, 0, 8, 1], [2, 0, 4, 1]]
    with Stitcher(locs, spread=True, blend="nearest") as stitcher:
        stitcher.push(np.array([1, 2]), locs)
    assert stitcher.finalize().outputs[0].tolist() == [[1, 1, 2, 1, 1, 1, 1, 1]]


def test_ranks_that_reduce_by_another_function_are_refused(tmp_path):
    """By its code, what it closes over and its partial arguments; the same one made again is not."""

    def times(number):
        return lambda rows: rows[..., 0] * number

    with FullBatchAccumulator(TILES) as accumulator:
        accumulator.push(np.ones((len(TILES), 4, 6, 2), "f4"), TILES)
    batch = accumulator.finalize()
    pairs = [
        (lambda rows: rows[..., 0] * 1, lambda rows: rows[..., 0] * 7),
        (times(-1), times(2)),
        (partial(np.max, axis=-1), partial(np.sum, axis=-1)),
        (lambda rows: rows[..., 0] * np.float32(2), "argmax"),
    ]
    for number, (one, other) in enumerate(pairs):
        store = tmp_path / f"{number}.zarr"
        stitch(batch, rank=0, world_size=2, store=store, reduce=one)
        with pytest.raises(ResumeError):
            stitch(batch, rank=1, world_size=2, store=store, reduce=other)
    store = tmp_path / "same.zarr"
    for rank in (0, 1):
        stitch(batch, rank=rank, world_size=2, store=store, reduce=times(3))
    publish(store).close()


@pytest.mark.parametrize(
    ("dtype", "make", "fill"),
    [
        ("f4", lambda rows: rows[..., 0].astype("u4"), 16777217),
        ("f2", "argmax", 65535),
        ("u1", lambda rows: rows[..., 0].astype("i2"), -1),
        ("u1", lambda rows: rows.mean(-1), math.nan),
        ("?", "argmax", 255),
    ],
)
def test_fill_value_is_that_of_what_is_stored(dtype, make, fill):
    """Whatever patches could hold; what is not reduced has its own."""
    values = np.ones((1, 2, 2, 300), dtype)
    with Stitcher(
        [[0, 0, 2, 2]], reduce={"a": make}, fill_value={"a": fill, "b": 1}, output_shape=(2, 3), blend="max"
    ) as stitcher:
        stitcher.push({"a": values, "b": values}, [[0, 0, 2, 2]])
    maps = stitcher.finalize().outputs
    np.testing.assert_array_equal(maps["a"][:, 2], [fill, fill])
    assert (maps["b"] == 1).all()
    with Stitcher([[0, 0, 2, 2]], reduce="argmax", fill_value=-1) as stitcher:
        with pytest.raises(OptionError, match="fill_value of head 0 is -1"):
            stitcher.push(values, [[0, 0, 2, 2]])
        stitcher.close()


def test_weights_of_what_never_came_are_not_looked_at():
    """In RAM as on disk: neither of rows that are missing, nor of those outside of the maps."""
    for threshold in (100, 0):
        with FullBatchAccumulator(MEETING, fill_value={"w": -1}, memory_threshold=threshold) as accumulator:
            accumulator.push({"a": np.ones((1, 1, 4)), "w": np.ones(1)}, MEETING[:1])
        maps = stitch(accumulator.finalize(), weights="w")
        assert maps.outputs["a"][...].tolist() == [[1, 1, 1, 1, 0, 0]]


def test_one_weight_a_patch_takes_no_room_for_each_pixel():
    """Boxes of 512 x 512 with a number each, and a number what it counts."""
    locs = np.array([[row, 0, row + 512, 512] for row in range(400)])
    with Stitcher(locs, spread=True, blend="last") as stitcher:
        tracemalloc.start()
        stitcher.push(np.arange(400.0), locs, weights=np.ones(400))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40e6
    assert stitcher.finalize().outputs[0][0, ::300].tolist() == [0, 300, 399, 399]


def test_weights_that_are_refused_in_the_first_batch_leave_nothing(tmp_path):
    """Neither heads nor a store."""
    stitcher = Stitcher(MEETING, store=tmp_path / "maps.zarr")
    with pytest.raises(HeadError, match="weights have shape"):
        stitcher.push(np.ones((2, 1, 4)), MEETING, weights=[1])
    assert not (tmp_path / "maps.zarr").exists()
    with stitcher:
        stitcher.push(np.ones((2, 1, 4, 2)), MEETING, weights=[1, 1])
    assert stitcher.finalize().outputs[0].shape == (1, 6, 2)


@pytest.mark.parametrize("nodata", [255, math.nan])
def test_argmax_is_of_channels_that_count(nodata):
    """One that is nodata is not the largest."""
    patch = np.array([[[[0.9, 0.1, nodata]]]])
    with Stitcher([[0, 0, 1, 1]], reduce="argmax", nodata=nodata) as stitcher:
        stitcher.push(patch, [[0, 0, 1, 1]])
    assert stitcher.finalize().outputs[0].tolist() == [[0]]


def test_spread_boxes_that_all_lie_before_the_origin():
    """Refused like patches there."""
    locs = [[80, 80, 103, 103], [70, 70, 102, 102]]
    with Stitcher(locs, spread=True, scale=1 / 16, origin=[100, 100]) as stitcher:
        with pytest.raises(OptionError, match="nothing lies behind origin"):
            stitcher.push(np.ones(2), locs)
        stitcher.close()


def test_votes_of_passes_are_for_whole_classes():
    """A mean of 3.5 is a vote for 4, as there is no class between."""
    locs = np.array([[0, 0, 1, 1], [-1, 0, 1, 1], [-1, -1, 1, 1]])
    passes = [np.array([3, 4, 0]), np.array([4, 4, 0])]
    with Stitcher(
        locs, blend="vote", spread=True, on_duplicate="average", origin=[0, 0], output_shape=(1, 1)
    ) as stitcher:
        with pytest.warns(BlendWarning, match="passes"):
            stitcher.push(passes[0], locs)
        stitcher.push(passes[1], locs)
    assert stitcher.finalize().outputs[0].tolist() == [[4]]


def test_a_function_that_returns_masked_numbers_is_refused():
    """As the mask would be lost."""
    with Stitcher(MEETING, reduce=lambda rows: np.ma.masked_array(rows, rows > 0)) as stitcher:
        with pytest.raises(HeadError, match="mask"):
            stitcher.push(np.ones((2, 1, 4)), MEETING)
        stitcher.close()


def test_open_bands_count_the_slots_of_votes():
    """One for each class that meets another anywhere."""
    locs = np.array([[-row, 0, 40 - row, 1] for row in range(40)])
    with Stitcher(locs, blend="vote", output_shape=(1, 1), origin=(0, 0)) as stitcher:
        stitcher.push(np.repeat(np.arange(2), 40).reshape(2, 1, 40), locs[:2])
        before = stitcher.open_nbytes
        stitcher.push(np.repeat(np.arange(2, 30), 40).reshape(28, 1, 40), locs[2:30])
        assert stitcher.open_nbytes == before + 28 * (8 + 4)
        stitcher.close()


def test_weights_of_a_head_alone():
    """There is nothing to be stitched then; and channels of one are left out, first or last."""
    with FullBatchAccumulator(MEETING) as accumulator:
        accumulator.push({"w": np.ones((2, 1, 1, 4))}, MEETING)
    with pytest.raises(OptionError, match="no other head"):
        stitch(accumulator.finalize(), weights="w")
    with FullBatchAccumulator(MEETING) as accumulator:
        accumulator.push({"a": np.ones((2, 2, 1, 4)), "w": np.ones((2, 1, 1, 4))}, MEETING)
    maps = stitch(accumulator.finalize(), weights="w", channels_first=True)
    assert maps.outputs["a"].shape == (1, 6, 2)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 4), (2, 1, 1, 4), (2, 1, 4, 1)])
def test_an_axis_of_one_channel_is_left_out_of_weights(shape):
    """Models give it, first or last."""
    weights = np.broadcast_to(np.array([1.0, 3.0]).reshape(2, *(1 for _ in shape[1:])), shape)
    with Stitcher(MEETING) as stitcher:
        stitcher.push(np.array([[[0.0] * 4], [[4.0] * 4]]), MEETING, weights=weights)
    assert stitcher.finalize().outputs[0].tolist() == [[0, 0, 3, 3, 4, 4]]


def test_weights_that_are_wrong_are_told_by_their_rows():
    """Of the batch, or of the result."""
    weights = np.array([[[1.0] * 4], [[1, 1, -2, 1]]])
    with Stitcher(MEETING) as stitcher:
        with pytest.raises(HeadValueError, match=r"row 1 of weights .* -2\.0"):
            stitcher.push(np.ones((2, 1, 4)), MEETING, weights=weights)
        stitcher.close()
    with FullBatchAccumulator(MEETING) as accumulator:
        accumulator.push({"a": np.ones((2, 1, 4)), "w": weights}, MEETING)
    with pytest.raises(HeadValueError, match=r"row 1 of weights .* -2\.0"):
        stitch(accumulator.finalize(), weights="w")


def test_repr_tells_of_boxes_outside():
    """Of a list whose axes were swapped, say."""
    with Stitcher(MEETING, output_shape=(1, 2)) as stitcher:
        stitcher.push(np.ones((2, 1, 4)), MEETING)
    assert "2 of 2 patches, 1 of all outside of the maps, RAM" in repr(stitcher.finalize())


def test_weights_far_from_one_keep_their_digits():
    """Sums are made in a dtype that has their products."""
    values = np.array([[[1, 1, 2, 2]], [[4, 4, 8, 8]]], np.float32)
    for size in (1e-90, 1e90):
        with Stitcher(MEETING) as stitcher:
            stitcher.push(values, MEETING, weights=[size, 3 * size])
        np.testing.assert_allclose(stitcher.finalize().outputs[0], [[1, 1, 3.5, 3.5, 8, 8]], rtol=1e-6)


@pytest.mark.parametrize("blend", ["vote", "average", "last", "nearest"])
def test_bands_that_are_used_again_forget_what_was_known(blend, tuned, tmp_path):
    """Each row of patches has values of its own, and the memory of those above."""
    tuned(band_nbytes=300, least_band_nbytes=300)
    locs = raster((96, 4), (4, 4), (2, 4))
    values = np.arange(len(locs)).repeat(16).reshape(-1, 4, 4)
    with Stitcher(locs, blend=blend, nodata=-1, store=tmp_path / "maps.zarr") as stitcher:
        for row in range(len(locs)):
            stitcher.push(values[[row]], locs[[row]])
    expected, _, size = blended(values, locs, (96, 4), (0, 0), blend, 0)
    assert_right(np.array(stitcher.finalize().outputs[0][...]), expected, size, values.dtype)


def test_boxes_are_laid_out_once_however_many_batches_have_weights(monkeypatch):
    """It takes all boxes, and a push is to cost what its own patches do."""
    calls = []
    lay = Frame.lay
    monkeypatch.setattr(Frame, "lay", lambda *args: calls.append(args) or lay(*args))
    with Stitcher(TILES) as stitcher:
        for row in range(len(TILES)):
            stitcher.push(np.ones((1, 4, 6)), TILES[[row]], weights=[2])
            if row == 0:
                first = len(calls)
    assert len(calls) == first

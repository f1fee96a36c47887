"""Several passes over one box: refused, the first of them, or their mean as one patch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.map_cases import cases
from helpers.maps import LOCS, ONES, assert_right, is_same, reference, reference_with_nodata
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import Stitcher
from accumulator.exceptions import BlendWarning, DuplicateLocationError, OptionError, StorageError

MEETING = np.array([[0, 0, 3, 1], [1, 0, 4, 1]])


def means(passes, rows, nodata):
    """Return the mean of each row's passes in long doubles, NaN where none counts."""
    wide = np.clongdouble if passes.dtype.kind == "c" else np.longdouble
    made = []
    for row in np.unique(rows):
        own = passes[rows == row].astype(wide)
        counts = np.ones(own.shape, bool) if nodata is None else ~is_same(own, nodata)
        with np.errstate(all="ignore"):
            made.append(np.where(counts, own, 0).sum(axis=0) / counts.sum(axis=0))
    return np.array(made)


@pytest.mark.filterwarnings("ignore::accumulator.exceptions.BlendWarning")
@pytest.mark.usefixtures("bands")
@given(case=cases(), threshold=st.sampled_from([100, 100, 0]), has_nodata=st.booleans(), data=st.data())
@settings(max_examples=examples(60, "ACCUMULATOR_STITCH_EXAMPLES"))
def test_map_of_averaged_passes_is_the_reference(case, threshold, has_nodata, data):
    """A box counts once, as the mean of its passes, however often it came; in every blend, RAM or disk."""
    locs, shape, origin, values, come, blend, fill = case
    fill = 0 if math.isnan(fill) else fill
    rows = np.array(data.draw(st.lists(st.sampled_from(come.tolist()), min_size=1, max_size=3 * len(come))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    passes = rng.permutation(values[rng.integers(0, len(values), len(rows))].reshape(len(rows), -1), axis=1)
    passes = passes.reshape(len(rows), *values.shape[1:])
    nodata = None
    if has_nodata:
        nodata = data.draw(st.sampled_from([0, 1] + [math.nan] * (values.dtype.kind in "fc")))
        passes = np.where(rng.random(passes.shape) < 0.4, np.asarray(nodata).astype(values.dtype), passes)
        passes = passes.astype(values.dtype)
    options = {"blend": blend, "output_shape": shape, "origin": origin, "fill_value": fill, "crop": "start"}
    options |= {"memory_threshold": threshold, "nodata": nodata, "on_duplicate": "average"}
    with Stitcher(locs, **options) as stitcher:
        for part in np.array_split(np.arange(len(rows)), data.draw(st.integers(1, 4))):
            stitcher.push(passes[part], locs[rows[part]])
        np.testing.assert_array_equal(stitcher.written, np.isin(np.arange(len(locs)), rows))
    maps = stitcher.finalize()
    patches, came = means(passes, rows, nodata), np.unique(rows)
    if nodata is None:
        expected, _, size = reference(patches, locs[came], shape, origin, blend, fill)
    else:
        expected, size = reference_with_nodata(patches, locs[came], shape, origin, blend, fill, math.nan)
    got = np.array(maps.outputs[0][...])
    if nodata is not None:
        is_empty = np.isnan(expected)
        assert is_same(got[is_empty], nodata).all()
        got[is_empty] = expected[is_empty] = 0
    wide = np.clongdouble if passes.dtype.kind == "c" else np.longdouble
    size = np.maximum(size, np.nanmax(np.abs(passes.astype(wide)), initial=0))  # a mean may be of larger ones
    assert_right(got, expected, size, values.dtype)
    maps.close()


@pytest.mark.parametrize("is_one_batch", [True, False])
def test_box_that_came_often_counts_no_more_than_its_neighbours(is_one_batch):
    """Three passes over the first box make one patch."""
    values = np.array([[[1, 1, 1]], [[2, 2, 2]], [[6, 6, 6]], [[9, 9, 9]]], np.float32)
    locs = MEETING[[0, 0, 0, 1]]
    with Stitcher(MEETING, on_duplicate="average") as stitcher:
        for part in [slice(0, 4)] if is_one_batch else [[0], [3], [1], [2]]:
            stitcher.push(values[part], locs[part])
    maps = stitcher.finalize()
    assert maps.outputs[0].tolist() == [[3, 6, 6, 9]]
    assert maps.coverage().tolist() == [[1, 2, 2, 1]]
    assert maps.written.all()


@pytest.mark.parametrize("is_one_batch", [True, False])
def test_same_box_twice_keeps_the_first(is_one_batch):
    """In one batch, as a sampler pads it, or in two."""
    values = np.array([[[1, 1, 1]], [[9, 9, 9]], [[3, 3, 3]], [[7, 7, 7]]], np.float32)
    locs = MEETING[[0, 0, 1, 1]]
    with Stitcher(MEETING, on_duplicate="first") as stitcher:
        for part in [slice(0, 4)] if is_one_batch else [[0], [1], [2], [3]]:
            stitcher.push(values[part], locs[part])
    assert stitcher.finalize().outputs[0].tolist() == [[1, 2, 2, 3]]


@pytest.mark.parametrize("batches", [[[0, 0]], [[0], [0]], [[0], [1, 0]]])
def test_same_box_twice_is_refused_unless_it_is_said_what_counts(batches):
    """The default; and the error names the option."""
    with Stitcher(LOCS) as stitcher:
        for rows in batches[:-1]:
            stitcher.push(ONES[[0] * len(rows)], LOCS[rows])
        before = stitcher.written.copy()
        with pytest.raises(DuplicateLocationError, match="on_duplicate="):
            stitcher.push(ONES[[0] * len(batches[-1])], LOCS[batches[-1]])
        np.testing.assert_array_equal(stitcher.written, before)
        stitcher.push(ONES, LOCS[3:])


@pytest.mark.parametrize("policy", ["last", "mean", 3, None])
def test_unknown_policy_is_refused(policy):
    """A patch that was blended cannot be taken out again, so there is no "last"."""
    with pytest.raises(OptionError, match='"error", "first" or "average"'):
        Stitcher(LOCS, on_duplicate=policy)


def test_infinite_and_large_passes_have_the_mean_that_they_have():
    """No sum of passes gets too large; what is infinite, or no number, stays so where it is."""
    top = np.finfo("f8").max
    columns = [[top, top, top], [np.inf, np.inf, 1], [np.inf, -np.inf, 0], [1, np.nan, 1], [5e-324] * 3]
    columns.append([top, -top, 0])
    values = np.array(columns).T.reshape(3, 1, 6)
    locs = [[0, 0, 6, 1]]
    with Stitcher(locs, on_duplicate="average") as stitcher:
        for value in values:
            stitcher.push(value[None], locs)
    np.testing.assert_array_equal(stitcher.finalize().outputs[0], [[top, np.inf, np.nan, np.nan, 5e-324, 0]])


def test_half_of_the_passes_say_true():
    """Ties of bools are True, and of integers even, as between patches."""
    locs = [[0, 0, 1, 1]]
    for heads, expected in [
        ([False, True], True),
        ([False, True, False], False),
        ([1, 2], 2),
        ([2, 3], 2),
        ([1, 1, 2], 1),
        ([0, 0, 0, 1, 1, 1], 0),
        ([7, 2, 9, 8, 1, 5, 0, 6, 1, 6], 4),  # 4.5, which a running mean misses by a last digit
    ]:
        with Stitcher(locs, on_duplicate="average") as stitcher:
            for value in heads:
                stitcher.push(np.array([[[value]]]), locs)
        assert stitcher.finalize().outputs[0].tolist() == [[expected]]


def test_passes_without_data_do_not_count_in_a_mean_of_integers():
    """Of three passes one has nothing: the mean of the others is a half, which goes to the even one."""
    with Stitcher([[0, 0, 2, 1]], on_duplicate="average", nodata=255) as stitcher:
        for values in ([1, 2], [255, 2], [0, 255]):
            stitcher.push(np.array([[values]], np.uint8), [[0, 0, 2, 1]])
    assert stitcher.finalize().outputs[0].tolist() == [[0, 2]]


def test_mean_that_happens_to_be_nodata_counts():
    """1 and -1 make 0, which is a value though 0 is none; what had no value is none."""
    locs = [[0, 0, 2, 1], [0, 0, 3, 1]]
    with Stitcher(locs[:1], on_duplicate="average", nodata=0, fill_value=7, output_shape=(1, 3)) as stitcher:
        stitcher.push(np.array([[[1, 0]], [[-1, 0]]], np.float32), [locs[0], locs[0]])
    assert stitcher.finalize().outputs[0].tolist() == [[0, 0, 7]]
    locs = [[0, 0, 2, 1], [1, 0, 3, 1]]
    for blend, expected in [("average", [[7, 4, 8]]), ("last", [[7, 8, 8]]), ("max", [[7, 8, 8]])]:
        with Stitcher(locs, on_duplicate="average", nodata=0, blend=blend) as stitcher:
            stitcher.push(np.array([[[7, 1]], [[7, -1]], [[8, 8]]], np.float32), [locs[0], locs[0], locs[1]])
        assert stitcher.finalize().outputs[0].tolist() == expected


@pytest.mark.parametrize("threshold", [100, 0])
def test_bands_wait_for_the_end_and_are_called_once(threshold):
    """Nobody knows how many passes come: on_band is called at the end, for each band once."""
    calls = []
    with Stitcher(
        LOCS,
        on_duplicate="average",
        on_band=lambda rows, maps: calls.append((rows.start, maps[0].copy())),
        memory_threshold=threshold,
    ) as stitcher:
        for value in (1, 3):
            stitcher.push(np.full((4, 4, 4), value, np.float32), LOCS)
            assert calls == []
            assert stitcher.open_nbytes == 0
    assert np.concatenate([values for _, values in calls]).tolist() == np.full((8, 8), 2).tolist()
    assert stitcher.finalize().outputs[0][:].tolist() == np.full((8, 8), 2).tolist()


def test_end_that_the_disk_refuses_is_tried_again(monkeypatch):
    """No pass is lost, and none counts twice."""
    stitcher = Stitcher(LOCS, on_duplicate="average")
    for value in (1, 3):
        stitcher.push(np.full((4, 4, 4), value, np.float32), LOCS)
    canvas = type(stitcher._canvas.each[0].canvas)
    place, refused = canvas.place, []

    def refuse(*arguments, **options):
        if len(refused) < 2:
            refused.append(1)
            raise StorageError(28, "full")
        place(*arguments, **options)

    monkeypatch.setattr(canvas, "place", refuse)
    for _ in range(2):
        with pytest.raises(StorageError):
            stitcher.finalize()
    assert (stitcher.finalize().outputs[0] == 2).all()


def test_pass_that_the_disk_refuses_is_not_taken(monkeypatch):
    """The push can be made again, and counts once."""
    stitcher = Stitcher(LOCS, on_duplicate="average")
    stitcher.push(np.ones((4, 4, 4), np.float32), LOCS)
    canvas = type(stitcher._canvas.each[0].canvas)
    with monkeypatch.context() as patched:
        patched.setattr(canvas, "place", lambda *_, **__: (_ for _ in ()).throw(StorageError(28, "full")))
        with pytest.raises(StorageError):
            stitcher.push(np.full((4, 4, 4), 3, np.float32), LOCS)
    stitcher.push(np.full((4, 4, 4), 3, np.float32), LOCS)
    assert (stitcher.finalize().outputs[0] == 2).all()


@pytest.mark.parametrize("how", [{}, {"memory_threshold": 0}, {"store": "maps.zarr"}])
def test_heads_of_different_scale_are_averaged(how):
    """Each has means of its own; a box that never came holds the fill value."""
    with Stitcher(LOCS, on_duplicate="average", scale={"small": 0.5}, fill_value=9, **how) as stitcher:
        for value in (1, 3):
            heads = {"large": np.full((3, 4, 4), value, "f4"), "small": np.full((3, 2, 2, 1), value, "u1")}
            stitcher.push(heads, LOCS[:3])
    maps = stitcher.finalize()
    for name, size in (("large", 4), ("small", 2)):
        output = np.asarray(maps.outputs[name][:]).reshape(2 * size, 2 * size)
        expected = np.full((2 * size, 2 * size), 2)
        expected[size:, size:] = 9
        np.testing.assert_array_equal(output, expected)
    maps.close()


@pytest.mark.parametrize("blend", ["last", "max"])
def test_labels_whose_passes_are_averaged_warn(blend):
    """Once, with what is done and what to do; floats, one pass, and a mean that was asked for do not."""
    options = {"blend": blend}
    labels = np.array([[[0] * 4] * 4], np.uint8)
    stitcher = Stitcher(LOCS, on_duplicate="average", **options)
    with pytest.warns(BlendWarning, match=r"'class'.*integers.*on_duplicate=\"first\"") as caught:
        stitcher.push({"class": labels, "p": labels + 0.5}, LOCS[:1])
    stitcher.push({"class": labels + 2, "p": labels + 0.5}, LOCS[:1])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (stitcher.finalize().outputs["class"][:4, :4] == 1).all()
    for remedy in (
        {"on_duplicate": "average", "dtype": "float32"},
        {"on_duplicate": "average", "blend": "average"},
        {"on_duplicate": "first", "blend": "last"},
    ):
        with Stitcher(LOCS, **{**options, **remedy}) as stitcher:
            stitcher.push({"class": labels}, LOCS[:1])
            stitcher.push({"class": labels}, LOCS[:1])

"""Several ranks make one map: the same bytes as from one process, whoever is killed and starts again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
from helpers import geometry_cases, map_cases
from helpers.maps import raster
from helpers.soak import examples
from helpers.tuned import tune
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, Stitcher, publish, stitch
from accumulator._core.canvas import Canvas
from accumulator._report.facts import info, verify
from accumulator._stitching import ranks as _ranks
from accumulator._stores.ranks import publish as _publish
from accumulator.exceptions import (
    AccumulatorError,
    DuplicateLocationError,
    LocationError,
    OptionError,
    ResultExistsError,
    ResultFormatError,
    ResultNotFoundError,
    ResumeError,
    StorageWarning,
    UnfinishedError,
)

LOCS = raster((60, 40), (8, 8), (5, 5))
VALUES = np.random.default_rng(0).random((len(LOCS), 8, 8, 2), dtype=np.float32)
EXAMPLES = examples(20, "ACCUMULATOR_GEOMETRY_EXAMPLES")
CONTEXT = multiprocessing.get_context("spawn")


def collected(locs, pushed, rows, place="RAM", **options):
    """Return a result of some rows."""
    with FullBatchAccumulator(locs, memory_threshold=100 if place == "RAM" else 0, **options) as accumulator:
        accumulator.push([each[rows] for each in pushed] if isinstance(pushed, list) else pushed, locs[rows])
    return accumulator.finalize()


@pytest.fixture
def batch():
    """Return a result of all patches."""
    return collected(LOCS, [VALUES], np.arange(len(LOCS)))


@pytest.fixture
def store(tmp_path):
    """Return where maps are to be."""
    return tmp_path / "maps.zarr"


def by_ranks(batch, store, world_size, **options):
    """Return the maps that ranks make one after the other."""
    for rank in np.random.default_rng(world_size).permutation(world_size):
        assert stitch(batch, store=store, rank=int(rank), world_size=world_size, **options) is None
    publish(store).close()
    return StitchedMap.load(store)


def check_same(found, wanted):
    """See that maps have the same bytes, and say the same of their patches."""
    arrays, others = found.outputs, wanted.outputs
    assert type(arrays) is type(others)
    assert len(arrays) == len(others)
    for key in arrays if isinstance(arrays, dict) else range(len(arrays)):
        one, other = np.asarray(arrays[key][...]), np.asarray(others[key][...])
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()
    np.testing.assert_array_equal(found.written, wanted.written)
    np.testing.assert_array_equal(found.output_locs, wanted.output_locs)
    for key in arrays if isinstance(arrays, dict) else range(len(arrays)):
        np.testing.assert_array_equal(found.coverage(head=key), wanted.coverage(head=key))
    assert (found.origin, found.n_outside) == (wanted.origin, wanted.n_outside)


@given(
    case=map_cases.cases(),
    place=st.sampled_from(["RAM", "disk"]),
    band_nbytes=st.sampled_from([200, 600, 2**20]),
    chunks=st.sampled_from([1, 2, 5, None]),
)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_same_bytes_for_every_number_of_ranks(case, place, band_nbytes, chunks):
    """Whatever is blended how, from RAM or disk, in whatever bands, some patches missing."""
    locs, shape, origin, values, come, blend, fill = case
    options = {"blend": blend, "fill_value": fill, "output_shape": shape, "origin": origin[: len(shape)]}
    options |= {} if chunks is None else {"chunks": chunks}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        tune(patch, band_nbytes=band_nbytes, least_band_nbytes=band_nbytes, read_nbytes=700)
        try:
            batch = collected(locs, [values], np.sort(come), place)
        except DuplicateLocationError:
            assume(condition=False)  # two boxes that were cut are the same
        try:
            stitch(batch, store=Path(folder) / "alone", **options).close()
        except LocationError:
            assume(condition=False)  # a box that was cut at the left
        wanted = StitchedMap.load(Path(folder) / "alone")
        for world_size in (1, 2, 3):
            found = by_ranks(batch, Path(folder) / str(world_size), world_size, **options)
            check_same(found, wanted)
        batch.close()


@given(case=geometry_cases.cases(), world_size=st.integers(1, 4))
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_same_geometry_or_the_same_refusal(case, world_size):
    """Channels first, halos, scales, axes, origins and cut boxes: as one process has it."""
    locs, heads, options, _ = case
    if len(heads) > 1:  # which may be of different shape, in another scale
        heads = heads[:1]
        for name in ("channels_first", "scale", "crop", "output_shape"):
            options = {**options, name: options[name][0]} if name in options else options
    batch = collected(locs, heads, np.arange(len(locs)))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "maps.zarr"
        try:
            wanted = stitch(batch, **options)
        except (LocationError, OptionError) as refusal:
            with pytest.raises(type(refusal)):
                stitch(batch, store=store, rank=0, world_size=world_size, **options)
            assert not store.exists()
            return
        check_same(by_ranks(batch, store, world_size, **options), wanted)


@pytest.mark.parametrize("place", ["RAM", "disk"])
def test_named_heads_of_one_shape(store, place):
    """Some of them, of other dtypes and channels, compressed."""
    heads = {"a": VALUES, "b": (VALUES[..., 0] * 200).astype("u1"), "c": VALUES[..., :1].astype("f8")}
    batch = collected(LOCS, heads, np.arange(len(LOCS)), place)
    options = {"heads": ["c", "a"], "blend": "hann", "fill_value": {"a": np.nan}, "dtype": {"c": "f4"}}
    wanted = stitch(batch, **options)
    found = by_ranks(batch, store, 3, **options, chunks=7)
    check_same(found, wanted)
    assert verify(store).is_right


def test_rows_that_no_patch_touches_have_somebody_who_made_them(store):
    """Nothing is missing of a map with a wide gap, and nothing of one without a patch."""
    locs = np.array([[0, 0, 4, 4], [0, 300, 4, 304]])
    batch = collected(locs, [np.ones((2, 4, 4), "u1")], np.arange(2))
    check_same(
        by_ranks(batch, store, 3, fill_value=9, blend="last"), stitch(batch, fill_value=9, blend="last")
    )
    empty = collected(locs, [np.ones((2, 4, 4), "u1")], np.arange(0), heads=[((4, 4), "u1")])
    other = store.with_name("empty.zarr")
    check_same(
        by_ranks(empty, other, 2, fill_value=9, blend="last"), stitch(empty, fill_value=9, blend="last")
    )


def test_a_rank_reads_what_touches_its_rows(monkeypatch, tuned):
    """Patches are read twice only where they lie across two shares, and shares have as much to do."""
    tuned(chunk_nbytes=2 * 8 * 8 * 4, read_gap_nbytes=0, read_nbytes=4096)
    locs = raster((804, 44), (8, 8), (4, 4))
    locs = locs[(locs[:, 1] < 400) | (locs[:, 0] == 0)]  # there is little in the lower half
    values = np.random.default_rng(0).random((len(locs), 8, 8), dtype=np.float32)
    batch = collected(locs, [values], np.arange(len(locs)), "disk")
    reads, real = [], _ranks.read

    def read(array, rows):
        reads[-1] += int(np.ptp(rows)) + 1 if len(rows) else 0
        return real(array, rows)

    monkeypatch.setattr(_ranks, "read", read)
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(4):
            reads.append(0)
            stitch(batch, store=Path(folder) / "maps.zarr", rank=rank, world_size=4, chunks=4)
    assert sum(reads) <= 1.1 * len(locs)
    assert max(reads) <= 1.2 * len(locs) / 4


def _die(store, rank, world_size, n_bands):
    """Stitch as a rank that records at once, and is killed after some bands."""
    calls, batch = [], collected(LOCS, [VALUES], np.arange(len(LOCS)))

    def kill(_rows, _maps):
        calls.append(1)
        if len(calls) > n_bands:
            os._exit(9)

    with pytest.MonkeyPatch.context() as patch:
        real = Canvas.open
        patch.setattr(Canvas, "open", lambda *args, **more: real(*args, checkpoint_interval=0, **more))
        tune(patch, band_nbytes=600, least_band_nbytes=600, checkpoint_share=0)
        stitch(batch, store=store, rank=rank, world_size=world_size, on_band=kill, chunks=3)


def test_killed_rank_goes_on(store, batch, tuned):
    """What it has recorded is not made again, also by another number of ranks; the map is as ever."""
    tuned(band_nbytes=600, least_band_nbytes=600)
    child = CONTEXT.Process(target=_die, args=(store, 1, 3, 5))
    child.start()
    child.join()
    code = child.exitcode
    child.close()
    resource_tracker._resource_tracker._stop()  # Python's own, which has a pipe
    assert code == 9
    stitch(batch, store=store, rank=0, world_size=3, chunks=3)
    with pytest.raises(UnfinishedError, match=r"rows of the maps .* are missing"):
        publish(store)
    with pytest.raises(UnfinishedError):
        StitchedMap.load(store)
    partial = publish(store, partial=True)
    n_there = int(np.count_nonzero(partial.written))
    assert 20 < n_there < 58
    partial.close()
    made = np.zeros(58, bool)

    def note(rows, _maps):
        assert not made[rows].any()
        made[rows] = True

    for rank in range(2):
        stitch(batch, store=store, rank=rank, world_size=2, on_band=note, chunks=3)
    assert np.count_nonzero(made) == 58 - n_there
    publish(store).close()
    check_same(StitchedMap.load(store), stitch(batch))
    assert verify(store).is_right
    assert sorted(path.name for path in store.iterdir()) == [
        "checksums",
        "output_locs",
        "outputs",
        "patches",
        "written",
        "zarr.json",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"blend": "hann"},
        {"blend": np.ones((8, 8)) / 2},
        {"nodata": 0.5},
        {"origin": [0, 5]},
        {"crop": "start"},
        {"rows": np.arange(40)},
        {"fill_value": 3},
        {"dtype": "f8"},
        {"chunks": 5},
        {"heads": [1]},
        {"heads": [1, 0]},
        {"channels_first": True},
        {"values": 1},
    ],
    ids=str,
)
def test_ranks_that_make_other_maps_are_refused(store, other):
    """Before a row is written, with what differs; also where maps would have the same shape and dtype."""
    rng, everything = np.random.default_rng(0), np.arange(len(LOCS))
    heads = [rng.random((len(LOCS), 8, 8, 8), dtype=np.float32) for _ in range(2)]
    right = batch = collected(LOCS, heads, everything)
    options = {"chunks": 4} | ({"heads": [0]} if other.get("heads") == [1] else {})
    stitch(right, store=store, rank=0, world_size=2, **options)
    before = sorted(map(str, store.rglob("*")))
    other, what = dict(other), "maps of other patches, or made otherwise"
    if "rows" in other:
        batch = collected(LOCS, heads, other.pop("rows"))
    if "values" in other:
        heads[1][50, 0, 0, 0] += other.pop("values")
        batch = collected(LOCS, heads, everything)
    if "crop" in other:
        other = {"crop": [1, 1], "scale": 0.75}
    if other.keys() & {"fill_value", "dtype", "chunks"} or "crop" in other:
        what = None
    with pytest.raises(ResumeError, match=what):
        stitch(batch, store=store, rank=1, world_size=2, **options | other)
    assert sorted(map(str, store.rglob("*"))) == before
    stitch(right, store=store, rank=1, world_size=2, **options)
    publish(store).close()


def test_ranks_that_make_the_same_maps_are_not(store, tmp_path, batch):
    """However it is said, and wherever their patches are."""
    kept = tmp_path / "run.zarr"
    with FullBatchAccumulator(LOCS, store=kept) as accumulator:
        accumulator.push([VALUES], LOCS)
    spilled = collected(LOCS, [VALUES], np.arange(len(LOCS)), "disk")
    said = [
        (batch, {"nodata": 0.5, "fill_value": 1, "crop": "center"}),
        (FullBatch.load(kept), {"nodata": np.float32(0.5), "fill_value": 1.0, "crop": [0, 0]}),
        (spilled, {"nodata": {0: 0.5}, "fill_value": {0: 1}, "origin": (0, 0), "blend": "average"}),
    ]
    for rank, (result, options) in enumerate(said):
        stitch(result, store=store, rank=rank, world_size=3, chunks=4, **options)
    publish(store).close()
    check_same(StitchedMap.load(store), stitch(batch, nodata=0.5, fill_value=1))


def test_rows_that_a_part_has_lost_are_made_again(store, batch):
    """By any number of ranks, after the error that tells of them."""
    for rank in range(2):
        stitch(batch, store=store, rank=rank, world_size=2, chunks=4)
    next(store.glob("parts/*/outputs/0/c.3.0.0")).unlink()
    with pytest.warns(StorageWarning, match="4 rows .* are damaged"), pytest.raises(UnfinishedError):
        publish(store)
    made = []
    stitch(batch, store=store, rank=0, world_size=1, chunks=4, on_band=lambda rows, _: made.append(rows))
    assert [(rows.start, rows.stop) for rows in made] == [(12, 16)]
    publish(store).close()
    check_same(StitchedMap.load(store), stitch(batch))


def test_maps_whose_ranks_made_nothing_are_not_published(store, batch, monkeypatch):
    """A rank that was killed as soon as it began leaves no map that looks whole."""
    with monkeypatch.context() as patched:
        patched.setattr(_ranks.Share, "make", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            stitch(batch, store=store, rank=0, world_size=2)
    with pytest.raises(UnfinishedError, match="58 rows of the maps"):
        publish(store)
    with pytest.raises(UnfinishedError):
        StitchedMap.load(store)
    assert "58 rows of maps" in "\n".join(info(store).lines())
    check_same(by_ranks(batch, store, 2), stitch(batch))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_what_is_said_of_patches_is_looked_at_before_parts_go(store, batch, damage):
    """Without it nobody would know what the maps are."""
    for rank in range(2):
        stitch(batch, store=store, rank=rank, world_size=2)
    patches = store / "parts" / "patches"
    patches.rename(store.with_name("saved"))
    if damage == "cut":
        shutil.copytree(store.with_name("saved"), patches)
        (patches / "zarr.json").write_bytes(b"{")
    with pytest.raises((ResultFormatError, ResultNotFoundError)):
        publish(store)
    shutil.rmtree(patches, ignore_errors=True)
    store.with_name("saved").rename(patches)
    publish(store).close()
    check_same(StitchedMap.load(store), stitch(batch))


def test_what_cannot_be_is_refused(store, batch, tmp_path):
    """Nothing is made then."""
    with pytest.raises(OptionError, match="give store="):
        stitch(batch, rank=0, world_size=2)
    with pytest.raises(OptionError, match="go together"):
        stitch(batch, store=store, rank=0)
    with pytest.raises(OptionError, match="numbered from 0 to 1"):
        stitch(batch, store=store, rank=2, world_size=2)
    half = collected(LOCS, {"a": VALUES, "b": VALUES[:, ::2, ::2]}, np.arange(len(LOCS)))
    with pytest.raises(OptionError, match="of different shape"):
        stitch(half, store=store, rank=0, world_size=2, scale={"b": 0.5})
    assert not store.exists()
    stitch(batch, store=store).close()
    with pytest.raises(ResultExistsError, match="published maps are there"):
        stitch(batch, store=store, rank=0, world_size=2)
    other = tmp_path / "other.zarr"
    stitch(batch, store=other, rank=0, world_size=2)
    with pytest.raises(ResultExistsError):
        stitch(batch, store=other)
    with pytest.raises(ResultExistsError):
        Stitcher(LOCS, store=other)
    with pytest.raises(AccumulatorError):
        FullBatchAccumulator(LOCS, store=other, mode="a")


@pytest.mark.parametrize("step", ["before patches", "after patches"])
def test_publishing_that_is_interrupted_goes_on(store, batch, monkeypatch, step):
    """Once the maps are complete, what is said of them follows, and then the parts go."""
    for rank in range(2):
        stitch(batch, store=store, rank=rank, world_size=2)
    with monkeypatch.context() as patched:
        if step == "after patches":
            patched.setattr(_publish, "_remove_published", _interrupt)
        else:
            real = _publish.system.rename

            def rename(source, target):
                if Path(target) == store / "patches":
                    raise KeyboardInterrupt
                real(source, target)

            patched.setattr(_publish.system, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            publish(store)
    wanted = stitch(batch)
    if step == "after patches":
        check_same(StitchedMap.load(store), wanted)
    publish(store).close()
    check_same(StitchedMap.load(store), wanted)
    assert not (store / "parts").exists()
    rows = FullBatch.load(store)
    assert rows.written.all()
    assert rows.outputs[0].shape == wanted.outputs[0].shape


def _interrupt(*_args, **_more):
    raise KeyboardInterrupt

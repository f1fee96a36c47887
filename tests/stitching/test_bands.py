"""Bands: made, delivered and let go, whatever fails."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys

import numpy as np
import pytest
from helpers.maps import LOCS, ONES, assert_right, raster, reference

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator._core.canvas import Canvas
from accumulator._stitching import bands as _bands
from accumulator._stitching import blend as _blend
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    MemoryLimitError,
    StorageError,
    StorageWarning,
)


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


def test_result_in_memory_is_told_of_band_by_band(tuned):
    """What has come grows with the bands, and stays where an error ends them."""
    tuned(least_band_nbytes=4 * 8 * 4)
    locs = raster((32, 8), (4, 4), (4, 4))
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.ones((len(locs), 4, 4), np.float32), locs)
    come = []

    def on_band(rows, _values):
        stitchers = [each for each in gc.get_objects() if isinstance(each, Stitcher) and each._canvas.each]
        come.append((rows.start, max(int(each.written.sum()) for each in stitchers)))
        if len(come) == 5:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        stitch(accumulator.finalize(), on_band=on_band)
    assert come == [(row, row // 2) for row in range(0, 20, 4)]


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


@pytest.mark.parametrize("policy", ["error", "average"])
def test_nothing_is_pushed_into_maps_that_are_written(monkeypatch, tuned, policy):
    """A patch would begin a band anew that was delivered at the end; `finalize` can be called again."""
    tuned(band_nbytes=4 * 4 * 8)
    locs = raster((16, 8), (4, 4), (4, 4))
    values = np.arange(len(locs) * 16, dtype=np.float32).reshape(-1, 4, 4)
    stitcher = Stitcher(locs, memory_threshold=0, on_duplicate=policy)
    stitcher.push(values[::2], locs[::2])
    place = Canvas.place

    def refuse(canvas, heads, rows, *others):
        if rows.start >= 4:
            raise StorageError(28, "no space left")
        place(canvas, heads, rows, *others)

    with monkeypatch.context() as full:
        full.setattr(Canvas, "place", refuse)
        with pytest.raises(StorageError):
            stitcher.finalize()
    with pytest.raises(ClosedError, match="finalize"):
        stitcher.push(values[1:2], locs[1:2])
    assert stitcher.written.tolist() == [True, False] * (len(locs) // 2)
    expected, _, size = reference(values[::2], locs[::2], (16, 8), (0, 0), "average", 0)
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

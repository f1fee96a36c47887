"""Patches are blended, and bands written, while the loop does something else."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from helpers.maps import assert_right, raster, reference

from accumulator import Stitcher
from accumulator._core.canvas import Canvas
from accumulator._stitching import bands as _bands
from accumulator._stores.memory.pages import Pages
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    LocationError,
    MemoryLimitError,
    ProcessError,
    StorageError,
)

SECONDS = 20
SHAPE = (16, 8)
LOCS = raster(SHAPE, (4, 4), (2, 2))
VALUES = np.random.default_rng(0).random((len(LOCS), 4, 4), dtype=np.float32)
EXPECTED = reference(VALUES, LOCS, SHAPE, (0, 0), "average", 0)


@pytest.fixture(autouse=True)
def behind(tuned):
    """Blend behind the caller whatever is pushed, in bands of four rows."""
    tuned(behind_nbytes=0, copied_nbytes_s=1e18, waiting_nbytes=10 * VALUES[0].nbytes, band_nbytes=4 * 4 * 8)


@pytest.fixture
def gate(monkeypatch):
    """Return what the blending waits for, opened at the end at the latest."""
    gate, add = threading.Event(), _bands.Bands.add

    def wait(*arguments):
        assert gate.wait(SECONDS)
        add(*arguments)

    monkeypatch.setattr(_bands.Bands, "add", wait)
    yield gate
    gate.set()


def assert_complete(stitcher, values=VALUES):
    """Check the whole map, in which all patches are."""
    expected, _, size = reference(values, LOCS, SHAPE, (0, 0), "average", 0)
    assert_right(stitcher.finalize().outputs[0][...], expected, size, np.float32)


def rests(stitcher):
    """Wait until the thread has done what it can."""
    end = time.monotonic() + SECONDS
    while stitcher._canvas._waiting.thread.is_at_work:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("threshold", [100, 0])
def test_loop_goes_on_and_may_use_its_arrays_again(gate, threshold):
    """Patches that were pushed have come, before they are blended."""
    stitcher = Stitcher(LOCS, memory_threshold=threshold)
    buffer, weights = np.empty_like(VALUES[:2]), np.ones(2)
    for first in (0, 2, 4):
        buffer[:] = VALUES[first : first + 2]
        stitcher.push(buffer, LOCS[first : first + 2], weights=weights)
        buffer[:], weights[:] = np.nan, np.nan
        weights = np.ones(2)
    assert stitcher.written.sum() == 6
    assert stitcher.open_nbytes > 6 * VALUES[0].nbytes  # what waits, and the bands
    with pytest.raises(DuplicateLocationError):
        stitcher.push(VALUES[:1], LOCS[:1], weights=np.ones(1))
    gate.set()
    stitcher.push(VALUES[6:], LOCS[6:])
    assert_complete(stitcher)


def test_arrays_that_are_handed_over_are_not_copied(gate):
    """What is changed then is changed in the map, as the words of ``copy`` warn."""
    values, stitcher = VALUES.copy(), Stitcher(LOCS)
    stitcher.push(values, LOCS, copy=False)
    values += 1
    gate.set()
    assert_complete(stitcher, values)


def test_loop_waits_where_too_much_waits(gate):
    """Memory is bounded; what is larger alone waits until nothing else does."""
    stitcher, ended = Stitcher(LOCS), threading.Event()

    def loop():
        for first in range(0, len(LOCS) - 1, 3):
            stitcher.push(VALUES[first : first + 3], LOCS[first : first + 3])
        ended.set()

    thread = threading.Thread(target=loop)
    thread.start()
    end = time.monotonic() + SECONDS
    while not stitcher._canvas._waiting.thread.is_awaited:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert not ended.is_set()
    assert stitcher._written.sum() == 9  # ten patches may wait
    gate.set()
    thread.join(SECONDS)
    assert ended.is_set()
    assert_complete(stitcher)


@pytest.mark.parametrize("first", ["finalize", "push", "will_not_come"])
def test_what_the_disk_refuses_is_told_by_the_next_call(monkeypatch, first):
    """The batch was taken, and so are those that waited; none after it, until there is room."""
    place, is_full = Canvas.place, True

    def refuse(canvas, heads, rows, *others):
        if is_full and rows.start < rows.stop:
            raise StorageError(28, "no space left")
        place(canvas, heads, rows, *others)

    monkeypatch.setattr(Canvas, "place", refuse)
    stitcher = Stitcher(LOCS, memory_threshold=0)
    stitcher.push(VALUES[:10], LOCS[:10])
    rests(stitcher)
    calls = {
        "finalize": stitcher.finalize,
        "push": lambda: stitcher.push(VALUES[10:], LOCS[10:]),
        "will_not_come": lambda: stitcher.will_not_come(LOCS[10:]),
    }
    for _ in range(2):
        with pytest.raises(StorageError):
            calls[first]()
    assert stitcher.written.sum() == 10
    is_full = False
    if first == "finalize":
        stitcher.push(VALUES[10:], LOCS[10:])
    else:
        calls[first]()
    if first != "will_not_come":
        assert_complete(stitcher)
    else:
        with pytest.raises(LocationError, match="will_not_come"):
            stitcher.push(VALUES[10:], LOCS[10:])
        stitcher.finalize()


def test_what_waited_behind_a_refusal_is_blended_later(monkeypatch, gate):
    """Three batches were taken before the disk refused the first."""
    place, is_full = Canvas.place, True

    def refuse(canvas, heads, rows, *others):
        if is_full and rows.start < rows.stop:
            raise StorageError(28, "no space left")
        place(canvas, heads, rows, *others)

    stitcher = Stitcher(LOCS, memory_threshold=0)
    stitcher.push(VALUES[:6], LOCS[:6])
    stitcher.push(VALUES[6:8], LOCS[6:8])
    stitcher.push(VALUES[8:10], LOCS[8:10])
    monkeypatch.setattr(Canvas, "place", refuse)
    gate.set()
    rests(stitcher)
    with pytest.raises(StorageError):
        stitcher.push(VALUES[10:], LOCS[10:])
    assert stitcher.written.sum() == 10
    is_full = False
    stitcher.push(VALUES[10:], LOCS[10:])
    assert_complete(stitcher)


def test_what_was_left_half_way_is_told_once_and_then_refused(monkeypatch, tuned):
    """As if the push itself had blended."""
    tuned(patch_part_nbytes=1)
    stitcher = Stitcher(LOCS)
    stitcher.push(VALUES[:1], LOCS[:1])
    rests(stitcher)
    monkeypatch.setattr(_bands.Bands, "_widen", lambda *_: fail())

    def fail():
        raise MemoryLimitError("so large")

    stitcher.push(np.concatenate([VALUES[1:2], VALUES[2:3] * np.finfo("f4").max]), LOCS[1:3])
    rests(stitcher)
    with pytest.raises(MemoryLimitError, match="so large"):
        stitcher.push(VALUES[3:4], LOCS[3:4])
    for call in (lambda: stitcher.push(VALUES[3:4], LOCS[3:4]), stitcher.finalize):
        with pytest.raises(ClosedError, match="half-way"):
            call()
    stitcher.close()


@pytest.mark.parametrize("where", ["blend_share", "finish"])
def test_what_is_left_half_way_while_the_end_waits_is_not_done_twice(monkeypatch, where):
    """A batch that is in the sums already, or a band that is divided, is no batch or band to begin with."""
    real, gate, calls = getattr(_bands, where), threading.Event(), []

    def fail_once(*arguments):
        gate.wait(SECONDS)
        real(*arguments)
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no memory for a temporary array")

    monkeypatch.setattr(_bands, where, fail_once)
    stitcher = Stitcher(LOCS)
    stitcher.push(VALUES[:8], LOCS[:8])
    threading.Timer(0.05, gate.set).start()
    with pytest.raises(MemoryError, match="temporary"):
        stitcher.finalize()
    with pytest.raises(ClosedError, match="half-way"):
        stitcher.finalize()
    stitcher.close()


def test_memory_that_only_spares_time_is_not_needed(monkeypatch):
    """Where there is none for the next batches, they get theirs when they come."""
    monkeypatch.setattr(Pages, "fault_in", lambda _: fail_for_want_of_memory())

    def fail_for_want_of_memory():
        raise MemoryError

    stitcher = Stitcher(LOCS)
    stitcher.push(VALUES[:5], LOCS[:5])
    stitcher.push(VALUES[5:], LOCS[5:])
    assert_complete(stitcher)


def test_memory_that_is_short_is_asked_again(monkeypatch):
    """What fails before anything of a batch was blended stays, and is done by a later call."""
    stitcher, prepare, is_short = Stitcher(LOCS), _bands.Bands.prepare, True

    def fail(*arguments):
        if is_short:
            raise MemoryError
        return prepare(*arguments)

    monkeypatch.setattr(_bands.Bands, "prepare", fail)
    stitcher.push(VALUES[:2], LOCS[:2])
    rests(stitcher)
    with pytest.raises(MemoryError):
        stitcher.push(VALUES[2:], LOCS[2:])
    assert stitcher.written.sum() == 2
    is_short = False
    stitcher.push(VALUES[2:], LOCS[2:])
    assert_complete(stitcher)


def test_bands_that_do_not_fit_wait_for_those_that_get_complete(monkeypatch, gate):
    """Memory that the thread is about to let go is there for the next batch."""
    available = _bands.memory.available_memory
    stitcher = Stitcher(LOCS, memory_threshold=0)
    stitcher.push(VALUES[:9], LOCS[:9])  # which complete the first band
    threading.Timer(0.05, gate.set).start()
    with monkeypatch.context() as short:
        short.setattr(
            _bands.memory,
            "available_memory",
            lambda **_: available() if stitcher._canvas._waiting.thread.is_done else 0,
        )
        stitcher.push(VALUES[9:], LOCS[9:])
    assert_complete(stitcher)


@pytest.mark.parametrize("how", ["on_band", "reduce"])
def test_what_calls_the_user_is_called_by_the_loop(how):
    """In its thread, before `push` returns."""
    threads = set()

    def call(*arguments):
        threads.add(threading.current_thread())
        return arguments[-1]

    with Stitcher(LOCS, **{how: call}) as stitcher:
        stitcher.push(VALUES, LOCS)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize(
    "numbers", [{"behind_nbytes": VALUES.nbytes + 1}, {"copied_nbytes_s": 0}, {"waiting_nbytes": 1}], ids=str
)
def test_small_batches_and_loops_that_come_back_at_once_are_blended_at_once(tuned, monkeypatch, numbers):
    """A thread would cost more than it saves."""
    tuned(**numbers)
    called = []
    monkeypatch.setattr(_bands.Bands, "add", lambda *_: called.append(threading.current_thread()))
    stitcher = Stitcher(LOCS)
    stitcher.push(VALUES, LOCS)
    assert called == [threading.current_thread()]
    stitcher.close()


@pytest.mark.parametrize("end", ["close", "drop"])
def test_end_waits_for_the_batch_at_work_and_drops_the_others(gate, end, tmp_path):
    """Nothing is written any more, and the thread is gone."""
    stitcher = Stitcher(LOCS, store=tmp_path / "maps")
    stitcher.push(VALUES[:2], LOCS[:2])
    stitcher.push(VALUES[2:4], LOCS[2:4])
    threading.Timer(0.05, gate.set).start()
    if end == "close":
        stitcher.close()
    else:
        with pytest.warns(ResourceWarning, match="dropped"):
            del stitcher
    assert not [each for each in threading.enumerate() if each.name.startswith("accumulator-blend")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_is_refused_while_the_thread_is_at_work(gate):
    """It has no thread, and does not wait for one."""
    stitcher = Stitcher(LOCS)
    stitcher.push(VALUES[:2], LOCS[:2])
    child = os.fork()
    if not child:
        try:
            repr(stitcher)
            stitcher.push(VALUES[2:4], LOCS[2:4])
        except ProcessError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    stitcher.push(VALUES[2:], LOCS[2:])
    assert_complete(stitcher)

"""``copy=False``: arrays are handed over, and copied while the loop goes on."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from accumulator import FullBatchAccumulator
from accumulator._core import memory
from accumulator._stores.memory import behind as _behind
from accumulator._stores.memory import copying as _copying

SECONDS = 20
LOCS = np.arange(12)[:, None]
VALUES = np.random.default_rng(0).random((12, 40, 50), dtype=np.float32)


@pytest.fixture(params=["RAM", "zarr", "zstd", "kept"])
def options(request, tmp_path, tuned):
    """Return where rows go; all of them large enough to be copied later."""
    tuned(behind_nbytes=0, loose_row_nbytes=0, chunk_nbytes=VALUES.nbytes)
    return {
        "RAM": {"memory_threshold": 100},
        "zarr": {"memory_threshold": 0},
        "zstd": {"memory_threshold": 0, "compressors": "zstd"},
        "kept": {"store": tmp_path / "run.zarr"},
    }[request.param]


@pytest.fixture
def gate(monkeypatch):
    """Return what copies of rows that were handed over wait for, opened at the end at the latest."""
    gate, copy = threading.Event(), _copying.Copier._copy

    def wait(copier, pieces):
        if threading.current_thread() is not threading.main_thread():
            assert gate.wait(SECONDS)
        copy(copier, pieces)

    monkeypatch.setattr(_copying.Copier, "_copy", wait)
    yield gate
    gate.set()


def test_rows_have_come_before_they_are_copied(options, gate):
    """What is changed too early is changed in the result, as the words of ``copy`` warn."""
    values = VALUES.copy()
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        accumulator.push(values[:6], LOCS[:6], copy=False)
        assert accumulator.written.sum() == 6
        values[:6] += 1
        gate.set()
        accumulator.push(values[6:], LOCS[6:])
        values[6:] = np.nan
    result = accumulator.finalize()
    np.testing.assert_array_equal(result.outputs[0][:6], VALUES[:6] + 1)
    np.testing.assert_array_equal(result.outputs[0][6:], VALUES[6:])
    result.close()


@pytest.mark.parametrize("look", ["canvas", "flush", "last", "finalize"])
def test_who_looks_waits_for_the_copies(options, gate, look):
    """The canvas, what replaces rows, and the end."""
    accumulator = FullBatchAccumulator(LOCS, on_duplicate="last", **options)
    accumulator.push(VALUES, LOCS, copy=False)
    threading.Timer(0.05, gate.set).start()
    if look == "canvas":
        np.testing.assert_array_equal(accumulator.canvas[0][...], VALUES)
    elif look == "flush":
        accumulator.flush()
        np.testing.assert_array_equal(accumulator.canvas[0][...], VALUES)
    elif look == "last":
        accumulator.push(-VALUES[3:5], LOCS[3:5])
    result = accumulator.finalize()
    expected = VALUES.copy()
    if look == "last":
        expected[3:5] *= -1
    np.testing.assert_array_equal(result.outputs[0][...], expected)
    result.close()


def test_rows_that_leave_memory_are_copied_before(gate, monkeypatch, tuned):
    """Memory gets short while rows wait to be copied."""
    tuned(behind_nbytes=0)
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=50)
    accumulator.push(VALUES[:6], LOCS[:6], copy=False)
    monkeypatch.setattr(memory.Watch, "is_tight", lambda *_: True)
    threading.Timer(0.05, gate.set).start()
    accumulator.push(VALUES[6:], LOCS[6:], copy=False)
    result = accumulator.finalize()
    assert result.path is not None
    np.testing.assert_array_equal(result.outputs[0][...], VALUES)
    result.close()


def test_end_without_a_result_waits_for_no_copy_that_is_not_begun(options, gate):
    """What was pushed is dropped; a run that is kept records it first."""
    accumulator = FullBatchAccumulator(LOCS, **options)
    accumulator.push(VALUES[:4], LOCS[:4], copy=False)
    accumulator.push(VALUES[4:], LOCS[4:], copy=False)
    threading.Timer(0.05, gate.set).start()
    accumulator.close()
    if "store" in options:
        with FullBatchAccumulator(LOCS, mode="a", **options) as again:
            assert again.written.all()
            np.testing.assert_array_equal(again.canvas[0][...], VALUES)


def test_rows_are_bounded_where_no_thread_can_be_had(monkeypatch, tuned):
    """The system may refuse one: then the loop copies, a push later at most."""
    tuned(behind_nbytes=0)
    monkeypatch.setattr(_behind, "start_threads", lambda *_: None)
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=100)
    for row in range(len(LOCS)):
        accumulator.push(VALUES[row : row + 1], LOCS[row : row + 1], copy=False)
        assert len(accumulator._canvas.store._copier._behind._calls) <= 1
    np.testing.assert_array_equal(accumulator.finalize().outputs[0], VALUES)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_sees_all_rows(gate, tuned):
    """It copies itself what the thread of its parent had still to copy."""
    tuned(behind_nbytes=0)
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=100)
    accumulator.push(VALUES, LOCS, copy=False)
    child = os.fork()
    if not child:
        is_right = False
        try:
            is_right = np.array_equal(accumulator.canvas[0], VALUES)
        finally:
            os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    gate.set()
    accumulator.finalize()

"""Interrupts, refusals of the system and ends of processes at the worst moment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._core import memory as _memory
from accumulator._core.all_or_nothing import AllOrNothing
from accumulator._stores.memory import copying as _copying
from accumulator._stores.memory import ram as _ram
from accumulator._stores.memory.row_numbers import as_numbers
from accumulator._stores.writing import encoded as _encoded
from accumulator._stores.writing import head as _head
from accumulator._stores.writing import zarr_rows as _disk
from accumulator.exceptions import ProcessError

N = 40
LOCS = grid(N)
VALUES = (distinct(N, (3,)), distinct(N, (2,), "i2", first=500))


def batch(rows):
    """Return both heads and the locations of some rows."""
    return tuple(head[rows] for head in VALUES), LOCS[rows]


def holds(outputs, rows):
    """Whether outputs hold these rows, and zeros elsewhere."""
    for output, head in zip(outputs, VALUES, strict=True):
        wanted = np.zeros_like(head)
        wanted[rows] = head[rows]
        np.testing.assert_array_equal(output[:], wanted)
    return True


def _interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("policy", ["error", "first"])
def test_first_push_interrupted_at_its_end_counts_nothing(monkeypatch, policy):
    """When the very first push fails as late as can be, the accumulator is as if never used."""
    with FullBatchAccumulator(LOCS, memory_threshold=0, on_duplicate=policy) as accumulator:
        with monkeypatch.context() as patched:
            patched.setattr(_head.Head, "commit", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                accumulator.push(*batch([0, 1, 5]))
        assert not accumulator.written.any()
        assert len(accumulator.output_locs) == 0
        accumulator.push(*batch([0, 1, 5]))
    assert holds(accumulator.finalize().outputs, [0, 1, 5])


def test_refused_repeats_keep_the_older_predictions(monkeypatch, where):
    """on_duplicate="last": when the second head cannot be copied, the first holds what it held."""
    with FullBatchAccumulator(LOCS, on_duplicate="last", **where) as accumulator:
        accumulator.push(*batch(range(6)))
        real, calls = _copying._copy, []

        def copy(piece):
            calls.append(1)
            if len(calls) == 2:
                raise MemoryError
            real(piece)

        with monkeypatch.context() as patched:
            patched.setattr(_copying, "_copy", copy)
            with pytest.raises(MemoryError):
                accumulator.push(tuple(head[20:26] for head in VALUES), LOCS[:6])
    assert holds(accumulator.finalize().outputs, range(6))


def test_put_interrupted_after_its_last_copy_counts_nothing(monkeypatch, where):
    """on_duplicate="last": what a refused push had put does not count with the next batch."""
    real = AllOrNothing._put

    def put(self, rows, values, **said):
        real(self, rows, values, **said)
        if list(as_numbers(rows)) == [2, 4]:
            raise KeyboardInterrupt

    with FullBatchAccumulator(LOCS, on_duplicate="last", **where) as accumulator:
        accumulator.push(*batch([2]))
        with monkeypatch.context() as patched:
            patched.setattr(AllOrNothing, "_put", put)
            with pytest.raises(KeyboardInterrupt):
                accumulator.push(tuple(head[[7, 7]] for head in VALUES), LOCS[[2, 4]])
        accumulator.push(*batch([10]))
    assert holds(accumulator.finalize().outputs, [2, 10])


@pytest.mark.usefixtures("tiny_chunks")
def test_large_push_interrupted_between_its_parts_leaves_nothing(monkeypatch):
    """A batch that is put in parts is refused as a whole, also when the first parts are on disk."""
    with FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator:
        accumulator.push(*batch([0]))
        real = _disk.ZarrRows.commit

        def commit(self):
            real(self)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(_disk.ZarrRows, "commit", commit)
            with pytest.raises(KeyboardInterrupt):
                accumulator.push(*batch(range(4, 30)))
        assert accumulator.written.sum() == 1
    assert holds(accumulator.finalize().outputs, [0])


def test_leaving_ram_interrupted_stays_in_ram(monkeypatch, tmp_path):
    """When moving to disk is interrupted before it began, RAM has all, and save() saves it."""
    monkeypatch.setattr(_memory.Watch, "is_tight", lambda *_: True)
    monkeypatch.setattr(_head.Head, "lend", _interrupt)
    accumulator = FullBatchAccumulator(LOCS)
    with pytest.raises(KeyboardInterrupt):
        accumulator.push(*batch(range(10)))
    monkeypatch.setattr(_memory.Watch, "is_tight", lambda *_: False)
    accumulator.push(*batch(range(10)))
    result = accumulator.finalize()
    assert result.path is None
    result.save(tmp_path / "kept")
    assert holds(FullBatch.load(tmp_path / "kept").outputs, range(10))


def test_push_after_an_interrupted_flush_loses_nothing(monkeypatch):
    """Chunks that are still being encoded when Ctrl-C ends flush() are waited for before they change."""
    started, real = threading.Event(), _encoded.EncodedChunks._encode

    def slow(self, *arguments):
        started.set()
        time.sleep(0.2)
        real(self, *arguments)

    monkeypatch.setattr(_encoded.EncodedChunks, "_encode", slow)
    with FullBatchAccumulator(LOCS, memory_threshold=0, chunks=8, compressors="auto") as accumulator:
        accumulator.push(*batch(range(3)))
        with monkeypatch.context() as patched:
            patched.setattr(_disk.ZarrRows, "_wait_for_all", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                accumulator.flush()
        assert started.wait(10)
        accumulator.push(*batch(range(3, 6)))
        accumulator.push(*batch([8, 16, 24, 32]))
    assert holds(accumulator.finalize().outputs, [*range(6), 8, 16, 24, 32])


@pytest.mark.parametrize("n_started", [0, 1])
def test_system_without_threads_is_served_all_the_same(monkeypatch, tuned, where, n_started):
    """Where no thread, or only one, can be had, the caller copies and writes itself."""
    tuned(shared_copy_nbytes=1)
    monkeypatch.setattr(_copying, "n_cores", lambda: 3)
    real, started = threading.Thread.start, []

    def start(self):
        if self.name.startswith("accumulator"):
            if len(started) >= n_started:
                raise RuntimeError("can't start new thread")
            started.append(self)
        return real(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        for start_row in range(0, N, 7):
            accumulator.push(*batch(slice(start_row, start_row + 7)))
    assert holds(accumulator.finalize().outputs, range(N))
    assert not any(thread.is_alive() for thread in started)


def test_canvas_on_disk_is_not_looked_at_from_a_forked_child(monkeypatch):
    """A child has none of the threads that would have to write first."""
    with FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator:
        accumulator.push(*batch([0]))
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ProcessError, match="cannot be looked at in process -1"):
                accumulator.canvas  # noqa: B018  it refuses
        assert holds(accumulator.canvas, [0])


def test_view_counts_as_somebody_who_looks():
    """Whether arrays are held by others is told by their references, those of views included."""
    rows = _ram.RamRows(4, [], [])
    assert not rows.is_looked_at
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(*batch([0]))
        assert not accumulator._canvas.store.is_looked_at
        view = accumulator.canvas[0][3:]
        assert accumulator._canvas.store.is_looked_at
        del view
        assert not accumulator._canvas.store.is_looked_at


AT_EXIT = """
import atexit, numpy as np
from accumulator import FullBatchAccumulator
def end():
    try:
        print(kept.finalize().written.sum())
    except ValueError as error:
        print(type(error).__name__)
locs = np.arange(400).reshape(100, 4)
kept = FullBatchAccumulator(locs, save_path="spill", memory_threshold=0)
"""


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise ValueError", "pass"])
def test_end_of_the_interpreter(tmp_path, end):
    """A script that ends with work queued ends at once and leaves no folder, whether it closes or not."""
    script = f"""
import sys, numpy as np
from accumulator import FullBatchAccumulator
locs = np.arange(400).reshape(100, 4)
kept = FullBatchAccumulator(locs, save_path="spill", memory_threshold=0)
for start in range(0, 100, 10):
    kept.push(np.ones((10, 2**16)), locs[start : start + 10])
{end}
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == {"sys.exit(3)": 3, "raise ValueError": 1, "pass": 0}[end]
    assert not (tmp_path / "spill").exists()


@pytest.mark.parametrize("first", ["push", "register"])
def test_finalize_at_exit(tmp_path, first):
    """At the end of the interpreter there is a result, or a typed error where its folder went before."""
    push, register = "kept.push(np.ones((10, 2**16)), locs[:10])\n", "atexit.register(end)\n"
    script = AT_EXIT + (push + register if first == "push" else register + push)
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert (ended.stderr, ended.stdout) == (b"", b"10\n" if first == "push" else b"ClosedError\n")
    assert not (tmp_path / "spill").exists()

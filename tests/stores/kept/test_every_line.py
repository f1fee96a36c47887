"""Ctrl-C at every line of a checkpoint: the run goes on, and whatever it had acknowledged is in its store.

A line is interrupted when it is reached first; with ACCUMULATOR_EVERY_LINE=1 each time it is reached. Of raw
rows every run does each fourth line, and `-m soak` the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.files import tree
from helpers.limits import threads
from helpers.lines import is_leaving
from helpers.oracle import grid
from zarr.codecs import ZstdCodec

import accumulator
from accumulator import FullBatch, FullBatchAccumulator
from accumulator._report.facts import verify
from accumulator._stores.files.ownership import is_locked

ROOT = Path(accumulator.__file__).parent
WATCHED = [
    *(ROOT / "_stores").glob("writing/*.py"),
    *(ROOT / "_stores").glob("kept/*.py"),
    ROOT / "_stores/files/system.py",
    ROOT / "_stores/files/unsynced.py",
    ROOT / "_stores/format/chunk_files.py",
    ROOT / "_stores/memory/threads.py",
    ROOT / "_core/accumulator.py",
    ROOT / "_core/all_or_nothing.py",
    ROOT / "_core/canvas.py",
    ROOT / "_core/full_batch.py",
]
SEEN = set()  # stores at interrupts, and what was known then
DESCRIPTORS = Path("/proc/self/fd")
PARTS = 4  # of the lines
IS_ALL = bool(os.environ.get("ACCUMULATOR_EVERY_LINE"))
N = 13
LOCS = grid(N)
KINDS = {
    "raw": {"chunks": 4},
    "zstd": {"chunks": 4, "compressors": ZstdCodec()},
    "shards, filled": {"shards": 4, "chunks": 2, "fill_value": -1},
}


def values(rows, version):
    """Return what two heads have in some rows, another one for each version."""
    first = 1 + 100 * np.asarray(rows) + 10 * version
    return first[:, None] + np.arange(3, dtype="f4"), (-first)[:, None] - np.arange(5, dtype="i4")


def push(run, rows, version):
    """Push rows in one version."""
    run.push(values(rows, version), LOCS[rows])


def open_run(store, kind):
    """Begin or resume a run; a row that is damaged is a broken promise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return FullBatchAccumulator(
            LOCS, store=store, mode="a", on_duplicate="last", checkpoint_interval=np.inf, **KINDS[kind]
        )


BEFORE = dict.fromkeys(range(8), 0)  # the version of each row that is recorded before
STEPS = [  # pushes of rows in a version, flushes, and the end
    ([1, 2, 6, 8, 9], 1),
    "flush",
    ([9, 10, 1], 2),
    ([12], 2),
    "flush",
    ([3, 4], 3),
    "finalize",
]
LAST = BEFORE | dict.fromkeys([2, 6, 8], 1) | dict.fromkeys([9, 10, 1, 12], 2) | dict.fromkeys([3, 4], 3)


class Interrupter:
    """Raises KeyboardInterrupt in the main thread when a line is reached for the n-th time."""

    def __init__(self, line=None, n=1):
        self.line, self.n, self.met, self.is_done = line, n, Counter(), False
        self._files = {str(path) for path in WATCHED} if line is None else {f"{ROOT}/{line[0]}"}

    def __enter__(self):
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _call(self, frame, event, _):
        return self._line if event == "call" and frame.f_code.co_filename in self._files else None

    def _line(self, frame, event, _):
        is_it = self.line is None or frame.f_lineno == self.line[1]
        if event == "line" and is_it and not is_leaving(frame):
            line = frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_lineno
            self.met[line] += 1
            if line == self.line and self.met[line] == self.n:
                self.is_done = True
                sys.settrace(None)
                raise KeyboardInterrupt
        return None if self.is_done else self._line


def follow(store, kind, interrupter, snapshot):
    """Go through all steps, and on after an interrupt; ``snapshot`` is told at it what is known then."""
    kept, possible = dict(BEFORE), {row: {version} for row, version in BEFORE.items()}
    run, pushed = None, dict(BEFORE)

    def do(call):
        """Make a call, and again if it is interrupted; what was open when that came is closed then."""
        try:
            return call()
        except KeyboardInterrupt:
            sys.settrace(None)
        snapshot(run, kept, possible)
        return call()

    with interrupter:
        run = do(lambda: open_run(store, kind))
        for step in STEPS:
            if step == "flush" and interrupter.is_done and not IS_ALL:
                continue  # what is left to see is that it comes to its end
            if isinstance(step, str):
                result = do(getattr(run, step))
                kept.update(pushed)
                continue
            rows, version = step
            for row in rows:
                possible.setdefault(row, set()).add(version)
            do(partial(push, run, rows, version))
            pushed.update(dict.fromkeys(rows, version))
    run.close()
    return result


def check(result, least, possible, kind):
    """Check every row: the version it has, or none, is one that may be there."""
    fill = KINDS[kind].get("fill_value", 0)
    arrays = [array[:] for array in result]
    for row in range(N):
        found = [array[row].tolist() for array in arrays]
        right = [version for version in possible.get(row, ()) if version >= least.get(row, -1)]
        rows = [[head[0].tolist() for head in values([row], version)] for version in right]
        if row not in least:
            rows.append([[fill] * 3, [fill] * 5])
        assert found in rows, (row, found, rows)


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """Return the stores that all begin with."""
    folder = tmp_path_factory.mktemp("templates")
    for kind in KINDS:
        run = open_run(folder / kind, kind)
        push(run, list(BEFORE), 0)
        run.close()
    return folder


def idle(run):
    """Wait until no thread of a run is at work; it may not hang."""
    store = None if run is None else run._canvas.store
    if store is not None:
        for _ in range(1000):
            with store._writer.lock:
                if not (store._writer._waiting or store._writer._running):
                    return
            time.sleep(0.005)
        raise AssertionError("it hangs")


def end_threads():
    """End the threads of a run that was never made: other tests count them."""
    for thread in threading.enumerate():
        if thread.name.startswith("accumulator-write"):
            work = getattr(thread, "_target", None)  # gone if it has just ended
            if work is not None:
                writer = work.__self__
                with writer.lock:
                    writer._is_closed = True
                    writer._has_work.notify_all()
            thread.join(5)


def descriptors():
    """Return what is open, but for the folder that tells."""
    return {each for each in [*DESCRIPTORS.iterdir()] if each.is_symlink()}


def interrupt(templates, folder, kind, line, n):
    """Interrupt one line, and check what is left, and that it goes on; return whether it was reached."""
    store, copy = folder / "run.zarr", folder / "copy.zarr"
    shutil.copytree(templates / kind, store)

    told = set()  # a thread or two may idle for ever, of a run that was never made

    def snapshot(run, kept, possible):
        idle(run)
        told.update({"opening"} if run is None else ())
        state = repr((sorted(tree(store).items()), kept, possible))
        if state in SEEN:
            return
        SEEN.add(state)
        shutil.copytree(store, copy)
        assert verify(copy).verdict != "damaged"
        with FullBatch.load(copy, partial=True) as batch:
            check([array[:] for array in batch.outputs], kept, possible, kind)
        other = open_run(copy, kind)
        assert other.written[list(kept)].all(), "lost"
        check(other.canvas, kept, possible, kind)
        other.close()

    before, files = set(threads()), descriptors()
    interrupter = Interrupter(line, n)
    try:
        with follow(store, kind, interrupter, snapshot) as result:
            check(result.outputs, LAST, {row: {version} for row, version in LAST.items()}, kind)
            assert np.flatnonzero(result.written).tolist() == sorted(LAST)
        assert set(threads()) <= before or "opening" in told
        left = [path for path in store.rglob("*") if path.name in {"redo", "part"} or "partial" in path.name]
        assert left == []
        assert is_locked(store) is False
    except BaseException as failure:
        failure.add_note(f"interrupted {kind}, {line}, time {n}")
        raise
    finally:
        end_threads()
        for each in descriptors() - files:  # Ctrl-C just behind `os.open` leaves it open
            with contextlib.suppress(OSError):
                if str(each.readlink()).startswith(str(folder)):
                    os.close(int(each.name))
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(copy, ignore_errors=True)
    return interrupter.is_done


def reached(templates, folder, kind):
    """Return how often each line is reached."""
    shutil.copytree(templates / kind, folder / "run.zarr")
    interrupter = Interrupter()
    follow(folder / "run.zarr", kind, interrupter, None).close()
    shutil.rmtree(folder / "run.zarr")
    return interrupter.met


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [("raw", 0), ("zstd", None), ("shards, filled", None)]
    + [pytest.param("raw", part, marks=pytest.mark.soak) for part in (1, 2, 3)],
)
def test_interrupt_at_every_line(templates, quick_path, monkeypatch, kind, part):
    """The object goes on, a copy of its store has all that was acknowledged, and no reader is wrong."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    lines = reached(templates, quick_path, kind)
    before = [] if IS_ALL else list(KINDS)[: list(KINDS).index(kind)]
    others = {line for each in before for line in reached(templates, quick_path, each)}
    n_done, n_tried = 0, 0
    mine = sorted(lines.items()) if part is None else sorted(lines.items())[part::PARTS]
    for line, n_times in mine:
        if line in others:
            continue
        for n in range(1, n_times + 1) if IS_ALL else (1,):
            n_tried += 1
            n_done += interrupt(templates, quick_path, kind, line, n)
    assert n_done > 0.9 * n_tried, (n_done, n_tried)  # threads may be faster or slower

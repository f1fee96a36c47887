"""Whoever looks sees a moment: nothing changes while it is looked at, whoever pushes meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import distinct, grid
from helpers.processes import ENVIRONMENT, TIMEOUT

from accumulator import FullBatchAccumulator, Stitcher
from accumulator._stores.files import system

LOCS = grid(6)
PATCHES = np.ones((6, 4, 4), np.float32)
SECONDS = float(os.environ.get("ACCUMULATOR_LOOK_SECONDS", "5"))


def run(*arguments):
    """Run a Python of its own, whose end by a signal is seen."""
    command = [sys.executable, "-X", "faulthandler", *arguments]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_threads_may_look_at_everything_while_others_push():
    """Eight push and four look, in RAM and on disk: no crash, no untyped error, no half a batch."""
    assert "rounds" in run("-m", "helpers.lookers", str(SECONDS))


@pytest.mark.parametrize("kind", [FullBatchAccumulator, Stitcher])
def test_what_was_looked_at_does_not_change(where, kind):
    """`written` is of the moment at which it was asked for, and nobody can change it."""
    with kind(LOCS, **where) as collector:
        collector.push(PATCHES[:2], LOCS[:2])
        written, missing = collector.written, collector.missing_locs
        collector.push(PATCHES[2:5], LOCS[2:5])
        assert written.tolist() == [True, True, False, False, False, False]
        assert len(missing) == 4
        assert collector.written.sum() == 5
        with pytest.raises(ValueError, match="read-only"):
            written[0] = False


def looks(collector):
    """Return each way to look, by its name."""
    names = ["written", "missing_locs", "nbytes", "__repr__"]
    if isinstance(collector, Stitcher):
        names += ["open_nbytes"]
    else:
        names += ["canvas", "missing_rows", "plan", "full_output_locs", "output_locs", "_repr_html_"]
        names += ["plot_coverage"]
    return names


def look(collector, name):
    """Look at one thing."""
    found = getattr(collector, name)
    return found() if callable(found) else found


@pytest.mark.parametrize("kind", [FullBatchAccumulator, Stitcher])
def test_a_look_never_comes_in_the_middle_of_a_push(kind):
    """It waits until the push is over, and then shows all of the batch."""
    with kind(LOCS) as collector:
        collector.push(PATCHES[:1], LOCS[:1])
        for name in looks(collector):
            seen = threading.Event()
            thread = threading.Thread(target=lambda name=name, seen=seen: (look(collector, name), seen.set()))
            with collector._lock:  # as a push has it
                thread.start()
                assert not seen.wait(0.05), name
            assert seen.wait(TIMEOUT), name
            thread.join()
        collector.close()


def test_callbacks_may_look():
    """`on_band` and what draws the bar are called by a push, and look at what it has done so far."""
    seen = []
    with Stitcher(
        LOCS, on_band=lambda *_: seen.append([look(stitcher, name) for name in looks(stitcher)])
    ) as stitcher:
        stitcher.push(PATCHES, LOCS)
    assert len(seen) == 1
    assert seen[0][0].all()


FORK = """
import os, signal, sys, threading, time
import numpy as np
from helpers.oracle import grid
from accumulator import FullBatchAccumulator, Stitcher
from accumulator.exceptions import ProcessError
LOCS, PATCHES = grid(2000, columns=50), np.ones((2000, 4, 4), np.float32)
for kind, options in (
    (FullBatchAccumulator, {}),
    (FullBatchAccumulator, {"memory_threshold": 0, "chunks": 1}),
    (FullBatchAccumulator, {"store": "run.zarr"}),
    (Stitcher, {"store": "map.zarr"}),
):
    collector = kind(LOCS, **options)
    collector.push(PATCHES[:1], LOCS[:1])
    is_over = threading.Event()
    def push():
        for row in range(1, 2000):
            if is_over.is_set():
                return
            collector.push(PATCHES[row : row + 1], LOCS[row : row + 1])
    def hold():
        while not is_over.is_set():
            with collector._lock:
                time.sleep(0.001)
    threads = [threading.Thread(target=work, daemon=True) for work in (push, hold)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            repr(collector), collector.written, collector.missing_locs, collector.nbytes
            if kind is FullBatchAccumulator:
                collector._repr_html_()
                collector.plan()
            for refused in (lambda: collector.push(PATCHES[:1], LOCS[:1]), collector.finalize):
                try:
                    refused()
                except ProcessError:
                    continue
                os._exit(3)
            collector.close()
            sys.exit()  # what is done at the end of an interpreter is done, too
        _, status = os.waitpid(child, 0)
        assert status == 0, (options, kind, status)
    is_over.set()
    for thread in threads:
        thread.join()
    collector.close()
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_looks_and_ends_whoever_held_the_lock():
    """A thread of the parent that held it is not there to let go; what is pushed there is refused at once."""
    assert "done" in run("-W", "ignore", "-c", FORK)


def test_array_on_disk_is_whole_whenever_it_is_read(monkeypatch):
    """A chunk gets its name when it is whole: who reads the arrays meanwhile sees rows, or the fill value."""
    patches, sizes, write_at = distinct(40, (64,)), set(), system.write_at

    def look():
        paths = [path for path in Path("spill").rglob("c.*") if path.suffix != ".partial"]
        sizes.update(path.stat().st_size for path in paths)

    def watched(*arguments):
        look()
        write_at(*arguments)
        look()

    monkeypatch.setattr(system, "write_at", watched)
    options = {"memory_threshold": 0, "save_path": "spill", "chunks": 2}
    with FullBatchAccumulator(np.arange(80).reshape(40, 2), **options) as accumulator:
        for row in (*range(0, 40, 2), *range(1, 40, 2)):
            accumulator.push(patches[row : row + 1], [[2 * row, 2 * row + 1]])
        np.testing.assert_array_equal(accumulator.canvas[0][:], patches)
    assert sizes == {2 * patches[0].nbytes}

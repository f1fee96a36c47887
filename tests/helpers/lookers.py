"""Eight threads push and four look, at everything there is to look at, in a process of their own.

``python -m helpers.lookers SECONDS`` raises whatever went wrong; a crash of the process is one, too.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from accumulator import FullBatchAccumulator, Stitcher
from accumulator.exceptions import AccumulatorError
from helpers.oracle import grid

N_PUSHING, N_LOOKING, N_ROWS, STEP = 8, 4, 512, 4
PLACES = {
    "RAM": {},
    "disk": {"memory_threshold": 0, "chunks": 4},
    "compressed": {"memory_threshold": 0, "shards": 256, "chunks": 64},
    "kept": {"chunks": 4, "checkpoint_interval": 0.05},
}
LOCS = grid(N_ROWS, columns=32)
PATCHES = np.arange(1, N_ROWS + 1, dtype=np.float32)[:, None, None] * np.ones((4, 4), np.float32)


def look_at(collector):
    """Look at everything once; whatever it shows must fit together."""
    written = collector.written
    assert len(written) == N_ROWS
    assert len(collector.missing_locs) <= np.count_nonzero(~written)
    assert str(N_ROWS) in repr(collector)
    assert collector.nbytes >= 0
    if isinstance(collector, Stitcher):
        assert collector.open_nbytes >= 0
        return
    assert f"of {N_ROWS:,}" in collector._repr_html_()
    assert len(collector.missing_rows()) <= np.count_nonzero(~written)
    assert len(collector.missing_rows(LOCS[::7])) <= len(LOCS[::7])
    assert collector.plan(PATCHES[:0]).n_rows == N_ROWS
    assert len(collector.full_output_locs) <= N_ROWS >= len(collector.output_locs)
    came = np.flatnonzero(written)[::5]
    for canvas in collector.canvas:
        np.testing.assert_array_equal(np.asarray(canvas[:])[came], PATCHES[came])


class Watched:
    """Threads of which the first failure is kept."""

    def __init__(self, *works):
        self.failed = []
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in self._threads:
            thread.start()

    def _run(self, work):
        try:
            work()
        except BaseException:  # noqa: BLE001  it is raised where it can be seen
            self.failed.append(traceback.format_exc())

    def join(self):
        """Wait for all, and end with what has failed."""
        for thread in self._threads:
            thread.join()
        if self.failed:
            sys.exit(self.failed[0])


def run(collector, seed):
    """Push everything, by batches in some order, while others look."""
    batches = np.random.default_rng(seed).permutation(N_ROWS // STEP).tolist()
    is_over = threading.Event()

    def push():
        with contextlib.suppress(IndexError):
            while True:
                batch = batches.pop()
                rows = slice(batch * STEP, (batch + 1) * STEP)
                collector.push(PATCHES[rows], LOCS[rows])

    def look():
        while not is_over.is_set():
            look_at(collector)

    def plot():  # one thread at a time: matplotlib is not made for more
        while not is_over.is_set():
            look_at(collector)
            if isinstance(collector, FullBatchAccumulator):
                collector.plot_coverage(Figure().subplots())

    looking = Watched(plot, *[look] * (N_LOOKING - 1))
    try:
        Watched(*[push] * N_PUSHING).join()
    finally:
        is_over.set()
        looking.join()
    assert collector.written.all()


def close(collector):
    """Close while others look: they see it open or closed, or are told so."""
    collector.push(PATCHES[:STEP], LOCS[:STEP])

    def look():
        for _ in range(5):
            with contextlib.suppress(AccumulatorError):  # what was on disk is gone
                look_at(collector)

    looking = Watched(*[look] * N_LOOKING)
    collector.close()
    looking.join()


def main(seconds):
    """Go through all places again and again."""
    sys.setswitchinterval(1e-5)
    start, rounds = time.monotonic(), itertools.count()
    while time.monotonic() - start < seconds:
        for place, options in PLACES.items():
            for kind in (FullBatchAccumulator, Stitcher):
                number, given = next(rounds), dict(options)
                if kind is Stitcher:
                    for name in ("chunks", "shards", "checkpoint_interval"):
                        given.pop(name, None)
                if place == "kept":
                    given["store"] = Path(f"run-{number}.zarr")
                with kind(LOCS, **given) as collector:
                    run(collector, number)
                result = collector.finalize()
                array = np.asarray(result.outputs[0][:])
                if kind is FullBatchAccumulator:
                    np.testing.assert_array_equal(array, PATCHES)
                else:
                    np.testing.assert_array_equal(array[LOCS[:, 1], LOCS[:, 0]], PATCHES[:, 0, 0])
                result.close()
                if place != "kept":
                    close(kind(LOCS, **given))
                if time.monotonic() - start > seconds and number >= len(PLACES):
                    break
    sys.stdout.write(f"{next(rounds)} rounds in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(float(sys.argv[1]))

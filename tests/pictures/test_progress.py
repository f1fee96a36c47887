"""The bar of a run, and what a run logs."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatchAccumulator
from accumulator._core import memory as _memory
from accumulator.exceptions import MissingExtraError, OptionError, StorageWarning

N = 10
LOCS = grid(N)


@pytest.fixture
def every_push(tuned):
    """Draw the bar at every push."""
    tuned(bar_pause_seconds=0.0, bar_share=0)


def push(accumulator, rows):
    """Push one head."""
    accumulator.push([distinct(N)[rows]], LOCS[rows])


def last_line(capsys):
    """Return how the bar looked last."""
    return capsys.readouterr().err.rstrip("\n").split("\r")[-1]


@pytest.mark.usefixtures("every_push")
def test_bar_shows_rows_gaps_memory_and_place(capsys, where):
    """Rows out of N, what is missing before the last one, and where they are."""
    with FullBatchAccumulator(LOCS, progress=True, **where) as accumulator:
        assert "0/10" in last_line(capsys)
        push(accumulator, [0, 1, 5])
        line = last_line(capsys)
        assert "3/10" in line
        assert "3 gaps" in line
        assert ("RAM" if where["memory_threshold"] else "zarr") in line
        assert "available" in line
        push(accumulator, [9])
        bar = accumulator._progress._bar
    assert "4/10" in last_line(capsys)
    assert bar.disable  # tqdm's word for closed
    assert accumulator._progress._bar is None
    accumulator.finalize().close()


@pytest.mark.usefixtures("every_push")
def test_bar_of_what_is_expected(capsys):
    """The end is what is expected; if more come, it is all."""
    with FullBatchAccumulator(LOCS, progress=True, n_expected=3) as accumulator:
        push(accumulator, [0, 1])
        assert "2/3" in last_line(capsys)
        push(accumulator, [2, 3])
        assert "4/10" in last_line(capsys)


@pytest.mark.usefixtures("every_push")
def test_what_a_mask_leaves_out_is_no_gap(capsys):
    """Of ten rows four are to come: six before the last one are no gaps, whichever they are."""
    with FullBatchAccumulator(LOCS, progress=True, n_expected=4) as accumulator:
        push(accumulator, [1, 3, 7])
        assert ("3/4" in (line := last_line(capsys)), "gaps" in line) == (True, False)
        push(accumulator, [9])
        assert ("4/4" in (line := last_line(capsys)), "gaps" in line) == (True, False)
    with FullBatchAccumulator(LOCS, progress=True, n_expected=7) as accumulator:
        push(accumulator, [9])
        assert "6 gaps" in last_line(capsys)  # nine have not come, of which three never do
    with FullBatchAccumulator(LOCS, progress=True, n_expected=0, heads=[((2, 2, 1), "f4")]):
        assert "/10" not in last_line(capsys)


@pytest.mark.usefixtures("every_push")
def test_bar_of_a_resumed_run_starts_where_it_was(capsys):
    """Rows of the earlier run count from the start."""
    accumulator = FullBatchAccumulator(LOCS, store="run.zarr", progress=True)
    push(accumulator, [0, 1, 2])
    accumulator.close()
    capsys.readouterr()
    with FullBatchAccumulator(LOCS, store="run.zarr", mode="a", progress=True) as accumulator:
        assert "3/10" in last_line(capsys)
        assert accumulator._progress._bar.initial == 3


@pytest.mark.parametrize("how", ["close", "exception", "dropped"])
def test_bar_is_closed(capsys, how):
    """However the run ends, the bar shows what had come."""
    accumulator = FullBatchAccumulator(LOCS, progress=True)
    bar = accumulator._progress._bar
    if how == "close":
        push(accumulator, [0])
        accumulator.close()
    elif how == "exception":
        push(accumulator, [0])
        with pytest.raises(KeyError), accumulator:
            raise KeyError
    else:
        push(accumulator, [0])
        with pytest.warns(ResourceWarning):
            del accumulator
    assert bar.disable
    assert "1/10" in last_line(capsys)


@pytest.mark.usefixtures("every_push")
def test_bar_that_nobody_can_see_any_more():
    """A stream that breaks ends the bar, and not the run."""
    with FullBatchAccumulator(LOCS, progress=True) as accumulator:
        accumulator._progress._bar.update = lambda _: (_ for _ in ()).throw(BrokenPipeError)
        push(accumulator, [0, 1])
        push(accumulator, [2])
        assert accumulator._progress._bar is None
    assert accumulator.finalize().written.sum() == 3


def test_bar_is_drawn_seldom(monkeypatch):
    """A thousand pushes ask for the memory a few times, not a thousand."""
    asked = []
    monkeypatch.setattr("accumulator._core.accumulator.available_memory", lambda: asked.append(1) or 2**30)
    n, head = 1000, np.ones((1, 1), "u1")
    locs = grid(n)
    with FullBatchAccumulator(locs, progress=True) as accumulator:
        for row in range(n):
            accumulator.push([head], locs[row : row + 1])
    assert 1 <= len(asked) < 200


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_progress_is_true_or_false(wrong):
    """Anything else is refused."""
    with pytest.raises(OptionError, match="progress"):
        FullBatchAccumulator(LOCS, progress=wrong)


def test_missing_tqdm(monkeypatch):
    """It is found out at once, before a store is made."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'full-batch-accumulator\[progress\]'"):
        FullBatchAccumulator(LOCS, store="run.zarr", progress=True)
    assert not Path("run.zarr").exists()
    FullBatchAccumulator(LOCS).close()


def test_extras_are_imported_only_when_asked_for():
    """The library needs neither tqdm nor matplotlib nor Pillow, and its log is silent."""
    script = (
        "import sys, numpy as np, accumulator\n"
        "with accumulator.FullBatchAccumulator([[0, 0]]) as a: a.push(np.ones((1, 1)), [[0, 0]])\n"
        "a._repr_html_()\n"
        "assert not {'tqdm', 'matplotlib', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# The log


def messages(caplog, level=logging.INFO):
    """Return what was logged at least at a level, and forget it."""
    found = [record.getMessage() for record in caplog.records if record.levelno >= level]
    assert {record.name for record in caplog.records} <= {"accumulator"}
    caplog.clear()
    return found


def test_log_of_a_plain_run(caplog, where):
    """Where the rows go is said at the first push, and the result at the end."""
    caplog.set_level(logging.INFO, "accumulator")
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        push(accumulator, [0, 1])
        (line,) = messages(caplog)
        place = "RAM" if where["memory_threshold"] else "zarr in file:"
        assert line.startswith(f"10 rows of 1 heads, 160 bytes, go to {place}")
        push(accumulator, [2])
        assert messages(caplog) == []
    (line,) = messages(caplog)
    assert re.match(r"finalized: <FullBatch .* 3 of 10 written", line)
    accumulator.finalize()
    assert messages(caplog) == []


def test_log_of_a_run_that_leaves_ram(caplog, monkeypatch):
    """It is said when, and how much moves."""
    caplog.set_level(logging.INFO, "accumulator")
    with FullBatchAccumulator(LOCS) as accumulator:
        push(accumulator, [0, 1])
        monkeypatch.setattr(_memory.Watch, "is_tight", lambda *_: True)
        push(accumulator, [2])
        lines = messages(caplog)
    assert "go to RAM" in lines[0]
    assert lines[1].startswith("memory is short: 2 rows (32 bytes) move from RAM to zarr in file:")
    accumulator.finalize().close()


def test_log_of_a_resumed_run(caplog):
    """Rows recorded and damaged are counted; checkpoints are for those who debug."""
    caplog.set_level(logging.DEBUG, "accumulator")
    accumulator = FullBatchAccumulator(LOCS, store="run.zarr", chunks=2)
    push(accumulator, [0, 1, 2, 3])
    assert messages(caplog)[0].endswith(f"go to zarr in {Path('run.zarr').absolute().as_uri()}")
    accumulator.flush()
    (line,) = messages(caplog, logging.DEBUG)
    assert line.startswith(f"checkpoint of {Path('run.zarr').absolute()}: 4 rows recorded")
    accumulator.close()
    Path("run.zarr/outputs/0/c.1.0.0.0").unlink()
    caplog.clear()
    with pytest.warns(StorageWarning, match="2 rows") as caught:
        accumulator = FullBatchAccumulator(LOCS, store="run.zarr", mode="a")
    assert caught[0].filename == __file__
    assert messages(caplog) == [
        f"resumed {Path('run.zarr').absolute()}: 2 of 10 rows recorded, 2 damaged and missing again"
    ]
    accumulator.close()

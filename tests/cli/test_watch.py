"""``accumulator watch``: how far a run is, until it is complete."""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import time
from threading import Thread

import attrs
import numpy as np
import pytest
from helpers.maps import raster

from accumulator import FullBatchAccumulator
from accumulator._cli import watch as _watch
from accumulator._cli.commands import main
from accumulator._report import live as _live
from accumulator._report.live import Watch, glimpse, picture

LOCS = raster((32, 48), (4, 4), (4, 4))


def push(accumulator, start, stop):
    """Push some rows, and record them."""
    accumulator.push({"a": np.ones((stop - start, 2), "f4")}, LOCS[start:stop])
    accumulator.flush()


def run_of(store, **options):
    """Begin a run."""
    return FullBatchAccumulator(LOCS, store=store, mode="a", **options)


def test_a_run_is_watched_until_it_is_complete(tmp_path, capsys, monkeypatch):
    """A line where something has changed, and nothing where not; a page that is loaded anew until the end."""
    pytest.importorskip("jinja2", reason="needs the extra report")
    store, page, pages = tmp_path / "run.zarr", tmp_path / "live.html", []
    accumulator = run_of(store)
    push(accumulator, 0, 30)
    steps = iter([lambda: push(accumulator, 30, 60), lambda: None, lambda: push(accumulator, 60, 96)])

    def sleep(_seconds):
        pages.append(page.read_text())
        next(steps, accumulator.finalize)()

    monkeypatch.setattr(_watch.time, "sleep", sleep)
    assert main(["watch", str(store), "--report", str(page), "--every", "7"]) == 0
    accumulator.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2].partition(" rec")[0] for line in lines] == [
        "running: 30 of 96 (31.2%)",
        "running: 60 of 96 (62.5%)",
        "running: 96 of 96 (100.0%)",
        "complete: 96 of 96 (100.0%)",
    ]
    assert all('http-equiv="refresh" content="7"' in text for text in pages)
    assert 'http-equiv="refresh"' not in page.read_text()


def test_what_a_mask_leaves_out_is_not_waited_for(tmp_path, monkeypatch):
    """Of 96 locations 40 are to come: 30 are three quarters, and at a row a second ten seconds are left."""
    with run_of(tmp_path / "run.zarr", n_expected=40) as accumulator:
        push(accumulator, 0, 30)
        watch, now = Watch(), 100.0
        monkeypatch.setattr(_live.time, "monotonic", lambda: now)
        look = glimpse(tmp_path / "run.zarr")
        for n in (28, 29, 30):
            now += 1
            watch.add(attrs.evolve(look, written=np.arange(96) < n, seconds=now))
        assert "running: 30 of 40 (75.0%) recorded, 1.0 rows/s, 0:00:10 left" in "".join(watch.lines())


def test_nobody_watches_any_more(tmp_path):
    """A pipe that is closed ends it, without a word."""
    with run_of(tmp_path / "run.zarr") as accumulator:
        push(accumulator, 0, 3)
        command = [sys.executable, "-m", "accumulator", "watch", str(tmp_path / "run.zarr"), "--every", "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert b"3 of 96" in process.stdout.readline()
            process.stdout.close()
            push(accumulator, 3, 9)
            assert process.wait(60) == 0
            assert process.stderr.read() == b""


def test_a_page_that_is_there_is_left_alone(tmp_path, capsys):
    """As `accumulator report` does."""
    with run_of(tmp_path / "run.zarr") as accumulator:
        push(accumulator, 0, 3)
    page = tmp_path / "mine.html"
    page.write_text("mine")
    assert main(["watch", str(tmp_path / "run.zarr"), "--report", str(page)]) == 1
    assert "mine.html" in capsys.readouterr().err
    assert page.read_text() == "mine"


@pytest.mark.parametrize("arguments", [["nowhere.zarr"], []])
def test_where_there_is_no_store(tmp_path, arguments, capsys, monkeypatch):
    """An error, and not a wait for one."""
    monkeypatch.chdir(tmp_path)
    if arguments:
        assert main(["watch", *arguments]) == 1
        assert "nowhere.zarr" in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit):
            main(["watch"])


@pytest.mark.parametrize("every", ["0", "-1", "nan", "x", "1e9"])
def test_time_between_looks_is_some(every):
    """And not without end."""
    with pytest.raises(SystemExit):
        main(["watch", "run.zarr", "--every", every])


def test_ranks_are_watched(tmp_path):
    """What any of them has recorded counts, and there is a line a rank."""
    with run_of(tmp_path / "run.zarr", rank=0, world_size=2) as first:
        first.push({"a": np.ones((10, 2), "f4")}, LOCS[:10])
    second = run_of(tmp_path / "run.zarr", rank=1, world_size=2)
    push(second, 40, 45)
    watch = Watch()
    watch.add(glimpse(tmp_path / "run.zarr"))
    lines = list(watch.lines())
    assert "in parts: 15 of 96" in lines[0]
    assert sorted(line.split(",")[0] for line in lines[1:]) == ["rank 0 of 2", "rank 1 of 2"]
    second.close()


def test_nobody_writes(tmp_path):
    """A run that was left is told to be that."""
    accumulator = run_of(tmp_path / "run.zarr")
    push(accumulator, 0, 5)
    accumulator.close()
    watch = Watch()
    watch.add(glimpse(tmp_path / "run.zarr"))
    assert "nobody is writing it" in list(watch.lines())[-1]


def test_a_run_that_nobody_writes_ends_the_command(tmp_path, capsys, monkeypatch):
    """Where no person looks on: what waits for it would wait for ever. On a terminal it goes on."""
    accumulator = run_of(tmp_path / "run.zarr")
    push(accumulator, 0, 5)
    accumulator.close()
    monkeypatch.setattr(_watch.time, "sleep", lambda _: None)
    assert main(["watch", str(tmp_path / "run.zarr")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "running, but nobody is writing it: 5 of 96" in line
    assert "left" not in line
    looks = itertools.count()
    monkeypatch.setattr(_watch.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")

    def sleep(_seconds):
        if next(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_watch.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        _watch._look_on(argparse.Namespace(path=tmp_path / "run.zarr", every=1.0, report=None))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 40
    assert "nobody is writing it" in " ".join(shown.split())


def test_speed_is_that_of_the_last_looks(tmp_path, monkeypatch):
    """Rows come at checkpoints: the time between those counts, and what the first look found does not."""
    now = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    store, watch = tmp_path / "run.zarr", Watch()
    accumulator = run_of(store)
    for start, seconds in ((0, 0.0), (10, 100.0), (10, 105.0), (30, 110.0), (30, 115.0), (40, 120.0)):
        if start > int(accumulator.written.sum()):
            push(accumulator, int(accumulator.written.sum()), start)
        look = glimpse(store) if start else None
        if look is not None:
            object.__setattr__(look, "seconds", seconds)
            watch.add(look)
    accumulator.close()
    assert watch.rows_per_second == 1.0  # 10 rows from second 110 to 120
    assert watch.seconds_left == 56.0


def test_a_picture_shows_what_has_come():
    """Half of it: whole where it is whole, begun where it is begun, and nothing where nothing is listed."""
    locs = raster((8, 8), (4, 4), (4, 4))
    locs = np.vstack([locs, [[8, 4, 12, 8]]])
    drawn = list(picture(locs, np.array([True, False, True, False, False]), 3, is_plain=True))
    assert drawn == ["#.."]
    drawn = list(picture(locs, np.array([True, False, False, False, False]), 3, is_plain=False))
    assert drawn == ["▒··"]
    strip = list(picture(np.arange(10)[:, None], np.arange(10) < 5, 10, is_plain=True))
    assert strip == ["#####....."]


def test_a_terminal_is_drawn_over(tmp_path, capsys, monkeypatch):
    """As many lines up as were drawn, none longer than the terminal."""
    store = tmp_path / "run.zarr"
    accumulator = run_of(store)
    push(accumulator, 0, 50)
    monkeypatch.setattr(_watch.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "20")
    monkeypatch.setattr(_watch.time, "sleep", lambda _: accumulator.finalize())
    assert main(["watch", str(store)]) == 0
    accumulator.close()
    first, n_drawn, second = re.split(r"\x1b\[(\d+)F\x1b\[J", capsys.readouterr().out)
    assert len(first.splitlines()) == int(n_drawn)
    for text in (first, second):
        assert max(map(len, text.splitlines())) < 40
        assert "recorded" in text
    assert "█" in first
    assert "·" in first


def test_a_run_that_goes_on_is_seen_from_elsewhere(tmp_path, capsys):
    """By a thread that writes it meanwhile."""
    store = tmp_path / "run.zarr"
    accumulator = run_of(store)
    push(accumulator, 0, 5)

    def work():
        with accumulator:
            for start in range(5, 96, 7):
                push(accumulator, start, min(96, start + 7))
                time.sleep(0.02)

    worker = Thread(target=work)
    worker.start()
    assert main(["watch", str(store), "--every", "0.01"]) == 0
    worker.join()
    assert "complete: 96 of 96" in capsys.readouterr().out

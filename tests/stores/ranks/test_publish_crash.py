"""What a power cut may leave of a publishing, in every order; and that no step of it can be left out.

There is a crash at every 61st change of files; with ACCUMULATOR_CRASHES=1 at every one.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings

import numpy as np
import pytest
from helpers import crashes
from helpers.ranked import OPTIONS, UNITS, alone, check_same, open_rank, orders, push, run_and_die, values

from accumulator import FullBatch, publish
from accumulator._report.facts import verify
from accumulator._stores.files import system as _system
from accumulator._stores.files import unsynced as _unsynced
from accumulator._stores.kept import record as _record
from accumulator._stores.ranks import publish as _publish
from accumulator.exceptions import ResultFormatError, ResultNotFoundError, StorageWarning

CRASHES = int(os.environ.get("ACCUMULATOR_CRASHES", "61"))
CASES = {
    "whole chunks": ("raw", "blocks", False),
    "mixed chunks": ("filled", "strided", False),
    "mixed, encoded": ("zstd", "strided", False),
    "a second time": ("shards", "blocks", True),
}


def prepare(folder, case):
    """Make parts that have ended, one of them by a kill; return which rows are recorded."""
    name, order, is_second = CASES[case]
    store, options = folder / "run.zarr", OPTIONS[name]
    rows = orders(order, 3, unit=UNITS[name])
    run_and_die(store, 0, 3, rows[0], options)
    recorded = set(rows[0][:-3].tolist())
    if is_second:
        publish(store, partial=True).close()
    for number in (1, 2):
        with open_rank(store, number, 3, **options) as rank:
            push(rank, rows[number])
        recorded |= set(rows[number].tolist())
    return sorted(recorded)


def log_publishing(folder, monkeypatch):
    """Publish, and return what was there before, and the log."""
    log = crashes.Log(folder)
    start = log.start_from(folder)
    with monkeypatch.context() as patched:
        patched.setattr(_system, "os", log)
        patched.setattr(_system, "shutil", log)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StorageWarning)  # of rows that the killed rank did not record
            publish(folder / "run.zarr").close()
    return start, log.entries


def check(tree, folder, recorded, wanted):
    """Look at what a crash left, and publish again: every recorded row is there, and nothing else."""
    crashes.lay_out(tree, folder)
    store = folder / "run.zarr"
    try:
        batch = FullBatch.load(store, partial=True)
    except (ResultFormatError, ResultNotFoundError):
        pass  # nothing was published yet
    else:
        written = np.flatnonzero(batch.written)
        assert set(written.tolist()) <= set(recorded)
        for head, right in values(written).items():
            assert (batch.outputs[head][:][written] == right).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not every rank has come to its end")
        publish(store).close()
    assert verify(store).verdict == "right"
    leftovers = [path for path in store.iterdir() if ".partial" in path.name]
    for path in leftovers:  # of what was being removed, which nobody looks at
        shutil.rmtree(path)
    check_same(store, wanted)


def replay(entries, start, folder, recorded, wanted, step, seed=3):
    """Crash at every so many entries in each of the ways, and check what is left."""
    rng, seen = random.Random(seed), set()  # noqa: S311  a crash is no secret
    for stop in range(len(entries) - seed % step, 0, -step):  # at the end it has most to lose
        for name, (keeps_bytes, keeps_name) in crashes.policies(rng).items():
            tree = crashes.crash(entries[:stop], keeps_bytes, keeps_name, start)
            state = frozenset(tree.items())
            if state in seen:
                continue
            seen.add(state)
            here = folder / "crashed"
            here.mkdir()
            try:
                check(tree, here, recorded, wanted)
            except BaseException as failure:
                failure.add_note(f"crash at {stop} of {len(entries)}, {name} is kept")
                raise
            finally:
                shutil.rmtree(here)


@pytest.fixture
def case(quick_path, monkeypatch):
    """Return what prepares a case and logs its publishing: all that `replay` needs."""

    def make(name):
        run, folder = quick_path / "log", quick_path / "crashes"
        for path in (run, folder):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        recorded = prepare(run, name)
        start, entries = log_publishing(run, monkeypatch)
        alone(folder / "alone.zarr", recorded, **OPTIONS[CASES[name][0]])
        return entries, start, folder, recorded, folder / "alone.zarr"

    return make


@pytest.mark.parametrize("name", CASES)
def test_log_has_every_change(name, quick_path, monkeypatch):
    """Nothing changes files but by what the log sees: all that it has is all that is there."""
    folder = quick_path / "log"
    folder.mkdir()
    prepare(folder, name)
    start, entries = log_publishing(folder, monkeypatch)
    there = {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
    assert crashes.crash(entries, crashes.everything, crashes.everything, start) == there


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_crash_loses_nothing(name, case, monkeypatch):
    """Whatever a power cut leaves of a publishing, the next one has every row that was recorded."""
    made = case(name)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is checked does not crash again
    replay(*made, step=CRASHES)


PUBLISHING = _publish.Publishing
STEPS = {  # and the case that shows it
    "files are synced": (
        "mixed chunks",
        (_unsynced.Unsynced, "sync", "(self._files, self._folders)", "(self._folders,)"),
    ),
    "moved chunks are synced": (
        "whole chunks",
        (PUBLISHING, "_move", "self._assembler.unsynced.sync()", "pass"),
    ),
    "rows are in their place before they are recorded": (
        "whole chunks",
        (
            PUBLISHING,
            "place_all",
            "self.run.begin()",
            "self.run.begin(); self.run.record_rows(source > PUBLISHED, self.gathered.checksums)",
        ),
    ),
    "the record is synced": ("mixed chunks", (_record.Record, "write", "self.unsynced.sync()", "pass")),
    "parts are renamed before they are removed": (
        "whole chunks",
        (_publish, "_remove_published", "system.rename(look.path, gone[-1])", "system.clear(look.path)"),
    ),
    "the folder of parts is renamed before it is removed": (
        "whole chunks",
        (_publish, "_remove_published", "system.rename(folder, leaving)", "leaving = folder"),
    ),
}  # the model of crashes knows folders by their names: it cannot show why their renamings are synced
TURNS = [0, 16, 8, 24, 4, 12, 20, 28, 2, 6, 10, 14, 18, 22, 26, 30]  # of 32 entries, the coarsest first


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_no_step_can_be_left_out(step, case, monkeypatch):
    """With one step left out, some crash loses a row, or has something damaged that is not."""
    name, mutation = STEPS[step]
    with monkeypatch.context() as broken:
        crashes.mutate(broken, *mutation)
        made = case(name)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with pytest.raises(Exception):  # noqa: B017, PT011, PT012  of any kind, as promises are
        for seed in TURNS:
            replay(*made, step=32, seed=seed)

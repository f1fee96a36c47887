"""What a power cut may leave of a publishing, in every order; and that no step of it can be left out.

There is a crash at every 61st change of files; with ACCUMULATOR_CRASHES=1 at every one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import warnings

import numpy as np
import pytest
from helpers import crashes
from helpers.maps import raster
from helpers.ranked import OPTIONS, UNITS, alone, check_same, open_rank, orders, push, run_and_die

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, publish, stitch
from accumulator._report.facts import verify
from accumulator._stores.files import system as _system
from accumulator._stores.files import unsynced as _unsynced
from accumulator._stores.kept import record as _record
from accumulator._stores.ranks import publish as _publish
from accumulator.exceptions import ResultFormatError, ResultNotFoundError, StorageWarning, UnfinishedError

CRASHES = int(os.environ.get("ACCUMULATOR_CRASHES", "61"))
CASES = {
    "whole chunks": ("raw", "blocks", False),
    "mixed chunks": ("filled", "strided", False),
    "mixed, encoded": ("zstd", "strided", False),
    "a second time": ("shards", "blocks", True),
}
BOXES = raster((24, 16), (8, 8), (4, 4))
PATCHES = np.arange(1, 1 + len(BOXES) * 8 * 8, dtype="f4").reshape(len(BOXES), 8, 8)


def prepare(folder, case):
    """Make parts that have ended, one of them by a kill; return which rows are recorded."""
    if case == "maps":
        make_maps(folder / "run.zarr", 3)
        return range(24)
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


def make_maps(store, world_size):
    """Stitch by ranks, the last one first."""
    with FullBatchAccumulator(BOXES) as accumulator:
        accumulator.push(PATCHES, BOXES)
    for rank in reversed(range(world_size)):
        stitch(accumulator.finalize(), store=store, rank=rank, world_size=world_size, chunks=5)


def make_wanted(store, case, recorded):
    """Make what publishing is to end with, by one process."""
    if case == "maps":
        make_maps(store, 1)
        publish(store).close()
    else:
        alone(store, recorded, **OPTIONS[CASES[case][0]])


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
        with FullBatch.load(wanted, partial=True) as right:
            for head in right.outputs if isinstance(right.outputs, dict) else [0]:
                assert (batch.outputs[head][:][written] == right.outputs[head][:][written]).all()
    with contextlib.suppress(ResultNotFoundError, UnfinishedError):
        assert FullBatch.load(store).written.any()  # it says that it is complete
        if (wanted / "patches").exists():
            assert StitchedMap.load(store).written.all()
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
        make_wanted(folder / "alone.zarr", name, recorded)
        return entries, start, folder, recorded, folder / "alone.zarr"

    return make


@pytest.mark.parametrize("name", [*CASES, "maps"])
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
@pytest.mark.parametrize("name", [*CASES, "maps"])
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
    "what is said of maps is there before they are complete": (
        "maps",
        (
            _publish,
            "_complete",
            "    if shared.terms.is_of_maps",
            "    if not run.is_complete:\n        run.complete()\n    if shared.terms.is_of_maps",
        ),
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

"""What a power cut may leave of a kept run, in every order; and that no step of the order can be left out.

There is a crash at every 31st change of files; with ACCUMULATOR_CRASHES=1 at every one.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from helpers import crashes
from helpers.tuned import tune
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.files import ownership as _ownership
from accumulator._stores.files import system as _system
from accumulator._stores.files import unsynced as _unsynced
from accumulator._stores.format import chunk_files as _files
from accumulator._stores.kept import record as _record
from accumulator._stores.kept import run as _run
from accumulator._stores.writing import redo as _redo
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import StorageError, UnfinishedError

CRASHES = int(os.environ.get("ACCUMULATOR_CRASHES", "31"))
N = 12
LOCS = np.arange(N * 4).reshape(N, 4)
SHAPES = {"raw": ((3,), "f4"), "filled": ((5,), "i2"), "small": ((7,), "f4"), "sharded": ((2,), "f8")}
OPTIONS = {
    "store": "run.zarr",
    "mode": "a",
    "on_duplicate": "last",
    "checkpoint_interval": np.inf,
    "chunks": {"raw": 4, "filled": 3, "small": 4},
    "shards": {"sharded": 4},
    "fill_value": {"filled": 7},
    "compressors": {"small": ZstdCodec()},
}


def values(row, version):
    """Return what a row holds in each head after so many predictions; no two are the same."""
    first = 1 + 1000 * row + 50 * version
    return {
        name: (first + 7 * head + np.arange(int(np.prod(shape)))).astype(dtype).reshape(shape)
        for head, (name, (shape, dtype)) in enumerate(SHAPES.items())
    }


def push(accumulator, rows, version):
    """Push rows in one version."""
    heads = [values(row, version) for row in rows]
    accumulator.push({name: np.stack([head[name] for head in heads]) for name in SHAPES}, LOCS[rows])


# Each session: pushes of (rows, version), None for a flush, REFUSED for a push that the disk refuses.
# It ends by finalize, or by DIES as a process that is killed: what it has written is there, not recorded.
REFUSED, DIES = "refused", "dies"
WORKLOADS = {
    "in order": [[(range(5), 0), None, (range(5, 12), 0), None]],
    "late, sparse": [[([7, 2], 0), None, ([6], 0), ([0, 11], 0), None, ([3], 0)]],
    "again": [[(range(6), 0), None, ([1, 2, 4], 1), None, ([1, 4, 8], 2), None, ([1], 3)]],
    "gaps filled after the end": [[([0, 5], 0)], [([1, 5, 9], 1), None, ([0], 2)]],
    "first push refused": [[REFUSED, (range(3), 0)], [REFUSED, ([7], 0)]],
    "resumed in the middle": [
        [([0, 1, 2, 6], 0), None, ([2, 3], 1), ([9], 1), DIES],
        [([4, 9], 2), None, ([0, 4], 3), DIES],
        [([5], 4)],
    ],
}


def record(workload, folder, monkeypatch):
    """Run a workload, and return the log."""
    log = crashes.Log(folder)
    with monkeypatch.context() as patched:
        patched.setattr(_system, "os", log)
        patched.setattr(_system, "shutil", log)
        tune(patched, direct_flag=0)  # whole pages that are cut again are a matter of speed alone
        patched.chdir(folder)
        for session in WORKLOADS[workload]:
            accumulator = FullBatchAccumulator(LOCS, **OPTIONS)
            pushed = {}
            for step in session:
                if step == DIES:
                    accumulator._canvas._batches.show()
                    with monkeypatch.context() as killed:
                        killed.setattr(type(accumulator._canvas), "flush", lambda _: None)
                        accumulator.close()
                    break
                if step == REFUSED:
                    log.note(("pushed", {}))
                    with monkeypatch.context() as full:
                        full.setattr(ZarrRows, "put", _refuse)
                        with pytest.raises(StorageError):
                            push(accumulator, [0, 11], 0)
                    continue
                if step is None:
                    accumulator.flush()
                    log.note(("kept", dict(pushed)))
                    continue
                rows, version = step
                log.note(("pushed", dict.fromkeys(rows, version)))
                push(accumulator, list(rows), version)
                pushed.update(dict.fromkeys(rows, version))
            else:
                accumulator.finalize()
                log.note(("kept", dict(pushed)))
                log.note(("complete", dict(pushed)))
    return log.entries


def _refuse(*_, **__):
    raise StorageError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def facts(entries):
    """Return which version of each row is kept for certain, and which may be there at all."""
    kept, possible, complete = {}, defaultdict(set), False
    for kind, *more in entries:
        if kind == crashes.NOTE:
            what, rows = more[0]
            if what == "pushed":
                complete = False
                for row, version in rows.items():
                    possible[row].add(version)
            elif what == "kept":
                kept.update(rows)
            else:
                complete = True
    return kept, possible, complete


def check(entries, tree, folder, *, goes_on):
    """Resume what a crash left: what was kept is there, and nothing else but what was pushed."""
    kept, possible, complete = facts(entries)
    crashes.lay_out(tree, folder)
    options = OPTIONS | {"store": folder / "run.zarr"}
    try:
        batch = FullBatch.load(folder / "run.zarr")
    except (UnfinishedError, ValueError, OSError):
        assert not complete, "a complete run cannot be loaded"
    else:
        compare(batch, kept, possible)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a row that is recorded and damaged is a broken promise
        accumulator = FullBatchAccumulator(LOCS, **options)
    try:
        before = accumulator.written.copy()
        assert before[list(kept)].all(), "rows that were kept are missing"
        if goes_on:
            missing = accumulator.missing_rows()
            if len(missing):
                push(accumulator, missing.tolist(), 9)
            for row in missing.tolist():
                possible[row] = {9}
                kept[row] = 9
        elif not len(accumulator.canvas):
            return
        compare(accumulator.finalize(), kept, possible)
    finally:
        accumulator.close()
    leftovers = [
        p for p in (folder / "run.zarr").rglob("*") if p.name in {"redo", "part"} or "partial" in p.name
    ]
    assert not leftovers


def compare(batch, kept, possible):
    """Compare every row of every head with what may be there."""
    outputs = {name: batch.outputs[name][:] for name in SHAPES}
    for row in range(N):
        if not batch.written[row]:
            assert row not in kept, "a row that was kept is missing"
            assert all((outputs[name][row] == (7 if name == "filled" else 0)).all() for name in SHAPES)
            continue
        least = kept.get(row, -1)
        right = [v for v in possible[row] if v >= least]
        assert any(
            all((outputs[name][row] == values(row, v)[name]).all() for name in SHAPES) for v in right
        ), f"row {row} is none of its predictions {sorted(right)}"


def replay(entries, folder, seed, step, seen):
    """Crash at every so many entries in each of the ways, and check what is left, unless that was seen."""
    rng = random.Random(seed)  # noqa: S311  a crash is no secret
    for turn, stop in enumerate(range(seed % step, len(entries) + 1, step)):
        for name, (keeps_bytes, keeps_name) in crashes.policies(rng).items():
            tree = crashes.crash(entries[:stop], keeps_bytes, keeps_name)
            state = frozenset(tree.items()), repr(facts(entries[:stop]))
            if state in seen:
                continue
            seen.add(state)
            here = folder / "crashed"
            here.mkdir()
            try:
                check(entries[:stop], tree, here, goes_on=turn % 3 == 0)
            except BaseException as failure:
                failure.add_note(f"crash at {stop} of {len(entries)}, {name} is kept")
                raise
            finally:
                shutil.rmtree(here)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_log_has_every_change(workload, quick_path, monkeypatch):
    """Nothing changes files but by what the log sees: all that it has is all that is there."""
    folder = quick_path / "log"
    folder.mkdir()
    entries = record(workload, folder, monkeypatch)
    there = {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }
    assert crashes.crash(entries, crashes.everything, crashes.everything) == there


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_any_crash_keeps_what_was_kept(workload, quick_path, monkeypatch):
    """Whatever a power cut leaves of what was not synced: kept rows are right, a resumed run completes."""
    entries = record(workload, quick_path, monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is checked does not crash again
    replay(entries, quick_path, seed=5, step=CRASHES, seen=set())


RUN, RECORD, REDO = _run.KeptRun, _record.Record, _redo.RedoChunks
FILES, UNSYNCED = _files.ChunkFiles, _unsynced.Unsynced
_CHECKSUMS = 'self.write("checksums", changed, known, checksums, held)'
_WRITTEN = 'self.write("written", np.flatnonzero(new), known)'
STEPS = {
    "files are synced": (UNSYNCED, "sync", "(self._files, self._folders)", "(self._folders,)"),
    "folders are synced": (UNSYNCED, "sync", "(self._files, self._folders)", "(self._files,)"),
    "new names are noted": (FILES, "_write", "is_new=not is_there", "is_new=False"),
    "rows are synced before their checksums": (
        RUN,
        "_record_rows",
        "self._unsynced.sync()\n    if self._unsynced",
        "if self._unsynced",
    ),
    "checksums come before written": (
        RECORD,
        "put",
        _CHECKSUMS + "\n    " + _WRITTEN,
        _WRITTEN + "\n    " + _CHECKSUMS,
    ),
    "the record is synced": (RECORD, "write", "self.unsynced.sync()", "pass"),
    "rows are redone after the record": (
        RUN,
        "_record_rows",
        "changed = np",
        "[redo.apply() for redo in rows.redo]\n    changed = np",
    ),
    "recorded rows are not written over": (
        REDO,
        "write",
        "again = filled & self._recorded[first : first + len(values)]",
        "again = np.zeros_like(filled)",
    ),
    "redone rows are synced before their files go": (REDO, "apply", "self._unsynced.sync()", "pass"),
    "the folder of redo files is synced": (
        REDO,
        "write",
        "self._unsynced.add_folder(self._folder.parent)",
        "pass",
    ),
    "the arrays are synced before the mark": (
        RUN,
        "_create",
        "self._unsynced.sync()\n    return",
        "return",
    ),
    "marks are synced": (RUN, "_set_state", "self._unsynced.sync()", "pass"),
    "a complete store is marked before it changes": (RUN, "begin", "self._set_state(RUNNING)", "pass"),
    "the name of the store is synced": (_ownership, "_make", "system.sync(folder.parent)", "pass"),
    "what is emptied goes before its mark": (RUN, "_empty", "system.sync(self.root)", "pass"),
}
FOUND_BY = {  # where the first crash is tried, so that few are needed: a workload, and its first entry
    "checksums come before written": ("gaps filled after the end", 19),
    "marks are synced": ("gaps filled after the end", 7),
    "a complete store is marked before it changes": ("gaps filled after the end", 7),
    "what is emptied goes before its mark": ("first push refused", 15),
}
EVERY = 24  # entries there is a crash until it is found, then at those between


@pytest.mark.slow
@pytest.mark.parametrize("step", [*STEPS, "files are synced before they are renamed"])
def test_no_step_can_be_left_out(step, quick_path, monkeypatch):
    """With one step of the order left out, some crash breaks a promise."""
    if step in STEPS:
        crashes.mutate(monkeypatch, *STEPS[step])
    else:
        real = _system.replace
        monkeypatch.setattr(
            _system, "replace", lambda path, content, **_: real(path, content, is_synced=False)
        )
    found = None
    logs = []
    first, seed = FOUND_BY.get(step, ("again", 7))
    names = [first, *({"again", "gaps filled after the end", "late, sparse"} - {first})]
    for number, workload in enumerate([first] if "emptied" in step else names):
        folder = quick_path / str(number)
        folder.mkdir()
        logs.append((folder, record(workload, folder, monkeypatch), set()))
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda _: None)
    seeds = [seed, *({*range(EVERY)} - {seed})]
    for seed, (folder, entries, seen) in itertools.product(seeds, logs):
        try:
            replay(entries, folder, seed, step=EVERY, seen=seen)
        except Exception as failure:  # noqa: BLE001  whatever it breaks
            found = failure
            break
    assert found is not None, "nothing misses this step"


def test_the_model_of_a_crash_forgets():
    """Bytes that were not synced and names that were not synced can be lost, synced ones cannot."""
    entries = [
        (crashes.FOLDER, "a"),
        (crashes.SYNC_FOLDER, "."),
        (crashes.CREATE, "a/x", 1),
        (crashes.WRITE, 1, 0, b"old"),
        (crashes.SYNC_FILE, 1),
        (crashes.SYNC_FOLDER, "a"),
        (crashes.WRITE, 1, 1, b"new"),
        (crashes.CREATE, "a/y", 2),
        (crashes.RENAME, "a/y", "a/x", 2),
    ]
    assert crashes.crash(entries, lambda _: 0, lambda: False) == {"a": None, "a/x": b"old"}
    assert crashes.crash(entries, lambda n: n, lambda: False) == {"a": None, "a/x": b"onew"}
    assert crashes.crash(entries, lambda _: 1, lambda: False) == {"a": None, "a/x": b"ond"}
    assert crashes.crash(entries, lambda _: 0, lambda: True) == {"a": None, "a/x": b""}
    assert Path("a").name == "a"

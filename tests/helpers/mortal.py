"""Runs that are meant to be killed: what they push, and a process that forks one for each line it reads.

The library is imported once, and before any thread is there; so that a life costs what its work costs, and a
thousand deaths are affordable.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path

import numpy as np

from helpers.oracle import grid

N = 60
LOCS = grid(N)
SIZES = {"map": ((32, 32), "f4"), "score": ((3, 5), "i4")}  # rows of whole pages, and small ones
MISSING = -1  # the version of a row that has not come
NOTHING = [MISSING] * N


AUTO = {"compressors": "auto", "chunks": 5}  # zstd
SHARDS = {"shards": 6, "chunks": 2}
LAST = {"on_duplicate": "last"}
CONFIGURATIONS = {
    "in order": {"chunks": 5},
    "shuffled": {"chunks": 7},
    "sparse": {"chunks": 4},
    "shuffled, filled": {"chunks": 6, "fill_value": -9},
    "in order, zstd": AUTO,
    "shuffled, zstd": AUTO,
    "shuffled, shards": SHARDS,
    "sparse, shards, zstd, filled": AUTO | SHARDS | {"fill_value": 7},
    "shuffled, repeats": {"chunks": 5} | LAST,
    "sparse, repeats, zstd": AUTO | LAST,
    "shuffled, repeats, shards, filled": SHARDS | LAST | {"fill_value": -1},
}


def last_versions(name):
    """Return the version that each row of a whole run has: `MISSING` for those left out for ever."""
    versions = np.zeros(N, dtype=int)
    if "repeats" in name:
        versions[::3], versions[1::9] = 1, 2
    if "sparse" in name:
        versions[np.random.default_rng(1).permutation(N)[: N // 4]] = MISSING
        versions[20:33] = MISSING  # whole chunks
    return versions


def values(head, versions):
    """Return a head's patches of some versions of all rows, none like another one anywhere.

    Where a version is `MISSING` the patch means nothing.
    """
    shape, dtype = SIZES[head]
    size = int(np.prod(shape))
    first = (np.asarray(versions) * N + np.arange(N)) * size + (head == "score") * 2**22 + 1
    return (first[:, None] + np.arange(size)).astype(dtype).reshape(N, *shape)


def start(store, name, **options):
    """Begin or resume a run; it records what flush() records, and no more."""
    from accumulator import FullBatchAccumulator  # noqa: PLC0415  this may be what is killed

    options = {"checkpoint_interval": 1e9} | CONFIGURATIONS[name] | options
    return FullBatchAccumulator(LOCS, store=store, mode="a", **options)


def batches(name, versions, chance):
    """Yield rows and the versions to push, until all have their last one; the caller notes what was taken."""
    goal = last_versions(name)
    while len(rows := np.flatnonzero(versions < goal)):
        if "order" not in name:
            chance.shuffle(rows)
        rows, new = rows[: chance.randint(1, 12)], versions.copy()
        new[rows] = [chance.randint(versions[row] + 1, goal[row]) for row in rows]
        yield rows, new


def push(accumulator, rows, versions):
    """Push some rows."""
    accumulator.push({head: values(head, versions)[rows] for head in SIZES}, LOCS[rows])


def complete(store, name, acknowledged=None, seed=0):
    """Resume a run, check what it has, and go on to its end without a fault."""
    accumulator = start(store, name)
    versions = check(accumulator, name, NOTHING if acknowledged is None else acknowledged)
    with accumulator:
        for rows, new in batches(name, versions, random.Random(seed)):  # noqa: S311  no secret
            push(accumulator, rows, new)
            versions[:] = new
        check(accumulator, name, versions)


def live(store, name, seed, acknowledged):
    """Resume a run, check what it has, and go on until it is complete; lines say how far it is.

    Parameters
    ----------
    store : path
        Where it is kept.
    name : str
        One of `CONFIGURATIONS`.
    seed : int
        What this life does, and in which order.
    acknowledged : list of int
        The versions of rows that earlier lives said were on disk.
    """
    say("start")
    chance = random.Random(seed)  # noqa: S311  no secret
    accumulator = start(
        store,
        name,
        checkpoint_interval=chance.choice([0, 0.01, 1e9]),
        memory_limit=chance.choice(["200 KiB", "1 MiB", None]),
    )
    versions = check(accumulator, name, acknowledged)
    say("made")
    with accumulator:
        for rows, new in batches(name, versions, chance):
            push(accumulator, rows, new)
            versions[:] = new
            if chance.random() < 0.3:
                say("flush")
                accumulator.flush()
                say(f"flushed {json.dumps(versions.tolist())}")
        say("finalize")
    say("end")


def check(accumulator, name, acknowledged):
    """Return the version of each row that a run has, after checking every value of every row."""
    written, acknowledged, goal = accumulator.written, np.array(acknowledged), last_versions(name)
    missing = np.flatnonzero(~written)
    assert accumulator.missing_rows().tolist() == accumulator.missing_rows(LOCS).tolist() == missing.tolist()
    assert accumulator.missing_locs.tolist() == LOCS[missing].tolist()
    assert written[acknowledged != MISSING].all(), ("lost", acknowledged.tolist(), written.tolist())
    assert not written[goal == MISSING].any(), "rows that never came"
    if len(accumulator.canvas) == 0:
        assert not written.any()
        return np.full(N, MISSING)
    arrays = dict(zip(SIZES, (array[:] for array in accumulator.canvas), strict=True))
    for array in arrays.values():
        assert (array[~written] == CONFIGURATIONS[name].get("fill_value", 0)).all()
    return check_written(arrays, written, name, acknowledged)


def check_written(arrays, written, name, acknowledged):
    """Return the version of each row that is there, after checking every value of each."""
    goal, versions = last_versions(name), np.full(N, MISSING)
    first = arrays["map"].reshape(N, -1)[:, 0].astype(int) - 1
    versions[written] = ((first // arrays["map"][0].size - np.arange(N)) // N)[written]
    for head, array in arrays.items():
        np.testing.assert_array_equal(array[written], values(head, versions)[written])
    assert (versions >= acknowledged).all(), ("older", np.array(acknowledged).tolist(), versions.tolist())
    assert (versions <= goal).all(), (versions.tolist(), goal.tolist())
    return versions


def check_complete(store, name, wanted=None, leftovers=()):
    """Check all values of a complete run, that nothing else is there, and return the SHA-256 of its files.

    Folders whose names are among the leftovers may be there, and do not count.
    """
    from accumulator import FullBatch  # noqa: PLC0415  as in `start`
    from accumulator._stores.files.ownership import is_locked  # noqa: PLC0415  the same

    versions, store = last_versions(name), Path(store)
    with FullBatch.load(store) as result:
        assert result.written.tolist() == (versions != MISSING).tolist()
        for head, array in zip(SIZES, result.outputs.values(), strict=True):
            right = values(head, versions)
            right[~result.written] = CONFIGURATIONS[name].get("fill_value", 0)
            np.testing.assert_array_equal(array[:], right)
    paths = [path for path in store.rglob("*") if not {*path.parts} & {*leftovers}]
    assert not [path for path in paths if path.name in {"part", "redo"} or path.suffix == ".partial"]
    assert is_locked(store) is False
    assert [each.name for each in threading.enumerate() if each.name.startswith("accumulator")] == []
    files = {path.relative_to(store).as_posix(): path.read_bytes() for path in paths if path.is_file()}
    found = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    other = set(found.items()) ^ set((found if wanted is None else wanted).items())
    assert not other, sorted(other)
    return found


def say(line):
    """Write a line in one piece: it is whole, or it is not there, and it outlives this process."""
    os.write(1, f"{line}\n".encode())


def serve():
    """Live once for each line, in a child; the number of one that ended is not given away yet."""
    import accumulator  # noqa: F401, PLC0415  once for all of them

    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                say(f"born {os.getpid()}")
                live(*json.loads(line))
            except BaseException:  # noqa: BLE001  whatever it is, it must not go on as the parent
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        say(f"ended {end.si_status if end.si_code == os.CLD_EXITED else -end.si_status}")
        sys.stdin.readline()
        os.waitpid(child, 0)


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else live(*json.loads(sys.stdin.readline()))

"""Stores of every kind, written and read by the public interface alone: that of any version.

``tests/data/stores-of-0.1.zip`` is what version 0.1 wrote (commit dfeba69), a folder a kind. With
that version and this folder of tests on the PYTHONPATH it was made by

    python -m helpers.earlier write FOLDER && cd FOLDER && zip -X -9 -r stores-of-0.1.zip .

The other way round: ``write`` with this version, and ``check`` instead of it with that one.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import attrs
import numpy as np

from helpers.oracle import grid

N = 31
LOCS = grid(N)
IMAGE = np.arange(20 * 12, dtype=np.float32).reshape(20, 12)
TILES = np.array([[x, y, x + 4, y + 4] for y in range(0, 17, 2) for x in range(0, 9, 2)])
NAMED = {"map": ((4, 4, 2), "f4"), "label": ((3,), "i2")}
OTHERS = {"0": ((2, 2), "?"), "1": ((3,), ">i4"), "2": ((2,), "c8"), "3": ((2, 5), "f2"), "4": ((), "u8")}


@attrs.frozen
class Kind:
    """How a store comes about.

    Attributes
    ----------
    options : dict
        Of the run.
    rows : sequence of int
        Those that were recorded, pushed in this order.
    end : {"complete", "killed", "redo", "saved"}
        The run was finalized, or killed after some more rows came, or killed while rows that replace recorded
        ones wait for their place; or its result was saved.
    heads : dict
        The patch shape and dtype of each; without names where they are numbers.
    """

    options: dict
    rows: list = attrs.field(factory=lambda: list(range(N)))
    end: str = "complete"
    heads: dict = attrs.field(factory=lambda: NAMED)

    @property
    def version(self):
        """What the recorded rows hold."""
        return 2 if self.end == "redo" else 1

    @property
    def is_running(self):
        """Whether there is more to come."""
        return self.end in {"killed", "redo"}


SOME = [*range(3, 9), 1, 22, 15, 12]  # late ones, gaps, and the last of all
RAW, SHARDS, ZSTD = {"chunks": 5}, {"chunks": 2, "shards": 6}, {"chunks": 5, "compressors": "auto"}
FILLED = {"fill_value": {"map": np.nan, "label": -1}}
KINDS = {
    "raw": Kind(RAW),
    "raw, gaps, no names": Kind(RAW, SOME, heads=OTHERS),
    "raw, killed": Kind(RAW, SOME, "killed"),
    "raw, killed, no names": Kind(RAW | {"resume_token": "net-1"}, SOME, "killed", OTHERS),
    "raw, redo": Kind(RAW | FILLED | {"on_duplicate": "last"}, SOME, "redo"),
    "own chunks, killed": Kind({}, SOME, "killed"),
    "shards": Kind(SHARDS),
    "shards, filled, killed": Kind(SHARDS | FILLED, SOME, "killed"),
    "shards, redo": Kind(SHARDS | {"on_duplicate": "last"}, SOME, "redo"),
    "zstd": Kind(ZSTD),
    "zstd, killed": Kind(ZSTD | {"chunks": 2}, SOME, "killed"),
    "zstd, shards, filled, gaps": Kind(ZSTD | SHARDS | FILLED, SOME),
    "saved from memory": Kind(FILLED, SOME, "saved"),
    "saved from disk": Kind(RAW | {"memory_threshold": 0, "dtype": {"map": "f2"}}, SOME, "saved"),
}
MAPS = ["map", "map, saved", "map, killed"]


def patches(kind, rows, version):
    """Return what is pushed: the values of some rows, no two alike where the dtype has as many."""
    heads = {}
    for name, (shape, dtype) in kind.heads.items():
        size = max(1, int(np.prod(shape)))
        first = (np.asarray(rows) + version * N) * size
        values = ((first[:, None] + np.arange(size)) % 2003).reshape(len(first), *shape)
        heads[name] = (values % 3 == 0) if dtype == "?" else values.astype(dtype)
    return heads if kind.heads is NAMED else list(heads.values())


def expected(kind, rows, version):
    """Return all heads as they are to be: the fill value but for some rows."""
    pushed, fill = patches(kind, rows, version), kind.options.get("fill_value", 0)
    dtypes = kind.options.get("dtype", {})
    heads = []
    for number, (name, (shape, dtype)) in enumerate(kind.heads.items()):
        value = fill.get(name, 0) if isinstance(fill, dict) else fill
        head = np.full((N, *shape), value, dtypes.get(name, dtype))
        head[rows] = pushed[name] if isinstance(pushed, dict) else pushed[number]
        heads.append(head)
    return heads


def start(kind, store):
    """Begin or resume a run, which records what it is told to."""
    from accumulator import FullBatchAccumulator  # noqa: PLC0415  whichever version this is

    options = {} if kind.end == "saved" else {"store": store, "mode": "a", "checkpoint_interval": 1e9}
    return FullBatchAccumulator(LOCS, **options | kind.options)


def push(accumulator, kind, rows, version):
    """Push rows in two batches."""
    half = len(rows) // 2
    for some in (rows[:half], rows[half:]):
        accumulator.push(patches(kind, some, version), LOCS[some])


def write(kind, store):
    """Write a store; where the run is to be killed, this process ends."""
    accumulator = start(kind, store)
    push(accumulator, kind, kind.rows, 1)
    if kind.end == "saved":
        accumulator.finalize().save(store)
    elif kind.end == "complete":
        accumulator.finalize()
    else:
        accumulator.flush()
        if kind.end == "redo":
            [redo] = {
                each for module in list(sys.modules.values()) if (each := getattr(module, "RedoChunks", None))
            }
            redo.apply = lambda _: os._exit(0)
            push(accumulator, kind, kind.rows, 2)
            accumulator.flush()
        missing = [row for row in range(N) if row not in kind.rows]
        push(accumulator, kind, missing[::2], 3)
        time.sleep(0.3)  # some of them reach their files: nobody believes these
        os._exit(0)


def write_map(name, store):
    """Write a map of all tiles but two."""
    from accumulator import Stitcher  # noqa: PLC0415  as in `start`

    tiles = np.stack([IMAGE[y : y + 4, x : x + 4] for x, y, *_ in TILES.tolist()])
    stitcher = Stitcher(TILES, fill_value=np.nan, store=None if name == "map, saved" else store)
    stitcher.push({"map": tiles[:-1]}, TILES[:-1])
    if name == "map, killed":
        os._exit(0)
    maps = stitcher.finalize()
    if name == "map, saved":
        maps.save(store)


def write_all(folder, names):
    """Write stores of some kinds, each in a process of its own."""
    import accumulator  # noqa: F401, PLC0415  once for all of them

    for name in names:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                write(KINDS[name], folder / name) if name in KINDS else write_map(name, folder / name)
                status = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if os.waitpid(child, 0)[1] != 0:
            raise SystemExit(f"{name} failed")


def check(name, store):
    """Check all that a store says, by reading it and no more."""
    from accumulator import FullBatch  # noqa: PLC0415  as in `start`
    from accumulator._cli import main  # noqa: PLC0415  the same

    kind = KINDS[name]
    with FullBatch.load(store, partial=kind.is_running) as result:
        np.testing.assert_array_equal(result.output_locs, LOCS)
        if kind.end == "redo":  # what is recorded has not come to its place: only a resumed run is right
            assert np.flatnonzero(result.written).tolist() == sorted(kind.rows)
            return
        compare(kind, result.outputs, result.written, kind.rows, kind.version)
    assert main(["verify", str(store)]) == 0


def check_map(name, store):
    """Check a map in the same way; of one that was killed nothing is recorded."""
    from accumulator import FullBatch  # noqa: PLC0415  as in `start`

    is_killed = name == "map, killed"
    wanted = IMAGE.copy()
    wanted[18:, 10:] = np.nan  # only the last tile lies there
    with FullBatch.load(store, partial=is_killed) as result:
        if is_killed:
            np.testing.assert_array_equal(result.outputs["map"][:][result.written], wanted[result.written])
        else:
            np.testing.assert_array_equal(result.outputs["map"][:], wanted)


def go_on(name, store):
    """Resume a run, check what it has, and complete it."""
    kind = KINDS[name]
    missing = [row for row in range(N) if row not in kind.rows]
    accumulator = start(kind, store)
    compare(kind, accumulator.canvas, accumulator.written, kind.rows, kind.version)
    np.testing.assert_array_equal(accumulator.missing_rows(), missing)
    push(accumulator, kind, missing, kind.version)
    result = accumulator.finalize()
    compare(kind, result.outputs, result.written, list(range(N)), kind.version)


def check_complete(name, store):
    """Check a store that was gone on with, of which nothing is missing now."""
    from accumulator import FullBatch  # noqa: PLC0415  as in `start`
    from accumulator._cli import main  # noqa: PLC0415  the same

    kind = KINDS[name]
    with FullBatch.load(store) as result:
        compare(kind, result.outputs, result.written, list(range(N)), kind.version)
    assert main(["verify", str(store)]) == 0
    assert not [path for path in Path(store).rglob("*") if path.name in {"part", "redo"}]


def compare(kind, outputs, written, rows, version):
    """Compare values and dtypes of all rows, and which of them have come."""
    assert np.flatnonzero(written).tolist() == sorted(rows)
    assert isinstance(outputs, dict) <= (kind.heads is NAMED)
    arrays = list(outputs.values()) if isinstance(outputs, dict) else outputs
    for array, wanted in zip(arrays, expected(kind, rows, version), strict=True):
        assert array.dtype == wanted.dtype.newbyteorder("=")  # as zarr has it
        np.testing.assert_array_equal(np.asarray(array[:])[written], wanted[written])
        if kind.end in {"complete", "saved"}:
            np.testing.assert_array_equal(array[:], wanted)


if __name__ == "__main__":
    action, folder, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    if action == "write":
        write_all(folder, names or [*KINDS, *MAPS])
    else:
        for name, kind in KINDS.items():
            check(name, folder / name)
            if kind.end != "saved":
                go_on(name, folder / name)
                check_complete(name, folder / name)
        for name in MAPS:
            check_map(name, folder / name)

"""A rank that is meant to be killed: STORE RANK WORLD_SIZE N ORDER SECONDS are its arguments.

It pushes its rows in batches, in one of several orders, tells what `flush` has returned for, and ends.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from accumulator import FullBatchAccumulator

HEADS = {"score": ((6,), "f4"), "label": ((), "i8")}
OPTIONS = {"heads": HEADS, "chunks": {"score": 512, "label": 4096}, "checkpoint_interval": 0.3}


def locs_of(n):
    """Return a list that is not in order of its keys."""
    rows = np.arange(n)
    return np.stack([rows % 1000 * 8, rows // 1000 * 8, rows % 1000 * 8 + 8, rows // 1000 * 8 + 8], axis=1)


def values(rows):
    """Return what rows hold, all different."""
    first = rows[:, None] * 6 + np.arange(6)
    return {"score": (first % 2**24).astype("f4"), "label": rows.astype("i8") * 3 + 1}


def rows_of(order, accumulator, n, rank, world_size, seed):
    """Return the rows that a rank pushes: its share, or what a sampler deals."""
    missing = np.zeros(n, bool)
    everything = np.arange(n)
    if order == "share":
        return accumulator.missing_rows()
    if order == "padded":
        each = -(-n // world_size)
        return np.resize(everything, each * world_size)[rank::world_size]
    chance = np.random.default_rng(seed)
    if order == "shuffled":
        return np.array_split(chance.permutation(n), world_size)[rank]
    missing[accumulator.missing_rows()] = True  # its share, but in any order
    return chance.permutation(np.flatnonzero(missing))


def acknowledge(folder, rows):
    """Tell which rows `flush` has returned for."""
    np.save(folder / f"{os.getpid()}.part.npy", rows)
    (folder / f"{os.getpid()}.part.npy").rename(folder / f"{os.getpid()}.npy")


def main(store, rank, world_size, n, order, seconds):
    """Work until the end, or until somebody ends it."""
    rank, world_size, n, locs = int(rank), int(world_size), int(n), locs_of(int(n))
    options = OPTIONS | {"on_duplicate": "first"}
    Path(f"{store}.acks").mkdir(exist_ok=True)
    accumulator = FullBatchAccumulator(
        locs, store=store, mode="a", rank=rank, world_size=world_size, **options
    )
    with accumulator:
        rows = rows_of(order, accumulator, n, rank, world_size, seed=7)
        for number, start in enumerate(range(0, len(rows), 640)):
            some = rows[start : start + 640]
            accumulator.push(values(some), locs[some])
            time.sleep(float(seconds))
            if number % 5 == 4:
                accumulator.flush()
                acknowledge(Path(f"{store}.acks"), rows[: start + 640])


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Runs of several ranks, in one process or many, and the same run of one process to compare with."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
from zarr.codecs import ZstdCodec

from accumulator import FullBatchAccumulator
from helpers.oracle import grid

N = 101
LOCS = grid(N)
HEADS = {"map": ((4, 3), "f4"), "score": ((2,), "i4")}
OPTIONS = {
    "raw": {"chunks": 7},
    "filled": {"chunks": 6, "fill_value": -9},
    "zstd": {"chunks": 5, "compressors": ZstdCodec()},
    "shards": {"shards": 6, "chunks": 2},
    "pieces": {"chunks": {"map": (4, 2, 3), "score": 9}},
    "cast": {"chunks": 8, "dtype": {"map": "f8"}, "fill_value": {"score": 3}},
}


def values(rows, version=0):
    """Return what rows hold: no two values are the same anywhere."""
    rows = np.asarray(rows)
    found = {}
    for number, (name, (shape, dtype)) in enumerate(HEADS.items()):
        size = int(np.prod(shape))
        first = 1 + 40 * (rows + N * (number + 2 * version))
        found[name] = (first[:, None] + np.arange(size)).reshape(len(rows), *shape).astype(dtype)
    return found


def open_rank(store, rank, world_size, **options):
    """Begin a part."""
    return FullBatchAccumulator(LOCS, store=store, mode="a", rank=rank, world_size=world_size, **options)


def push(accumulator, rows, version=0, batch=5):
    """Push rows in small batches."""
    rows = np.asarray(rows)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        accumulator.push(values(some, version), LOCS[some])


def alone(store, rows, **options):
    """Run in one process, which has these rows."""
    with FullBatchAccumulator(LOCS, store=store, **options) as accumulator:
        push(accumulator, rows)


def files(root):
    """Return the bytes of every file below a folder."""
    root = Path(root)
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def check_same(store, wanted):
    """Every file of two stores is the same, and there are no others, nor folders."""
    found, right = files(store), files(wanted)
    assert sorted(found) == sorted(right)
    assert [name for name in right if found[name] != right[name]] == []
    folders = [
        {str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_dir()} for root in (store, wanted)
    ]
    assert folders[0] == folders[1]


UNITS = {"raw": 7, "filled": 6, "zstd": 5, "shards": 6, "pieces": 4, "cast": 8}  # rows of a chunk


def orders(name, world_size, seed=0, unit=7):
    """Return each rank's rows, by how a sampler deals them; together all of them."""
    if name == "blocks":  # of whole chunks, as shares are of longer lists
        return [np.flatnonzero(np.arange(N) // unit % world_size == rank) for rank in range(world_size)]
    chance = np.random.default_rng(seed)
    if name == "strided":
        return [np.arange(rank, N, world_size) for rank in range(world_size)]
    if name == "padded":  # as torch's DistributedSampler: all get as many, the first ones again at the end
        n_each = -(-N // world_size)
        padded = np.resize(np.arange(N), n_each * world_size)
        return [padded[rank::world_size] for rank in range(world_size)]
    if name == "contiguous":
        return np.array_split(np.arange(N), world_size)
    if name == "shuffled":
        return np.array_split(chance.permutation(N), world_size)
    return None  # each rank's own share


def run_and_die(store, rank, world_size, rows, options, *, version=0):
    """Record rows in another process, which ends without a word."""
    process = multiprocessing.get_context("fork").Process(
        target=_record_and_die, args=(store, rank, world_size, rows, options, version)
    )
    process.start()
    process.join()
    assert process.exitcode == 7


def _record_and_die(store, rank, world_size, rows, options, version):
    accumulator = open_rank(store, rank, world_size, checkpoint_interval=np.inf, **options)
    rows = np.asarray(rows)
    push(accumulator, rows[:-3], version)
    accumulator.flush()
    push(accumulator, rows[-3:], version)  # which are lost with the process
    accumulator._canvas._batches.show()
    os._exit(7)

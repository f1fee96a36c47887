"""Good stores of every kind, to be broken."""

from __future__ import annotations

import numpy as np
import zarr

from accumulator import FullBatchAccumulator
from helpers.oracle import grid

N = 11
LOCS = grid(N)
ROWS = [0, 1, 2, 3, 7, 9]
MEMORY = 3 * 2**30
CANARY = b"canary" * 8
SIZES = {"map": ((2, 3), "f4"), "twin": ((2, 3), "f4"), "score": ((5,), "i2")}
ZSTD = zarr.codecs.ZstdCodec()
STORES = {  # heads, whether it is complete, options
    "raw": (["map", "score"], False, {"chunks": 2}),
    "raw complete": (["map", "twin"], True, {"chunks": 2}),
    "one chunk": (["map", "twin", "score"], True, {}),
    "fill": (["map", "score"], False, {"chunks": 3, "fill_value": 7}),
    "zstd": (["map", "twin"], False, {"chunks": 2, "compressors": ZSTD}),
    "zstd complete": (["map"], True, {"chunks": 4, "compressors": ZSTD, "fill_value": -1}),
    "gzip": (["map"], True, {"chunks": 4, "compressors": zarr.codecs.GzipCodec()}),
    "blosc": (["map"], False, {"chunks": 4, "compressors": zarr.codecs.BloscCodec()}),
    "sharded": (["map", "twin"], False, {"shards": 4}),
    "sharded zstd": (["map"], True, {"shards": 4, "compressors": ZSTD}),
    "pieces": (["map"], False, {"chunks": (2, 1, 2)}),
    "saved": (["map", "score"], None, {}),
    "saved zstd": (["map"], None, {"chunks": 4, "compressors": ZSTD}),
}


def values(name, version=0):
    """Return what is pushed to a head: never the fill value, and another one in every place."""
    shape, dtype = SIZES[name]
    first = 1 + 1000 * list(SIZES).index(name) + 500 * version
    size = N * int(np.prod(shape))
    return (np.arange(size) % 300 + first).astype(dtype).reshape(N, *shape)


def open_run(path, name, **options):
    """Open the run of a good store, or of what became of it."""
    return FullBatchAccumulator(
        LOCS, store=path, checkpoint_interval=float("inf"), **STORES[name][2], **options
    )


def batch(name, rows, version=0):
    """Return a batch of all heads of a store."""
    return {head: values(head, version)[rows] for head in STORES[name][0]}


def build(path, name, version=0):
    """Make a good store."""
    _, is_complete, options = STORES[name]
    if is_complete is None:
        with FullBatchAccumulator(LOCS, memory_threshold=100, **options) as accumulator:
            accumulator.push(batch(name, ROWS, version), LOCS[ROWS])
        accumulator.finalize().save(path)
        return
    accumulator = open_run(path, name)
    accumulator.push(batch(name, ROWS, version), LOCS[ROWS])
    if is_complete:
        accumulator.finalize().close()
    else:
        accumulator.close()


def build_all(templates):
    """Make all good stores, each with another one like it."""
    for name in STORES:
        build(templates / name, name)
        build(templates / f"{name}, other", name, version=1)

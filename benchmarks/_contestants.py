"""Who accumulates: this library, and what a hand-written loop reaches with the same bytes.

A contestant takes a case, a folder and its options, prepares what is not to be timed, and returns the
function that is. What that returns is kept until time and memory are read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import zarr

from accumulator import FullBatchAccumulator
from accumulator._locations import LocationIndex
from benchmarks._cases import Case, as_rows

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a run made, and what it found out about itself."""

    outputs: list[Any] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


Work: TypeAlias = Callable[[], Outcome]


Contestant: TypeAlias = Callable[..., Work]
"""Takes a `Case`, a folder, and options by name."""


def accumulator(case: Case, folder: Path, *, place: str, sync: bool = False) -> Work:
    """Run this library from construction to `finalize`; ``place`` is "RAM" or "zarr"."""

    def work() -> Outcome:
        threshold = 100 if place == "RAM" else 0
        with FullBatchAccumulator(
            case.locs, save_path=str(folder / "spill"), memory_threshold=threshold
        ) as full:
            start = time.perf_counter()
            for batch in case.batches:
                full.push(batch.heads, batch.locs)
            pushing = time.perf_counter() - start
        result = full.finalize()
        if sync:
            os.sync()
        if (result.path is None) != (place == "RAM"):
            raise RuntimeError(f"the result is not in {place}: there is too little memory for this benchmark")
        return Outcome(list(result.outputs), {"push_us": 1e6 * pushing / len(case.batches)})

    return work


def numpy_slices(case: Case, _folder: Path) -> Work:
    """Assign the batches to fresh zeros: the least that has to be done for a result in RAM."""

    def work() -> Outcome:
        outputs = [np.zeros((len(case.locs), *shape), dtype) for shape, dtype in case.heads]
        for batch in case.batches:
            for output, head in zip(outputs, batch.heads, strict=True):
                output[batch.rows] = head
        return Outcome(outputs)

    return work


def numpy_copyto(case: Case, _folder: Path) -> Work:
    """Copy each head in one call from a source of full size; for batches in order only."""
    sources = [np.concatenate(parts) for parts in zip(*(batch.heads for batch in case.batches), strict=True)]

    def work() -> Outcome:
        outputs = [np.zeros(source.shape, source.dtype) for source in sources]
        for output, source in zip(outputs, sources, strict=True):
            np.copyto(output, source)
        return Outcome(outputs)

    return work


def raw_write(case: Case, folder: Path, *, sync: bool = False) -> Work:
    """Write the batches one after the other to one file: the least that a result on disk costs."""

    def work() -> Outcome:
        with (folder / "raw").open("xb", buffering=0) as file:
            for batch in case.batches:
                for head in batch.heads:
                    left = head.data.cast("B")
                    while left:
                        left = left[os.write(file.fileno(), left) :]
        if sync:
            os.sync()
        return Outcome()

    return work


def zarr_by_hand(case: Case, folder: Path, *, chunk_nbytes: int | None = None) -> Work:
    """Assign the batches to zarr arrays without compression, with a chunk a batch unless told otherwise."""

    def work() -> Outcome:
        group = zarr.create_group(store=str(folder / "by_hand.zarr"))
        outputs = []
        for number, (shape, dtype) in enumerate(case.heads):
            row_nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            rows = len(case.batches[0].locs) if chunk_nbytes is None else chunk_nbytes // row_nbytes
            outputs.append(
                group.create_array(
                    str(number),
                    shape=(len(case.locs), *shape),
                    chunks=(min(rows, len(case.locs)), *shape),
                    dtype=dtype,
                    compressors=None,
                )
            )
        for batch in case.batches:
            for output, head in zip(outputs, batch.heads, strict=True):
                output[batch.rows] = head
        return Outcome(outputs)

    return work


def index_build(case: Case, _folder: Path) -> Work:
    """Build the lookup of this library."""

    def work() -> Outcome:
        start = time.perf_counter()
        index = LocationIndex(case.locs)
        seconds = time.perf_counter() - start
        return Outcome([index.locs], {"location_ns": 1e9 * seconds / len(case.locs)})

    return work


def dict_build(case: Case, _folder: Path) -> Work:
    """Build a dict from tuples to rows, the usual lookup by hand."""

    def work() -> Outcome:
        start = time.perf_counter()
        index = {tuple(loc): row for row, loc in enumerate(case.locs.tolist())}
        seconds = time.perf_counter() - start
        return Outcome([list(index)], {"location_ns": 1e9 * seconds / len(case.locs)})

    return work


def index_match(case: Case, _folder: Path) -> Work:
    """Match all batches with a lookup that is there already."""
    index = LocationIndex(case.locs)

    def work() -> Outcome:
        start = time.perf_counter()
        matches = [index.match(batch.locs) for batch in case.batches]
        seconds = time.perf_counter() - start
        return Outcome(matches, {"match_us": 1e6 * seconds / len(case.batches)})

    return work


def same_bytes(case: Case, folder: Path) -> Work:
    """Push the same rows in every way; tell whether all results have the same SHA-256."""
    values = [np.empty((len(case.locs), *shape), dtype) for shape, dtype in case.heads]
    for batch in case.batches:
        for value, head in zip(values, batch.heads, strict=True):
            value[batch.rows] = head
    in_order = np.arange(len(case.locs))
    shuffled = np.random.default_rng(1).permutation(in_order)

    def digest(rows: np.ndarray[Any, Any], size: int, threshold: float) -> str:
        with FullBatchAccumulator(
            case.locs, save_path=str(folder / "spill"), memory_threshold=threshold
        ) as full:
            for start in range(0, len(rows), size):
                at = as_rows(rows[start : start + size])
                full.push([value[at] for value in values], case.locs[at])
        with full.finalize() as result:
            hashes = [hashlib.sha256(np.ascontiguousarray(output[:]).tobytes()) for output in result.outputs]
        return "".join(each.hexdigest() for each in hashes)

    def work() -> Outcome:
        digests = [
            digest(rows, size, threshold)
            for threshold in (100, 0)
            for rows in (in_order, shuffled)
            for size in (32, 1, len(case.locs))
        ]
        right = "".join(hashlib.sha256(value.tobytes()).hexdigest() for value in values)
        same = all(each == right for each in digests)
        return Outcome([], {"same": float(same), "ways": len(digests)})

    return work


CONTESTANTS: Final[Mapping[str, Contestant]] = {
    "accumulator": accumulator,
    "numpy_slices": numpy_slices,
    "numpy_copyto": numpy_copyto,
    "raw_write": raw_write,
    "zarr_by_hand": zarr_by_hand,
    "index_build": index_build,
    "dict_build": dict_build,
    "index_match": index_match,
    "same_bytes": same_bytes,
}

"""What `accumulator` does, whole and in part, and the lookup that a dict makes."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil

from accumulator import FullBatchAccumulator
from accumulator._core import memory
from accumulator._core.locations import LocationIndex
from benchmarks._cases import as_rows
from benchmarks._outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks._cases import Case
    from benchmarks._outcome import Work


def accumulator(case: Case, folder: Path, *, place: str, **options: Any) -> Work:
    """Run this library from construction to `finalize`; ``place`` is "RAM", "zarr" or "store"."""

    def work() -> Outcome:
        threshold = 100 if place == "RAM" else 0
        if place == "store":
            options["store"] = folder / "kept.zarr"
        with FullBatchAccumulator(
            case.locs, save_path=str(folder / "spill"), memory_threshold=threshold, **options
        ) as full:
            start = last = time.perf_counter()
            longest = 0.0
            for batch in case.batches:
                full.push(batch.heads, batch.locs)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
            pushing = last - start
        result = full.finalize()
        if (result.path is None) != (place == "RAM"):
            raise RuntimeError(f"the result is not in {place}: there is too little memory for this benchmark")
        facts = {"push_us": 1e6 * pushing / len(case.batches), "longest_push_s": longest}
        return Outcome(list(result.outputs), facts)

    return work


def resume(case: Case, folder: Path) -> Work:
    """Open a run that died, of which all batches but every tenth were recorded, and tell what is missing."""
    store = folder / "run.zarr"
    died = FullBatchAccumulator(case.locs, store=store)
    n_pushed = 0
    for number, batch in enumerate(case.batches):
        if number % 10:
            died.push(batch.heads, batch.locs)
            n_pushed += len(batch.locs)
    died.close()

    def work() -> Outcome:
        start = time.perf_counter()
        with FullBatchAccumulator(case.locs, store=store, mode="a") as full:
            missing = full.missing_locs
            seconds = time.perf_counter() - start
            if len(missing) != len(case.locs) - n_pushed:
                raise RuntimeError(f"{len(missing)} rows are said to be missing, of {len(case.locs)}")
        return Outcome([missing], {"resume_s": seconds})

    return work


def leaving_ram(case: Case, folder: Path) -> Work:
    """Start in RAM, and be told half-way that no memory is left: it moves to disk while pushes go on."""

    def work() -> Outcome:
        process, durations = psutil.Process(), []
        before, half = process.memory_info().rss, len(case.batches) // 2
        with (
            _Memory() as memory,
            FullBatchAccumulator(case.locs, save_path=str(folder / "spill")) as full,
        ):
            for number, batch in enumerate(case.batches):
                if number == half:
                    held, memory.is_short = process.memory_info().rss - before, True
                    time.sleep(0.05)  # memory is not asked about more than a hundred times a second
                start = time.perf_counter()
                full.push(batch.heads, batch.locs)
                durations.append(time.perf_counter() - start)
        result = full.finalize()
        if result.path is None:
            raise RuntimeError("the result is still in RAM")
        facts = {"trigger_nbytes": held, "longest_push_s": max(durations[half:])}
        return Outcome(list(result.outputs), facts)

    return work


class _Memory(contextlib.AbstractContextManager["_Memory"]):
    """What the library sees of the machine's memory: all of it, or nothing."""

    def __init__(self) -> None:
        self.is_short = False

    def __enter__(self) -> Self:
        self._real = memory.available_memory
        memory.available_memory = lambda **groups: 0 if self.is_short else self._real(**groups)
        return self

    def __exit__(self, *_: object) -> None:
        memory.available_memory = self._real


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

    def digest(rows: np.ndarray[Any, Any], size: int, threshold: float, memory: _Memory | None = None) -> str:
        with FullBatchAccumulator(
            case.locs, save_path=str(folder / "spill"), memory_threshold=threshold
        ) as full:
            for start in range(0, len(rows), size):
                if memory is not None:
                    memory.is_short = start > len(rows) // 2
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
        for rows in (in_order, shuffled):
            with _Memory() as memory:
                digests.append(digest(rows, 7, 100, memory))
        right = "".join(hashlib.sha256(value.tobytes()).hexdigest() for value in values)
        same = all(each == right for each in digests)
        return Outcome([], {"same": float(same), "ways": len(digests)})

    return work

"""Patches into one map: this library, by hand with NumPy, and the least that any of them has to do."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import numpy as np

from accumulator import FullBatchAccumulator, Stitcher, stitch
from benchmarks._outcome import Outcome
from benchmarks._stitch_cases import hann

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks._outcome import Work
    from benchmarks._stitch_cases import StitchCase

_PIECE: Final = 2**16  # numbers written at a time


def stitcher(case: StitchCase, folder: Path, *, place: str = "RAM", blend: str = "average") -> Work:
    """Stitch batches as they come, in raster order; ``place`` is "RAM" or "zarr"."""

    def work() -> Outcome:
        threshold = 100 if place == "RAM" else 0
        with Stitcher(
            case.locs, blend=blend, save_path=str(folder / "spill"), memory_threshold=threshold
        ) as maps:
            start = time.perf_counter()
            for batch in case.batches:
                maps.push(batch.heads, batch.locs)
            pushing = time.perf_counter() - start
        result = maps.finalize()
        if (result.path is None) != (place == "RAM"):
            raise RuntimeError(f"the map is not in {place}: there is too little memory for this benchmark")
        return Outcome(list(result.outputs), {"push_us": 1e6 * pushing / len(case.batches)})

    return work


def stitch_result(case: StitchCase, _folder: Path, *, blend: str = "average") -> Work:
    """Stitch a result that is in RAM, complete, before the clock starts."""
    with FullBatchAccumulator(case.locs, memory_threshold=100) as full:
        for batch in case.batches:
            full.push(batch.heads, batch.locs)
    result = full.finalize()

    def work() -> Outcome:
        return Outcome(list(stitch(result, blend=blend, memory_threshold=100).outputs))

    return work


def numpy_canvas(case: StitchCase, folder: Path, *, place: str = "RAM", blend: str = "average") -> Work:
    """Add patches to a canvas and count them, then divide; ``place`` is "RAM" or "memmap", a file.

    Counts are kept once a pixel, not once a channel, and stay in RAM.
    """
    window = hann(case.patch)[..., None] if blend == "hann" else None
    boxes = case.boxes()

    def work() -> Outcome:
        if place == "RAM":
            canvas = np.zeros(case.shape, np.float32)
        else:
            canvas = np.lib.format.open_memmap(folder / "canvas.npy", "w+", np.float32, case.shape)
        counts = np.zeros((*case.shape[:-1], 1), np.float32)
        for batch, at in zip(case.batches, boxes, strict=True):
            for patch, box in zip(batch.heads[0], at, strict=True):
                canvas[box] += patch if window is None else patch * window
                counts[box] += 1 if window is None else window
        canvas /= counts
        return Outcome([canvas])

    return work


def memory_limit(case: StitchCase, _folder: Path) -> Work:
    """Read every patch once and write a fresh map once, on all cores: what memory alone allows.

    Nothing is stitched: reading is taking the maximum of a patch, the fastest reduction NumPy has, and
    writing is filling. Whoever adds patches to a map has to read and write the map more often than that,
    unless the part of it that patches go to stays in the cache.
    """
    n_threads = os.cpu_count() or 1

    def read(first: int) -> float:
        patches = (patch for batch in case.batches[first::n_threads] for patch in batch.heads[0])
        return max((float(patch.max()) for patch in patches), default=0.0)

    def write(part: NDArray[np.float32]) -> None:
        for start in range(0, len(part), _PIECE):
            part[start : start + _PIECE] = 1

    def work() -> Outcome:
        canvas = np.empty(case.shape, np.float32)
        with ThreadPoolExecutor(n_threads) as pool:
            largest = max(pool.map(read, range(n_threads)))
            for _ in pool.map(write, np.array_split(canvas.reshape(-1), n_threads)):
                pass
        return Outcome([canvas], {"largest": largest})

    return work

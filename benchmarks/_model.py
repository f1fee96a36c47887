"""A model that keeps one core busy, and what keeping its predictions adds to the loop."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatchAccumulator, Stitcher
from benchmarks._by_hand import assign, memmaps, zarr_arrays
from benchmarks._outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from benchmarks._cases import Batch, Case
    from benchmarks._outcome import Work
    from benchmarks._stitch_cases import StitchCase

    Push = Callable[[Batch], object]

_SIZE: Final = 256
_BLOCK: Final = 20  # batches that are pushed between two times that none is
_LAG: Final = 6  # as many as may wait to be blended


def compute(amount: int) -> None:
    """Do a fixed amount of work; `benchmarks._measure` sees to it that BLAS takes one thread."""
    matrix = np.full((_SIZE, _SIZE), 1 / _SIZE, np.float32)
    for _ in range(amount):
        matrix = matrix @ matrix  # stays as it is


def model_amount(_case: Case, _folder: Path, *, seconds: float) -> Work:
    """Find out how much work takes about so many seconds."""

    def work() -> Outcome:
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            compute(100)
            taken.append(time.perf_counter() - start)
        return Outcome([], {"amount": max(1, round(100 * seconds / median(taken)))})

    return work


def model(case: Case, folder: Path, *, amount: int, sink: str) -> Work:
    """Compute and hand over, batch after batch; what comes after the loop has a clock of its own."""

    def work() -> Outcome:
        outputs: list[Any] = []
        longest = 0.0
        with contextlib.ExitStack() as stack:
            push = stack.enter_context(_SINKS[sink](case, folder, outputs))
            start = time.perf_counter()
            for batch in case.batches:
                compute(amount)
                pushed = time.perf_counter()
                push(batch)
                longest = max(longest, time.perf_counter() - pushed)
            looped = time.perf_counter()
        facts = {
            "loop_s": looped - start,
            "longest_push_s": longest,
            "finalize_s": time.perf_counter() - looped,
        }
        return Outcome(outputs, facts)

    return work


def stitch_model(
    case: StitchCase, folder: Path, *, amount: int, place: str | None, copy: bool = True
) -> Work:
    """Compute and stitch with Hann's window, batch after batch; ``place`` is None for the model alone.

    After some batches the model goes on for a while without a push: `of_alone` is how long a batch takes with
    one, as a part of that. The speed of a core may change more from process to process than what is measured.
    """

    def work() -> Outcome:
        outputs: list[Any] = []
        longest = 0.0
        with contextlib.ExitStack() as stack:
            push: Push = lambda _batch: None  # noqa: E731  of the model alone
            if place is not None:
                stitcher = Stitcher(
                    case.locs,
                    blend="hann",
                    heads=[(case.batches[0].heads[0].shape[1:], np.float32)],
                    save_path=str(folder / "spill"),
                    memory_threshold=100 if place == "RAM" else 0,
                )
                stack.enter_context(stitcher)
                push = partial(_push, stitcher, copy=copy)
            looping, n_alone, alone = 0.0, 0, 0.0
            block = max(1, min(_BLOCK, len(case.batches) // 3))
            for number, batch in enumerate(case.batches, 1):
                start = time.perf_counter()
                compute(amount)
                pushed = time.perf_counter()
                push(batch)
                looping += time.perf_counter() - start
                longest = max(longest, time.perf_counter() - pushed)
                if number % block == 0:
                    compute(_LAG * amount)  # while what was pushed is finished
                    start = time.perf_counter()
                    compute(_LAG * amount)
                    alone += time.perf_counter() - start
                    n_alone += _LAG
            looped = time.perf_counter()
        if place is not None:
            result = stitcher.finalize()
            if (result.path is None) != (place == "RAM"):
                raise RuntimeError(f"the map is not in {place}: too little memory for this benchmark")
            outputs.extend(result.outputs)
        facts = {
            "of_alone": (looping / len(case.batches)) / (alone / n_alone),
            "longest_push_s": longest,
            "finalize_s": time.perf_counter() - looped,
        }
        return Outcome(outputs, facts)

    return work


def _push(stitcher: Stitcher, batch: Batch, *, copy: bool) -> None:
    stitcher.push(batch.heads, batch.locs, copy=copy)


@contextlib.contextmanager
def _nothing(_case: Case, _folder: Path, _outputs: list[Any]) -> Iterator[Push]:
    yield lambda _batch: None


@contextlib.contextmanager
def _accumulator(case: Case, folder: Path, outputs: list[Any], *, copy: bool = True) -> Iterator[Push]:
    with FullBatchAccumulator(case.locs, save_path=str(folder / "spill"), memory_threshold=0) as full:
        yield lambda batch: full.push(batch.heads, batch.locs, copy=copy)
    outputs.extend(full.finalize().outputs)


@contextlib.contextmanager
def _zarr(case: Case, folder: Path, outputs: list[Any]) -> Iterator[Push]:
    outputs.extend(zarr_arrays(case, folder))
    yield lambda batch: assign(outputs, batch)


@contextlib.contextmanager
def _memmap(case: Case, folder: Path, outputs: list[Any]) -> Iterator[Push]:
    outputs.extend(memmaps(case, folder))
    yield lambda batch: assign(outputs, batch)
    for output in outputs:
        output.flush()


_SINKS: Final[Mapping[str, Callable[..., contextlib.AbstractContextManager[Push]]]] = {
    "nothing": _nothing,
    "accumulator": _accumulator,
    "accumulator, copy=False": partial(_accumulator, copy=False),
    "zarr": _zarr,
    "memmap": _memmap,
}

"""Several processes and one result: loops side by side, what publishing costs, and what a rank holds."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatchAccumulator, publish
from benchmarks._cases import Batch, as_rows
from benchmarks._model import compute
from benchmarks._outcome import Outcome, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from benchmarks._cases import Case
    from benchmarks._outcome import Work

_PARTS: Final = 2
_CHUNK_SECONDS: Final = 5 / (1e12 / 13.8e6)  # 5 s for a TB of chunks of 13.8 MB
_ROW_SECONDS: Final = 1e-6


def publishing(case: Case, folder: Path, *, order: str, chunks: int | None = None) -> Work:
    """Publish what two ranks have recorded, of their shares or of every second row."""
    store = folder / "run.zarr"
    for rank in range(_PARTS):
        with _open(case, store, rank, _PARTS, chunks=chunks) as full:
            rows = full.missing_rows() if order == "shares" else np.arange(rank, len(case.locs), _PARTS)
            for batch in _batches(case, rows):
                full.push(batch.heads, batch.locs)
    nbytes = sum(path.stat().st_size for path in store.glob("parts/*/record/*"))
    os.sync()

    def work() -> Outcome:
        start = time.perf_counter()
        result = publish(store)
        seconds = time.perf_counter() - start
        n_chunks = sum(1 for _ in store.glob("outputs/*/c.*"))
        facts = {
            "published_gb_s": case.output_nbytes / 1e9 / seconds,
            "of_allowed": seconds / (_CHUNK_SECONDS * n_chunks + _ROW_SECONDS * len(case.locs)),
            "record_nbytes": nbytes / len(case.locs) / len(case.heads),
        }
        return Outcome(list(result.outputs), facts)

    return work


def ranks_at_work(case: Case, folder: Path, *, amount: int, world_size: int) -> Work:
    """Run a model in so many ranks, each on a core of its own; ``loop_s`` ends with the last of them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < world_size:
        raise UnavailableError(f"{world_size} ranks need a core each")
    context = multiprocessing.get_context("fork")

    def work() -> Outcome:
        pipes, ranks = [], []
        for rank, core in enumerate(cores[:world_size]):
            ours, theirs = context.Pipe()
            arguments = case, folder / "run.zarr", rank, world_size, amount, core, theirs
            ranks.append(context.Process(target=_work, args=arguments))
            ranks[-1].start()
            theirs.close()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()  # it is ready
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send(None)
        for pipe in pipes:
            pipe.recv()  # all is recorded
        facts = {"loop_s": time.perf_counter() - began}
        for rank, pipe in zip(ranks, pipes, strict=True):
            rank.join()
            rank.close()
            pipe.close()
        return Outcome(list(publish(folder / "run.zarr").outputs), facts)

    return work


def rank_memory(case: Case, folder: Path, *, world_size: int) -> Work:
    """Record a rank's share, and tell what it holds beside mapped files, rows in buffers and their list."""

    def work() -> Outcome:
        before = _anonymous_nbytes()
        full = _open(case, folder / "run.zarr", 0, world_size)
        share = full.missing_rows()
        for batch in _batches(case, share):
            full.push(batch.heads, batch.locs)
        full.flush()
        held = _anonymous_nbytes() - before - len(share) * case.row_nbytes - share.nbytes
        full.close()
        return Outcome([np.sort(share)], {"row_nbytes": held / len(share)})

    return work


def _open(case: Case, store: Path, rank: int, world_size: int, **options: Any) -> FullBatchAccumulator:
    return FullBatchAccumulator(
        case.locs,
        store=store,
        mode="a",
        heads=list(case.heads),
        rank=rank,
        world_size=world_size,
        **options,
    )


def _batches(case: Case, rows: NDArray[np.intp]) -> Iterator[Batch]:
    """Yield batches of some rows, with the values that the case has for each of them."""
    size = len(case.batches[0].locs)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        heads = tuple(np.empty((len(some), *shape), dtype) for shape, dtype in case.heads)
        for number in np.unique(some // size).tolist():
            at = some // size == number
            for head, values in zip(heads, case.batches[number].heads, strict=True):
                head[at] = values[some[at] % size]
        yield Batch(heads, case.locs[some], as_rows(some))


def _work(  # noqa: PLR0913, PLR0917  what a rank is told
    case: Case,
    store: Path,
    rank: int,
    world_size: int,
    amount: int,
    core: int,
    pipe: Connection,
) -> None:
    os.sched_setaffinity(0, {core})
    with _open(case, store, rank, world_size) as full:
        batches = list(_batches(case, full.missing_rows()))
        pipe.send(None)
        pipe.recv()
        for batch in batches:
            compute(amount)
            full.push(batch.heads, batch.locs)
    pipe.send(None)


def _anonymous_nbytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(":", 1) for line in lines)["RssAnon"].split()[0]) * 1024

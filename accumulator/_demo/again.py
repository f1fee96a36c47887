"""The same predictions collected by others: a process that is killed and resumed, and two ranks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator import FullBatch, publish
from accumulator._demo.maps import heads_of
from accumulator._demo.worker import BATCH
from accumulator._stores.files.target import write_file
from accumulator.exceptions import AccumulatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray


class WorkerError(AccumulatorError, RuntimeError):
    """A process of the demo did not end as it should; the message has the last of what it said."""


@attrs.frozen(eq=False)
class Again:
    """What became of both: the results, and which rows who recorded, ``(N,)`` each."""

    resumed: FullBatch
    before: NDArray[np.bool_]  # rows that were recorded when the process was killed
    after: NDArray[np.bool_]  # rows that the one after it predicted
    published: FullBatch
    ranks: tuple[NDArray[np.bool_], ...]


@contextlib.contextmanager
def collect_again(result: FullBatch, folder: Path) -> Iterator[Again]:
    """Let other processes collect a result, in a folder that is empty; `WorkerError` if one of them fails.

    One is killed in the middle of its batches, and another resumes its store. Meanwhile two ranks share the
    rows, and what they recorded is published.
    """
    rows: NDArray[np.intp] = np.flatnonzero(result.written)
    arrays = {
        name: np.stack([np.asarray(head[row]) for row in rows.tolist()])
        for name, head in heads_of(result).items()
    }
    for name, array in (arrays | {"rows": rows, "locs": result.output_locs}).items():
        content = io.BytesIO()
        np.save(content, array)
        write_file(folder / f"{name}.npy", content.getvalue())
    kept, shared = folder / "killed.zarr", folder / "ranks.zarr"

    def recorded_by(process: subprocess.Popen[str]) -> NDArray[np.bool_]:
        return np.isin(np.arange(len(result.written)), _said(process))

    with contextlib.ExitStack() as stack:
        mortal = stack.enter_context(_worker(folder, kept, fatal=-(-len(rows) // BATCH // 2) + 1))
        ranks = [stack.enter_context(_worker(folder, shared, rank=rank, world_size=2)) for rank in range(2)]
        _said(mortal, status=-signal.SIGKILL)
        with FullBatch.load(kept, partial=True) as partial:
            before = partial.written.copy()
        after = recorded_by(stack.enter_context(_worker(folder, kept)))
        by_rank = tuple(map(recorded_by, ranks))
    with FullBatch.load(kept) as resumed, publish(shared) as published:
        yield Again(resumed, before, after, published, by_rank)


@contextlib.contextmanager
def _worker(folder: Path, store: Path, fatal: int = 0, **options: int) -> Iterator[subprocess.Popen[str]]:
    """Start a process that imports what this one would; at the end there is none."""
    command = [sys.executable, "-P", "-m", "accumulator._demo.worker"]
    process = subprocess.Popen(  # noqa: S603  no shell, and nothing in it comes from outside
        [*command, str(folder), str(store), str(fatal), json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _said(process: subprocess.Popen[str], status: int = 0) -> Any:
    """Return what a process says, once it has ended as it should."""
    said, complaint = process.communicate()
    if process.returncode != status:
        tail = "\n".join(f"  {line}" for line in complaint.splitlines()[-5:])
        raise WorkerError(
            f"a process of the demo ended with {process.returncode}, not {status}. It said last:\n{tail}"
        )
    return json.loads(said)

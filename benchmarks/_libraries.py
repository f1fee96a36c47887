"""Other libraries, as their users use them. One that is not installed is left out, and the page says so."""

from __future__ import annotations

import importlib
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks._outcome import Outcome, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks._cases import Case
    from benchmarks._outcome import Work

_PENDING: Final = 6  # writes that tensorstore may have under way: two batches of three heads


def tensorstore(case: Case, folder: Path) -> Work:
    """Write zarr with a chunk a batch and no compression, asynchronously, a bounded number at a time."""
    library = load_library("tensorstore")

    def work() -> Outcome:
        outputs = [
            library.open(
                {
                    "driver": "zarr3",
                    # Without a sync a file, which takes half as long again: all is synced at the end.
                    "kvstore": {
                        "driver": "file",
                        "path": str(folder / "tensorstore.zarr" / str(number)),
                        "file_io_sync": False,
                    },
                    "metadata": {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
                },
                create=True,
                dtype=library.dtype(dtype),
                shape=(len(case.locs), *shape),
                chunk_layout=library.ChunkLayout(chunk_shape=(len(case.batches[0].locs), *shape)),
            ).result()
            for number, (shape, dtype) in enumerate(case.heads)
        ]
        pending: deque[Any] = deque()
        for batch in case.batches:
            for output, head in zip(outputs, batch.heads, strict=True):
                pending.append(output[batch.rows].write(head))
                if len(pending) > _PENDING:
                    pending.popleft().result()
        for write in pending:
            write.result()
        return Outcome(outputs)

    return work


def hdf5(case: Case, folder: Path) -> Work:
    """Assign the batches to contiguous data sets of h5py."""
    library = load_library("h5py")

    def work() -> Outcome:
        with library.File(folder / "result.h5", "w") as file:
            outputs = [
                file.create_dataset(str(number), (len(case.locs), *shape), dtype)
                for number, (shape, dtype) in enumerate(case.heads)
            ]
            for batch in case.batches:
                for output, head in zip(outputs, batch.heads, strict=True):
                    output[batch.rows] = head
        return Outcome()

    return work


def tiatoolbox(case: Case, folder: Path, *, place: str) -> Work:
    """Call tiatoolbox's function as its engine does, batch after batch; ``place`` is "RAM" or "zarr".

    The engine's loop without what it does between two batches to merge finished rows of a slide.
    """
    segmentor = load_library("tiatoolbox.models.engine.multi_task_segmentor")
    concatenate_none = load_library("tiatoolbox.models.engine.semantic_segmentor").concatenate_none

    def work() -> Outcome:
        canvas: list[Any] = [None] * len(case.heads)
        full_output_locs, output_locs = case.locs, None
        for number, batch in enumerate(case.batches):
            outputs, full_output_locs, output_locs = segmentor.prepare_multitask_full_batch(
                batch_output=batch.heads,
                batch_locs=batch.locs,
                full_output_locs=full_output_locs,
                output_locs=output_locs,
                canvas_np=canvas,
                save_path=folder / "full_batch_tmp",
                memory_threshold=100 if place == "RAM" else 0,
                is_last=number == len(case.batches) - 1,
            )
            for head, output in enumerate(outputs):
                canvas[head] = concatenate_none(old_arr=canvas[head], new_arr=output)
        if isinstance(canvas[0], np.ndarray) != (place == "RAM"):
            raise RuntimeError(f"the result is not in {place}: there is too little memory for this benchmark")
        # In RAM its last batch is longer than it should be, by as many rows of zeros as were left.
        return Outcome([head[: len(case.locs)] for head in canvas])

    return work


def load_library(name: str) -> Any:
    """Import what a peer is made of, before the clock starts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, not ours
            return importlib.import_module(name)
    except ImportError as cause:
        raise UnavailableError(f"{name.partition('.')[0]} is not installed") from cause

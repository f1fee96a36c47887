"""What people write by hand with NumPy, zarr and the operating system: the least that has to be done."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr

from benchmarks._outcome import Outcome, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks._cases import Batch, Case
    from benchmarks._outcome import Work

_PAGE: Final = 4096  # what O_DIRECT wants addresses and lengths to be multiples of


def assign(outputs: list[Any], batch: Batch) -> None:
    for output, head in zip(outputs, batch.heads, strict=True):
        output[batch.rows] = head


def numpy_slices(case: Case, _folder: Path) -> Work:
    """Assign the batches to fresh zeros: the least that has to be done for a result in RAM."""

    def work() -> Outcome:
        outputs = [np.zeros((len(case.locs), *shape), dtype) for shape, dtype in case.heads]
        for batch in case.batches:
            assign(outputs, batch)
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


def lists(case: Case, _folder: Path) -> Work:
    """Keep the batches in lists and concatenate at the end, as Hugging Face's Trainer does; in order only."""

    def work() -> Outcome:
        kept: list[list[Any]] = [[] for _ in case.heads]
        for batch in case.batches:
            for parts, head in zip(kept, batch.heads, strict=True):
                parts.append(head)
        return Outcome([np.concatenate(parts) for parts in kept])

    return work


def raw_write(case: Case, folder: Path) -> Work:
    """Write the batches one after the other to one file: the least that a result on disk costs."""

    def work() -> Outcome:
        with (folder / "raw").open("xb", buffering=0) as file:
            for batch in case.batches:
                for head in batch.heads:
                    _write(file.fileno(), head.data.cast("B"))
            os.fsync(file.fileno())
        return Outcome()

    return work


def direct_write(case: Case, folder: Path) -> Work:
    """Do the same past the page cache; the copies that are aligned for it are there before the clock runs."""
    if not hasattr(os, "O_DIRECT"):
        raise UnavailableError("this system has no O_DIRECT")
    aligned: dict[tuple[int, int], mmap.mmap] = {}
    for batch in case.batches:
        for head in batch.heads:
            if (head.ctypes.data, head.nbytes) not in aligned:
                copy = mmap.mmap(-1, -(-head.nbytes // _PAGE) * _PAGE)
                copy[: head.nbytes] = head.tobytes()
                aligned[head.ctypes.data, head.nbytes] = copy

    def work() -> Outcome:
        try:
            file = os.open(folder / "raw", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_DIRECT)
        except OSError as cause:
            raise UnavailableError("the file system of the temporary folder has no O_DIRECT") from cause
        try:
            for batch in case.batches:
                for head in batch.heads:
                    _write(file, memoryview(aligned[head.ctypes.data, head.nbytes]))
            os.fsync(file)
        finally:
            os.close(file)
        return Outcome()

    return work


def memmap(case: Case, folder: Path) -> Work:
    """Assign the batches to NumPy files that are mapped into memory."""

    def work() -> Outcome:
        outputs = memmaps(case, folder)
        for batch in case.batches:
            assign(outputs, batch)
        return Outcome(outputs)

    return work


def zarr_by_hand(case: Case, folder: Path, **options: Any) -> Work:
    """Assign the batches to zarr arrays, made by `zarr_arrays`."""

    def work() -> Outcome:
        outputs = zarr_arrays(case, folder, **options)
        for batch in case.batches:
            assign(outputs, batch)
        return Outcome(outputs)

    return work


def memmaps(case: Case, folder: Path) -> list[Any]:
    return [
        np.lib.format.open_memmap(folder / f"{number}.npy", "w+", dtype, (len(case.locs), *shape))
        for number, (shape, dtype) in enumerate(case.heads)
    ]


def zarr_arrays(
    case: Case, folder: Path, *, chunk_rows: int | None = None, compressed: bool = False
) -> list[Any]:
    """Make an array a head: a chunk a batch, and no compression, unless told otherwise."""
    group = zarr.create_group(store=str(folder / "by_hand.zarr"))
    rows = chunk_rows or len(case.batches[0].locs)
    return [
        group.create_array(
            str(number),
            shape=(len(case.locs), *shape),
            chunks=(min(rows, len(case.locs)), *shape),
            dtype=dtype,
            compressors="auto" if compressed else None,
        )
        for number, (shape, dtype) in enumerate(case.heads)
    ]


def _write(file: int, left: memoryview) -> None:
    while left:
        left = left[os.write(file, left) :]

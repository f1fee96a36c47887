"""Compression: this library with a codec, and what the codec alone does on all cores."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numcodecs
from numcodecs.blosc import BITSHUFFLE
from zarr.codecs import BloscCodec, ZstdCodec

from benchmarks._outcome import Outcome
from benchmarks._own import accumulator

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks._cases import Case
    from benchmarks._outcome import Work

CODECS: Final[Mapping[str, Any]] = {
    "zstd": ZstdCodec(level=0),
    "lz4": BloscCodec(cname="lz4", shuffle="bitshuffle"),
}
# The same as zarr sets them up for float32.
ALONE: Final[Mapping[str, Any]] = {
    "zstd": numcodecs.Zstd(level=0),
    "lz4": numcodecs.Blosc(cname="lz4", clevel=5, shuffle=BITSHUFFLE, typesize=4),
}


def accumulator_codec(case: Case, folder: Path, *, codec: str) -> Work:
    """Run this library to disk with compression."""
    return accumulator(case, folder, place="zarr", compressors=CODECS[codec])


def codec_alone(case: Case, folder: Path, *, codec: str) -> Work:
    """Encode every head of every batch into a file of its own, as many at once as there are cores."""
    encode = ALONE[codec].encode

    def put(job: tuple[int, Any]) -> None:
        number, head = job
        (folder / str(number)).write_bytes(encode(head))

    def work() -> Outcome:
        heads = itertools.chain.from_iterable(batch.heads for batch in case.batches)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(put, enumerate(heads)):
                pass
        return Outcome()

    return work

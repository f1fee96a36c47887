"""Whichever way zarr reads, what it reads is checked: zarr 3.4 has a second way, which a user may choose."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec
from zarr.core import codec_pipeline

from accumulator import FullBatch, FullBatchAccumulator
from accumulator.exceptions import DamagedError

LOCS = np.arange(80).reshape(40, 2)
PIPELINES = [name for name in ("BatchedCodecPipeline", "FusedCodecPipeline") if hasattr(codec_pipeline, name)]
STORED = {
    "raw": {},
    "compressed": {"compressors": GzipCodec()},
    "shards": {"shards": (20, 6), "chunks": (5, 6)},
    "compressed shards": {"shards": (20, 6), "chunks": (5, 6), "compressors": GzipCodec()},
}


@pytest.fixture(params=PIPELINES)
def _pipeline(request):
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield


@pytest.mark.usefixtures("_pipeline")
@pytest.mark.parametrize("options", STORED.values(), ids=STORED)
def test_damaged_chunk_is_refused(options, tmp_path):
    """And a right one is read."""
    rows = np.random.default_rng(0).random((30, 6))
    with FullBatchAccumulator(LOCS, store="run.zarr", **options) as accumulator:
        accumulator.push([rows], LOCS[:30])
    with FullBatch.load("run.zarr") as batch:
        np.testing.assert_array_equal(batch.outputs[0][:30], rows)
    chunk = tmp_path / "workplace" / "run.zarr" / "outputs" / "0" / "c.0.0"
    damaged = bytearray(chunk.read_bytes())
    damaged[40] ^= 1
    chunk.write_bytes(damaged)
    with FullBatch.load("run.zarr") as batch, pytest.raises(DamagedError):
        batch.outputs[0][:2]

"""What a type checker must understand of the public API; checked by mypy, never run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, assert_type

import numpy as np
import numpy.typing as npt
from zarr.codecs import ZstdCodec

from accumulator import (
    FullBatch,
    FullBatchAccumulator,
    StitchedMap,
    Stitcher,
    grid_locations,
    prepare_multitask_full_batch,
    stitch,
)
from accumulator.exceptions import AccumulatorError, UnknownLocationError

if TYPE_CHECKING:
    import zarr  # noqa: F401  named in a type below

    from accumulator.typing import StitchOptions, StorageOptions

locs = np.zeros((4, 4), dtype=np.int64)
assert_type(grid_locations((8, 8), 4, overlap=0.5, border="over", origin=[0, 0]), npt.NDArray[np.int64])
grid_locations(locs.shape, (4, 4), stride=(2, 4), mask=locs > 0, min_mask_ratio=1)
grid_locations((8, 8), 4.0)  # type: ignore[arg-type]
grid_locations((8, 8), 4, border="cut")  # type: ignore[arg-type]
patches = np.zeros((4, 8, 8, 3), dtype=np.float32)

with FullBatchAccumulator(locs) as accumulator:
    assert_type(accumulator, FullBatchAccumulator)
    accumulator.push(patches, locs)
    accumulator.push((patches, patches), locs.tolist())
    accumulator.push([patches, patches], locs)
    accumulator.push({"a": patches}, locs)
    assert_type(accumulator.finalize(), FullBatch)
    assert_type(accumulator.written, npt.NDArray[np.bool_])
    assert_type(accumulator.missing_locs, npt.NDArray[Any])
    assert_type(accumulator.nbytes, int)

FullBatchAccumulator(
    [[0, 0, 4, 4]],
    save_path=Path("spill"),
    memory_threshold=12.5,
    memory_limit="8 GiB",
    store="run.zarr",
    mode="a",
    resume_token="1",
    checkpoint_interval=60.0,
    on_duplicate="first",
)
FullBatchAccumulator(
    locs,
    dtype={"a": np.float16, "b": "u1"},
    fill_value={0: np.nan, 1: 255},
    chunks={"a": 4, "b": (4, 8, 8, 3)},
    shards=16,
    compressors={"a": ZstdCodec(level=1), "b": [{"name": "crc32c"}], "c": "auto", "d": None},
)
FullBatchAccumulator(locs, dtype="f2", fill_value=np.float32(1), chunks=(4, 8, 8, 3), compressors=ZstdCodec())
FullBatchAccumulator(locs, on_duplicate="never")  # type: ignore[arg-type]
FullBatchAccumulator(locs, heads=[((4, 4, 1), "float32"), np.empty((0, 3), np.uint8)])
Stitcher(locs, heads={"a": ((4, 4, 1), np.float32)})
FullBatchAccumulator(locs, heads=3)  # type: ignore[arg-type]
by_name = {"a": 4}
FullBatchAccumulator(locs, chunks=by_name, dtype={"a": np.float16})
FullBatchAccumulator(locs, chunks="many")  # type: ignore[arg-type]
FullBatchAccumulator(locs, chunks={"a": "many"})  # type: ignore[dict-item]
FullBatchAccumulator(locs, compressors="zstd")
FullBatchAccumulator(locs, compressors={"a": "gzip", "b": None})
FullBatchAccumulator(locs, compressors="zip")  # type: ignore[arg-type]
FullBatchAccumulator(locs, fill_value="nothing")  # type: ignore[arg-type]
FullBatchAccumulator(locs, "spill")  # type: ignore[call-arg]

batch = accumulator.finalize()
assert_type(batch.path, Path | None)
batch.written = locs  # type: ignore[misc, assignment]
if isinstance(batch.outputs, dict):
    assert_type(batch.outputs["a"], "npt.NDArray[Any] | zarr.Array[Any]")
batch.save("result.zarr")
assert_type(FullBatch.load("result.zarr"), FullBatch)
assert_type(FullBatch.load("result.zarr", partial=True), FullBatch)

outputs, remaining, consumed = prepare_multitask_full_batch(
    (patches,), locs, locs, None, [None], "spill", 80, is_last=True
)
assert_type(outputs, "list[npt.NDArray[Any] | zarr.Array[Any]]")
assert_type(remaining, npt.NDArray[Any])
prepare_multitask_full_batch((patches,), locs, locs, None)  # type: ignore[call-arg]

try:
    accumulator.push(patches, locs)
except UnknownLocationError as error:
    assert_type(error.rows, npt.NDArray[Any])
except AccumulatorError:
    pass


def on_band(rows: slice, maps: object) -> None:
    """Take a band."""


with Stitcher(locs, blend="hann", output_shape=(8, 8), origin=[0, 0], on_band=on_band) as stitcher:
    stitcher.push({"a": patches}, locs)
    assert_type(stitcher.written, npt.NDArray[np.bool_])
    assert_type(stitcher.open_nbytes, int)
assert_type(stitcher.finalize(), StitchedMap)
assert_type(stitch(accumulator.finalize(), blend=np.ones((8, 8)), heads=["a"]), StitchedMap)
assert_type(stitcher.finalize().coverage(), npt.NDArray[np.uint32])
stitch(batch, fill_value={"a": np.nan}, chunks=(512, 512, 3), output_shape=(8, 8), save_path=Path("spill"))
stitch(batch, channels_first=True, crop={"a": "center", "b": 2}, origin="min")
stitch(batch, scale={"a": [0.5, 0.25], "b": 2}, axes="yx", output_shape={"a": (8, 8)})
stitch(batch, blnd="hann")  # type: ignore[call-overload]


def collect(**storage: Unpack[StorageOptions]) -> FullBatchAccumulator:
    """Pass storage options on."""
    return FullBatchAccumulator(locs, **storage)


collect(dtype=np.float16, chunks=8)
collect(chunk=8)  # type: ignore[call-arg]
options: StitchOptions = {"blend": "hann", "dtype": {"a": "f4"}, "on_band": on_band}
assert_type(stitch(batch, **options), StitchedMap)

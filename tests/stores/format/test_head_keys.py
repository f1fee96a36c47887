"""On disk heads lie under their own names, where those are safe names of folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.hostile.attacks import set_mark
from hypothesis import given
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, publish, stitch
from accumulator._stores.format.names import head_keys
from accumulator.exceptions import ResultFormatError

LOCS = np.array([[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8]])
VALUES = {
    "mask": np.arange(48, dtype="f4").reshape(3, 4, 4),
    "two words": np.arange(6, dtype="i4").reshape(3, 2),
    "7": np.arange(3, dtype="u1"),
    "Tissue": np.arange(3, 6, dtype="i2"),
    "tissue": np.arange(6, 9, dtype="i2"),
    "type-2_a": np.arange(9, 12, dtype="i8"),
}
FOLDERS = ["1", "2", "3", "4", "mask", "type-2_a"]


def part(start, stop):
    """Return some rows of each head."""
    return {name: head[start:stop] for name, head in VALUES.items()}, LOCS[start:stop]


def assert_right(path, n_written=3):
    """Check a store by this library, by zarr alone, and by its folders."""
    group = zarr.open_group(path, mode="r")
    assert sorted(group["outputs"].array_keys()) == FOLDERS
    assert group.attrs["accumulator"]["version"] == 3
    by_name = {array.attrs["name"]: array[:] for _, array in group["outputs"].arrays()}
    with FullBatch.load(path, partial=True) as batch:
        assert batch.names == tuple(VALUES)
        for name, head in VALUES.items():
            np.testing.assert_array_equal(batch[name][:n_written], head[:n_written])
            np.testing.assert_array_equal(by_name[name][:n_written], head[:n_written])


@given(
    names=st.lists(st.text(max_size=5) | st.sampled_from(["a", "A", "0", "1", "con", "c.0", "..", "/", ""]))
)
def test_keys_are_folders_that_differ(names):
    """Whatever names are: on any file system, below the folder of all heads, and none is another's."""
    names = list(dict.fromkeys(names))
    keys = head_keys(names, len(names))
    assert len({key.lower() for key in keys}) == len(keys) == len(names)
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        assert key in {name, str(number)}
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key)
        assert key.isdigit() == (key == str(number))
    assert head_keys(None, 3) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["mask", "x" * 64, "_a", "Grade-3", "0a"])
def test_plain_names_are_kept(name):
    """Those that people give."""
    assert head_keys([name], 1) == [name]


@pytest.mark.parametrize(
    "name", ["x" * 65, "__init", "a.b", "zarr.json", "nul", "COM1", "12", "é", "a/b", "-a"]
)
def test_other_names_are_numbers(name):
    """Those that some file system or zarr takes for something else."""
    assert head_keys([name], 1) == ["0"]


def test_saved_kept_resumed_and_spilled(tmp_path):
    """In every store that one process writes."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        accumulator.push(*part(0, 1))
        accumulator.close()
    assert_right("run.zarr", 1)
    with FullBatchAccumulator(LOCS, store="run.zarr", mode="a") as accumulator:
        accumulator.push(*part(1, 3))
    assert_right("run.zarr")
    FullBatch.load("run.zarr").save("copy.zarr")
    assert_right("copy.zarr")
    with FullBatchAccumulator(LOCS, memory_threshold=0, save_path=tmp_path) as accumulator:
        accumulator.push(*part(0, 3))
    result = accumulator.finalize()
    assert result["mask"].path == "outputs/mask"
    result.save("spilled.zarr")
    assert_right("spilled.zarr")


def test_published():
    """Parts have numbers, the result has names; published in two steps."""
    for rank in (0, 1):
        accumulator = FullBatchAccumulator(LOCS, store="run.zarr", mode="a", rank=rank, world_size=2)
        rows = accumulator.missing_rows()
        accumulator.push({name: head[rows] for name, head in VALUES.items()}, LOCS[rows])
        accumulator.finalize().close()
        publish("run.zarr", partial=rank == 0).close()
    assert_right("run.zarr")


def test_maps():
    """Of a result that has names."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(*part(0, 3))
    stitch(accumulator.finalize(), heads=["mask"], store="maps.zarr").close()
    assert {each.name for each in Path("maps.zarr/outputs").iterdir()} == {"mask", "zarr.json"}
    with StitchedMap.load("maps.zarr") as maps:
        np.testing.assert_array_equal(maps["mask"][:4, :4], VALUES["mask"][0])


def test_heads_without_names_are_stored_as_before():
    """Version 2, which earlier versions of the library read."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        accumulator.push(list(VALUES.values()), LOCS)
    group = zarr.open_group("run.zarr", mode="r")
    assert sorted(group["outputs"].array_keys()) == ["0", "1", "2", "3", "4", "5"]
    assert group.attrs["accumulator"]["version"] == 2


def test_stranger_whose_names_are_not_what_folders_are_called_is_refused():
    """A version of the other kind, or names that lead elsewhere."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        accumulator.push(*part(0, 3))
    mark = json.loads(Path("run.zarr/zarr.json").read_text())["attributes"]["accumulator"]
    for changed in (
        {"version": 2},
        {"names": ["../../mask", *mark["names"][1:]]},
        {"version": 3.0},
        {"version": 4},
    ):
        set_mark(Path("run.zarr"), mark | changed)
        with pytest.raises(ResultFormatError):
            FullBatch.load("run.zarr")
    set_mark(Path("run.zarr"), mark)
    assert_right("run.zarr")

"""Results as dask and xarray have them: the same values, named, and read when they are computed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, stitch
from accumulator.exceptions import DamagedError, HeadError, MissingExtraError
from accumulator.integrations.dask import to_dask

N = 12
LOCS = grid(N)
WRITTEN = np.arange(N) % 4 > 0
HEADS = {"map": distinct(N, (4, 4, 2)), "score": distinct(N, (3,), "i2")}


def make(heads, **options):
    """Return a result with gaps."""
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        pushed = [head[WRITTEN] for head in (heads.values() if isinstance(heads, dict) else heads)]
        accumulator.push(
            dict(zip(heads, pushed, strict=True)) if isinstance(heads, dict) else pushed, LOCS[WRITTEN]
        )
    return accumulator.finalize()


@pytest.fixture
def reads(monkeypatch):
    """Return a list that gets the name of each file that is read."""
    from accumulator._stores.format.store import FolderStore  # noqa: PLC0415

    names, get = [], FolderStore.get

    async def noted(self, key, *args, **options):
        names.append(key)
        return await get(self, key, *args, **options)

    monkeypatch.setattr(FolderStore, "get", noted)
    return names


def test_heads_are_variables_and_what_rows_are_coordinates(where, tmp_path):
    """Of a result in RAM, in a temporary folder, and loaded, with the names that axes have on disk."""
    pytest.importorskip("xarray")
    batch = make(HEADS, memory_threshold=where["memory_threshold"])
    batch.save(tmp_path / "kept.zarr")
    loaded = FullBatch.load(tmp_path / "kept.zarr")
    for result in (batch, loaded):
        dataset = result.to_xarray()
        assert list(dataset.data_vars) == ["map", "score"]
        assert dataset["map"].dims == ("location", "y", "x", "map_channel")
        assert dataset["score"].dims == ("location", "score_channel")
        for name, head in result.items():
            np.testing.assert_array_equal(dataset[name].to_numpy(), np.asarray(head), strict=True)
            assert dataset[name].dims == loaded[name].metadata.dimension_names
        assert set(dataset.coords) == {"output_locs", "written"}
        np.testing.assert_array_equal(dataset.written, WRITTEN)
        np.testing.assert_array_equal(dataset.output_locs, LOCS)
    only = loaded.to_xarray()["map"].isel(location=WRITTEN)
    np.testing.assert_array_equal(only, HEADS["map"][WRITTEN])


def test_maps_are_variables_of_their_own_axes(where, tmp_path):
    """Each with where its first pixel is; the coordinates are those of the patches."""
    pytest.importorskip("xarray")
    batch = make({"map": HEADS["map"], "half": distinct(N, (2, 2))})
    options = {"scale": {"map": 1, "half": 0.5}, "memory_threshold": where["memory_threshold"]}
    maps = stitch(batch, **options)
    maps.save(tmp_path / "maps.zarr")
    for result in (maps, StitchedMap.load(tmp_path / "maps.zarr")):
        dataset = result.to_xarray()
        assert dataset["map"].dims == ("map_y", "map_x", "channel")
        assert dataset["half"].dims == ("half_y", "half_x")
        for name, array in result.items():
            np.testing.assert_array_equal(dataset[name].to_numpy(), np.asarray(array), strict=True)
        assert dataset["half"].attrs == {"origin": (0, 0), "scale": (0.5, 0.5)}
        assert dataset.written.dims == ("location",)
        np.testing.assert_array_equal(dataset.written, WRITTEN)
    saved = stitch(batch, heads=["map"], store=tmp_path / "one.zarr")
    assert saved.to_xarray()["map"].dims == ("y", "x", "channel")
    rows = FullBatch.load(tmp_path / "one.zarr").to_xarray()
    assert rows["map"].dims == ("y", "x", "channel")
    assert rows.written.dims == ("y",)


def test_nothing_is_read_before_it_is_computed(tmp_path, reads):
    """And what is read is compared with its checksums."""
    pytest.importorskip("xarray")
    make(HEADS, store=tmp_path / "run.zarr", chunks=2)
    batch = FullBatch.load(tmp_path / "run.zarr")
    reads.clear()
    dataset, lazy = batch.to_xarray(), batch.to_dask()
    assert not reads
    np.testing.assert_array_equal(dataset["map"][4:6], np.asarray(lazy["map"][4:6]))
    assert set(reads) == {"outputs/map/c.2.0.0.0"}
    (tmp_path / "run.zarr/outputs/score/c.1.0").write_bytes(b"\1" * 12)
    with pytest.raises(DamagedError, match="head 'score'"):
        dataset["score"].compute()


def test_arrays_in_memory_are_not_copied():
    """They are those of the result, and xarray may not bring dask."""
    pytest.importorskip("xarray")
    batch = make(HEADS)
    assert np.shares_memory(batch.to_xarray()["map"].to_numpy(), batch["map"])


def test_dask_has_them_as_outputs_are(where):
    """A list where heads have no names; the function of the same name does the same."""
    pytest.importorskip("dask.array")
    batch = make(list(HEADS.values()), memory_threshold=where["memory_threshold"])
    maps = stitch(make({"map": HEADS["map"]}), memory_threshold=where["memory_threshold"])
    for lazy in (batch.to_dask(), to_dask(batch)):
        assert isinstance(lazy, list)
        for array, head in zip(lazy, batch.values(), strict=True):
            np.testing.assert_array_equal(array.compute(), np.asarray(head), strict=True)
    np.testing.assert_array_equal(maps.to_dask()["map"].compute(), np.asarray(maps["map"]))


@pytest.mark.parametrize("name", ["written", "output_locs", "location", "column"])
def test_a_head_that_is_called_as_a_coordinate_is_refused(name):
    """It would not be a variable of its own; on disk it is."""
    pytest.importorskip("xarray")
    batch = make({name: HEADS["score"]})
    with pytest.raises(HeadError, match=f"'{name}'"):
        batch.to_xarray()


def test_a_head_that_is_called_as_an_axis_has_another_axis():
    """Displacements come as ``x`` and ``y``."""
    pytest.importorskip("xarray")
    dataset = make({"x": HEADS["map"], "y": HEADS["map"]}).to_xarray()
    assert dataset["x"].dims == ("location", "x_y", "x_x", "channel")
    assert dataset["y"].dims == ("location", "y_y", "y_x", "channel")


def test_without_heads_there_are_coordinates_alone():
    """As nothing was pushed."""
    pytest.importorskip("xarray")
    with FullBatchAccumulator(LOCS[:0]) as accumulator:
        pass
    assert set(accumulator.finalize().to_xarray().coords) == {"output_locs", "written"}


def test_without_the_extra_it_says_which(monkeypatch):
    """Which of them is missing depends on what is asked for; a head on disk needs both."""
    in_ram, on_disk = make(HEADS), make(HEADS, memory_threshold=0)
    monkeypatch.setitem(sys.modules, "dask.array", None)
    with pytest.raises(MissingExtraError, match=r"dask\.array .*\[dask\]"):
        in_ram.to_dask()
    pytest.importorskip("xarray")
    in_ram.to_xarray()
    with pytest.raises(MissingExtraError, match=r"dask\.array .*\[xarray\]"):
        on_disk.to_xarray()
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingExtraError, match=r"xarray .*\[xarray\]"):
        in_ram.to_xarray()

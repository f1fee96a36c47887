"""The user's own path is followed, wherever links lead; what is in a store is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, prepare_multitask_full_batch, stitch
from accumulator._cli import main
from accumulator.exceptions import OptionError, ResultExistsError, StorageError

LOCS = grid(3)
PATCHES = np.repeat(distinct(3), 4, axis=1).repeat(4, axis=2)[:, :4, :4]
PLACES = ["link", "deep/link", "link/new/folder"]


@pytest.fixture(autouse=True)
def _links():
    """Make a link to a folder, and a link in another folder to that link."""
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("deep").mkdir()
    Path("deep/link").symlink_to("../link")


def collect(**options):
    """Return a result."""
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        accumulator.push(PATCHES, LOCS)
    return accumulator.finalize()


@pytest.mark.parametrize("place", PLACES)
def test_every_path_of_the_user_may_lead_through_links(place):
    """Runs are kept, resumed, spilled, saved, loaded, stitched and exported through linked folders."""
    place = Path(place)
    with FullBatchAccumulator(LOCS, store=place / "run.zarr") as accumulator:
        accumulator.push(PATCHES[:1], LOCS[:1])
        accumulator.close()
    with FullBatchAccumulator(LOCS, store=place / "run.zarr", mode="a") as accumulator:
        assert accumulator.written.tolist() == [True, False, False]
        accumulator.push(PATCHES[1:], LOCS[1:])
    assert accumulator.finalize().path == place.resolve() / "run.zarr"
    spilled = collect(memory_threshold=0, save_path=place / "spill")
    with pytest.raises(OptionError, match="temporary folder of this result"):
        spilled.save(place / "spill" / spilled.path.parent.name / "inside.zarr")
    spilled.save(place / "moved.zarr")
    collect().save(place / "written.zarr")
    outputs, _, _ = prepare_multitask_full_batch(
        (PATCHES,), LOCS, LOCS, None, None, place / "call", 0, is_last=True
    )
    np.testing.assert_array_equal(outputs[0][:], PATCHES)
    shutil.rmtree(place / "call")  # the caller's
    for name in ("run.zarr", "moved.zarr", "written.zarr"):
        np.testing.assert_array_equal(FullBatch.load(place / name).outputs[0][:], PATCHES)
    maps = stitch(FullBatch.load(place / "run.zarr"), store=place / "maps.zarr")
    maps.save(place / "copy.zarr")
    maps.save_ome_zarr(place / "map.ome.zarr")
    maps.save_ome_tiff(place / "map.ome.tif")
    assert sorted(each.name for each in place.iterdir() if each.suffix) == [
        "copy.zarr",
        "map.ome.tif",
        "map.ome.zarr",
        "maps.zarr",
        "moved.zarr",
        "run.zarr",
        "written.zarr",
    ]


@pytest.mark.parametrize("place", PLACES)
def test_commands_follow_links(place, capsys):
    """Of stores, and of what is written."""
    collect(store=f"{place}/run.zarr")
    Path("latest").symlink_to(f"{place}/run.zarr")
    for store in ("latest", f"{place}/run.zarr"):
        for command in ("info", "verify", "missing"):
            assert main([command, store]) == 0
        assert main(["stitch", store, "-o", f"{place}/{Path(store).name}-map.ome.tif"]) == 0
        assert main(["report", store, "-o", f"{place}/{Path(store).name}.html"]) == 0
    assert "right: 3 of 3 rows" in capsys.readouterr().out
    for inside in ("latest/map.zarr", "real/../latest/map.zarr"):
        assert main(["stitch", "latest", "-o", inside]) != 0
    assert "in the store" in capsys.readouterr().err


def test_store_may_be_a_link_to_an_empty_folder_or_to_a_store():
    """As a shell follows it: a link such as `latest` may be resumed; one that is full is not overwritten."""
    Path("latest").symlink_to("deep/link")
    collect(store="latest")
    with pytest.raises(ResultExistsError, match="resume it"):
        FullBatchAccumulator(LOCS, store="latest")
    with FullBatchAccumulator(LOCS, store="latest", mode="a") as accumulator:
        assert accumulator.written.all()
    assert (Path("real") / "zarr.json").exists()
    assert Path("latest").is_symlink()
    with pytest.raises(ResultExistsError):
        Stitcher(LOCS, store="latest")


def test_result_stays_what_it_was_when_a_link_is_changed():
    """What was loaded through a link is not another store's, once the link leads there."""
    first, second = collect(store="real/first.zarr"), FullBatchAccumulator(LOCS, store="real/second.zarr")
    with first, second:
        second.push(PATCHES + 1, LOCS)
    Path("latest").symlink_to("real/first.zarr")
    loaded = FullBatch.load("latest")
    Path("latest").unlink()
    Path("latest").symlink_to("real/second.zarr")
    np.testing.assert_array_equal(loaded.outputs[0][:], PATCHES)


def test_links_in_a_circle_are_a_typed_error(capsys):
    """Wherever a path is given."""
    Path("loop").symlink_to("loop")
    result = collect()
    for refused in (
        lambda: FullBatchAccumulator(LOCS, store="loop"),
        lambda: FullBatchAccumulator(LOCS, store="loop/run.zarr"),
        lambda: FullBatchAccumulator(LOCS, save_path="loop"),
        lambda: result.save("loop"),
        lambda: result.save("loop/saved.zarr"),
        lambda: FullBatch.load("loop"),
    ):
        with pytest.raises((ResultExistsError, StorageError)):
            refused()
    result.save("saved.zarr")
    for command in (
        ["info", "loop"],
        ["report", "loop"],
        ["report", "saved.zarr", "-o", "loop/page.html"],
        ["stitch", "saved.zarr", "-o", "loop/map.ome.tif"],
    ):
        assert main(command) == 1
    assert "Traceback" not in capsys.readouterr().err

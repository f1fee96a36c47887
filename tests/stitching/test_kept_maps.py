"""Maps that were kept are opened as the maps they were."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.maps import LOCS, raster

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, Stitcher, stitch
from accumulator._cli.commands import main
from accumulator._stitching import deliveries as _deliveries
from accumulator._stores.kept.run import KeptRun
from accumulator.exceptions import (
    ClosedError,
    OptionError,
    ResultExistsError,
    ResultFormatError,
    ResultNotFoundError,
    StorageError,
    UnfinishedError,
)

BOXES = np.add(raster((16, 24), (8, 8), (4, 4)), [100, 200, 100, 200])
RNG = np.random.default_rng(0)
HEADS = {"a": RNG.random((len(BOXES), 8, 8)), "b": RNG.random((len(BOXES), 8, 8, 2)).astype("f4")}
OF_TWO_SHAPES = {"scale": {"c": 1 / 2}}
THREE = {**HEADS, "c": RNG.random((len(BOXES), 4, 4))}
COME = np.arange(len(BOXES)) % 4 != 1


def stitched(heads, **options):
    """Stitch what has come of a region, with boxes outside of it."""
    with Stitcher(BOXES, origin=[104, 200], fill_value=7, blend="hann", **options) as stitcher:
        stitcher.push({name: values[COME] for name, values in heads.items()}, BOXES[COME])
    return stitcher.finalize()


def assert_same(loaded, maps):
    """Compare all that maps say of themselves."""
    assert type(loaded) is StitchedMap
    assert (loaded.origin, loaded.scale, loaded.n_outside) == (maps.origin, maps.scale, maps.n_outside)
    assert loaded.n_stitched == maps.n_stitched
    np.testing.assert_array_equal(loaded.output_locs, maps.output_locs)
    np.testing.assert_array_equal(loaded.written, maps.written)
    assert list(loaded.outputs) == list(maps.outputs)
    for name, values in maps.outputs.items():
        np.testing.assert_array_equal(loaded.outputs[name][...], values[...])
        np.testing.assert_array_equal(loaded.coverage(head=name), maps.coverage(head=name))


@pytest.mark.parametrize("way", ["RAM", "spilled", "store"])
@pytest.mark.parametrize(("heads", "options"), [(HEADS, {}), (THREE, OF_TWO_SHAPES)])
def test_map_that_is_kept_comes_back_as_what_it_was(heads, options, way, tuned):
    """With origin, scale, coverage and what has come, from whatever place, and again from there."""
    tuned(band_nbytes=600)
    where = {"RAM": {}, "spilled": {"memory_threshold": 0}, "store": {"store": "map.zarr"}}[way]
    expected = stitched(heads, **options)
    maps = stitched(heads, **options, **where)
    if way != "store":
        maps.save("map.zarr")
    assert_same(StitchedMap.load("map.zarr"), expected)
    assert_same(maps, expected)
    StitchedMap.load("map.zarr").save("again/copy.zarr")
    assert_same(StitchedMap.load("again/copy.zarr"), expected)
    with pytest.raises(ResultExistsError):
        maps.save("map.zarr")
    maps.close()
    assert_same(StitchedMap.load("map.zarr"), expected)


def test_kept_map_of_a_result_has_all_locations():
    """Those that were not written too, in RAM and in a store."""
    with FullBatchAccumulator(BOXES) as accumulator:
        accumulator.push({name: values[COME] for name, values in HEADS.items()}, BOXES[COME])
    batch = accumulator.finalize()
    maps = stitch(batch, origin="min", store="map.zarr")
    assert len(maps.written) == len(BOXES)
    assert_same(StitchedMap.load("map.zarr"), maps)
    maps = stitch(batch, origin="min", axes="xy", output_shape=(4, 8))
    maps.save("part.zarr")
    assert_same(StitchedMap.load("part.zarr"), maps)


def test_loaded_map_is_exported_and_plotted_as_before():
    """Where it lies in its slide is in the file; volumes and lists of heads come back, too."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    maps = stitched(THREE, **OF_TWO_SHAPES)
    maps.save("map.zarr")
    loaded = StitchedMap.load("map.zarr")
    with pytest.raises(OptionError, match="dict by head"):
        maps.save_ome_zarr("first.ome.zarr", pixel_size=0.5)
    for name, each in (("first.ome.zarr", maps), ("second.ome.zarr", loaded)):
        each.save_ome_zarr(name, pixel_size={"a": 0.5, "b": 0.5, "c": 1})
    for head, shift in (("a", [100.0, 52.0]), ("c", [100.0, 52.0])):
        first, second = (zarr.open_group(f"{name}.ome.zarr", mode="r")[head] for name in ("first", "second"))
        assert first.attrs["ome"] == second.attrs["ome"]
        translation = first.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]
        assert translation["translation"] == shift
    assert loaded.plot("c")[0].get_xlim() == maps.plot("c")[0].get_xlim() == (52, 62)
    matplotlib.pyplot.close("all")
    with Stitcher([[0, 0, 0, 2, 2, 2]], axes="zyx") as stitcher:
        stitcher.push([np.ones((1, 2, 2, 2)), np.ones((1, 2, 2, 2, 3))], [[0, 0, 0, 2, 2, 2]])
    stitcher.finalize().save("volume.zarr")
    assert [array.shape for array in StitchedMap.load("volume.zarr").outputs] == [(2, 2, 2), (2, 2, 2, 3)]
    with Stitcher([[0, 2], [4, 6]]) as stitcher:
        stitcher.push(np.ones((2, 2)), [[0, 2], [4, 6]])
    stitcher.finalize().save("line.zarr")
    assert StitchedMap.load("line.zarr").coverage().tolist() == [1, 1, 0, 0, 1, 1]


def test_kept_maps_are_stores_like_others(capsys):
    """`FullBatch.load`, info, verify, missing and report know them; several shapes say where each is."""
    stitched(HEADS, store="map.zarr")
    loaded = FullBatch.load("map.zarr")
    assert loaded.outputs["a"].shape == (16, 20)
    assert main(["info", "map.zarr"]) == 0
    assert f"{len(BOXES)} of 4 numbers" in capsys.readouterr().out
    assert main(["missing", "map.zarr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["locations"] == BOXES[~COME].tolist()
    assert main(["verify", "map.zarr"]) == 0
    stitched(THREE, **OF_TWO_SHAPES, store="maps.zarr")
    with pytest.raises(ResultFormatError, match=r"several shapes.*StitchedMap\.load"):
        FullBatch.load("maps.zarr")
    assert FullBatch.load("maps.zarr/1").outputs["c"].shape == (8, 10)
    assert main(["verify", "maps.zarr/1"]) == 0


def test_what_are_no_kept_maps_is_said():
    """Nothing, rows, a stitcher that is not done, and a map that was changed."""
    with pytest.raises(ResultNotFoundError):
        StitchedMap.load("map.zarr")
    with FullBatchAccumulator(LOCS, store="rows.zarr") as accumulator:
        accumulator.push(np.ones((4, 4, 4)), LOCS)
    with pytest.raises(ResultFormatError, match="says nothing of patches"):
        StitchedMap.load("rows.zarr")
    with pytest.raises(StorageError, match="cannot be read"):
        StitchedMap.load("x" * 300)
    stitcher = Stitcher(LOCS, store="map.zarr")
    stitcher.push(np.ones((4, 4, 4)), LOCS)
    with pytest.raises(UnfinishedError):
        StitchedMap.load("map.zarr")
    stitcher.finalize()
    StitchedMap.load("map.zarr").close()
    maps = stitched(HEADS, memory_threshold=0)
    maps.close()
    with pytest.raises(ClosedError):
        maps.save("closed.zarr")


@pytest.mark.parametrize(
    "change",
    [
        {"origin": [0]},
        {"sheets": []},
        {"version": 2},
        {"columns": [0, 0]},
        {"names": ["a"]},
        {
            "sheets": [
                {
                    "folder": "../rows.zarr",
                    "heads": [0, 1],
                    "shape": [16, 20],
                    "patch": [8, 8],
                    "scale": [1, 1],
                }
            ]
        },
        {"sheets": [{"folder": "", "heads": [0, 2], "shape": [16, 20], "patch": [8, 8], "scale": [1, 1]}]},
        {"sheets": [{"folder": "", "heads": [0, 1], "shape": [16, 21], "patch": [8, 8], "scale": [1, 1]}]},
        {"sheets": [{"folder": "", "heads": [0, 1], "shape": [16, 20], "patch": [8, 8], "scale": [0, 1]}]},
    ],
)
def test_map_of_a_stranger_is_not_believed(change):
    """What it says of itself is compared with a digest, and, as anybody can make one, with its arrays."""
    from accumulator._stores.format.mark import digest  # noqa: PLC0415  only here

    stitched(HEADS, store="map.zarr")
    file = Path("map.zarr/patches/zarr.json")
    document = json.loads(file.read_text())
    told = document["attributes"]["accumulator_maps"]
    told |= change
    file.write_text(json.dumps(document))
    with pytest.raises(ResultFormatError, match="damaged"):
        StitchedMap.load("map.zarr")
    told["digest"] = digest({key: value for key, value in told.items() if key != "digest"})
    file.write_text(json.dumps(document))
    with pytest.raises(ResultFormatError):
        StitchedMap.load("map.zarr")


@pytest.mark.parametrize("is_at_its_end", [False, True])
@pytest.mark.parametrize("options", [{}, {"scale": {"b": 1 / 2}}])
def test_map_whose_stitcher_was_killed_is_said_to_be_unfinished(options, is_at_its_end, monkeypatch, capsys):
    """Whatever looks at it, and whenever the kill came: a map is not resumed."""
    heads = {"a": np.ones((4, 4, 4)), "b": np.ones((4, 2, 2) if options else (4, 4, 4))}
    stitcher = Stitcher(LOCS, store="map.zarr", **options)
    stitcher.push(heads, LOCS)
    if is_at_its_end:  # patches are recorded, and not that maps are complete

        def kill(_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(KeptRun, "complete", kill)
            with pytest.raises(KeyboardInterrupt):
                stitcher.finalize()
    # Threads are at work: what they have not come to the end of is renamed meanwhile.
    shutil.copytree("map.zarr", "killed.zarr", ignore=shutil.ignore_patterns("*.partial"))
    stitcher.finalize()
    said = "is an unfinished map, and maps are not resumed.*remove it and stitch again"
    if not (options and is_at_its_end):  # which looks like maps that are each a store of its own
        for command in ("info", "verify", "missing", "report", "stitch -o x.ome.zarr"):
            name, *more = command.split()
            assert main([name, "killed.zarr", *more]) == 1
            printed = capsys.readouterr()
            assert printed.out == ""
            assert re.search(said, printed.err)
        for is_partial in (False, True):
            with pytest.raises(UnfinishedError, match=said):
                FullBatch.load("killed.zarr", partial=is_partial)
    with pytest.raises(UnfinishedError, match=said):
        StitchedMap.load("killed.zarr")
    with pytest.raises(ResultExistsError, match="remove it, or give another path"):
        Stitcher(LOCS, store="killed.zarr")
    StitchedMap.load("map.zarr").close()


def test_rows_of_a_map_are_not_stitched_again(capsys):
    """A map that was kept is one already: it is said what opens it, and what writes it for others."""
    stitched(HEADS, store="map.zarr").close()
    said = r"map.zarr is a map already: StitchedMap.load\(path\).*save_ome_zarr"
    with pytest.raises(OptionError, match=said):
        stitch(FullBatch.load("map.zarr"))
    stitched(THREE, **OF_TWO_SHAPES, store="maps.zarr").close()
    with pytest.raises(OptionError, match=r"maps\.zarr/0 is a map already"):
        stitch(FullBatch.load("maps.zarr/0"))
    with pytest.raises(ResultFormatError, match=r"one shape of several: open .*maps\.zarr, and take"):
        StitchedMap.load("maps.zarr/0")
    assert main(["stitch", "map.zarr", "-o", "x.ome.zarr"]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not Path("x.ome.zarr").exists()


def test_maps_are_not_resumed_as_a_run():
    """Not even by one whose locations are the map's rows, and nothing of them is changed."""
    stitched(HEADS, store="map.zarr").close()
    stitcher = Stitcher(BOXES, store="killed.zarr")
    stitcher.push(HEADS["a"], BOXES)
    stitcher.close()
    stitched(THREE, **OF_TWO_SHAPES, store="maps.zarr").close()
    rows, sheet = FullBatch.load("map.zarr").output_locs, FullBatch.load("maps.zarr/1").output_locs
    for path, locs in [
        ("map.zarr", rows),
        ("map.zarr", BOXES),
        ("killed.zarr", BOXES),
        ("maps.zarr/1", sheet),
        ("maps.zarr/1/", BOXES),
    ]:
        before = {file: file.read_bytes() for file in Path(path).rglob("*") if file.is_file()}
        with pytest.raises(ResultExistsError, match="maps are there, which are not resumed: give another"):
            FullBatchAccumulator(locs, store=path, mode="a", fill_value=7)
        assert {file: file.read_bytes() for file in Path(path).rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("is_empty", [False, True])
def test_maps_that_no_box_touches_are_opened_again(is_saved, is_empty):
    """A region of background, and a slide without tissue, are maps like others."""
    locs = np.array([[0, 0, 2, 2], [2, 0, 4, 2]])[: 0 if is_empty else 2]
    options = {"output_shape": (4, 5), "heads": [((2, 2), "f4")], "fill_value": 7}
    options |= {} if is_empty else {"origin": [4, 0]}
    with Stitcher(locs, **options, **({} if is_saved else {"store": "maps.zarr"})) as stitcher:
        stitcher.push(np.ones((len(locs), 2, 2), "f4"), locs)
    made = stitcher.finalize()
    if is_saved:
        made.save("maps.zarr")
    maps = StitchedMap.load("maps.zarr")
    np.testing.assert_array_equal(maps.outputs[0][:], np.full((4, 5), 7))
    assert (maps.origin, maps.n_outside, maps.output_locs.tolist()) == (made.origin, len(locs), locs.tolist())
    assert not maps.coverage().any()


@pytest.mark.parametrize("size", [0.5, [0.5, 0.5], np.array([0.5, 0.5]), np.float32(0.5)], ids=repr)
def test_maps_of_several_scales_have_no_pixel_size_in_common(size):
    """However it is given."""
    locs = np.array([[0, 0, 4, 4]])
    with Stitcher(locs, scale={"b": 0.5}) as stitcher:
        stitcher.push({"a": np.ones((1, 4, 4)), "b": np.ones((1, 2, 2))}, locs)
    with pytest.raises(OptionError, match="by head"):
        stitcher.finalize().save_ome_zarr("maps.ome.zarr", pixel_size=size)


@pytest.mark.parametrize("content", ["tile.png", "zarr.json", None])
def test_runs_beside_a_folder_called_patches_are_runs(content):
    """Slides have folders of patches, and numbers for names: that makes no map of a run."""
    Path("slide/patches").mkdir(parents=True)
    if content is not None:
        Path("slide/patches", content).write_text("{}")
    with pytest.raises(ResultFormatError) as refusal:
        FullBatch.load("slide")
    assert "remove it" not in str(refusal.value)
    with FullBatchAccumulator(LOCS, store="slide/0", mode="a") as accumulator:
        accumulator.push(np.ones((2, 4, 4)), LOCS[:2])
    with FullBatchAccumulator(LOCS, store="slide/0", mode="a") as accumulator:
        accumulator.push(np.ones((2, 4, 4)), LOCS[2:])
    assert (stitch(FullBatch.load("slide/0")).outputs[0] == 1).all()
    with pytest.raises(ResultFormatError, match="says nothing of patches"):
        StitchedMap.load("slide/0")


@pytest.mark.parametrize("is_named", [False, True])
def test_unfinished_maps_of_several_shapes_are_no_runs(is_named):
    """Neither before the folder above is a group, nor afterwards."""
    heads = {"a": np.ones((4, 4, 4)), "b": np.ones((4, 2, 2))}
    stitcher = Stitcher(LOCS, store="maps.zarr", scale={"b": 1 / 2})
    stitcher.push(heads, LOCS)
    shutil.copytree("maps.zarr", "killed.zarr", ignore=shutil.ignore_patterns("*.partial"))
    stitcher.finalize()
    if is_named:
        shutil.copy("maps.zarr/zarr.json", "killed.zarr/zarr.json")
    sheet = FullBatch.load("maps.zarr/1").output_locs
    with pytest.raises(ResultExistsError, match="maps are there"):
        FullBatchAccumulator(sheet, store="killed.zarr/1", mode="a")


@pytest.mark.parametrize("options", [{}, {"scale": {"b": 1 / 2}}])
def test_closed_maps_leave_no_temporary_folder(options, tmp_path):
    """Nor those of the second shape."""
    heads = {"a": np.ones((4, 4, 4)), "b": np.ones((4, 2, 2) if options else (4, 4, 4))}
    with Stitcher(LOCS, memory_threshold=0, save_path=tmp_path / "spill", **options) as stitcher:
        stitcher.push(heads, LOCS)
    with stitcher.finalize() as maps:
        assert (tmp_path / "spill").exists()
    assert not (tmp_path / "spill").exists()
    with pytest.raises(ClosedError):
        maps.outputs["b"][0]


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [{}, {"scale": {"b": 1 / 2}}])
@pytest.mark.parametrize("step", ["fits_in_memory", "expect_patches"])
def test_start_that_fails_lets_go_of_the_store(monkeypatch, step, options, error):
    """Whatever fails when the heads are known, the same push is taken afterwards, here or by another."""
    heads = {"a": np.ones((4, 4, 4)), "b": np.ones((4, 2, 2) if options else (4, 4, 4))}
    real = getattr(_deliveries, step)

    def fail(*arguments):
        real(*arguments)
        raise error

    stitcher = Stitcher(LOCS, store="map.zarr", **options)
    with monkeypatch.context() as patched:
        patched.setattr(_deliveries, step, fail)
        with pytest.raises(error):
            stitcher.push(heads, LOCS)
    assert not Path("map.zarr/zarr.json").exists()
    stitcher.push(heads, LOCS)
    with stitcher.finalize() as maps:
        assert (maps.outputs["a"][...] == 1).all()

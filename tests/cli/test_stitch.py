"""``accumulator stitch``: a store in, files out, and what it says when it cannot."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, stitch
from accumulator._cli import stitch as _stitch
from accumulator._cli.commands import main
from accumulator._cli.words import in_flags, plain_warnings
from accumulator._inputs.heads import Heads
from accumulator.exceptions import BlendWarning

LOCS = np.array([[x, y, x + 32, y + 32] for y in range(0, 96, 16) for x in range(0, 128, 16)])


@pytest.fixture
def store():
    """Make a store with gaps, whose heads are a map, another one and one that is none."""
    rng = np.random.default_rng(0)
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        accumulator.push(
            {
                "tumour": rng.random((40, 32, 32, 2), dtype=np.float32),
                "class": rng.integers(0, 5, (40, 32, 32), dtype=np.uint8),
                "grade": np.ones((40, 1)),
            },
            LOCS[:40],
        )
    return accumulator.finalize()


def run(*arguments):
    """Run the command on the store."""
    return main(["stitch", "run.zarr", *arguments])


def test_ome_zarr_of_two_heads(store, capsys):
    """It has the maps that the library makes, with sizes and names."""
    arguments = ["--head", "tumour", "--head", "class", "--blend", "hann", "--pixel-size", "0.5,0.25"]
    assert run("-o", "map.ome.zarr", *arguments) == 0
    said = capsys.readouterr().out
    assert "map tumour: 112 x 144 x 2 float32" in said
    assert "40 of 48 patches (40 written); OME-Zarr in map.ome.zarr" in said
    assert "a viewer opens map.ome.zarr/class" in said
    group = zarr.open_group("map.ome.zarr", mode="r")
    maps = stitch(store, heads=["tumour", "class"], blend="hann")
    np.testing.assert_array_equal(group["tumour/s0"][:], np.moveaxis(maps.outputs["tumour"], -1, 0))
    np.testing.assert_array_equal(group["class/s0"][:], maps.outputs["class"])
    scales = group["tumour"].attrs["ome"]["multiscales"][0]
    assert scales["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 0.25, 0.5]


@pytest.mark.usefixtures("store")
def test_ome_tiff_of_one_head_and_json(capsys):
    """The file is a picture with the channels' names; JSON says what is in it."""
    arguments = ["--head", "tumour", "--channel", "stroma", "--channel", "tumour", "--json"]
    assert run("-o", "map.ome.tif", *arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["heads"] == [{"name": "tumour", "shape": [112, 144, 2], "dtype": "float32"}]
    assert (facts["n_patches"], facts["n_written"], facts["kind"]) == (48, 40, "OME-TIFF")
    with tifffile.TiffFile("map.ome.tif") as file:
        assert file.series[0].shape == (2, 112, 144)
        assert 'Name="stroma"' in file.ome_metadata


def test_plain_zarr_of_a_region(store):
    """A region, with NaN where nothing is, within little memory."""
    arguments = ["--head", "tumour", "--origin", "100,60", "--shape", "60,50", "--fill", "nan"]
    assert run("-o", "map.zarr", *arguments, "--memory-limit", "1 kB") == 0
    loaded = FullBatch.load("map.zarr").outputs["tumour"]
    expected = stitch(store, heads=["tumour"], origin=[100, 60], output_shape=(60, 50), fill_value=np.nan)
    np.testing.assert_array_equal(loaded[:], expected.outputs["tumour"])
    assert np.isnan(loaded[:]).any()
    assert main(["verify", "map.zarr"]) == 0


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "map.zarr"], "head 'grade' has patch shape (1,)"),
        (["-o", "map.zarr", "--head", "x"], "--head is ['x']: choose from ['tumour', 'class', 'grade']"),
        (["-o", "map.ome.tif", "--head", "tumour", "--head", "class"], "an OME-TIFF holds one head"),
        (["-o", "map.ome.tif"], "an OME-TIFF holds one head"),
        (["-o", "map.zarr", "--head", "class", "--fill", "nan"], "--fill of head 'class'"),
        (["-o", "map.zarr", "--head", "class", "--pixel-size", "1"], "for OME files"),
        (["-o", "run.zarr"], "is there already"),
        (["-o", "map.ome.zarr", "--head", "class", "--channel", "a", "--channel", "b"], "2 names"),
        (["-o", "map.zarr", "--head", "class", "--shape", "5"], "--shape is [5]"),
        (["-o", "map.zarr", "--head", "class", "--memory-limit", "much"], "--memory-limit"),
    ],
)
def test_what_cannot_be_done_is_one_line(arguments, message, capsys, tmp_path):
    """The exit code is 1, the error names the culprit, and nothing is left behind."""
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("accumulator: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "map.png"],
        [],
        ["-o", "m.zarr", "--pixel-size", "-1"],
        ["-o", "m.zarr", "--fill", "x"],
        ["-o", "m.zarr", "--unit", "x"],
    ],
)
def test_wrong_arguments(arguments, capsys):
    """They are told as all commands do: exit code 2, and how the command is used."""
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert "usage: accumulator stitch" in capsys.readouterr().err


def test_no_store(capsys):
    """What is not there is named."""
    assert run("-o", "map.zarr") == 1
    assert "run.zarr" in capsys.readouterr().err


def test_heads_by_number(capsys):
    """Heads without names have numbers."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        accumulator.push((np.ones((48, 32, 32)), np.zeros((48, 1))), LOCS)
    assert run("-o", "map.ome.zarr", "--head", "0") == 0
    assert "map 0: 112 x 144 float64" in capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_mean_of_classes_that_was_not_asked_for_warns():
    """And one that was, or another blend, does not."""
    with pytest.warns(BlendWarning, match="'class'.*last"):
        assert run("-o", "map.zarr", "--head", "class") == 0
    for blend in ("average", "last"):
        assert run("-o", f"{blend}.zarr", "--head", "class", "--blend", blend) == 0


def test_geometry_is_said_in_the_shell(capsys):
    """Channels first, a halo, another level, the order of columns, for all heads or for one."""
    rng = np.random.default_rng(0)
    locs = np.array([[y, x, y + 32, x + 32] for y in range(-32, 64, 32) for x in range(0, 96, 32)])
    heads = {"a": rng.random((9, 3, 12, 12), np.float32), "b": rng.random((9, 32, 32))}
    with FullBatchAccumulator(locs, store="run.zarr") as accumulator:
        accumulator.push(heads, locs)
    batch = accumulator.finalize()
    said = [
        "--axes",
        "yx",
        "--origin",
        "min",
        "--scale",
        "a=1/4",
        "--crop",
        "a=2",
        "--channels-first-of",
        "a",
    ]
    assert run("-o", "maps.zarr", *said) == 0
    printed = capsys.readouterr().out
    assert "map a: 24 x 24 x 3 float32" in printed
    assert "map b: 96 x 96 float64" in printed
    expected = stitch(
        batch, axes="yx", origin="min", scale={"a": 1 / 4}, crop={"a": 2}, channels_first={"a": True}
    )
    maps = StitchedMap.load("maps.zarr")
    for name in "ab":
        np.testing.assert_array_equal(maps.outputs[name][...], expected.outputs[name])
    np.testing.assert_array_equal(
        maps.outputs["a"][8:16, :8], np.moveaxis(heads["a"][3, :, 2:-2, 2:-2], 0, -1)
    )
    assert maps.origin == (0, -32)
    said = ["--head", "b", "--axes", "yx", "--origin", "0,0", "--crop", "start", "--json"]
    assert run("-o", "map.ome.zarr", *said) == 0
    assert json.loads(capsys.readouterr().out)["n_outside"] == 3
    for wrong, message in (
        ([], "boxes that lie wholly outside"),
        (["--origin", "min"], "head 'a' has patches of (3, 12, 12)"),
        (["--origin", "min", "--scale", "c=2"], "--scale has an entry for head 'c'"),
        (["--origin", "min", "--crop", "1", "--crop", "a=2"], "name each"),
        (["--origin", "min", "--axes", "zyx"], "--axes is 'zyx'"),
        (["--channels-first", "--channels-first-of", "a"], "name each"),
    ):
        assert run("-o", "other.zarr", *wrong) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    for wrong in (["--scale", "1/0"], ["--crop", "x"], ["--origin", "max"], ["--origin", "min", "0"]):
        with pytest.raises(SystemExit, match="2"):
            run("-o", "other.zarr", *wrong)


@pytest.mark.parametrize("end", [".ome.zarr", ".ome.tif"])
@pytest.mark.parametrize(("is_named", "names"), [(True, "rgb"), (False, "r")])
@pytest.mark.parametrize(("size", "said"), [(16, []), (20, ["--crop", "2"]), (8, ["--scale", "1/2"])])
def test_channels_of_patches_that_have_them_first_are_named(end, is_named, names, size, said, capsys):
    """As many names as channels, whether all heads have them first or this one, and one of one channel."""
    locs = np.array([[x, y, x + 16, y + 16] for y in range(0, 48, 16) for x in range(0, 48, 16)])
    patches = np.random.default_rng(0).random((9, len(names), size, size), np.float32)
    with FullBatchAccumulator(locs, store="run.zarr") as accumulator:
        accumulator.push({"a": patches} if is_named else (patches,), locs)
    head = "a" if is_named else "0"
    named = [word for name in names for word in ("--channel", name)]
    said = [word if "-" in word else f"{head}={word}" for word in said]
    for first in (["--channels-first"], ["--channels-first-of", head]):
        output = f"map{len(first)}{end}"
        assert run("-o", output, *named, *first, *said) == 0
        expected = stitch(
            accumulator.finalize(),
            channels_first=True,
            crop=2 if size == 20 else None,
            scale=1 / 2 if size == 8 else 1,
        )
        expected = np.moveaxis(next(iter(Heads.of(expected.outputs))), -1, 0)
        if end == ".ome.tif":
            made = tifffile.imread(output)
        else:
            group = zarr.open_group(output, mode="r")
            made = group["s0"][:]
            assert [each["label"] for each in group.attrs["ome"]["omero"]["channels"]] == list(names)
        np.testing.assert_array_equal(made.reshape(expected.shape), expected)
    assert run("-o", f"other{end}", *named, "--channel", "one too many", *first, *said) == 1
    assert f"head '{head}' has {len(names)} channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("; scale=0.25, the pixels", "; --scale 0.25, the pixels"),
        ("give scale=[0.25, 1/3].", "give --scale 0.25,1/3."),
        ("channels_first=True if", "--channels-first if"),
        ("channels_first=False if", "no --channels-first if"),
        ('give origin="min" or origin=[1, 2]', "give --origin min or --origin 1,2"),
        ("or output_shape=(193, 250), which", "or --shape 193,250, which"),
        ("output_shape is (1, 2)", "--shape is (1, 2)"),
        ('crop="center" or crop=8: give crop= too', "--crop center or --crop 8: give --crop too"),
        ('say blend="last" or "max"', "say --blend last or --blend max"),
        ('say blend="vote", "last" or "max", or', "say --blend vote, --blend last or --blend max, or"),
        ("heads is ['nope']: choose", "--head is ['nope']: choose"),
        ("the scales differ: give a dict by head", "the scales differ: stitch them one by one, with --head"),
        ("of which crop leaves (2, 2) on another scale", "of which crop leaves (2, 2) on another scale"),
        ("/data/scale=4/run.zarr is no store", "/data/scale=4/run.zarr is no store"),
        ("head 'scale=4' is a flag", "head 'scale=4' is a flag"),
    ],
)
def test_options_are_called_as_the_shell_calls_them(said, words):
    """Python's words become flags, with their values; names and paths stay."""
    assert in_flags(said) == words


@pytest.mark.usefixtures("store")
def test_remedies_in_errors_can_be_pasted(capsys):
    """A level and a halo that were not said: each refusal names the flag that is missing, and it works."""
    locs = np.array([[x, y, x + 64, y + 64] for y in (0, 64) for x in (0, 64)])
    with FullBatchAccumulator(locs, store="level.zarr") as accumulator:
        accumulator.push({"a": np.ones((4, 3, 20, 20))}, locs)
    arguments, tried = ["stitch", "level.zarr", "-o", "map.zarr"], []
    for remedy in ("--channels-first", "--crop", "--scale 0.25"):
        assert main(arguments + tried) == 1
        error = capsys.readouterr().err
        assert remedy in error
        assert not re.search(r"\w=|\w_", error.replace("full_output_locs", "").replace("output_locs", ""))
        tried += [remedy, "2"] if remedy == "--crop" else remedy.split()
    assert main(arguments + tried) == 0


@pytest.mark.usefixtures("store")
def test_warnings_are_one_line():
    """Without a line of code, which is not the user's."""
    command = [sys.executable, "-m", "accumulator", "stitch", "run.zarr", "-o", "m.zarr", "--head", "class"]
    error = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert error.startswith("accumulator: warning: head 'class': integers are blended by their mean")
    assert "--blend vote" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--pixel-size", "0.5"],
        ["--pixel-size", "0.5,0.25"],
        ["--shape", "112,144"],
        ["--origin", "-16,-8"],
        ["--origin", "min"],
        ["--channel", "a", "--channel", "b"],
        ["--scale", "1,1"],
        ["--crop", "start"],
    ],
)
@pytest.mark.usefixtures("store")
def test_options_may_stand_before_the_path(options):
    """Each takes as many words as it says: what comes behind them is the path."""
    assert main(["stitch", "--head", "tumour", *options, "run.zarr", "-o", "before.ome.zarr"]) == 0
    assert main(["stitch", "run.zarr", "-o", "behind.ome.zarr", "--head", "tumour", *options]) == 0
    before, behind = (zarr.open_group(f"{name}.ome.zarr", mode="r") for name in ("before", "behind"))
    assert before.attrs.asdict() == behind.attrs.asdict()
    np.testing.assert_array_equal(before["s0"][:], behind["s0"][:])


def test_a_flag_may_stand_before_the_path():
    """Patches that have their channels first, of all heads and of one."""
    locs = np.array([[0, 0, 4, 4]])
    with FullBatchAccumulator(locs, store="first.zarr") as accumulator:
        accumulator.push(np.ones((1, 3, 4, 4)), locs)
    assert main(["stitch", "--channels-first", "first.zarr", "-o", "all.zarr"]) == 0
    assert main(["stitch", "--channels-first-of", "0", "first.zarr", "-o", "one.zarr"]) == 0
    for name in ("all", "one"):
        assert StitchedMap.load(f"{name}.zarr").outputs[0].shape == (4, 4, 3)


def test_heads_that_have_names_are_called_by_number_too(store, capsys):
    """The first is 0; a name that is a number comes before a number."""
    assert run("-o", "first.zarr", "--head", "0") == 0
    expected = stitch(store, heads=["tumour"]).outputs["tumour"]
    np.testing.assert_array_equal(StitchedMap.load("first.zarr").outputs["tumour"][:], expected)
    assert run("-o", "last.zarr", "--head", "0", "--head", "1", "--blend", "last", "--scale", "0=1") == 0
    assert list(StitchedMap.load("last.zarr").outputs) == ["tumour", "class"]
    assert run("-o", "none.zarr", "--head", "3") == 1
    assert "--head is ['3']: choose from" in capsys.readouterr().err
    locs = np.array([[0, 0, 2, 2]])
    with FullBatchAccumulator(locs, store="named.zarr") as accumulator:
        accumulator.push({"1": np.zeros((1, 2, 2)), "0": np.ones((1, 2, 2))}, locs)
    assert main(["stitch", "named.zarr", "-o", "named.map.zarr", "--head", "0"]) == 0
    assert StitchedMap.load("named.map.zarr").outputs["0"][0, 0] == 1


@pytest.mark.usefixtures("store")
def test_a_map_without_any_patch_is_an_error(capsys, tmp_path):
    """Whether none came, or none lies there; nothing is written."""
    with FullBatchAccumulator(LOCS, store="blank.zarr", heads=[((32, 32), "f4")]):
        pass
    before = sorted(tmp_path.rglob("*"))
    assert main(["stitch", "blank.zarr", "-o", "map.zarr"]) == 1
    assert "blank.zarr has none of its 48 patches" in capsys.readouterr().err
    assert run("-o", "map.zarr", "--head", "tumour", "--origin", "5000,0", "--shape", "9,9", "--json") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "none of the 40 patches lies on the map" in json.loads(printed.err)["error"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("store")
def test_what_a_viewer_opens_is_said_at_the_end(capsys):
    """The paths of all images are the last lines, and in JSON."""
    for output, heads, images in (
        ("map.ome.zarr", ["0"], ["map.ome.zarr"]),
        ("maps.ome.zarr", ["0", "1"], ["maps.ome.zarr/tumour", "maps.ome.zarr/class"]),
        ("map.ome.tif", ["0"], ["map.ome.tif"]),
        ("map.zarr", ["0", "1"], ["map.zarr"]),
    ):
        options = ["--blend", "last", *(word for head in heads for word in ("--head", head))]
        assert run("-o", output, *options) == 0
        opens = "StitchedMap.load opens " if output == "map.zarr" else "a viewer opens "
        assert capsys.readouterr().out.splitlines()[-len(images) :] == [opens + image for image in images]
        assert run("-o", f"again-{output}", *options, "--json") == 0
        found = json.loads(capsys.readouterr().out)["images"]
        assert found == [f"again-{image}" for image in images]
        assert all(Path(image).exists() for image in found)


@pytest.mark.usefixtures("store")
def test_warnings_are_json_where_that_was_asked_for():
    """A line each, beside the answer, which has a stream of its own."""
    command = [sys.executable, "-m", "accumulator", "stitch", "run.zarr", "-o", "m.zarr", "--head", "class"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    said = json.loads(done.stderr)
    assert (said["type"], "--blend last" in said["warning"]) == ("BlendWarning", True)
    assert json.loads(done.stdout)["n_stitched"] == 40


@pytest.mark.parametrize(
    ("text", "number"),
    [("18446744073709551615", 2**64 - 1), ("-3", -3), ("255.0", 255), ("0.5", 0.5), ("1e300", 1e300)],
)
def test_numbers_are_those_that_were_typed(text, number, capsys):
    """Whole ones to the last digit, and none longer than it was typed."""
    locs = [[0, 0, 2, 2]]
    with FullBatchAccumulator(locs, store="one.zarr") as accumulator:
        accumulator.push(np.ones((1, 2, 2), {"1": "u8", "0": "f4"}.get(text[0], "i8")), locs)
    code = main(["stitch", "one.zarr", "-o", "map.zarr", "--shape", "2,3", "--fill", text])
    if number == 1e300:
        assert "--fill of head 0 is 1e+300, which" in capsys.readouterr().err
    else:
        assert code == 0
        assert FullBatch.load("map.zarr").outputs[0][0, 2] == number


def test_warnings_of_every_kind_are_one_line():
    """Also those that are no error elsewhere."""
    with plain_warnings():
        said = warnings.formatwarning("memory_threshold=0.8 is 0.8 per cent", UserWarning, "file.py", 1)
    assert said == "accumulator: warning: --memory-threshold 0.8 is 0.8 per cent\n"


def test_options_of_chosen_heads_go_by_the_numbers_of_the_store(capsys):
    """In whatever order heads are chosen, and also where one alone is."""
    locs, rng = np.array([[0, 0, 4, 4]]), np.random.default_rng(0)
    first, second = rng.random((1, 4, 4, 4)), rng.random((1, 4, 4, 4))
    with FullBatchAccumulator(locs, store="two.zarr") as accumulator:
        accumulator.push([first, second], locs)
    said = ["stitch", "two.zarr", "--channels-first-of", "1", "-o"]
    assert main([*said, "both.zarr", "--head", "1", "--head", "0"]) == 0
    assert main([*said, "one.zarr", "--head", "1"]) == 0
    turned = np.moveaxis(second[0], 0, -1)
    both = StitchedMap.load("both.zarr").outputs
    np.testing.assert_array_equal(both[0][:], turned)
    np.testing.assert_array_equal(both[1][:], first[0])
    np.testing.assert_array_equal(StitchedMap.load("one.zarr").outputs[0][:], turned)
    assert main([*said, "none.zarr", "--head", "0"]) == 1
    assert "head 1" in capsys.readouterr().err


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("flag", ["scale", "crop"])
def test_what_is_said_twice_of_one_head_is_refused(capsys, flag):
    """The second would win without a word."""
    arguments = ["stitch", "run.zarr", "-o", "map.zarr", f"--{flag}", "tumour=1", f"--{flag}", "tumour=2"]
    assert main(arguments) == 1
    assert "something is said twice of head tumour" in capsys.readouterr().err
    assert not Path("map.zarr").exists()


def test_what_is_said_of_single_heads(tmp_path, monkeypatch, capsys):
    """Heads of two scales go into one file: each with its own shape, pixel size and fill value."""
    monkeypatch.chdir(tmp_path)
    locs = np.array([[0, 0, 4, 4], [4, 0, 8, 4]])
    with FullBatchAccumulator(locs, store="run.zarr") as accumulator:
        grade = np.ones((2, 1), "f4")
        accumulator.push({"label": np.ones((2, 4, 4), "u1"), "grade": grade, "a/b": grade}, locs)
    said = ["--spread", "--blend", "label=last", "--scale", "grade=1/4", "--shape", "label=6,12"]
    said += ["--shape", "grade=1,3", "--fill", "label=255", "--fill", "grade=nan"]
    both = ["--head", "label", "--head", "grade", *said]
    sizes = ["--pixel-size", "label=0.5", "--pixel-size", "grade=2"]
    assert run("-o", "maps.ome.zarr", *both, *sizes) == 0, capsys.readouterr().err
    label = zarr.open_group("maps.ome.zarr/label", mode="r")["s0"][:]
    assert label.shape == (6, 12)
    assert (label[:4, :8] == 1).all()
    assert (label[4:] == 255).all()
    grade = zarr.open_group("maps.ome.zarr/grade", mode="r")["s0"][:].reshape(1, 3)
    assert np.array_equal(grade, [[1, 1, np.nan]], equal_nan=True)
    assert run("-o", "maps.zarr", *both) == 0

    def unexpected(*_, **__):
        raise AssertionError("stitched first")

    monkeypatch.setattr(_stitch, "stitch", unexpected)
    assert run("-o", "names.ome.zarr", "--spread", "--head", "grade", "--head", "a/b") == 1
    assert "export it alone" in capsys.readouterr().err


def test_maps_that_people_ask_for(tmp_path, monkeypatch, capsys):
    """A heat map, classes, votes and weights from one store: as Python makes them."""
    monkeypatch.chdir(tmp_path)
    locs = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]])
    rng = np.random.default_rng(0)
    heads = {
        "p": rng.random((3, 4, 4, 3), dtype="f4"),
        "label": rng.integers(0, 3, (3, 4, 4)).astype("u1"),
        "grade": rng.random((3, 2), dtype="f4"),
        "sure": rng.random((3, 4, 4), dtype="f4"),
    }
    with FullBatchAccumulator(locs, store="run.zarr") as accumulator:
        accumulator.push(heads, locs)
    batch = accumulator.finalize()
    for arguments, options in (
        (
            ["--head", "p", "--head", "label", "--weights", "sure"],
            {"heads": ["p", "label"], "weights": "sure"},
        ),
        (
            ["--head", "grade", "--spread", "--scale", "1/2"],
            {"heads": ["grade"], "spread": True, "scale": 0.5},
        ),
        (
            ["--head", "p", "--reduce", "argmax", "--fill", "255"],
            {"heads": ["p"], "reduce": "argmax", "fill_value": 255},
        ),
        (
            [
                "--spread",
                "--blend",
                "p=hann",
                "--blend",
                "label=vote:hann",
                "--blend",
                "grade=min",
                "--reduce",
                "p=argmax",
            ],
            {
                "spread": True,
                "blend": {"p": "hann", "label": ("vote", "hann"), "grade": "min"},
                "reduce": {"p": "argmax"},
            },
        ),
        (["--head", "label", "--blend", "nearest"], {"heads": ["label"], "blend": "nearest"}),
    ):
        shutil.rmtree("maps.zarr", ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BlendWarning)
            assert main(["stitch", "run.zarr", "-o", "maps.zarr", *arguments]) == 0
            wanted = stitch(batch, **options)
        found = StitchedMap.load("maps.zarr")
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name][...], array)
    assert main(["stitch", "run.zarr", "-o", "label.ome.tif", "--head", "p", "--reduce", "argmax"]) == 0
    for wrong in (["--blend", "votes"], ["--blend", "max:hann"], ["--reduce", "max"]):
        with pytest.raises(SystemExit):
            main(["stitch", "run.zarr", "-o", "other.zarr", *wrong])
    capsys.readouterr()

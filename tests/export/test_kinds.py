"""Pictures, labels, and several heads in one file: what is written so that viewers know them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis.extra import numpy as hnp
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.bioformats2raw import BioFormats2Raw
from ome_zarr_models.v05.image_label import ImageLabel

from accumulator import FullBatchAccumulator, StitchedMap, Stitcher
from accumulator._cli import main
from accumulator._export import levels as _levels
from accumulator._export import write_ome_tiff, write_ome_zarr
from accumulator.exceptions import HeadDtypeError, HeadError, OptionError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (700, 601, 3), dtype="u1")


def ome(path):
    """Return what a group says, as OME-Zarr."""
    return zarr.open_group(path, mode="r").attrs["ome"]


def window(array, **options):
    """Return from where to where viewers are told to show a map's only channel."""
    write_ome_zarr("map.zarr", {"mask": array}, **options)
    [channel] = ome("map.zarr")["omero"]["channels"]
    return channel["window"]


@given(hnp.arrays("u1", hnp.array_shapes(min_dims=2, max_dims=3, max_side=9)))
def test_means_of_integers_are_rounded(fine):
    """Each is the nearest integer to the mean of 1, 2 or 4 pixels, and none is cut off."""
    halved = _levels.mean_halved(fine)
    assert halved.dtype == np.uint8
    for where in np.ndindex(halved.shape):
        y, x = (slice(2 * i, 2 * i + 2) for i in where[-2:])
        assert abs(float(halved[where]) - fine[(*where[:-2], y, x)].mean(dtype="f8")) <= 0.5


def test_picture_in_ome_zarr_has_its_colours():
    """Three channels, red, green and blue, from 0 to 255 whatever values there are, and levels of means."""
    write_ome_zarr("map.zarr", {"stain": PICTURE // 2}, kind="rgb")
    facts, group = ome("map.zarr"), zarr.open_group("map.zarr", mode="r")
    channels = facts["omero"]["channels"]
    assert [each["color"] for each in channels] == ["FF0000", "00FF00", "0000FF"]
    assert [each["label"] for each in channels] == ["red", "green", "blue"]
    assert all(each["window"] == {"min": 0, "max": 255, "start": 0, "end": 255} for each in channels)
    assert facts["omero"]["rdefs"] == {"model": "color"}
    np.testing.assert_array_equal(group["s0"][...], np.moveaxis(PICTURE // 2, -1, 0))
    np.testing.assert_array_equal(group["s1"][...], _levels.mean_halved(group["s0"][...]))


@pytest.mark.parametrize(("shape", "n_spatial"), [((700, 601, 3), 2), ((2, 40, 600, 3), 3), ((5, 4, 3), 2)])
def test_picture_in_ome_tiff_is_rgb(shape, n_spatial, tuned):
    """Its colours lie side by side, on every level, however much is read at once."""
    tuned(tiles_nbytes=1)
    array = np.resize(PICTURE, shape)
    write_ome_tiff("map.ome.tif", array, name="stain", n_spatial=n_spatial, kind="rgb", pixel_size=0.5)
    with tifffile.TiffFile("map.ome.tif") as tiff:
        [series] = tiff.series
        assert series.axes == "ZYXS"[-len(shape) :]
        for level in series.levels:
            page = level.keyframe
            assert (page.photometric.name, page.planarconfig.name) == ("RGB", "CONTIG")
        np.testing.assert_array_equal(series.asarray(), array)
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    assert image["Pixels"]["Channel"]["SamplesPerPixel"] == 3
    assert image["Pixels"]["Channel"]["Name"] == "stain"


@pytest.mark.parametrize(
    ("shape", "dtype", "is_chained", "is_big"),
    [
        ((1100, 600), "u1", True, False),
        ((1100, 600), "u1", True, True),
        ((20, 600), "bool", True, False),
        ((20, 600, 1), "u1", True, False),
        ((20, 600, 2), "u1", False, False),
        ((20, 600), "i1", False, False),
        ((20, 600), "f4", False, False),
        ((60, 60), "u1", False, False),
    ],
)
def test_levels_are_where_openslide_looks_for_them(shape, dtype, is_chained, is_big, tuned):
    """Behind the first image of one plane of uint8; they are its SubIFDs all the same."""
    tuned(classic_tiff_nbytes=0 if is_big else 2**30)
    write_ome_tiff("map.ome.tif", np.resize(PICTURE, shape).astype(dtype), name="mask")
    n_planes = shape[2] if len(shape) > 2 else 1
    with tifffile.TiffFile("map.ome.tif") as tiff:
        [series] = tiff.series
        assert tiff.is_bigtiff == is_big
        assert len(tiff.pages) == (len(series.levels) if is_chained else n_planes)
        if is_chained:
            assert [page.offset for page in tiff.pages[1:]] == list(tiff.pages[0].subifds)
            kinds = [page.aspage().subfiletype for page in tiff.pages]
            assert kinds == [0] + [1] * (len(series.levels) - 1)


@pytest.mark.parametrize(
    ("array", "ends"),
    [
        (np.zeros((2, 2)), (0, 1)),
        (np.full((2, 2), 7, "u2"), (0, 7)),
        (np.full((2, 2), -3, "i2"), (-3, 0)),
        (np.full((2, 2), -0.0, "f4"), (0, 1)),
        (np.full((2, 2), np.nan, "f4"), (0, 1)),
        (np.array([[np.nan, 2.5]], "f4"), (0, 2.5)),
        (np.zeros((2, 2), bool), (0, 1)),
        (np.ones((2, 2), bool), (0, 1)),
        (np.array([[3, 5]], "u1"), (3, 5)),
    ],
)
def test_window_is_never_empty(array, ends):
    """A viewer divides by its width: that of a constant goes from or to 0."""
    found = window(array)
    assert (found["start"], found["end"]) == (found["min"], found["max"]) == ends


@pytest.mark.parametrize("shape", [(700, 601), (700, 601, 1)])
@pytest.mark.parametrize("dtype", ["bool", "u1", "i8"])
def test_labels_lie_on_their_image(shape, dtype):
    """In its group ``labels``, as the specification wants it, of every second pixel, and of no channel."""
    values = RNG.integers(0, 2, shape).astype(dtype)
    maps = {"class": values, "cells": values, "p": np.ones((700, 601, 2), "f4")}
    write_ome_zarr("map.zarr", maps, kind={"class": "labels", "cells": "labels"}, pixel_size=0.25)
    group = zarr.open_group("map.zarr", mode="r")
    Image.from_zarr(group)
    assert sorted(group) == ["labels", "s0", "s1"]
    assert ome("map.zarr/labels") == {"version": "0.5", "labels": ["class", "cells"]}
    label = group["labels/class"]
    ImageLabel.from_zarr(label)
    assert label.attrs["ome"]["image-label"] == {"version": "0.5", "source": {"image": "../../"}}
    assert "omero" not in label.attrs["ome"]  # napari would show no labels with it
    plain = values.reshape(700, 601)
    np.testing.assert_array_equal(label["s0"][...], plain)
    np.testing.assert_array_equal(label["s1"][...], plain[::2, ::2])
    transformations = [
        [level["coordinateTransformations"] for level in each.attrs["ome"]["multiscales"][0]["datasets"]]
        for each in (label, group)
    ]
    assert transformations[0] == [
        [{**each, each["type"]: each[each["type"]][1:]} for each in level] for level in transformations[1]
    ]


def test_labels_without_an_image_are_one():
    """Those of another shape lie on no image that is there, and the first of them is written as one."""
    small, large = np.eye(4, dtype="u1"), np.eye(9, dtype="i4")
    kinds = dict.fromkeys(("a", "b", "c"), "labels")
    write_ome_zarr("map.zarr", {"a": small, "b": large, "c": small, "p": np.ones((9, 9), "f4")}, kind=kinds)
    assert ome("map.zarr/OME")["series"] == ["p", "a"]
    assert ome("map.zarr/p/labels")["labels"] == ["b"]
    assert ome("map.zarr/a/labels")["labels"] == ["a", "c"]
    np.testing.assert_array_equal(zarr.open_array("map.zarr/a/s0", mode="r")[...], small)
    write_ome_zarr("alone.zarr", {"a": small}, kind="labels")
    assert ome("alone.zarr/labels")["labels"] == ["a"]
    assert ome("alone.zarr")["multiscales"][0]["name"] == "a"


def test_labels_of_another_place_lie_elsewhere():
    """Of the same shape, but another pixel size or origin."""
    maps = {"p": np.ones((4, 4), "f4"), "a": np.eye(4, dtype="u1")}
    for number, options in enumerate(
        [{"origins": {"p": (0, 0), "a": (4, 0)}}, {"pixel_size": {"p": 0.5, "a": 1}}]
    ):
        write_ome_zarr(f"{number}.zarr", maps, kind={"a": "labels"}, **options)
        assert ome(f"{number}.zarr/OME")["series"] == ["p", "a"]


def test_several_heads_are_listed():
    """As bioformats2raw lists images: napari opens all of them, from the XML, others from ``series``."""
    maps = {"p <&> q": np.ones((5, 4, 2), "f4"), "count": np.ones((3, 4), "u2"), "f": np.ones((3, 4), "f8")}
    write_ome_zarr("map.zarr", maps, channel_names={"p <&> q": ["<a>", "b"]})
    group = zarr.open_group("map.zarr", mode="r")
    assert group.attrs["ome"] == {"version": "0.5", "bioformats2raw.layout": 3}
    BioFormats2Raw.from_zarr(group)
    assert group["OME"].attrs["ome"] == {"version": "0.5", "series": list(maps)}
    space = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
    root = ET.parse("map.zarr/OME/METADATA.ome.xml").getroot()  # noqa: S314
    images = root.findall(f"{space}Image")
    assert [(image.attrib["ID"], image.attrib["Name"]) for image in images] == [
        (f"Image:{name}", name) for name in maps
    ]
    pixels = [image.find(f"{space}Pixels") for image in images]
    sizes = [[each.attrib[f"Size{axis}"] for axis in "XYZCT"] for each in pixels]
    assert sizes == [["4", "5", "1", "2", "1"], ["4", "3", "1", "1", "1"], ["4", "3", "1", "1", "1"]]
    assert [each.attrib["Type"] for each in pixels] == ["float", "uint16", "double"]
    assert [each.attrib["Name"] for each in pixels[0].findall(f"{space}Channel")] == ["<a>", "b"]


@pytest.mark.parametrize(
    ("array", "kind", "error", "words"),
    [
        (np.ones((5, 5, 3), "u1"), "RGB", OptionError, "'image', 'rgb', 'labels'"),
        (np.ones((5, 5, 3), "u1"), None, OptionError, "kind is None"),
        (np.ones((5, 5, 3), "u1"), {"nobody": "rgb"}, OptionError, "nobody"),
        (np.ones((5, 5, 4), "u1"), "rgb", HeadError, r"shape \(5, 5, 4\).* three channels"),
        (np.ones((5, 3), "u1"), "rgb", HeadError, "three channels"),
        (np.ones((5, 5, 3), "f4"), "rgb", HeadDtypeError, "float32.*uint8"),
        (np.ones((5, 5, 3), bool), "rgb", HeadDtypeError, "uint8"),
        (np.ones((5, 5), "f4"), "labels", HeadDtypeError, "float32.*integers"),
        (np.ones((5, 5, 2), "u1"), "labels", HeadError, "one number a pixel"),
    ],
)
def test_what_no_such_map_can_be_is_refused(array, kind, error, words):
    """The error names the head and what it has, and nothing is written."""
    for write in (
        lambda: write_ome_zarr("map.zarr", {"mask": array}, kind=kind),
        lambda: write_ome_tiff("map.ome.tif", array, name="mask", kind=kind),
    ):
        with pytest.raises(error, match=words):
            write()
    assert list(Path().iterdir()) == []


def test_names_of_colours_are_not_asked_for():
    """A picture is red, green and blue: other names would be wrong."""
    with pytest.raises(OptionError, match="red, green and blue"):
        write_ome_zarr("map.zarr", {"mask": PICTURE}, kind="rgb", channel_names=["a", "b", "c"])


@pytest.mark.parametrize("name", ["OME", "a/b", ".."])
def test_labels_and_lists_need_names_that_groups_can_have(name):
    """Labels are a group even if they are alone; OME is where images are listed."""
    array = np.eye(4, dtype="u1")
    with pytest.raises(HeadError, match="another name"):
        write_ome_zarr("map.zarr", {name: array}, kind="labels")
    with pytest.raises(HeadError, match="another name"):
        write_ome_zarr("map.zarr", {name: array, "b": array})
    assert list(Path().iterdir()) == []


def stitched(heads):
    """Return maps of one box."""
    with Stitcher([[8, 4, 12, 8]], origin="min", blend="last") as stitcher:
        stitcher.push(heads, [[8, 4, 12, 8]])
    return stitcher.finalize()


def test_maps_take_kinds_by_head():
    """By name, or by number where heads came as a list; the TIFF has one."""
    picture, labels = np.ones((1, 4, 4, 3), "u1"), np.ones((1, 4, 4), "i4")
    stitched({"stain": picture, "class": labels}).save_ome_zarr(
        "named.zarr", kind={"stain": "rgb", "class": "labels"}
    )
    maps = stitched([picture, labels])
    maps.save_ome_zarr("listed.zarr", kind={0: "rgb", 1: "labels"})
    for path, name in (("named.zarr", "class"), ("listed.zarr", "1")):
        assert ome(path)["omero"]["rdefs"] == {"model": "color"}
        assert ome(f"{path}/labels")["labels"] == [name]
        [level] = ome(f"{path}/labels/{name}")["multiscales"][0]["datasets"]
        assert level["coordinateTransformations"][1]["translation"] == [4, 8]
    maps.save_ome_tiff("map.ome.tif", head=0, kind="rgb")
    with tifffile.TiffFile("map.ome.tif") as tiff:
        assert tiff.pages[0].photometric.name == "RGB"


@pytest.mark.parametrize("names", [("stain", "class"), None])
def test_command_takes_kinds_by_head(names, capsys):
    """``--kind HEAD=KIND``, by names or numbers of the store; others are refused before maps are made."""
    heads = [np.ones((1, 4, 4, 3), "u1"), np.ones((1, 4, 4), "i4")]
    maps = dict(zip(names, heads, strict=True)) if names else heads
    with FullBatchAccumulator([[0, 0, 4, 4]], store="run.zarr") as accumulator:
        accumulator.push(maps, [[0, 0, 4, 4]])
    accumulator.finalize()
    stain, classes = names or ("0", "1")
    command = ["stitch", "run.zarr", "--blend", "last", "-o"]
    kinds = ["--kind", f"{stain}=rgb", "--kind", f"{classes}=labels"]
    assert main([*command, "map.ome.zarr", *kinds]) == 0
    assert ome("map.ome.zarr/labels")["labels"] == [classes]
    assert capsys.readouterr().out.count("a viewer opens map.ome.zarr\n") == 1  # and nothing in it
    assert main([*command, "map.ome.tif", "--head", stain, "--kind", "rgb"]) == 0
    assert main([*command, "alone.ome.zarr", "--head", classes, "--kind", f"{classes}=labels"]) == 0
    capsys.readouterr()
    for refused, words in (
        (["x.ome.zarr", "--kind", f"{stain}=labels"], "one number a pixel"),
        (["x.ome.zarr", "--kind", "colour"], "'image', 'rgb', 'labels'"),
        (["x.zarr", "--kind", "rgb"], "for OME files"),
    ):
        assert main([*command, *refused]) in {1, 2}
        assert re.search(words, capsys.readouterr().err)
    assert not list(Path().glob("x*"))


def test_loaded_maps_are_exported_the_same():
    """What was kept and opened again has a place, and a kind as it is told."""
    stitched({"class": np.ones((1, 4, 4), "u1")}).save("map.zarr")
    StitchedMap.load("map.zarr").save_ome_zarr("map.ome.zarr", kind="labels")
    np.testing.assert_array_equal(zarr.open_array("map.ome.zarr/labels/class/s0", mode="r")[...], 1)

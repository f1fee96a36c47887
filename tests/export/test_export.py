"""Maps as OME-Zarr and OME-TIFF: pixels, pyramid and metadata as other readers see them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from helpers.soak import soaked
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v05 import Image

from accumulator._export import levels as _levels
from accumulator._export import write_ome_tiff, write_ome_zarr
from accumulator._inputs import tuning
from accumulator._stores.files import target as _target
from accumulator.exceptions import (
    AccumulatorError,
    DamagedError,
    HeadDtypeError,
    HeadError,
    MissingExtraError,
    OptionError,
    ResultExistsError,
    StorageError,
)

DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">f4", ">u2"]
# Shapes of maps, with the number of their spatial axes.
SHAPES = [
    ((1, 1), 2),
    ((1, 700), 2),
    ((513, 700), 2),
    ((513, 1025, 3), 2),
    ((40, 30, 1), 2),
    ((3, 40, 30), 3),
    ((1, 600, 520), 3),
    ((3, 513, 60, 2), 3),
]


def make_map(shape, dtype="f4"):
    """Return noise, in which no two pixels are to be mixed up."""
    values = np.random.default_rng(0).random(shape)
    if np.dtype(dtype).kind == "b":
        return values > 0.5
    return (values * 100).astype(dtype)


def channels_first(array, n_spatial):
    """Return a map with its axes in the order of OME."""
    return np.moveaxis(array, -1, 0) if array.ndim > n_spatial else array


def in_zarr(array, chunks):
    """Return an array in zarr."""
    stored = zarr.create_array({}, shape=array.shape, chunks=chunks, dtype=array.dtype)
    stored[...] = array
    return stored


def open_image(path):
    """Return an OME-Zarr image, checked by its model: its attributes and the arrays of its levels."""
    group = zarr.open_group(path, mode="r")
    Image.from_zarr(group)
    attributes = group.attrs["ome"]
    return attributes, [group[level["path"]] for level in attributes["multiscales"][0]["datasets"]]


def transformations(attributes):
    """Return scale and translation of each level."""
    return [
        (level["coordinateTransformations"][0]["scale"], level["coordinateTransformations"][1]["translation"])
        for level in attributes["multiscales"][0]["datasets"]
    ]


@pytest.fixture(autouse=True)
def _nothing_but_targets():
    """After each test there is at most what it exported; temporary folders are looked for by all tests."""
    yield
    assert {path.name for path in Path().iterdir()} <= {"map.zarr", "map.ome.tif", "taken"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_ome_zarr_holds_every_pixel_of_each_dtype(dtype):
    """What is written is what was given; bool and half precision are widened, and hold the same values."""
    array = make_map((70, 60), dtype)
    write_ome_zarr("map.zarr", {"mask": array})
    _, [level] = open_image("map.zarr")
    wide = {"bool": "u1", "f2": "f4"}.get(dtype, np.dtype(dtype).newbyteorder("="))
    assert level.dtype == wide
    np.testing.assert_array_equal(level[:], array.astype(wide))


@pytest.mark.parametrize(("shape", "n_spatial"), SHAPES)
@pytest.mark.parametrize("stored", [False, True])
def test_ome_zarr_holds_every_shape(shape, n_spatial, stored):
    """Channels come first, levels are halved until a tile holds them, and each lies where it should."""
    array = make_map(shape)
    source = in_zarr(array, [min(length, 37) for length in shape]) if stored else array
    write_ome_zarr("map.zarr", {"mask": source}, n_spatial=n_spatial)
    attributes, levels = open_image("map.zarr")
    expected = channels_first(array, n_spatial)
    axes = "".join(axis["name"] for axis in attributes["multiscales"][0]["axes"])
    assert axes == "c" * (array.ndim > n_spatial) + "zyx"[-n_spatial:]
    assert levels[0].metadata.dimension_names == tuple(axes)
    np.testing.assert_array_equal(levels[0][...], expected)
    assert max(levels[-1].shape[-2:]) <= 512
    for finer, level, (scale, translation) in zip(
        levels, levels[1:], transformations(attributes)[1:], strict=False
    ):
        assert level.shape == (*finer.shape[:-2], -(-finer.shape[-2] // 2), -(-finer.shape[-1] // 2))
        np.testing.assert_allclose(level[...], plain_mean(finer[...]), rtol=1e-6)
        assert translation == [(factor - 1) / 2 for factor in scale]
        assert scale[:-2] == [1] * (expected.ndim - 2)


def plain_mean(fine):
    """Return the mean of 2 x 2 pixels as NumPy takes it, over an edge of NaN."""
    odd = [(0, 0)] * (fine.ndim - 2) + [(0, length % 2) for length in fine.shape[-2:]]
    padded = np.pad(fine.astype("f8"), odd, constant_values=np.nan)
    *others, height, width = padded.shape
    return np.nanmean(padded.reshape(*others, height // 2, 2, width // 2, 2), axis=(-3, -1))


def test_reader_of_the_ome_zarr_library_opens_it():
    """The library's own reader finds the pyramid, the name, the channels and the size of pixels."""
    array = make_map((600, 520, 2))
    write_ome_zarr("map.zarr", {"mask": array}, pixel_size=0.5, channel_names=["tumour", "stroma"])
    [node] = list(Reader(parse_url("map.zarr"))())
    assert [level.shape for level in node.data] == [(2, 600, 520), (2, 300, 260)]
    np.testing.assert_array_equal(node.data[0].compute(), np.moveaxis(array, -1, 0))
    assert node.metadata["name"] == "mask"
    assert node.metadata["channel_names"] == ["tumour", "stroma"]
    assert node.metadata["coordinateTransformations"][1][0]["scale"] == [1, 1, 1]


def test_several_heads_are_an_image_each():
    """Each head has a group of its name; channel names come by head, and by default are numbers."""
    maps = {
        "mask": make_map((30, 20, 2)),
        "depth map": make_map((10, 9), "u2"),
        "\u00fc": make_map((4, 4), "bool"),
    }
    write_ome_zarr("map.zarr", maps, channel_names={"depth map": ["z"]})
    labels = {}
    for name, array in maps.items():
        attributes, levels = open_image(f"map.zarr/{name}")
        assert attributes["multiscales"][0]["name"] == name
        np.testing.assert_array_equal(levels[0][...], channels_first(array, 2))
        labels[name] = [channel["label"] for channel in attributes["omero"]["channels"]]
    assert labels == {"mask": ["0", "1"], "depth map": ["z"], "\u00fc": ["\u00fc"]}
    assert sorted(zarr.open_group("map.zarr", mode="r").group_keys()) == sorted([*maps, "OME"])


def test_pixels_have_their_size_on_every_level():
    """Sizes come as locations do, x first; levels are centred on the pixels they stand for."""
    write_ome_zarr(
        "map.zarr",
        {"mask": make_map((2, 1100, 900))},
        n_spatial=3,
        pixel_size=(0.5, 0.25, 2),
        unit="nanometer",
    )
    attributes, _ = open_image("map.zarr")
    assert transformations(attributes) == [
        ([2, 0.25, 0.5], [0, 0, 0]),
        ([2, 0.5, 1], [0, 0.125, 0.25]),
        ([2, 1, 2], [0, 0.375, 0.75]),
    ]
    assert {axis["unit"] for axis in attributes["multiscales"][0]["axes"]} == {"nanometer"}


def test_no_pixel_size_has_no_unit():
    """Without a pixel size, nothing is claimed in micrometers."""
    write_ome_zarr("map.zarr", {"mask": make_map((5, 5))})
    attributes, _ = open_image("map.zarr")
    assert all("unit" not in axis for axis in attributes["multiscales"][0]["axes"])
    assert transformations(attributes) == [([1, 1], [0, 0])]


@pytest.mark.parametrize("dtype", ["bool", "u1", "i4"])
def test_labels_are_not_mixed(dtype):
    """A pyramid of integers has every second pixel, and no value that the map has not."""
    array = make_map((700, 601), dtype)
    write_ome_zarr("map.zarr", {"labels": array})
    _, levels = open_image("map.zarr")
    np.testing.assert_array_equal(levels[1][...], array[::2, ::2])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_mean_leaves_out_what_is_not_there(dtype):
    """NaN does not spread, a block of it stays NaN, and the mean of huge values is no infinity."""
    most = np.finfo(dtype).max
    array = np.array(
        [[1, np.nan, most, most, 7], [3, np.nan, most, most, 9], [np.nan, np.nan, np.inf, -np.inf, 5]], dtype
    )
    halved = _levels.mean_halved(array)
    assert halved.dtype == dtype
    np.testing.assert_array_equal(halved, [[2, most, 8], [np.nan, np.nan, 5]])


@pytest.mark.parametrize(
    ("array", "window"),
    [
        (np.array([[np.nan, 2], [np.inf, -3]], "f4"), (-3, 2)),
        (np.full((2, 2), np.nan), (0, 1)),
        (np.array([[0, 2**64 - 1]], "u8"), (0, 2**64 - 1)),
        (np.array([[False, True]]), (0, 1)),
    ],
)
def test_viewers_are_told_the_values(array, window):
    """The window of a channel goes from its least to its greatest finite value."""
    write_ome_zarr("map.zarr", {"mask": array})
    attributes, _ = open_image("map.zarr")
    [channel] = attributes["omero"]["channels"]
    assert (channel["window"]["start"], channel["window"]["end"]) == window


@pytest.mark.parametrize("most", [1, 2**16, 2**20])
@pytest.mark.parametrize("chunks", [(70, 600, 5), (600, 90, 1), (520, 520, 2)])
def test_blocks_of_any_size_give_the_same(tuned, most, chunks):
    """However little is held at once, and however the source is chunked, the pyramid is the same."""
    tuned(level_nbytes=most, halved_nbytes=most)
    array = make_map((1030, 600, 5), "u1")
    write_ome_zarr("map.zarr", {"mask": in_zarr(array, chunks)})
    attributes, levels = open_image("map.zarr")
    np.testing.assert_array_equal(levels[0][...], np.moveaxis(array, -1, 0))
    np.testing.assert_array_equal(levels[2][...], np.moveaxis(array[::4, ::4], -1, 0))
    assert [c["window"]["max"] for c in attributes["omero"]["channels"]] == array.max((0, 1)).tolist()


def test_stripes_are_decoded_once():
    """A block takes whole stripes as wide as the slide, and never more than it may."""
    shape, tile, stripes = (3, 40_000, 40_000), (1, 512, 512), (3, 32, 40_000)
    assert _levels._block(shape, tile, stripes, 4, tuning.now.level_nbytes) == (3, 512, 40_000)
    for channels in (1, 8, 1000):
        step = _levels._block((channels, *shape[1:]), tile, (channels, 1, 40_000), 4, tuning.now.level_nbytes)
        assert 4 * np.prod(step) <= tuning.now.level_nbytes


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in {"u8", "i8"}])
def test_ome_tiff_holds_every_pixel_of_each_dtype(dtype):
    """What is read is what was given; bool and half precision are widened, and hold the same values."""
    array = make_map((70, 60, 2), dtype)
    write_ome_tiff("map.ome.tif", array, name="mask")
    wide = {"bool": "u1", "f2": "f4"}.get(dtype, np.dtype(dtype).newbyteorder("="))
    read = tifffile.imread("map.ome.tif")
    assert read.dtype == wide
    np.testing.assert_array_equal(read, np.moveaxis(array.astype(wide), -1, 0))


@pytest.mark.parametrize(("shape", "n_spatial"), SHAPES)
def test_ome_tiff_holds_every_shape(shape, n_spatial):
    """The series has the levels of the pyramid, in tiles, and is the same as in OME-Zarr."""
    array = make_map(shape)
    write_ome_tiff("map.ome.tif", in_zarr(array, shape), n_spatial=n_spatial, name="mask")
    write_ome_zarr("map.zarr", {"mask": array}, n_spatial=n_spatial)
    with tifffile.TiffFile("map.ome.tif") as tiff:
        assert tiff.is_ome
        assert not tiff.is_bigtiff
        assert all(page.is_tiled for page in tiff.pages)
        [series] = tiff.series
        _, levels = open_image("map.zarr")
        assert len(series.levels) == len(levels)
        for level, expected in zip(series.levels, levels, strict=True):
            np.testing.assert_array_equal(level.asarray().reshape(expected.shape), expected[...])


def test_ome_tiff_says_what_it_shows():
    """Name, channels and the size of pixels are in OME-XML, and the size in the tags of every level."""
    write_ome_tiff(
        "map.ome.tif",
        make_map((2, 600, 520, 2)),
        n_spatial=3,
        name="grade <\u00b5>",
        pixel_size=(0.5, 0.25, 2),
        channel_names=["tumour & co", "stroma"],
    )
    with tifffile.TiffFile("map.ome.tif") as tiff:
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        resolutions = [level.keyframe.get_resolution("MICROMETER") for level in tiff.series[0].levels]
        assert tiff.series[0].axes == "CZYX"
    pixels = image["Pixels"]
    assert image["Name"] == "grade <\u00b5>"
    assert [channel["Name"] for channel in pixels["Channel"]] == ["tumour & co", "stroma"]
    sizes = {axis: (pixels[f"PhysicalSize{axis}"], pixels[f"PhysicalSize{axis}Unit"]) for axis in "XYZ"}
    assert sizes == {"X": (0.5, "\u00b5m"), "Y": (0.25, "\u00b5m"), "Z": (2, "\u00b5m")}
    assert resolutions == [(2, 4), (1, 2)]


def test_size_beyond_the_tags_of_tiff_is_in_ome_xml_alone():
    """A TIFF has fractions of 32 bits: a smaller pixel has no such tags."""
    write_ome_tiff("map.ome.tif", make_map((4, 4)), name="mask", pixel_size=1e-9, unit="nanometer")
    with tifffile.TiffFile("map.ome.tif") as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (1e-9, "nm")
        assert tiff.pages[0].resolutionunit == 1


@pytest.mark.parametrize(
    ("unit", "symbol"), [("um", "\u00b5m"), ("\u03bcm", "\u00b5m"), ("millimeter", "mm")]
)
def test_units_have_the_symbol_of_ome_xml(unit, symbol):
    """A unit may be named as OME-Zarr does, and the Greek letter is not the sign for micro."""
    write_ome_tiff("map.ome.tif", make_map((4, 4)), name="mask", pixel_size=3, unit=unit)
    with tifffile.TiffFile("map.ome.tif") as tiff:
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert pixels["PhysicalSizeXUnit"] == symbol


def test_large_ome_tiff_is_a_bigtiff(tuned):
    """A file that may not fit 32 bit offsets has those of 64."""
    tuned(classic_tiff_nbytes=1000, tiles_nbytes=1)
    array = make_map((600, 1100))
    write_ome_tiff("map.ome.tif", array, name="mask")
    with tifffile.TiffFile("map.ome.tif") as tiff:
        assert tiff.is_bigtiff
        np.testing.assert_array_equal(tiff.asarray(), array)


def test_ome_tiff_needs_no_imagecodecs():
    """The zlib of Python is enough to write it, and to read it."""
    script = """
import sys
sys.modules["imagecodecs"] = None
import numpy as np
import tifffile
from accumulator._export import write_ome_tiff
array = np.arange(600 * 600, dtype="f4").reshape(600, 600)
write_ome_tiff("map.ome.tif", array, name="mask")
assert (tifffile.imread("map.ome.tif") == array).all()
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def write_both(array, **options):
    """Return the writers, each ready to write one map."""
    named = dict(options)
    name = named.pop("name", "mask")
    return [
        lambda: write_ome_zarr("map.zarr", {name: array}, **named),
        lambda: write_ome_tiff("map.ome.tif", array, name=name, **named),
    ]


@pytest.mark.parametrize(
    ("array", "options", "error", "words"),
    [
        (np.zeros(5), {}, HeadError, r"head 'mask' has shape \(5,\)"),
        (np.zeros((5, 5, 5, 5)), {}, HeadError, "channel"),
        (np.zeros((5, 0)), {}, HeadError, "empty"),
        (np.zeros((5, 5)), {"n_spatial": 3}, HeadError, "z, y, x"),
        (np.zeros((5, 5)), {"n_spatial": 4}, OptionError, "n_spatial is 4"),
        (np.zeros((5, 5)), {"name": "a\nb"}, HeadError, "printed"),
        (np.zeros((5, 5)), {"name": ""}, HeadError, "name"),
        (np.zeros((5, 5), "c8"), {}, HeadDtypeError, "complex64"),
        (np.zeros((5, 5), "g"), {}, HeadDtypeError, "64 bits"),
        (np.zeros((5, 5), "U1"), {}, HeadDtypeError, "dtype"),
        ([[1, 2]], {}, HeadDtypeError, "list"),
        (np.ma.masked_array(np.zeros((5, 5))), {}, HeadDtypeError, "MaskedArray"),
        *(
            (np.zeros((5, 5)), {"pixel_size": size}, OptionError, "pixel_size")
            for size in (0, -1, np.nan, np.inf, True, "1", (1,), (1, 2, 3), (1, 0))
        ),
        (np.zeros((5, 5)), {"pixel_size": 1, "unit": "furlong"}, OptionError, "furlong"),
        (np.zeros((5, 5)), {"pixel_size": 1, "unit": ["nm"]}, OptionError, "unit of length"),
        (np.zeros((5, 5, 2)), {"channel_names": ["a"]}, OptionError, "1 names .* 2 channels"),
        (np.zeros((5, 5)), {"channel_names": ["a", "b"]}, OptionError, "2 names"),
        (np.zeros((5, 5, 2)), {"channel_names": "ab"}, OptionError, "list of names"),
        (np.zeros((5, 5, 2)), {"channel_names": {"nobody": ["a", "b"]}}, OptionError, "nobody"),
        (np.zeros((5, 5, 2)), {"channel_names": ["a", "\0"]}, OptionError, "printed"),
    ],
)
def test_what_cannot_be_is_refused(array, options, error, words):
    """The error names the culprit, and nothing is written."""
    for write in write_both(array, **options):
        with pytest.raises(error, match=words):
            write()
    assert list(Path().iterdir()) == []


def test_ome_tiff_has_no_integers_of_64_bits():
    """They are refused, not cast, and the remedy is named."""
    with pytest.raises(HeadDtypeError, match="int32"):
        write_ome_tiff("map.ome.tif", np.zeros((5, 5), "i8"), name="mask")


@pytest.mark.parametrize("name", ["a/b", "..", "__a", "zarr.json", "a\\b", "x" * 256])
def test_names_that_no_group_can_have_are_refused(name):
    """Of several heads each is a group; alone, a head may be called anything."""
    array = make_map((5, 5))
    with pytest.raises(HeadError, match=r"another name|shorter"):
        write_ome_zarr("map.zarr", {name: array, "b": array})
    write_ome_zarr("map.zarr", {name: array})
    attributes, _ = open_image("map.zarr")
    assert attributes["multiscales"][0]["name"] == name


def test_no_heads_are_refused():
    """An export of nothing is a mistake."""
    for maps in ({}, make_map((5, 5))):
        with pytest.raises(HeadError, match="no maps"):
            write_ome_zarr("map.zarr", maps)


def test_existing_path_is_left_alone():
    """Files, folders and dangling links are in the way, also when they appear while it is written."""
    array = make_map((5, 5))
    Path("taken").symlink_to("nowhere")
    for write in (
        lambda: write_ome_zarr("taken", {"mask": array}),
        lambda: write_ome_tiff("taken", array, name="mask"),
    ):
        with pytest.raises(ResultExistsError, match="taken"):
            write()
    assert Path("taken").is_symlink()


@pytest.mark.parametrize("number", [0, 1])
def test_faster_writer_keeps_the_path(monkeypatch, number):
    """Whoever is there first stays, and nothing is beside it."""
    real = os.path.lexists
    answers = iter([False])
    monkeypatch.setattr(_target.os.path, "lexists", lambda path: next(answers, True) and real(path))
    Path("map.zarr").mkdir()
    Path("map.ome.tif").touch()
    with pytest.raises(ResultExistsError):
        write_both(make_map((5, 5)))[number]()
    assert Path("map.ome.tif").read_bytes() == b""
    assert list(Path("map.zarr").iterdir()) == []


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_when_it_fails(monkeypatch, number, failure):
    """A disk that is full is a StorageError, and neither the target nor its new parent is there."""

    def fail(_):
        raise failure

    monkeypatch.setattr(_levels, "mean_halved", fail)
    array = make_map((600, 5))
    write = [
        lambda: write_ome_zarr("new/map", {"mask": array}),
        lambda: write_ome_tiff("new/map", array, name="mask"),
    ][number]
    with pytest.raises(StorageError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write()
    if isinstance(failure, OSError):
        assert caught.value.errno == 28
        assert "new/map cannot be written" in str(caught.value)
    assert list(Path().iterdir()) == []


def test_error_of_the_source_stays_what_it_is(monkeypatch):
    """Damaged rows are no trouble of the target."""

    def fail(*_):
        raise DamagedError(5, "rows 3 are damaged")

    monkeypatch.setattr(_levels, "mean_halved", fail)
    with pytest.raises(DamagedError):
        write_ome_zarr("map.zarr", {"mask": make_map((600, 5))})


def test_missing_extra_is_named(monkeypatch):
    """What is not installed is named, with the command that installs it."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'full-batch-accumulator\[ome\]'") as caught:
        write_ome_tiff("map.ome.tif", make_map((5, 5)), name="mask")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, AccumulatorError)
    assert caught.value.name == "tifffile"


def test_ome_zarr_takes_no_more_than_zarr():
    """It is written where no extra is, without a warning; and nothing is loaded before it is needed."""
    script = """
import sys
sys.modules.update(dict.fromkeys(["ome_zarr", "dask", "skimage", "scipy"]))
import accumulator._export
assert "tifffile" not in sys.modules
import numpy as np
accumulator._export.write_ome_zarr("map.zarr", {"mask": np.zeros((5, 5))})
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


# A slide of 1 GB in full-width stripes, as results are stored; prints the memory its export took, in MiB.
LARGE = """
import sys
import numpy as np
import zarr
from pathlib import Path
from accumulator._inputs.extras import need
from accumulator._export import write_ome_tiff, write_ome_zarr
n = int(sys.argv[2])
source = zarr.create_array("source", shape=(n, n, 3), chunks=(2**24 // n // 12, n, 3), dtype="f4")
row = np.random.default_rng(0).random((1, n, 3), dtype="f4").round(2)
for y in range(0, n, source.chunks[0]):
    source[y : y + source.chunks[0]] = np.broadcast_to(row, (min(source.chunks[0], n - y), n, 3))
def status(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) // 1024
need("tifffile", "ome")
Path("/proc/self/clear_refs").write_text("5")
start = status("VmRSS")
if sys.argv[1] == "zarr":
    write_ome_zarr("map", {"mask": source})
else:
    write_ome_tiff("map", source, name="mask")
print(status("VmHWM") - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiff", *soaked("zarr")])
def test_export_of_1_gb_takes_a_third_of_it(tmp_path, kind):
    """A block, the chunks that it is read from and those that are written are all that is held."""
    command = [sys.executable, "-c", LARGE, kind, "9500"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert int(done.stdout) < 400


FULL_DISK = """
import sys, time
from pathlib import Path
import numpy as np
from accumulator._export import write_ome_tiff, write_ome_zarr
from accumulator.exceptions import StorageError
disk = Path(sys.argv[1])
values = np.random.default_rng(0).random((1024, 1024, 2), dtype=np.float32)
for number in range(4):
    try:
        if number % 2:
            write_ome_zarr(disk / "sub" / "map.ome.zarr", {"a": values})
        else:
            write_ome_tiff(disk / "sub" / "map.ome.tif", values, name="a")
    except StorageError as refusal:
        print(refusal.errno)
    time.sleep(0.3)
    print(len(list(disk.iterdir())))
"""


def test_full_disk_leaves_nothing(tmp_path):
    """On a real disk that fills up, zarr's own threads may write a moment longer: all of it is removed."""
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk} || exit 99; exec {sys.executable} -W error"
    try:
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{mount} {script} {disk}"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("only Linux has file systems of one's own")
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip("needs root, to mount a small file system")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(errno.ENOSPC), "0"] * 4

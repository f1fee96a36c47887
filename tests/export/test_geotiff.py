"""Maps as GeoTIFF: where they lie, what pixels hold, and what is left when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accumulator import Stitcher
from accumulator._export import geotiff as _geotiff
from accumulator._export import write_geotiff
from accumulator.exceptions import (
    DamagedError,
    HeadDtypeError,
    HeadError,
    MissingExtraError,
    OptionError,
    ResultExistsError,
    StorageError,
)

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: the extra geo has it")
CRS = rasterio.crs.CRS.from_epsg(32633)  # its database stays open from now on
PLACE = {"crs": "EPSG:32633", "transform": (10, 0, 500_000, 0, -10, 5_800_000)}
RNG = np.random.default_rng(0)


def opened(path="map.tif", **options):
    """Return what rasterio reads, and what it says of it."""
    with rasterio.open(path, **options) as raster:
        return raster.read(), raster.profile, raster.descriptions


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(30, 40), (600, 520, 2)])
def test_every_pixel_of_each_dtype(shape, dtype):
    """Channels are bands; bool and half precision are widened, and hold the same values."""
    array = (RNG.random(shape) * 100).astype(dtype)
    write_geotiff("map.tif", array, name="mask", **PLACE)
    bands, facts, names = opened()
    assert bands.dtype == {"bool": "u1", "f2": "f4"}.get(dtype, dtype)
    np.testing.assert_array_equal(bands, np.moveaxis(np.atleast_3d(array), -1, 0))
    assert (facts["crs"], tuple(facts["transform"])[:6]) == (CRS, PLACE["transform"])
    assert (facts["tiled"], facts["blockxsize"], facts["compress"], facts["nodata"]) == (
        True,
        512,
        "deflate",
        None,
    )
    assert names == (("0", "1") if len(shape) == 3 else ("mask",))


@pytest.mark.parametrize("most", [1, 2**28])
@pytest.mark.parametrize(("n_channels", "interleave"), [(3, "pixel"), (20, "band")])
def test_blocks_of_any_size_give_the_same(tuned, most, n_channels, interleave):
    """However little is held at once; channels of which a tile is large lie one after the other."""
    tuned(level_nbytes=most, tiles_nbytes=2**22)
    array = RNG.integers(0, 99, (520, 1030, n_channels), dtype="u1")
    write_geotiff("map.tif", array, name="mask", **PLACE)
    bands, facts, _ = opened()
    np.testing.assert_array_equal(bands, np.moveaxis(array, -1, 0))
    assert facts["interleave"] == interleave
    assert facts.get("photometric") is None  # three channels are no picture, unless somebody says so


def test_picture_and_names():
    """A picture has its colours, other channels their names."""
    array = RNG.integers(0, 99, (20, 30, 3), dtype="u1")
    write_geotiff("stain.tif", array, name="stain", kind="rgb", **PLACE)
    with rasterio.open("stain.tif") as raster:
        assert [each.name for each in raster.colorinterp] == ["red", "green", "blue"]
        np.testing.assert_array_equal(raster.read(), np.moveaxis(array, -1, 0))
    write_geotiff("map.tif", array, name="mask", channel_names=["a", "b", "ü"], **PLACE)
    with rasterio.open("map.tif") as raster:
        assert [each.name for each in raster.colorinterp] == ["gray", "undefined", "undefined"]
    assert opened()[2] == ("a", "b", "ü")


@pytest.mark.parametrize(("dtype", "nodata"), [("f4", np.nan), ("f4", -1), ("u1", 255), ("i2", -3.0)])
def test_overviews_leave_out_nodata(dtype, nodata):
    """Those of floats are means of what is there; of integers every second pixel."""
    array = RNG.integers(1, 99, (1040, 600)).astype(dtype)
    array[:, :301] = nodata
    write_geotiff("map.tif", array, name="mask", nodata=nodata, **PLACE)
    _, facts, _ = opened()
    np.testing.assert_equal(facts["nodata"], nodata)
    with rasterio.open("map.tif") as raster:
        assert raster.overviews(1) == [2, 4]
    [overview], *_ = opened(overview_level=0)
    if dtype == "f4":
        values = np.where(array == nodata, np.nan, array).reshape(520, 2, 300, 2)
        values[:, :, :150] = 0
        mean = np.nanmean(values, (1, 3))
        mean[:, :150] = nodata
        np.testing.assert_allclose(overview, mean, rtol=1e-6)
    else:
        np.testing.assert_array_equal(overview, array[::2, ::2])


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
sizes = st.floats(0.01, 1e3)


def test_transform_in_the_order_of_gdal_is_refused():
    """Its six numbers would put the map somewhere else on Earth; an object says what they are."""
    affine = pytest.importorskip("affine").Affine(10, 0, 500_000, 0, -10, 4_000_000)
    with pytest.raises(OptionError, match="order of GDAL"):
        _geotiff._as_transform(affine.to_gdal())
    assert _geotiff._as_transform(affine) == (10, 0, 500_000, 0, -10, 4_000_000)
    assert _geotiff._as_transform(iter([10, 0, 500_000, 0, -10, 4_000_000])) == tuple(affine)[:6]
    rotated = type(affine)(0, 10, 0, 10, 0, -10)
    assert _geotiff._as_transform(rotated) == tuple(rotated)[:6]


@given(st.tuples(*[numbers] * 6), st.tuples(*[st.integers(-(10**6), 10**6)] * 2), st.tuples(sizes, sizes))
def test_pixels_lie_where_their_locations_do(transform, first, scale):
    """The corner of a pixel has the coordinates of its location, by rasterio's own arithmetic."""
    affine = pytest.importorskip("affine").Affine
    placed = affine(*_geotiff._placed(transform, first, scale))
    for column, row in ((0, 0), (7, 0), (0, 5), (3, 2)):
        location = (first[0] + column) / scale[0], (first[1] + row) / scale[1]
        corner = [
            transform[0] * location[0] + transform[1] * location[1] + transform[2],
            transform[3] * location[0] + transform[4] * location[1] + transform[5],
        ]
        most = max(abs(each) for each in transform) * max(1, *map(abs, location))
        found = [
            placed.a * column + placed.b * row + placed.c,
            placed.d * column + placed.e * row + placed.f,
        ]
        np.testing.assert_allclose(found, corner, rtol=1e-9, atol=1e-9 * max(1, most))


@pytest.mark.parametrize("scale", [1, 0.5])
def test_map_lies_where_its_patches_do(scale):
    """Origin and scale are taken into account: what was cut out of a raster is found at its coordinates."""
    side = 20
    values = RNG.random((1, side, side, 1), dtype="f4")
    box = [[1000, 400, 1000 + int(side / scale), 400 + int(side / scale)]]
    with Stitcher(box, origin="min", scale=scale) as stitcher:
        stitcher.push({"a": values, "b": values}, box)
    maps = stitcher.finalize()
    affine = pytest.importorskip("affine").Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
    maps.save_geotiff("map.tif", head="a", crs=CRS, transform=affine, nodata=0)
    with rasterio.open("map.tif") as raster:
        assert raster.crs == CRS
        left, top = 300_000 + 0.5 * 1000, 5_000_000 - 0.5 * 400
        length = 0.5 * side / scale
        assert tuple(raster.bounds) == (left, top - length, left + length, top)
        [[sample]] = raster.sample([(left + 3.5 * 0.5 / scale, top - 6.5 * 0.5 / scale)])
        assert sample == values[0, 6, 3, 0]
    with pytest.raises(OptionError, match="choose one of the maps"):
        maps.save_geotiff("other.tif", **PLACE)


def test_volume_is_refused():
    """A GeoTIFF is flat."""
    box = [[0, 0, 0, 4, 4, 4]]
    with Stitcher(box) as stitcher:
        stitcher.push(np.ones((1, 4, 4, 4), "f4"), box)
    with pytest.raises(OptionError, match="3 spatial axes"):
        stitcher.finalize().save_geotiff("map.tif", **PLACE)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"crs": None}, OptionError, "crs is None.*EPSG:32633"),
        ({"crs": "nowhere"}, OptionError, "nowhere"),
        *(
            ({"transform": each}, OptionError, "transform is .* six numbers")
            for each in (None, (1, 2, 3), "abcdef", (1, 0, 0, 0, 1, None), (1, 0, 0, 0, 1, 0, 0, 0, 2))
        ),
        ({"transform": (1, 2, 0, 2, 4, 0)}, OptionError, "no area"),
        ({"transform": (np.nan, 0, 0, 0, 1, 0)}, OptionError, "no area"),
        *(
            ({"nodata": each}, OptionError, "nodata is .* hold")
            for each in ("0", True, 256, -1, 0.5, np.nan, np.inf, 10**400)
        ),
        ({"kind": "rgb"}, HeadError, "three channels"),
        ({"channel_names": ["a", "b"]}, OptionError, "2 names"),
    ],
)
def test_what_cannot_be_is_refused(options, error, words):
    """The error names the culprit, and nothing is written."""
    with pytest.raises(error, match=words):
        write_geotiff("map.tif", np.zeros((5, 5), "u1"), name="mask", **(PLACE | options))
    assert list(Path().iterdir()) == []


def test_other_arrays_are_refused():
    """Complex ones, and a number that a float of 32 bits does not reach."""
    with pytest.raises(HeadDtypeError, match="complex64"):
        write_geotiff("map.tif", np.zeros((5, 5), "c8"), name="mask", **PLACE)
    with pytest.raises(OptionError, match="cannot hold"):
        write_geotiff("map.tif", np.zeros((5, 5), "f4"), name="mask", nodata=1e39, **PLACE)
    write_geotiff("map.tif", np.zeros((5, 5), "f8"), name="mask", nodata=1e39, **PLACE)
    with pytest.raises(ResultExistsError, match=r"map\.tif"):
        write_geotiff("map.tif", np.zeros((5, 5), "f8"), name="mask", **PLACE)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(28, "No space left"), StorageError),
        (rasterio._err.CPLE_AppDefinedError(3, 1, "TIFFAppendToStrip:Write error"), StorageError),
        (DamagedError(5, "row 3"), DamagedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_when_it_fails(monkeypatch, tuned, failure, error):
    """In the midst of the file; neither that nor its new folder is there."""
    real, calls = _geotiff.regions, []

    def fail(*arguments):
        for region in real(*arguments):
            calls.append(region)
            if len(calls) == 2:
                raise failure
            yield region

    monkeypatch.setattr(_geotiff, "regions", fail)
    tuned(level_nbytes=1)
    with pytest.raises(error):
        write_geotiff("new/map.tif", np.ones((1100, 20), "f4"), name="mask", **PLACE)
    assert list(Path().iterdir()) == []


def test_missing_extra_is_named(monkeypatch):
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'full-batch-accumulator\[geo\]'"):
        write_geotiff("map.tif", np.zeros((5, 5)), name="mask", **PLACE)


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np
import rasterio
from accumulator._export import write_geotiff
from accumulator.exceptions import StorageError
disk = Path(sys.argv[1])
values = np.random.default_rng(0).random((1100, 700), dtype=np.float32)
for height in range(600, 1100, 30):
    path, place = disk / "sub" / "map.tif", {"crs": "EPSG:32633", "transform": (2, 0, 0, 0, 2, 0)}
    try:
        write_geotiff(path, values[:height], name="a", **place)
    except StorageError:
        print("refused", *disk.iterdir())
        continue
    with rasterio.open(path) as raster:
        assert raster.overviews(1)
        print("whole" if (raster.read(1) == values[:height]).all() else "damaged")
    path.unlink()
    path.parent.rmdir()
"""


def test_full_disk_leaves_nothing(tmp_path):
    """GDAL writes late: what it cannot write when it ends is an error, too."""
    disk, script = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    script.write_text(FULL_DISK)
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk} || exit 99; exec {sys.executable} {script} {disk}"
    try:
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", mount],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("only Linux has file systems of one's own")
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip("needs root, to mount a small file system")
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.splitlines()) == {"refused", "whole"}

"""What others make of our files: every reader opens all levels, with equal values and without a warning.

A reader that is not installed is skipped; the session `readers` has all of them but TIAToolbox.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from accumulator._export import write_geotiff, write_ome_tiff, write_ome_zarr

RNG = np.random.default_rng(0)
PROBABILITY = RNG.random((700, 600, 2), dtype="f4")
PROBABILITY[:300, 100:400] = np.nan
HEIGHT = RNG.random((600, 1100), dtype="f8")
STAIN = RNG.integers(0, 256, (1100, 600, 3), dtype="u1")
MASK = RNG.integers(0, 4, (1100, 700), dtype="u1")
CLASSES = RNG.integers(0, 2**31, (700, 600), dtype="i4")
VOLUME = RNG.random((3, 600, 520), dtype="f4")
COUNTS = RNG.integers(0, 2**16, (600, 540, 2), dtype="u2")
TISSUE = RNG.random((600, 520)) > 0.5
MAPS = {  # with the number of spatial axes, and what they are
    "probability": (PROBABILITY, 2, "image"),
    "height": (HEIGHT, 2, "image"),
    "stain": (STAIN, 2, "rgb"),
    "mask": (MASK, 2, "labels"),
    "volume": (VOLUME, 3, "image"),
    "counts": (COUNTS, 2, "image"),
    "tissue": (TISSUE, 2, "image"),
}
UINT8_PLANES = ["stain", "mask", "tissue"]
PLACE = {"crs": "EPSG:32633", "transform": (10, 0, 500_000, 0, -10, 5_800_000)}


def need(module):
    """Return a module, or skip."""
    return pytest.importorskip(module, reason=f"{module} is not installed: .ci/run -s readers has it")


def expected_levels(array, n_spatial, kind, rounded):
    """Return the levels of a map, channels first, as NumPy has them."""
    first = np.moveaxis(array, -1, 0) if array.ndim > n_spatial else array
    levels = [first.astype("u1") if first.dtype == bool else first]
    while max(levels[-1].shape[-2:]) > 512:
        fine = levels[-1]
        *others, height, width = fine.shape
        assert height % 2 == width % 2 == 0
        blocks = fine.reshape(*others, height // 2, 2, width // 2, 2)
        if kind != "rgb" and fine.dtype.kind in "ui":
            levels.append(fine[..., ::2, ::2])
            continue
        there = ~np.isnan(blocks)
        with np.errstate(invalid="ignore"):
            mean = np.where(there, blocks, 0).sum((-3, -1), dtype="f8") / there.sum((-3, -1))
        levels.append((rounded(mean) if kind == "rgb" else mean).astype(fine.dtype))
    return levels


def assert_levels(found, name, rounded=np.rint):
    """Compare the levels that a reader found, whose axes of one pixel it may leave out."""
    expected = expected_levels(*MAPS[name], rounded)
    assert len(found) == len(expected) > 1
    for level, right in zip(found, expected, strict=True):
        level = np.asarray(level)  # noqa: PLW2901  whatever it is
        assert level.dtype == right.dtype
        np.testing.assert_allclose(level.reshape(right.shape), right, rtol=1e-6 * (right.dtype.kind == "f"))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path, monkeypatch):
    """Run in an empty folder, in place of what other tests have: what these libraries keep open is theirs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_warning_is_logged(caplog):
    """Libraries that log their warnings say none of our files."""
    yield
    logged = [each for each in caplog.get_records("call") if each.levelno >= logging.WARNING]
    assert [each.getMessage() for each in logged] == []


def by_zarr(path):
    """Return the arrays that the metadata names."""
    group = zarr.open_group(path, mode="r")
    return [group[level["path"]][...] for level in group.attrs["ome"]["multiscales"][0]["datasets"]]


def by_tensorstore(path):
    """Return each level as a store of zarr v3."""
    tensorstore = need("tensorstore")
    stores = ({"driver": "file", "path": str(level)} for level in sorted(Path(path).glob("s?")))
    return [
        tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result().read().result()
        for store in stores
    ]


def by_ome_zarr(path):
    """Return the first node that the library's reader finds."""
    location = need("ome_zarr.io").parse_url(path)
    nodes = list(need("ome_zarr.reader").Reader(location)())
    assert nodes[0].metadata["name"] in MAPS
    return [level.compute() for level in nodes[0].data]


def by_models(path):
    """Read by zarr what the models know as an image."""
    need("ome_zarr_models").open_ome_zarr(zarr.open_group(path, mode="r"))
    need("ome_zarr_models.v05").Image.from_zarr(zarr.open_group(path, mode="r"))
    return by_zarr(path)


def layers(path):
    """Return what napari shows, in a viewer without a window: layers of a name, with values and kind."""
    viewer = need("napari.components").ViewerModel()
    for data, facts, kind in need("napari_ome_zarr._reader").napari_get_reader(path)(path):
        viewer._add_layer_from_data(data, facts, kind)
    return viewer.layers


def by_napari(path):
    """Return the channels' layers, one on the other."""
    shown = list(layers(path))
    images = [layer for layer in shown if type(layer).__name__ == "Image"]
    return [
        np.stack([np.asarray(layer.data[level]) for layer in images]) for level in range(len(images[0].data))
    ]


def by_tifffile(path):
    """Return the levels of the only series."""
    with need("tifffile").TiffFile(path) as tiff:
        [series] = tiff.series
        has_colours_last = series.axes.endswith("S")
        levels = [level.asarray() for level in series.levels]
    return [np.moveaxis(level, -1, 0) for level in levels] if has_colours_last else levels


def by_pyvips(path):
    """Return SubIFDs, plane by plane."""
    path = str(Path(path).absolute())  # by which it knows files again
    load = need("pyvips").Image.tiffload
    image = load(path)
    levels = range(-1, image.get("n-subifds") if "n-subifds" in image.get_fields() else 0)
    n_planes = 1 if image.format == "uchar" or image.bands > 1 else image.get("n-pages")
    planes = [[load(path, subifd=level, page=page).numpy() for page in range(n_planes)] for level in levels]
    return [np.moveaxis(plane[0], -1, 0) if plane[0].ndim == 3 else np.stack(plane) for plane in planes]


def by_openslide(path):
    """Return its levels, in colours."""
    with need("openslide").OpenSlide(path) as slide:
        sizes = enumerate(slide.level_dimensions)
        levels = [np.asarray(slide.read_region((0, 0), level, size)) for level, size in sizes]
        assert {level[..., 3].min() for level in levels} == {255}
    return [np.moveaxis(level[..., :3], -1, 0) for level in levels]


# It closes no file, logs what it misses in OME-XML and is imported for seconds: in a process of its own.
TIATOOLBOX = """
import sys
import numpy as np
from tiatoolbox.wsicore.wsireader import WSIReader
for path in sys.argv[1:]:
    reader = WSIReader.open(path, post_proc=None)
    sizes = enumerate(reader.info.level_dimensions)
    levels = [reader.read_rect((0, 0), size, resolution=level, units="level") for level, size in sizes]
    np.savez(path + ".npz", *levels)
"""


def by_rasterio(path):
    """Return bands and their overviews."""
    rasterio = need("rasterio")
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() == 32633
        assert tuple(raster.transform)[:6] == PLACE["transform"]
        levels, n_levels = [raster.read()], len(raster.overviews(1))
    for level in range(n_levels):
        with rasterio.open(path, overview_level=level) as raster:
            levels.append(raster.read())
    return levels


OF_ZARR = [by_zarr, by_tensorstore, by_ome_zarr, by_models, by_napari]
OF_TIFF = [by_tifffile, by_pyvips]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("read", OF_ZARR, ids=lambda read: read.__name__)
def test_ome_zarr_is_opened(read, name):
    """Each level, of each kind of map."""
    array, n_spatial, kind = MAPS[name]
    write_ome_zarr("map.ome.zarr", {name: array}, n_spatial=n_spatial, kind=kind, pixel_size=0.5)
    assert_levels(read("map.ome.zarr"), name)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("read", OF_TIFF, ids=lambda read: read.__name__)
def test_ome_tiff_is_opened(read, name):
    """Each level, of each kind of map."""
    array, n_spatial, kind = MAPS[name]
    if read is by_pyvips and array.dtype == "f8":
        pytest.skip("libvips reads no numbers of 64 bits from a TIFF")
    write_ome_tiff("map.ome.tif", array, name=name, n_spatial=n_spatial, kind=kind, pixel_size=0.5)
    assert_levels(read("map.ome.tif"), name)


@pytest.mark.parametrize("name", UINT8_PLANES)
def test_openslide_finds_all_levels(name):
    """It looks for them behind the first image; grey has three equal colours."""
    array, n_spatial, kind = MAPS[name]
    write_ome_tiff("map.ome.tif", array, name=name, n_spatial=n_spatial, kind=kind, pixel_size=0.25)
    found = by_openslide("map.ome.tif")
    if kind != "rgb":
        assert all((level == level[:1]).all() for level in found)
        found = [level[0] for level in found]
    assert_levels(found, name)
    with need("openslide").OpenSlide("map.ome.tif") as slide:
        assert float(slide.properties["openslide.mpp-x"]) == 0.25


def test_tiatoolbox_finds_all_levels():
    """Pictures and maps of several channels: it opens no OME-TIFF of one channel."""
    if importlib.util.find_spec("tiatoolbox") is None:
        pytest.skip("tiatoolbox is not installed: the dependency group bench has it")
    paths = {name: f"{name}.ome.tif" for name in ("stain", "probability", "counts")}
    for name, path in paths.items():
        array, _, kind = MAPS[name]
        write_ome_tiff(path, array, name=name, kind=kind, pixel_size=0.5)
    subprocess.run([sys.executable, "-c", TIATOOLBOX, *paths.values()], check=True)
    for name, path in paths.items():
        with np.load(f"{path}.npz") as levels:
            assert_levels([np.moveaxis(level, -1, 0) for level in levels.values()], name)


@pytest.mark.parametrize("name", [name for name, (_, n_spatial, _) in MAPS.items() if n_spatial == 2])
def test_geotiff_is_opened(name):
    """With its place; overviews leave out what is not there."""
    need("rasterio")
    array, _, kind = MAPS[name]
    readers = [by_tifffile] if array.dtype == "f8" else [by_tifffile, by_pyvips]
    nodata = np.nan if array.dtype.kind == "f" else None
    write_geotiff("map.tif", array, name=name, kind=kind, nodata=nodata, **PLACE)
    found = by_rasterio("map.tif")
    for read in readers:
        [first, *_] = read("map.tif")
        np.testing.assert_array_equal(first.reshape(found[0].shape), found[0])
    assert_levels(found, name, lambda mean: np.floor(mean + 0.5))  # as GDAL does


def test_napari_shows_pictures_and_lists_heads():
    """A picture in its colours, labels on the image of their place, all heads of a file at once."""
    maps = {"stain": STAIN, "probability": PROBABILITY, "classes": CLASSES, "tissue": TISSUE}
    kinds = {"stain": "rgb", "classes": "labels", "tissue": "labels"}
    write_ome_zarr("map.ome.zarr", maps, kind=kinds, pixel_size=0.5)
    shown = {layer.name: layer for layer in layers("map.ome.zarr")}
    colours = [shown[f"stain: {colour}"] for colour in ("red", "green", "blue")]
    assert [layer.colormap.name for layer in colours] == ["red", "green", "blue"]
    assert {tuple(layer.contrast_limits) for layer in colours} == {(0, 255)}
    labels = [layer for layer in shown.values() if type(layer).__name__ == "Labels"]
    assert [layer.name for layer in labels] == [
        "labels/probability/labels/classes",
        "labels/tissue/labels/tissue",
    ]
    np.testing.assert_array_equal(labels[0].data[0], CLASSES)
    np.testing.assert_array_equal(labels[0].data[1], CLASSES[::2, ::2])
    assert [layer.scale.tolist() for layer in labels] == [[0.5, 0.5]] * 2
    assert len(shown) == 3 + 2 + 1 + 2  # tissue lies where no image does: it is one, too


def test_z_is_halved_by_nobody():
    """As in what the library of ome-zarr writes itself."""
    write_image = need("ome_zarr.writer").write_image
    group = zarr.create_group("theirs.zarr", zarr_format=3)
    write_image(VOLUME, group, axes="zyx")
    write_ome_zarr("ours.zarr", {"volume": VOLUME}, n_spatial=3)
    theirs, ours = (by_zarr(path)[1].shape for path in ("theirs.zarr", "ours.zarr"))
    assert theirs == ours == (3, 300, 260)

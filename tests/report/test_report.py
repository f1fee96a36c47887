"""``accumulator report``: what it gathers, what the page says, and how the page behaves in a real browser."""

from __future__ import annotations

import errno
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.oracle import distinct, grid
from hypothesis import given
from hypothesis import strategies as st
from playwright import sync_api

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, Stitcher
from accumulator._cli.commands import main
from accumulator._report import page as page_module
from accumulator._report.content import gather
from accumulator._report.histogram import histogram
from accumulator._report.images import as_pictures
from accumulator._report.page import render, write_report
from accumulator._report.reading import Reading, read_rows
from accumulator._report.thumbnail import thumbnail
from accumulator._report.timing import Timing, timing
from accumulator.exceptions import MissingExtraError, StorageError

CHROMIUM = Path("/usr/bin/chromium")
N = 30
LOCS = grid(N, step=8, columns=6)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\" ' \x1b\u202e{{7*7}}"


def fill(accumulator, rows):
    """Push heads of every kind: a map, colours, a grade, an embedding, and one that no map can be made of."""
    n = len(rows)
    accumulator.push(
        {
            "map": distinct(N, (8, 8, 2))[rows],
            HOSTILE: distinct(N, (8, 8, 3), "u1")[rows],
            "grade": distinct(N, (1,), "i2")[rows],
            "features": np.full((n, 40), np.nan, "f2"),
            "volume": np.ones((n, 2, 2, 2, 2), "u1"),
        },
        LOCS[rows],
    )


@pytest.fixture
def complete():
    """Make a complete store."""
    with FullBatchAccumulator(LOCS, store="run.zarr", chunks=2, resume_token="<b>7</b>") as accumulator:
        fill(accumulator, np.arange(20))
    accumulator.finalize().close()
    return Path("run.zarr")


def run(capsys, *argv):
    """Run the command; return its exit code and what it printed."""
    code = main(["report", *map(str, argv)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


class Page(HTMLParser):
    """The tags, attributes and text of a page; tags must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text += f" {data}"


# Thumbnails


def whole_map(array, locs, written):
    """Return the whole map, pixel by pixel: the mean of floats, the last of whole numbers; and how many."""
    left, top = locs[:, :2].min(axis=0)
    right, bottom = locs[:, 2:].max(axis=0)
    patches = [[[] for _ in range(left, right)] for _ in range(top, bottom)]
    for row in np.flatnonzero(written):
        for y in range(*locs[row, 1::2]):
            for x in range(*locs[row, ::2]):
                patches[y - top][x - left].append(array[row, y - locs[row, 1], x - locs[row, 0]])
    blank = np.zeros(array.shape[-1], array.dtype)
    blend = (lambda values: np.mean(values, axis=0)) if array.dtype.kind in "fc" else (lambda all_: all_[-1])
    image = np.array([[blend(values) if values else blank for values in line] for line in patches])
    return image, np.array([[len(values) for values in line] for line in patches])


@pytest.mark.parametrize("few_px", [0, 10**6])
@given(st.integers(1, 15), st.integers(1, 5), st.integers(3, 60), st.booleans(), st.sampled_from("fic"))
def test_thumbnail_is_every_nth_pixel(tuned, few_px, n, columns, max_px, is_zarr, kind):
    """It is what slicing the whole map gives, overlaps and gaps included, row by row or many at once."""
    tuned(pasted_px=few_px, pasted_rows=4)
    locs = grid(n, step=5, columns=columns) + np.array([3, 7, 5, 9])
    array = distinct(n, (7, 7, 2), {"f": "f4", "i": "i2", "c": "c8"}[kind])
    written = np.arange(n) % 3 != 1
    given_array = array
    if is_zarr:
        given_array = zarr.create_array({}, shape=array.shape, chunks=(3, 7, 7, 2), dtype=array.dtype)
        given_array[:] = array
    image, counts = thumbnail(given_array, locs, written, max_px)
    whole, whole_counts = whole_map(array, locs, written)
    step = -(-max(whole.shape[:2]) // max_px)
    np.testing.assert_allclose(image, whole[::step, ::step], rtol=1e-6)
    np.testing.assert_array_equal(counts, whole_counts[::step, ::step])
    assert max(counts.shape) <= max_px


def test_thumbnail_of_other_patches():
    """Grades paint their boxes, coarse patches are stretched, channels may come first or not at all."""
    locs, written = LOCS[:4], np.array([True, False, True, True])
    whole = whole_map(np.ones((4, 8, 8, 1)) * np.arange(4)[:, None, None, None], locs, written)[0]
    for grades in (np.arange(4.0), np.arange(4.0)[:, None]):
        np.testing.assert_array_equal(thumbnail(grades, locs, written)[0], whole)
    coarse = distinct(4, (2, 2))
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)[..., None]
    np.testing.assert_array_equal(thumbnail(coarse, locs, written)[0], whole_map(fine, locs, written)[0])
    last = distinct(4, (8, 8, 2))
    np.testing.assert_array_equal(
        thumbnail(np.moveaxis(last, -1, 1), locs, written)[0], whole_map(last, locs, written)[0]
    )
    assert thumbnail(np.ones((4, 2, 4, 4)), locs, written)[0].shape[-1] == 2
    assert thumbnail(np.ones((4, 1000)), locs, written)[0].shape[-1] == 8


@pytest.mark.parametrize(
    ("array", "locs", "reason"),
    [
        (np.ones((2, 3)), [[0, 0], [1, 1]], "2 numbers"),
        (np.ones((0, 3)), np.zeros((0, 4)), "no locations"),
        (np.ones((1, 3)), [[4, 4, 4, 4]], "no area"),
        (np.ones((2, 3)), [[0, 0, 1, 1], [2**40, 0, 2**40 + 1, 1]], "too far apart"),
        (np.ones((2, 0)), [[0, 0, 4, 4], [4, 0, 8, 4]], "empty"),
        (np.ones((1, 2, 2, 2, 2)), [[0, 0, 4, 4]], "4 axes"),
        (np.array(["a"]), [[0, 0, 4, 4]], "cannot be painted"),
        (np.ones(3000), np.array([[0, 0, 10**6 + i, 10**6] for i in range(3000)]), "over each other"),
    ],
)
def test_thumbnail_that_cannot_be_made(array, locs, reason):
    """It says why, before anything is read."""
    with pytest.raises(ValueError, match=reason):
        thumbnail(array, np.asarray(locs, np.int64).reshape(-1, np.shape(locs)[1]), np.ones(len(array), bool))


def test_reading_is_bounded():
    """Of a head that is too large evenly chosen chunks are read, and how many is told."""
    array = zarr.create_array({}, shape=(100, 10), chunks=(10, 10), dtype="u1")
    reading = Reading(most_nbytes=400)
    chunks = [rows for rows, _ in read_rows(array, np.arange(5, 100), reading)]
    assert [int(rows[0]) for rows in chunks] == [5, 30, 60, 90]
    assert (reading.n_wanted, reading.n_met, len(reading.rows)) == (95, 35, 35)
    assert list(read_rows(array, np.arange(0), reading)) == []


def test_rows_that_are_being_replaced_are_passed_over():
    """They are lost for this page; a disk that refuses is an error."""

    class Changing:
        shape, nbytes, chunks, shards = (4, 1), 4, (2, 1), None
        errno = errno.ESTALE

        def __getitem__(self, rows):
            raise StorageError(self.errno, "no")

    array, reading = Changing(), Reading()
    assert list(read_rows(array, np.arange(4), reading)) == []
    assert reading.lost.tolist() == [0, 1, 2, 3]
    array.errno = errno.EIO
    with pytest.raises(StorageError):
        list(read_rows(array, np.arange(4), reading))


# The page


def test_page_of_a_complete_store(complete, capsys):
    """All is on it, no address leads out, and nobody's name becomes markup."""
    code, out, err = run(capsys, complete, "-o", "page.html")
    assert (code, err) == (0, "")
    assert out.startswith("page.html: ")
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page(text)
    for part in (
        "run.zarr", "complete", "66.7%", "20 of 30 locations written", "10 missing", "<b>7</b>", HOSTILE[:60],
        "float32", "2 x 8 x 8 x 2", "its patches have 4 axes", "The first 8 of 40 channels",
        "No values to count", "as colours", "channel 1", "48 x 40 px",
    ):  # fmt: skip
        assert part in page.text, part
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    addresses = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "action") if name in attrs]
    assert len(addresses) == 2 + 4 + 1 + 8
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, no address
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_page_of_a_running_store_changes_nothing(capsys):
    """What it had recorded is shown; the writer goes on, and no byte is touched."""
    with FullBatchAccumulator(LOCS, store="run.zarr", chunks=2) as accumulator:
        fill(accumulator, np.arange(6))
        accumulator.flush()
        fill(accumulator, np.arange(6, 9))
        accumulator._canvas._batches.show()  # they are in their files, and not recorded
        before = tree(Path("run.zarr"))
        assert run(capsys, "run.zarr")[0] == 0
        text = Page(Path("report.html").read_text()).text
        assert "running, being written" in text
        assert "6 of 30 locations written (20.0%)" in text
        assert "not yet" in text
        assert tree(Path("run.zarr")) == before
        fill(accumulator, np.arange(9, 12))
        accumulator.close()
    assert "not complete, nobody is writing it" in render(gather(Path("run.zarr")))


def test_page_of_a_damaged_store(complete):
    """Damaged rows are named and painted, those that share their chunk are said to be lost."""
    file = complete / "outputs" / "map" / "c.2.0.0.0"
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    (complete / "outputs" / "1" / "c.9.0.0.0").unlink()
    report = gather(complete)
    assert [head.reading.damaged.tolist() for head in report.heads] == [[4], [18, 19], [], [], []]
    assert [head.reading.lost.tolist() for head in report.heads] == [[5], [], [], [], []]
    assert report.heads[0].histogram.n_rows == 18
    text = Page(render(report)).text
    assert "1 damaged rows: 4, and 1 rows share chunks with them" in text
    assert "2 damaged rows: 18, 19" in text
    assert "1 rows could not be read" in text


def test_page_of_large_heads_says_what_was_read(complete, tuned):
    """Pictures are small, and so is what is read for them."""
    tuned(report_head_nbytes=4096)
    report = gather(complete, max_px=16)
    assert (report.heads[0].map.step, report.heads[0].map.pictures[0].width) == (3, 16)
    text = Page(render(report)).text
    assert "Of 20 rows, 8 in evenly chosen chunks were read: 4.1 kB are the most." in text
    assert "one in 3 along each side is shown" in text


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_page_of_other_locations(columns, capsys):
    """Heads get no map and a word why; the coverage is there."""
    locs = np.arange(12).reshape(-1, columns) * 7
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.ones((1, 3), "c8"), locs[:1])
    accumulator.finalize().save("kept")
    assert run(capsys, "kept")[0] == 0
    text = Page(Path("report.html").read_text()).text
    assert f"its locations have {columns} numbers" in text
    assert "1 of" in text
    assert ("canonical order" in text) == (columns != 2)


def test_page_of_a_store_without_locations():
    """N = 0 is a store like any other."""
    with FullBatchAccumulator(LOCS[:0]) as accumulator:
        accumulator.push([distinct(0)], LOCS[:0])
    accumulator.finalize().save("kept")
    assert "0 of 0 locations written" in Page(render(gather(Path("kept")))).text


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        (np.array([3, 3, 5], "u1"), [2, 0, 1]),
        (np.array([True, False, True]), [1, 2]),
        (np.array([0.5, 0.5]), [2]),
        (np.array([1e300, 1e300]), [2]),
        (np.array([-1.7e308, 1.7e308, np.nan]), [1, 1]),
        (np.array([2**63 - 1], "i8"), [1]),
    ],
)
def test_histogram(values, counts):
    """Whole numbers have bins of their own, and no value is too large."""
    found = histogram(values[:, None], np.ones(len(values), bool))
    assert found.counts.tolist() == counts
    assert (found.n_values, found.n_strange) == (len(values), int(np.isnan(values.astype(float)).sum()))


@pytest.mark.parametrize(
    "values",
    [
        np.array([np.iinfo("i8").min, 0, np.iinfo("i8").max]),
        np.array([2**53, 2**53 + 4, 2**53 + 8]),
        np.array([2**63 - 1, 2**63 - 1]),
        np.full(4, 1.7e308),
        np.array([-1.7e308, 1.7e308]),
        np.array([1.0, np.nextafter(1.0, 2)]),
        np.array([-(2**60), -(2**60)]),
    ],
)
def test_histogram_of_extreme_values(values):
    """Every value is counted, and the median is one of them."""
    found = histogram(values[:, None], np.ones(len(values), bool))
    assert found.counts.sum() == len(values)
    assert (np.diff(found.edges) > 0).all()
    assert np.isfinite(found.edges).all()
    assert found.median in values.astype(float)


def test_histogram_of_many_rows_is_a_sample(tuned):
    """Rows are chosen evenly, and values of them too."""
    tuned(histogram_rows=10, histogram_values=50)
    found = histogram(np.arange(20_000).reshape(200, 100), np.ones(200, bool))
    assert (found.n_rows, found.n_values, found.counts.sum()) == (10, 50, 50)


def test_timing_of_a_run_and_of_what_was_saved(complete):
    """A run's rows came after its list of locations; what was saved afterwards has no rows a second."""
    for file in complete.rglob("*"):
        os.utime(file, (1000, 1000))
    for name in ("zarr.json", "written/c.0"):
        os.utime(complete / name, (1100, 1100))
    assert timing(complete, "complete", 20) == Timing(1000, 1100, 1100, 0.2)
    assert timing(complete, "running", 20) == Timing(1000, 1100, None, 0.2)
    assert timing(complete, "complete", 20).seconds == 100
    os.utime(complete / "output_locs" / "zarr.json", (1090, 1090))
    assert timing(complete, "complete", 20) == Timing(1090, 1100, 1100, None)
    assert timing(Path("absent"), "complete", 20) == Timing(None, None, None, None)
    assert timing(Path("absent"), "complete", 20).seconds is None


def test_names_sizes_and_scale_bar_of_a_page(complete, capsys):
    """Channels have the names that were given where a head has as many, lengths are micrometers."""
    argv = ["--pixel-size", "0.5,25", "--channel", "stroma", "--channel", HOSTILE, "-o", "page.html"]
    assert run(capsys, complete, *argv)[0] == 0
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "48 x 40 px (24 µm x 1 mm)" in page.text
    assert " 5 µm " in " ".join(page.text.split())  # of 24, a quarter at most
    names = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert any("Map of head map, stroma," in name for name in names)
    assert any("channel 1" in name for name in names)  # of the head that has three
    assert "channel 0, values from 1 to" not in names[0]
    stages = [attrs for _, attrs in page.tags if attrs.get("class") == "stage"]
    assert {stage["data-width"] for stage in stages} == {"24.0"}
    assert all("aspect-ratio: 24.0 / 1000;" in stage["style"] for stage in stages)
    assert [tag for tag, _ in page.tags].count("script") == 1


@pytest.mark.parametrize("names", [["a"] * 4, ["a"] * 41])
def test_names_that_no_head_has_channels_for(complete, capsys, names):
    """They are refused, with the numbers that would do, and nothing is written."""
    code, _, err = run(capsys, complete, *(word for name in names for word in ("--channel", name)))
    assert code == 1
    assert f"--channel has {len(names)} names" in err
    assert "1 or 2 or 3 or 40 channels" in err
    assert not Path("report.html").exists()


@pytest.mark.parametrize("size", ["0", "-1", "x", "nan", "1,2,3", "inf"])
def test_sizes_that_no_pixel_has(complete, size):
    """They are wrong arguments."""
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(complete), "--pixel-size", size])


@given(st.floats(1e-3, 1e9))
def test_scale_bar_is_round(whole):
    """It is 1, 2 or 5 of some unit, and between a tenth and a quarter of the map."""
    length = page_module._nice(whole)
    assert whole / 10 * (1 - 1e-6) <= length <= whole / 4 * (1 + 1e-6)
    assert f"{length:.0e}"[0] in "125"
    assert float(f"{length:.0e}") == pytest.approx(length)


@pytest.mark.parametrize(
    ("n_expected", "figures", "key"),
    [
        (None, "66.7% of the locations written 20 written 10 missing", "missing"),
        (
            25,
            "80.0% expected written 20 written 5 missing 5 left out by a mask",
            "missing or left out by a mask",
        ),
        (20, "100.0% expected written 20 written 0 missing 10 left out by a mask", "left out by a mask"),
    ],
)
def test_page_tells_masked_from_missing(n_expected, figures, key):
    """By numbers, and in maps by their key; where both are, nobody knows which is which."""
    with FullBatchAccumulator(LOCS, store="run.zarr", n_expected=n_expected) as accumulator:
        fill(accumulator, np.arange(20))
    report = gather(Path("run.zarr"))
    page = render(report)
    said = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.replace("\n", ""))
    assert " ".join(f"{value} {label}" for label, value in said).startswith(figures)
    masks = report.heads[0].map.pictures[0].masks
    assert masks == ["left out" if n_expected == 20 else "missing"]
    assert re.search(rf"</span>{key}</span>", page)
    assert ("not which" in page) == (n_expected == 25)


@pytest.mark.parametrize(("size", "is_told"), [(8, False), (12, True), (4, True)])
def test_page_tells_of_patches_that_are_not_as_large_as_their_boxes(size, is_told):
    """A halo is not cut away, and nothing tells it from a scale: the page says what it did."""
    locs = np.array([[x, 0, x + 8, 8] for x in range(0, 32, 8)])
    with FullBatchAccumulator(locs, store="halo.zarr") as accumulator:
        accumulator.push({"a": np.ones((4, size, size, 2), "f4"), "b": np.ones((4, 2), "f4")}, locs)
    write_report(Path("halo.zarr"), Path("halo.html"))
    page = Path("halo.html").read_text()
    assert page.count(f"Patches of {size} x {size} px are drawn as large as their boxes, 8 x 8") == is_told
    assert page.count("drawn as large") == is_told


def test_page_says_what_becomes_of_overlaps():
    """The mean of floats, the last of whole numbers, and nothing where boxes lie side by side."""
    locs = np.array([[0, 0, 8, 8], [4, 0, 12, 8]])
    for name, some in (("over.zarr", locs), ("beside.zarr", LOCS)):
        n = len(some)
        with FullBatchAccumulator(some, store=name) as accumulator:
            accumulator.push({"p": distinct(n, (8, 8)), "label": distinct(n, (8, 8), "i4")}, some)
    report = gather(Path("over.zarr"))
    assert [head.map.overlap for head in report.heads] == ["averaged", "last"]
    text = Page(render(report)).text
    assert "it shows the mean of their patches" in text
    assert "the last patch is seen" in text
    report = gather(Path("beside.zarr"))
    assert [head.map.overlap for head in report.heads] == ["", ""]
    assert "overlap" not in Page(render(report)).text


# Maps that were kept


@pytest.fixture
def kept_map():
    """Make a store of two maps on another scale, of columns in another order, with gaps and an origin."""
    locs = np.array([[y, x, y + 8, x + 8] for y in range(8, 40, 8) for x in range(16, 64, 8)])
    written = np.arange(24) % 5 != 2
    heads = {"p": distinct(24, (4, 4, 2)), "label": distinct(24, (4, 4), "i4")}
    options = {"axes": "yx", "origin": "min", "scale": 0.5, "store": "map.zarr", "chunks": 4}
    with Stitcher(locs, blend="last", **options) as stitcher:
        stitcher.push({name: head[written] for name, head in heads.items()}, locs[written])
    stitcher.finalize().close()
    return StitchedMap.load("map.zarr")


@pytest.mark.parametrize("max_px", [1024, 7])
def test_page_of_maps(kept_map, max_px, monkeypatch):
    """Every n-th pixel of them, as they are; the coverage is that of their patches, x first."""
    images = []
    monkeypatch.setattr(
        "accumulator._report.content.as_pictures", lambda *given: images.append(given) or as_pictures(*given)
    )
    report = gather(Path("map.zarr"), max_px)
    assert report.is_of_maps
    assert (report.coverage.kind, report.coverage.n, report.coverage.n_written) == ("boxes", 24, 19)
    assert report.coverage.extent[:2] == (16, 8)
    assert report.size == (24, 16)
    step = -(-24 // max_px)
    covered = kept_map.coverage() > 0
    for (image, seen, masks, _), head in zip(images, ("p", "label"), strict=True):
        whole = np.asarray(kept_map.outputs[head][...]).reshape(16, 24, -1)
        np.testing.assert_array_equal(image, whole[::step, ::step])
        np.testing.assert_array_equal(seen, covered[::step, ::step])
        np.testing.assert_array_equal(masks["missing"], ~covered[::step, ::step])
        assert not masks["unread"].any()
    text = Page(render(report)).text
    assert "19 of 24 locations written" in text
    assert "those of the patches that the maps were made of" in text
    assert "overlap" not in text


@pytest.mark.usefixtures("kept_map")
def test_page_of_a_damaged_map():
    """Damaged lines are painted, and what shares their chunk is not shown."""
    file = Path("map.zarr/outputs/p/c.1.0.0")
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    report = gather(Path("map.zarr"))
    assert report.heads[0].reading.damaged.tolist() == [4]
    assert report.heads[0].map.pictures[0].masks == ["missing", "unread", "damaged"]
    assert report.heads[1].map.pictures[0].masks == ["missing"]
    assert "1 damaged rows: 4" in Page(render(report)).text


def test_page_of_a_volume():
    """It is told why there is no picture."""
    locs = np.array([[0, 0, 0, 4, 4, 4]])
    with Stitcher(locs, store="map.zarr") as stitcher:
        stitcher.push(np.ones((1, 4, 4, 4)), locs)
    text = Page(render(gather(Path("map.zarr")))).text
    assert "No map: it is a map of 3 axes of float64, and two are painted." in text


# The command


def test_existing_file_is_not_overwritten(complete, capsys):
    """Nor is anything written into the store."""
    Path("page.html").write_text("mine")
    code, out, err = run(capsys, complete, "-o", "page.html")
    assert (code, out) == (1, "")
    assert "something is there already" in err
    assert Path("page.html").read_text() == "mine"
    before = tree(complete)
    code, _, err = run(capsys, complete, "-o", complete / "page.html")
    assert code == 1
    assert "is in the store" in err
    assert tree(complete) == before


def test_no_store_and_no_room_are_one_line(complete, capsys):
    """No traceback, exit code one, and nothing half written."""
    assert run(capsys, "absent")[0] == 1
    code, _, err = run(capsys, complete, "-o", "nowhere/page.html")
    assert (code, err.count("\n")) == (1, 1)
    assert "nowhere" in err
    assert not Path("report.html").exists()


def test_help_teaches(capsys):
    """Examples and exit codes are in it."""
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    out = capsys.readouterr().out
    assert "accumulator report run.zarr -o monday.html" in out
    assert "exit codes: 0" in out


@pytest.mark.parametrize("module", ["PIL.Image", "jinja2"])
def test_missing_extra(complete, monkeypatch, capsys, module):
    """The error names what installs it, before anything is read."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(FullBatch, "load", lambda *_, **__: pytest.fail("read"))
    code, _, err = run(capsys, complete)
    assert code == 1
    assert "pip install 'full-batch-accumulator[report]'" in err
    with pytest.raises(MissingExtraError):
        write_report(complete, Path("page.html"))


# The browser


@pytest.fixture(scope="module")
def browser():
    """Start a real browser."""
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    options = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    options += "--disable-component-update --disable-sync"
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options.split())
        yield started
        started.close()


@pytest.fixture
def page(browser, complete, capsys):
    """Open the page without network; at the end it must have complained of nothing, and asked nobody."""
    assert run(capsys, complete)[0] == 0
    complaints, requests = [], []
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(Path("report.html").absolute().as_uri())
    yield page
    context.close()
    assert complaints == []
    assert requests
    assert all(url.startswith(("file:", "data:")) for url in requests)


def test_page_in_a_browser(page):
    """Texts and pictures are there, and it fits a narrow window, too."""
    assert "20 of 30 locations written" in page.inner_text("main")
    assert page.title() == "run.zarr: accumulator report"
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_zoom_in_a_browser(page):
    """Buttons, wheel, drag and keys change what is seen of a map."""
    viewer = page.locator('[data-viewer="0"]')
    stage, image = viewer.locator(".stage:visible"), viewer.locator("img:visible")
    scale = lambda: float(viewer.get_attribute("data-scale"))  # noqa: E731
    width = image.bounding_box()["width"]
    viewer.get_by_role("button", name="Zoom in").click()
    assert scale() == 1.5
    assert image.bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.01)
    viewer.get_by_role("button", name="Whole map").click()
    assert scale() == 1
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.querySelector('[data-viewer]').dataset.scale > 2")
    left = image.bounding_box()["x"]
    page.mouse.down()
    page.mouse.move(middle[0] + 50, middle[1])
    page.mouse.up()
    assert image.bounding_box()["x"] == pytest.approx(left + 50, abs=2)
    page.mouse.move(*middle)  # nothing is held any more
    assert image.bounding_box()["x"] == pytest.approx(left + 50, abs=2)
    stage.focus()
    page.keyboard.press("ArrowLeft")
    assert image.bounding_box()["x"] > left + 60
    before = scale()
    page.keyboard.press("-")
    assert scale() < before
    page.keyboard.press("0")
    assert scale() == 1


def test_scale_bar_in_a_browser(page):
    """However far one zooms in, the bar is as long as it says."""
    viewer = page.locator('[data-viewer="0"]')
    stage, bar = viewer.locator(".stage:visible"), viewer.locator("[data-bar]:visible")
    for _ in range(5):
        text = bar.locator("span").inner_text()
        length, unit = text.split(" ")
        assert unit == "px"
        scale = float(viewer.get_attribute("data-scale"))
        shown = bar.locator("i").bounding_box()["width"] / stage.bounding_box()["width"]
        assert shown == pytest.approx(float(length) * scale / 48, rel=0.02)
        assert 0.09 < shown < 0.26
        viewer.get_by_role("button", name="Zoom in").click()


def test_channels_in_a_browser(page):
    """One channel is shown at a time, that which is chosen."""
    viewer = page.locator('[data-viewer="0"]')
    image = viewer.locator("img:visible")
    assert "channel 0" in image.get_attribute("alt")
    viewer.get_by_label("Show", exact=True).select_option("channel 1")
    assert viewer.locator("img:visible").count() == 1
    assert "channel 1" in viewer.locator("img:visible").get_attribute("alt")

"""What coverage looks like: the raster, the SVG, notebooks and plots."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import zarr
from helpers.oracle import distinct, grid
from hypothesis import given
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._cli import main
from accumulator._pictures import as_svg, coverage, plot_coverage, plot_map
from accumulator.exceptions import AccumulatorError, MissingExtraError, OptionError

HOSTILE = "</td><script>alert(1)</script>\" onload='x' \x1b[2J\u202e\n&amp;"


@pytest.fixture(autouse=True)
def _no_window():
    """Draw into memory, and close every figure afterwards."""
    plt.switch_backend("Agg")
    yield
    plt.close("all")


# The raster


def test_grid_of_boxes_has_a_cell_each():
    """Boxes beside each other are cells; what is not listed is NaN."""
    locs = np.delete(grid(20), [7], axis=0)
    written = np.ones(19, bool)
    written[[0, 18]] = False
    shown = coverage(locs, written)
    expected = np.ones((4, 5))
    expected[0, 0] = expected[3, 4] = 0
    expected[1, 2] = np.nan
    np.testing.assert_array_equal(shown.share, expected)
    assert (shown.extent, shown.kind, shown.n, shown.n_written) == ((0, 0, 20, 16), "boxes", 19, 17)


@given(st.data())
def test_shares_are_areas(data):
    """Each cell's share is what painting every box pixel by pixel gives."""
    number = st.integers(0, 30)
    n = data.draw(st.integers(1, 12))
    corner = np.array(data.draw(st.lists(st.tuples(number, number), min_size=n, max_size=n)))
    size = np.array(
        data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=n, max_size=n))
    )
    written = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    locs = np.hstack([corner, corner + size])
    shown = coverage(locs, written, 7)
    left, top, right, bottom = shown.extent
    rows, columns = shown.share.shape
    assert max(rows, columns) <= 7
    assert left == corner[:, 0].min()
    assert right >= locs[:, 2].max() - 1e-3
    fine = 60  # px a cell: edges of cells do not lie on whole numbers
    xs = left + (np.arange(columns * fine) + 0.5) * (right - left) / (columns * fine)
    ys = top + (np.arange(rows * fine) + 0.5) * (bottom - top) / (rows * fine)
    listed, done = np.zeros((2, len(ys), len(xs)))
    for (x0, y0, x1, y1), is_written in zip(locs, written, strict=True):
        inside = ((ys >= y0) & (ys < y1))[:, None] & ((xs >= x0) & (xs < x1))
        listed += inside
        done += inside & is_written
    cells = (rows, fine, columns, fine)
    listed, done = (each.reshape(cells).mean(axis=(1, 3)) for each in (listed, done))
    is_sure = listed > 0.2
    assert not np.isnan(shown.share[is_sure]).any()
    np.testing.assert_allclose(shown.share[is_sure], (done / np.maximum(listed, 1e-9))[is_sure], atol=0.25)
    assert np.nanmin(shown.share) >= 0
    assert np.nanmax(shown.share) <= 1
    if written.all() or not written.any():
        assert set(np.unique(shown.share[~np.isnan(shown.share)])) == {float(written[0])}


def test_points_and_strips():
    """Points lie where they are; rows of any other width are a strip in canonical order."""
    points = np.array([[0, 0], [10, 0], [0, 10], [30, 10]])
    written = np.array([True, False, True, False])
    shown = coverage(points, written)
    np.testing.assert_array_equal(shown.share, [[1, 0, np.nan, np.nan], [1, np.nan, np.nan, 0]])
    for locs in (points[:, :1], np.hstack([points, points[:, :1]])):
        shown = coverage(locs, written)
        assert shown.kind == "strip"
        np.testing.assert_array_equal(shown.share, [[1, 0, 1, 0]])
    shown = coverage(np.arange(1000)[:, None], np.arange(1000) < 500)
    assert shown.share.shape == (1, 96)
    assert shown.share.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_lists_that_are_hardly_any(columns):
    """No location, one, one far away, and boxes without area all have a raster."""
    for locs in (
        np.zeros((0, columns)),
        np.full((1, columns), 7),
        np.array([[0] * columns, [2**62] * columns]),
    ):
        for is_written in (True, False):
            shown = coverage(locs.astype(np.int64), np.full(len(locs), is_written))
            found = set(shown.share[~np.isnan(shown.share)])
            assert found == ({float(is_written)} if len(locs) else set())
            ET.fromstring(as_svg(shown))  # noqa: S314  our own


def test_small_boxes_of_a_large_plane_are_seen():
    """A cell that one tiny box lies in is not empty."""
    locs = np.array([[0, 0, 1, 1], [10**9, 10**9, 10**9 + 1, 10**9 + 1]])
    shown = coverage(locs, np.array([True, False]))
    assert (shown.share[0, 0], shown.share[-1, -1], np.isnan(shown.share).sum()) == (
        1,
        0,
        shown.share.size - 2,
    )


def test_one_missing_row_of_many_is_seen():
    """The picture is small however many locations there are, and rounds no gap away."""
    locs = grid(250_000, columns=500)
    written = np.ones(len(locs), bool)
    assert as_svg(coverage(locs, written)).count("<path") == 1
    written[77_777] = False
    picture = as_svg(coverage(locs, written))
    assert picture.count("<path") == 3
    assert "249999 of 250000 locations written (100.0%), 1 missing" in picture
    assert len(picture) < 20_000


# Notebooks


def accumulate(**options):
    """Return an accumulator with one plain and one hostile head, of which the last rows are missing."""
    accumulator = FullBatchAccumulator(grid(10), **options)
    accumulator.push({"plain": distinct(6), HOSTILE: distinct(6, (3,), "i2")}, grid(10)[:6])
    return accumulator


def test_html_of_an_accumulator(where, tmp_path):
    """It says what is there, in every state, and escapes what strangers named."""
    accumulator = accumulate(save_path=tmp_path / "there", **where)
    page = accumulator._repr_html_()
    place = "RAM" if where["memory_threshold"] else "zarr"
    for text in (
        "6 of 10 (60.0%), 4 missing",
        "plain",
        "10 x 2 x 2 x 1",
        "int16",
        "<svg",
        place,
        "available",
    ):
        assert text in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    ET.fromstring(page)  # noqa: S314  our own
    batch = accumulator.finalize()
    assert "finalized" in accumulator._repr_html_()
    page = batch._repr_html_()
    assert "6 of 10 (60.0%), 4 missing" in page
    ET.fromstring(page)  # noqa: S314  our own
    batch.close()
    assert ("closed" in batch._repr_html_()) == (place == "zarr")


def test_html_before_any_push_and_after_close():
    """There are no heads, and it does not raise."""
    accumulator = FullBatchAccumulator(grid(10))
    assert "nothing pushed" in accumulator._repr_html_()
    accumulator.close()
    assert "closed" in accumulator._repr_html_()
    with FullBatchAccumulator(grid(0)) as empty:
        assert "0 of 0" in empty._repr_html_()
    assert "<svg" in empty.finalize()._repr_html_()


def test_html_writes_and_reads_nothing(monkeypatch):
    """Rows that wait to be written go on waiting."""
    with accumulate(memory_threshold=0) as accumulator:
        monkeypatch.setattr(type(accumulator._canvas), "flush", lambda _: pytest.fail("flushed"))
        accumulator._repr_html_()
        monkeypatch.undo()
    batch = accumulator.finalize()
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("read"))
    batch._repr_html_()


def test_html_of_a_run_under_way():
    """It says so; many heads are not all listed, and long names are cut."""
    heads = {f"{'long' * 100}{i}": np.ones((1, 1), "u1") for i in range(30)}
    with FullBatchAccumulator(grid(3), store="run.zarr") as accumulator:
        accumulator.push(heads, grid(3)[:1])
        accumulator.flush()
        page = FullBatch.load("run.zarr", partial=True)._repr_html_()
    assert "of a run under way" in page
    assert "and 10 more" in page
    assert "long" * 60 not in page


# Plots


def test_plot_of_coverage():
    """Written and missing are counted, y goes downwards, and an ax may be given."""
    with accumulate() as accumulator:
        ax = accumulator.plot_coverage()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["6 written", "4 missing"]
    assert ax.get_ylim() == (8, 0)
    assert ax.get_xlim() == (0, 20)
    assert ax.get_aspect() == 1
    assert [len(each.get_paths()) for each in ax.collections] == [4, 6]
    _, given_ax = plt.subplots()
    assert accumulator.finalize().plot_coverage(ax=given_ax) is given_ax
    given_ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("n", "columns", "kind"), [(40_000, 4, "images"), (100, 2, "lines"), (50, 3, "images")]
)
def test_plot_of_other_locations(n, columns, kind):
    """Very many boxes, and rows in canonical order, are a raster; points are points."""
    ax = plot_coverage(grid(n, columns=200)[:, :columns], np.arange(n) % 2 == 0)
    assert len(getattr(ax, kind)) == (2 if kind == "lines" else 1)
    assert len(ax.collections) == 0
    ax.figure.canvas.draw()


def test_map_of_one_channel():
    """It lies at its origin, and what is missing is hatched and named."""
    image = np.arange(12.0).reshape(3, 4)
    image[0, 0] = np.nan
    (ax,) = plot_map(image, origin=(100, 200), title="a $name$")
    assert ax.images[0].get_extent() == [100, 104, 203, 200]
    assert ax.get_title(loc="left") == r"a \$name\$"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["missing"]
    assert ax.images[0].get_array().mask.sum() == 1
    ax.figure.canvas.draw()


@pytest.mark.parametrize("dtype", ["?", "u1", "f2", "c8"])
def test_map_has_a_panel_a_channel(dtype):
    """Whatever the dtype; a channel can be chosen, and three of uint8 are colours."""
    image = np.ones((5, 6, 3), dtype)
    panels = plot_map(image, title="head")
    assert len(panels) == (1 if dtype == "u1" else 3)
    panels[0].figure.canvas.draw()
    assert len(plot_map(image, channel=-1)) == 1
    assert len(plot_map(image[..., :1])) == 1
    assert len(plot_map(image[..., 0], ax=panels[0])) == 1


def test_large_map_is_decimated():
    """Of a zarr array, only what is shown comes to memory."""
    array = zarr.create_array({}, shape=(10, 5000), chunks=(10, 500), dtype="i4")
    array[:] = np.arange(50_000).reshape(10, 5000)
    (ax,) = plot_map(array)
    np.testing.assert_array_equal(ax.images[0].get_array(), array[:][::3, ::3])
    assert ax.images[0].get_extent() == [0, 5000, 10, 0]
    assert ax.get_xlabel() == "x (every 3 px)"


def test_map_that_is_none():
    """Errors are typed and name the remedy."""
    ax = plot_map(np.ones((2, 2)))[0]
    for array, options, text in (
        (np.ones(3), {}, "a map is"),
        (np.ones((2, 0)), {}, "a map is"),
        (np.array([["a"]]), {}, "a map is"),
        (np.ones((2, 2, 2)), {"channel": 2}, "channel is 2"),
        (np.ones((2, 2, 2)), {"channel": "x"}, "channel is 'x'"),
        (np.ones((2, 2, 2)), {"ax": ax}, "channel="),
        (np.ones((2, 2, 99)), {}, "channel="),
    ):
        with pytest.raises(OptionError, match=text):
            plot_map(array, **options)


def test_all_missing_map():
    """A map of NaN alone is drawn, too."""
    (ax,) = plot_map(np.full((3, 3), np.nan))
    ax.figure.canvas.draw()


def test_missing_matplotlib(monkeypatch):
    """The error names what installs it, and is an ImportError."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'full-batch-accumulator\[plot\]'") as caught:
        plot_map(np.ones((2, 2)))
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, AccumulatorError)
    with accumulate() as accumulator, pytest.raises(MissingExtraError):
        accumulator.plot_coverage()


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_locations_that_are_no_boxes_are_drawn_as_points_with_a_word(order, capsys):
    """``[x, y, width, height]`` ends before it starts: notebooks, plots, the SVG and the report say so."""
    locs = np.array([[x, y, 4, 4] for y in (0, 4, 8) for x in (0, 4, 8)])[order]
    patches = np.arange(9 * 16, dtype=np.float32).reshape(9, 4, 4)
    word = "locations that end before they start are no boxes"
    with FullBatchAccumulator(locs, store="run.zarr") as accumulator:
        accumulator.push(patches[:5], locs[:5])
        result = accumulator.finalize()
        shown = [accumulator._repr_html_(), result._repr_html_()]
        titles = [each.plot_coverage().get_title() for each in (accumulator, result)]
    assert all(word in each for each in shown + titles)
    raster = coverage(locs, result.written)
    assert raster.kind == "points"
    assert (raster.n, raster.n_written) == (9, 5)
    np.testing.assert_array_equal(raster.share, coverage(locs[:, :2], result.written).share)
    assert main(["report", "run.zarr", "-o", "page.html"]) == 0
    page = Path("page.html").read_text("utf-8")
    assert page.count(word) >= 2  # of the coverage, and of the head's map
    assert "Traceback" not in capsys.readouterr().err
    boxes = np.hstack([locs[:, :2], locs[:, :2] + 4])
    assert coverage(boxes, result.written).note == ""

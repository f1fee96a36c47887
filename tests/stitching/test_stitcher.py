"""The stitcher and its maps: what is refused, kept, shown and written."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import tifffile
import zarr
from helpers.maps import LOCS, ONES, assert_right, boxes, raster, reference

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, stitch
from accumulator._stitching import result as _result
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadDtypeError,
    HeadError,
    HeadValueError,
    LocationError,
    NothingPushedError,
    OptionError,
    ProcessError,
    ResultExistsError,
    UnknownLocationError,
)


def test_partial_run_is_stitched_as_far_as_it_came(where):
    """Only recorded rows count; the map has the size of the whole."""
    locs = raster((16, 16), (4, 4), (4, 4))
    accumulator = FullBatchAccumulator(locs, store="run.zarr")
    accumulator.push({"a": np.ones((5, 4, 4), np.float32), "score": np.ones((5, 1))}, locs[:5])
    accumulator.flush()
    accumulator.push({"a": np.ones((5, 4, 4), np.float32), "score": np.ones((5, 1))}, locs[5:10])
    maps = stitch(FullBatch.load("run.zarr", partial=True), heads=["a"], fill_value=np.nan, **where)
    assert maps.outputs["a"].shape == (16, 16)
    assert np.isfinite(maps.outputs["a"][...]).sum() == 5 * 16
    maps.close()
    accumulator.close()


def test_result_without_any_row_gives_empty_maps():
    """Nothing was predicted: the maps are there, and hold the fill value."""
    locs = raster((8, 8), (4, 4), (4, 4))
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.empty((0, 4, 4, 2), np.float32), locs[:0])
    maps = stitch(accumulator.finalize(), fill_value=3)
    assert maps.outputs[0].shape == (8, 8, 2)
    assert (maps.outputs[0] == 3).all()
    assert not maps.coverage().any()


def test_region_of_a_slide():
    """``output_shape`` and ``origin`` cut a region out, or place one in a slide."""
    locs = boxes([[100, 200], [104, 204]], (8, 8))
    values = np.arange(1, 129, dtype=np.float32).reshape(2, 8, 8)

    def made(**options):
        with Stitcher(locs, **options) as stitcher:
            stitcher.push(values, locs)
        return stitcher.finalize().outputs[0]

    slide = made()
    assert slide.shape == (112, 212)
    assert not slide[:100].any()
    np.testing.assert_array_equal(made(origin=[200, 100]), slide[100:, 200:])
    np.testing.assert_array_equal(made(origin=[203, 101], output_shape=(4, 5)), slide[101:105, 203:208])
    larger = made(origin=[190, 90], output_shape=(40, 50))
    np.testing.assert_array_equal(larger[10:22, 10:22], slide[100:, 200:])
    assert larger.sum() == slide.sum()


def test_channel_first_views_and_reused_buffers():
    """Arrays of any layout are read as they are, and may be reused when the push has returned."""
    locs = raster((8, 8), (4, 4), (2, 2))
    values = np.random.default_rng(0).random((len(locs), 3, 4, 4), dtype=np.float32)
    buffer = np.empty_like(values[:2])
    with Stitcher(locs) as stitcher:
        for start in range(0, len(locs), 2):
            some = values[start : start + 2]
            buffer[: len(some)] = some
            stitcher.push(np.moveaxis(buffer[: len(some)], 1, -1), locs[start : start + 2])
            buffer[:] = np.nan
    expected, _, size = reference(np.moveaxis(values, 1, -1), locs, (8, 8), (0, 0), "average", 0)
    assert_right(stitcher.finalize().outputs[0], expected, size, np.float32)


def test_kept_map_is_a_result_like_others():
    """With ``store`` it lies there, checked and complete; ``save`` keeps any other."""
    locs = raster((8, 8), (4, 4), (2, 2))
    values = np.random.default_rng(0).random((len(locs), 4, 4), dtype=np.float32)
    with Stitcher(locs, store="map.zarr") as stitcher:
        stitcher.push({"a": values}, locs)
    kept = stitcher.finalize()
    with Stitcher(locs) as stitcher:
        stitcher.push({"a": values}, locs)
    stitcher.finalize().save("saved.zarr")
    for name in ("map.zarr", "saved.zarr"):
        loaded = FullBatch.load(name)
        np.testing.assert_array_equal(loaded.outputs["a"][...], kept.outputs["a"][...])
        assert loaded.written.all()
    with pytest.raises(ResultExistsError):
        Stitcher(locs, store="map.zarr")


@pytest.mark.usefixtures("tiny_chunks")
def test_map_with_storage_options():
    """Chunks, shards and compressors are zarr's, as for rows."""
    from zarr.codecs import ZstdCodec  # noqa: PLC0415  only here

    locs = raster((16, 16), (4, 4), (2, 2))
    options = {"chunks": (4, 8, 1), "compressors": ZstdCodec(), "memory_threshold": 0, "fill_value": np.nan}
    with Stitcher(locs[:20], output_shape=(16, 16), **options) as stitcher:
        stitcher.push(np.ones((20, 4, 4, 1), np.float32), locs[:20])
    maps = stitcher.finalize()
    assert maps.outputs[0].chunks == (4, 8, 1)
    assert np.isnan(maps.outputs[0][...]).sum() == (maps.coverage() == 0).sum() > 0


@pytest.mark.parametrize(
    ("locs", "options", "error", "message"),
    [
        ([[0, 0, 4]], {}, LocationError, "3 columns"),
        ([[0, 0, 4, 0]], {}, LocationError, "row 0 of full_output_locs.*behind its start"),
        ([[4, 0, 0, 4]], {}, LocationError, "behind its start"),
        ([[0, 0, 2**62, 4]], {}, LocationError, "2\\*\\*61"),
        (LOCS, {"origin": [100, 0]}, OptionError, "nothing lies behind origin"),
        (LOCS, {"origin": [0, 0, 0]}, OptionError, "origin"),
        (LOCS, {"origin": 3}, OptionError, "origin"),
        (LOCS, {"output_shape": (0, 4)}, OptionError, "spatial shape"),
        (LOCS, {"output_shape": (4.5, 4)}, OptionError, "output_shape"),
        (LOCS, {"blend": "mean"}, OptionError, "average, gaussian, hann, max, min, last, nearest, vote"),
        (LOCS, {"blend": np.zeros((4, 4))}, OptionError, "zero"),
        (LOCS, {"blend": -np.ones((4, 4))}, OptionError, "negative"),
        (LOCS, {"blend": [[1, np.nan]]}, OptionError, "NaN"),
        (LOCS, {"blend": object()}, OptionError, "object"),
        (LOCS, {"on_band": 3}, OptionError, "on_band"),
        (LOCS, {"memory_threshold": 200}, OptionError, "memory_threshold"),
        (LOCS, {"memory_limit": "much"}, OptionError, "memory_limit"),
        (np.concatenate([LOCS, LOCS[:1]]), {}, DuplicateLocationError, "row"),
    ],
)
def test_wrong_construction_is_refused(locs, options, error, message):
    """What is wrong is found before anything is pushed, and named."""
    with pytest.raises(error, match=message):
        Stitcher(locs, **options)


@pytest.mark.parametrize(
    ("options", "heads", "locs", "error", "message"),
    [
        ({}, ONES, [[1, 0, 5, 4]], UnknownLocationError, "row 0"),
        ({}, ONES, LOCS[:2], HeadError, "rows differ"),
        ({}, np.ones((1, 4)), LOCS[:1], HeadError, "heads=\\[...\\]"),
        ({}, np.ones((1, 4, 4, 1, 1)), LOCS[:1], HeadError, "one more for channels"),
        ({}, np.ones((1, 3, 4)), LOCS[:1], LocationError, "larger than the patches"),
        ({}, (ONES, np.ones((1, 8, 8))), LOCS[:1], LocationError, "head 1 has patches of \\(8, 8\\)"),
        ({}, (), LOCS[:1], HeadError, "no heads"),
        ({"blend": np.ones((3, 4))}, ONES, LOCS[:1], OptionError, "shape"),
        ({"blend": "max"}, ONES * 1j, LOCS[:1], HeadError, "complex"),
        ({"dtype": "u1"}, ONES / 2, LOCS[:1], HeadValueError, "the value 0.5 in row 0"),
        ({"dtype": "f4"}, ONES * 1j, LOCS[:1], HeadDtypeError, "take its parts"),
        ({"fill_value": np.nan}, np.ones((1, 4, 4), int), LOCS[:1], OptionError, "fill_value"),
        ({"dtype": {"b": "f4"}}, {"a": ONES}, LOCS[:1], OptionError, "'b'"),
        ({"chunks": (0, 4)}, ONES, LOCS[:1], OptionError, "chunks"),
        ({}, np.ones((1, 4, 4), np.longdouble), LOCS[:1], HeadDtypeError, "float64"),
        ({}, np.array([[["a"]]]), LOCS[:1], HeadDtypeError, "dtype"),
    ],
)
def test_refused_push_changes_nothing(options, heads, locs, error, message):
    """It raises a typed error, and the stitcher goes on as if it had not been called."""
    stitcher = Stitcher(LOCS, **options)
    with pytest.raises(error, match=message):
        stitcher.push(heads, locs)
    assert not stitcher.written.any()
    assert stitcher.open_nbytes == 0
    if not options:
        stitcher.push(ONES, LOCS[:1])
        assert stitcher.finalize().outputs[0].sum() == 16
    stitcher.close()


def test_later_pushes_are_like_the_first():
    """Another dtype, shape, name, or a box for the second time is refused."""
    stitcher = Stitcher(LOCS)
    stitcher.push({"a": ONES}, LOCS[:1])
    for heads, locs, error in [
        ({"a": ONES.astype("f8")}, LOCS[1:2], HeadDtypeError),
        ({"a": ONES[..., None]}, LOCS[1:2], HeadError),
        ({"b": ONES}, LOCS[1:2], HeadError),
        ({"a": ONES}, LOCS[:1], DuplicateLocationError),
    ]:
        with pytest.raises(error):
            stitcher.push(heads, locs)
    assert stitcher.written.sum() == 1
    assert stitcher.missing_locs.tolist() == LOCS[1:].tolist()
    assert stitcher.finalize().outputs["a"].sum() == 16


def test_lifecycle():
    """As the accumulator's: finalize is idempotent, close ends without maps, a dropped one warns."""
    with pytest.raises(NothingPushedError), Stitcher(LOCS) as stitcher:
        pass
    assert "closed" in repr(stitcher)
    stitcher = Stitcher(LOCS)
    stitcher.push(ONES, LOCS[:1])
    maps = stitcher.finalize()
    assert stitcher.finalize() is maps
    assert "StitchedMap" in repr(maps)
    assert maps.nbytes == 256
    with pytest.raises(ClosedError, match="finalized"):
        stitcher.push(ONES, LOCS[1:2])
    stitcher.close()
    with pytest.raises(LocationError), Stitcher(LOCS) as stitcher:
        stitcher.push(ONES, [[0.5, 0, 4, 4]])
    with pytest.raises(ClosedError, match="closed"):
        stitcher.finalize()
    stitcher = Stitcher(LOCS)
    stitcher.push(ONES, LOCS[:1])
    with pytest.warns(ResourceWarning, match="Stitcher"):
        del stitcher


@pytest.mark.parametrize("heads", [["c"], [], ["a", "a"], [0]])
def test_unknown_heads_are_refused(heads):
    """A head that is not there, none, or one twice."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push({"a": ONES}, LOCS[:1])
    with pytest.raises(OptionError, match="choose from"):
        stitch(accumulator.finalize(), heads=heads)


def test_maps_become_files_that_others_open():
    """OME-Zarr with all heads, where the region lies in the slide; OME-TIFF with one of them."""
    locs = np.add(raster((40, 60), (20, 20), (10, 10)), [100, 200, 100, 200])
    values = np.random.default_rng(0).random((len(locs), 20, 20, 2), dtype=np.float32)
    with Stitcher(locs, origin=[100, 200]) as stitcher:
        stitcher.push({"p": values, "q": values[..., 0]}, locs)
    maps = stitcher.finalize()
    maps.save_ome_zarr("map.ome.zarr", pixel_size=0.5, channel_names={"p": ["a", "b"]})
    group = zarr.open_group("map.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["p/s0"][:], np.moveaxis(maps.outputs["p"], -1, 0))
    (scales,) = group["q"].attrs["ome"]["multiscales"]
    shift = scales["datasets"][0]["coordinateTransformations"][1]
    assert shift == {"type": "translation", "translation": [100.0, 50.0]}
    maps.save_ome_tiff("map.ome.tif", head="p", pixel_size=[0.5, 0.25])
    with tifffile.TiffFile("map.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), np.moveaxis(maps.outputs["p"], -1, 0))
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata
        assert 'PhysicalSizeY="0.25"' in file.ome_metadata
    with pytest.raises(OptionError, match="choose one"):
        maps.save_ome_tiff("other.ome.tif")


def test_notebooks_and_plots_show_maps():
    """Heads, coverage and place in a table; a panel a channel, where the map lies in its slide."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    with Stitcher(LOCS, origin=[-8, -4], output_shape=(16, 20)) as stitcher:
        stitcher.push({"p<q": np.ones((2, 4, 4, 2), np.float32)}, LOCS[:2])
    maps = stitcher.finalize()
    assert "p&lt;q" in maps._repr_html_()
    assert "2 of 4" in maps._repr_html_()
    panels = maps.plot()
    assert len(panels) == 2
    assert panels[0].get_xlim() == (-8, 12)
    assert len(maps.plot("p<q", channel=1)) == 1
    with pytest.raises(OptionError, match="choose one"):
        maps.plot("r")
    matplotlib.pyplot.close("all")
    with Stitcher([[0, 0, 0, 2, 2, 2]]) as stitcher:
        stitcher.push(np.ones((1, 2, 2, 2)), [[0, 0, 0, 2, 2, 2]])
    with pytest.raises(OptionError, match="3 spatial axes"):
        stitcher.finalize().plot()


def test_progress_counts_patches(capsys):
    """The bar shows patches and open bands, and is silent by default."""
    with Stitcher(LOCS, progress=True) as stitcher:
        stitcher.push(np.ones((3, 4, 4), np.float32), LOCS[:3])
    assert "3/4" in capsys.readouterr().err
    with Stitcher(LOCS) as stitcher:
        stitcher.push(np.ones((3, 4, 4), np.float32), LOCS[:3])
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_other_processes_are_refused():
    """A forked child cannot push or finalize, and does not hang; copies are refused, too."""
    script = """
import os, sys, warnings
import numpy as np
from accumulator import Stitcher
from accumulator.exceptions import ProcessError
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
locs = np.array([[0, y, 1024, y + 1024] for y in (0, 512)])
stitcher = Stitcher(locs)
stitcher.push(np.ones((1, 1024, 1024), np.float32), locs[:1])
if os.fork() == 0:
    for call in (stitcher.finalize, lambda: stitcher.push(np.ones((1, 1024, 1024), np.float32), locs[1:])):
        try:
            call()
        except ProcessError:
            continue
        os._exit(1)
    del stitcher, call
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]), stitcher.finalize().outputs[0].sum() == 2**20)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["0", "True"]
    stitcher = Stitcher(LOCS)
    for copying in (copy.copy, pickle.dumps):
        with pytest.raises(ProcessError):
            copying(stitcher)
    stitcher.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dropped_in_a_cycle_with_a_bar(capsys):
    """What a closure holds is collected all the same, threads and bar end."""
    holder = []
    holder.append(Stitcher(LOCS, progress=True, on_band=partial(print, holder)))
    holder[0].push(ONES, LOCS[:1])
    del holder
    gc.collect()
    assert "1/4" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["in order", "columns"])
@pytest.mark.parametrize("where", ["RAM", "disk"])
def test_cut_out_reads_the_rows_that_touch_it(monkeypatch, tuned, order, where):
    """Of a slide of 10,000 patches a hundredth reads at most three: time follows the cut-out."""
    tuned(chunk_nbytes=16 * 8 * 8 * 4, read_gap_nbytes=0)
    locs = raster((404, 404), (8, 8), (4, 4))
    assert len(locs) == 100 * 100
    if order == "columns":
        locs = locs[np.lexsort((locs[:, 1], locs[:, 0]))]
    values = np.random.default_rng(0).random((len(locs), 8, 8), dtype=np.float32)
    missing = np.arange(len(locs)) % 7 == 3
    accumulator = FullBatchAccumulator(locs, memory_threshold=100 if where == "RAM" else 0)
    with accumulator:
        accumulator.push(values[~missing], locs[~missing])
    batch = accumulator.finalize()
    whole = stitch(batch)
    reads, real = [], _result.read

    def read(array, rows):
        reads.append(int(np.ptp(rows)) + 1 if len(rows) else 0)
        return real(array, rows)

    monkeypatch.setattr(_result, "read", read)
    part = stitch(batch, origin=[120, 200], output_shape=(40, 40))
    assert sum(reads) <= 3 * len(locs) / 100
    assert (sum(reads) > 0) == (where == "disk")
    np.testing.assert_array_equal(part.outputs[0], whole.outputs[0][200:240, 120:160])
    np.testing.assert_array_equal(part.coverage(), whole.coverage()[200:240, 120:160])
    np.testing.assert_array_equal(part.written, batch.written)
    assert part.n_outside == len(locs) - 11 * 11


@pytest.mark.parametrize(
    ("start", "options"), [(4, {}), (4, {"output_shape": (8, 5)}), (0, {}), (0, {"output_shape": (8, 2)})]
)
def test_boxes_that_are_all_cut_tell_no_end(start, options):
    """Where none is whole, or one begins and ends with the map, nobody knows which part of a patch it is."""
    locs = np.array([[start, 0, start + 2, 4], [start, 4, start + 2, 8]])
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(np.ones((2, 4, 4)), locs)
    with pytest.raises(LocationError, match="smaller than the patches"):
        stitch(accumulator.finalize(), **options)

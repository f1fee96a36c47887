"""Where patches lie is said, never guessed: what is said gives the right map, what is not is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator.exceptions import LocationError, OptionError


def grid(size, n):
    """Return the boxes of n x n tiles side by side."""
    return np.array(
        [[size * x, size * y, size * (x + 1), size * (y + 1)] for y in range(n) for x in range(n)]
    )


def streamed(locs, patches, **options):
    """Stitch patches as they come."""
    with Stitcher(locs, **options) as stitcher:
        for row in range(len(locs)):
            stitcher.push(patches[row : row + 1], locs[row : row + 1])
    return stitcher.finalize()


def at_once(locs, patches, **options):
    """Stitch a result."""
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(patches, locs)
    return stitch(accumulator.finalize(), **options)


both = pytest.mark.parametrize("made", [streamed, at_once])


@both
def test_channels_first_is_refused_until_it_is_said(made):
    """More channels than pixels: no map of garbage, and the right one with a word."""
    locs, patches = grid(16, 2), np.random.default_rng(0).random((4, 768, 16, 16), np.float32)
    with pytest.raises(LocationError, match=r"\(768, 16, 16\).*channels_first=True"):
        made(locs, patches)
    maps = made(locs, patches, channels_first=True)
    assert maps.outputs[0].shape == (32, 32, 768)
    np.testing.assert_array_equal(maps.outputs[0][16:, :16], np.moveaxis(patches[2], 0, -1))
    np.testing.assert_array_equal(maps.outputs[0][:16, 16:], np.moveaxis(patches[1], 0, -1))


@both
def test_few_channels_first_are_refused_too(made):
    """Boxes larger than what looks like the height."""
    with pytest.raises(LocationError, match=r"larger than the patches.*channels_first=True"):
        made(grid(16, 2), np.ones((4, 3, 16, 16)))
    with pytest.raises(LocationError, match="channels_first=False"):
        made(grid(16, 2), np.ones((4, 16, 16, 3)), channels_first=True)


def test_channels_first_head_by_head_and_in_volumes():
    """A dict says it for one head, ``(n, C, D, H, W)`` is a volume, and heads without channels stay so."""
    locs, rng = grid(4, 2), np.random.default_rng(0)
    heads = {"a": rng.random((4, 3, 4, 4)), "b": rng.random((4, 4, 4, 3)), "c": rng.random((4, 4, 4))}
    with Stitcher(locs, channels_first={"a": True}) as stitcher:
        stitcher.push(heads, locs)
    maps = stitcher.finalize().outputs
    np.testing.assert_array_equal(maps["a"][4:, :4], np.moveaxis(heads["a"][2], 0, -1))
    np.testing.assert_array_equal(maps["b"][4:, :4], heads["b"][2])
    assert [maps[name].shape for name in "abc"] == [(8, 8, 3), (8, 8, 3), (8, 8)]
    locs = np.array([[0, 0, 0, 5, 4, 3], [0, 0, 3, 5, 4, 6]])
    volume = rng.random((2, 2, 3, 4, 5))
    with Stitcher(locs, channels_first=True) as stitcher:
        stitcher.push((volume, volume[:, 0]), locs)
    whole, plain = stitcher.finalize().outputs
    np.testing.assert_array_equal(whole, np.concatenate(np.moveaxis(volume, 1, -1)))
    np.testing.assert_array_equal(plain, whole[..., 0])


@both
@pytest.mark.parametrize("crop", ["center", 2, [2, 2]])
def test_halo_is_refused_until_it_is_said(made, crop):
    """The middle of each patch is its box: 1 everywhere, and no mean of what surrounds it."""
    locs, patches = grid(4, 3), np.full((9, 8, 8), -1.0)
    patches[:, 2:6, 2:6] = 1
    with pytest.raises(LocationError, match=r"\(8, 8\).*\[0, 0, 4, 4\].*crop="):
        made(locs, patches)
    assert (made(locs, patches, crop=crop).outputs[0] == 1).all()


def test_halo_of_hovernet():
    """Patches of 256 whose middle 164 are their boxes, three heads of different channels."""
    locs, rng = grid(164, 2), np.random.default_rng(0)
    heads = {name: rng.random((4, 256, 256, n), np.float32) for name, n in (("np", 2), ("hv", 2), ("tp", 5))}
    with Stitcher(locs, crop="center") as stitcher:
        stitcher.push(heads, locs)
    for name, values in heads.items():
        np.testing.assert_array_equal(
            stitcher.finalize().outputs[name][164:, :164], values[2, 46:210, 46:210]
        )


@both
def test_tile_cut_where_the_maps_end_is_the_first_part_of_its_patch(made):
    """The same with a halo: what lies behind the end is left out, on the right and below."""
    size, shape = 4, (6, 10)
    whole = np.random.default_rng(0).random((16, 16))
    locs = np.array(
        [[x, y, min(x + size, shape[1]), min(y + size, shape[0])] for y in (0, 4) for x in (0, 4, 8)]
    )
    plain = np.stack([whole[y : y + 4, x : x + 4] for x, y in locs[:, :2]])
    np.testing.assert_array_equal(made(locs, plain).outputs[0], whole[:6, :10])
    padded = np.pad(whole, 1, constant_values=np.nan)
    halo = np.stack([padded[y : y + 6, x : x + 6] for x, y in locs[:, :2]])
    for crop in (1, "center"):
        np.testing.assert_array_equal(made(locs, halo, crop=crop).outputs[0], whole[:6, :10])


@both
@pytest.mark.parametrize(
    ("locs", "options", "message"),
    [
        ([[0, 0, 3, 4], [3, 0, 7, 4]], {}, "cut on the left"),
        ([[0, 0, 4, 3], [0, 3, 4, 7]], {}, "cut on the left or at the top"),
        ([[0, 0, 3, 3]], {}, "image smaller than its patch"),
        ([[0, 0, 4, 4], [4, 0, 7, 4], [8, 0, 12, 4]], {}, "only a box that ends with the maps"),
        ([[0, 0, 4, 4], [4, 0, 7, 4]], {"output_shape": (4, 8)}, r"which are \(4, 8\)"),
        ([[8, 0, 11, 4]], {}, "output_shape= if they were cut where the maps end"),
        ([[0, 0, 3, 4], [4, 0, 7, 4]], {"crop": "center"}, "middle.*crop="),
        ([[4, 0, 6, 4], [4, 4, 6, 8]], {"crop": "center"}, "nobody knows what the middle is"),
        ([[0, 0, 4, 4], [4, 0, 6, 4]], {"crop": 1}, "larger than the patches.*crop leaves"),
        ([[0, 0, 8, 8]], {}, r"larger than the patches.*scale=0.5"),
        ([[0, 0, 8, 4]], {}, r"larger than the patches.*scale=\[0.5, 1.0\]"),
    ],
)
def test_boxes_that_are_not_their_patches_are_refused_with_what_may_be_meant(made, locs, options, message):
    """No part of a patch is taken on a guess; a word makes the first part of it the box."""
    locs = np.array(locs)
    with pytest.raises(LocationError, match=message) as error:
        made(locs, np.ones((len(locs), 4, 4)), **options)
    assert "(4, 4)" in str(error.value)
    if "smaller" in str(error.value):
        assert made(locs, np.ones((len(locs), 4, 4)), **{**options, "crop": "start"}).outputs[0].any()


def test_refused_geometry_leaves_the_stitcher_as_it_was():
    """Nothing is written, and the right patches may still come."""
    with Stitcher(grid(4, 2), store="map.zarr") as stitcher:
        with pytest.raises(LocationError):
            stitcher.push(np.ones((4, 8, 8)), grid(4, 2))
        assert not list(Path("map.zarr").rglob("*.json"))
        stitcher.push(np.ones((4, 4, 4)), grid(4, 2))
    assert (stitcher.finalize().outputs[0][:] == 1).all()


@both
def test_box_outside_of_maps_that_nobody_placed_is_refused(made):
    """It is named, and origin="min" shows it."""
    locs, patches = np.array([[-4, 0, 0, 4], [0, 0, 4, 4]]), np.arange(32.0).reshape(2, 4, 4)
    with pytest.raises(LocationError, match=r'row 0 of .*output_locs.*\[-4, 0, 0, 4\].*origin="min"'):
        made(locs, patches)
    maps = made(locs, patches, origin="min")
    np.testing.assert_array_equal(maps.outputs[0], np.hstack(patches))
    assert maps.origin == (-4, 0)
    assert maps.n_outside == 0
    reaching = made(locs + [2, 0, 2, 0], patches)  # noqa: RUF005  locations that reach over the edge
    np.testing.assert_array_equal(reaching.outputs[0], np.hstack(patches)[:, 2:])


@both
def test_boxes_left_out_of_a_region_are_counted(made, caplog):
    """With output_shape or origin they are left out; maps and log say how many."""
    locs, patches = grid(4, 4), np.ones((16, 4, 4))
    with caplog.at_level(logging.INFO, "accumulator"):
        maps = made(locs, patches, origin=[4, 4], output_shape=(6, 4))
    assert maps.n_outside == 14
    assert maps.n_stitched == 2
    assert "14 boxes lie wholly outside" in caplog.text
    assert made(locs, patches, origin=[8, 0]).n_outside == 8
    assert made(locs, patches, output_shape=(16, 4)).n_outside == 12


def test_maps_far_larger_than_their_boxes_are_not_begun_unasked():
    """Metres of a map projection, or a few patches far out: both numbers and the remedy, at once."""
    metres = grid(256, 4) + [600_000, 4_649_776] * 2
    with pytest.raises(LocationError, match=r'\(4650800, 601024\).*1\.049e\+06.*origin="min".*output_shape='):
        Stitcher(metres, memory_threshold=0, save_path="spill")
    with pytest.raises(LocationError, match=r"origin=\"min\""):
        Stitcher(grid(256, 2) + 100_000)
    assert list(Path().iterdir()) == []
    with Stitcher(metres, origin="min") as stitcher:
        stitcher.push(np.ones((16, 256, 256), np.uint8), metres)
    assert stitcher.finalize().outputs[0].shape == (1024, 1024)
    assert stitcher.finalize().origin == (600_000, 4_649_776)
    with Stitcher([[99_990, 0, 100_000, 1]], output_shape=(1, 100_000)) as stitcher:
        stitcher.push(np.ones((1, 1, 10)), [[99_990, 0, 100_000, 1]])
    assert stitcher.finalize().outputs[0].shape == (1, 100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels_first": 1}, "channels_first"),
        ({"channels_first": {"a": "yes"}}, "channels_first"),
        ({"crop": "middle"}, "crop"),
        ({"crop": -1}, "crop"),
        ({"crop": [1, 2, 3]}, "crop"),
        ({"crop": 1.5}, "crop"),
        ({"crop": True}, "crop"),
        ({"origin": "max"}, "origin"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    """Before anything is pushed."""
    with pytest.raises(OptionError, match=message):
        Stitcher(grid(4, 2), **options)


def test_options_for_heads_that_there_are_not_are_refused():
    """At the first push, which changes nothing."""
    for options in ({"crop": {"b": 1}}, {"channels_first": {1: True}}):
        stitcher = Stitcher(grid(4, 2), **options)
        with pytest.raises(OptionError, match=f"{next(iter(options))} has an entry for head"):
            stitcher.push({"a": np.ones((4, 4, 4))}, grid(4, 2))
        stitcher.close()
    stitcher = Stitcher(grid(4, 2), crop=2)
    with pytest.raises(OptionError, match="leaves nothing"):
        stitcher.push({"a": np.ones((4, 4, 4))}, grid(4, 2))
    stitcher.close()

"""Where patches lie is said, never guessed: what is said gives the right map, what is not is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator._stitching.bands import Bands
from accumulator.exceptions import ClosedError, LocationError, OptionError


def grid(size, n):
    """Return the boxes of n x n tiles side by side."""
    return np.array(
        [[size * x, size * y, size * (x + 1), size * (y + 1)] for y in range(n) for x in range(n)]
    )


def streamed(locs, patches, **options):
    """Stitch patches as they come."""
    with Stitcher(locs, **options) as stitcher:
        for row in range(len(locs)):
            some = slice(row, row + 1)
            is_dict = isinstance(patches, dict)
            batch = {name: head[some] for name, head in patches.items()} if is_dict else patches[some]
            stitcher.push(batch, locs[some])
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


def test_channels_do_not_pass_for_a_height_with_a_halo():
    """The middle of 768 channels is no box; margins that differ are numbers."""
    locs = grid(164, 2)
    with pytest.raises(LocationError, match=r"\(604, 92\) pixels more.*crop=.*channels_first="):
        streamed(locs, np.ones((4, 768, 256, 3), np.uint8), crop="center")
    patches = np.zeros((4, 8, 6, 1))
    patches[:, 2:6, 1:5] = 1
    assert (streamed(grid(4, 2), patches, crop=[1, 2]).outputs[0] == 1).all()


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


@both
def test_boxes_of_another_level_have_a_scale(made):
    """Boxes of the slide's level 0, patches of level 2: refused until it is said; shape and origin follow."""
    locs, patches = grid(64, 3), np.random.default_rng(0).random((9, 16, 16))
    with pytest.raises(LocationError, match=r"larger than the patches.*scale=0.25"):
        made(locs, patches)
    maps = made(locs, patches, scale=1 / 4)
    assert maps.outputs[0].shape == (48, 48)
    np.testing.assert_array_equal(maps.outputs[0][32:, :16], patches[6])
    assert maps.scale == [(0.25, 0.25)]
    region = made(locs, patches, scale=1 / 4, origin=[64, 0], output_shape=(16, 32))
    np.testing.assert_array_equal(region.outputs[0], maps.outputs[0][:16, 16:])
    assert region.origin == (64, 0)
    assert region.n_outside == 7
    uneven = made(locs, patches[:, :, ::2], scale=[1 / 8, 1 / 4])
    assert uneven.outputs[0].shape == (48, 24)


@both
def test_factors_of_slides_are_rounded_to_the_nearest_pixel(made):
    """A level that is 4.0001 times as coarse has tiles of 256 pixels that meet, or overlap by a pixel."""
    size = 1024
    locs, patches = grid(size, 5) + 3_000_000, np.ones((25, 256, 256), np.uint8)
    maps = made(locs, patches, scale=1 / 4.0001, origin="min")
    first = int(3_000_000 / 4.0001 + 0.5)
    starts = [int((3_000_000 + size * n) / 4.0001 + 0.5) - first for n in range(5)]
    counts = np.zeros(maps.outputs[0].shape[0], int)
    for start in starts:
        counts[start : start + 256] += 1
    np.testing.assert_array_equal(maps.coverage(), np.outer(counts, counts))
    assert (maps.outputs[0] == 1).all()


@both
def test_heads_of_different_scale_make_maps_of_different_shape(made):
    """Each has the right one, in RAM or on disk, with a coverage of its own."""
    locs, rng = grid(8, 3), np.random.default_rng(0)
    heads = {"fine": rng.random((9, 8, 8)), "coarse": rng.random((9, 6, 6, 2)), "too": rng.random((9, 8, 8))}
    options = {"scale": {"coarse": 1 / 2}, "crop": {"coarse": 1}, "fill_value": {"coarse": 7}}
    for where in ({}, {"memory_threshold": 0}, {"memory_limit": "2 kB"}):
        maps = made(locs, heads, **options, **where)
        assert list(maps.outputs) == ["fine", "coarse", "too"]
        assert [array.shape for array in maps.outputs.values()] == [(24, 24), (12, 12, 2), (24, 24)]
        np.testing.assert_array_equal(maps.outputs["fine"][16:, 8:16], heads["fine"][7])
        np.testing.assert_array_equal(maps.outputs["too"][:8, :8], heads["too"][0])
        np.testing.assert_array_equal(maps.outputs["coarse"][8:, 4:8], heads["coarse"][7, 1:-1, 1:-1])
        assert maps.coverage(head="coarse").shape == (12, 12)
        assert maps.scale == {"fine": (1, 1), "coarse": (0.5, 0.5), "too": (1, 1)}
        with pytest.raises(OptionError, match="choose one of the maps"):
            maps.coverage()
        maps.close()
    with pytest.raises(OptionError, match=r"output_shape.*scales.*dict by head"):
        made(locs, heads, **options, output_shape=(8, 8))
    shapes = {"fine": (8, 16), "coarse": (5, 4), "too": (8, 16)}
    maps = made(locs, heads, **options, output_shape=shapes)
    assert maps.outputs["coarse"].shape == (5, 4, 2)
    assert maps.n_outside == 6
    assert maps.n_stitched == 3


def test_bands_of_different_shape_are_told_by_name():
    """A dict has the heads whose rows they are; a list could not tell, and is refused."""
    locs, heads = grid(8, 2), {"a": np.ones((4, 8, 8)), "b": np.ones((4, 4, 4))}
    told = []
    with Stitcher(
        locs, scale={"b": 1 / 2}, on_band=lambda rows, maps: told.append((*maps, rows.stop))
    ) as maps:
        maps.push(heads, locs)
    assert sorted(told) == [("a", 16), ("b", 8)]
    stitcher = Stitcher(locs, scale={1: 1 / 2}, on_band=print)
    with pytest.raises(OptionError, match="named heads"):
        stitcher.push(list(heads.values()), locs)
    stitcher.close()


def test_interrupt_between_maps_of_different_shape_is_told(monkeypatch):
    """What one has taken cannot be taken out again: nothing goes on as if it were right."""
    locs, heads = grid(8, 2), {"a": np.ones((1, 8, 8)), "b": np.ones((1, 4, 4))}
    stitcher = Stitcher(locs, scale={"b": 1 / 2})
    stitcher.push(heads, locs[:1])
    add = Bands.add

    def interrupt(bands, push):
        if bands.grid.shape == (8, 8):
            raise KeyboardInterrupt
        add(bands, push)

    monkeypatch.setattr(Bands, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stitcher.push(heads, locs[1:2])
    for call in (lambda: stitcher.push(heads, locs[2:3]), stitcher.finalize):
        with pytest.raises(ClosedError, match="half-way"):
            call()
    stitcher.close()


@both
@pytest.mark.parametrize("letters", ["xy", "xyz"])
def test_columns_in_the_order_of_the_array(made, letters):
    """Boxes of NumPy, or torchio's i, j, k: every pixel is right once it is said."""
    n = len(letters)
    starts = np.stack(np.meshgrid(*[range(0, 12, 4)] * n, indexing="ij"), -1).reshape(-1, n)
    locs = np.hstack([starts, starts + 4])
    whole = np.random.default_rng(0).random((12,) * n)
    patches = np.stack([whole[tuple(slice(a, a + 4) for a in start)] for start in starts])
    maps = made(locs, patches, axes=letters[::-1])
    np.testing.assert_array_equal(maps.outputs[0], whole)
    np.testing.assert_array_equal(made(locs, patches, axes=letters).outputs[0], turned(whole, patches, locs))
    part = made(locs, patches, axes=letters[::-1], origin=[4, *[0] * (n - 1)])
    np.testing.assert_array_equal(part.outputs[0], whole[..., 4:])
    assert part.origin == (4, *[0] * (n - 1))


def turned(whole, patches, locs):
    """Return what patches make whose boxes are in the order of axes that is told."""
    made = np.empty_like(whole)
    for patch, loc in zip(patches, locs, strict=True):
        made[tuple(slice(a, a + 4) for a in loc[: whole.ndim][::-1])] = patch
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale"),
        ({"scale": [1, 2, 3]}, "scale"),
        ({"scale": "1/4"}, "scale"),
        ({"scale": 10**400}, "scale"),
        ({"scale": {"a": np.nan}}, "scale"),
        ({"axes": "xx"}, "axes"),
        ({"axes": "zyx"}, 'axes is \'zyx\'.*"xy" or "yx"'),
        ({"axes": 1}, "axes"),
        ({"output_shape": {"a": (0, 4)}}, "spatial shape"),
    ],
)
def test_scales_and_axes_that_mean_nothing_are_refused(options, message):
    """Before anything is pushed."""
    with pytest.raises(OptionError, match=message):
        Stitcher(grid(4, 2), **options)


def test_numbers_of_no_axis_and_beyond_all_memory_are_numbers():
    """A scale that was read from an array, and a limit that no machine has."""
    made = [
        streamed([[0, 0, 8, 8]], np.ones((1, 4, 4)), scale=scale, memory_limit=limit)
        for scale, limit in [(0.5, None), (np.array(0.5), 10**400), (np.float32(0.5), "1" + "0" * 400)]
    ]
    assert [maps.outputs[0].shape for maps in made] == [(4, 4)] * 3


def test_picture_of_maps_has_x_to_the_right():
    """Whatever order the columns of locations have."""
    locs = np.array([[0, 0, 4, 4], [0, 4, 4, 8], [0, 8, 4, 12]])
    maps = streamed(locs, np.ones((3, 4, 4)), axes="yx")
    turned = streamed(locs[:, [1, 0, 3, 2]], np.ones((3, 4, 4)))
    assert maps._repr_html_() == turned._repr_html_()
    assert maps.output_locs.tolist() == locs.tolist()


def test_middle_of_a_patch_whose_box_is_the_whole_map():
    """A box that begins and ends with the map was cut on no side, or nobody could tell: it is the middle."""
    patches = np.arange(64.0).reshape(1, 8, 8)
    with Stitcher([[0, 0, 4, 4]], crop="center") as stitcher:
        stitcher.push(patches, [[0, 0, 4, 4]])
    np.testing.assert_array_equal(stitcher.finalize().outputs[0], patches[0, 2:6, 2:6])

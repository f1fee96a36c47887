"""Lists of boxes: each is the one that somebody makes box by box, whatever shape, stride, border and mask."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator, Stitcher, grid_locations
from accumulator._inputs import tuning
from accumulator.exceptions import MemoryLimitError, OptionError


def starts_of(length, size, step, border):
    """Return where boxes start on an axis: one step further until the end is reached."""
    starts = [0]
    while starts[-1] + size < length:
        starts.append(starts[-1] + step)
    if border == "shift":
        starts[-1] = length - size
    return starts


def grid_of(shape, patch, stride, border="shift"):
    """Return the boxes, as pairs of starts and ends in the order of the array's axes."""
    axes = [starts_of(*each, border) for each in zip(shape, patch, stride, strict=True)]
    return [
        (start, tuple(a + b for a, b in zip(start, patch, strict=True))) for start in itertools.product(*axes)
    ]


def as_rows(boxes):
    """Return boxes as locations, x first."""
    return [[*start[::-1], *stop[::-1]] for start, stop in boxes]


def share_of(box, shape, mask):
    """Return which share of a box, as far as it lies in the image, lies under True, pixel by pixel."""
    inside, under = Fraction(1), Fraction(0)
    spans = [(a, min(b, length)) for a, b, length in zip(*box, shape, strict=True)]
    for begin, end in spans:
        inside *= end - begin
    for at in np.argwhere(mask):
        area = Fraction(1)
        for i, (begin, end), length, n in zip(at.tolist(), spans, shape, mask.shape, strict=True):
            first, last = Fraction(i * length, n), Fraction((i + 1) * length, n)
            area *= max(Fraction(0), min(last, end) - max(first, begin))
        under += area
    return under / inside


@st.composite
def grids(draw, most_axes=3, longest=12):
    """Draw shape, patch, stride and border: no stride leaves gaps, and what is shifted fits the image."""
    border = draw(st.sampled_from(["shift", "over"]))
    shape = draw(st.lists(st.integers(1, longest), min_size=1, max_size=most_axes))
    patch = [draw(st.integers(1, n if border == "shift" else n + 3)) for n in shape]
    return tuple(shape), tuple(patch), tuple(draw(st.integers(1, n)) for n in patch), border


@given(grids())
def test_boxes_are_those_of_a_loop_and_cover_every_pixel(grid):
    """They are in raster order, no two the same, as large as the patch, and within the image if shifted."""
    shape, patch, stride, border = grid
    locs = grid_locations(shape, patch, stride=stride, border=border)
    assert locs.dtype == np.int64
    assert locs.shape == (len(locs), 2 * len(shape))
    assert locs.tolist() == as_rows(grid_of(shape, patch, stride, border))
    starts, ends = np.hsplit(locs[:, ::-1], 2)[::-1]
    covered = np.zeros([n + p for n, p in zip(shape, patch, strict=True)], dtype=bool)
    for start, end in zip(starts, ends, strict=True):
        covered[*(slice(a, b) for a, b in zip(start, end, strict=True))] = True
    assert covered[*(slice(n) for n in shape)].all()
    in_order = list(map(tuple, starts.tolist()))
    assert in_order == sorted(set(in_order))
    if border == "shift":
        assert (ends.max(axis=0) == shape).all()


@given(grids(), st.data())
def test_a_mask_leaves_the_boxes_that_have_enough_of_it(grid, data):
    """Shares are exact at any scale of the mask, also where boxes reach over, and in parts of any size."""
    shape, patch, stride, border = grid
    scale = [data.draw(st.integers(1, 7)) for _ in shape]
    values = data.draw(st.lists(st.booleans(), min_size=math.prod(scale), max_size=math.prod(scale)))
    mask = np.array(values).reshape(scale)
    boxes = grid_of(shape, patch, stride, border)
    shares = [share_of(box, shape, mask) for box in boxes]
    least = data.draw(st.sampled_from([Fraction(0), Fraction(1), Fraction(1, 10), Fraction(5, 6), *shares]))
    expected = [box for box, share in zip(boxes, shares, strict=True) if share > 0 and share >= least]
    before = tuning.now
    tuning.now = attrs.evolve(before, mask_values=data.draw(st.sampled_from([1, 20, 2**20])))
    try:
        locs = grid_locations(
            shape, patch, stride=stride, border=border, mask=mask, min_mask_ratio=float(least)
        )
    finally:
        tuning.now = before
    assert locs.shape == (len(expected), 2 * len(shape))
    assert locs.tolist() == as_rows(expected)


@given(st.integers(2**30, 2**40), st.integers(2**30, 2**40), st.data())
def test_shares_are_exact_where_they_need_more_than_64_bits(height, width, data):
    """The mask of a huge image counts to the unit, too."""
    shape, patch = (height, width), (height // 2 + 1, width // 3 + 1)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=6, max_size=6))).reshape(3, 2)
    boxes = grid_of(shape, patch, patch)
    shares = [share_of(box, shape, mask) for box in boxes]
    least = float(data.draw(st.sampled_from([Fraction(0), *shares])))
    expected = [box for box, share in zip(boxes, shares, strict=True) if share and float(share) >= least]
    assert grid_locations(shape, patch, mask=mask, min_mask_ratio=least).tolist() == as_rows(expected)


def test_shares_are_rounded_once_between_53_and_64_bits():
    """A box that has just the share that was asked for is kept: only the quotient is rounded."""
    shape = (1_590_964_098, 1_590_964_095)
    patch = (shape[0] // 2 + 1, shape[1] // 3 + 1)
    mask = np.zeros((3, 2), dtype=bool)
    mask[2, 1] = True
    boxes = grid_of(shape, patch, patch)
    shares = [float(share_of(box, shape, mask)) for box in boxes]
    for least in filter(None, shares):
        expected = [box for box, share in zip(boxes, shares, strict=True) if share >= least]
        assert grid_locations(shape, patch, mask=mask, min_mask_ratio=least).tolist() == as_rows(expected)


def test_sums_over_a_mask_may_need_more_than_64_bits():
    """A box's share is right, although what the mask has before it is more than an int64 holds."""
    length, size = 2**33 + 1, 2**27
    mask = np.zeros((4, 4), dtype=bool)
    mask[3, 3] = True
    starts = starts_of(length, size, size, "shift")
    assert len(starts) == 65
    behind = [start for start in starts if 4 * start >= 3 * length]
    expected = [[x, y, x + size, y + size] for y in behind for x in behind]
    assert grid_locations((length, length), size, mask=mask, min_mask_ratio=1).tolist() == expected
    everywhere = grid_locations((length, length), size, mask=np.ones_like(mask), min_mask_ratio=1)
    np.testing.assert_array_equal(everywhere, grid_locations((length, length), size))


@pytest.mark.parametrize(
    ("options", "starts"),
    [
        ({}, [0, 10, 20, 30]),
        ({"overlap": 0}, [0, 10, 20, 30]),
        ({"overlap": 1}, [0, 9, 18, 27, 30]),
        ({"overlap": np.int8(1)}, [0, 9, 18, 27, 30]),
        ({"overlap": 9}, [*range(31)]),
        ({"overlap": 0.0}, [0, 10, 20, 30]),
        ({"overlap": 0.25}, [0, 7, 14, 21, 28, 30]),  # 2.5 pixels, rounded up
        ({"overlap": 0.8}, [*range(0, 31, 2)]),  # int(10 * (1 - 0.8)) would be 1
        ({"overlap": np.float32(0.8)}, [*range(0, 31, 2)]),
        ({"overlap": 0.3}, [*range(0, 29, 7), 30]),
        ({"overlap": 0.99}, [*range(31)]),
        ({"overlap": [0.5]}, [*range(0, 31, 5)]),
        ({"overlap": np.array([5])}, [*range(0, 31, 5)]),
        ({"stride": 5}, [*range(0, 31, 5)]),
        ({"stride": (7,)}, [*range(0, 29, 7), 30]),
        ({"stride": 7, "border": "over"}, [*range(0, 36, 7)]),
        ({"stride": 10, "border": "over"}, [0, 10, 20, 30]),
    ],
)
def test_overlap_is_pixels_or_a_share(options, starts):
    """A whole number is pixels, a float a share of the patch, whatever floats make of its product."""
    assert grid_locations((40,), 10, **options)[:, 0].tolist() == starts


def test_numbers_are_in_the_order_of_the_array_and_origin_and_locations_are_x_first():
    """One number an axis means the axes of the image; what comes out, and origin, is x before y before z."""
    locs = grid_locations((1, 4, 9), (1, 2, 3), overlap=(0, 1, 0.0), origin=[100, -20, 3])
    expected = [[x, y, 3, x + 3, y + 2, 4] for y in (-20, -19, -18) for x in (100, 103, 106)]
    assert locs.tolist() == expected
    assert grid_locations(np.array([1, 4, 9]), [1, 2, 3], stride=np.array([1, 1, 3])).tolist() == [
        [x, y, 0, x + 3, y + 2, 1] for y in (0, 1, 2) for x in (0, 3, 6)
    ]


def test_an_image_smaller_than_the_patch_has_one_box_that_reaches_over():
    """With border="over"; without it, it is refused, as torchio does."""
    assert grid_locations((5, 20), 8, border="over", overlap=2).tolist() == [
        [0, 0, 8, 8],
        [6, 0, 14, 8],
        [12, 0, 20, 8],
    ]
    with pytest.raises(OptionError, match=r"\(5, 20\).*less than the patch of \(8, 8\).*border=\"over\""):
        grid_locations((5, 20), 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": 10}, "shape is 10"),
        ({"shape": ()}, "shape is"),
        ({"shape": (10, 0)}, "shape is"),
        ({"shape": (10, 2.5)}, "shape is"),
        ({"shape": (10, True)}, "shape is"),
        ({"shape": (10, 2**62)}, "shape is"),
        ({"shape": (10, 10, 3)}, "less than the patch .* channels"),
        ({"shape": (10, 10, 3), "patch": (4, 4)}, "patch is .* without channels"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": 4.0}, "patch is 4.0"),
        ({"patch": True}, "patch is True"),
        ({"patch": "44"}, "patch is '44'"),
        ({"patch": None}, "patch is None"),
        ({"overlap": 4}, "overlap is 4: .*less than the patch"),
        ({"overlap": -1}, "overlap is -1"),
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"overlap": True}, "overlap is True"),
        ({"overlap": "half"}, "overlap is 'half'"),
        ({"overlap": (1, 1, 1)}, "overlap is"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"stride": (1, 5)}, r"stride is \(1, 5\), more than the patch of \(4, 4\).*gaps"),
        ({"stride": 4, "overlap": 0}, "overlap is 0 and stride is 4: give one"),
        ({"border": "cut"}, "border is 'cut'"),
        ({"border": ["over"]}, "border is"),
        ({"origin": 3}, "origin is 3"),
        ({"origin": (0, 0, 0)}, "origin is"),
        ({"mask": np.ones((5, 5))}, "mask has dtype float64.*mask > 0"),
        ({"mask": np.ones((5, 5), dtype=np.uint8)}, "mask has dtype uint8"),
        ({"mask": np.ones((5, 5, 1), dtype=bool)}, r"mask has shape \(5, 5, 1\)"),
        ({"mask": np.ones((5, 0), dtype=bool)}, r"mask has shape \(5, 0\)"),
        ({"mask": np.ma.ones((5, 5), dtype=bool)}, "mask is a masked array"),
        ({"min_mask_ratio": 0.5}, "there is no mask"),
        ({"mask": np.ones((5, 5), dtype=bool), "min_mask_ratio": 1.1}, "min_mask_ratio is 1.1"),
        ({"mask": np.ones((5, 5), dtype=bool), "min_mask_ratio": float("nan")}, "min_mask_ratio is nan"),
        ({"mask": np.ones((5, 5), dtype=bool), "min_mask_ratio": True}, "min_mask_ratio is True"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(arguments, message):
    """The culprit is named; none is taken for something else."""
    with pytest.raises(OptionError, match=message):
        grid_locations(**{"shape": (10, 10), "patch": 4} | arguments)


@pytest.mark.parametrize("masked", [False, True])
def test_a_list_that_memory_does_not_hold_is_refused(monkeypatch, masked):
    """Before it is made, also where a mask leaves only some boxes."""
    with pytest.raises(MemoryLimitError, match=r"999,490,065,025 boxes take .* larger stride"):
        grid_locations((10**6, 10**6), 256, stride=1, **({"mask": [[True]]} if masked else {}))
    monkeypatch.setattr("accumulator._core.memory._machine_left", lambda _: 100 * 32 - 1)
    mask = {"mask": np.ones((1, 1), dtype=bool)} if masked else {}
    with pytest.raises(MemoryLimitError, match="100 boxes take"):
        grid_locations((10, 10), 1, **mask)
    assert len(grid_locations((9, 11), 1, **mask)) == 99


def test_a_mask_without_anything_leaves_no_box():
    """A slide without tissue has an empty list of the right width and dtype, which the accumulator takes."""
    locs = grid_locations((100, 100), 10, mask=np.zeros((7, 7), dtype=bool))
    assert (locs.shape, locs.dtype) == ((0, 4), np.int64)
    with FullBatchAccumulator(locs, heads=[((2,), "float32")]) as accumulator:
        pass
    assert accumulator.finalize().outputs[0].shape == (0, 2)


@pytest.mark.parametrize("options", [{"overlap": 0.5}, {"stride": 5, "border": "over"}, {"overlap": 3}])
def test_patches_cut_there_make_the_image_again(options):
    """What is cut by the list, and padded where it reaches over, is stitched to the image, in its place."""
    image = np.random.default_rng(1).random((23, 31))
    locs = grid_locations(image.shape, (8, 9), **options, origin=[1000, 50])
    padded = np.pad(image, [(0, 8), (0, 9)])
    patches = np.array([padded[y - 50 : b - 50, x - 1000 : a - 1000] for x, y, a, b in locs])
    with Stitcher(locs, origin=[1000, 50], output_shape=image.shape, blend="hann") as stitcher:
        stitcher.push(patches, locs)
    np.testing.assert_allclose(stitcher.finalize().outputs[0], image, rtol=1e-12)


def test_boxes_are_those_that_monai_and_torchio_document():
    """`dense_patch_slices` and `GridSampler` move the last one in, `SlidingWindowSplitter` pads the image."""
    assert grid_locations((10,), 5, overlap=2).tolist() == [[0, 5], [3, 8], [5, 10]]  # GridSampler's example
    assert grid_locations((16,), 8, overlap=0.25).tolist() == [[0, 8], [6, 14], [8, 16]]
    assert grid_locations((16,), 8, overlap=0.25, border="over").tolist() == [[0, 8], [6, 14], [12, 20]]


@given(grids())
def test_boxes_are_those_of_monai_where_it_is_installed(grid):
    """Slice by slice, in the same order."""
    slices = pytest.importorskip("monai.data.utils", reason="a peer, only compared with")
    shape, patch, stride, _ = grid
    patch = tuple(map(min, patch, shape))
    stride = tuple(map(min, stride, patch))
    theirs = slices.dense_patch_slices(shape, patch, stride)
    boxes = [(tuple(each.start for each in box), tuple(each.stop for each in box)) for box in theirs]
    assert grid_locations(shape, patch, stride=stride).tolist() == as_rows(boxes)


@given(st.lists(st.integers(1, 12), min_size=3, max_size=3), st.data())
def test_boxes_are_those_of_torchio_where_it_is_installed(shape, data):
    """Its locations are ``i, j, k``, in the order of the array's axes."""
    torchio = pytest.importorskip("torchio", reason="a peer, only compared with")
    patch = [data.draw(st.integers(1, n)) for n in shape]
    overlap = [2 * data.draw(st.integers(0, (n - 1) // 2)) for n in patch]
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=np.zeros((1, *shape), dtype=np.float32)))
    theirs = torchio.GridSampler(subject, patch, overlap).locations
    assert grid_locations(shape, patch, overlap=overlap)[:, [2, 1, 0, 5, 4, 3]].tolist() == theirs.tolist()

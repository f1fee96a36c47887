"""What refusals of pushes and options say: the remedy that fits, and no more names than are read."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers.oracle import grid

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator.exceptions import HeadDtypeError, HeadError, LocationError, OptionError

BOXES = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 21, 8]])


def refusal(kind, call, *arguments, **options):
    """Return what is said."""
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    return str(error.value)


@pytest.mark.parametrize("kind", [FullBatchAccumulator, Stitcher])
def test_patch_that_was_cut_is_padded_at_its_end(kind):
    """A model gives less at the edge: the remedy is said, works, and is not said of a larger one."""
    patches = np.ones((3, 8, 8))
    accumulator = kind(BOXES)
    accumulator.push(patches[:2], BOXES[:2])
    said = refusal(HeadError, accumulator.push, patches[2:, :, :5], BOXES[2:])
    assert "pad one that was cut at its end to that size, its box stays cut" in said
    assert "pad" not in refusal(HeadError, accumulator.push, np.ones((1, 8, 9)), BOXES[2:])
    assert "pad" not in refusal(HeadError, accumulator.push, np.ones((1, 8, 8, 1)), BOXES[2:])
    accumulator.push(np.pad(patches[2:, :, :5], [(0, 0), (0, 0), (0, 3)]), BOXES[2:])
    accumulator.finalize()


def test_dtype_that_holds_all_batches_can_be_said():
    """Of batches in float32 and float64: `dtype` is named, and works."""
    halves = np.ones((1, 2), np.float32), np.ones((1, 2))
    with FullBatchAccumulator(grid(2)[:2]) as accumulator:
        accumulator.push(halves[0], grid(2)[:1])
        assert "or say dtype=" in refusal(HeadDtypeError, accumulator.push, halves[1], grid(2)[1:2])
    with FullBatchAccumulator(grid(2)[:2], dtype="float32") as accumulator:
        for row, half in enumerate(halves):
            accumulator.push(half, grid(2)[row : row + 1])


def test_average_of_passes_is_where_maps_are_made():
    """An accumulator has none, and says who has; of a finished result it has no meaning."""
    said = refusal(OptionError, FullBatchAccumulator, BOXES, on_duplicate="average")
    assert 'Stitcher(on_duplicate="average")' in said
    assert "before they are pushed" in said
    assert "Stitcher" not in refusal(OptionError, FullBatchAccumulator, BOXES, on_duplicate="lst")
    with FullBatchAccumulator(BOXES) as accumulator:
        accumulator.push(np.ones((3, 8, 8)), BOXES)
    batch = accumulator.finalize()
    for policy in ("average", "first"):
        assert "a result has each once" in refusal(OptionError, stitch, batch, on_duplicate=policy)
    stitch(batch, on_duplicate="error")


def test_seventy_heads_are_not_all_listed():
    """Ten of them, and how many more."""
    heads = {f"head {number:02}": np.ones((3, 8, 8)) for number in range(70)}
    with FullBatchAccumulator(BOXES) as accumulator:
        assert " and 60 more" in refusal(HeadError, accumulator.push, heads, BOXES[:2])
        accumulator.push(heads, BOXES)
        assert " and 60 more" in refusal(HeadError, accumulator.push, {"a": np.ones((3, 8, 8))}, BOXES)
    batch = accumulator.finalize()
    for call, options in [
        (stitch, {"heads": ["a"]}),
        (stitch, {"crop": {"a": 1}}),
        (stitch, {"nodata": {"a": 1}}),
        (stitch, {"fill_value": {"a": 1}}),
    ]:
        said = refusal(OptionError, call, batch, **options)
        assert " and 60 more]" in said
        assert said.count("head 0") == 10


def test_boxes_below_zero_name_the_origin():
    """All of them, or some: they are locations that are wrong, and origin="min" is right."""
    for locs in (BOXES - 100, BOXES - [4, 8, 4, 8]):
        assert 'origin="min"' in refusal(LocationError, Stitcher, locs)
        Stitcher(locs, origin="min").close()
    assert 'origin="min"' in refusal(OptionError, Stitcher, BOXES, origin=[100, 0])


def test_starts_with_sizes_are_told_from_other_rows_that_are_no_boxes():
    """Boxes [x, y, w, h] get a hint, and boxes of a volume an example with three axes."""
    sized = np.hstack([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]])
    said = refusal(LocationError, Stitcher, sized)
    assert "add the starts to the sizes" in said
    assert "[start_x, start_y, end_x, end_y]" in said
    assert "sizes" not in refusal(LocationError, Stitcher, [[5, 5, 0, 9]])
    said = refusal(LocationError, Stitcher, [[5, 5, 5, 1, 6, 6]], axes="zyx")
    assert "[start_z, start_y, start_x, end_z, end_y, end_x]" in said


@pytest.mark.parametrize("letters", ["x", "xy", "xyz"])
def test_orders_of_axes_that_are_listed_are_those_that_are_taken(letters):
    """No more, and no fewer."""
    locs = [[0] * len(letters) + [1] * len(letters)]
    said = refusal(OptionError, Stitcher, locs, axes="w")
    for order in re.findall(r'"(\w+)"', said):
        Stitcher(locs, axes=order).close()
    if letters == "xyz":
        assert "in any order" in said
        Stitcher(locs, axes="yzx").close()

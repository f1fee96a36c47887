"""What is said where patches do not fit their boxes: only what would explain it, and followed it works."""

from __future__ import annotations

import re

import numpy as np
import pytest

from accumulator import Stitcher
from accumulator.exceptions import LocationError, OptionError


def boxes(*size):
    """Return boxes of a size, x first, side by side, two on each axis."""
    starts = np.stack(np.meshgrid(*[(0, 1)] * len(size), indexing="ij"), -1).reshape(-1, len(size))
    return np.hstack([starts * size, (starts + 1) * size])


def swapped(locs):
    """Return boxes whose columns are in the order of an array's axes."""
    n = locs.shape[1] // 2
    return np.hstack([locs[:, :n][:, ::-1], locs[:, n:][:, ::-1]])


def stitched(locs, patch, **options):
    """Return the map of patches that are numbered."""
    values = np.broadcast_to(
        np.arange(1.0, 1 + len(locs)).reshape(-1, *[1] * len(patch)), (len(locs), *patch)
    )
    with Stitcher(locs, **options) as stitcher:
        stitcher.push(values, locs)
    return stitcher.finalize().outputs[0]


def refusal(locs, patch, **options):
    """Return what is said of patches that do not fit."""
    with pytest.raises(LocationError) as error:
        stitched(locs, patch, **options)
    return str(error.value)


@pytest.mark.parametrize("given", [1, 4, 1 / 16, 2, [3, 1 / 2]])
@pytest.mark.parametrize(("size", "patch", "right"), [(256, 64, "0.25"), (96, 32, "1/3"), (32, 48, "1.5")])
def test_scale_that_is_offered_is_the_whole_factor_whatever_was_given(given, size, patch, right):
    """Followed once, it is right, and as exact as it has to be."""
    said = refusal(boxes(size, size), (patch, patch), scale=given)
    assert f"scale={right}," in said
    assert stitched(boxes(size, size), (patch, patch), scale=eval(right)).shape == (2 * patch,) * 2  # noqa: S307


def test_scale_that_is_offered_is_that_of_its_head():
    """The other head has another one."""
    locs = boxes(64, 64)
    heads = {"a": np.ones((4, 32, 32)), "b": np.ones((4, 16, 16))}
    stitcher = Stitcher(locs, scale={"a": 0.5, "b": 0.5})
    with pytest.raises(LocationError, match=r"head 'b'.*scale=0\.25,"):
        stitcher.push(heads, locs)
    stitcher.close()


def test_factor_of_one_is_not_offered():
    """Boxes that were cut on the left are as large as their patches elsewhere."""
    said = refusal(np.array([[0, 0, 24, 32], [24, 0, 56, 32]]), (32, 32))
    assert "cut on the left" in said
    assert "scale" not in said
    assert "center" not in said


@pytest.mark.parametrize(
    ("locs", "patch", "offered", "options"),
    [
        (swapped(boxes(48, 32)), (32, 48), 'axes="yx"', {"axes": "yx"}),
        (swapped(boxes(48, 32)), (32, 48, 3), 'axes="yx"', {"axes": "yx"}),
        (swapped(boxes(24, 16, 8)), (8, 16, 24), 'axes="zyx"', {"axes": "zyx"}),
        (boxes(3, 128), (128, 3), None, {}),
        (boxes(128, 128), (3, 128, 128), "channels_first=True", {"channels_first": True}),
        (swapped(boxes(64, 48)), (3, 48, 64), "channels_first=True", {"channels_first": True, "axes": "yx"}),
        (boxes(16, 16), (768, 16, 16), "channels_first=True", {"channels_first": True}),
    ],
)
def test_transposition_that_explains_it_is_offered_and_no_scale(locs, patch, offered, options):
    """A scale of its own for each axis would make a wrong map of it."""
    if offered is not None:
        said = refusal(locs, patch)
        assert offered in said
        assert not re.search("scale=|crop=", said)
        assert ("axes=" in said) == ("axes" in options)
    assert len(np.unique(stitched(locs, patch, **options))) == len(locs)


def test_columns_in_the_order_of_letters_that_were_said_wrongly():
    """The other order is offered."""
    said = refusal(boxes(48, 32), (32, 48), axes="yx")
    assert 'axes="xy"' in said
    assert "scale=" not in said


@pytest.mark.parametrize(
    ("locs", "patch", "offered"),
    [
        (boxes(128, 128), (3, 32, 32), r"channels_first=True.*together with scale=0\.25,"),
        (swapped(boxes(48, 32)), (8, 12), r'axes="yx".*together with scale=0\.25,'),
        (boxes(64, 48), (3, 64, 80), r'channels_first=True.*together with crop="center"'),
    ],
)
def test_transposition_with_another_level_or_a_halo(locs, patch, offered):
    """Both are offered, and the scale is one factor."""
    said = refusal(locs, patch)
    assert re.search(offered, said)
    assert "scale=[" not in said


def test_scale_of_its_own_for_each_axis_is_offered_where_nothing_else_explains_it():
    """As it was."""
    assert "scale=[0.25, 0.5]" in refusal(boxes(64, 64), (32, 16))


def test_halo_on_another_level_is_told_in_two_steps():
    """The first refusal names crop too, and with it the scale is that of what it leaves."""
    locs = boxes(256, 256)
    assert "with a halo too, give crop=" in refusal(locs, (80, 80))
    said = refusal(locs, (80, 80), crop=8)
    assert "scale=0.25," in said
    assert stitched(locs, (80, 80), crop=8, scale=0.25).shape == (128, 128)


def test_crop_of_patches_that_are_their_boxes_is_told():
    """They are too small only because of it."""
    assert "no crop, as boxes are as large as whole patches" in refusal(boxes(64, 64), (64, 64), crop=8)


@pytest.mark.parametrize(("scale", "n"), [(1 / 4, 64), (1, 256)])
def test_output_shape_that_boxes_do_not_end_with_is_told_with_the_one_that_fits(scale, n):
    """It is in pixels of the map, and those of the slide were given, or of another one."""
    steps = [(x, y) for y in range(0, 706, 192) for x in range(0, 936, 192)]
    locs = np.array([[x, y, min(x + 256, 1000), min(y + 256, 770)] for x, y in steps])
    said = refusal(locs, (n, n), scale=scale, output_shape=(1540, 2000))
    fitting = (193, 250) if scale < 1 else (770, 1000)
    assert f"the boxes end at {fitting}: give output_shape={fitting}, which is in pixels of the map" in said
    assert not re.search("scale=|crop=", said)
    assert stitched(locs, (n, n), scale=scale, output_shape=fitting).shape == fitting


@pytest.mark.parametrize("size", [(64, 32), (24, 16, 8)])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("order", ["array", "xyz", "yxz"])
@pytest.mark.parametrize("given", [(), ("channels_first",), ("axes",)])
def test_halo_on_another_level_is_told_at_once_where_sides_differ(size, channels, order, given):
    """Two sides tell both numbers; a scale of its own for each axis would make a wrong map."""
    n, locs = len(size), boxes(*(4 * length for length in size))
    letters = {"array": "zyx"[-n:], "xyz": "xyz"[:n], "yxz": "yxz"[:n]}[order]
    columns = ["xyz".index(letter) for letter in letters]
    locs = np.hstack([locs[:, :n][:, columns], locs[:, n:][:, columns]])
    patch = (*channels, *(length + 8 for length in size[::-1]))
    truth = {"channels_first": bool(channels), "axes": letters}
    said = refusal(locs, patch, **{name: truth[name] for name in given})
    assert "crop=4 and scale=0.25 if" in said
    assert "scale=[" not in said
    assert ("channels_first=True" in said) == (bool(channels) and "channels_first" not in given)
    assert (f'axes="{letters}"' in said) == (order != "xyz" and "axes" not in given)
    assert len(np.unique(stitched(locs, patch, crop=4, scale=0.25, **truth))) == len(locs)


@pytest.mark.parametrize("given", ["yzx", "xzy", "zxy", "xyz", None])
def test_any_order_of_three_columns_is_told(given):
    """Not only the reverse of what was said."""
    for right in ("yxz", "zyx", "xyz"):
        columns, locs = ["xyz".index(letter) for letter in right], boxes(24, 16, 8)
        locs = np.hstack([locs[:, :3][:, columns], locs[:, 3:][:, columns]])
        if right != (given or "xyz"):
            said = refusal(locs, (8, 16, 24), axes=given)
            assert f'axes="{right}"' in said
            assert not re.search("scale=|crop=", said)
        assert stitched(locs, (8, 16, 24), axes=right).shape == (16, 32, 48)


def test_scale_that_nobody_needs_is_told():
    """Boxes are as large as their patches."""
    said = refusal(boxes(24, 16, 8), (8, 16, 24), scale=[1, 1, 2])
    assert said.endswith("no scale, as boxes are as large as patches")
    assert "no scale" in refusal(boxes(64, 64), (64, 64), scale=1 / 4)


@pytest.mark.parametrize("first", [False, True])
def test_crop_that_leaves_nothing_of_channels_tells_where_those_are(first):
    """They were taken for a side of the patch."""
    patch = (72, 72, 3) if first else (3, 72, 72)
    with pytest.raises(OptionError, match=f"leaves nothing; channels_first={not first} if"):
        stitched(boxes(64, 64), patch, crop=4, channels_first=first)
    stitched(boxes(64, 64), patch, crop=4, channels_first=not first)
    with pytest.raises(OptionError, match=r"leaves nothing$"):
        stitched(boxes(64, 64), (72, 72), crop=36)


def test_boxes_of_four_axes_have_no_order_to_be_offered():
    """There are three letters."""
    assert "axes=" not in refusal(boxes(2, 3, 4, 5), (2, 3, 4, 5))

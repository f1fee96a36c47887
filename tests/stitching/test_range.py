"""Values at both ends of their dtype's range: where patches agree, the map has what they have."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.maps import assert_right, boxes, raster, reference
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator, Stitcher, stitch


def stitched(values, locs, blend, is_streamed, **options):
    """Return the map by either path."""
    kind = Stitcher if is_streamed else FullBatchAccumulator
    with kind(locs, **({"blend": blend} | options if is_streamed else {})) as taker:
        for part in np.array_split(np.arange(len(locs)), 2):
            taker.push(values[part], locs[part])
    maps = taker.finalize() if is_streamed else stitch(taker.finalize(), blend=blend, **options)
    return maps.outputs[0][...]


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("blend", ["gaussian", "hann"])
def test_agreed_values_at_the_bottom_of_the_range_come_out_unchanged(blend, is_streamed):
    """16^3 patches, whose weights in a corner are a billionth of those in the middle."""
    locs = raster((16, 16, 24), (16, 16, 16), (8, 8, 8))
    agreed = np.array([1e-36, 1e-33, -1e-30, 2e-38], np.float32)
    values = np.broadcast_to(agreed, (len(locs), 16, 16, 16, 4))
    got = stitched(values, locs, blend, is_streamed)
    np.testing.assert_allclose(got, np.broadcast_to(agreed, got.shape), rtol=5e-7)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("is_streamed", [True, False])
@given(data=st.data())
@settings(max_examples=examples(60))
def test_map_is_the_reference_over_the_whole_range(is_streamed, data):
    """Of floats of any width, with weights that are far apart, from the least value to the largest."""
    dtype = np.dtype(data.draw(st.sampled_from(["f2", "f4", ">f4", "f8", "c8", "c16"])))
    real = np.finfo(dtype)
    n_axes = data.draw(st.integers(1, 3))
    patch = (12, 5, 3)[:n_axes] if n_axes < 3 else (4, 3, 4)
    locs = boxes(
        data.draw(
            st.lists(st.tuples(*(st.integers(0, 3) for _ in patch)), unique=True, min_size=1, max_size=5)
        ),
        patch,
    )
    blend = data.draw(st.sampled_from(["average", "gaussian", "hann", "weights"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if blend == "weights":
        blend = 10.0 ** rng.uniform(data.draw(st.sampled_from([-3, -20, -200, -300])), 0, patch)
    low, high = np.log10(float(real.smallest_subnormal)), np.log10(float(real.max))
    least = data.draw(st.floats(low, high - 1))
    values = 10.0 ** rng.uniform(least, data.draw(st.floats(least, high)), (len(locs), *patch))
    values = (values * rng.choice([-1, 1], values.shape)).astype(dtype)
    if dtype.kind == "c":
        values = values + values[::-1] * dtype.type(1j)
    shape = tuple(3 + p for p in patch)
    got = stitched(values, locs, blend, is_streamed, output_shape=shape)
    expected, _, size = reference(values, locs, shape, [0] * n_axes, blend, 0)
    assert_right(got, expected, size, dtype)


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("blend", ["gaussian", "hann"])
def test_large_integers_that_agree_are_within_the_bound_that_is_documented(blend, is_streamed):
    """With unequal weights 64-bit integers may be off by 2**-50 of the largest; smaller ones are exact."""
    locs = raster((16, 24), (16, 16), (8, 8))
    values = np.full((len(locs), 16, 16, 2), [2**61 + 12345, 2**48 + 12345], np.int64)
    got = stitched(values, locs, blend, is_streamed)
    assert abs(got[..., 0] - (2**61 + 12345)).max() <= 2**11
    assert (got[..., 1] == 2**48 + 12345).all()
    assert (stitched(values, locs, "average", is_streamed) == values[0, 0, 0]).all()

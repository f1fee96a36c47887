"""Patches of any kind, drawn: on a grid or anywhere, and what of them comes."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.maps import boxes, raster

BLENDS = ["average", "gaussian", "hann", "max", "last"]
DTYPES = ["?", "u1", "i1", "u2", "<i4", ">i4", "u4", "i8", "u8", "f2", "<f4", ">f4", "f8", "c8", "c16"]


def random_values(rng, shape, dtype):
    """Return values over the whole range of a dtype that sums are to be right in, none of them the same."""
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype.newbyteorder("="), endpoint=True).astype(
            dtype
        )
    values = rng.normal(size=shape)
    return (values + 1j * rng.normal(size=shape) if dtype.kind == "c" else values).astype(dtype)


@st.composite
def cases(draw):
    """Draw patches on a grid or anywhere, what of them comes, and how they are to be blended."""
    n_axes = draw(st.integers(1, 3))
    most = {1: 12, 2: 6, 3: 4}[n_axes]
    patch = tuple(draw(st.lists(st.integers(1, most), min_size=n_axes, max_size=n_axes)))
    shape = tuple(p + draw(st.integers(0, 2 * p)) for p in patch)
    if draw(st.booleans()):
        stride = [max(1, round(p * draw(st.sampled_from([0.2, 0.5, 0.75, 1, 1.5, 2])))) for p in patch]
        locs = raster(shape, patch, stride)
    else:
        spots = st.tuples(*(st.integers(-p, n + 1) for p, n in zip(patch, shape, strict=True)))
        locs = boxes(draw(st.lists(spots, min_size=1, max_size=20, unique=True)), patch)
        cut = draw(hnp.arrays(np.int64, (len(locs), n_axes), elements=st.integers(0, 1)))
        locs[:, n_axes:] -= np.minimum(cut, np.array(patch[::-1]) - 1)
    locs = locs[: draw(st.integers(1, 40))]
    origin = draw(st.lists(st.integers(-5, 5), min_size=n_axes, max_size=n_axes))
    locs = locs + np.array([*origin, *origin])
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    blend = draw(st.sampled_from([b for b in BLENDS if dtype.kind != "c" or b != "max"]) | st.none())
    if blend is None:
        blend = draw(hnp.arrays(np.float64, patch, elements=st.floats(0.01, 100)))
    channels = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random_values(rng, (len(locs), *patch, *channels), dtype)
    order = draw(st.permutations(range(len(locs))))
    come = order[: draw(st.integers(1, len(order)))]
    fill = draw(st.sampled_from([0, 1])) if dtype.kind in "bui" else draw(st.sampled_from([0, 7, math.nan]))
    return locs, shape, origin, values, np.array(come), blend, fill

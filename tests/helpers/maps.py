"""The maps that stitching must give: pixel after pixel, in long doubles, by nothing that the library has."""

from __future__ import annotations

import math

import numpy as np


def windows(blend, patch):
    """Return the weights of a patch, from their definitions."""
    if not isinstance(blend, str):
        return np.asarray(blend, dtype=np.float64)
    weights = np.ones(patch)
    for at in np.ndindex(*patch):
        for i, n in zip(at, patch, strict=True):
            if blend == "gaussian":
                weights[at] *= math.exp(-(((i - (n - 1) / 2) / (n / 8)) ** 2) / 2)
            if blend == "hann":
                weights[at] *= math.sin(math.pi * (i + 1) / (n + 1)) ** 2
    return weights


def reference(patches, locs, shape, origin, blend, fill_value):
    """Return the map, its coverage, and how large the values are that meet in a pixel.

    Rows are in the order of the list; all of them have come. Means are not rounded.
    """
    n_axes = len(shape)
    channels = patches.shape[1 + n_axes :]
    patch = patches.shape[1 : 1 + n_axes]
    weights = windows(blend, patch)
    name = blend if isinstance(blend, str) else "weights"
    wide = np.clongdouble if patches.dtype.kind == "c" else np.longdouble
    sums = np.zeros((*shape, *channels), dtype=wide)
    total = np.zeros(shape, dtype=np.longdouble)
    size = np.zeros((*shape, *channels), dtype=np.longdouble)
    chosen = np.zeros((*shape, *channels), dtype=patches.dtype)
    coverage = np.zeros(shape, dtype=np.int64)
    for values, loc in zip(patches, locs, strict=True):
        start = [int(loc[n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        stop = [int(loc[2 * n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        for at in np.ndindex(*(b - a for a, b in zip(start, stop, strict=True))):
            pixel = tuple(a + i for a, i in zip(start, at, strict=True))
            if any(not 0 <= i < n for i, n in zip(pixel, shape, strict=True)):
                continue
            sums[pixel] += wide(weights[at]) * values[at].astype(wide)
            total[pixel] += weights[at]
            size[pixel] = np.maximum(size[pixel], np.abs(values[at].astype(wide)))
            if name == "last" or coverage[pixel] == 0:
                chosen[pixel] = values[at]
            elif name == "max":
                chosen[pixel] = np.maximum(chosen[pixel], values[at])
            coverage[pixel] += 1
    is_chosen = name in {"max", "last"}
    covered = (coverage if is_chosen else total) > 0
    spread = covered.reshape(*shape, *(1 for _ in channels))
    if is_chosen:
        result = chosen
    else:
        with np.errstate(all="ignore"):
            result = sums / total.reshape(spread.shape)
    return np.where(spread, result, fill_value), coverage, size


def is_same(values, nodata):
    """Return which numbers are the one that does not count."""
    return np.isnan(values) if np.isnan(nodata) else values == nodata


def reference_with_nodata(patches, locs, shape, origin, blend, fill_value, nodata):
    """Return the map where a number does not count: that of the others, number by number.

    A map of what is not known is made for each patch by itself, and laid over the others.
    """
    n_axes = len(shape)
    channels = patches.shape[1 + n_axes :]
    weights = windows(blend, patches.shape[1 : 1 + n_axes])
    name = blend if isinstance(blend, str) else "weights"
    wide = np.clongdouble if patches.dtype.kind == "c" else np.longdouble
    came = {}
    for values, loc in zip(patches, locs, strict=True):
        start = [int(loc[n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        stop = [int(loc[2 * n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        for at in np.ndindex(*(b - a for a, b in zip(start, stop, strict=True))):
            pixel = tuple(a + i for a, i in zip(start, at, strict=True))
            if all(0 <= i < n for i, n in zip(pixel, shape, strict=True)) and weights[at] > 0:
                for channel in np.ndindex(*channels):
                    came.setdefault((*pixel, *channel), []).append((weights[at], values[(*at, *channel)]))
    result = np.full((*shape, *channels), fill_value, dtype=wide)
    size = np.zeros((*shape, *channels), dtype=np.longdouble)
    for number, met in came.items():
        known = [(weight, wide(value)) for weight, value in met if not is_same(value, nodata)]
        size[number] = max((abs(value) for _, value in known), default=0)
        if not known:
            result[number] = nodata
        elif name == "last":
            result[number] = known[-1][1]
        elif name == "max":
            result[number] = max(value for _, value in known)
        else:
            total = sum(np.longdouble(weight) for weight, _ in known)
            result[number] = sum(np.longdouble(weight) * value for weight, value in known) / total
    return result, size


EPSILON = {2: 2**-10, 4: 2**-22, 8: 2**-47}  # a few roundings; weights themselves are float64


def boxes(starts, patch):
    """Return locations of patches that start there, given in the order of the array's axes."""
    starts = np.asarray(starts).reshape(len(starts), -1)
    return np.hstack([starts[:, ::-1], (starts + np.asarray(patch))[:, ::-1]])


def raster(shape, patch, stride):
    """Return the locations of a grid that covers a map, row by row."""
    axes = [range(0, n - p + 1, s) for n, p, s in zip(shape, patch, stride, strict=True)]
    return boxes(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape)), patch)


def assert_right(values, expected, size, dtype):
    """Compare a map with the reference: to the rounding of its dtype, or of float32 if that is wider."""
    dtype = np.dtype(dtype)
    assert values.dtype == dtype
    assert values.shape == expected.shape
    if dtype.kind == "b":
        is_tie = np.abs(expected.astype(float) - 0.5) < 1e-9
        assert ((values == (expected.astype(float) >= 0.5)) | is_tie).all()
    elif dtype.kind in "iu":
        # A weight and a sum of weights are products of one float64 an axis: up to eight roundings of half an
        # epsilon, which 64-bit integers show.
        limit = 0.5 * (1 + 1e-9) + size.astype(float) * 8 * 2**-53
        assert (np.abs(values.astype(np.longdouble) - expected.astype(np.longdouble)) <= limit).all()
    else:
        single = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        least = np.longdouble(np.finfo(dtype).smallest_subnormal)
        limit = np.maximum(EPSILON[single] * size.astype(np.longdouble), least)
        assert (np.abs(values - expected) <= limit).all()


LOCS = raster((8, 8), (4, 4), (4, 4))
ONES = np.ones((1, 4, 4), np.float32)

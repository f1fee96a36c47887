"""What blends must give, number by number: a list of what meets there, and Python's arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from helpers.maps import is_same, windows


def met(patches, locs, shape, origin, weights, given):
    """Return of each number of the map what meets there: row, weight, value, and distance to the centre.

    Rows are in the order of the list; all of them have come. A weight is that of the window, times what is
    given, ``(n, *patch)`` or None.
    """
    n_axes = len(shape)
    channels = patches.shape[1 + n_axes :]
    patch = patches.shape[1 : 1 + n_axes]
    found = {}
    for row, (values, loc) in enumerate(zip(patches, locs, strict=True)):
        start = [int(loc[n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        stop = [int(loc[2 * n_axes - 1 - axis]) - int(origin[n_axes - 1 - axis]) for axis in range(n_axes)]
        for at in np.ndindex(*(b - a for a, b in zip(start, stop, strict=True))):
            pixel = tuple(a + i for a, i in zip(start, at, strict=True))
            if any(not 0 <= i < n for i, n in zip(pixel, shape, strict=True)):
                continue
            far = sum((Fraction(i) - Fraction(n - 1, 2)) ** 2 for i, n in zip(at, patch, strict=True))
            own = Fraction(float(weights[at])) * (1 if given is None else Fraction(float(given[row][at])))
            for channel in np.ndindex(*channels):
                met_here = found.setdefault((*pixel, *channel), [])
                met_here.append((row, own, values[(*at, *channel)], far))
    return found


def blended(patches, locs, shape, origin, blend, fill_value, *, nodata=None, given=None):
    """Return the map of any blend, and which numbers are left to the fill value; means are not rounded."""
    n_axes = len(shape)
    patch, channels = patches.shape[1 : 1 + n_axes], patches.shape[1 + n_axes :]
    name, window = blend if isinstance(blend, tuple) else (blend, blend)
    is_named = isinstance(name, str)
    weights = windows(window, patch)
    wide = np.clongdouble if patches.dtype.kind == "c" else np.longdouble
    result = np.full((*shape, *channels), fill_value, dtype=wide)
    gaps = np.ones((*shape, *channels), dtype=bool)
    size = np.zeros((*shape, *channels), dtype=np.longdouble)
    for number, all_here in met(patches, locs, shape, origin, weights, given).items():
        here = [each for each in all_here if each[1] > 0]
        if not here:
            continue
        known = [each for each in here if nodata is None or not is_same(each[2], nodata)]
        gaps[number] = False
        if not known:
            result[number] = nodata
            continue
        values = [wide(each[2]) for each in known]
        size[number] = max(abs(value) for value in values)
        if is_named and name == "last":
            result[number] = values[-1]
        elif is_named and name == "max":
            result[number] = max(values)
        elif is_named and name == "min":
            result[number] = min(values)
        elif is_named and name == "nearest":
            result[number] = wide(min(known, key=lambda each: (each[3], each[0]))[2])
        elif is_named and name == "vote":
            votes = {}
            for _, weight, value, _ in known:
                votes[int(value)] = votes.get(int(value), 0) + weight
            most = max(votes.values())
            near = [value for value, n in votes.items() if n >= most * (1 - Fraction(1, 2**36))]
            result[number] = min(value for value in near if votes[value] == most or len(near) > 1)
        else:
            total = sum(np.longdouble(float(each[1])) for each in known)
            result[number] = (
                sum(np.longdouble(float(each[1])) * value for each, value in zip(known, values, strict=True))
                / total
            )
    return result, gaps, size

"""Patches that lie in any way, drawn with what is said of them, and the map that is right, by brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

SCALES = [1, 1, 1, 1 / 8, 1 / 4, 1 / 3, 1 / 2, 0.37, 3 / 4, 1.5, 2, 3, 4, 1 / 4.0001]


def nearest(place, scale):
    """Return the nearest pixel of a place, half-way the next."""
    return math.floor(Fraction(place) * Fraction(scale) + Fraction(1, 2))


class Head:
    """One head: its patches, what is true of them, and what is said."""

    def __init__(self, draw, tiles, n):
        self.scale = [draw(st.sampled_from(SCALES))] * len(tiles)
        if draw(st.integers(0, 3)) == 0:
            self.scale = [draw(st.sampled_from(SCALES)) for _ in tiles]
        self.length = []  # of a whole box in pixels, in the order of the array's axes, like all here
        for tile, scale in zip(tiles, self.scale, strict=True):
            exact = tile * scale
            near = {math.floor(exact), math.ceil(exact), round(exact)}
            self.length.append(draw(st.sampled_from(sorted(each for each in near if each >= 1) or [1])))
            assume(abs(self.length[-1] - exact) < 1)
            assume(self.length[-1] <= 10)
        self.halo = [draw(st.integers(0, 2))] * len(tiles) if draw(st.booleans()) else [0] * len(tiles)
        self.channels = draw(st.sampled_from([None, 1, 2, 3, 11]))
        self.is_first = self.channels is not None and draw(st.booleans())
        patch = [length + 2 * halo for length, halo in zip(self.length, self.halo, strict=True)]
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        self.values = rng.permutation(n * math.prod(patch) * (self.channels or 1)).astype(np.float64)
        self.values = self.values.reshape(n, *patch, *(() if self.channels is None else (self.channels,)))
        self.said = self._say(draw)

    @property
    def patches(self):
        """What is pushed."""
        return np.moveaxis(self.values, -1, 1) if self.is_first else self.values

    def _say(self, draw):
        """Draw how the truth is said."""
        said = {"channels_first": self.is_first, "scale": self.scale[::-1], "crop": self.halo[::-1]}
        if len(set(self.scale)) == 1:
            said["scale"] = draw(st.sampled_from([self.scale[0], self.scale]))
        if len(set(self.halo)) == 1:
            said["crop"] = draw(st.sampled_from([self.halo[0], self.halo, "center"]))
        if not any(self.halo):
            said["crop"] = draw(st.sampled_from([None, 0, "start", "center"]))
        return said

    def stop_saying(self, draw, extents):
        """Draw one thing that is not said though it is true, and can be seen not to be so."""
        untrue = ["halo"] if any(self.halo) else []
        if self.said["crop"] not in ("start", "center"):  # which make boxes of anything that is larger
            first = [Fraction(each) * Fraction(self.scale[0]) for each in extents[0]]
            # So many channels are not as many pixels as a box has, with its halo.
            pixels = (self.channels or 0) - 2 * self.halo[0]
            if self.is_first and not any(abs(pixels - each) < 1 for each in first):
                untrue.append("channels_first")
            is_seen = any(length not in each for length, each in zip(self.length, extents, strict=True))
            if set(self.scale) != {1} and not any(self.halo) and is_seen:
                untrue.append("scale")
        if untrue:
            name = draw(st.sampled_from(untrue))
            self.said["crop" if name == "halo" else name] = False if name == "channels_first" else None


def geometry(draw):
    """Draw boxes, where what of an image is shown, and heads."""
    n_axes = draw(st.integers(1, 3))
    tiles = [draw(st.sampled_from([1, 2, 3, 4, 8])) for _ in range(n_axes)]
    size = [draw(st.integers(tile, {1: 4, 2: 3, 3: 2}[n_axes] * tile)) for tile in tiles]
    spots = st.tuples(*(st.integers(-tile + 1, n - 1) for tile, n in zip(tiles, size, strict=True)))
    starts = draw(st.lists(spots, min_size=1, max_size=8, unique=True))
    if draw(st.booleans()):
        stride = [draw(st.sampled_from([tile, max(1, tile // 2)])) for tile in tiles]
        starts = list(product(*(range(0, n, step) for n, step in zip(size, stride, strict=True))))[:30]
    kind = draw(st.sampled_from(["whole", "whole", "cut at the end", "cut at both ends"]))
    shift = [draw(st.integers(-20, 20)) if draw(st.booleans()) else 0 for _ in tiles]
    if kind == "cut at both ends":
        shift = [0] * n_axes
    whole = [[a + b for a, b in zip(start, shift, strict=True)] for start in starts]
    boxes = []
    for start in whole:
        low, high = list(start), [a + tile for a, tile in zip(start, tiles, strict=True)]
        for axis in range(n_axes):
            if kind != "whole":
                high[axis] = min(high[axis], size[axis] + shift[axis])
            if kind == "cut at both ends":
                low[axis] = max(low[axis], 0)
        boxes.append((low, high))
    pairs = {(tuple(low), tuple(high)): start for (low, high), start in zip(boxes, whole, strict=True)}
    return n_axes, tiles, size, shift, kind, list(pairs), list(pairs.values())


@st.composite
def cases(draw):  # noqa: C901  one draw after the other
    """Draw a call: ``locs, heads, options``, and what each map is to be."""
    n_axes, tiles, size, shift, kind, boxes, whole = geometry(draw)
    heads = [Head(draw, tiles, len(boxes)) for _ in range(draw(st.sampled_from([1, 1, 2])))]
    # "start" says that each box is the first part of its patch, "center" that the largest are whole.
    is_whole = all(any(b[i] - a[i] == tile for a, b in boxes) for i, tile in enumerate(tiles))
    for head in heads:
        untrue = ["start"] * (kind == "cut at both ends") + ["center"] * (not is_whole)
        head.said["crop"] = head.halo[::-1] if head.said["crop"] in untrue else head.said["crop"]
    origins = [None, "min"] if kind == "cut at both ends" else [None, "min", "shift", "any"]
    origin = draw(st.sampled_from(origins))
    first = {None: [0] * n_axes, "shift": shift}.get(origin)
    if origin == "min":
        first = [min(low[axis] for low, _ in boxes) for axis in range(n_axes)]
    if first is None:
        first = [a + draw(st.integers(-3, 3)) for a in shift]
    has_shape = draw(st.booleans())
    shapes = []
    for head in heads:
        shape = None
        if has_shape:
            ends = [nearest(a + n, s) for a, n, s in zip(shift, size, head.scale, strict=True)]
            shape = [max(1, e - nearest(f, s)) for e, f, s in zip(ends, first, head.scale, strict=True)]
            shape = [max(1, n + draw(st.sampled_from([0, 0, 0, -1, 1]))) for n in shape]
            assume(math.prod(shape) < 3000)
        shapes.append(shape)
    axes = draw(st.sampled_from([None, "xyz"[:n_axes][::-1]]))
    extents = [[b[axis] - a[axis] for a, b in boxes] for axis in range(n_axes)]
    if not has_shape and draw(st.integers(0, 4)) == 0:
        heads[0].stop_saying(draw, extents)
    order = slice(None) if axes else slice(None, None, -1)
    locs = np.array([[*low[order], *high[order]] for low, high in boxes])
    options = {"axes": axes, "blend": draw(st.sampled_from(["average", "max", "last"])), "fill_value": -1}
    if origin is not None:
        options["origin"] = "min" if origin == "min" else first[::-1]
    for name in ("channels_first", "scale", "crop"):
        options[name] = {number: head.said[name] for number, head in enumerate(heads)}
    if has_shape:
        options["output_shape"] = dict(enumerate(shapes))
    if len(heads) == 1 and draw(st.booleans()):
        for name in ("channels_first", "scale", "crop", "output_shape"):
            options[name] = options.get(name, {0: None})[0]
        options["channels_first"] = bool(options["channels_first"])
    expected = [
        reference(head, boxes, whole, first, shape, options["blend"])
        for head, shape in zip(heads, shapes, strict=True)
    ]
    return locs, [head.patches for head in heads], options, expected


def reference(head, boxes, whole, first, shape, blend):  # noqa: C901  as plain as can be
    """Return the map and how many boxes cover each pixel, pixel after pixel, and which boxes have any."""
    n_axes = len(first)
    spans = []
    for (low, high), start in zip(boxes, whole, strict=True):
        span = []
        for axis in range(n_axes):
            scale, full = head.scale[axis], head.length[axis]
            zero = nearest(first[axis], scale)
            begin = nearest(low[axis], scale) - zero
            is_whole = Fraction(high[axis] - low[axis]) * Fraction(scale) > full - 1
            end = begin + full
            if not is_whole:
                end = max(begin + 1, min(end, nearest(high[axis], scale) - zero))
            # What was cut on the left; less than a pixel is nothing.
            skip = 0 if is_whole else nearest(low[axis] - start[axis], scale)
            span.append((begin, end, skip))
        spans.append(span)
    if shape is None:
        shape = [max(1, *(span[axis][1] for span in spans), 1) for axis in range(n_axes)]
    many = () if head.channels is None else (head.channels,)
    sums, counts = np.full((*shape, *many), -1.0), np.zeros(shape, int)
    for values, span in zip(head.values, spans, strict=True):
        for at in product(*(range(begin, end) for begin, end, _ in span)):
            if not all(0 <= i < n for i, n in zip(at, shape, strict=True)):
                continue
            inside = tuple(
                i - begin + skip + halo for i, (begin, _, skip), halo in zip(at, span, head.halo, strict=True)
            )
            if any(i >= n for i, n in zip(inside, values.shape, strict=False)):
                continue
            value = values[inside]
            if counts[at] == 0 or blend == "last":
                sums[at] = value
            elif blend == "max":
                sums[at] = np.maximum(sums[at], value)
            else:
                sums[at] = (sums[at] * counts[at] + value) / (counts[at] + 1)
            counts[at] += 1
    has_any = [
        all(begin < n and end > 0 for (begin, end, _), n in zip(span, shape, strict=True)) for span in spans
    ]
    return sums, counts, np.array(has_any)

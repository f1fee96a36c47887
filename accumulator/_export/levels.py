"""The pyramid of a map: how large its levels are, and their pixels, block by block.

A block is all that is ever held of a map. What is read together follows from how the source is chunked: a
stripe of a whole slide is decoded once, and not once for every tile of it.
"""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs import tuning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import zarr
    from numpy.typing import NDArray

    from accumulator._export.map import Map

TILE: Final = 512


def level_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of all levels: y and x are halved, rounded up, until a tile holds them."""
    shapes = [shape]
    while max(shapes[-1][-2:]) > TILE:
        *others, height, width = shapes[-1]
        shapes.append((*others, -(-height // 2), -(-width // 2)))
    return shapes


def level_factors(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return how many pixels of the map a pixel of each level stands for, along each axis.

    An axis of one pixel is not halved. The last pixel of a level may stand for fewer, where a length is odd.
    """
    factors = [[1] * len(shapes[0])]
    for finer, level in pairwise(shapes):
        halved = [2 if length != half else 1 for length, half in zip(finer, level, strict=True)]
        factors.append([f * h for f, h in zip(factors[-1], halved, strict=True)])
    return factors


def chunks_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks that a level is stored in: planes of one tile."""
    return (*(1 for _ in shape[:-2]), *(min(length, TILE) for length in shape[-2:]))


def fill(source: Map, levels: Sequence[zarr.Array[Any]]) -> list[tuple[float, float]]:
    """Write all levels of a map; return the least and greatest finite value of each channel, or 0 and 1."""
    limits: list[list[float]] = [[] for _ in source.channels]
    first = levels[0]
    for region in regions(source, first.chunks, tuning.now.level_nbytes):
        block = source.read(region)
        first[region] = block
        channels = zip(limits[region[0]], block, strict=True) if source.has_channels else [(limits[0], block)]
        for found, values in channels:
            found[:] = _limits(values, found)
    halve = mean_halved if source.is_mean else nearest_halved
    for finer, level in pairwise(levels):
        nbytes = 4 * max(source.dtype.itemsize, 4)  # are read for each pixel, or more is held of its mean
        step = _block(level.shape, level.chunks, level.chunks, nbytes, tuning.now.halved_nbytes)
        for region in _regions(level.shape, step):
            wide = tuple(slice(2 * s.start, 2 * s.stop) for s in region[-2:])
            level[region] = halve(np.asarray(finer[(*region[:-2], *wide)]))
    return [(found[0], found[1]) if found else (0, 1) for found in limits]


def regions(source: Map, tile: tuple[int, ...], most_nbytes: int) -> Iterator[tuple[slice, ...]]:
    """Return the blocks of a map that is read once, and written in tiles."""
    return _regions(
        source.shape, _block(source.shape, tile, source.chunks, source.dtype.itemsize, most_nbytes)
    )


def nearest_halved(fine: NDArray[Any]) -> NDArray[Any]:
    """Return every second pixel of each axis: labels have no mean."""
    return fine[..., ::2, ::2]


def mean_halved(fine: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of each 2 x 2 pixels, of those that are there and not NaN."""
    *others, height, width = fine.shape
    shape = (*others, -(-height // 2), -(-width // 2))
    total, count = np.zeros(shape), np.zeros(shape, np.uint8)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # inf - inf, 0 / 0, beyond the dtype
        for y, x in product((0, 1), repeat=2):
            part = fine[..., y::2, x::2]
            here = (..., slice(part.shape[-2]), slice(part.shape[-1]))
            there = ~np.isnan(part)
            # A quarter of each: the sum of four would leave float64 where the mean does not.
            np.add(total[here], 0.25 * part.astype(np.float64), out=total[here], where=there)
            count[here] += there
        mean = total * (4 / count)
        return (mean if fine.dtype.kind == "f" else np.rint(mean)).astype(fine.dtype)


def _limits(values: NDArray[Any], found: list[float]) -> list[float]:
    """Return the least and the greatest finite value, those that were found before among them."""
    ends = [values.min().item(), values.max().item()]
    if not all(map(math.isfinite, ends)):
        finite = values[np.isfinite(values)]
        ends = [finite.min().item(), finite.max().item()] if finite.size else []
    ends += found
    return [min(ends), max(ends)] if ends else []


def _block(
    shape: tuple[int, ...], tile: tuple[int, ...], chunk: tuple[int, ...], nbytes: int, most_nbytes: int
) -> tuple[int, ...]:
    """Return how much is read at once: whole tiles, as much of the source's chunks as memory has room for."""
    step = [min(t, length) for t, length in zip(tile, shape, strict=True)]

    def grow(axis: int, most: int, room: int) -> None:
        others = nbytes * math.prod(step) // step[axis]
        n_tiles = min(-(-most // tile[axis]), room // (others * tile[axis]))
        step[axis] = min(max(step[axis], n_tiles * tile[axis]), shape[axis])

    widest_first = sorted(range(len(shape)), key=lambda axis: (-(chunk[axis] // tile[axis]), -axis))
    for axis in widest_first:  # first what has to be decoded anyway
        grow(axis, chunk[axis], most_nbytes)
    for axis in reversed(range(len(shape))):  # then what makes calls fewer
        grow(axis, shape[axis], most_nbytes // 4)
    return tuple(step)


def _regions(shape: tuple[int, ...], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Return the blocks of an array, each as slices."""
    axes = zip(shape, step, strict=True)
    return product(*([slice(i, min(i + s, length)) for i in range(0, length, s)] for length, s in axes))

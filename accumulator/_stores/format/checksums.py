"""A checksum for each row, by which a damaged one is found wherever it lies and however it is stored.

A row's bytes, little-endian as in the files and padded with zeros, are 64-bit words. The upper bits of each
are mixed into the lower ones, and the checksum is the sum of word times multiplier modulo 2**64, with odd
multipliers that look random (decision 011). One changed word always shows; other damage stays unseen about
once in 2**32 times. NumPy does all rows at once, at memory's speed and without the GIL; a CRC would be a call
for each.

The sum alone would be weak in the upper bits: two flipped ones of the same word cancel. The shift is odd, as
words are made of values of 8, 16 or 32 bits: by 32 the halves of two equal values would cancel each other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE: Final = 2**14  # words of a row that are summed at a time: their multipliers stay in the cache
_BUFFER: Final = 2**16  # words that are mixed at a time, in the cache too
_SHIFT: Final = np.uint64(33)
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def row_checksums(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Return the checksum of each row: ``(n, *patch_shape)`` to ``(n,)``."""
    n = len(rows)
    sums = np.zeros(n, dtype=np.uint64)
    if rows.size == 0:
        return sums
    little = rows.astype(rows.dtype.newbyteorder("<"), order="C", copy=False)
    data = little.reshape(n, -1).view(np.uint8)
    whole = data.shape[1] // 8
    words = data[:, : 8 * whole].view("<u8")
    for piece, start in enumerate(range(0, whole, _PIECE)):
        _add(sums, words[:, start : start + _PIECE], piece)
    if 8 * whole < data.shape[1]:
        rest = np.zeros((n, 8), dtype=np.uint8)
        rest[:, : data.shape[1] - 8 * whole] = data[:, 8 * whole :]
        _add(sums, rest.view("<u8"), -1)
    return sums


def _add(sums: NDArray[np.uint64], words: NDArray[np.uint64], piece: int) -> None:
    n, width = words.shape
    multipliers, factor = _multipliers(1)[:width], _multipliers(2)[piece % _PIECE]
    step = max(1, _BUFFER // width)
    buffer = np.empty((min(n, step), width), dtype=np.uint64)
    for start in range(0, n, step):
        part = words[start : start + step]
        mixed = buffer[: len(part)]
        np.right_shift(part, _SHIFT, out=mixed)
        np.bitwise_xor(mixed, part, out=mixed)
        sums[start : start + step] += np.einsum("ij,j->i", mixed, multipliers) * factor


def spoil(checksums: NDArray[np.uint64], known: NDArray[np.bool_]) -> None:
    """Let the checksums of rows that are not recorded, ``(n, heads)``, be right for no row.

    A copy that was made while rows came may have an old file of checksums and a new one that says what is
    written: those rows, which are empty in the copy, must not seem right.
    """
    np.invert(checksums, out=checksums, where=~known[:, None])


@lru_cache
def _multipliers(seed: int) -> NDArray[np.uint64]:
    """Return odd numbers that look random: SplitMix64, the same on every machine."""
    numbers = (np.arange(1, _PIECE + 1, dtype=np.uint64) + np.uint64(seed * _PIECE)) * _GOLDEN
    for shift, factor in _MIX:
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * factor
    numbers ^= numbers >> np.uint64(31)
    numbers |= np.uint64(1)
    numbers.flags.writeable = False
    return numbers

"""A checksum for each row, by which a damaged one is found wherever it lies and however it is stored.

A row's bytes, little-endian as in the files, are 32-bit words. Its checksum is the sum of word times
multiplier modulo 2**64, with odd multipliers that look random (decision 011). One changed word always shows;
any other damage stays unseen once in 2**33 times at most. NumPy does all rows at once, at memory's speed and
without the GIL; a CRC would be a call for each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE: Final = 2**14  # words of a row that are summed at a time: their multipliers stay in the cache
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
    whole = data.shape[1] // 4
    words = data[:, : 4 * whole].view("<u4")
    for piece, start in enumerate(range(0, whole, _PIECE)):
        some = words[:, start : start + _PIECE]
        part = np.einsum("ij,j->i", some, _multipliers(1)[: some.shape[1]])
        sums += part * _multipliers(2)[piece % _PIECE]
    if 4 * whole < data.shape[1]:
        rest = np.zeros((n, 4), dtype=np.uint8)
        rest[:, : data.shape[1] - 4 * whole] = data[:, 4 * whole :]
        sums += rest.view("<u4")[:, 0] * _multipliers(3)[0]
    return sums


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

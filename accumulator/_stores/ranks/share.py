"""Who does which rows: a pure function of how many there are, of their blocks, and of the ranks.

It does not depend on what is done. Ranks that start at different times see different remainders, and rows
that each leaves to another would go untaken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCKS: Final = 8  # of each rank, at least: those who go on with another number of ranks get alike shares


def block_rows(n_rows: int, unit_rows: int | None, world_size: int) -> int:
    """Return how many rows follow each other in a share: a chunk, or less where there are few chunks."""
    most = max(1, n_rows // (_BLOCKS * world_size))
    return most if unit_rows is None else max(1, min(unit_rows, most))


def is_of(rows: NDArray[np.intp], block: int, rank: int, world_size: int) -> NDArray[np.bool_]:
    """Return which rows are a rank's: blocks are dealt in turn."""
    return np.equal(rows // block % world_size, rank)


def share(n_rows: int, block: int, rank: int, world_size: int) -> NDArray[np.intp]:
    """Return a rank's rows, rising."""
    starts = np.arange(rank * block, n_rows, world_size * block)
    rows = (starts[:, None] + np.arange(block)).ravel()
    return rows[: np.searchsorted(rows, n_rows)]

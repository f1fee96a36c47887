"""Reading some rows of a head: chunk by chunk, no more bytes than allowed, and past what is damaged."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator.exceptions import DamagedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator.typing import RowArray

_BLOCK_NBYTES: Final = 16 * 2**20  # of an array in memory, which has no chunks


@attrs.define(eq=False)
class Reading:
    """What may be read of a head, and what became of it."""

    # bytes of whole chunks; at least one chunk is read
    most_nbytes: int = attrs.field(factory=lambda: tuning.now.report_head_nbytes)
    n_wanted: int = attrs.field(init=False, default=0)  # how many rows were asked for
    n_met: int = attrs.field(init=False, default=0)  # how many of them lie in chunks that were to be read
    # (n,): rows that were read
    rows: NDArray[np.intp] = attrs.field(init=False, factory=lambda: np.empty(0, np.intp))
    # (n,): rows that are not what was written, or hold something though they never came
    damaged: NDArray[np.intp] = attrs.field(init=False, factory=lambda: np.empty(0, np.intp))
    # (n,): rows that could not be read, as they share a chunk with damaged ones, or are just being
    # rewritten
    lost: NDArray[np.intp] = attrs.field(init=False, factory=lambda: np.empty(0, np.intp))


def read_rows(
    array: RowArray, wanted: NDArray[np.intp], reading: Reading
) -> Iterator[tuple[NDArray[np.intp], NDArray[Any]]]:
    """Yield rows and their values, in canonical order, a chunk at a time.

    Where all wanted rows lie in more chunks than may be read, chunks are left out evenly.
    """
    unit, reading.n_wanted = unit_rows(array), len(wanted)
    row_nbytes = max(1, int(array.nbytes) // max(1, array.shape[0]))
    numbers = np.unique(wanted // unit)
    most = max(1, reading.most_nbytes // (unit * row_nbytes))
    if len(numbers) > most:
        numbers = numbers[np.linspace(0, len(numbers) - 1, most).round().astype(np.intp)]
    read, damaged, lost = [], [], []
    reading.n_met = 0
    try:
        for number in numbers.tolist():
            first, last = np.searchsorted(wanted, [number * unit, (number + 1) * unit]).tolist()
            rows = wanted[first:last]
            reading.n_met += len(rows)
            try:
                values = np.asarray(array[int(rows[0]) : int(rows[-1]) + 1])[rows - rows[0]]
            except DamagedError as refusal:
                damaged.append(refusal.rows)
                lost.append(rows[~np.isin(rows, refusal.rows)])
                continue
            except StorageError as refusal:
                if refusal.errno != errno.ESTALE:
                    raise
                lost.append(rows)  # whoever writes the store has just replaced them
                continue
            read.append(rows)
            yield rows, values
    finally:
        nothing = [np.empty(0, np.intp)]
        reading.rows = np.concatenate(read or nothing)
        reading.damaged = np.concatenate(damaged or nothing)
        reading.lost = np.concatenate(lost or nothing)


def unit_rows(array: RowArray) -> int:
    """Return how many rows are read at once."""
    if isinstance(array, np.ndarray):
        return max(1, _BLOCK_NBYTES // max(1, int(array.nbytes) // max(1, len(array))))
    unit: Any = array.shards or array.chunks
    return int(unit[0])

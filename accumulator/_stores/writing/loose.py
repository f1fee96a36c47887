"""Small rows that come alone, for chunks all over a head: gathered, and sorted into their chunks later.

A block a chunk would be written early for a few rows each. So these rows are put one behind the other into
memory. When that is full it is sorted by row and appended to a log, a scratch file that need not survive a
crash; a chunk's rows are then one piece in each such run. Who needs a chunk reads them from there.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs import tuning
from accumulator._stores.files import system
from accumulator._stores.files.errors import storage_error
from accumulator._stores.format.stamps import NOT_AS_LEFT, opened, stamp_at, stamp_of
from accumulator._stores.memory.copying import Piece
from accumulator._stores.memory.row_numbers import count, ranked, spans
from accumulator.exceptions import DamagedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.format.stamps import Stamp
    from accumulator.typing import Rows

NOTE_NBYTES: Final = 16  # of memory for each row that is gathered, besides its values
_STEP_NBYTES: Final = 2**20
_MOST_LOGGED: Final = 2**31 - 1  # rows, as many as an int32 counts


class LooseRows:
    """Rows of one head, by their number; the last that was put for a row is the one that counts.

    What was put counts from `commit` on. An interrupt at any line leaves each row where it was, or where it
    was to go.
    """

    def __init__(
        self, n_rows: int, patch_shape: tuple[int, ...], dtype: np.dtype[Any], capacity: int, log: Path
    ) -> None:
        self.n_put = 0  # rows, ever
        self._n_rows, self._patch_shape, self._dtype = n_rows, patch_shape, dtype
        self._row_nbytes = dtype.itemsize * int(np.prod(patch_shape, dtype=np.int64))
        self._capacity, self._log = capacity, log
        # Where each row is: 0 if it is not here, place + 1 in memory, -1 - place in the log.
        self._places: NDArray[np.int32] | None = None
        self._values = np.empty((0, *patch_shape), dtype)
        self._rows = np.empty(0, dtype=np.intp)  # whose values these are
        self._n = self._n_logged = self._n_pending = 0
        self._has_log = False
        self._left: Stamp | None = None  # how the log was left
        self._pending: deque[tuple[NDArray[np.intp], int]] = deque()

    @property
    def is_used(self) -> bool:
        """Whether there may be any row here."""
        return self._n > 0 or self._n_logged > 0

    @property
    def room(self) -> int:
        """How many rows may be put before `spill`."""
        return self._capacity - self._n - self._n_pending

    @property
    def is_long(self) -> bool:
        """Whether the log has no room for one more run: all rows have to leave."""
        return self._n_logged + self._capacity > _MOST_LOGGED

    def piece(self, rows: NDArray[np.intp], values: NDArray[Any], of: Rows) -> Piece:
        """Return what has to be copied to put values in rows, for which there is room."""
        if self._places is None:
            self._places = np.zeros(self._n_rows, dtype=np.int32)
        if len(self._values) == 0:
            self._rows = np.empty(self._capacity, dtype=np.intp)
            self._values = np.empty((self._capacity, *self._patch_shape), self._dtype)
        start = self._n + self._n_pending
        self._rows[start : start + len(rows)] = rows
        self._pending.append((rows, start))
        self._n_pending += len(rows)
        return Piece(self._values, slice(start, start + len(rows)), values, of)

    def commit(self) -> None:
        while self._pending and self._places is not None:
            rows, start = self._pending[0]
            self._n = start + len(rows)
            self._places[rows] = np.arange(start + 1, self._n + 1)
            self._pending.popleft()
            self.n_put += len(rows)
        self._n_pending = 0

    def discard(self) -> None:
        self._pending.clear()
        self._n_pending = 0

    def held(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of some rows are here."""
        if self._places is None or not self.is_used:
            return np.zeros(count(rows), dtype=bool)
        return np.not_equal(self._places[rows], 0)

    def rows(self) -> NDArray[np.intp]:
        """Return which rows are here, rising."""
        if self._places is None or not self.is_used:
            return np.empty(0, dtype=np.intp)
        return np.flatnonzero(self._places)

    def chunks(self, chunk_rows: int) -> NDArray[np.intp]:
        """Return which chunks have rows here, rising."""
        if self._places is None or not self.is_used:
            return np.empty(0, dtype=np.intp)
        starts = np.arange(0, self._n_rows, chunk_rows)
        return np.flatnonzero(np.logical_or.reduceat(self._places, starts))

    def gathered(self, chunk_rows: int) -> NDArray[np.intp]:
        """Return how many rows of each chunk are in memory, up to the last chunk with any."""
        rows = self._rows[: self._n]
        return np.bincount(rows[self._current(rows)] // chunk_rows)

    def read(self, rows: NDArray[np.intp], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return the values of rows that are here; DamagedError tells that somebody has changed the log."""
        values = np.empty((len(rows), *self._patch_shape), self._dtype) if out is None else out
        if self._places is None or len(rows) == 0:
            return values
        places = self._places[rows]
        here, logged = np.flatnonzero(places > 0), np.flatnonzero(places < 0)
        at = -1 - places[logged].astype(np.intp)
        order = ranked(at)
        at, logged = at[order], logged[order]
        # First as they lie there, which is read in long pieces; then each row is taken from where it is.
        parts = list(spans(at, tuning.now.gap_nbytes // self._row_nbytes))
        n_read = sum(stop - start for start, stop in parts)
        found = np.empty((n_read + len(here), *self._patch_shape), self._dtype)
        source = np.empty(len(rows), dtype=np.intp)
        source[here] = np.arange(n_read, len(found))
        np.take(self._values, places[here] - 1, axis=0, out=found[n_read:], mode="clip")
        if parts:
            try:
                stamp = self._read_log(parts, found)
            except NOT_AS_LEFT as cause:
                raise self._lost() from cause
            except OSError as cause:
                raise storage_error(cause, "rows that wait for their chunks cannot be read back") from cause
            if stamp != self._left:
                raise self._lost()
            lengths = np.array([stop - start for start, stop in parts])
            ends = np.cumsum(lengths)
            part = np.searchsorted([stop for _, stop in parts], at, side="right")
            source[logged] = at - np.array([start for start, _ in parts])[part] + (ends - lengths)[part]
        return found.take(source, axis=0, out=values, mode="clip")

    def forget(self, rows: Rows) -> None:
        """Take note that rows are elsewhere now."""
        if self._places is not None and self.is_used:
            self._places[rows] = 0

    def spill(self) -> None:
        """Append what is in memory to the log, so that there is room again; an OSError changes nothing."""
        if self._places is None:
            return
        rows = self._rows[: self._n]
        order = self._current(rows)
        order = order[ranked(rows[order])]
        if len(order):
            self._has_log = True
            system.make_folder(self._log.parent)
            step = max(1, _STEP_NBYTES // self._row_nbytes)
            if self._n_logged and stamp_at(self._log) != self._left:
                raise self._lost()
            with system.opened(self._log, system.CHANGE if self._n_logged else system.NEW) as file:
                try:
                    for start in range(0, len(order), step):
                        part = self._values.take(order[start : start + step], axis=0)
                        system.write_at(file, _bytes(part), (self._n_logged + start) * self._row_nbytes)
                finally:  # what was written in part lies behind all that counts
                    self._left = stamp_of(os.fstat(file))
        # In this order: a place of the log is given once, and then what is in memory counts no more.
        first = self._n_logged
        self._n_logged += len(order)
        self._places[rows[order]] = -1 - np.arange(first, self._n_logged)
        self._n = 0

    def clear(self) -> None:
        """Let go of memory and of the log, once no row is here."""
        if self._places is not None and self._places.any():
            return
        self._n = self._n_logged = 0
        self._places, self._values = None, self._values[:0].copy()
        if self._has_log:
            system.remove(self._log)

    def tidy(self) -> None:
        """Remove the log's folder, once nothing else is in it, and nothing is written."""
        if self._has_log and system.remove_folder(self._log.parent):
            self._has_log = False

    def drop(self) -> None:
        """Forget all rows."""
        self.discard()
        self._n = self._n_logged = 0
        self._places = None

    def _read_log(self, parts: Iterable[tuple[int, int]], found: NDArray[Any]) -> Stamp:
        """Read parts of the log, from place to place, one behind the other; return how it is then."""
        at = 0
        with opened(self._log) as file:
            for start, stop in parts:
                part = found[at : at + stop - start]
                system.read_at(file, _bytes(part), start * self._row_nbytes)
                at += stop - start
            return stamp_of(os.fstat(file))

    def _lost(self) -> StorageError | DamagedError:
        """Return DamagedError where the log is not as it was left; its folder alone may come back."""
        if not self._log.parent.parent.is_dir():
            what = "rows that wait for their chunks cannot be read back, as the folder is gone"
            return StorageError(errno.ENOENT, what, os.fspath(self._log.parent.parent))
        rows = np.flatnonzero(self._places < 0) if self._places is not None else None
        what = "rows that wait for their chunks are lost: somebody has removed or changed their log"
        return DamagedError(errno.EIO, what, os.fspath(self._log), rows=rows)

    def _current(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the places in memory that count: a row that came again has another."""
        if self._places is None:
            return np.empty(0, dtype=np.intp)
        return np.flatnonzero(self._places[rows] == np.arange(1, len(rows) + 1))


def _bytes(values: NDArray[Any]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data

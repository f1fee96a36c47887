"""All of a batch counts, or none of it, whatever fails or interrupts a put."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores.memory.row_numbers import as_numbers, count, cut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.memory.row_store import RowStore
    from accumulator.typing import Rows


class AllOrNothing:
    """Puts batches into a store, and keeps account of the rows that count.

    What an interrupted put has left is dealt with before the next. Another store with the same rows may take
    the place of `store`; `written` is changed as rows come.
    """

    def __init__(self, store: RowStore, specs: Iterable[HeadSpec], written: NDArray[np.bool_]) -> None:
        self.store, self.written, self._specs = store, written, list(specs)
        self.row_nbytes = sum(spec.row_nbytes for spec in self._specs)  # of all heads
        self.n_written = int(np.count_nonzero(written))
        self.n_consumed = int(np.flatnonzero(written)[-1]) + 1 if self.n_written else 0
        self._is_committed = True  # whether the store counts all that is written
        self._stale: list[Rows] = []  # may hold what a failed put left there
        self._restore: list[tuple[Rows, list[NDArray[Any]]]] = []  # what a failed put has put others over

    def put(
        self,
        rows: Rows,
        values: Sequence[NDArray[Any]],
        seen: NDArray[np.bool_] | None,
        n_consumed: int,
        *,
        is_lent: bool = False,
    ) -> None:
        """Put values into their rows, after `settle`; if it fails, those ``seen`` hold what they held.

        Values that are lent do not change before `show`.
        """
        new, again, held = rows, None, []
        if seen is not None:
            new, again = as_numbers(rows)[~seen], as_numbers(rows)[seen]
            held = self.store.get(again)
        touched, before, parts = 0, self.n_consumed, self._parts(count(rows))
        try:
            for start, stop in parts:
                self.store.make_room((stop - start) * self.row_nbytes)
                touched = stop
                if len(parts) == 1:  # mostly
                    self._put(rows, values, is_lent=is_lent)
                else:
                    self._put(cut(rows, start, stop), [head[start:stop] for head in values], is_lent=is_lent)
                if stop != count(rows):
                    self.store.commit()
            self._is_committed = False
            self.written[rows] = True
            self.n_consumed = max(before, n_consumed)
        except BaseException:
            # Whatever line was interrupted: what was put must not count with the next batch.
            self.store.discard()
            self.written[new], self.n_consumed, self._is_committed = False, before, True
            # On disk the last part does not show, unless it was put over others.
            self._stale += [cut(rows, 0, touched)] * (len(parts) > 1 or self.store.zarr_store is None)
            self._restore += [] if again is None or not touched else [(again, held)]
            raise
        self.n_written += count(new)
        self._commit()

    def settle(self) -> None:
        """Finish what an interrupted call has left."""
        if not self._is_committed:
            self.n_written = int(np.count_nonzero(self.written))
            self._commit()
        while self._restore:
            self._put_at_once(*self._restore[-1])
            self._restore.pop()

    @property
    def unsettled(self) -> NDArray[np.intp] | None:
        """Rows that may hold what a refused put has left; None while the store does not count all."""
        if not self._is_committed:
            return None
        return np.concatenate([np.empty(0, np.intp), *(as_numbers(rows) for rows, _ in self._restore)])

    def show(self) -> None:
        """Make the store's arrays show every row that counts, and no other."""
        self.settle()
        while self._stale:
            rows = as_numbers(self._stale[-1])
            rows = rows[~self.written[rows]]
            blank = [np.full((1, *s.patch_shape), s.storage.fill_value, s.dtype) for s in self._specs]
            self._put_at_once(rows, [np.broadcast_to(b, (len(rows), *b.shape[1:])) for b in blank])
            self._stale.pop()
        self.store.flush()

    def _put_at_once(self, rows: Rows, values: Sequence[NDArray[Any]]) -> None:
        for start, stop in self._parts(count(rows)):
            self.store.make_room((stop - start) * self.row_nbytes)
            self._put(cut(rows, start, stop), [head[start:stop] for head in values])
            self.store.commit()

    def _parts(self, n: int) -> list[tuple[int, int]]:
        """Return pieces of a batch that may be put at a time: mostly one."""
        if n * self.row_nbytes <= self.store.part_nbytes:
            return [(0, n)] * (n > 0)
        step = max(1, self.store.part_nbytes // self.row_nbytes)
        return [(start, min(n, start + step)) for start in range(0, n, step)]

    def _put(self, rows: Rows, values: Sequence[NDArray[Any]], *, is_lent: bool = False) -> None:
        try:
            self.store.put(rows, values, is_lent=is_lent)
        except BaseException:
            self.store.discard()
            raise

    def _commit(self) -> None:
        self.store.commit()
        self._is_committed = True

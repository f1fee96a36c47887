"""Patches on their way into the bands, and what waits to be blended by another thread."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs

from accumulator._inputs import tuning
from accumulator._stores.memory.behind import Behind
from accumulator._stores.memory.copies import Copies

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from accumulator._stores.memory.pages import Pages

_READY: Final = 2  # batches that may come while the first is at work


@attrs.define(eq=False)
class Batch:
    """Patches that were taken, and are to be blended: their rows, and heads and weights of each group."""

    rows: NDArray[np.intp]
    heads: list[list[NDArray[Any]]]
    given: list[list[NDArray[Any] | None] | None]
    used: Sequence[Pages] = ()  # the memory of copies

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All arrays, which are the caller's."""
        given = [each for some in self.given for each in some or () if each is not None]
        return [head for some in self.heads for head in some] + given

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def with_arrays(self, arrays: Sequence[NDArray[Any]], used: Sequence[Pages]) -> Batch:
        """Return the same batch with other arrays of the same values."""
        left = iter(arrays)
        heads = [[next(left) for _ in some] for some in self.heads]
        given = [
            None if some is None else [None if each is None else next(left) for each in some]
            for some in self.given
        ]
        return Batch(self.rows, heads, given, used)


@attrs.define(eq=False)
class Waiting:
    """Batches that another thread blends, in their order, with arrays of the caller or copies of those."""

    thread: Behind = attrs.field(factory=partial(Behind, "accumulator-blend"))
    most_nbytes: int = 0  # of batches that wait
    _copies: Copies = attrs.field(factory=Copies)
    _looped: float = -math.inf  # when the last push ended

    @property
    def nbytes(self) -> int:
        """Bytes that batches take, and what is kept for more."""
        return self.thread.nbytes + self._copies.nbytes

    def is_worth_it(self, batch: Batch, *, is_lent: bool) -> bool:
        """Whether a batch is better blended behind the caller, whose loop did something else meanwhile."""
        nbytes = batch.nbytes
        if nbytes < tuning.now.behind_nbytes:
            return False
        if is_lent:
            return True
        away = time.monotonic() - self._looped
        return nbytes <= self.most_nbytes and away * tuning.now.copied_nbytes_s >= nbytes

    def own(self, batch: Batch) -> Batch:
        """Return the same batch with copies of its arrays."""
        self._copies.most_nbytes = self.most_nbytes // 2
        return batch.with_arrays(*self._copies.make(batch.arrays))

    def put(self, blend: Callable[[Batch], None], batch: Batch) -> None:
        """Have a batch blended, after those before it."""
        self.thread.put(partial(blend, batch), batch.nbytes)

    def make_ready(self, batch: Batch) -> None:
        """Have memory for copies of more batches like this, which is one."""
        if batch.used:
            with contextlib.suppress(MemoryError):  # it spares time, and no more
                self._copies.make_ready(_READY)

    def give_back(self, batch: Batch) -> None:
        """Take the memory of a batch that is blended."""
        self._copies.give_back(batch.used)

    def end_push(self) -> None:
        """Take note of when the caller's loop goes on."""
        self._looped = time.monotonic()

    def close(self) -> None:
        """End the threads, and let go of all memory."""
        self.thread.close()
        self._copies.close()

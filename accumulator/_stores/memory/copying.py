"""The one copy that a prediction gets, made by all cores where it is large.

One core alone can neither fill the memory bus nor keep up with the page faults of fresh memory.
"""

from __future__ import annotations

import contextlib
from collections import deque
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from accumulator._stores.memory.row_numbers import count, cut
from accumulator._stores.memory.threads import n_cores, start_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from accumulator.typing import Rows

PARALLEL_NBYTES: Final = 8 * 2**20  # below it waking a thread costs more than it saves
PART_NBYTES: Final = 8 * 2**20  # smaller ones are slower, as fresh memory comes 2 MiB at a time
MOST_HELPERS: Final = 3  # more do not make memory faster
_LARGE_ROW_NBYTES: Final = 4096  # above it a call a row costs less than NumPy's gathering of rows


class Piece(NamedTuple):
    """Rows of an array that are to be copied to rows of another."""

    target: NDArray[Any]
    at: Rows
    source: NDArray[Any]
    of: Rows


class Copier:
    """Copies pieces, with helping threads that start when they are needed first and end by `close`."""

    def __init__(self) -> None:
        self._n_helpers = min(n_cores() - 1, MOST_HELPERS)
        self._executor: ThreadPoolExecutor | None = None

    def copy(self, pieces: Sequence[Piece]) -> None:
        """Copy all pieces; when this returns or raises, no thread looks at them any more."""
        nbytes = sum(count(piece.at) * _row_nbytes(piece) for piece in pieces)
        if self._n_helpers == 0 or nbytes < PARALLEL_NBYTES:
            for piece in pieces:
                _copy(piece)
            return
        parts = deque(part for piece in pieces for part in _split(piece))
        helpers = self._call_for_help(parts)
        try:
            _copy_all(parts)
        finally:
            parts.clear()
            running = [helper for helper in helpers if not helper.cancel()]
            try:
                wait(running)
            except BaseException:
                wait(running)  # whatever interrupts: they read what the caller may reuse
                raise
        for helper in running:
            helper.result()

    def _call_for_help(self, parts: deque[Piece]) -> list[Future[None]]:
        """Have threads copy parts, too; there may be none, as at the end of the interpreter."""
        if self._executor is None:
            self._executor = start_threads(self._n_helpers, "accumulator-copy")
        helpers: list[Future[None]] = []
        if self._executor is not None:
            with contextlib.suppress(RuntimeError):
                helpers += [self._executor.submit(_copy_all, parts) for _ in range(self._n_helpers)]
        return helpers

    def close(self) -> None:
        """End the helping threads; they start again when they are needed."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _copy_all(parts: deque[Piece]) -> None:
    while parts:
        try:
            part = parts.popleft()
        except IndexError:  # another thread took the last one
            return
        _copy(part)


def _copy(piece: Piece) -> None:
    target, at, source, of = piece
    if isinstance(at, slice) or _row_nbytes(piece) < _LARGE_ROW_NBYTES:
        target[at] = source[of]
    else:
        numbers = range(of.start, of.stop) if isinstance(of, slice) else of.tolist()
        for row, number in zip(at.tolist(), numbers, strict=True):
            target[row] = source[number]


def _split(piece: Piece) -> Iterator[Piece]:
    target, at, source, of = piece
    n_parts = -(-count(at) * _row_nbytes(piece) // PART_NBYTES)
    step = max(1, -(-count(at) // max(1, n_parts)))  # parts of one size end at one time
    for start in range(0, count(at), step):
        stop = min(count(at), start + step)
        yield Piece(target, cut(at, start, stop), source, cut(of, start, stop))


def _row_nbytes(piece: Piece) -> int:
    return piece.target.strides[0] if piece.target.ndim and len(piece.target) > 1 else piece.target.nbytes

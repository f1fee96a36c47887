"""The one copy that a prediction gets, made by all cores where it is large.

One core alone can neither fill the memory bus nor keep up with the page faults of fresh memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from accumulator._inputs import tuning
from accumulator._stores.memory.behind import Behind
from accumulator._stores.memory.row_numbers import count, cut
from accumulator._stores.memory.threads import Pool, n_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from accumulator.typing import Rows

_MOST_THREADS: Final = 4  # more do not make memory faster
_LARGE_ROW_NBYTES: Final = 4096  # above it a call a row costs less than NumPy's gathering of rows


class Piece(NamedTuple):
    """Rows of an array that are to be copied to rows of another."""

    target: NDArray[Any]
    at: Rows
    source: NDArray[Any]
    of: Rows


class Copier:
    """Copies pieces, large ones on all cores, and those that are lent behind the caller."""

    def __init__(self) -> None:
        self._pool = Pool(min(n_cores(), _MOST_THREADS), "accumulator-copy")
        self._behind = Behind("accumulator-copy-behind")

    def copy_behind(self, pieces: Sequence[Piece]) -> int:
        """Have pieces copied after this returns, and return what `settle` waits for."""
        nbytes = _nbytes(pieces)
        if nbytes < tuning.now.behind_nbytes:
            self.copy(pieces)
            return 0
        self._behind.wait_for_room(nbytes, tuning.now.waiting_nbytes)
        if not self._behind.is_at_work:
            self.settle()  # where there is no thread, or it failed
        self._behind.put(partial(self._copy, pieces), nbytes)
        return self._behind.n_put

    def settle(self, n: int | None = None) -> None:
        """Wait until so many, or all, of those pieces are copied."""
        if self._behind.n_put:  # most callers lend nothing, and wait for nothing
            self._behind.settle(n)

    def copy(self, pieces: Sequence[Piece]) -> None:
        """Copy all pieces; when this returns or raises, no thread looks at them any more."""
        if self._behind.n_put:
            self.settle()
        self._copy(pieces)

    def _copy(self, pieces: Sequence[Piece]) -> None:
        most, shared = sum([piece.source.nbytes for piece in pieces]), tuning.now.shared_copy_nbytes
        if self._pool.n == 1 or most < shared or _nbytes(pieces) < shared:  # a piece may be of a part
            for piece in pieces:
                _copy(piece)
        else:
            self._pool.run(_copy, [part for piece in pieces for part in _split(piece)])

    def close(self) -> None:
        """End the threads; they start again when they are needed."""
        self._behind.close()
        self._pool.close()


def _nbytes(pieces: Sequence[Piece]) -> int:
    return sum(count(piece.at) * _row_nbytes(piece) for piece in pieces)


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
    n_parts = -(-count(at) * _row_nbytes(piece) // tuning.now.copy_part_nbytes)
    step = max(1, -(-count(at) // max(1, n_parts)))  # parts of one size end at one time
    for start in range(0, count(at), step):
        stop = min(count(at), start + step)
        yield Piece(target, cut(at, start, stop), source, cut(of, start, stop))


def _row_nbytes(piece: Piece) -> int:
    return piece.target.strides[0] if piece.target.ndim and len(piece.target) > 1 else piece.target.nbytes

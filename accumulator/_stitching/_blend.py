"""The arithmetic of a band: patches are added to it on all cores, and at the end it is divided.

The cores share a push by rows of the map, so that no two write one pixel. NumPy's loops run as fast as the
memory once its buffer is made smaller than a row: otherwise it copies each row through it.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from accumulator._stitching._numbers import convert, is_large
from accumulator._threads import n_cores, start_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from accumulator._stitching._weights import Sums

PARALLEL_NBYTES: Final = 2**20  # below it waking a thread costs more than it saves
_STRIP_NBYTES: Final = 2**18  # of products, which stay in the cache
_BLOCK_NBYTES: Final = 2**20  # of a band that is divided at a time
_BUFFER_ITEMS: Final = 1024
_MOST_THREADS: Final = 4  # more do not make memory faster


class Piece(NamedTuple):
    """Part of a patch and where it goes: arrays of one shape, whose last axis is contiguous."""

    head: int
    target: NDArray[Any]
    patch: NDArray[Any]
    weights: NDArray[Any] | None  # None where all count the same
    mask: NDArray[np.bool_] | None  # pixels that no row covers which comes later; None for all
    is_checked: bool  # whether its values may be too large for the target


class Task:
    """Blends pieces one after the other, up to the first that is too large for its target.

    Attributes
    ----------
    n_done : int
        How many pieces are done, those included that were done before.
    too_large : int, optional
        The head of the piece that stopped it.
    """

    def __init__(self, method: Callable[[Piece], None], pieces: Iterable[Piece], n_done: int) -> None:
        self._method, self._pieces = method, pieces
        self.n_done, self.too_large = n_done, None

    n_done: int
    too_large: int | None

    def __call__(self) -> None:
        """Do it."""
        for number, piece in enumerate(self._pieces):
            if number < self.n_done:
                continue
            if piece.is_checked and is_large(piece.patch):
                self.too_large = piece.head
                return
            self._method(piece)
            self.n_done += 1


def _add(piece: Piece) -> None:
    if piece.weights is None:
        np.add(piece.target, piece.patch, out=piece.target)
        return
    step = max(1, _STRIP_NBYTES // max(1, piece.target[:1].size * piece.target.itemsize))
    for start in range(0, len(piece.target), step):
        part = slice(start, start + step)
        product = np.multiply(piece.patch[part], piece.weights[part], dtype=piece.target.dtype)
        np.add(piece.target[part], product, out=piece.target[part])


def _take_largest(piece: Piece) -> None:
    np.maximum(piece.target, piece.patch, out=piece.target)


def _take_last(piece: Piece) -> None:
    np.copyto(piece.target, piece.patch, where=True if piece.mask is None else piece.mask)


METHODS: Final[Mapping[str, Callable[[Piece], None]]] = {
    "average": _add,
    "gaussian": _add,
    "hann": _add,
    "weights": _add,
    "max": _take_largest,
    "last": _take_last,
}


def finish(  # noqa: PLR0913  what it depends on
    band: NDArray[Any],
    target: NDArray[Any],
    sums: Sums,
    fill_value: Any,
    *,
    is_sum: bool,
    is_in_place: bool,
) -> None:
    """Divide rows of a band by the sums of weights, and write them as rows of the map.

    Parameters
    ----------
    band : (n, ..., channels) array
        Sums of patches, or what was chosen from them; changed.
    target : array of the same shape
        In the map's dtype.
    sums : Sums
        Of the weights, ``(n, ...)``, or of ones where nothing is added.
    fill_value : scalar
        For pixels that nothing covers.
    is_sum : bool
        Whether to divide.
    is_in_place : bool
        Whether ``target`` is ``band``.
    """
    n_channels = band.shape[-1]
    real = np.zeros((), band.dtype).real.dtype if band.dtype.kind in "fc" else np.dtype(np.float32)
    has_gaps = not (sums.factors.all() and sums.line.all())
    step = max(1, _BLOCK_NBYTES // max(1, band[:1].nbytes))
    for part, divisor in (
        _divisors(sums, n_channels, real, step) if is_sum or has_gaps else _strips(band, step)
    ):
        rows, written = (each[part].reshape(*each[part].shape[:-2], -1) for each in (band, target))
        gaps = divisor == 0 if has_gaps and divisor is not None else None
        if is_sum and divisor is not None:
            np.divide(rows, divisor if gaps is None else np.where(gaps, real.type(1), divisor), out=rows)
        if not is_in_place:
            convert(rows, written)
        if gaps is not None:
            np.copyto(written, fill_value, where=gaps)


def _strips(band: NDArray[Any], step: int) -> Iterator[tuple[slice, None]]:
    for start in range(0, len(band), step):
        yield slice(start, start + step), None


def _divisors(
    sums: Sums, n_channels: int, real: np.dtype[Any], step: int
) -> Iterator[tuple[slice, NDArray[Any] | None]]:
    """Yield strips and what their numbers are divided by: None where that is 1 throughout."""
    line = np.repeat(sums.line, n_channels, axis=-1) if sums.is_line else None
    last, divisor = None, None
    for start in range(0, len(sums.factors), step):
        part = slice(start, start + step)
        factors = sums.factors[part]
        first = float(factors.flat[0])
        if line is None:
            yield part, np.repeat(sums.line[part], n_channels, axis=-1).astype(real)
        elif not (factors == first).all():
            yield part, (factors * line).astype(real)
        else:
            if last != first:  # many strips have the same
                last, divisor = first, (first * line).astype(real)
                divisor = None if (divisor == 1).all() else divisor
            yield part, divisor


class Workers:
    """Threads that share the rows of a map; they start when they are needed first and end by `close`."""

    def __init__(self) -> None:
        self.n = min(n_cores(), _MOST_THREADS)
        self._executor: ThreadPoolExecutor | None = None

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Do all tasks; when this returns or raises, none is under way any more.

        An interrupt of the caller waits for them.
        """
        if len(tasks) > 1 and self.n > 1:
            if self._executor is None:
                self._executor = start_threads(self.n, "accumulator-stitch")
            if self._executor is not None:
                _share(tasks, self._executor)
                return
        for task in tasks:
            _quick(task)

    def close(self) -> None:
        """End the threads; they start again when they are needed."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _share(tasks: Sequence[Callable[[], None]], executor: ThreadPoolExecutor) -> None:
    running: list[Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # at the end of the interpreter no thread takes anything
            running += (executor.submit(_quick, task) for task in tasks)
        for task in tasks[len(running) :]:
            _quick(task)
    finally:
        try:
            wait(running)
        except BaseException:
            wait(running)
            raise
    for each in running:
        each.result()


def _quick(task: Callable[[], None]) -> None:
    """Do a task with a small buffer for NumPy, for which NaN and infinity are values like others."""
    size = np.getbufsize()
    with np.errstate(all="ignore"):
        np.setbufsize(_BUFFER_ITEMS)
        try:
            task()
        finally:
            np.setbufsize(size)

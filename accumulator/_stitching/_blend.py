"""The arithmetic of a band: patches are added to it on all cores, and at the end it is divided.

The cores share a push by rows of the map, so that no two write one pixel. NumPy's loops run as fast as the
memory once its buffer is made smaller than a row: otherwise it copies each row through it.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from accumulator._stitching._numbers import convert
from accumulator._stitching._parts import groups, run_step
from accumulator._threads import n_cores, start_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from numpy.typing import NDArray

    from accumulator._stitching._parts import Part
    from accumulator._stitching._weights import Sums

Method: TypeAlias = "Callable[[NDArray[Any], NDArray[Any], NDArray[Any] | None], None]"
Mask: TypeAlias = "Callable[[Part, int], NDArray[np.bool_] | bool]"

PARALLEL_NBYTES: Final = 2**20  # below it waking a thread costs more than it saves
_STRIP_NBYTES: Final = 2**18  # of products, which stay in the cache
_BLOCK_NBYTES: Final = 2**20  # of a band that is divided at a time
_BUFFER_ITEMS: Final = 1024
_SMALL_NBYTES: Final = 2**17  # patches that take less time to add than a call of Python
_MOST_THREADS: Final = 4  # more do not make memory faster


class Layer(NamedTuple):
    """One head of a push.

    Attributes
    ----------
    patches : (n, h, ..., w * channels) array
        What was pushed.
    bands : dict of (rows, ..., length * channels) arrays
        Where it goes, by the number of the band.
    weights : (h, ..., w * channels) array, or None
        What its numbers count; None where all count the same.
    has_zeros : bool
        Whether some of them count nothing, whatever they are.
    n_channels : int
        How many numbers a pixel has.
    """

    patches: NDArray[Any]
    bands: dict[int, NDArray[Any]]
    weights: NDArray[Any] | None
    has_zeros: bool
    n_channels: int


def blend_parts(blend: str, layers: Sequence[Layer], parts: list[Part], mask: Mask) -> None:
    """Blend the parts of a push, in their order."""
    nbytes = sum(layer.patches[:1].nbytes for layer in layers)
    for group in groups(parts, nbytes):
        for layer in layers:
            if blend == "last":
                for part in group:
                    target, patch, _ = _views(layer, part)
                    np.copyto(target, patch, where=mask(part, layer.n_channels))
                continue
            method = _take_largest if blend == "max" else _add_some if layer.has_zeros else _add
            step = run_step(group) if nbytes < _SMALL_NBYTES and len(group) > 2 else 0
            if step:
                _blend_run(method, layer, group, step)
                continue
            for part in group:
                method(*_views(layer, part))


def _views(layer: Layer, part: Part) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return a part's place in its band, the part of the patch, and its weights."""
    at, of = _slices(part.at, layer.n_channels), _slices(part.of, layer.n_channels)
    weights = None if layer.weights is None else layer.weights[of]
    return layer.bands[part.band][at], layer.patches[part.patch][of], weights


def _slices(box: tuple[tuple[int, int], ...], n_channels: int) -> tuple[slice, ...]:
    *axes, (first, last) = box
    return (*(slice(a, b) for a, b in axes), slice(first * n_channels, last * n_channels))


def _blend_run(method: Method, layer: Layer, group: list[Part], step: int) -> None:
    """Blend small patches of a row of a grid in as many calls as they overlap, not in one for each."""
    first = group[0]
    width = first.at[-1][1] - first.at[-1][0]
    n_sets = -(-width // step)  # every so manieth patch is beside the one before
    target, _, weights = _views(layer, first)
    of = _slices(first.of, layer.n_channels)
    for number in range(min(n_sets, len(group))):
        patches = layer.patches[first.patch + number : group[-1].patch + 1 : n_sets, *of]
        apart = step * layer.n_channels * target.itemsize
        row, *rest = target.strides
        places = np.ndarray(
            (target.shape[0], len(patches), *target.shape[1:]),
            target.dtype,
            layer.bands[first.band],
            _offset(layer.bands[first.band], first, layer.n_channels) + number * apart,
            (row, n_sets * apart, *rest),
        )
        method(places, np.moveaxis(patches, 0, 1), None if weights is None else weights[:, None])


def _offset(band: NDArray[Any], part: Part, n_channels: int) -> int:
    """Return how many bytes into a band a part begins."""
    starts = [axis.start for axis in _slices(part.at, n_channels)]
    return sum(start * stride for start, stride in zip(starts, band.strides, strict=True))


def _add(target: NDArray[Any], patch: NDArray[Any], weights: NDArray[Any] | None) -> None:
    if weights is None:
        np.add(target, patch, out=target)
        return
    step = max(1, _STRIP_NBYTES // max(1, target[:1].size * target.itemsize))
    for start in range(0, len(target), step):
        part = slice(start, start + step)
        product = np.multiply(patch[part], weights[part], dtype=target.dtype)
        np.add(target[part], product, out=target[part])


def _add_some(target: NDArray[Any], patch: NDArray[Any], weights: NDArray[Any] | None) -> None:
    """Add what counts; what does not may be NaN."""
    _add(target, patch if weights is None else np.where(weights == 0, 0, patch), weights)


def _take_largest(target: NDArray[Any], patch: NDArray[Any], _weights: NDArray[Any] | None) -> None:
    np.maximum(target, patch, out=target)


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

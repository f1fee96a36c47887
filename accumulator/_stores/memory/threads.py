"""Threads that share work with the caller."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

T = TypeVar("T")
_GATE_SECONDS: Final = 5  # an interrupt may keep it from being opened


class Pool:
    """The caller and ``n - 1`` threads, which start when they are needed first, and end by `close`."""

    def __init__(self, n: int, name: str) -> None:
        self.n, self._name = n, name
        self._executor: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[T], object], items: Collection[T] | Iterator[T]) -> None:
        """Do some work on every item; raise what fails, after which nothing more is begun.

        When this returns or raises no thread is at work any more, whatever interrupts the caller.
        """
        n_helpers = (self.n if isinstance(items, Iterator) else min(self.n, len(items))) - 1
        if n_helpers < 1:
            for item in items:
                work(item)
            return
        left, helpers = _Left(items), list[Future[None]]()
        try:
            helpers += self._call(n_helpers, work, left)
            _work(work, left)
        finally:
            left.drop()
            running = [helper for helper in helpers if not helper.cancel()]
            try:
                wait(running)
            except BaseException:
                wait(running)  # they use what the caller may use again
                raise
        for helper in running:
            helper.result()

    def close(self) -> None:
        """End the threads; they start again when they are needed."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None  # not before: after an interrupt they are waited for again

    def _call(self, n: int, work: Callable[[T], object], left: _Left[T]) -> Iterator[Future[None]]:
        """Have threads work, too; there may be none, as at the end of the interpreter."""
        if self._executor is None:
            self._executor = start_threads(self.n - 1, self._name)
        if self._executor is not None:
            with contextlib.suppress(RuntimeError):
                for _ in range(n):
                    yield self._executor.submit(_work, work, left)


class _Left(Generic[T]):
    """Items that nobody works on yet; threads may share it."""

    def __init__(self, items: Collection[T] | Iterator[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def drop(self) -> None:
        self._items = iter(())


def _work(work: Callable[[T], object], left: _Left[T]) -> None:
    try:
        for item in left:
            work(item)
    finally:
        left.drop()


def start_threads(n_threads: int, name: str) -> ThreadPoolExecutor | None:
    """Return a pool of so many threads, or of fewer if the system refuses; None if it refuses any.

    They run before there is anything to do. Else a task would be queued although no thread starts for it.
    """
    for n in range(n_threads, 0, -1):
        pool, gate = ThreadPoolExecutor(n, name), threading.Event()
        with contextlib.suppress(RuntimeError):
            try:
                for _ in range(n):
                    pool.submit(gate.wait, _GATE_SECONDS)
                return pool
            finally:
                gate.set()
        pool.shutdown()
    return None


def to_its_end(call: Callable[[], T]) -> T:
    """Return what a call returns; nothing of it goes on behind this, whatever interrupts the caller.

    zarr works on behind a caller whom Ctrl-C takes out of waiting for it, and would write over what comes
    next. So another thread calls it, which is waited for in any case.
    """
    may_be_interrupted = threading.current_thread() is threading.main_thread()
    pool = start_threads(1, "accumulator") if may_be_interrupted else None
    if pool is None:
        return call()
    try:
        return pool.submit(call).result()
    finally:
        pool.shutdown()


def run_all(work: Callable[[T], object], items: Collection[T] | Iterator[T]) -> None:
    """Do some work on every item, on all cores."""
    pool = Pool(n_cores(), "accumulator")
    try:
        pool.run(work, items)
    finally:
        pool.close()


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Pools of threads that run before there is anything to do.

A pool of the standard library starts a thread when a task comes. If the system refuses, the task is queued
all the same, and runs whenever another thread takes it: too late to know.
"""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
_AT_A_TIME: Final = 2**10


def start_threads(n_threads: int, name: str) -> ThreadPoolExecutor | None:
    """Return a pool of so many threads, or of fewer if the system refuses; None if it refuses any."""
    for n in range(n_threads, 0, -1):
        pool, gate = ThreadPoolExecutor(n, name), threading.Event()
        try:
            for _ in range(n):
                pool.submit(gate.wait)
        except RuntimeError:
            gate.set()
            pool.shutdown()
        else:
            gate.set()
            return pool
    return None


def run_all(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Do something with each item, on all cores; what it raises first is raised."""
    pool, left = start_threads(n_cores(), "accumulator"), iter(items)
    if pool is None:
        for item in left:
            work(item)
        return
    with pool:
        while some := list(itertools.islice(left, _AT_A_TIME)):  # there may be millions
            for _ in pool.map(work, some):
                pass


def n_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Threads that share work: what fails, and what interrupts the caller, waits for all of them."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from accumulator._stores.memory import threads as _threads
from accumulator._stores.memory.threads import Pool, run_all


@pytest.fixture
def pool():
    """Return a pool of three, whatever the machine has."""
    made = Pool(3, "accumulator-test")
    yield made
    made.close()


def names():
    """Return the names of the pool's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("accumulator-test")]


def test_caller_and_threads_share_all_items(pool):
    """Every item is worked on once, by several; the threads wait for more until they are closed."""
    barrier, done = threading.Barrier(3), []

    def work(item):
        if item < 3:
            barrier.wait(10)
        done.append((item, threading.current_thread()))

    pool.run(work, iter(range(100)))
    assert sorted(item for item, _ in done) == list(range(100))
    assert len({thread for _, thread in done}) == 3
    assert len(names()) == 2
    pool.close()
    assert names() == []
    pool.run(work, [5])
    assert names() == []  # one item needs no help


@pytest.mark.parametrize("where", ["caller", "thread"])
def test_failure_ends_all(pool, where):
    """What fails on any thread is raised, and nothing is begun after it."""
    begun, all_of_them = [], threading.Barrier(3)

    def work(item):
        begun.append(item)
        if item < 3:
            all_of_them.wait(10)
        time.sleep(0.01)
        if (threading.current_thread() is threading.main_thread()) == (where == "caller"):
            raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        pool.run(work, range(300))
    assert len(begun) < 300


def test_interrupted_caller_waits(pool, monkeypatch):
    """Two interrupts while the threads are at work do not let the caller go on without them."""
    started, free, ended, waits = threading.Barrier(3), threading.Event(), [], []
    real = _threads.wait

    def work(_):
        started.wait(10)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        free.wait(10)
        ended.append(1)

    def wait(futures):
        waits.append(len(futures))
        if len(waits) == 1:
            raise KeyboardInterrupt
        free.set()
        return real(futures)

    monkeypatch.setattr(_threads, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        pool.run(work, range(50))
    assert (waits, len(ended)) == ([2, 2], 2)


def test_interrupt_while_threads_start_leaves_none_behind(pool, monkeypatch):
    """They would wait for ever to be told to begin, and the interpreter for them."""
    real, calls = ThreadPoolExecutor.submit, []

    def submit(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(ThreadPoolExecutor, "submit", submit)
        with pytest.raises(KeyboardInterrupt):
            pool.run(print, range(5))
    deadline = time.monotonic() + 10
    while names() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert names() == []
    done = []
    pool.run(done.append, range(5))
    assert sorted(done) == list(range(5))


def test_items_that_cannot_be_had_are_told():
    """An iterator that fails ends all, too."""

    def items():
        yield from range(5)
        raise OSError("no more of them")

    done = []
    with pytest.raises(OSError, match="no more of them"):
        run_all(done.append, items())
    assert sorted(done) == list(range(5))

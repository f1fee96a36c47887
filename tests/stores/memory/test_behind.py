"""Calls that are made behind the caller: in order, one at a time, and what fails is told."""

from __future__ import annotations

import logging
import threading
import time
from unittest.mock import Mock

import numpy as np
import pytest

from accumulator._inputs.warn import log, warn
from accumulator._stores.memory import behind as _behind
from accumulator._stores.memory.behind import Behind
from accumulator._stores.memory.copies import Copies

SECONDS = 20


@pytest.fixture
def behind():
    """Return one that ends with the test."""
    made = Behind("accumulator-test")
    yield made
    made.close()


@pytest.fixture
def gate():
    """Return what calls wait for, opened at the end at the latest."""
    gate = threading.Event()
    yield gate
    gate.set()


def is_alive():
    """Whether its thread is there."""
    return any(thread.name.startswith("accumulator-test") for thread in threading.enumerate())


def until(is_so):
    """Wait until something is so."""
    end = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_calls_are_made_in_order_by_another_thread(behind):
    """The caller is free meanwhile; after `settle` all are made."""
    done, threads = [], set()

    def call(number):
        done.append(number)
        threads.add(threading.current_thread())

    for number in range(1000):
        behind.put(lambda number=number: call(number), 1)
    behind.settle()
    assert done == list(range(1000))
    assert behind.is_done
    assert behind.nbytes == 0
    assert threads.isdisjoint({threading.current_thread()})
    assert is_alive()
    behind.close()
    assert not is_alive()


def test_caller_waits_for_room(behind, gate):
    """As many bytes wait as are told, however large one is."""
    behind.put(lambda: gate.wait(SECONDS), 5)
    behind.put(lambda: None, 5)
    assert behind.nbytes == 10
    behind.wait_for_room(2, 12)
    waited = threading.Thread(target=lambda: behind.wait_for_room(3, 12))
    waited.start()
    until(lambda: behind.is_awaited)
    assert waited.is_alive()
    gate.set()
    waited.join(SECONDS)
    assert not waited.is_alive()
    assert not behind.is_awaited
    behind.wait_for_room(1000, 12)
    assert behind.is_done


def test_what_fails_is_done_again_by_the_caller(behind, gate):
    """Nothing after it is begun before, whatever else is handed over; then all goes on."""
    done, may_succeed = [], threading.Event()

    def fail():
        gate.wait(SECONDS)
        done.append("try")
        if not may_succeed.is_set():
            raise OSError("no room")

    behind.put(fail, 1)
    behind.put(lambda: done.append("next"), 1)
    gate.set()
    until(lambda: not behind.is_at_work)
    behind.put(lambda: done.append("last"), 1)
    with pytest.raises(OSError, match="no room"):
        behind.settle()
    assert done == ["try", "try"]
    assert behind.nbytes == 3
    may_succeed.set()
    behind.settle()
    assert done == ["try", "try", "try", "next", "last"]
    behind.put(lambda: done.append(threading.current_thread()), 1)
    behind.settle()
    assert done[-1] is not threading.current_thread()


def test_end_drops_what_is_not_begun(behind, gate):
    """What is begun is waited for."""
    done = []
    behind.put(lambda: (gate.wait(SECONDS), done.append("first")), 1)
    behind.put(lambda: done.append("second"), 1)
    closing = threading.Thread(target=behind.close)
    closing.start()
    until(lambda: behind.nbytes == 1)
    assert closing.is_alive()
    gate.set()
    closing.join(SECONDS)
    assert done == ["first"]
    assert behind.is_done


def test_end_drops_what_failed(behind):
    """Nobody makes it again."""

    def fail():
        raise OSError

    behind.put(fail, 1)
    until(lambda: behind.failure is not None)
    behind.close()
    assert behind.is_done
    behind.settle()


@pytest.mark.parametrize("wait", [Behind.settle, lambda behind: behind.wait_for_room(1, 1)])
def test_caller_is_warned(behind, wait):
    """The warning names the line that waits, not the library's; where it is an error it is told once."""
    for _ in range(2):
        behind.put(lambda: warn("memory is short", ResourceWarning), 1)
        until(lambda: not behind.is_at_work)
        with pytest.warns(ResourceWarning, match="memory is short") as told:
            wait(behind)
        assert [warning.filename for warning in told] == [__file__]
    behind.put(lambda: warn("memory is short", ResourceWarning), 1)
    behind.put(lambda: warn("memory is short", UserWarning), 1)
    until(lambda: not behind.is_at_work)
    for category in (ResourceWarning, UserWarning):
        with pytest.raises(category):  # as warnings are errors here
            wait(behind)
    wait(behind)
    assert behind.failure is None


def test_log_is_the_callers(behind, caplog):
    """A handler may look at what the thread is at work on, for which the caller may hold a lock."""
    caplog.set_level("INFO", "accumulator")
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append((record.getMessage(), threading.current_thread()))
    logger = logging.getLogger("accumulator")
    logger.addHandler(handler)
    try:
        behind.put(lambda: log(logging.INFO, "%d rows move", 3), 1)
        until(lambda: not behind.is_at_work)
        assert not told
        behind.settle()
        log(logging.INFO, "at once")
    finally:
        logger.removeHandler(handler)
    assert told == [("3 rows move", threading.current_thread()), ("at once", threading.current_thread())]


def test_end_waits_again_after_an_interrupt(behind, gate, monkeypatch):
    """Python takes a thread whose joining was interrupted for ended."""
    behind.put(lambda: gate.wait(SECONDS), 1)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(behind._change, "wait_for", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            behind.close()
    closing = threading.Thread(target=behind.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive()
    gate.set()
    closing.join(SECONDS)
    assert not behind.is_at_work
    assert not [each for each in threading.enumerate() if each.name.startswith("accumulator-test")]


def test_end_from_within_a_call_does_not_wait_for_itself(behind):
    """As the garbage collector may do."""
    behind.put(behind.close, 1)
    until(lambda: behind.is_done)


def test_call_that_waits_is_told_by_its_number_wherever_an_interrupt_came(behind, gate):
    """Who waits for a call waits for that one, though the one before was never handed over."""
    done = []

    class Torn(type(behind._calls)):
        def append(self, item):
            if not done:
                done.append("interrupt")
                raise KeyboardInterrupt
            super().append(item)

    behind._calls = Torn()
    with pytest.raises(KeyboardInterrupt):
        behind.put(lambda: done.append("never"), 1)
    behind.put(lambda: (gate.wait(SECONDS), done.append("first")), 1)
    first = behind.n_put
    behind.put(lambda: (time.sleep(0.2), done.append("second")), 1)
    gate.set()
    behind.settle(first)
    assert done == ["interrupt", "first"]
    behind.settle(behind.n_put)
    assert done == ["interrupt", "first", "second"]


def test_who_waits_does_not_when_all_is_dropped(behind, gate):
    """A thread that writes would wait for the one that copies, which closes both."""
    behind.put(lambda: gate.wait(SECONDS), 1)
    waited = threading.Thread(target=behind.settle)
    waited.start()
    until(lambda: behind.is_awaited)
    closing = threading.Thread(target=behind.close)
    closing.start()
    waited.join(SECONDS)
    assert not waited.is_alive()
    gate.set()
    closing.join(SECONDS)


def test_interrupted_wait_changes_nothing(behind, gate, monkeypatch):
    """The thread goes on, and the next wait ends."""
    done = []
    behind.put(lambda: (gate.wait(SECONDS), done.append(1)), 1)

    def interrupt(_until):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(behind._change, "wait_for", interrupt)
        with pytest.raises(KeyboardInterrupt):
            behind.settle()
    assert not behind.is_awaited
    gate.set()
    behind.settle()
    assert done == [1]


def test_without_a_thread_calls_wait_for_the_caller(behind, monkeypatch):
    """The system may refuse one."""
    monkeypatch.setattr(_behind, "start_threads", lambda *_: None)
    done = []
    behind.put(lambda: done.append(threading.current_thread()), 1)
    assert not behind.is_at_work
    behind.settle()
    assert done == [threading.current_thread()]


@pytest.mark.parametrize("dtype", ["u1", ">f4", "c8", "?"])
def test_copies_are_equal_and_lie_alike(dtype):
    """Whatever order the axes have, so that a copy reads and writes memory in one direction."""
    rng, copies = np.random.default_rng(0), Copies()
    whole = rng.integers(0, 2, (6, 3, 5, 7)).astype(dtype)
    arrays = [whole, whole[::2], np.moveaxis(whole, 1, -1), whole[:, :, 1:3], whole[:0], whole[:, 0, 0, 0]]
    made, used = copies.make(arrays)
    for array, copy in zip(arrays, made, strict=True):
        np.testing.assert_array_equal(copy, array)
        assert copy.dtype == array.dtype
        assert not np.shares_memory(copy, array)
        order, own = (np.argsort(np.abs(each.strides)).tolist() for each in (copy, array))
        assert order == own or not array.size
    copies.give_back(used)
    copies.close()


def test_memory_of_copies_is_used_again():
    """Once it is given back, and not before."""
    copies, array = Copies(), np.ones((4, 4096))
    copies.most_nbytes = 2 * array.nbytes
    (first,), used = copies.make([array])
    (second,), more = copies.make([array])
    assert not np.shares_memory(first, second)
    copies.give_back(used)
    (third,), _ = copies.make([2 * array])
    assert np.shares_memory(first, third)
    assert second.sum() == array.sum()
    copies.give_back(more)
    (small,), tiny = copies.make([np.ones(10)])  # which would take much memory for little
    assert not np.shares_memory(small, second)
    copies.give_back(tiny)
    (again,), _ = copies.make([np.ones(9)])
    assert np.shares_memory(small, again)
    copies.give_back(tiny)
    (large,), _ = copies.make([array])  # for which what is kept is too small
    assert large.sum() == array.sum()
    copies.make_ready(9)  # as many as may be kept
    assert array.nbytes <= copies.nbytes <= copies.most_nbytes
    copies.close()

"""Work that goes on behind the caller, in the order in which it was handed over."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from accumulator._inputs.warn import Kept
from accumulator._stores.memory.threads import start_threads

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class Behind:
    """One thread that makes calls; one caller at a time hands them over, others may wait.

    A call that fails stays, and none after it is begun: `settle` makes it again, in the caller's thread,
    where it raises. What the thread warns of is told to whoever waits next. Whatever line an interrupt comes
    at, a call is there or not, and none is made twice at a time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # The call, the bytes that wait for it, and its number. The first may be under way.
        self._calls = deque[tuple[Callable[[], object], int, int]]()
        self._executor: ThreadPoolExecutor | None = None
        self._ident: int | None = None  # of the thread, while it works
        self._is_closed = False
        self._warnings = Kept()
        self._process = os.getpid()
        self._set_locks()
        self.n_put = 0  # the number of the last call
        self.is_awaited = False  # a caller waits, and needs no core
        self.failure: BaseException | None = None  # of the first call

    @property
    def nbytes(self) -> int:
        """Bytes that wait for all calls that are not made."""
        return sum(nbytes for _, nbytes, _ in list(self._calls))

    @property
    def is_at_work(self) -> bool:
        """Whether the thread works on something."""
        return self._ident is not None and self._process == os.getpid()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not self._calls

    def put(self, call: Callable[[], object], nbytes: int) -> None:
        """Hand over a call, which so many bytes wait for; if no thread can be had, it waits for `settle`."""
        self._look_where()
        with self._lock:
            self._is_closed = False
            self.n_put += 1
            self._calls.append((call, nbytes, self.n_put))
            if self.is_at_work or self.failure is not None:
                return
            try:
                if self._executor is None:
                    self._executor = start_threads(1, self._name)
                if self._executor is not None:
                    self._ident = -1  # not known yet
                    self._executor.submit(self._run)
            except BaseException as cause:
                self._ident = None
                if not isinstance(cause, (RuntimeError, MemoryError)):  # as at the end of the interpreter
                    raise

    def wait_for_room(self, nbytes: int, most: int) -> None:
        """Wait until so many bytes more are not too many, or the thread rests: `settle` does what it left."""
        self._look_where()
        self._wait(lambda: self.nbytes + nbytes <= most)
        self._warnings.tell()

    def settle(self, n: int | None = None) -> None:
        """Wait until calls are made, up to that number or all; what is not is made here, and raises."""
        self._look_where()
        if not self._is_made(n):
            self._wait(lambda: self._is_made(n))
        if not self._is_made(n) and not self._is_closed:
            self._make_all()
        self._warnings.tell()

    def _make_all(self) -> None:
        with self._settling:
            self.is_awaited = True
            try:
                while self._calls and not self.is_at_work:
                    self._calls[0][0]()
                    self._drop_first()
            finally:
                self.is_awaited = False
            self.failure = None

    def close(self) -> None:
        """Forget all that is not begun, wait for what is, and end the thread; nobody waits any more."""
        self._look_where()
        with self._lock:
            while len(self._calls) > self.is_at_work:
                self._calls.pop()
            self.failure, self._is_closed = None, True
            self._change.notify_all()
            # The garbage collector may call from within the thread. To join it is not enough: one that an
            # interrupt takes out of that, Python takes for ended.
            is_within = self._ident == threading.get_ident()
            self._change.wait_for(lambda: is_within or not self.is_at_work)
        if self._executor is not None:
            self._executor.shutdown(wait=not is_within)
            self._executor = None

    def _is_made(self, n: int | None) -> bool:
        """Whether all calls up to a number are made."""
        with self._lock:
            return not self._calls or (n is not None and self._calls[0][2] > n)

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._lock:
            self.is_awaited = True
            try:
                self._change.wait_for(lambda: until() or not self.is_at_work or self._is_closed)
            finally:
                self.is_awaited = False

    def _drop_first(self) -> None:
        with self._lock:
            self._calls.popleft()
            self._change.notify_all()

    def _look_where(self) -> None:
        """Begin anew in a forked child, which has no thread, and nobody to let go of locks."""
        if self._process != os.getpid():
            self._process, self._ident, self._executor = os.getpid(), None, None
            self._set_locks()

    def _set_locks(self) -> None:
        self._lock = (
            threading.RLock()
        )  # whose two ends no interrupt comes into, as it would into a Condition's
        self._change = threading.Condition(self._lock)
        self._settling = threading.RLock()  # no call is made twice at a time

    def _run(self) -> None:
        self._ident = threading.get_ident()
        is_over = False
        with self._warnings.keep():
            while not is_over:
                with self._settling:
                    is_over = self._make_first()

    def _make_first(self) -> bool:
        """Make the first call, and return whether the thread rests."""
        failure = None
        if self._calls:
            try:
                self._calls[0][0]()
            except BaseException as cause:  # noqa: BLE001  it is the caller's
                failure = cause
        with self._lock:
            if self._calls and failure is None:
                self._drop_first()
            is_over = failure is not None or not self._calls
            if is_over:
                self.failure, self._ident = failure, None
                self._change.notify_all()
        return is_over

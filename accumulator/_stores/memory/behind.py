"""Work that goes on behind the caller, in the order in which it was handed over."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._stores.memory.copying import Copier, Piece
from accumulator._stores.memory.pages import Pages
from accumulator._stores.memory.threads import start_threads

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

_MOST_SPARE: Final = 8  # arrays whose memory is kept to be used again


class Behind:
    """One thread that makes calls; one caller at a time hands them over, and waits.

    A call that fails stays, and none after it is begun: `settle` makes it again, in the caller's thread,
    where it raises.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls = deque[tuple[Callable[[], object], int]]()  # the first may be under way
        self._change = threading.Condition()
        self._executor: ThreadPoolExecutor | None = None
        self._ident: int | None = None  # of the thread, while it works
        self.nbytes: int = 0  # of all that is not done
        self.is_awaited = False  # a caller waits, and needs no core
        self.failure: BaseException | None = None  # of the first call

    @property
    def is_at_work(self) -> bool:
        """Whether the thread works on something."""
        return self._ident is not None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left."""
        return not self._calls

    def put(self, call: Callable[[], object], nbytes: int) -> None:
        """Hand over a call, which so many bytes wait for; if no thread can be had, it waits for `settle`."""
        with self._change:
            self._calls.append((call, nbytes))
            self.nbytes += nbytes
            if self.is_at_work or self.failure is not None:
                return
            if self._executor is None:
                self._executor = start_threads(1, self._name)
            if self._executor is not None:
                self._ident = -1  # not known yet
                try:
                    self._executor.submit(self._run)
                except RuntimeError:  # at the end of the interpreter
                    self._ident = None

    def wait_for_room(self, nbytes: int, most: int) -> None:
        """Wait until so many bytes more are not too many, or the thread rests."""
        self._wait(lambda: not self.is_at_work or self.nbytes + nbytes <= most)

    def settle(self) -> None:
        """Wait until all is done; what is not is done here, and raises what it raises."""
        self._wait(lambda: not self.is_at_work)
        self.is_awaited = True
        try:
            while self._calls:
                self._calls[0][0]()
                self._drop_first()
        finally:
            self.is_awaited = False
        self.failure = None

    def close(self) -> None:
        """Forget all that is not begun, wait for what is, and end the thread."""
        with self._change:
            while len(self._calls) > self.is_at_work:
                self.nbytes -= self._calls.pop()[1]
            self.failure = None
        executor, self._executor = self._executor, None
        if executor is not None:
            # The garbage collector may call from within the thread.
            executor.shutdown(wait=self._ident != threading.get_ident())

    def _wait(self, until: Callable[[], bool]) -> None:
        with self._change:
            self.is_awaited = True
            try:
                self._change.wait_for(until)
            finally:
                self.is_awaited = False

    def _drop_first(self) -> None:
        with self._change:
            self.nbytes -= self._calls.popleft()[1]
            self._change.notify_all()

    def _run(self) -> None:
        self._ident = threading.get_ident()
        while True:
            try:
                self._calls[0][0]()
            except BaseException as failure:  # noqa: BLE001  it is the caller's
                self._rest(failure)
                return
            with self._change:
                self._drop_first()
                if not self._calls:
                    self._rest(None)
                    return

    def _rest(self, failure: BaseException | None) -> None:
        with self._change:
            self.failure, self._ident = failure, None
            self._change.notify_all()


class Copies:
    """Copies of arrays, whose memory is used again."""

    def __init__(self) -> None:
        self._copier, self._spare, self._lock = Copier(), list[Pages](), threading.Lock()
        self._sizes: list[int] = []  # of the last arrays

    def make(self, arrays: Sequence[NDArray[Any]]) -> tuple[list[NDArray[Any]], list[Pages]]:
        """Return copies that lie in memory in the order of the arrays, without gaps, and their memory."""
        self._sizes = [array.nbytes for array in arrays]
        used = list(map(self._pages, self._sizes))
        copies = [_laid_like(array, pages) for array, pages in zip(arrays, used, strict=True)]
        self._copier.copy(
            [
                Piece(copy, slice(0, len(copy)), array, slice(0, len(array)))
                for copy, array in zip(copies, arrays, strict=True)
            ]
        )
        return copies, used

    def make_ready(self) -> None:
        """Have memory for as large arrays again, which to touch first takes longer than the copy itself."""
        used = [self._pages(nbytes) for nbytes in self._sizes]
        for pages in used:
            pages.touch()
        self.give_back(used)

    def give_back(self, used: Sequence[Pages]) -> None:
        """Take memory that nobody looks at any more."""
        with self._lock:
            self._spare = [*used, *self._spare][:_MOST_SPARE]

    def close(self) -> None:
        """Let go of all memory, and end the threads."""
        with self._lock:
            self._spare.clear()
        self._copier.close()

    def _pages(self, nbytes: int) -> Pages:
        with self._lock:
            for i, pages in enumerate(self._spare):
                if nbytes <= pages.nbytes <= 2 * nbytes:
                    return self._spare.pop(i)
        return Pages(nbytes, is_huge=True)


def _laid_like(array: NDArray[Any], pages: Pages) -> NDArray[Any]:
    """Return an array over pages that has an array's shape, dtype and order of axes."""
    order = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
    laid = pages.array([array.shape[axis] for axis in order], array.dtype)
    return laid.transpose(np.argsort(order))

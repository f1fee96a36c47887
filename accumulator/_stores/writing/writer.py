"""Writing in the background: threads that take blocks of rows to disk, and not too many at once.

What fails is kept, reported once, and tried again before anything else.

The threads are no `Pool`: they run before there is a job, so that a system that refuses threads is met
before any row is taken; and a job that waits can be taken back for certain.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from accumulator.exceptions import ClosedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_EXIT_SECONDS: Final = 10  # how long the end of the interpreter waits for a write


class Job(Protocol):
    """Rows that are to be written, and how to call their head."""

    @property
    def nbytes(self) -> int: ...

    @property
    def rows(self) -> NDArray[np.intp]: ...

    @property
    def label(self) -> str: ...

    def write(self) -> None:
        """Write them, on a thread of its own; called again after it failed."""

    def done(self) -> None:
        """Take note that they are written, under the writer's lock."""


class Writer:
    """Threads that write jobs, in the order they come, while at most so many bytes wait.

    After a failed write its rows stay in memory. The next call of `make_room` or `drain` raises a
    StorageError, and every later one tries to write them first. Where the system refuses any thread, `submit`
    writes.
    """

    after: Callable[[], None]  # called under the lock when a job has ended
    in_memory: Callable[[], NDArray[np.intp]]  # tells which rows are not on disk, for errors to name

    def __init__(self, n_threads: int, limit_nbytes: int) -> None:
        self.process = os.getpid()
        # Held while a job's fate changes. Not by the condition: Ctrl-C as that ends would leave it held.
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._has_work = threading.Condition(self.lock)  # of its own: to wake all for each job costs as much
        self.limit_nbytes = limit_nbytes  # that may be under way; one job may always be
        self.after, self.in_memory = _nothing, _no_rows
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._failed: dict[int, tuple[Job, BaseException]] = {}
        self._is_told = self._is_closed = False
        self._threads: list[threading.Thread] = []
        for number in range(n_threads):
            # Daemons: an accumulator that is never closed must not keep the interpreter from ending.
            thread = threading.Thread(target=self._work, name=f"accumulator-write-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more of them
                break
            self._threads.append(thread)
        # Made after the temporary folder's finalizer, so that it runs before it.
        self._finalizer = weakref.finalize(self, _end, weakref.ref(self))

    def submit(self, job: Job) -> None:
        """Have a job written; this does not wait, unless there are no threads."""
        with self.lock:
            if self._is_closed:
                raise ClosedError("nothing is written any more: finalize() before the interpreter ends")
            self._has_work.notify()  # first: a job that nobody is told of would be waited for without end
            self._waiting.append(job)
        if not self._threads:
            self._write_next()

    def make_room(self, nbytes: int) -> None:
        """Wait until so many bytes more may be under way."""
        self._try_again()
        with self.lock:
            self._changed.wait_for(lambda: self._failed or self._has_room(nbytes))
            if self._failed:
                self._wait()  # what else fails for the same reason is reported with it, not by a later call
                self._raise_failed()

    def drain(self) -> None:
        """Wait until nothing is under way."""
        self._try_again()
        with self.lock:
            self._wait()
            self._raise_failed()

    def wait(self) -> None:
        """Wait until nothing is under way, whatever has failed."""
        with self.lock:
            self._wait()

    def take_back(self, job: Job) -> None:
        """Have a job stay in memory unless it is written; one that is being written is waited for."""
        with self.lock:
            if job in self._waiting:
                self._waiting.remove(job)
                self._changed.notify_all()
            self._changed.wait_for(lambda: job not in self._running)

    def forget(self, job: Job) -> None:
        """Take a job back, and do not try it again."""
        with self.lock:
            self.take_back(job)
            self._failed.pop(id(job), None)

    def has_failed(self, job: Job) -> bool:
        return id(job) in self._failed

    def knows(self, job: Job) -> bool:
        """Whether a job was submitted and is not written; called under the lock."""
        return job in self._waiting or job in self._running or id(job) in self._failed

    def close(self, timeout: float | None = None) -> None:
        """Finish what is being written, drop what waits, and end the threads."""
        with self.lock:
            self._is_closed = True
            self._waiting.clear()
            self._failed.clear()
            self._changed.notify_all()
            self._has_work.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)
        self.after, self.in_memory = _nothing, _no_rows  # the others know their owner
        self._finalizer.detach()

    def _wait(self) -> None:
        self._changed.wait_for(lambda: not self._waiting and not self._running)

    def _has_room(self, nbytes: int) -> bool:
        under_way = sum(job.nbytes for job in (*self._waiting, *self._running))
        return not under_way or under_way + nbytes <= self.limit_nbytes

    def _work(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Write the next job, when there is one; return False at the end."""
        with self.lock:
            self._has_work.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return False
            job = self._waiting.popleft()
            self._running.append(job)
        error: BaseException | None = None
        try:
            job.write()
        except BaseException as caught:  # noqa: BLE001  it is raised where it can be caught
            error = caught
        with self.lock:
            self._running.remove(job)
            if error is None:
                self._failed.pop(id(job), None)
                job.done()
            else:
                self._failed[id(job)] = (job, error)
                self._is_told = False
            self.after()
            self._changed.notify_all()
        return True

    def _try_again(self) -> None:
        """Write again what failed and was reported, and wait for it."""
        with self.lock:
            if not self._failed or not self._is_told:
                return
            jobs = [job for job, _ in self._failed.values()]
            for job in jobs:
                del self._failed[id(job)]
                if job not in self._waiting and job not in self._running:
                    self.submit(job)
            self._changed.wait_for(
                lambda: not any(job in self._waiting or job in self._running for job in jobs)
            )

    def _raise_failed(self) -> None:
        if not self._failed:
            return
        self._is_told = True
        jobs = [job for job, _ in self._failed.values()]
        cause = next(iter(self._failed.values()))[1]
        rows = np.unique(np.concatenate([self.in_memory(), *(job.rows for job in jobs)]))
        shown = ", ".join(
            f"rows {job.rows[0]} to {job.rows[-1]} of {job.label}" for job in jobs[:3] if len(job.rows)
        )
        more = f" and {len(jobs) - 3} more pieces" if len(jobs) > 3 else ""
        why = cause.strerror if isinstance(cause, OSError) else f"{type(cause).__name__}: {cause}"
        raise StorageError(
            getattr(cause, "errno", None) or errno.EIO,
            f"{shown}{more} cannot be written ({why}): they are held in memory, and tried again by the next "
            "call",
            getattr(cause, "filename", None),
            rows=rows,
        ) from cause


def _end(reference: weakref.ref[Writer]) -> None:
    """At the end of the interpreter, let nothing be written any more: the folder is about to go."""
    writer = reference()
    if (
        writer is not None and writer.process == os.getpid()
    ):  # a forked child has no threads, and may not lock
        writer.close(_EXIT_SECONDS)


def _nothing() -> None:
    pass


def _no_rows() -> NDArray[np.intp]:
    return np.empty(0, dtype=np.intp)

"""Writing behind the caller's back: threads that take blocks of rows to disk, and not too many at once.

It knows nothing of files or chunks: a block knows how to write itself. What fails is kept, told once,
and tried again before anything else happens.
"""

from __future__ import annotations

import concurrent.futures
import errno
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from accumulator.exceptions import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Job(Protocol):
    """Rows that are to be written."""

    future: Future[None] | None

    @property
    def nbytes(self) -> int:
        """Bytes of memory they take."""

    @property
    def rows(self) -> NDArray[np.intp]:
        """Which rows of the result they are."""

    @property
    def label(self) -> str:
        """How to call the head they belong to."""

    def write(self) -> None:
        """Write them; runs on a thread of its own, and may be called again after it failed."""

    def done(self) -> None:
        """Take note that they are written, under the writer's lock."""


class Writer:
    """Threads that write jobs, in the order they come, while at most so many bytes wait.

    After a failed write its rows stay in memory. The next call of `make_room` or `drain` raises, and
    every later one tries to write them first.

    Parameters
    ----------
    n_threads : int
        How many jobs are written at the same time.
    limit_nbytes : int
        How many bytes may be under way; one job may always be.

    Attributes
    ----------
    lock : threading.Condition
        Held while a job's fate changes.
    after : callable
        Called under the lock when a job has ended.
    """

    def __init__(self, n_threads: int, limit_nbytes: int) -> None:
        self.lock = threading.Condition()
        self.limit_nbytes = limit_nbytes
        self.after: Callable[[], None] = lambda: None
        self._executor = ThreadPoolExecutor(n_threads, "accumulator-write")
        self._under_way = 0
        self._failed: dict[int, tuple[Job, BaseException]] = {}
        self._is_told = False

    def submit(self, job: Job) -> None:
        """Have a job written; this does not wait."""
        with self.lock:
            job.future = self._executor.submit(self._run, job, job.nbytes)
            self._under_way += job.nbytes

    def make_room(self, nbytes: int) -> None:
        """Wait until so many bytes more may be under way.

        Raises
        ------
        StorageError
            Something could not be written.
        """
        self._try_again()
        with self.lock:
            self.lock.wait_for(
                lambda: self._failed or not self._under_way or self._under_way + nbytes <= self.limit_nbytes
            )
            self._raise_failed()

    def drain(self) -> None:
        """Wait until nothing is under way.

        Raises
        ------
        StorageError
            Something could not be written.
        """
        self._try_again()
        with self.lock:
            self.lock.wait_for(lambda: not self._under_way)
            self._raise_failed()

    def take_back(self, job: Job) -> bool:
        """Return whether a submitted job is still in memory, where it then stays; False if it is written.

        A job that is being written is waited for.
        """
        if job.future is None:
            return True
        if job.future.cancel():
            with self.lock:
                job.future = None
                self._under_way -= job.nbytes
                self.lock.notify_all()
            return True
        concurrent.futures.wait([job.future])
        return id(job) in self._failed

    def has_failed(self, job: Job) -> bool:
        """Whether a job waits to be tried again."""
        return id(job) in self._failed

    def close(self) -> None:
        """Finish what is being written, drop what waits, and end the threads."""
        self._executor.shutdown(cancel_futures=True)
        self.after = lambda: None
        self._failed.clear()

    def _run(self, job: Job, nbytes: int) -> None:
        error: BaseException | None = None
        try:
            job.write()
        except BaseException as caught:  # noqa: BLE001  it is raised where it can be caught
            error = caught
        with self.lock:
            if error is None:
                job.done()
            else:
                self._failed[id(job)] = (job, error)
                self._is_told = False
            self._under_way -= nbytes
            self.after()
            self.lock.notify_all()

    def _try_again(self) -> None:
        """Submit what failed and was told; wait for it."""
        with self.lock:
            if not self._failed or not self._is_told:
                return
            jobs = [job for job, _ in self._failed.values()]
            self._failed.clear()
            for job in jobs:
                self.submit(job)
        concurrent.futures.wait([job.future for job in jobs if job.future is not None])

    def _raise_failed(self) -> None:
        if not self._failed:
            return
        self._is_told = True
        jobs = [job for job, _ in self._failed.values()]
        cause = next(iter(self._failed.values()))[1]
        rows = np.unique(np.concatenate([job.rows for job in jobs]))
        shown = ", ".join(
            f"rows {job.rows[0]} to {job.rows[-1]} of {job.label}" for job in jobs[:3] if len(job.rows)
        )
        more = f" and {len(jobs) - 3} more pieces" if len(jobs) > 3 else ""
        why = cause.strerror if isinstance(cause, OSError) else f"{type(cause).__name__}: {cause}"
        raise StorageError(
            getattr(cause, "errno", None) or errno.EIO,
            f"{shown}{more} cannot be written ({why}): they are held in memory, and written by the next call "
            "once the cause is gone",
            getattr(cause, "filename", None),
            rows=rows,
        ) from cause

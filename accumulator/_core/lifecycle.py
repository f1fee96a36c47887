"""How the public classes that collect live and end, written once, and how locations are looked at."""

from __future__ import annotations

import os
import sys
import threading
import warnings
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NoReturn, Protocol, Self, TypeVar

import attrs

from accumulator._inputs.warn import warn
from accumulator._pictures import plot_coverage
from accumulator.exceptions import ClosedError, NothingPushedError, ProcessError, StorageWarning

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from accumulator._core.locations import LocationIndex
    from accumulator._pictures.progress import Progress
    from accumulator._stores.kept.run import KeptRun

_Result = TypeVar("_Result")
_OPEN: Final[weakref.WeakSet[Collector[Any, Any]]] = weakref.WeakSet()
_Rows = TypeVar("_Rows", bound="Rows")


class Rows(Protocol):
    """Where what was pushed lies: a canvas, or several."""

    @property
    def nbytes(self) -> int: ...
    @property
    def run(self) -> KeptRun | None: ...
    @property
    def n_unrecorded(self) -> int: ...
    def flush(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


@attrs.define(eq=False, repr=False)
class Collector(ABC, Generic[_Result, _Rows]):
    """Takes batches, in the process that made it, until it is finalized or closed.

    What changes, and what looks at it, holds the lock. A look is handed copies: what it works on must not
    change meanwhile, as NumPy counts and fills in two passes, and would write behind its memory.
    """

    _name: ClassVar[str]  # in messages
    _pushed: ClassVar[str]

    _index: LocationIndex
    _canvas: _Rows
    _written: NDArray[np.bool_]
    _progress: Progress | None = attrs.field(init=False, default=None)
    _result: _Result | None = attrs.field(init=False, default=None)
    _is_closed: bool = attrs.field(init=False, default=False)
    _lock: threading.RLock = attrs.field(init=False, factory=threading.RLock)
    _process: int = attrs.field(init=False, factory=os.getpid)

    def __attrs_post_init__(self) -> None:
        """Let a forked child find it."""
        _OPEN.add(self)

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which of the N locations have come by now: ``(N,)``, read-only; a copy of N bytes."""
        with self._lock:
            written = self._written.copy()
        written.flags.writeable = False
        return written

    @property
    def missing_locs(self) -> NDArray[Any]:
        """The locations that have not come by now, in the order of the list: ``(n, K)``."""
        return self._index.locs[~self.written]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole result, 0 before the first push; on disk gaps take none of them."""
        with self._lock:
            return self._canvas.nbytes

    @abstractmethod
    def finalize(self) -> _Result:
        """Return the whole result."""

    def close(self) -> None:
        """End without a result; do nothing after `finalize`, or when called again.

        What was pushed is dropped. With ``store`` an accumulator records it there first, and a stitcher
        leaves an unfinished map, which is not resumed and yours to remove.

        Raises
        ------
        StorageError
            The disk refused rows that were to be recorded in ``store``, and are lost; an OSError. This is
            closed all the same.
        """
        with self._lock:
            if self._is_over:
                if self._is_ours:  # an interrupt may have come before
                    self._stop()
                    if self._result is None:
                        self._canvas.close()
                return
            self._is_closed = True
            if not self._is_ours:
                return  # threads and locks of the store are the parent's, and so are its files
            try:
                if self._canvas.run is not None:
                    self._canvas.flush()
            finally:
                self._stop()
                self._canvas.close()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finalize if that was not done; after an exception close instead."""
        if exc_value is not None:
            try:
                self.close()
            except Exception as refusal:  # noqa: BLE001  what ends the block matters more
                exc_value.add_note(f"accumulator: rows were not recorded: {refusal}")
        elif not self._is_closed:
            try:
                self.finalize()
            except NothingPushedError:
                self.close()
                raise

    def __del__(self) -> None:
        """Warn of what was neither finalized nor closed."""
        if getattr(self, "_result", self) is not None or self._is_closed or sys.is_finalizing():
            return
        if self._is_ours:
            if threading.current_thread() is not threading.main_thread():
                # The collector came by in a thread that others may wait for, of this library or of zarr.
                threading.Thread(target=self._stop, name="accumulator-end", daemon=True).start()
            else:
                self._stop()
            warn(
                f"{self!r} was dropped without finalize() or close(): use it as a context manager, or call "
                "one of them",
                ResourceWarning,
                source=self,
            )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied, or sent to another process."""
        raise self._elsewhere("be sent to another process, or copied")

    def _tell_at_exit(self) -> None:
        """At the end of the interpreter, warn of rows that a run which is still open takes with it."""
        if self._canvas.run is not None:
            weakref.finalize(self, _tell_unrecorded, weakref.ref(self))

    @property
    def _is_over(self) -> bool:
        return self._result is not None or self._is_closed

    @property
    def _is_ours(self) -> bool:
        return self._process == os.getpid()

    def _stop(self) -> None:
        """End the bar and the threads; what was not flushed is dropped."""
        if self._progress is not None:
            self._progress.close()
        self._canvas.stop()

    def _refuse_if_done(self, action: str) -> None:
        if not self._is_ours:
            raise self._elsewhere(f"{action} in process {os.getpid()}")
        if self._is_over:
            done = "closed" if self._is_closed else "finalized"
            raise ClosedError(f"cannot {action}: the {self._name} was {done}; make a new one")

    def _elsewhere(self, action: str) -> ProcessError:
        return ProcessError(
            f"the {self._name} of process {self._process} cannot {action}: what is pushed there would not "
            f"come back; send the {self._pushed} and their locations back, and push them here"
        )


class Covered(ABC):
    """Has locations, some of which are written."""

    __slots__ = ()

    def plot_coverage(self, ax: Axes | None = None) -> Axes:
        """Draw which locations are written and which are missing, by matplotlib; y goes downwards.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where; a new figure by default.

        Returns
        -------
        matplotlib Axes
            Where it is drawn.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed, the extra ``plot``; an ImportError.
        """
        return plot_coverage(*self._coverage, ax, self._n_left_out)

    @property
    @abstractmethod
    def _coverage(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """All locations, and which are written."""

    @property
    @abstractmethod
    def _n_left_out(self) -> int:
        """How many of them will never come."""


def _tell_unrecorded(reference: weakref.ref[Collector[Any, Any]]) -> None:
    collector = reference()
    if collector is None or collector._is_over or not collector._is_ours:  # noqa: SLF001  its own
        return
    run, n_unrecorded = collector._canvas.run, collector._canvas.n_unrecorded  # noqa: SLF001
    if run is not None and n_unrecorded:
        warnings.warn(
            f"{n_unrecorded} rows were not recorded in {run.root}, as nobody finalized or closed it: use it "
            "as a context manager",
            StorageWarning,
            stacklevel=1,  # at exit nobody's line led here
        )


def _free() -> None:
    """In a forked child: whichever thread of the parent held a lock is not there to let go of it."""
    for collector in list(_OPEN):
        collector._lock = threading.RLock()  # noqa: SLF001  this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)

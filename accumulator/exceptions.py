"""Every error this library raises on purpose.

Each one is an `AccumulatorError` and also subclasses the builtin that callers already catch, so
``except KeyError`` around a push finds an unknown location. An error that comes from ``push`` means
that nothing of that push was taken: correct the batch, or remove the cause, and push it again.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "AccumulatorError",
    "BlendWarning",
    "ClosedError",
    "DamagedError",
    "DuplicateLocationError",
    "HeadDtypeError",
    "HeadError",
    "HeadValueError",
    "LocationError",
    "LockedError",
    "MemoryLimitError",
    "MissingExtraError",
    "NothingPushedError",
    "OptionError",
    "ProcessError",
    "ResultExistsError",
    "ResultFormatError",
    "ResultNotFoundError",
    "ResumeError",
    "StorageError",
    "StorageWarning",
    "UnfinishedError",
    "UnknownLocationError",
    "UnsavedError",
]


class AccumulatorError(Exception):
    """Base class of every error raised by this library."""


class _NamesLocations(AccumulatorError):  # noqa: N818  part of those below
    def __init__(self, message: str, rows: NDArray[Any], locations: NDArray[Any]) -> None:
        super().__init__(message, rows, locations)
        self.rows = rows
        self.locations = locations

    def __str__(self) -> str:
        """Return the message as it is: a plain KeyError would show its repr."""
        return str(self.args[0])


class _NamesRows(AccumulatorError):  # noqa: N818  part of those below
    def __init__(self, *args: Any, rows: NDArray[Any] | None = None) -> None:
        super().__init__(*args)
        self.rows = np.empty(0, dtype=np.intp) if rows is None else rows


class LocationError(AccumulatorError, ValueError):
    """Locations that are not whole numbers, one location a row, or have the wrong number of columns."""


class UnknownLocationError(_NamesLocations, KeyError):
    """Rows of ``batch_locs`` that are not in ``full_output_locs``.

    Attributes
    ----------
    rows : (n,) int array
        Which rows of the batch are unknown.
    locations : (n, K) int array
        What those rows say.
    """


class DuplicateLocationError(_NamesLocations, ValueError):
    """A location given twice: in the list, in one batch, or in two pushes.

    Attributes
    ----------
    rows : (n,) int array
        Which rows of the list or of the batch repeat an earlier one.
    locations : (n, K) int array
        What those rows say.
    """


class HeadError(AccumulatorError, ValueError):
    """Heads whose number, names, row count or patch shape are not what they must be."""


class HeadValueError(AccumulatorError, ValueError, OverflowError):
    """A prediction that the ``dtype`` asked for cannot hold: it would overflow, or not be itself."""


class HeadDtypeError(AccumulatorError, TypeError):
    """A head whose values cannot be stored, or only with loss of information."""


class OptionError(AccumulatorError, ValueError):
    """An option with a value outside of what it may be."""


class ClosedError(AccumulatorError, ValueError):
    """A push after ``finalize()`` or ``close()``, or a result used after its ``close()``."""


class MemoryLimitError(AccumulatorError, MemoryError):
    """A stitched map whose open part does not fit in memory, or a list of boxes that does not."""


class ProcessError(AccumulatorError, RuntimeError):
    """An accumulator used in another process than its own, where what is pushed would be lost."""


class UnsavedError(ProcessError, pickle.PicklingError):
    """A result in a temporary folder that is copied or sent to another process: `FullBatch.save` it before.

    The folder is removed with the result, whatever others still read.
    """


class NothingPushedError(AccumulatorError, ValueError):
    """No push, and no heads declared: they are unknown, and so is the result."""


class StorageError(_NamesRows, OSError):
    """The disk refused: an unusable ``save_path``, no space left, no permission.

    ``errno`` and ``filename`` are those of the operating system's error, which is the ``__cause__``.

    Attributes
    ----------
    rows : (n,) int array
        Canonical rows that were pushed and are not on disk, but in memory; empty where the error is of
        another kind.
    """


class StorageWarning(AccumulatorError, UserWarning):  # noqa: N818  a warning
    """The disk has less room than the result may take."""


class BlendWarning(AccumulatorError, UserWarning):  # noqa: N818  a warning
    """Integers are averaged, and if they are labels, they have no mean."""


class ResultExistsError(AccumulatorError, FileExistsError):
    """``FullBatch.save`` to a path where something is already; nothing was written."""


class ResultNotFoundError(AccumulatorError, FileNotFoundError):
    """``FullBatch.load`` from a path where there is nothing."""


class ResultFormatError(AccumulatorError, ValueError):
    """``FullBatch.load`` from something that is not a saved result, or not a whole one."""


class UnfinishedError(ResultFormatError):
    """``FullBatch.load`` from a run that is not complete; ``partial=True`` looks at it all the same."""


class DamagedError(_NamesRows, OSError):
    """Rows read from files are not those that were written: bits flipped, or files cut, changed or lost.

    Attributes
    ----------
    rows : (n,) int array
        Canonical rows that are damaged.
    """


class ResumeError(AccumulatorError, ValueError):
    """A store that belongs to another run: other locations, heads, options or ``resume_token``."""


class LockedError(AccumulatorError, BlockingIOError):
    """A store that another accumulator is writing."""


class MissingExtraError(AccumulatorError, ImportError):
    """A library that only an extra installs is needed, and not there; the message names the extra."""

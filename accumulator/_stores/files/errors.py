"""How a refusal of the operating system is told."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeGuard

from accumulator.exceptions import AccumulatorError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator


class SizeError(OSError):
    """A file does not have the size that it was left with: it is damaged."""


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Raise a StorageError that says what cannot be done, where the system refuses it."""
    try:
        yield
    except OSError as cause:
        if isinstance(cause, AccumulatorError):
            raise
        raise storage_error(cause, what) from cause


def storage_error(cause: OSError, what: str) -> StorageError:
    """Return the typed error for one of the operating system's, with its errno and file name."""
    return StorageError(cause.errno, f"{what} ({cause.strerror or cause})", cause.filename)


def is_refusal(cause: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused, which says nothing of what is in a file: another time it may be whole.

    Codecs raise OSError, too: without a number, and for a file that is damaged. A folder where a file should
    be, or a file where a folder should be, is damage as well.
    """
    damage = (SizeError, IsADirectoryError, NotADirectoryError)
    return isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, damage)

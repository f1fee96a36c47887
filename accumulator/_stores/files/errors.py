"""How a refusal of the operating system is told."""

from __future__ import annotations

from typing import TypeGuard

from accumulator.exceptions import StorageError


class SizeError(OSError):
    """A file does not have the size that it was left with: it is damaged."""


def storage_error(cause: OSError, what: str, filename: str | None = None) -> StorageError:
    """Return the typed error for one of the operating system's, with its errno and file name."""
    return StorageError(cause.errno, f"{what} ({cause.strerror or cause})", filename or cause.filename)


def is_refusal(cause: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused, which says nothing of what is in a file: another time it may be whole.

    What was said to be on disk must not be taken for damaged by it. Codecs raise OSError, too: without a
    number.
    """
    return isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, SizeError)

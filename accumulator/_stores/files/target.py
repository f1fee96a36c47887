"""A file or a folder gets its name when it is whole: until then it is in a temporary folder beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Final

from accumulator._inputs.validation import as_target
from accumulator._stores.files import system
from accumulator._stores.files.errors import storage_error
from accumulator._stores.files.temporary import TemporaryFolder, make_parents, remove_empty
from accumulator.exceptions import AccumulatorError, ResultExistsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from accumulator.typing import StrPath

_ATTEMPTS: Final = 200
_STAYS_GONE: Final = 6  # looks in a row at which nobody has made it again
_PAUSE_SECONDS: Final = 0.05


@contextlib.contextmanager
def staged(path: StrPath, *, replaces: bool = False) -> Iterator[Path]:
    """Give a place in a temporary folder beside ``path``; what is there at the end is moved to ``path``.

    After an error there is nothing new at ``path``, nor beside it: StorageError where the disk refused,
    ResultExistsError where something is there, unless it ``replaces`` that.
    """
    target = as_target(path, "path")
    with reaching(target, replaces=replaces):
        folder = TemporaryFolder(str(target.parent))
        try:
            place = folder.path / target.name
            yield place
            if replaces and os.path.lexists(target):
                system.rename(target, place.with_name(f"{target.name}.old"))
            check_free(target)  # for somebody may have been faster
            system.rename(place, target)
        except BaseException:
            _remove_all(folder)
            raise
        folder.remove()


@contextlib.contextmanager
def reaching(target: Path, *, replaces: bool = False) -> Iterator[None]:
    """Make the folders above a target where something is about to be put; errors are those of `staged`."""
    try:
        if not replaces:
            check_free(target)
        make_parents(target.parent)
        yield
    except BaseException as cause:
        remove_empty(target.parent)
        if not isinstance(cause, OSError):
            raise
        if isinstance(cause, AccumulatorError) and not isinstance(cause, StorageError):
            raise
        if not replaces:
            check_free(target)  # since we looked
        raise storage_error(cause, f"{target} cannot be written") from cause


def write_file(target: Path, content: bytes, *, replaces: bool = False) -> None:
    """Write a file, as `staged` does with whatever is put in its place."""
    with reaching(target, replaces=replaces):
        system.replace(target, memoryview(content), is_synced=False)


def check_free(target: Path) -> None:
    """Refuse a target where something is, by ResultExistsError."""
    if os.path.lexists(target):
        raise ResultExistsError(
            errno.EEXIST, "something is there already: save elsewhere or remove it first", str(target)
        )


def is_inside(target: Path, folder: Path) -> bool:
    """Whether a place is in a folder, wherever links lead."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(target)]) == real


def _remove_all(folder: TemporaryFolder) -> None:
    """Remove a folder that zarr's threads may still be writing to: they do not end when one of them fails.

    What broke the writing matters more than what cannot be removed.
    """
    n_gone = 0
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError):
            if folder.path.exists():
                system.remove_tree(folder.path)
                n_gone = 0
        n_gone += not folder.path.exists()
        if n_gone == _STAYS_GONE:
            break
        time.sleep(_PAUSE_SECONDS)
    with contextlib.suppress(StorageError):
        folder.remove()

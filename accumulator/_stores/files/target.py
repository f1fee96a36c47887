"""What is written goes to a folder beside the target, and gets its name when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accumulator._inputs.validation import as_path
from accumulator._stores.files.errors import storage_error
from accumulator._stores.files.temporary import TemporaryFolder, make_parents, remove_empty
from accumulator.exceptions import AccumulatorError, ResultExistsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accumulator.typing import StrPath


_ATTEMPTS: Final = 200
_STAYS_GONE: Final = 6  # looks in a row at which nobody has made it again
_PAUSE_SECONDS: Final = 0.05


@contextlib.contextmanager
def writing(path: StrPath) -> Iterator[Path]:
    """Give a place in a temporary folder beside ``path``; what is there at the end is moved to ``path``.

    After an error there is nothing at ``path``, nor beside it.

    Raises
    ------
    ResultExistsError
        Something is at ``path`` already.
    StorageError
        The disk refused.
    """
    target = Path(as_path(path, "path")).absolute()
    try:
        _check_free(target)
        make_parents(target.parent)
        folder = TemporaryFolder(str(target.parent))
        try:
            yield folder.path / target.name
            _check_free(target)  # for somebody may have been faster
            (folder.path / target.name).rename(target)
        except BaseException:
            _remove_all(folder)
            raise
        folder.remove()
    except OSError as cause:
        remove_empty(target.parent)
        if isinstance(cause, AccumulatorError) and not isinstance(cause, StorageError):
            raise
        raise storage_error(cause, f"{target} cannot be written") from cause
    except BaseException:
        remove_empty(target.parent)
        raise


def _remove_all(folder: TemporaryFolder) -> None:
    """Remove a folder that zarr's threads may still be writing to: they do not end when one of them fails.

    What broke the writing matters more than what cannot be removed.
    """
    n_gone = 0
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError):
            if folder.path.exists():
                shutil.rmtree(folder.path)
                n_gone = 0
        n_gone += not folder.path.exists()
        if n_gone == _STAYS_GONE:
            break
        time.sleep(_PAUSE_SECONDS)
    with contextlib.suppress(StorageError):
        folder.remove()


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise ResultExistsError(
            errno.EEXIST, "something is there already: export elsewhere or remove it first", str(target)
        )

"""A temporary folder that lives exactly as long as what lies in it is in use."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Final

from accumulator.exceptions import StorageError

_PREFIX: Final = "full_batch_"
_MADE: Final[set[Path]] = set()  # parents that this process had to make, for whoever leaves them last


class TemporaryFolder:
    """A unique folder of mode 0700 inside ``save_path``, removed by `remove` or with its last user.

    Removal also happens at interpreter exit, but never in a forked child: the parent still needs it.
    Parents that had to be made go too, once they are empty.

    Attributes
    ----------
    path : Path
        The folder, absolute.
    """

    def __init__(self, save_path: str) -> None:
        parent = Path(save_path).absolute()
        _MADE.update(folder for folder in (parent, *parent.parents) if not folder.exists())
        try:
            self.path = _make(parent)
        except OSError as cause:
            _remove_empty(parent)
            raise storage_error(cause, f"save_path {save_path!r} cannot hold a folder") from cause
        self._finalizer = weakref.finalize(self, _remove, self.path, os.getpid())

    def remove(self) -> None:
        """Remove the folder and all that is in it; a second call does nothing."""
        self._finalizer()

    def keep(self) -> None:
        """Leave the folder to the caller from now on."""
        self._finalizer.detach()


def storage_error(cause: OSError, what: str) -> StorageError:
    """Return the typed error for one of the operating system's, with its errno and file name."""
    return StorageError(cause.errno, f"{what} ({cause.strerror or cause})", cause.filename)


def _make(parent: Path) -> Path:
    """Make a unique folder, even while another process removes the parent it just emptied."""
    parent.mkdir(parents=True, exist_ok=True)
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except FileNotFoundError:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(FileNotFoundError):  # somebody else was here first
            shutil.rmtree(path)
        _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those above it as far as this process made them and nobody uses them."""
    for made in (folder, *folder.parents):
        if made not in _MADE:
            return
        try:
            made.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return  # in use
        _MADE.discard(made)

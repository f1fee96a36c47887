"""A temporary folder that lives exactly as long as what lies in it is in use."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import threading
import uuid
import weakref
from pathlib import Path
from typing import Final

from accumulator._stores.files import system
from accumulator._stores.files.errors import telling

_PREFIX: Final = "full_batch_"
_GOING: Final = ".going"  # behind the name of one that is being removed
_ATTEMPTS: Final = 10
_LOCK: Final = threading.RLock()  # a folder's last user may go in any thread
_MADE: Final[dict[Path, tuple[int, int] | None]] = {}  # parents this process made: device and inode of each


class TemporaryFolder:
    """A unique folder ``path`` of mode 0700 inside ``save_path``, removed by `remove` or with its last user.

    Removal also happens when the interpreter or a multiprocessing worker ends, but never in a forked
    child of the process that made it. Parents that had to be made go too, once they are empty.
    """

    def __init__(self, save_path: str) -> None:
        self.path = Path(save_path).absolute() / f"{_PREFIX}{uuid.uuid4().hex}"
        self._owner = os.getpid()
        # Before there is a folder: an interrupt as soon as it is made would leave it.
        self._finalizer = weakref.finalize(self, _remove, self.path, self._owner)
        try:
            with telling(f"no folder can be made in {save_path!r}"):
                _make(self.path)
        except BaseException:
            self._finalizer()
            raise
        # A multiprocessing worker ends without running what is registered with atexit.
        multiprocessing.util.Finalize(self, self._finalizer, exitpriority=0)

    def remove(self) -> None:
        """Remove the folder and all that is in it, once; what the system refuses is tried again at exit."""
        if self._finalizer.alive:
            with telling(f"the folder {self.path} cannot be removed"):
                _remove(self.path, self._owner)
            self._finalizer.detach()

    def __enter__(self) -> Path:
        """Return its path."""
        return self.path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.remove()

    def keep(self) -> None:
        """Leave the folder to the caller from now on."""
        self._finalizer.detach()


def make_parents(folder: Path) -> None:
    """Make a folder and those above it, remembering which, for `remove_empty`."""
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        if system.make_folder(missing):  # and no other process was faster
            _MADE[missing] = _identity(missing)


def remove_empty(folder: Path) -> None:
    """Remove a folder and those above it as far as this process made them and nobody uses them."""
    with _LOCK:
        for made in (folder, *folder.parents):
            if made not in _MADE:
                if _identity(made) is None:
                    continue
                return
            if _identity(made) == _MADE[made] and not system.remove_folder(made):
                return  # in use
            _MADE.pop(made, None)


def _make(path: Path) -> None:
    """Make a folder, even while other processes remove the parents they just emptied."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError), _LOCK:
            make_parents(path.parent)
            system.make_private_folder(path)
            return
    system.make_private_folder(path)


def _remove(path: Path, owner: int) -> None:
    """Rename a folder first, in one step, so that nobody reads a half of what was in it, and remove it."""
    if os.getpid() == owner:
        going = path.with_name(f"{path.name}{_GOING}")
        with contextlib.suppress(OSError):  # it is removed where it is
            system.rename(path, going)
        for folder in (going, path):
            while _identity(folder) is not None:
                with contextlib.suppress(FileNotFoundError):  # somebody else removes it too
                    system.remove_tree(folder)
        remove_empty(path.parent)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of its name; None where it is gone, or out of reach."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None

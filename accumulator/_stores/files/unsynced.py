"""What was changed and is not on the disk yet."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from accumulator._stores.files import system

if TYPE_CHECKING:
    from pathlib import Path


class Unsynced:
    """Files and folders that were changed since they were synced last; threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[Path, object] = {}  # with what is another one each time
        self._folders: dict[Path, object] = {}
        # Files whose sync failed once: the system then takes what it has of them in memory for written, and
        # may drop it. They were written once more, and have to be compared with what they should hold.
        self.doubtful: set[Path] = set()

    def add(self, path: Path, *, is_new: bool) -> None:
        """Take note of a changed file, and of its name where that is new."""
        with self._lock:
            self._files[path] = object()
            if is_new:
                self._folders[path.parent] = object()

    def add_folder(self, path: Path) -> None:
        """Take note of changed names in a folder."""
        with self._lock:
            self._folders[path] = object()

    def clear(self) -> None:
        """Take note that everything was removed."""
        with self._lock:
            self._files.clear()
            self._folders.clear()
            self.doubtful.clear()

    def forget(self, path: Path) -> None:
        """Take note that a file was removed, by us: else a file that is gone is an error."""
        with self._lock:
            self._files.pop(path, None)
            self.doubtful.discard(path)

    def sync(self) -> None:
        """Sync all files, and then their names; what fails is tried again by the next call."""
        for noted in (self._files, self._folders):
            for path, note in list(noted.items()):
                is_doubtful = path in self.doubtful
                if is_doubtful:
                    system.rewrite(path)
                elif noted is self._files:
                    self.doubtful.add(path)  # until it is known that it succeeded, whatever interrupts it
                system.sync(path)
                with self._lock:
                    if noted.get(path) is note:  # else somebody has changed it since
                        del noted[path]
                    if not is_doubtful:
                        self.doubtful.discard(path)

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
        self._files: dict[Path, None] = {}
        self._folders: dict[Path, None] = {}
        # Files whose sync failed once: the system then takes what it has of them in memory for written, and
        # may drop it. They were written once more, and have to be compared with what they should hold.
        self.doubtful: set[Path] = set()

    def add(self, path: Path, *, is_new: bool) -> None:
        """Take note of a changed file, and of its name where that is new."""
        with self._lock:
            self._files[path] = None
            if is_new:
                self._folders[path.parent] = None

    def add_folder(self, path: Path) -> None:
        """Take note of changed names in a folder."""
        with self._lock:
            self._folders[path] = None

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
            for path in list(noted):
                with self._lock:
                    noted.pop(path, None)  # whoever changes it from now on notes it again
                try:
                    if path in self.doubtful:
                        system.rewrite(path)
                    system.sync(path)
                except BaseException:
                    with self._lock:
                        noted[path] = None
                        if noted is self._files:
                            self.doubtful.add(path)
                    raise

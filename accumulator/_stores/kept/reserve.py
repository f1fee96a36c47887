"""Room on the disk that is kept for the record: what is in files can be recorded on a disk that is full."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Final, TypeVar

from accumulator._stores.files import system
from accumulator._stores.format.names import RECORD
from accumulator._stores.memory.threads import to_its_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_FULL: Final = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_MOST_CHUNKS: Final = 4  # of the record that may be new at a time
_FIXED_NBYTES: Final = 4  # of a CRC


class Reserve:
    """Files without a name, which are given back one by one where the record finds no room.

    A chunk of the record is replaced by another file: so there is one more than there may be new chunks.
    """

    def __init__(self, root: Path, n_rows: int, n_heads: int) -> None:
        chunk_rows = {name: min(n_rows, RECORD[name]) for name in ("written", "checksums")}
        self._nbytes = max(chunk_rows["written"], 8 * n_heads * chunk_rows["checksums"]) + _FIXED_NBYTES
        self._n_files = 1 + min(_MOST_CHUNKS, -(-n_rows // RECORD["checksums"]))
        self._path = root / f"record.{'0' * 32}.partial"  # which nobody looks at, and a resume removes
        self._held: list[int] = []

    def hold(self) -> None:
        """Keep what room there is, unless it is kept already."""
        with contextlib.suppress(OSError):
            while len(self._held) < self._n_files:
                self._held.append(system.allocate(self._path, self._nbytes))

    def used(self, call: Callable[[], T]) -> T:
        """Make a call to its end, with the room that was kept where the disk is full."""
        while True:
            try:
                return to_its_end(call)
            except OSError as refusal:
                if refusal.errno not in _FULL or not self._held:
                    raise
                self._give()

    def drop(self) -> None:
        """Give all of it back."""
        while self._held:
            self._give()

    def _give(self) -> None:
        with contextlib.suppress(OSError):
            system.give_back(self._held.pop())

    def __del__(self) -> None:
        """Give it back with the last user."""
        if hasattr(self, "_held"):  # an interrupt may come while it is made
            self.drop()

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
_SHORT_NBYTES: Final = 2**30  # of free room, below which some is kept
_SHORT_FILES: Final = 2**10
_MOST_CHUNKS: Final = 4  # of the record that may be new at a time
_FIXED_NBYTES: Final = 4  # of a CRC


class Reserve:
    """Files that are made when a disk gets short, and removed one by one where the record finds no room.

    They have the names of partial files, which nobody looks at, and which a resume removes. A chunk of the
    record is replaced by another file: so there is one more than there may be new chunks.
    """

    def __init__(self, root: Path, n_rows: int) -> None:
        self._n_rows = n_rows
        n_files = 1 + min(_MOST_CHUNKS, -(-n_rows // RECORD["checksums"]))
        self._paths = [root / f"record.{number:032x}.partial" for number in range(n_files)]
        self._n_held = 0

    def hold(self, n_heads: int) -> None:
        """Keep some room if the disk has little, unless it is kept already."""
        if self._n_held == len(self._paths):
            return
        written, checksums = (min(self._n_rows, RECORD[name]) for name in ("written", "checksums"))
        nbytes = max(written, 8 * n_heads * checksums) + _FIXED_NBYTES
        with contextlib.suppress(OSError):
            if not system.is_short(self._paths[0].parent, _SHORT_NBYTES, _SHORT_FILES):
                return
            while self._n_held < len(self._paths):
                self._n_held += 1  # before it is: an interrupt leaves no file that nobody knows
                try:
                    system.allocate(self._paths[self._n_held - 1], nbytes)
                except OSError:
                    self._n_held -= 1
                    raise

    def used(self, call: Callable[[], T]) -> T:
        """Make a call to its end, with the room that was kept where the disk is full."""
        while True:
            try:
                return to_its_end(call)
            except OSError as refusal:
                if refusal.errno not in _FULL or not self._n_held:
                    raise
                self._give()

    def drop(self) -> None:
        """Give all of it back; what the system refuses to remove is an OSError."""
        while self._n_held:
            self._give()

    def _give(self) -> None:
        system.remove(self._paths[self._n_held - 1])
        self._n_held -= 1

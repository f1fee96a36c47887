"""What the folders and arrays of a store are called."""

from __future__ import annotations

from typing import Final

OUTPUTS: Final = "outputs"
SCRATCH: Final = "part"  # in a head's folder: rows of chunks that are not encoded yet
REDO: Final = "redo"  # in a head's folder: rows that replace recorded ones, until the record has them
RECORD: Final = ("written", "checksums", "output_locs")  # arrays that belong to all heads

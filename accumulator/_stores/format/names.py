"""What the folders and arrays of a store are called, and how the record is cut into chunks."""

from __future__ import annotations

from typing import Final

OUTPUTS: Final = "outputs"
SCRATCH: Final = "part"  # in a head's folder: rows of chunks that are not encoded yet, a file a chunk
LOG: Final = "loose"  # in there: small rows of many chunks, until they are sorted
REDO: Final = "redo"  # in a head's folder: rows that replace recorded ones, until the record has them
PATCHES: Final = "patches"  # in a store of maps: the record of the patches they were made of
PARTS: Final = "parts"  # in a store: what several ranks write, until it is published
MAPS: Final = "accumulator_maps"  # the attribute that tells of maps
COORDINATES: Final = "output_locs written"  # those of the record that say what rows are
RECORD: Final = {"written": 2**20, "checksums": 2**16, "output_locs": 2**18}  # of all heads: rows of a chunk


def record_chunks(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks of one of the record's arrays."""
    return (max(1, min(RECORD[name], shape[0])), *(max(1, length) for length in shape[1:]))

"""What the folders and arrays of a store are called, and how the record is cut into chunks."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUTS: Final = "outputs"
SCRATCH: Final = "part"  # in a head's folder: rows of chunks that are not encoded yet, a file a chunk
LOG: Final = "loose"  # in there: small rows of many chunks, until they are sorted
REDO: Final = "redo"  # in a head's folder: rows that replace recorded ones, until the record has them
PATCHES: Final = "patches"  # in a store of maps: the record of the patches they were made of
PARTS: Final = "parts"  # in a store: what several ranks write, until it is published
MAPS: Final = "accumulator_maps"  # the attribute that tells of maps
COORDINATES: Final = "output_locs written"  # those of the record that say what rows are
RECORD: Final = {"written": 2**20, "checksums": 2**16, "output_locs": 2**18}  # of all heads: rows of a chunk

_SAFE: Final = re.compile(r"(?!__)(?!\d+$)[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)  # on any file system
_DEVICES: Final = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}


def head_keys(names: Sequence[str] | None, n_heads: int) -> list[str]:
    """Return what the arrays of heads are called: as the heads, where that is safe, else by their numbers."""
    if names is None:
        return [str(number) for number in range(n_heads)]
    alike = Counter(name.lower() for name in names)  # to some file systems
    return [
        name
        if _SAFE.fullmatch(name) and alike[name.lower()] == 1 and name.lower() not in _DEVICES
        else str(number)
        for number, name in enumerate(names)
    ]


def record_chunks(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunks of one of the record's arrays."""
    return (max(1, min(RECORD[name], shape[0])), *(max(1, length) for length in shape[1:]))

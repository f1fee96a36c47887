"""Numbers that decide speed and memory, and never a result: one record, read where it is used.

They were measured (the decisions say how). A test replaces the record as a whole, to see with a few rows
what otherwise takes gigabytes.
"""

from __future__ import annotations

import os
from typing import Final

import attrs

_KIB: Final = 2**10
_MIB: Final = 2**20
_GIB: Final = 2**30


@attrs.frozen
class Tuning:
    """All of them."""

    # Rows are copied.
    shared_copy_nbytes: int = 8 * _MIB  # below it waking a thread costs more than it saves
    copy_part_nbytes: int = 8 * _MIB  # smaller ones are slower, as fresh memory comes 2 MiB at a time

    # They are stored.
    chunk_nbytes: int = 16 * _MIB
    gap_nbytes: int = 4 * _KIB  # what file systems allocate at once: a gap below it saves nothing
    loose_row_nbytes: int = 16 * _KIB  # larger ones go to their place as fast as to a log
    direct_flag: int = getattr(os, "O_DIRECT", 0)  # of files that are written past the page cache
    checkpoint_share: float = 19  # a checkpoint comes no sooner than this many times what the last one took

    # A push looks around.
    memory_pause_seconds: float = 0.01  # memory does not change faster, and pushes may take microseconds
    bar_pause_seconds: float = 0.1  # between two drawings; tqdm's own default
    bar_share: float = 20  # drawing takes a twentieth of the time at most

    # Boxes are held against a mask.
    mask_values: int = 2**20  # that are summed at a time

    # Rows are stitched.
    small_percent: float = 25  # of the available memory: a map that takes less stays in it
    band_nbytes: int = 64 * _MIB
    whole_band_nbytes: int = 16 * _MIB  # which is in the cache when the band is finished
    least_band_nbytes: int = _MIB
    shared_push_nbytes: int = _MIB  # below it waking a thread costs more than it saves
    shared_patch_nbytes: int = 128 * _KIB  # adding less takes no longer than threads wait for each other
    patch_part_nbytes: int = 512 * _KIB  # in the cache together with the rows of the map it goes to
    divided_nbytes: int = _MIB  # of a band at a time
    behind_nbytes: int = _MIB  # a smaller push is blended sooner than a thread is told of it
    copied_nbytes_s: float = 4e9  # a loop that comes back sooner than a batch is copied waits for it anyway
    waiting_nbytes: int = 128 * _MIB  # of batches that wait to be blended
    read_nbytes: int = 32 * _MIB  # of rows at a time
    read_gap_nbytes: int = 256 * _KIB  # a read of its own takes as long as reading these

    # Maps are exported.
    level_nbytes: int = 256 * _MIB  # a band of 512 rows of 40,000 pixels of 3 float32
    halved_nbytes: int = 64 * _MIB  # of which several copies are held
    tiles_nbytes: int = 64 * _MIB  # read at once, and compressed at once
    classic_tiff_nbytes: int = 3 * _GIB  # beyond 4 GiB it needs 64 bit offsets; zlib may make pixels longer

    # A store is reported on: of what is large, a part is read.
    report_nbytes: int = 4 * _GIB  # of all heads together
    report_head_nbytes: int = _GIB
    pasted_px: int = 64  # of a row: so small ones are pasted many at once
    pasted_rows: int = 2**13
    histogram_rows: int = 2**12
    histogram_values: int = 2**20


now = Tuning()

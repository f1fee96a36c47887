"""Which rows a run of several ranks has, and whose bytes count: decided from records alone, nothing is read.

A row that was recorded by several parts with the same checksums is one and the same. Where they differ,
``on_duplicate`` says which counts: "first" and "last" by when it was recorded, and what was published stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from accumulator.exceptions import DuplicateLocationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._stores.ranks.facts import PartLook
    from accumulator.typing import OnDuplicate

PUBLISHED: Final = 0  # as a source; parts are numbered from 1
NOBODY: Final = -1


@attrs.frozen(eq=False)
class Gathered:
    """The rows of all parts, and of what was published."""

    checksums: NDArray[np.uint64]  # (N, heads), of each row that counts
    source: NDArray[np.int32]  # (N,) who has it: PUBLISHED, a part's number, or NOBODY
    holds: list[NDArray[np.intp]]  # for each part: the rows that it has as they count
    n_differing: int  # that several have, each another one

    def of(self, rows: slice) -> list[int]:
        """Return the parts that have some of these rows as they count."""
        found = []
        for number, held in enumerate(self.holds, 1):
            start, stop = np.searchsorted(held, [rows.start, rows.stop])
            if stop > start:
                found.append(number)
        return found


def gather(
    published: NDArray[np.bool_],
    checksums: NDArray[np.uint64],
    parts: Sequence[PartLook],
    on_duplicate: OnDuplicate,
    locs: NDArray[np.int64],
) -> Gathered:
    """Gather parts over what was published; ``checksums``, ``(N, heads)``, become those of all.

    DuplicateLocationError where parts differ, and ``on_duplicate`` is "error".
    """
    source = np.where(published, np.int32(PUBLISHED), np.int32(NOBODY))
    differing: list[NDArray[np.intp]] = []
    for number, part in enumerate(parts, 1):
        had = source[part.rows]
        is_new = had == NOBODY
        is_other = ~is_new & (checksums[part.rows] != part.checksums).any(axis=1)
        differing.append(part.rows[is_other])
        wins = is_new.copy()
        if on_duplicate != "error" and is_other.any():
            for other in np.unique(had[is_other & (had != PUBLISHED)]).tolist():
                those = np.flatnonzero(is_other & (had == other))
                was = parts[other - 1]
                then = was.seconds[np.searchsorted(was.rows, part.rows[those])]
                is_later = part.seconds[those] > then
                wins[those] = is_later if on_duplicate == "last" else part.seconds[those] < then
        source[part.rows[wins]] = number
        checksums[part.rows[wins]] = part.checksums[wins]
    rows = np.unique(np.concatenate(differing)) if differing else np.empty(0, np.intp)
    if len(rows) and on_duplicate == "error":
        raise DuplicateLocationError(
            f"{len(rows)} locations have several predictions that differ, the first being "
            f"{locs[rows[0]].tolist()}: "
            'publish with on_duplicate="first" or "last", by when they were recorded',
            rows,
            locs[rows],
        )
    holds = [part.rows[(checksums[part.rows] == part.checksums).all(axis=1)] for part in parts]
    return Gathered(checksums, source, holds, len(rows))


@attrs.frozen(eq=False)
class Units:
    """What is to be done with the units (chunks or shards) of one head."""

    moved: list[tuple[int, int]]  # a unit, and the part whose file is whole
    copied: list[int]  # units that are put together from several, or are not whole


def units_of(
    gathered: Gathered,
    unit_rows: int,
    published: NDArray[np.bool_],
    lost: NDArray[np.bool_],
    *,
    is_dirty: bool,
) -> Units:
    """Return what is to be done for a head with so many rows a unit; ``lost`` rows are those of nobody.

    Only units with something new change; where what was published ``is_dirty``, all that are not whole. One
    is moved if one part has all of its rows.
    """
    n = len(gathered.source)
    starts = np.arange(0, n, unit_rows)
    sizes = np.diff(starts, append=n)
    is_new = (gathered.source > PUBLISHED) & ~lost
    n_published = np.add.reduceat(published, starts, dtype=np.intp) if n else np.zeros(0, np.intp)
    is_changed = np.logical_or.reduceat(is_new, starts) if n else np.zeros(0, bool)
    if is_dirty:
        is_changed |= n_published < sizes
    has_lost = np.logical_or.reduceat(lost, starts) if n else np.zeros(0, bool)
    is_movable = is_changed & (n_published == 0) & ~has_lost
    moved: dict[int, int] = {}
    for number, rows in enumerate(gathered.holds, 1):
        held, counts = np.unique(rows // unit_rows, return_counts=True)
        for unit in held[(counts == sizes[held]) & is_movable[held]].tolist():
            moved.setdefault(unit, number)
    copied = [unit for unit in np.flatnonzero(is_changed | has_lost).tolist() if unit not in moved]
    return Units(sorted(moved.items()), copied)

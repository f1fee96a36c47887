"""Which rows of a run of several ranks are recorded by now, wherever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import numpy as np

from accumulator._stores.format.mark import CREATING, read_mark
from accumulator._stores.ranks.facts import PartLook, look_at, part_folders
from accumulator._stores.reading.saved import SavedResult, open_result
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.ranks.shared import SharedRun


@attrs.frozen(eq=False)
class Looks:
    """What all parts have, as they are now."""

    parts: list[PartLook]
    damaged: dict[Path, ResultFormatError]


def look_at_parts(shared: SharedRun) -> Looks:
    """Return what all parts have recorded, the earliest first; the damaged by themselves."""
    heads, found, damaged = shared.heads(), [], {}
    for path in part_folders(shared.folder):
        try:
            look = look_at(path, shared.terms.n_rows, 0 if heads is None else len(heads))
        except ResultFormatError as cause:
            damaged[path] = cause
        except FileNotFoundError:  # it was published just now
            continue
        else:
            found += [] if look is None else [look]
    found.sort(key=lambda look: (look.facts.began, look.path.name))
    return Looks(found, damaged)


def open_published(shared: SharedRun, most_nbytes: int | None = None) -> SavedResult | None:
    """Return what was published by now; None where nothing was."""
    if not (shared.root / "zarr.json").exists() or read_mark(shared.root).state == CREATING:
        return None
    return open_result(shared.root, is_partial=True, most_nbytes=most_nbytes)


def recorded_rows(shared: SharedRun) -> NDArray[np.bool_]:
    """Return which rows are recorded by anybody, ``(N,)``; damaged parts have none.

    Parts are looked at before what was published: what moves from there to here meanwhile is seen.
    """
    looks = look_at_parts(shared)
    published = open_published(shared)
    recorded = np.zeros(shared.terms.n_rows, dtype=bool)
    if published is not None:
        recorded |= published.written
    for look in looks.parts:
        recorded[look.rows] = True
    return recorded

"""Which rows of a run of several ranks are recorded by now, wherever that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from accumulator._stores.files.errors import storage_error
from accumulator._stores.format.mark import CREATING, read_mark
from accumulator._stores.ranks.facts import PartLook, look_at, part_folders
from accumulator._stores.reading.saved import SavedResult, open_result
from accumulator.exceptions import AccumulatorError, ResultFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.ranks.shared import SharedRun

_ATTEMPTS: Final = 50


@attrs.frozen(eq=False)
class Looks:
    """What all parts have, as they are now."""

    parts: list[PartLook]
    damaged: dict[Path, ResultFormatError]


def look_at_parts(shared: SharedRun) -> Looks:
    """Return what all parts have recorded, the earliest first; the damaged by themselves.

    While others begin, retire or remove parts it looks again, until nothing has changed in between.
    """
    for _ in range(_ATTEMPTS):
        heads, paths = shared.heads(), list(part_folders(shared.folder))
        looks = _look_at(shared, paths, 0 if heads is None else len(heads))
        is_settled = all(path.is_dir() for path in paths) and (heads is None) == (shared.heads() is None)
        if is_settled:
            break
    return looks


def _look_at(shared: SharedRun, paths: list[Path], n_heads: int) -> Looks:
    found, damaged = [], {}
    for path in paths:
        try:
            look = look_at(path, shared.terms.n_rows, n_heads)
        except ResultFormatError as cause:
            damaged[path] = cause
        except FileNotFoundError:  # it was published just now
            continue
        except OSError as cause:
            if isinstance(cause, AccumulatorError):
                raise
            raise storage_error(cause, f"{path} cannot be read") from cause
        else:
            found += [] if look is None else [look]
    found.sort(key=lambda look: (look.facts.began, look.path.name))
    return Looks(found, damaged)


def open_published(shared: SharedRun, most_nbytes: int | None = None) -> SavedResult | None:
    """Return what was published by now; None where nothing was."""
    if not (shared.root / "zarr.json").exists() or read_mark(shared.root).state == CREATING:
        return None
    saved = open_result(shared.root, is_partial=True, most_nbytes=most_nbytes)
    if saved.mark.locations != shared.terms.locations:
        raise ResultFormatError(f"{shared.root} is damaged: its parts have other locations than the result")
    return saved


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

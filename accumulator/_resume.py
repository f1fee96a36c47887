"""Whether what is pushed fits the store of an earlier run: heads and options, one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores import stored_layout
from accumulator._validation import head_label
from accumulator.exceptions import ResumeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator._validation import HeadSpec


def check_resumed(
    n_rows: int,
    stored: Sequence[HeadSpec],
    stored_names: tuple[str, ...] | None,
    pushed: Sequence[HeadSpec],
    names: tuple[str, ...] | None,
) -> list[HeadSpec]:
    """Return the pushed heads in the order of the stored ones.

    Parameters
    ----------
    n_rows : int
        N.
    stored, stored_names
        What the store has.
    pushed, names
        What the first batch has, with the options given now.

    Raises
    ------
    ResumeError
        They differ; it says in what.
    """
    if names is not None and stored_names is not None and set(names) == set(stored_names):
        by_name = dict(zip(names, pushed, strict=True))
        pushed, names = [by_name[name] for name in stored_names], stored_names
    differences = []
    if names != stored_names:
        differences.append(f"its heads are {_listed(stored_names)}, and {_listed(names)} are pushed")
    elif len(pushed) != len(stored):
        differences.append(f"it has {len(stored)} heads, and {len(pushed)} are pushed")
    else:
        for head, (old, new) in enumerate(zip(stored, pushed, strict=True)):
            differences += [
                f"{head_label(head, names)} has {what} {was!r}, and {now!r} is given"
                for what, was, now in _differences(n_rows, old, new)
            ]
    if differences:
        raise ResumeError(
            f"the store is that of another run: {'; '.join(differences)}. Push what that run pushed, "
            "with its options, or give another path"
        )
    return list(pushed)


def _differences(n_rows: int, old: HeadSpec, new: HeadSpec) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    if old.patch_shape != new.patch_shape:
        found.append(("patch shape", old.patch_shape, new.patch_shape))
    if old.dtype != new.dtype.newbyteorder("<"):
        found.append(("dtype", str(old.dtype), str(new.dtype)))
    if found:
        return found
    was, now = (np.asarray(spec.storage.fill_value, old.dtype) for spec in (old, new))
    if was.tobytes() != now.tobytes():
        found.append(("fill_value", was[()], now[()]))
    made = stored_layout(n_rows, new)
    if new.storage.is_chosen and (made.chunks, made.shards) != (old.storage.chunks, old.storage.shards):
        found.append(
            ("chunks and shards", (old.storage.chunks, old.storage.shards), (made.chunks, made.shards))
        )
    if made.spec.storage.compressors != old.storage.compressors:
        found.append(("compressors", old.storage.compressors, made.spec.storage.compressors))
    return found


def _listed(names: tuple[str, ...] | None) -> str:
    return "without names" if names is None else ", ".join(map(repr, names))

"""Whether a run fits the store of an earlier one: itself, its options, and heads when the first come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import zarr

from accumulator._inputs.heads import Heads
from accumulator._inputs.text import listed
from accumulator._inputs.validation import check_specs
from accumulator._stores.format.arrays import layout_of
from accumulator._stores.format.layout import BUFFER_NBYTES, layout
from accumulator.exceptions import HeadDtypeError, OptionError, ResumeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._inputs.options import HeadOptions, Storage
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.format.mark import Mark


def check_run(path: Path, stored: Mark, given: Mark) -> None:
    """Refuse the store of a run with other locations, or of another name."""
    differences = []
    if stored.n_rows != given.n_rows:
        differences.append(f"it has {stored.n_rows} locations, and {given.n_rows} are given")
    elif stored.locations != given.locations:
        differences.append("its locations are others, or in another order")
    was, now = stored.resume_token, given.resume_token
    if was != now:
        differences.append(f"its resume_token is {was!r}, and {now!r} is given")
    if differences:
        raise _refusal(path, differences, "what that run was given")


def fit_options(path: Path, n_rows: int, options: HeadOptions, stored: Heads[HeadSpec]) -> Heads[HeadSpec]:
    """Return the heads of a store as a run with these options takes them, or refuse them by ResumeError."""
    try:
        options.check_heads(stored.keys)
        given = [options.for_head(key, old.dtype) for key, old in zip(stored.keys, stored, strict=True)]
    except OptionError as cause:  # a head that the store does not have, or a value that its dtype has not
        raise _refusal(path, [str(cause)], "what that run was given") from cause
    differences, fitted = [], []
    for head, (old, (storage, dtype)) in enumerate(zip(stored, given, strict=True)):
        new = attrs.evolve(old, storage=storage, dtype=dtype or old.dtype)
        for what, was, now in _differences(n_rows, old, new):
            differences.append(f"{stored.label(head)} has {what} {was}, not {now}")
        fitted.append(attrs.evolve(old, is_converted=dtype is not None))
    if differences:
        raise _refusal(path, differences, "what that run was given")
    return stored.like(fitted)


def check_heads(path: Path, heads: Heads[NDArray[Any]], stored: Heads[HeadSpec]) -> None:
    """Refuse a first batch that the run which made the store would not have taken, by ResumeError."""
    differences = []
    if set(heads.names or ()) != set(stored.names or ()) or (heads.names is None) != (stored.names is None):
        differences.append(f"its heads are {_listed(stored.names)}, and {_listed(heads.names)} are pushed")
    elif len(heads) != len(stored):
        differences.append(f"it has {len(stored)} heads, and {len(heads)} are pushed")
    else:
        pushed = heads.by_name()
        for head, (name, spec) in enumerate(stored.by_name().items()):
            label, array = stored.label(head), pushed[name]
            if array.shape[1:] != spec.patch_shape:
                differences.append(f"{label} has patch shape {spec.patch_shape}, not {array.shape[1:]}")
            elif not _holds(spec, array):
                differences.append(
                    f"{label} has dtype {spec.dtype}, which cannot hold {array.dtype} without loss"
                )
    if differences:
        raise _refusal(path, differences, "push what that run pushed, with its dtype=")


def _holds(spec: HeadSpec, array: NDArray[Any]) -> bool:
    """Whether a push that is not the first would be taken: the same rule, and not another one like it."""
    try:
        check_specs(Heads((array,)), Heads((spec,)))
    except HeadDtypeError:
        return False
    return True


def _differences(n_rows: int, old: HeadSpec, new: HeadSpec) -> Iterator[tuple[str, str, str]]:
    """Yield what a head is stored with, how it is, and how the options have it."""
    if old.dtype != new.dtype.newbyteorder("<"):
        yield "dtype", str(old.dtype), str(new.dtype)
        return  # the rest depends on it
    was, now = (np.asarray(spec.storage.fill_value, old.dtype) for spec in (old, new))
    if not _is_same(was, now):
        yield "fill_value", str(was[()]), str(now[()])
    made = _as_stored(n_rows, new)
    if new.storage.is_chosen:
        for what in ("chunks", "shards"):
            of_store, given = getattr(old.storage, what), getattr(made, what)
            if of_store != given:
                yield what, str(of_store or "none"), str(given or "none")
    if made.compressors != old.storage.compressors:
        yield "compressors", _codecs(old.storage.compressors), _codecs(made.compressors)


def _as_stored(n_rows: int, spec: HeadSpec) -> Storage:
    """Return a head's options as zarr understands them."""
    (made,), _ = layout(n_rows, [spec], BUFFER_NBYTES)
    return layout_of(made.create(zarr.create_group(store={}, zarr_format=3), "0")).spec.storage


def _is_same(was: NDArray[Any], now: NDArray[Any]) -> bool:
    """Whether two values are the same, minus zero being another than zero, and every NaN like all others."""
    if was.dtype.kind == "c":
        return _is_same(was.real, now.real) and _is_same(was.imag, now.imag)
    return was.tobytes() == now.tobytes() or bool(was != was and now != now)  # noqa: PLR0124  NaN


def _refusal(path: Path, differences: Sequence[str], remedy: str) -> ResumeError:
    what = listed(differences, separator="; ")
    return ResumeError(f"{path} is the store of another run: {what}. Give another path, or {remedy}")


def _listed(names: tuple[str, ...] | None) -> str:
    return "without names" if names is None else listed(map(repr, names))


def _codecs(codecs: Sequence[Any] | None) -> str:
    """Return codecs as text: ``zstd (level 3, checksum False)``."""
    texts = []
    for codec in codecs or ():
        plain = codec.to_dict()
        settings = ", ".join(f"{key} {value}" for key, value in plain.get("configuration", {}).items())
        texts.append(f"{plain['name']} ({settings})" if settings else str(plain["name"]))
    return " and ".join(texts) or "none"

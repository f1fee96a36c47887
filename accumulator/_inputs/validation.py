"""Raw arguments become checked arrays here, and nothing is coerced silently.

This module knows nothing of stores, memory or matching: it says whether an argument is what it claims
to be, and turns it into a NumPy array without copying wherever NumPy can look at the same memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import attrs
import numpy as np

from accumulator._inputs.arrays import as_array, is_array
from accumulator._inputs.heads import Heads, dimension_names
from accumulator._inputs.options import HeadOptions, Storage, as_stored
from accumulator._inputs.text import listed, named
from accumulator.exceptions import HeadDtypeError, HeadError, LocationError, OptionError

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike, BatchOutput, StrPath

    Arrays: TypeAlias = Heads[NDArray[Any]]

_INT64: Final = np.dtype(np.int64)
_INT64_LIMIT: Final = 2**63
_STORABLE_KINDS: Final = "biufc"
_MOST_COLUMNS: Final = 8  # that a location is believed to have, where a few long arrays may be its columns


@attrs.frozen
class HeadSpec:
    """What every row of one head looks like."""

    patch_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    storage: Storage = attrs.field(factory=Storage)
    is_converted: bool = False  # to the dtype, which the user asked for

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        nbytes = self.dtype.itemsize
        for length in self.patch_shape:
            nbytes *= length
        return nbytes


def as_locations(raw: ArrayLike, name: str, columns: int | None = None) -> NDArray[Any]:
    """Return locations as a 2-d array of whole numbers that fit int64, in the dtype they came in.

    Where a location is one number they may be 1-d. Where so many ``columns`` are demanded, an empty list or
    1-d array stands for no locations, and a list of so many arrays of another length for the columns. As many
    arrays of just that length are rows here, and `LocationIndex` sees whether they are.
    """
    given: Any = raw
    is_one = type(raw) is np.ndarray  # as in most calls
    if columns is not None and not is_one and is_list_of_arrays(raw) and len(raw) == columns:
        given = [as_array(part, f"{name}[{i}]", LocationError) for i, part in enumerate(raw)]
        lengths = [len(part) for part in given if part.ndim == 1]
        if len(lengths) == columns and set(lengths) != {columns}:
            return _from_columns(given, name, lengths)
    locs = as_array(given, name, LocationError)
    if columns is not None and locs.shape == (0,):
        return np.empty((0, columns), dtype=locs.dtype if locs.dtype.kind in "iu" else _INT64)
    if locs.dtype.kind not in "iuf":
        raise LocationError(
            f"{name} has dtype {locs.dtype}: a location is a row of integers such as "
            "[start_x, start_y, end_x, end_y]"
        )
    if locs.ndim == 1 and columns in {None, 1} and (len(locs) or locs.dtype.kind != "f"):
        locs = locs[:, None]  # but not [], which says of no location how many numbers it has
    if locs.ndim != 2 or locs.shape[1] == 0:
        raise LocationError(
            f"{name} has shape {locs.shape}: it must be 2-d, one location a row; for a single location "
            "pass [[x, y, ...]], for none np.empty((0, 4)); predictions come first, locations second"
        )
    if columns is None and locs.shape[1] > max(len(locs), _MOST_COLUMNS) and is_list_of_arrays(raw):
        raise LocationError(
            f"{name} is a list of {len(locs)} arrays of {locs.shape[1]} numbers: pass their transpose, "
            f"np.stack({name}, axis=1), if each is a column, and np.stack({name}) if each is a location"
        )
    if columns is not None and locs.shape[1] != columns:
        remedy = "; if its rows are columns, pass the transpose" if len(locs) == columns else ""
        raise LocationError(
            f"{name} has {locs.shape[1]} columns but full_output_locs has {columns}: "
            f"both must describe a location in the same way{remedy}"
        )
    if locs.dtype != _INT64 and locs.dtype.kind != "i":
        _check_whole(locs, name)
    return locs


def is_list_of_arrays(raw: Any) -> TypeGuard[Sequence[ArrayLike]]:
    """Whether this is what a loader makes of tuples; a list of lists of numbers is one of rows, always."""
    return isinstance(raw, (list, tuple)) and len(raw) > 0 and all(map(is_array, raw))


def _from_columns(columns: Sequence[NDArray[Any]], name: str, lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return locations from arrays that each hold one number of all of them."""
    if len(set(lengths)) > 1:
        raise LocationError(
            f"{name} is a list of arrays of {listed(map(str, lengths))} numbers: its rows, or all columns of "
            "their transpose, are of one length"
        )
    whole = [as_locations(column, f"{name}[{i}]", 1) for i, column in enumerate(columns)]
    return np.hstack([column.astype(np.int64) for column in whole])


def _check_whole(locs: NDArray[Any], name: str) -> None:
    """Refuse floats that are not whole numbers, and whole numbers beyond int64."""
    if locs.dtype == np.float16:
        locs = locs.astype(np.float64)  # it cannot hold the limit
    good = locs < _INT64_LIMIT
    if locs.dtype.kind == "f":
        good &= (np.trunc(locs) == locs) & (locs >= -_INT64_LIMIT)
    if not good.all():
        rows = np.flatnonzero(~good.all(axis=1))
        raise LocationError(
            f"NaN, fractions or numbers beyond 64 bits: {named(rows, name)}, the first being "
            f"{locs[rows[0]].tolist()}; round them yourself, as only you know which pixel is meant"
        )


def as_heads(raw: BatchOutput) -> Arrays:
    """Return a batch's heads: a tuple or list of heads, a dict of named heads, or one array."""
    given: Heads[Any]
    if isinstance(raw, (tuple, list)):
        given = Heads(tuple(raw))
    elif isinstance(raw, Mapping):
        for name in raw:
            if not isinstance(name, str):
                raise HeadError(f"head names must be strings, but {name!r} is {type(name).__name__}")
        given = Heads.of(raw)
        if len(set(given.keys)) != len(given.values):
            raise HeadError(f"two heads have the same name: {list(given.keys)}")
    else:
        given = Heads((raw,))
    return given.like([_as_head(head, given.label(i)) for i, head in enumerate(given.values)])


def check_rows(heads: Arrays, n_locs: int) -> None:
    """Refuse heads that do not have one row for each location of the batch."""
    wrong = [i for i, head in enumerate(heads.values) if len(head) != n_locs]
    if wrong:
        each = listed(f"{heads.label(i)} {len(heads.values[i])}" for i in wrong)
        raise HeadError(
            f"rows differ: batch_locs {n_locs}, {each}; each prediction needs its location. A single "
            "patch is pushed as patch[None], and a list is a list of heads: np.stack patches of one head"
        )


def check_specs(heads: Arrays, specs: Heads[HeadSpec], first: str = "the first batch") -> Arrays:
    """Return the heads in the order of the first batch, or of what else came first, refusing what differs."""
    if heads.names != specs.names:
        heads = _in_named_order(heads, specs.names, first)
    if len(heads.values) != len(specs.values):
        raise HeadError(f"number of heads: {len(heads)}, but {first} had {len(specs)}")
    for i, (head, spec) in enumerate(zip(heads.values, specs.values, strict=True)):
        if head.shape[1:] != spec.patch_shape:
            is_cut = head.ndim == 1 + len(spec.patch_shape) and all(
                length <= whole for length, whole in zip(head.shape[1:], spec.patch_shape, strict=True)
            )
            remedy = "; pad one that was cut at its end to that size, its box stays cut" if is_cut else ""
            raise HeadError(
                f"{heads.label(i)} has patch shape {head.shape[1:]} but {first} had "
                f"{spec.patch_shape}: push one shape throughout{remedy}"
            )
        if head.dtype != spec.dtype and not spec.is_converted and not _is_lossless(head.dtype, spec.dtype):
            raise HeadDtypeError(
                f"{heads.label(i)} has dtype {head.dtype} but {first} had {spec.dtype}, which "
                "cannot hold it without loss: push every batch, from the first on, in one dtype that holds "
                f"all their values, such as {np.promote_types(head.dtype, spec.dtype)}, or say dtype="
            )
    return heads


def _in_named_order(heads: Arrays, names: tuple[str, ...] | None, first: str) -> Arrays:
    if heads.names is None or names is None:
        then, now = ("without names", "names") if names is None else ("with names", "none")
        raise HeadError(f"{first} came {then} but this one has {now}: push one kind throughout")
    if set(heads.names) != set(names):
        theirs, had = (listed(map(repr, sorted(each))) for each in (heads.names, names))
        raise HeadError(f"the batch has heads [{theirs}] but {first} had [{had}]")
    by_name = heads.by_name()
    return Heads(tuple(by_name[name] for name in names), names)


def as_specs(heads: Arrays, options: HeadOptions) -> Heads[HeadSpec]:
    """Return what every row of each head looks like, from the first batch and the storage options."""
    options.check_heads(heads.keys)
    specs = []
    for key, head, names in zip(
        heads.keys, heads, dimension_names(heads.like(head.shape for head in heads)), strict=True
    ):
        storage, dtype = options.for_head(key, head.dtype)
        if storage.dimension_names is None:
            storage = attrs.evolve(storage, dimension_names=names)
        specs.append(HeadSpec(head.shape[1:], dtype or head.dtype, storage, dtype is not None))
    return heads.like(specs)


def as_stored_heads(heads: Arrays, specs: Heads[HeadSpec]) -> tuple[NDArray[Any], ...]:
    """Return heads in the dtypes that the user asked for, refusing values those cannot hold."""
    if not [spec for spec in specs.values if spec.is_converted]:
        return heads.values
    return tuple(
        as_stored(head, spec.dtype, heads.label(i)) if spec.is_converted else head
        for i, (head, spec) in enumerate(zip(heads.values, specs.values, strict=True))
    )


def as_canvas_nbytes(canvas_np: Sequence[Any] | None, n_heads: int) -> int:
    """Return the bytes of what is accumulated already; entries may be None."""
    if canvas_np is None:
        return 0
    if not isinstance(canvas_np, (tuple, list)):
        raise HeadError(
            f"canvas_np is {type(canvas_np).__name__}: it must be None or a list with one array or "
            "None a head"
        )
    if len(canvas_np) != n_heads:
        raise HeadError(f"canvas_np has {len(canvas_np)} entries but the batch has {n_heads} heads")
    held = 0
    for i, entry in enumerate(canvas_np):
        if entry is not None and not hasattr(entry, "nbytes"):
            raise HeadError(f"canvas_np[{i}] is {type(entry).__name__}, not an array or None")
        held += 0 if entry is None else int(entry.nbytes)
    return held


def as_path(raw: StrPath, name: str) -> str:
    """Return a path as text."""
    path = os.fspath(raw) if isinstance(raw, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"{name} is {raw!r}: give a path as str or pathlib.Path")
    if "://" in path or path.startswith("~"):
        raise OptionError(f"{name} is {path!r}: give a local path; for ~ use pathlib.Path.expanduser()")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as cause:
        raise OptionError(f"{name} is {path!r}, which no file can be called: {cause.reason}") from cause
    return path


def as_place(raw: StrPath, name: str) -> Path:
    """Return where a folder is or will be, wherever links lead there: a user's own path is followed.

    Only a link that leads nowhere stays one.
    """
    path = as_path(raw, name)
    place = Path(os.path.realpath(path))
    return place if os.path.lexists(place) else as_target(path, name)


def as_target(raw: StrPath, name: str) -> Path:
    """Return where something is about to be put, wherever links above it lead; a link there is in the way."""
    path = Path(as_path(raw, name))
    return Path(os.path.realpath(path.parent)) / path.name


def _as_head(raw: ArrayLike, label: str) -> NDArray[Any]:
    head = as_array(raw, label, HeadDtypeError)
    if head.dtype.kind not in _STORABLE_KINDS:
        raise HeadDtypeError(
            f"{label} is {type(raw).__name__} of dtype {head.dtype}: predictions are bool, integer, float or "
            "complex numbers, as arrays or tensors in a tuple, list or dict"
        )
    if head.ndim == 0:
        raise HeadError(f"{label} is a single number: it must be (n, *patch_shape), one row a location")
    return head


def _is_lossless(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether every value of one dtype is a value of the other.

    NumPy's "safe" also admits int64 to float64, which rounds beyond 2**53.
    """
    if source.kind in "iu" and target.kind in "fc":
        bits = 8 * source.itemsize - (source.kind == "i")
        return bits <= np.finfo(target).nmant + 1
    return np.can_cast(source, target, "safe")

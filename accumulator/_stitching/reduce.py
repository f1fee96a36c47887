"""What is made of finished bands before they are stored, such as classes of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.arrays import as_array
from accumulator._inputs.options import as_fill_value, by_plain_key
from accumulator._stitching.counting import is_nodata
from accumulator._stitching.numbers import blank
from accumulator.exceptions import HeadError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.numbers import MapSpec
    from accumulator.typing import Reduce, StorageOption

_STEP_NBYTES: Final = 4 * 2**20  # of a band, at a time
_MOST_NESTED: Final = 8  # functions in functions: one may know itself
_PLAIN: Final = (int, float, complex, str, bytes, bool, type(None))  # what is the same wherever its text is


@attrs.frozen(eq=False)
class Reduced:
    """What a head's bands become."""

    make: Callable[[NDArray[Any]], Any]
    name: str
    told: str  # the name, and what tells it from others
    label: str  # of the head, in messages
    n_spatial: int
    channels: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any

    def __call__(self, band: NDArray[Any], gaps: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Return what some rows of the blended map become, whose gaps are filled."""
        shape = (*band.shape[: self.n_spatial], *self.channels)
        made = np.empty(shape, self.dtype)
        step = max(1, _STEP_NBYTES // max(1, band[:1].nbytes))
        for start in range(0, len(band), step):
            some = band[start : start + step]
            got = _call(self.make, some, self.label, self.name)
            if got.shape != (len(some), *shape[1:]) or got.dtype != self.dtype:
                raise HeadError(
                    f"reduce={self.name} made {got.dtype} {got.shape} of {self.label}'s {some.shape}, and "
                    f"{self.dtype} {(len(some), *shape[1:])} before: it has to make the same of each band"
                )
            made[start : start + step] = got
        if gaps is not None:
            made[gaps] = self.fill_value
        return made


def as_reduce(raw: StorageOption[Reduce | None]) -> Any:
    """Return what is to be done with bands, for all heads or in a dict by head; None where nothing is."""
    given = by_plain_key("reduce", raw)
    some = list(given.values()) if isinstance(given, Mapping) else [given]
    for each in some:
        if each is not None and not (isinstance(each, str) and each == "argmax") and not callable(each):
            raise OptionError(
                f'reduce is {each!r}: it is "argmax", a function that takes rows of a map and returns as '
                "many, or a dict of them by head"
            )
    return given if any(each is not None for each in some) or given else None


def with_reduced(
    maps: Heads[MapSpec], asked: Sequence[tuple[Any, Any]], shape: Sequence[int], labels: Sequence[str]
) -> Heads[MapSpec]:
    """Return maps of such a spatial shape that know what becomes of their bands, and what fills gaps then."""
    made = []
    for key, spec, label, (reduce, fill) in zip(maps.keys, maps, labels, asked, strict=True):
        made.append(spec if reduce is None else _reduced(key, spec, label, reduce, fill, shape))
    return maps.like(made)


def _reduced(  # noqa: PLR0913, PLR0917  what it depends on
    key: int | str, spec: MapSpec, label: str, reduce: Any, fill: Any, shape: Sequence[int]
) -> MapSpec:
    make, name, told = reduce, _name_of(reduce), f"{_name_of(reduce)} {_hash_of(reduce)}"
    if isinstance(reduce, str):
        make, name, told = partial(_argmax, nodata=spec.nodata), reduce, reduce
        if len(spec.channels) != 1:
            raise HeadError(
                f'{label} has no channels, of which reduce="argmax" takes the largest: name the heads that '
                "it is for, reduce={head: ...}"
            )
    probe = np.zeros((1, *shape[1:], *spec.channels), spec.dtype)
    got = _call(make, probe, label, name)
    if got.shape[: len(shape)] != probe.shape[: len(shape)]:
        raise HeadError(
            f"reduce={name} made {got.shape} of {label}'s {probe.shape}: it has to return an array of the "
            f"same {len(shape)} spatial axes, and channels behind them if it likes"
        )
    value = as_fill_value(fill, got.dtype, key)
    reduced = Reduced(make, name, told, label, len(shape), got.shape[len(shape) :], got.dtype, value)
    return attrs.evolve(spec, fill_value=spec.dtype.type(0), reduced=reduced)


def _call(make: Callable[[NDArray[Any]], Any], rows: NDArray[Any], label: str, name: str) -> NDArray[Any]:
    view = rows.view()
    view.flags.writeable = False
    got = as_array(make(view), f"what reduce={name} made of {label}", HeadError)
    if got.dtype.kind not in "biufc" or got.dtype.char in "gG":
        raise HeadError(f"reduce={name} made {got.dtype} of {label}: a map is of numbers that zarr can store")
    return got.astype(got.dtype.newbyteorder("="), copy=False)


def _argmax(rows: NDArray[Any], nodata: Any) -> NDArray[Any]:
    """Return the channel that is largest, the first of those that are; NaN is, unless it is nodata."""
    if nodata is not None:
        rows = np.where(is_nodata(rows, nodata), blank(rows.dtype, "max"), rows)
    classes: NDArray[Any] = rows.argmax(axis=-1)
    return classes.astype(np.min_scalar_type(rows.shape[-1] - 1))


def _name_of(function: Any) -> str:
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name


def _hash_of(function: Any) -> str:
    """Return what tells a function from others: its code, and what it has of plain values."""
    return sha256(repr(_facts(function)).encode()).hexdigest()[:8]


def _facts(thing: Any, depth: int = 0) -> Any:
    """Return what tells a value from others in another process, too: of objects that is their kind alone."""
    parts: Sequence[Any] | None = None
    if isinstance(thing, (set, frozenset)):
        parts = sorted(thing, key=repr)
    elif isinstance(thing, (tuple, list)):
        parts = thing
    elif isinstance(thing, CodeType):
        parts = [thing.co_code, thing.co_names, thing.co_consts]
    elif isinstance(thing, partial):
        parts = [thing.func, thing.args, *sorted(thing.keywords.items())]
    elif hasattr(thing, "__code__"):
        parts = [
            thing.__code__,
            thing.__defaults__,
            *(cell.cell_contents for cell in thing.__closure__ or ()),
        ]
    if parts is not None and depth < _MOST_NESTED:
        return [_facts(each, depth + 1) for each in parts]
    if isinstance(thing, np.ndarray):
        return sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()
    is_plain = isinstance(thing, (*_PLAIN, np.generic))
    return repr(thing) if is_plain else getattr(thing, "__qualname__", type(thing).__qualname__)

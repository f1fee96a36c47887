"""What is made of finished bands before they are stored, such as classes of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.options import as_fill_value, by_plain_key, check_heads
from accumulator.exceptions import HeadError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.numbers import MapSpec
    from accumulator.typing import Reduce, StorageOption

_STEP_NBYTES: Final = 4 * 2**20  # of a band, at a time


@attrs.frozen(eq=False)
class Reduced:
    """What a head's bands become."""

    make: Callable[[NDArray[Any]], Any]
    label: str  # of the head, in messages
    name: str  # of what is done, in messages
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
    """Return what is to be done with bands, for all heads or in a dict by head."""
    given = by_plain_key("reduce", raw)
    for each in given.values() if isinstance(given, Mapping) else [given]:
        if each is not None and each != "argmax" and not callable(each):
            raise OptionError(
                f'reduce is {each!r}: it is "argmax", a function that takes rows of a map and returns as '
                "many, or a dict of them by head"
            )
    return given


def with_reduced(
    maps: Heads[MapSpec], given: Any, fills: Sequence[Any], shape: Sequence[int], labels: Sequence[str]
) -> Heads[MapSpec]:
    """Return maps that know what becomes of their bands, of such a spatial shape and filled with what."""
    check_heads({"reduce": given}, maps.keys)
    made = []
    for i, (key, spec) in enumerate(zip(maps.keys, maps, strict=True)):
        asked = given.get(key) if isinstance(given, Mapping) else given
        if asked is None:
            made.append(spec)
            continue
        name = asked if isinstance(asked, str) else getattr(asked, "__qualname__", type(asked).__qualname__)
        make = _argmax if asked == "argmax" else asked
        if asked == "argmax" and len(spec.channels) != 1:
            raise HeadError(
                f'{labels[i]} has no channels, of which reduce="argmax" takes the largest: name the heads '
                "that it is for, reduce={head: ...}"
            )
        probe = np.zeros((1, *shape[1:], *spec.channels), spec.dtype)
        got = _call(make, probe, labels[i], name)
        if got.shape[: len(shape)] != probe.shape[: len(shape)]:
            raise HeadError(
                f"reduce={name} made {got.shape} of {labels[i]}'s {probe.shape}: it has to return an array "
                f"of the same {len(shape)} spatial axes, and channels behind them if it likes"
            )
        fill = as_fill_value(fills[i], got.dtype, key)
        reduced = Reduced(make, labels[i], name, len(shape), got.shape[len(shape) :], got.dtype, fill)
        made.append(attrs.evolve(spec, fill_value=spec.dtype.type(0), reduced=reduced))
    return maps.like(made)


def _call(make: Callable[[NDArray[Any]], Any], rows: NDArray[Any], label: str, name: str) -> NDArray[Any]:
    view = rows.view()
    view.flags.writeable = False
    got = np.asarray(make(view))
    if got.dtype.kind not in "biufc" or got.dtype.char in "gG":
        raise HeadError(f"reduce={name} made {got.dtype} of {label}: a map is of numbers that zarr can store")
    return got.astype(got.dtype.newbyteorder("="), copy=False)


def _argmax(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the channel that is largest, the first of those that are; NaN is larger than all."""
    classes: NDArray[Any] = rows.argmax(axis=-1)
    return classes.astype(np.min_scalar_type(rows.shape[-1] - 1))

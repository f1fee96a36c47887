"""What the user says of how patches lie, checked before anything is pushed; nothing of it is guessed.

Locations name x before y before z, unless ``axes`` says otherwise; arrays have them the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import numpy as np

from accumulator._inputs.arguments import as_ints, each_axis, per_axis
from accumulator._inputs.options import by_plain_key
from accumulator.exceptions import LocationError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator.typing import Crop, StorageOption

_LETTERS: Final = "xyz"
GEOMETRY: Final = ("output_shape", "origin", "channels_first", "crop", "scale", "axes", "spread")


@attrs.frozen(eq=False)
class Geometry:
    """What was said; options of single heads are looked up by `of`."""

    n_spatial: int
    columns: list[int]  # of the starts, one for each of the array's axes
    origin: tuple[int, ...] | Literal["min"] | None  # x first
    by_head: Mapping[str, Any]  # options that may differ from head to head, checked

    def of(self, option: str, key: int | str) -> Any:
        """Return what was said of a head; None where nothing was."""
        value = self.by_head[option]
        return value.get(key) if isinstance(value, Mapping) else value

    @property
    def axes(self) -> str:
        """The order of the columns, as letters; nothing where there are more axes than letters."""
        known = _LETTERS[: self.n_spatial] if self.n_spatial <= len(_LETTERS) else ""
        return "".join(sorted(known, key=lambda letter: self.columns[::-1][known.index(letter)]))

    @property
    def is_same_for_all(self) -> bool:
        """Whether the maps' shape depends on the locations alone."""
        names = ("output_shape", "scale")
        return not any(isinstance(self.by_head[name], Mapping) for name in names) and (
            self.by_head["output_shape"] is not None or self.by_head["scale"] is None
        )


def as_geometry(  # noqa: PLR0913  what may be said
    n_columns: int,
    *,
    name: str = "full_output_locs",
    output_shape: StorageOption[Sequence[int] | None] = None,
    origin: Sequence[int] | Literal["min"] | None = None,
    channels_first: StorageOption[bool] = False,
    crop: StorageOption[Crop] = None,
    scale: StorageOption[float | Sequence[float] | None] = None,
    axes: str | None = None,
    spread: StorageOption[bool] = False,
) -> Geometry:
    """Return what was said of locations with so many numbers, which messages call ``name``."""
    n = _count_axes(n_columns, name)
    shape = _each(
        "output_shape", output_shape, lambda raw: as_ints(raw, n, "output_shape", "(height, width)")
    )
    is_min = isinstance(origin, str) and origin == "min"
    first = None if origin is None or is_min else tuple(as_ints(origin, n, "origin", '[x, y], or "min"'))
    return Geometry(
        n,
        _as_columns(axes, n),
        "min" if is_min else first,
        {
            "output_shape": shape,
            "channels_first": _each("channels_first", channels_first, partial(_as_flag, "channels_first")),
            "spread": _each("spread", spread, partial(_as_flag, "spread")),
            "crop": _each("crop", crop, lambda raw: _as_crop(raw, n)),
            "scale": _each("scale", scale, lambda raw: _as_scale(raw, n)),
        },
    )


def _count_axes(n_columns: int, name: str) -> int:
    if n_columns % 2:
        raise LocationError(
            f"{name} has {n_columns} columns: a map needs boxes such as [start_x, start_y, end_x, end_y], a "
            "start and an end for each axis"
        )
    return n_columns // 2


def _as_columns(axes: Any, n_spatial: int) -> list[int]:
    if axes is None:
        return list(range(n_spatial))[::-1]
    known = _LETTERS[:n_spatial]
    if not isinstance(axes, str) or n_spatial > len(_LETTERS) or sorted(axes) != list(known):
        orders = {1: '"x"', 2: '"xy" or "yx"', 3: 'the letters of "xyz" in any order, such as "zyx"'}
        order = orders.get(n_spatial, "nothing")
        raise OptionError(
            f"axes is {axes!r}: it is the order of the columns of locations with {n_spatial} axes, {order}"
        )
    return [axes.index(letter) for letter in known[::-1]]


def _as_flag(name: str, raw: Any) -> bool:
    if not isinstance(raw, (bool, np.bool_)):
        raise OptionError(f"{name} is {raw!r}: it is True, False, or a dict of them by head")
    return bool(raw)


def _as_crop(raw: Any, n_spatial: int) -> str | list[int]:
    if isinstance(raw, str) and raw in {"center", "start"}:
        return raw
    try:
        pixels = as_ints(each_axis(raw, n_spatial), n_spatial, "crop", "")
    except OptionError:
        pixels = [-1]
    if min(pixels) < 0:
        raise OptionError(
            f'crop is {raw!r}: it is "center", "start", or how many pixels are cut on each side, a whole '
            "number or one an axis, x first"
        )
    return pixels


def _as_scale(raw: Any, n_spatial: int) -> list[float] | None:
    factors = per_axis(raw, n_spatial)
    if factors is None:
        raise OptionError(
            f"scale is {raw!r}: it is how many pixels of the map a unit of the locations has, such as 1/4, a "
            "positive number or one an axis, x first"
        )
    return None if all(factor == 1 for factor in factors) else factors


def _each(name: str, given: Any, checked: Callable[[Any], Any]) -> Any:
    """Return an option, checked for all heads or head by head; None says nothing."""
    raw = by_plain_key(name, given)
    if isinstance(raw, Mapping):
        return {key: None if value is None else checked(value) for key, value in raw.items()}
    return None if raw is None else checked(raw)


def in_order(values: Sequence[Any], dtype: Any = np.int64) -> NDArray[Any]:
    """Return what the user gave x first in the order of the array's axes."""
    return np.array(values[::-1], dtype=dtype)

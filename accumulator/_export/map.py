"""Arguments are checked here: maps with named axes, what they are, their pixels' size, names of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast, get_args

import attrs
import numpy as np
import zarr

from accumulator._inputs.arguments import per_axis
from accumulator._inputs.heads import plain_key
from accumulator.exceptions import HeadDtypeError, HeadError, OptionError
from accumulator.typing import MapKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import RowArray

UNITS: Final = {  # and their symbols
    "nanometer": "nm",
    "micrometer": "µm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}
_ALIASES: Final = {symbol: name for name, symbol in UNITS.items()} | {
    "um": "micrometer",
    "\u03bcm": "micrometer",  # the Greek letter, for the sign
}
_AXES: Final = {2: "yx", 3: "zyx"}
# What viewers do not show is written as what they do, which holds every value of it.
_WIDENED: Final[dict[np.dtype[Any], np.dtype[Any]]] = {
    np.dtype(np.bool_): np.dtype(np.uint8),
    np.dtype(np.float16): np.dtype(np.float32),
}
_WRITABLE: Final = "buif"
_COLOURS: Final = ("red", "green", "blue")


class ImageOptions(TypedDict, total=False):
    """What may be said of maps, whatever the format."""

    n_spatial: int  # 2 or 3 spatial axes; 2 by default
    # For all axes, or x, y(, z), and for all heads or by head; without it 1, and no unit.
    pixel_size: float | Sequence[float] | Mapping[str, float | Sequence[float]] | None
    unit: str  # of `pixel_size`: "micrometer" (the default) or "µm", "nanometer" and so on
    # One name a channel, for all heads or by head; by default their numbers, or the head's name.
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None
    kind: MapKind | Mapping[str, MapKind]  # "image" by default


@attrs.frozen(eq=False)
class Map:
    """One head's map, seen with the axes in the order of OME: (c,) (z,) y, x."""

    name: str
    array: RowArray
    n_spatial: int
    dtype: np.dtype[Any]  # as it is written
    kind: MapKind = "image"
    sizes: dict[str, float] | None = None  # of a pixel, by axis
    unit: str = ""
    channels: Sequence[str] = ()  # their names, one where there is no axis for them

    @property
    def has_channels(self) -> bool:
        """Whether there is an axis c."""
        return bool(self.array.ndim > self.n_spatial) and self.kind != "labels"

    @property
    def is_mean(self) -> bool:
        """Whether levels of its pyramid are means: numbers that may be labels have none."""
        return self.dtype.kind == "f" or self.kind == "rgb"

    @property
    def axes(self) -> str:
        """The names of the axes."""
        return "c" * self.has_channels + _AXES[self.n_spatial]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self._ordered(self.array.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """What of the array has to be read at once, or is best."""
        in_ram = (*(1,) * self.n_spatial, self.array.shape[-1])  # whose channels lie side by side
        return self._ordered(getattr(self.array, "chunks", in_ram[: self.array.ndim]))

    def read(self, region: tuple[slice, ...]) -> NDArray[Any]:
        """Return a part of the map in the dtype that is written."""
        where: tuple[slice | int, ...] = (*region[1:], region[0]) if self.has_channels else region
        if self.array.ndim > len(where):
            where = (*where, 0)  # labels have one channel at most
        part = np.asarray(self.array[where])
        if self.has_channels:
            part = np.moveaxis(part, -1, 0)
        return part.astype(self.dtype, copy=False)

    def _ordered(self, lengths: Sequence[int]) -> tuple[int, ...]:
        lengths = tuple(int(length) for length in lengths)
        return (lengths[-1], *lengths[:-1]) if self.has_channels else lengths[: self.n_spatial]


def as_maps(  # noqa: PLR0913  the options of `ImageOptions`
    arrays: Mapping[str, RowArray],
    *,
    n_spatial: int = 2,
    pixel_size: float | Sequence[float] | Mapping[str, float | Sequence[float]] | None = None,
    unit: str = "micrometer",
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    kind: MapKind | Mapping[str, MapKind] = "image",
) -> list[Map]:
    """Return arrays as maps; options are those of `ImageOptions`."""
    maps = [_as_map(plain_key(name), array, n_spatial) for name, array in arrays.items()]
    if not isinstance(unit, str):
        raise OptionError(f'unit is {unit!r}: give a unit of length, such as "micrometer" or "nm"')
    unit, names = _ALIASES.get(unit, unit), [each.name for each in maps]
    channels, sizes, kinds = (
        _by_head("channel_names", channel_names, names),
        _by_head("pixel_size", pixel_size, names),
        _by_head("kind", kind, names),
    )
    maps = [attrs.evolve(each, kind=_as_kind(kinds.get(each.name, "image"), each)) for each in maps]
    return [
        attrs.evolve(
            each,
            sizes=_as_sizes(sizes.get(each.name), n_spatial),
            unit=unit,
            channels=_as_names(channels.get(each.name), each),
        )
        for each in maps
    ]


def _by_head(option: str, given: Any, heads: Sequence[str]) -> dict[str, Any]:
    """Return what was said for all heads, or head by head."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(heads, given)
    by_head = {str(plain_key(name)): each for name, each in given.items()}
    unknown = [name for name in by_head if name not in heads]
    if unknown:
        raise OptionError(f"{option} has {unknown}: there is no such head")
    return by_head


def _as_map(name: str, array: RowArray, n_spatial: int) -> Map:
    if n_spatial not in _AXES:
        raise OptionError(f"n_spatial is {n_spatial!r}: a map has 2 spatial axes (y, x) or 3 (z, y, x)")
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise HeadError(f"the name {name!r} of a head cannot be written: give text that can be printed")
    label = f"head {name!r}"
    if not isinstance(array, (np.ndarray, zarr.Array)) or isinstance(array, np.ma.MaskedArray):
        raise HeadDtypeError(f"{label} is {type(array).__name__}: give a numpy.ndarray or a zarr.Array")
    axes = ", ".join(_AXES[n_spatial])
    if array.ndim not in {n_spatial, n_spatial + 1} or 0 in array.shape:
        raise HeadError(
            f"{label} has shape {array.shape}: a map has the axes ({axes}) or ({axes}, channel), none of "
            "them empty; leave out heads that are no maps"
        )
    dtype: np.dtype[Any] = np.dtype(array.dtype)
    if dtype.kind not in _WRITABLE or dtype.char == "g":
        raise HeadDtypeError(
            f"{label} has dtype {dtype}: images are bool, integer or float of at most 64 bits; export parts, "
            "such as array.real and array.imag, on their own"
        )
    return Map(name, array, int(n_spatial), _WIDENED.get(dtype, dtype.newbyteorder("=")))


def _as_kind(raw: Any, head: Map) -> MapKind:
    """Return what a map is to viewers; it has to be able to be that."""
    if not isinstance(raw, str) or raw not in get_args(MapKind):
        raise OptionError(f"kind is {raw!r}: give one of {', '.join(map(repr, get_args(MapKind)))}")
    label, shape = f"head {head.name!r}", head.array.shape
    if raw == "rgb" and (not head.has_channels or shape[-1] != len(_COLOURS)):
        raise HeadError(f'{label} has shape {shape}: a map of kind "rgb" has three channels, which come last')
    if raw == "rgb" and head.array.dtype != np.uint8:
        raise HeadDtypeError(f'{label} has dtype {head.dtype}: a map of kind "rgb" has uint8, from 0 to 255')
    if raw == "labels" and head.array.dtype.kind not in "bui":
        raise HeadDtypeError(f'{label} has dtype {head.dtype}: a map of kind "labels" has integers, or bool')
    if raw == "labels" and head.has_channels and shape[-1] != 1:
        raise HeadError(f'{label} has shape {shape}: a map of kind "labels" has one number a pixel')
    return cast("MapKind", raw)


def _as_sizes(raw: float | Sequence[float] | None, n_spatial: int) -> dict[str, float] | None:
    """Return the size of a pixel by axis."""
    if raw is None:
        return None
    names = _AXES[n_spatial][::-1]
    sizes = per_axis(raw, n_spatial)
    if sizes is None:
        raise OptionError(
            f"pixel_size is {raw!r}: give a positive number, or one a spatial axis in the order "
            f"{', '.join(names)}"
        )
    return dict(zip(names, sizes, strict=True))


def _as_names(raw: Any, head: Map) -> Sequence[str]:
    n_channels = head.shape[0] if head.has_channels else 1
    if head.kind == "rgb":
        if raw is not None:
            raise OptionError(
                f"channel_names is {raw!r}, but head {head.name!r} is red, green and blue: leave it out"
            )
        return _COLOURS
    if raw is None:
        return [str(c) for c in range(n_channels)] if head.has_channels else [head.name]
    if isinstance(raw, str) or not isinstance(raw, Sequence):
        raise OptionError(f"channel_names is {raw!r}: give a list of names, or a dict of such lists by head")
    if len(raw) != n_channels:
        raise OptionError(
            f"channel_names has {len(raw)} names but head {head.name!r} has {n_channels} channels: "
            "give one a channel, in a dict by head where heads differ"
        )
    wrong = [name for name in raw if not isinstance(name, str) or not name.isprintable()]
    if wrong:
        raise OptionError(f"channel_names has {wrong!r}: give text that can be printed")
    return raw

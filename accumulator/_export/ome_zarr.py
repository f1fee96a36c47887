"""Maps as OME-Zarr 0.5, which is zarr v3: all metadata is written by the ome-zarr library.

The pixels are streamed into arrays of zarr, block by block, not handed over as dask arrays: a graph takes
memory with every chunk, and its scheduler decides how many bands of a slide are held at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import zarr

from accumulator._export.levels import chunks_of, fill, level_factors, level_shapes
from accumulator._export.map import as_channel_names, as_map, as_pixel_size
from accumulator._inputs.extras import need
from accumulator._stores.files.target import writing
from accumulator.exceptions import HeadError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator._export.map import Map
    from accumulator.typing import RowArray, StrPath

_PREFIXES: Final = (
    " yotta zetta exa peta tera giga mega kilo hecto deci centi milli micro nano pico femto atto zepto yocto"
)
# What OME-Zarr asks for: the UDUNITS of length.
_UNITS: Final = {f"{prefix}meter" for prefix in _PREFIXES.split(" ")} | {
    "angstrom",
    "foot",
    "inch",
    "mile",
    "parsec",
    "yard",
}
_SYMBOLS: Final = {
    "nm": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",
    "\u03bcm": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
}
_COLOURS: Final = ("FF0000", "00FF00", "0000FF", "FF00FF", "00FFFF", "FFFF00")
_MOST_NAME: Final = 255  # bytes of the name of a folder


def write_ome_zarr(  # noqa: PLR0913  one a property of an image
    path: StrPath,
    maps: Mapping[str, RowArray],
    *,
    n_spatial: int = 2,
    pixel_size: float | Sequence[float] | None = None,
    unit: str = "micrometer",
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    origin: Sequence[int] | None = None,
) -> None:
    """Write maps as OME-Zarr 0.5.

    One map is the image at ``path`` itself. Of several each is an image of its own, in the group that has the
    head's name: a viewer opens ``path/name``. Their channel axis comes first, as viewers expect it: (c,)
    (z,) y, x. Each has a pyramid whose y and x are halved until 512 pixels hold them; z is not.

    Memory is bounded, whatever the size: some 256 MiB of pixels are held, and the chunks being read.
    """
    heads, sizes, unit, names = check_ome_zarr(
        maps, n_spatial=n_spatial, pixel_size=pixel_size, unit=unit, channel_names=channel_names
    )
    first = dict(zip("xyz", origin or (), strict=False))
    with writing(path) as folder:
        root = zarr.create_group(folder, zarr_format=3)
        for head, channels in zip(heads, names, strict=True):
            group = root if len(heads) == 1 else root.create_group(head.name)
            _write_image(group, head, sizes, unit, channels, first)


def check_ome_zarr(
    maps: Mapping[str, RowArray],
    *,
    n_spatial: int = 2,
    pixel_size: float | Sequence[float] | None = None,
    unit: str = "micrometer",
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Map], dict[str, float] | None, str, list[list[str]]]:
    """Refuse what `write_ome_zarr` would refuse, and return what it needs; no pixel is read."""
    need("ome_zarr.writer", "ome")
    if not isinstance(maps, Mapping) or not maps:
        raise HeadError(
            "there are no maps to write: give a dict with the map of one head at least, by its name"
        )
    heads = [as_map(name, array, n_spatial) for name, array in maps.items()]
    sizes = as_pixel_size(pixel_size, n_spatial)
    unit = _SYMBOLS.get(unit, unit)
    if unit not in _UNITS:
        raise OptionError(f'unit is {unit!r}: give a unit of length, such as "micrometer" or "nm"')
    names = as_channel_names(channel_names, heads)
    if len(heads) > 1:
        _check_groups([head.name for head in heads])
    return heads, sizes, unit, names


def _write_image(  # noqa: PLR0913, PLR0917  what is known of it
    group: zarr.Group,
    head: Map,
    sizes: dict[str, float] | None,
    unit: str,
    channels: list[str],
    first: dict[str, int],
) -> None:
    shapes = level_shapes(head.shape)
    levels = [
        group.create_array(
            f"s{number}",
            shape=shape,
            chunks=chunks_of(shape),
            dtype=head.dtype,
            dimension_names=tuple(head.axes),
        )
        for number, shape in enumerate(shapes)
    ]
    limits = fill(head, levels)
    need("ome_zarr.writer", "ome").write_multiscales_metadata(
        group,
        datasets=[
            {
                "path": f"s{number}",
                "coordinateTransformations": _transformations(head.axes, factors, sizes, first),
            }
            for number, factors in enumerate(level_factors(shapes))
        ],
        fmt=need("ome_zarr.format", "ome").FormatV05(),
        axes=[_axis(name, None if sizes is None else unit) for name in head.axes],
        name=head.name,
        metadata={"omero": {"channels": _channels(channels, limits)}},
    )


def _transformations(
    axes: str, factors: list[int], sizes: dict[str, float] | None, first: dict[str, int]
) -> list[dict[str, Any]]:
    """Return where the pixels of a level are, by their centres; the slide's first one is at zero."""
    each = [(sizes or {}).get(axis, 1.0) for axis in axes]
    shift = [first.get(axis, 0) for axis in axes]
    return [
        {"type": "scale", "scale": [size * factor for size, factor in zip(each, factors, strict=True)]},
        {
            "type": "translation",
            "translation": [
                size * (start + (factor - 1) / 2)
                for size, factor, start in zip(each, factors, shift, strict=True)
            ],
        },
    ]


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": name, "type": "channel"}
    return {"name": name, "type": "space"} | ({} if unit is None else {"unit": unit})


def _channels(names: list[str], limits: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return how viewers are to show each channel: from the least to the greatest value."""
    colours = ["FFFFFF"] if len(names) == 1 else [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
    return [
        {
            "label": name,
            "color": colour,
            "active": True,
            "window": {"min": low, "max": high, "start": low, "end": high},
        }
        for name, colour, (low, high) in zip(names, colours, limits, strict=True)
    ]


def _check_groups(names: list[str]) -> None:
    for name in names:
        if "/" in name or "\\" in name or name.startswith(("__", ".")) or name == "zarr.json":
            raise HeadError(f"head {name!r} cannot be the name of a group: give its map under another name")
        if len(name.encode()) > _MOST_NAME:
            raise HeadError(f"head {name[:40]!r}... is too long for the name of a group: give a shorter one")

"""Maps as OME-Zarr 0.5, which is zarr v3: all metadata is written by the ome-zarr library.

The pixels are streamed into arrays of zarr, block by block, not handed over as dask arrays: a graph takes
memory with every chunk, and its scheduler decides how many bands of a slide are held at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack

import zarr

from accumulator._export.levels import chunks_of, fill, level_factors, level_shapes
from accumulator._export.map import as_maps
from accumulator._inputs.extras import need
from accumulator._stores.files.target import staged
from accumulator.exceptions import HeadError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator._export.map import ImageOptions, Map
    from accumulator.typing import RowArray, StrPath

_PREFIXES: Final = (
    " yotta zetta exa peta tera giga mega kilo hecto deci centi milli micro nano pico femto atto zepto yocto"
)
# What OME-Zarr asks for: the UDUNITS of length.
_UNITS: Final = {
    *(f"{prefix}meter" for prefix in _PREFIXES.split(" ")),
    *("angstrom", "foot", "inch", "mile", "parsec", "yard"),
}
_COLOURS: Final = ("FF0000", "00FF00", "0000FF", "FF00FF", "00FFFF", "FFFF00")
_MOST_NAME: Final = 255  # bytes of the name of a folder


def write_ome_zarr(
    path: StrPath,
    maps: Mapping[str, RowArray],
    *,
    origins: Mapping[str, Sequence[int]] | None = None,
    **options: Unpack[ImageOptions],
) -> None:
    """Write maps as OME-Zarr 0.5.

    One map is the image at ``path`` itself. Of several each is an image of its own, in the group that has the
    head's name: a viewer opens ``path/name``. Their channel axis comes first, as viewers expect it: (c,)
    (z,) y, x. Each has a pyramid whose y and x are halved until 512 pixels hold them; z is not.

    Memory is bounded, whatever the size: some 256 MiB of pixels are held, and the chunks being read.
    """
    heads = check_ome_zarr(maps, **options)
    origins = origins or {}
    with staged(path) as folder:
        root = zarr.create_group(folder, zarr_format=3)
        for head in heads:
            start = dict(zip("xyz", origins.get(head.name, ()), strict=False))
            _write_image(root if len(heads) == 1 else root.create_group(head.name), head, start)


def check_ome_zarr(maps: Mapping[str, RowArray], **options: Unpack[ImageOptions]) -> list[Map]:
    """Refuse what `write_ome_zarr` would refuse, and return what it needs; no pixel is read."""
    need("ome_zarr.writer", "ome")
    if not isinstance(maps, Mapping) or not maps:
        raise HeadError(
            "there are no maps to write: give a dict with the map of one head at least, by its name"
        )
    heads = as_maps(maps, **options)
    unit = heads[0].unit
    if unit not in _UNITS:
        raise OptionError(f'unit is {unit!r}: give a unit of length, such as "micrometer" or "nm"')
    for name in maps if len(heads) > 1 else ():
        if "/" in name or "\\" in name or name.startswith(("__", ".")) or name == "zarr.json":
            raise HeadError(f"head {name!r} cannot be the name of a group: give its map under another name")
        if len(name.encode()) > _MOST_NAME:
            raise HeadError(f"head {name[:40]!r}... is too long for the name of a group: give a shorter one")
    return heads


def _write_image(group: zarr.Group, head: Map, start: dict[str, int]) -> None:
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
            {"path": f"s{number}", "coordinateTransformations": _transformations(head, factors, start)}
            for number, factors in enumerate(level_factors(shapes))
        ],
        fmt=need("ome_zarr.format", "ome").FormatV05(),
        axes=[_axis(name, None if head.sizes is None else head.unit) for name in head.axes],
        name=head.name,
        metadata={"omero": {"channels": _channels(head.channels, limits)}},
    )


def _transformations(head: Map, factors: list[int], start: dict[str, int]) -> list[dict[str, Any]]:
    """Return where the pixels of a level are, by their centres; the slide's first one is at zero."""
    scale, translation = [], []
    for axis, factor in zip(head.axes, factors, strict=True):
        size = (head.sizes or {}).get(axis, 1.0)
        scale.append(size * factor)
        translation.append(size * (start.get(axis, 0) + (factor - 1) / 2))
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": name, "type": "channel"}
    return {"name": name, "type": "space"} | ({} if unit is None else {"unit": unit})


def _channels(names: Sequence[str], limits: list[tuple[float, float]]) -> list[dict[str, Any]]:
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

"""Maps as OME-Zarr 0.5, which is zarr v3: a group of arrays, and what they are in its attribute ``ome``.

Both are written with zarr alone. The library ome-zarr brings 280 MB, and takes pixels as dask arrays:
a graph takes memory with every chunk, and its scheduler decides how many bands of a slide are held at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack
from xml.etree import ElementTree as ET

import attrs
import zarr

from accumulator._export.levels import chunks_of, fill, level_factors, level_shapes
from accumulator._export.map import as_maps
from accumulator._stores.files.target import staged, write_file
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
_VERSION: Final = "0.5"
_OME: Final = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
_TYPES: Final = {"float32": "float", "float64": "double"}  # as OME-XML calls them


@attrs.frozen(eq=False)
class _Image:
    """A map with its place, and the labels that lie on it."""

    head: Map
    start: Mapping[str, int]  # the first pixel, by axis
    labels: list[_Image] = attrs.field(factory=list)

    @property
    def extent(self) -> tuple[object, ...]:
        """What is the same for maps that lie on each other."""
        return self.head.shape[-self.head.n_spatial :], self.head.sizes, self.start


def write_ome_zarr(
    path: StrPath,
    maps: Mapping[str, RowArray],
    *,
    origins: Mapping[str, Sequence[int]] | None = None,
    **options: Unpack[ImageOptions],
) -> None:
    """Write maps as OME-Zarr 0.5.

    One map is the image at ``path`` itself. Of several each is an image of its own, in the group that has the
    head's name: a viewer opens ``path/name``, or ``path``, where they are listed as bioformats2raw does it.
    Their channel axis comes first, as viewers expect it: (c,) (z,) y, x. Each has a pyramid whose y and x are
    halved until 512 pixels hold them; z is not, as in ome-zarr. Its pixels are means of floats and of
    pictures, rounded where they are integers; of other integers they are every second one.

    Labels are in the group ``labels`` of the first image that lies where they do. Where none does, the first
    of them is written as an image, too, as OME-Zarr has no labels without one.

    Memory is bounded, whatever the size: some 256 MiB of pixels are held, and the chunks being read.
    """
    images = _images(check_ome_zarr(maps, **options), origins or {})
    with staged(path) as folder:
        root = zarr.create_group(folder, zarr_format=3)
        for image in images:
            group = root if len(images) == 1 else root.create_group(image.head.name)
            _write_image(group, image)
            if image.labels:
                _write_labels(group, image.labels)
        if len(images) > 1:
            _write_list(root, [image.head for image in images])
            write_file(folder / "OME" / "METADATA.ome.xml", _as_xml([image.head for image in images]))


def check_ome_zarr(maps: Mapping[str, RowArray], **options: Unpack[ImageOptions]) -> list[Map]:
    """Refuse what `write_ome_zarr` would refuse, and return what it needs; no pixel is read."""
    if not isinstance(maps, Mapping) or not maps:
        raise HeadError(
            "there are no maps to write: give a dict with the map of one head at least, by its name"
        )
    heads = as_maps(maps, **options)
    unit = heads[0].unit
    if unit not in _UNITS:
        raise OptionError(f'unit is {unit!r}: give a unit of length, such as "micrometer" or "nm"')
    for name in maps if len(heads) > 1 or heads[0].kind == "labels" else ():
        if "/" in name or "\\" in name or name.startswith(("__", ".")) or name in {"zarr.json", "OME"}:
            raise HeadError(
                f"head {name!r} cannot be the name of a group: export it alone, as an image, or push it by "
                "another name"
            )
        if len(name.encode()) > _MOST_NAME:
            raise HeadError(f"head {name[:40]!r}... is too long for the name of a group: give a shorter one")
    return heads


def _images(heads: Sequence[Map], origins: Mapping[str, Sequence[int]]) -> list[_Image]:
    """Return what is an image, and on each the labels that lie where it does."""
    placed = [_Image(head, dict(zip("xyz", origins.get(head.name, ()), strict=False))) for head in heads]
    images = [each for each in placed if each.head.kind != "labels"]
    for label in placed:
        if label.head.kind != "labels":
            continue
        below = next((image for image in images if image.extent == label.extent), None)
        if below is None:
            below = _Image(label.head, label.start)
            images.append(below)
        below.labels.append(label)
    return images


def _write_labels(image: zarr.Group, labels: Sequence[_Image]) -> None:
    listed = {"version": _VERSION, "labels": [label.head.name for label in labels]}
    group = image.create_group("labels", attributes={"ome": listed})
    for label in labels:
        _write_image(group.create_group(label.head.name), label, is_label=True)


def _write_list(root: zarr.Group, heads: Sequence[Map]) -> None:
    """Tell readers which images there are, as bioformats2raw does; napari looks into the XML."""
    root.attrs["ome"] = {"version": _VERSION, "bioformats2raw.layout": 3}
    listed = {"version": _VERSION, "series": [head.name for head in heads]}
    root.create_group("OME", attributes={"ome": listed})


def _as_xml(heads: Sequence[Map]) -> bytes:
    """Return what images there are as OME-XML; an image's ID has its path."""
    ome = ET.Element("OME", xmlns=_OME)
    for number, head in enumerate(heads):
        lengths = dict.fromkeys("xyzct", 1) | dict(zip(head.axes, head.shape, strict=True))
        image = ET.SubElement(ome, "Image", ID=f"Image:{head.name}", Name=head.name)
        pixels = ET.SubElement(
            image,
            "Pixels",
            {f"Size{axis.upper()}": str(length) for axis, length in lengths.items()},
            ID=f"Pixels:{number}",
            DimensionOrder="XYZCT",
            Type=_TYPES.get(head.dtype.name, head.dtype.name),
        )
        for channel, name in enumerate(head.channels):
            ET.SubElement(pixels, "Channel", ID=f"Channel:{number}:{channel}", Name=name, SamplesPerPixel="1")
        ET.SubElement(pixels, "MetadataOnly")
    content: bytes = ET.tostring(ome, encoding="utf-8", xml_declaration=True)
    return content


def _write_image(group: zarr.Group, image: _Image, *, is_label: bool = False) -> None:
    """Write a pyramid, and last what it is: how viewers show its channels only if it is shown as an image."""
    head = image.head
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
    multiscales: dict[str, Any] = {
        "name": head.name,
        "axes": [_axis(name, None if head.sizes is None else head.unit) for name in head.axes],
        "datasets": [
            {"path": f"s{number}", "coordinateTransformations": _transformations(image, factors)}
            for number, factors in enumerate(level_factors(shapes))
        ],
    }
    shown: dict[str, Any] = (
        {"image-label": {"version": _VERSION, "source": {"image": "../../"}}}
        if is_label
        else {"omero": _omero(head, limits)}
    )
    group.attrs["ome"] = {"version": _VERSION, "multiscales": [multiscales], **shown}


def _transformations(image: _Image, factors: list[int]) -> list[dict[str, Any]]:
    """Return where the pixels of a level are, by their centres; the slide's first one is at zero."""
    scale, translation = [], []
    for axis, factor in zip(image.head.axes, factors, strict=True):
        size = (image.head.sizes or {}).get(axis, 1.0)
        scale.append(size * factor)
        translation.append(size * (image.start.get(axis, 0) + (factor - 1) / 2))
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": name, "type": "channel"}
    return {"name": name, "type": "space"} | ({} if unit is None else {"unit": unit})


def _omero(head: Map, limits: list[tuple[float, float]]) -> dict[str, Any]:
    """Return how viewers are to show each channel: from the least to the greatest value, or as a picture."""
    if head.kind == "rgb":
        limits = [(0, 255)] * len(limits)
    alone = len(limits) == 1
    channels = [
        {
            "label": name,
            "color": "FFFFFF" if alone else _COLOURS[number % len(_COLOURS)],
            "active": True,
            "window": dict(zip(("min", "max", "start", "end"), _window(*ends) * 2, strict=True)),
        }
        for number, (name, ends) in enumerate(zip(head.channels, limits, strict=True))
    ]
    return {"channels": channels} | ({"rdefs": {"model": "color"}} if head.kind == "rgb" else {})


def _window(low: float, high: float) -> tuple[float, float]:
    """Return what a viewer stretches over its colours: never nothing, which it would divide by."""
    if low == high:
        low, high = min(low, 0), max(high, 0)
    return (low, high) if low < high else (0, 1)

"""A map as a GeoTIFF, which QGIS and others open; written by the rasterio library, window by window."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, TypedDict

import attrs
import numpy as np

from accumulator._export.levels import TILE, level_shapes, regions
from accumulator._export.map import as_maps
from accumulator._inputs import tuning
from accumulator._inputs.extras import need
from accumulator._stores.files.target import staged
from accumulator.exceptions import OptionError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from accumulator._export.map import Map
    from accumulator.typing import MapKind, RowArray, StrPath

_N_COEFFICIENTS: Final = 6  # of an affine transformation


class GeoOptions(TypedDict, total=False):
    """What may be said of a map that lies somewhere on Earth."""

    crs: Any  # the coordinate reference system, as rasterio takes it
    transform: Iterable[float]  # locations become its coordinates: `affine.Affine`, or its six numbers
    nodata: float | None  # the value of pixels that have none
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None  # of the bands
    kind: MapKind


@attrs.frozen(eq=False)
class _GeoMap:
    """A map with its place."""

    head: Map
    crs: Any
    transform: tuple[float, ...]
    nodata: float | None


def write_geotiff(
    path: StrPath,
    array: RowArray,
    *,
    name: str,
    first: Sequence[int] = (0, 0),
    scale: Sequence[float] = (1, 1),
    **options: Unpack[GeoOptions],
) -> None:
    """Write one map as a GeoTIFF with overviews, in tiles of 512 pixels, compressed by deflate.

    ``first`` is the map's first pixel, ``scale`` how many of them a unit of the locations is, x first; a box
    begins at the corner of its first pixel, as a transformation of rasterio does. Channels are bands that lie
    side by side, as other readers want it, or one after the other, if there are so many that a tile of all
    takes much memory. That is bounded: a block, and GDAL's cache.
    """
    geo = check_geotiff(array, name=name, **options)
    with staged(path) as target, need("rasterio", "geo").Env(GDAL_CACHEMAX=tuning.now.tiles_nbytes):
        refusals = need("rasterio.errors", "geo").RasterioError, need("rasterio._err", "geo").CPLE_BaseError
        try:
            _write(target, geo, _placed(geo.transform, first, scale))
        except refusals as cause:  # GDAL's own errors, such as of a full disk, have no public name
            raise StorageError(None, f"{path} cannot be written ({cause})") from cause


def check_geotiff(  # noqa: PLR0913  the options of `StitchedMap.save_geotiff`
    array: RowArray,
    *,
    name: str,
    crs: Any = None,
    transform: Iterable[float] = (),
    nodata: float | None = None,
    channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    kind: MapKind = "image",
) -> _GeoMap:
    """Refuse what `write_geotiff` would refuse, and return what it needs; no pixel is read."""
    rasterio = need("rasterio", "geo")
    (head,) = as_maps({name: array}, channel_names=channel_names, kind=kind)
    try:
        with rasterio.Env():
            known = need("rasterio.crs", "geo").CRS.from_user_input(crs)
    except need("rasterio.errors", "geo").CRSError as cause:
        raise OptionError(
            f"crs is {crs!r}, which rasterio does not know ({cause}): give the one of the raster, such as "
            '"EPSG:32633"'
        ) from cause
    return _GeoMap(head, known, _as_transform(transform), _as_nodata(nodata, head))


def _as_transform(raw: Any) -> tuple[float, ...]:
    """Return the six numbers of an affine transformation."""
    given: list[Any] = list(raw) if isinstance(raw, Iterable) else []  # of some versions it is no Sequence
    # `affine.Affine` has its last row, too.
    numbers = given[:_N_COEFFICIENTS] if given[_N_COEFFICIENTS:] == [0, 0, 1] else given
    if len(numbers) != _N_COEFFICIENTS or not all(isinstance(each, Real) for each in numbers):
        raise OptionError(f"transform is {raw!r}: give an affine.Affine, or its six numbers a, b, c, d, e, f")
    a, b, c, d, e, f = (float(each) for each in numbers)
    if len(given) == _N_COEFFICIENTS and c == e == 0 and b > 0 and f < 0:  # as rasterio tells them
        raise OptionError(
            f"transform is {raw!r}, in the order of GDAL: give the raster's transform in "
            "rasterio, or affine.Affine.from_gdal(*transform)"
        )
    if not all(map(math.isfinite, (a, b, c, d, e, f))) or a * e == b * d:
        raise OptionError(f"transform is {raw!r}, by which pixels have no area: give the one of the raster")
    return a, b, c, d, e, f


def _as_nodata(raw: Any, head: Map) -> float | None:
    if raw is None:
        return None
    if not isinstance(raw, Real) or isinstance(raw, bool):
        raise OptionError(f"nodata is {raw!r}: give a number that head {head.name!r} can hold, or None")
    number: Any = raw
    if head.dtype.kind == "f":
        fits = not float(np.finfo(head.dtype).max) < abs(number) < math.inf  # NaN and infinity do
    else:
        limits = np.iinfo(head.dtype)
        fits = limits.min <= number <= limits.max and number == int(number)
    if not fits:
        raise OptionError(f"nodata is {raw!r}, which head {head.name!r} of dtype {head.dtype} cannot hold")
    return float(number) if head.dtype.kind == "f" else int(number)


def _placed(transform: tuple[float, ...], first: Sequence[int], scale: Sequence[float]) -> tuple[float, ...]:
    """Return where a map's pixels are, which begins somewhere and has pixels of its own size."""
    a, b, c, d, e, f = transform
    width, height = (1 / each for each in scale)
    x, y = first[0] * width, first[1] * height
    return a * width, b * height, a * x + b * y + c, d * width, e * height, d * x + e * y + f


def _write(target: Any, geo: _GeoMap, transform: tuple[float, ...]) -> None:
    rasterio, head = need("rasterio", "geo"), geo.head
    shape = head.shape if head.has_channels else (1, *head.shape)
    is_side_by_side = shape[0] * TILE * TILE * head.dtype.itemsize <= tuning.now.tiles_nbytes // 2
    tile = (shape[0] if is_side_by_side else 1, TILE, TILE)[-len(head.axes) :]
    with rasterio.open(
        target,
        "w",
        driver="GTiff",
        width=shape[2],
        height=shape[1],
        count=shape[0],
        dtype=head.dtype.name,
        crs=geo.crs,
        transform=need("affine", "geo").Affine(*transform),
        nodata=geo.nodata,
        tiled=True,
        blockxsize=TILE,
        blockysize=TILE,
        compress="deflate",
        interleave="pixel" if is_side_by_side else "band",
        photometric="rgb" if head.kind == "rgb" else "minisblack",
        bigtiff="if_safer",
    ) as file:
        for region in regions(head, tile, tuning.now.level_nbytes):
            bands = range(shape[0])[region[0]] if head.has_channels else range(1)
            y, x = region[-2:]
            window = rasterio.windows.Window(x.start, y.start, x.stop - x.start, y.stop - y.start)
            block = head.read(region)
            file.write(
                block.reshape(len(bands), *block.shape[-2:]), [1 + band for band in bands], window=window
            )
        file.descriptions = tuple(head.channels)
        if factors := [2**level for level in range(1, len(level_shapes(head.shape)))]:
            resampling = rasterio.enums.Resampling
            file.build_overviews(factors, resampling.average if head.is_mean else resampling.nearest)

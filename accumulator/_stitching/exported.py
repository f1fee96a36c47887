"""How maps become files of other formats, and which of them is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accumulator._core.result import Result
from accumulator._export import write_geotiff, write_ome_tiff, write_ome_zarr
from accumulator._inputs.heads import plain_key
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accumulator._stitching.kept import Kept
    from accumulator._stitching.sheet import Sheet
    from accumulator.typing import MapKind, RowArray, StrPath


class Exported(Result):
    """Maps that can be written to files of other formats."""

    __slots__ = ()

    _kept: Kept  # their rows, boxes and names

    @property
    def scale(self) -> list[tuple[float, ...]] | dict[str, tuple[float, ...]]:
        """Pixels of each map a unit of the locations, ``(x, y, ...)``: a list or dict as `outputs`."""
        scales = {head: sheet.lay.scale for sheet in self._sheets for head in sheet.heads}
        return self._heads.like(scales[head] for head in range(len(scales))).as_given()

    def save_ome_zarr(
        self,
        path: StrPath,
        *,
        pixel_size: float | Sequence[float] | Mapping[str, float | Sequence[float]] | None = None,
        unit: str = "micrometer",
        channel_names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        kind: MapKind | Mapping[str, MapKind] = "image",
    ) -> None:
        """Write the maps as OME-Zarr 0.5, which napari and others open.

        One map is the image at ``path``. Of several, each is an image in the group of its name,
        ``path/name``; a viewer opens that, or ``path``, which lists them. Channels come first, each image has
        a pyramid of y and x, and `origin` is in its metadata. Only a bounded part is in memory at a time.

        Parameters
        ----------
        path : path
            Where nothing is yet; names usually end in ``.ome.zarr``.
        pixel_size : float or sequence of float, or dict of them by head, optional
            How large a pixel of the maps is: for all axes, or in the order ``x, y(, z)``. Maps of different
            scale have pixels of different size, which takes a dict.
        unit : str, default "micrometer"
            The unit of ``pixel_size``.
        channel_names : sequence of str, or dict of them by head, optional
            One name a channel.
        kind : {"image", "rgb", "labels"}, or dict of them by head, default "image"
            What a map is. ``"rgb"`` is a picture, of uint8 and three channels, shown in its colours.
            ``"labels"`` are numbers that name things, in one channel of integers or bool: they lie on the
            first image of the same place, in its group ``labels``; where there is none, on an image of the
            same numbers.

        Raises
        ------
        ResultExistsError
            Something is at ``path``; a FileExistsError.
        StorageError
            The disk refused; an OSError. Nothing is left at ``path``.
        DamagedError
            Files of the maps are gone, or not what was written; an OSError. Nothing is left at ``path``.
        HeadError
            A map is 1-d, ``kind`` is not what a map of that shape can be, or a name is none that a group can
            have; a ValueError.
        HeadDtypeError
            A map is complex, or ``kind`` is not what its dtype can be; a TypeError.
        OptionError
            ``pixel_size``, ``unit``, ``channel_names``, ``kind`` or ``path`` is not what it can be; a
            ValueError.

        Notes
        -----
        Pixels of the smaller levels are means of floats, and of pictures, rounded. Of other integers they are
        every second one, for the mean of two classes is a third.
        """
        has_one_for_all = pixel_size is not None and not isinstance(pixel_size, Mapping)
        if has_one_for_all and len({sheet.lay.scale for sheet in self._sheets}) > 1:
            raise OptionError(
                f"pixel_size is {pixel_size!r}, but the maps have the scales {self.scale}: give a dict by "
                "head"
            )
        write_ome_zarr(
            path,
            self._named,
            n_spatial=self._n_spatial,
            pixel_size=pixel_size,
            unit=unit,
            channel_names=channel_names,
            kind=kind,
            origins={key: self._sheet(key).lay.first for key in self._named},
        )

    def save_ome_tiff(  # noqa: PLR0913  the options of an image
        self,
        path: StrPath,
        *,
        head: str | int | None = None,
        pixel_size: float | Sequence[float] | None = None,
        unit: str = "micrometer",
        channel_names: Sequence[str] | None = None,
        kind: MapKind = "image",
    ) -> None:
        """Write one map as a pyramidal OME-TIFF, which QuPath and others open; needs the extra ``ome``.

        OpenSlide shows all levels of a map of uint8 that is a picture or has one channel; it reads no others.

        Parameters
        ----------
        path : path
            Where nothing is yet; names usually end in ``.ome.tif``.
        head : str or int, optional
            Which map, where there are several.
        pixel_size : float or sequence of float, optional
            How large a pixel is: for all axes, or in the order ``x, y(, z)``.
        unit : str, default "micrometer"
            The unit of ``pixel_size``.
        channel_names : sequence of str, optional
            One name a channel.
        kind : {"image", "rgb", "labels"}, default "image"
            As for `save_ome_zarr`. The colours of ``"rgb"`` lie side by side; others have a plane a channel.

        Raises
        ------
        MissingExtraError
            The extra is not installed; an ImportError.
        ResultExistsError
            Something is at ``path``; a FileExistsError.
        StorageError
            The disk refused; an OSError. Nothing is left at ``path``.
        DamagedError
            Files of the maps are gone, or not what was written; an OSError. Nothing is left at ``path``.
        HeadError
            The map is 1-d, or ``kind`` is not what a map of that shape can be; a ValueError.
        HeadDtypeError
            The map is complex, or 64-bit integers, which OME-TIFF does not have, or ``kind`` is not what its
            dtype can be; a TypeError.
        OptionError
            ``head``, ``pixel_size``, ``unit``, ``channel_names``, ``kind`` or ``path`` is not what it can be;
            a ValueError.

        Notes
        -----
        The file does not say where a region lies in its slide: OME-TIFF has no place for `origin`.
        """
        key = self._one(head)
        write_ome_tiff(
            path,
            self._named[key],
            n_spatial=self._n_spatial,
            name=key,
            pixel_size=pixel_size,
            unit=unit,
            channel_names=channel_names,
            kind=kind,
        )

    def save_geotiff(  # noqa: PLR0913  the options of a raster
        self,
        path: StrPath,
        *,
        head: str | int | None = None,
        crs: Any,
        transform: Iterable[float],
        nodata: float | None = None,
        channel_names: Sequence[str] | None = None,
        kind: MapKind = "image",
    ) -> None:
        """Write one map as a GeoTIFF, which QGIS and others open; needs the extra ``geo``.

        Words are those of rasterio. It is tiled, compressed and has overviews; channels are bands. Where the
        map lies follows from ``transform``, `origin` and `scale`. Only a bounded part is in memory at a time.

        Parameters
        ----------
        path : path
            Where nothing is yet; names usually end in ``.tif``.
        head : str or int, optional
            Which map, where there are several.
        crs : str, int, dict or rasterio.crs.CRS
            The coordinate reference system of the raster that patches were read from: its ``crs``.
        transform : affine.Affine or sequence of 6 float
            That raster's ``transform``, by which ``(x, y)`` of the locations become coordinates.
        nodata : float, optional
            The value of pixels that have none, such as the map's fill value, which is not taken by itself:
            ``nodata=np.nan`` for ``fill_value=np.nan``. Overviews leave it out.
        channel_names : sequence of str, optional
            One name a channel: the bands' descriptions.
        kind : {"image", "rgb", "labels"}, default "image"
            As for `save_ome_zarr`.

        Raises
        ------
        MissingExtraError
            The extra is not installed; an ImportError.
        ResultExistsError
            Something is at ``path``; a FileExistsError.
        StorageError
            The disk refused; an OSError. Nothing is left at ``path``.
        DamagedError
            Files of the maps are gone, or not what was written; an OSError. Nothing is left at ``path``.
        HeadError
            ``kind`` is not what a map of that shape can be; a ValueError.
        HeadDtypeError
            The map is complex, or ``kind`` is not what its dtype can be; a TypeError.
        OptionError
            The map is not 2-d, or ``head``, ``crs``, ``transform``, ``nodata``, ``channel_names``, ``kind``
            or ``path`` is not what it can be; a ValueError.
        """
        key = self._one(head)
        self._check_is_plane(key)
        lay = self._sheet(key).lay
        write_geotiff(
            path,
            self._named[key],
            name=key,
            first=lay.first,
            scale=lay.scale,
            crs=crs,
            transform=transform,
            nodata=nodata,
            channel_names=channel_names,
            kind=kind,
        )

    def _one(self, head: str | int | None) -> str:
        """Return the name of the one map that is meant."""
        key = next(iter(self._named)) if head is None and len(self._named) == 1 else str(plain_key(head))
        if key not in self._named:
            raise OptionError(f"head is {head!r}: choose one of the maps {list(self._named)}")
        return key

    def _sheet(self, key: str) -> Sheet:
        """Return what the map of that name is in."""
        number = list(self._named).index(key)
        return next(sheet for sheet in self._sheets if number in sheet.heads)

    def _check_is_plane(self, key: str) -> None:
        if self._n_spatial != 2:
            raise OptionError(f"map {key!r} has {self._n_spatial} spatial axes: take a plane of a volume")

    @property
    def _n_spatial(self) -> int:
        return self._kept.frame.geometry.n_spatial

    @property
    def _sheets(self) -> Sequence[Sheet]:
        return self._kept.sheets

    @property
    def _named(self) -> dict[str, RowArray]:
        return self._heads.by_name()

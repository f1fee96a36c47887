"""Maps in the formats that others open: OME-Zarr and OME-TIFF for images, GeoTIFF for what lies on Earth.

Needs the extras ``ome`` and ``geo``, which are imported when something is written. It knows nothing of
locations or of how a map came about: it takes arrays, and writes them block by block.
"""

from __future__ import annotations

from accumulator._export.geotiff import check_geotiff, write_geotiff
from accumulator._export.ome_tiff import check_ome_tiff, write_ome_tiff
from accumulator._export.ome_zarr import check_ome_zarr, write_ome_zarr

__all__ = [
    "check_geotiff",
    "check_ome_tiff",
    "check_ome_zarr",
    "write_geotiff",
    "write_ome_tiff",
    "write_ome_zarr",
]

"""Arrays for others: OME-Zarr and OME-TIFF for viewers, GeoTIFF for what lies on Earth, dask and xarray.

Needs the extras ``ome``, ``geo``, ``dask`` or ``xarray``, which are imported when something is asked for. It
knows nothing of locations or of how a map came about: it takes arrays, and writes them block by block.
"""

from __future__ import annotations

from accumulator._export.geotiff import check_geotiff, write_geotiff
from accumulator._export.lazy import as_dask, as_xarray
from accumulator._export.ome_tiff import check_ome_tiff, write_ome_tiff
from accumulator._export.ome_zarr import check_ome_zarr, write_ome_zarr

__all__ = [
    "as_dask",
    "as_xarray",
    "check_geotiff",
    "check_ome_tiff",
    "check_ome_zarr",
    "write_geotiff",
    "write_ome_tiff",
    "write_ome_zarr",
]

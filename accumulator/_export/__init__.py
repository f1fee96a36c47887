"""Arrays for others: in the formats that image viewers open, OME-Zarr and OME-TIFF, and for dask and xarray.

Needs the extra ``ome``, ``dask`` or ``xarray``, which is imported when something is asked for. It knows
nothing of locations or of how a map came about: it takes arrays, and writes them block by block.
"""

from __future__ import annotations

from accumulator._export.lazy import as_dask, as_xarray
from accumulator._export.ome_tiff import check_ome_tiff, write_ome_tiff
from accumulator._export.ome_zarr import check_ome_zarr, write_ome_zarr

__all__ = ["as_dask", "as_xarray", "check_ome_tiff", "check_ome_zarr", "write_ome_tiff", "write_ome_zarr"]

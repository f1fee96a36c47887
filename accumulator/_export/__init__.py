"""Maps in the formats that image viewers open: OME-Zarr and OME-TIFF.

Needs the extra ``ome``, which is imported when something is written. It knows nothing of locations or of
how a map came about: it takes arrays, and writes them block by block.
"""

from __future__ import annotations

from accumulator._export.ome_tiff import check_ome_tiff, write_ome_tiff
from accumulator._export.ome_zarr import check_ome_zarr, write_ome_zarr

__all__ = ["check_ome_tiff", "check_ome_zarr", "write_ome_tiff", "write_ome_zarr"]

"""Maps in the formats that image viewers open: OME-Zarr and OME-TIFF.

Needs ``accumulator[ome]``, which is imported when something is written. It knows nothing of locations or of
how a map came about: it takes arrays, and writes them block by block.
"""

from __future__ import annotations

from accumulator._export._ome_tiff import write_ome_tiff
from accumulator._export._ome_zarr import write_ome_zarr

__all__ = ["write_ome_tiff", "write_ome_zarr"]

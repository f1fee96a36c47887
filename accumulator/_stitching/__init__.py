"""From rows to maps: patches are blended where they overlap, band by band of the map.

Stands on the canvas: the rows of a map are rows of it, placed by their numbers, and it decides where they
go, writes and keeps them.
"""

from __future__ import annotations

from accumulator._stitching.map import StitchedMap
from accumulator._stitching.result import stitch
from accumulator._stitching.stitcher import Stitcher

__all__ = ["StitchedMap", "Stitcher", "stitch"]

"""Streaming, memory-aware accumulation of patch-wise model output.

`FullBatchAccumulator` takes predictions batch by batch and hands over a `FullBatch`: every head complete,
in canonical order, in RAM while it fits and in zarr when it does not. `prepare_multitask_full_batch` is
the pure function under it.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from accumulator import exceptions, typing
from accumulator._core.accumulator import FullBatchAccumulator
from accumulator._core.align import prepare_multitask_full_batch
from accumulator._core.full_batch import FullBatch
from accumulator._core.grid_locations import grid_locations
from accumulator._core.plan import Plan
from accumulator._core.publish import publish
from accumulator._stitching import StitchedMap, Stitcher, stitch

__all__ = [
    "FullBatch",
    "FullBatchAccumulator",
    "Plan",
    "StitchedMap",
    "Stitcher",
    "exceptions",
    "grid_locations",
    "prepare_multitask_full_batch",
    "publish",
    "stitch",
    "typing",
]

try:
    from accumulator._version import __version__ as _built
except ImportError:
    _built = "0+unknown"  # a folder of sources that nothing was built in
__version__ = _built

logging.getLogger("accumulator").addHandler(logging.NullHandler())  # silent, unless an application listens

if Path(__file__).with_name("accumulator.py").exists():
    warnings.warn(
        "the distribution `accumulator`, which is another one, was installed into this package's folder: pip "
        "uninstall both it and `full-batch-accumulator`, and install `full-batch-accumulator` again",
        stacklevel=2,
    )

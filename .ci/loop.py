"""The loop of README, on a library that lies below the folder that is named: ``loop.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import accumulator
from accumulator import FullBatchAccumulator, grid_locations, stitch

if not Path(accumulator.__file__).is_relative_to(Path(sys.argv[1]).resolve()):
    sys.exit(f"{accumulator.__file__} is not in {sys.argv[1]}")
locs = grid_locations((100, 70), 10)
rows = np.arange(100 * 70, dtype="f4").reshape(-1, 10, 10)
for threshold in (80, 0):  # in RAM, and on disk
    with FullBatchAccumulator(locs, memory_threshold=threshold) as collected:
        collected.push({"mask": rows[::-1]}, locs[::-1])
    with collected.finalize() as batch, stitch(batch) as maps:
        if not (batch["mask"][:] == rows).all() or maps.outputs["mask"].shape[:2] != (100, 70):
            sys.exit("the loop gave something else than was pushed")
if not accumulator.__version__[0].isdigit() or accumulator.__version__ == "0+unknown":
    sys.exit(f"the version is {accumulator.__version__!r}")
print(f"accumulator {accumulator.__version__} runs from {accumulator.__file__}")

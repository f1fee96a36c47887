"""A label map of a whole slide, from probabilities that are never stored."""

from __future__ import annotations

import pytest
from helpers.limits import MIB, memory_group, run_script
from helpers.soak import soaked

SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from accumulator import Stitcher
side, size = int(sys.argv[1]), 512
edges = np.append(np.arange(0, side - size, 448), side - size)
y, x = (each.ravel() for each in np.meshgrid(edges, edges, indexing="ij"))
locs = np.stack([x, y, x + size, y + size], axis=1)
patch = np.random.default_rng(0).random((1, size, size, 5), dtype=np.float32)
patch[..., 2] += np.float32(1)  # which wins, but where the patch says otherwise
patch[0, 200:220, 200:220, 4] = 9
with Stitcher(locs, reduce="argmax", store="labels.zarr") as stitcher:
    for row in range(len(locs)):
        stitcher.push(patch, locs[row : row + 1])
maps = stitcher.finalize()
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
labels = maps.outputs[0]
assert labels.shape == (side, side) and labels.dtype == np.uint8
for row in range(0, len(locs), max(1, len(locs) // 40)):
    left, top = locs[row, :2].tolist()
    tile = labels[top + 200 : top + 220, left + 200 : left + 220]
    assert (tile == 4).all() and labels[top + 100, left + 100] == 2
on_disk = sum(path.stat().st_blocks * 512 for path in Path("labels.zarr").rglob("*"))
print(on_disk / 2**20, peak / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("side", [6_000, *soaked(40_000)])
def test_label_map_in_1_gb_of_memory_and_2_gb_of_disk(side, tmp_path):
    """Of 5 classes in float32, which would take 32 GB where a side is 40,000."""
    with memory_group(1024 * MIB) as join:
        on_disk, peak = map(float, run_script(join + SCRIPT, side, cwd=tmp_path))
    assert on_disk < 1.1 * side**2 / 2**20  # a byte a pixel: 1.6 GB
    assert peak < 1000

"""A script as a user writes it: a folder of slides, a store and a map for each, and what failed by its name.

``python -m helpers.day SLIDES RESULTS`` goes on where it was ended. A third argument names the slide in whose
middle the machine runs out of memory, and the script is killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from accumulator import FullBatchAccumulator, stitch

TILE, STRIDE, BATCH = 32, 16, 8
HEADS = {"colour": ((TILE, TILE, 3), "float32"), "darkest": ((1,), "uint8")}


def tiles_of(height, width):
    """Return where the tiles of a slide are; none where it is smaller than a tile."""
    ys, xs = (range(0, length - TILE + 1, STRIDE) for length in (height, width))
    boxes = [[x, y, x + TILE, y + TILE] for y in ys for x in xs]
    return np.array(boxes, dtype=np.int64).reshape(-1, 4)


def is_tissue(tile):
    """Whether enough of a tile is not glass."""
    return (tile.max(axis=-1) < 0.83 * 255).mean() > 0.25


def model(tiles):
    """Return what a network would: the mean colour, as a patch, and the darkest value."""
    mean = tiles.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    return {
        "colour": np.broadcast_to(mean, tiles.shape),
        "darkest": tiles.min(axis=(1, 2, 3), keepdims=False)[:, None],
    }


def do(slide, results, victim):
    """Predict one slide, or what is missing of it, and save its map."""
    with Image.open(slide) as image:
        rgb = np.asarray(image.convert("RGB"))
    locs = tiles_of(*rgb.shape[:2])
    store = results / f"{slide.stem}.zarr"
    with FullBatchAccumulator(locs, store=store, mode="a", heads=HEADS, checkpoint_interval=0) as accumulator:
        todo = [
            row
            for row in accumulator.missing_rows()
            if is_tissue(rgb[locs[row, 1] : locs[row, 3], locs[row, 0] : locs[row, 2]])
        ]
        for start in range(0, len(todo), BATCH):
            if slide.stem == victim and start > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            boxes = locs[todo[start : start + BATCH]]
            accumulator.push(model(np.stack([rgb[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])), boxes)
    with accumulator.finalize() as batch:
        maps = stitch(batch, heads=["colour"], output_shape=rgb.shape[:2])
        np.save(results / f"{slide.stem}.npy", maps.outputs["colour"])
        print(f"{slide.name}: {len(todo)} new, {batch.written.sum()} of {len(locs)} tiles", flush=True)


def main(slides, results, victim=None):
    """Do every slide, and return how many failed."""
    Path(results).mkdir(exist_ok=True)
    n_failed = 0
    for slide in sorted(Path(slides).glob("*.png")):
        try:
            do(slide, Path(results), victim)
        except (OSError, ValueError) as error:
            n_failed += 1
            print(f"{slide.name}: {type(error).__name__}: {error}", flush=True)
    return n_failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) > 0)

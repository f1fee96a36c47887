#!/usr/bin/env python3
"""Predict the share of one task of a SLURM job: ``slurm_array.sbatch`` starts it.

It also runs by itself, and then does all: ``python docs/scripts/slurm_predict.py``.
"""
# ruff: noqa: T201  a script that prints

from __future__ import annotations

import argparse
import signal
import sys
import time

import numpy as np

from accumulator import FullBatchAccumulator, grid_locations

SIZE = 16
HEADS = {"mean": ((SIZE // 2, SIZE // 2), "float32"), "brightest": ((1,), "uint8")}


def predict(locs: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a model would say of the patches of an image, which is computed here."""
    x, y = (locs[:, axis, None] + np.arange(SIZE) for axis in (0, 1))
    images = ((7 * x[:, None, :] + 13 * y[:, :, None]) % 251).astype(np.float32)
    mean = images.reshape(-1, SIZE // 2, 2, SIZE // 2, 2).mean(axis=(2, 4))
    return {"mean": mean, "brightest": images.max(axis=(1, 2))[:, None].astype(np.uint8)}


def main() -> None:
    """Predict what is missing of this task's share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", default="run.zarr")
    parser.add_argument("--grid", type=int, nargs=2, default=(23, 31), metavar=("COLUMNS", "ROWS"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.0, help="that the model takes for a batch")
    parser.add_argument("--checkpoint-interval", type=float, default=30.0)
    options = parser.parse_args()

    # SLURM says by SIGTERM that time is up. As an exception it lets the block record what it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    columns, rows = options.grid
    locs = grid_locations((rows * SIZE, columns * SIZE), SIZE)
    with FullBatchAccumulator(
        locs,
        store=options.store,
        mode="a",
        rank="auto",  # SLURM_ARRAY_TASK_ID and its MIN, MAX and COUNT; in a step of srun SLURM_PROCID
        world_size="auto",
        heads=HEADS,  # known before the first push, so that shares are whole chunks
        on_duplicate="first",  # where a task that was thought dead was not, rows come twice
        resume_token="stand-in, version 1",  # noqa: S106  what has to be the same when it goes on
        checkpoint_interval=options.checkpoint_interval,
    ) as accumulator:
        rows = accumulator.missing_rows()  # this task's share, less what anybody has recorded
        print(f"{len(rows)} of {len(locs)} rows", flush=True)
        for start in range(0, len(rows), options.batch_size):
            batch_locs = locs[rows[start : start + options.batch_size]]
            accumulator.push(predict(batch_locs), batch_locs)
            time.sleep(options.seconds)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Predict in several processes: each records what it predicts, and rank 0 makes one result of all.

    torchrun --nproc-per-node 2 docs/scripts/torchrun_predict.py

Where it was killed, start it again, with as many processes as there are now: it goes on with what is missing.
``--sampler distributed`` shows that the rows are right with torch's own sampler, too.
"""
# ruff: noqa: T201  a script that prints

from __future__ import annotations

import argparse
import signal
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from accumulator import FullBatchAccumulator, grid_locations, publish

if TYPE_CHECKING:
    import numpy as np

SIZE = 16
HEADS = {"mean": ((SIZE // 2, SIZE // 2), "float32"), "brightest": ((1,), "uint8")}


class Patches(Dataset):
    """Patches of an image, here one that is computed, and where they lie."""

    def __init__(self, locs: np.ndarray) -> None:
        self.locs = locs

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.locs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return a patch and its location."""
        start_x, start_y, end_x, end_y = self.locs[row]
        x, y = torch.arange(start_x, end_x), torch.arange(start_y, end_y)
        image = (7 * x[None, :] + 13 * y[:, None]) % 251
        return image[None].float(), self.locs[row]


class Model(nn.Module):
    """A stand-in for yours; ``seconds`` is what it takes for a batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.pool, self.seconds = nn.AvgPool2d(2), seconds

    def forward(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict two heads."""
        time.sleep(self.seconds)
        brightest = patches.amax(dim=(1, 2, 3)).to(torch.uint8)
        return {"mean": self.pool(patches)[:, 0], "brightest": brightest[:, None]}


def main() -> None:
    """Predict the share of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", default="run.zarr")
    parser.add_argument("--grid", type=int, nargs=2, default=(23, 31), metavar=("COLUMNS", "ROWS"))
    parser.add_argument("--sampler", choices=["missing", "distributed"], default="missing")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0, help="of each data loader")
    parser.add_argument("--seconds", type=float, default=0.0, help="that the model takes for a batch")
    parser.add_argument("--checkpoint-interval", type=float, default=30.0)
    options = parser.parse_args()

    # When one was killed, torchrun ends the others by SIGTERM: an exception, and they record what they have.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    distributed.init_process_group("gloo")
    # The last rank may end hours after the first, which waits for it: longer than torch lets it by default.
    everyone = distributed.new_group(timeout=timedelta(days=7))
    columns, rows = options.grid
    rank, locs = distributed.get_rank(), grid_locations((rows * SIZE, columns * SIZE), SIZE)
    patches, model = Patches(locs), Model(options.seconds).eval()
    with FullBatchAccumulator(
        locs,
        store=options.store,
        mode="a",
        rank="auto",
        world_size="auto",
        heads=HEADS,  # known before the first push, so that shares are whole chunks
        on_duplicate="first",  # of a row that a sampler repeats, which may differ in the last bit
        resume_token="stand-in, version 1",  # noqa: S106  what has to be the same when it goes on
        checkpoint_interval=options.checkpoint_interval,
    ) as accumulator:
        if options.sampler == "missing":
            sampler = accumulator.missing_rows(locs)  # this rank's share, less what anybody has recorded
        else:
            sampler = DistributedSampler(patches, shuffle=True)  # pads, and knows nothing of what is recorded
        loader = DataLoader(patches, options.batch_size, sampler=sampler, num_workers=options.workers)
        print(f"rank {rank}: {len(sampler)} of {len(locs)} rows", flush=True)
        with torch.inference_mode():
            for images, batch_locs in loader:
                accumulator.push(model(images), batch_locs.numpy())
    distributed.barrier(everyone)  # all parts have come to their end
    if rank == 0:
        with publish(options.store) as batch:
            print(f"published: {batch.written.sum()} of {len(batch.written)} rows")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()

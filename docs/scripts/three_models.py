"""One slide, three models: a segmentation with a halo, a classifier of patches, and embeddings.

``python three_models.py FOLDER`` writes FOLDER/slide.zarr, with what the models said; FOLDER/classes.zarr, the map of
classes; and FOLDER/grade.ome.tif, if the extra ``ome`` is there. Started again after a kill it goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from accumulator import FullBatchAccumulator, grid_locations, stitch

PATCH, HALO = 64, 16  # what a model sees, and what of it on each side is context alone
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Patches(Dataset):
    """What the models see of the image, and the box that they tell of: four numbers, as loaders collate them."""

    def __init__(self, image: np.ndarray, locs: np.ndarray) -> None:
        self.padded, self.locs = np.pad(image, [(HALO, HALO)] * 2 + [(0, 0)], "reflect"), locs

    def __len__(self) -> int:
        return len(self.locs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        x, y, _, _ = self.locs[row]
        patch = self.padded[y : y + PATCH, x : x + PATCH]
        return torch.from_numpy(patch).permute(2, 0, 1), tuple(self.locs[row].tolist())


def models() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return small ones, which say something of each patch: channels first, as networks do."""
    torch.manual_seed(0)
    segment = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Softmax(1))
    classify = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2), nn.Softmax(1))
    embed = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 1024))
    return segment.to(DEVICE), classify.to(DEVICE), embed.to(DEVICE, torch.bfloat16)


def main(folder: Path) -> None:
    """Run the models over the image, and make maps."""
    y, x = np.mgrid[:500, :700]
    image = np.stack([np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)], axis=-1).astype(np.float32)
    tissue = (x[::10, ::10] - 350) ** 2 + (y[::10, ::10] - 250) ** 2 < 240**2  # a mask of a thumbnail
    locs = grid_locations(image.shape[:2], PATCH - 2 * HALO, mask=tissue)
    segment, classify, embed = models()

    with FullBatchAccumulator(locs, store=folder / "slide.zarr", mode="a") as accumulator:
        loader = DataLoader(Patches(image, locs), batch_size=16, sampler=accumulator.missing_rows())
        for images, boxes in loader:
            images = images.to(DEVICE)
            outputs = {
                "tissue": segment(images),  # (n, 4, 64, 64), with its gradients and on its device
                "grade": classify(images),  # (n, 2)
                "features": embed(images.to(torch.bfloat16)),  # (n, 1024), which NumPy has no dtype for
            }
            accumulator.push(outputs, boxes)  # four tensors of n: columns
    batch = accumulator.finalize()

    stitch(
        batch,
        heads=["tissue"],
        channels_first=True,
        crop="center",
        blend="hann",
        reduce="argmax",
        fill_value=255,
        output_shape=image.shape[:2],
        store=folder / "classes.zarr",
    )
    heat = stitch(batch, heads=["grade"], spread=True, scale=1 / (PATCH - 2 * HALO))
    heat.save_ome_tiff(folder / "grade.ome.tif", channel_names=["benign", "malignant"])
    print(batch["features"].shape, heat["grade"].shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

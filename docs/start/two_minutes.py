"""Two minutes: an image, a model, a loop, and a map. Nothing but the library is needed."""

import numpy as np

from accumulator import FullBatchAccumulator, grid_locations, stitch

# An image of 600 x 800 pixels, and where there is something in it.
y, x = np.mgrid[:600, :800]
image = np.hypot(x - 400, y - 300).astype(np.float32)
tissue = image < 280

# The list of boxes: 128 pixels each, half of it shared with the neighbours, only where there is tissue.
locs = grid_locations(image.shape, 128, overlap=0.5, mask=tissue, min_mask_ratio=0.1)


def model(patches):
    """Stand for yours: two classes, (n, 128, 128, 2)."""
    inside = 1 / (1 + np.exp((patches - 200) / 20))
    return np.stack([inside, 1 - inside], axis=-1)


with FullBatchAccumulator(locs) as accumulator:
    for start in range(0, len(locs), 16):
        batch_locs = locs[start : start + 16]
        patches = np.stack([image[top:bottom, left:right] for left, top, right, bottom in batch_locs])
        accumulator.push({"class": model(patches)}, batch_locs)
batch = accumulator.finalize()
print(batch["class"].shape, batch.written.sum(), "came")

maps = stitch(batch, blend="hann", reduce="argmax", fill_value=255, output_shape=image.shape)
print(maps["class"].shape, maps["class"].dtype, np.unique(maps["class"]))
maps.save("map.zarr")

"""The network: ONNX Runtime on the processor, with as many threads as there are cores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def load_network(path: Path) -> onnxruntime.InferenceSession:
    """Return the network of an ONNX file, which has its ``.data`` beside it."""
    options = onnxruntime.SessionOptions()
    # Fixed, because sums may come out differently with another number of threads.
    options.intra_op_num_threads = available_cores()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict(
    network: onnxruntime.InferenceSession, tiles: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32] | NDArray[np.uint8]]:
    """Return the heads "probability" (lumen, epithelium, stroma) and "stain" (eosin, haematoxylin) of tiles.

    And "epithelium", its mean probability: one number a tile.
    Tiles are ``(n, height, width, 3)``: eosin, haematoxylin and optical density, each stretched over the
    slide to 0 .. 255. The network takes ``(n, 3, height, width)``, both a multiple of 64, and returns logits
    of the same shape.
    """
    stains = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), dtype=np.float32) / np.float32(255)
    (logits,) = network.run(["logits"], {"input": stains})
    probability = 1 / (1 + np.exp(-np.moveaxis(logits, 1, -1)))
    return {
        "probability": probability,
        "stain": tiles[..., :2],
        "epithelium": probability[..., 1].mean(axis=(1, 2), keepdims=True)[:, 0],
    }


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

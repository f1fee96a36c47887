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
    options.intra_op_num_threads = _available_cores()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict(
    network: onnxruntime.InferenceSession, tiles: NDArray[np.uint8]
) -> dict[str, NDArray[np.float32] | NDArray[np.uint8]]:
    """Return the two heads of a batch.

    Parameters
    ----------
    network : InferenceSession
        Takes ``(n, 3, height, width)``, both a multiple of 64, and returns logits of the same shape.
    tiles : (n, height, width, 3) array
        Eosin, haematoxylin and optical density, each stretched over the slide to 0 .. 255.

    Returns
    -------
    dict
        "probability", ``(n, height, width, 3)``, of lumen, epithelium and stroma, each for itself; and
        "stain", ``(n, height, width, 2)``, the densities of eosin and haematoxylin.
    """
    stains = np.ascontiguousarray(np.moveaxis(tiles, -1, 1), dtype=np.float32) / np.float32(255)
    (logits,) = network.run(["logits"], {"input": stains})
    probability = 1 / (1 + np.exp(-np.moveaxis(logits, 1, -1)))
    return {"probability": probability, "stain": tiles[..., :2]}


def _available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1

"""The slide as the network wants it: at 1 um/px, tissue told from glass, stains told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UM_PER_PX: Final = 0.499  # what the slide was scanned at; the network was trained at 1
_EOSIN: Final = (0.07, 0.99, 0.11)  # usual optical densities in red, green, blue
_HAEMATOXYLIN: Final = (0.65, 0.70, 0.29)
_FAINT: Final = 0.15  # optical density of pixels too faint to tell their stain


def read_slide(path: Path) -> NDArray[np.uint8]:
    """Return the slide at 1 um/px: ``(height, width, 3)``, red, green, blue."""
    with Image.open(path) as image:
        size = (round(image.width * UM_PER_PX), round(image.height * UM_PER_PX))
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def tissue_mask(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where there is tissue, ``(height, width)``: glass is bright and has no colour."""
    brightest = rgb.max(axis=-1).astype(np.float32)
    saturation = (brightest - rgb.min(axis=-1)) / np.maximum(brightest, 1)
    glass: NDArray[np.bool_] = (brightest > 0.83 * 255) & (saturation < 0.12)
    return ~glass


def separate_stains(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return eosin, haematoxylin and optical density: ``(height, width, 3)``, high where there is much.

    Each is stretched over the slide from its 1st to its 99th percentile, as the network was trained.
    """
    glass = rgb[~tissue]
    white = float(np.clip(glass.mean(), 200, 255)) if glass.size else 240.0
    density = -np.log10(np.clip(rgb.astype(np.float32), 1, white) / np.float32(white))
    concentration = density @ np.linalg.pinv(stain_vectors(density[tissue])).astype(np.float32)
    channels = np.dstack([concentration, density.mean(axis=-1)])
    low, high = np.percentile(channels, [1, 99], axis=(0, 1))
    share = np.clip((channels - low) / np.maximum(high - low, 1e-8), 0, 1)
    return np.asarray(share * 255).astype(np.uint8)


def stain_vectors(density: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the colours of eosin and haematoxylin, ``(2, 3)``, each of length one, by Macenko's method.

    The optical densities of tissue, ``(n, 3)``, lie near a plane, in a wedge between the two stains: the
    edges of the wedge, without the outermost 1 % on each side, are the stains.
    """
    stained = density[np.linalg.norm(density, axis=1) > _FAINT].astype(np.float64)
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum())  # along the light that is taken away, not against it
    across = stained @ plane
    edges = np.percentile(np.arctan2(across[:, 1], across[:, 0]), [1, 99])
    first, second = np.stack([np.cos(edges), np.sin(edges)], axis=1) @ plane.T
    in_order = first @ _EOSIN + second @ _HAEMATOXYLIN >= second @ _EOSIN + first @ _HAEMATOXYLIN
    return np.array([first, second] if in_order else [second, first])

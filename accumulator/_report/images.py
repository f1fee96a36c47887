"""A small map as PNGs, one a channel; what is missing, not read or damaged is hatched."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.extras import need

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Viridis, which is read in grey and by the colour-blind, at nine places.
RAMP: Final = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
MASKS: Final = {  # red, green, blue and alpha between the lines, and of the lines
    "missing": ((217, 98, 43, 40), (217, 98, 43, 120)),  # see-through, for light pages and dark ones
    "left out": ((120, 132, 148, 25), (120, 132, 148, 75)),
    "unread": ((120, 132, 148, 60), (120, 132, 148, 200)),
    "strange": ((255, 255, 255, 255), (0, 0, 0, 255)),
    "damaged": ((70, 10, 20, 255), (255, 70, 90, 255)),
}
_HATCH: Final = 8  # px from line to line


@attrs.frozen(eq=False)
class Picture:
    """A channel of a small map."""

    label: str  # which channel it is
    png: bytes  # the picture
    width: int
    height: int
    low: str  # the value of the first colour; empty where colours are the values
    high: str  # of the last
    masks: list[str]  # what is hatched in it: see `MASKS`


def as_pictures(
    image: NDArray[Any],
    covered: NDArray[np.bool_],
    masks: dict[str, NDArray[np.bool_]],
    names: Sequence[str] | None = None,
) -> list[Picture]:
    """Return a map's channels as PNGs; three channels of uint8 also as colours, which come first."""
    pictures = []
    if image.shape[2] == 3 and image.dtype == np.uint8:
        pictures.append(_picture("as colours", image, covered, masks))
    for channel in range(image.shape[2]):
        values = image[..., channel]
        values = (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float64)
        is_known = covered & np.isfinite(values)
        known = values[is_known] if is_known.any() else np.zeros(1)
        low, high = float(known.min()), float(known.max())
        span = high / 2 - low / 2 or 1.0  # half of it, as all of it may be too much for a float
        place = (np.where(is_known, values, low) / 2 - low / 2) / span
        place = (place * 255).round().astype(np.uint8)
        hatched = masks | {"strange": covered & ~is_known}
        ends = f"{low:.4g}", f"{high:.4g}"
        label = f"channel {channel}" if names is None else names[channel]
        pictures.append(_picture(label, _ramp()[place], is_known, hatched, ends))
    return pictures


def _ramp() -> NDArray[np.uint8]:
    """Return the colours of 256 levels."""
    levels, places = np.linspace(0, 1, 256), np.linspace(0, 1, len(RAMP))
    colors = np.stack([np.interp(levels, places, part) for part in np.array(RAMP).T], axis=-1)
    return colors.round().astype(np.uint8)


def _picture(
    label: str,
    colored: NDArray[np.uint8],
    seen: NDArray[np.bool_],
    masks: dict[str, NDArray[np.bool_]],
    ends: tuple[str, str] = ("", ""),
) -> Picture:
    """Return a picture: colours where values are seen, hatched elsewhere and where they are damaged."""
    pixels = np.dstack([colored, seen * np.uint8(255)])
    pixels[~seen] = 0
    is_line = np.add.outer(*(np.arange(length) for length in seen.shape)) % _HATCH < 2
    hatched = []
    for name in [name for name in MASKS if name in masks]:
        mask = masks[name] if name == "damaged" else masks[name] & ~seen
        for color, where in zip(MASKS[name], (mask & ~is_line, mask & is_line), strict=True):
            pixels[where] = color
        hatched += [name] if mask.any() else []
    file = io.BytesIO()
    need("PIL.Image", "report").fromarray(pixels).save(file, format="PNG", optimize=True)
    height, width = seen.shape
    return Picture(label, file.getvalue(), width, height, *ends, hatched)

"""A small map as PNGs, one a channel; what is missing, not read or damaged has its own colours."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.extras import need

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Viridis, which is read in grey and by the colour-blind, at nine places.
_RAMP: Final = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
)  # fmt: skip
MASKS: Final = {  # what is between the lines, and the lines
    "missing": ((217, 98, 43, 40), (217, 98, 43, 120)),  # see-through, for light pages and dark ones
    "unread": ((120, 132, 148, 60), (120, 132, 148, 200)),
    "damaged": ((70, 10, 20, 255), (255, 70, 90, 255)),
    "strange": ((255, 255, 255, 255), (0, 0, 0, 255)),
}
_HATCH: Final = 8  # px from line to line


@attrs.frozen(eq=False)
class Picture:
    """A channel of a small map.

    Attributes
    ----------
    label : str
        Which channel it is.
    png : bytes
        The picture.
    width, height : int
        Its size.
    low, high : str
        The values of the first and the last colour; empty where colours are the values.
    masks : tuple of str
        What is hatched in it: see `MASKS`.
    """

    label: str
    png: bytes
    width: int
    height: int
    low: str
    high: str
    masks: tuple[str, ...]


def as_pictures(
    image: NDArray[Any], covered: NDArray[np.bool_], masks: dict[str, NDArray[np.bool_]]
) -> list[Picture]:
    """Return a map's channels as PNGs; three channels of uint8 also as colours, which come first.

    Parameters
    ----------
    image : (h, w, C) array
        The map.
    covered : (h, w) bool array
        Where it has values.
    masks : dict of (h, w) bool array
        Where something is "missing", "unread" or "damaged"; the last one is shown over all others.

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    """
    ground = np.zeros((*covered.shape, 4), np.uint8)
    for name in ("missing", "unread"):
        _hatch(ground, masks[name] & ~covered, name)
    pictures = []
    n_channels = image.shape[2]
    if n_channels == 3 and image.dtype == np.uint8:
        pictures.append(_picture("as colours", image, covered, ground, masks, ("", "")))
    for channel in range(n_channels):
        values = image[..., channel]
        values = np.abs(values) if values.dtype.kind == "c" else values
        colored, ends, is_strange = _colored(values.astype(np.float64), covered)
        below = ground.copy()
        _hatch(below, is_strange & covered, "strange")
        seen, hatched = covered & ~is_strange, masks | {"strange": is_strange & covered}
        pictures.append(_picture(f"channel {channel}", colored, seen, below, hatched, ends))
    return pictures


def ramp_css() -> str:
    """Return the colours as CSS has them."""
    return ", ".join(f"rgb{color}" for color in _RAMP)


def _colored(
    values: NDArray[np.float64], covered: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], tuple[str, str], NDArray[np.bool_]]:
    is_strange = ~np.isfinite(values)
    known = values[covered & ~is_strange]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    span = high / 2 - low / 2 or 1.0  # half of it, as all of it may be too much for a float
    place = np.where(is_strange, 0.0, (np.nan_to_num(values) / 2 - low / 2) / span)
    at = np.linspace(0, 1, len(_RAMP))
    levels = np.linspace(0, 1, 256)
    ramp = np.stack([np.interp(levels, at, part) for part in np.array(_RAMP).T], axis=-1).round()
    index = (np.clip(place, 0, 1) * 255).round().astype(np.uint8)
    return ramp.astype(np.uint8)[index], (f"{low:.4g}", f"{high:.4g}"), is_strange


def _hatch(ground: NDArray[np.uint8], mask: NDArray[np.bool_], name: str) -> None:
    """Paint where a mask is, with lines that tell it from any value."""
    rows, columns = np.nonzero(mask)
    plain, line = (np.array(color, np.uint8) for color in MASKS[name])
    is_line = (rows + columns) % _HATCH < 2
    ground[rows, columns] = np.where(is_line[:, None], line, plain)


def _picture(  # noqa: PLR0913, PLR0917  what a picture is made of
    label: str,
    colored: NDArray[np.uint8],
    seen: NDArray[np.bool_],
    ground: NDArray[np.uint8],
    masks: dict[str, NDArray[np.bool_]],
    ends: tuple[str, str],
) -> Picture:
    pixels = ground.copy()
    pixels[seen, :3], pixels[seen, 3] = colored[seen], 255
    _hatch(pixels, masks["damaged"], "damaged")
    file = io.BytesIO()
    need("PIL.Image", "report").fromarray(pixels).save(file, format="PNG", optimize=True)
    height, width = seen.shape
    hatched = tuple(
        name for name, mask in masks.items() if (mask & ~seen).any() or (name == "damaged" and mask.any())
    )
    return Picture(label, file.getvalue(), width, height, *ends, hatched)

"""The picture: the slide, which process wrote which tile, and the maps that come of it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from accumulator._demo.maps import NO_CLASS, head_of
from accumulator._demo.sheet import INK, NO_TILE, WARNING, WIDTH, Sheet, rgb_of
from accumulator._demo.tiles import STRIDE, TILE, middles_of
from accumulator._stores.files.target import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator import FullBatch, StitchedMap
    from accumulator._demo.again import Again
    from accumulator._demo.maps import Maps
    from accumulator._demo.sheet import Panel

_ZOOM: Final = 3.0  # of the enlarged place
_COLOURS: Final = 216  # of the file

_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_OTHER: Final = "#f2b134"
_FIRST: Final = "#3b6fb6"
_CLASSES: Final = {"lumen": "#b9dff5", "epithelium": "#5b2a86", "stroma": "#f2a65a"}
_HEAT: Final = np.array([rgb_of(color) for color in ("#fff7ec", "#fdbb84", "#d7301f", "#7f0000")])


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch, maps: Maps, again: Again) -> None:
    """Draw a result of the demo, its maps, and who collected it again; write them as a PNG."""
    pixels = np.asarray(make_sheet(rgb, result, maps, again).image)
    # Few colours instead of millions: a third of the bytes, and hardly a difference to be seen. A strip of
    # those that little is drawn in, cut off again, makes them weigh enough to be among the few.
    rare = np.array([rgb_of(color) for color in (_WRITTEN, _MISSING, _OTHER, _FIRST, WARNING)], np.uint8)
    strip = np.tile(rare.repeat(WIDTH // len(rare), axis=0), (120, 1, 1))
    few = Image.fromarray(np.vstack([pixels, strip])).quantize(_COLOURS)
    content = io.BytesIO()
    few.crop((0, 0, WIDTH, len(pixels))).save(content, format="PNG", optimize=True)
    write_file(path, content.getvalue(), replaces=True)


def make_sheet(rgb: NDArray[np.uint8], result: FullBatch, maps: Maps, again: Again) -> Sheet:
    """Return three rows of four panels, with titles and legends."""
    sheet = Sheet((rgb.shape[1], rgb.shape[0]), n_rows=3)
    done = f"{result.written.sum()} of {len(result.written)} tiles were predicted, batch by batch"
    caution = "this shows the accumulator, it is no diagnosis."
    sheet.header(
        "Tile by tile through a network, stitched without visible seams",
        (f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}, collected and stitched by accumulator.", INK),
        (f"SHELL was trained on prostate and errs on skin: {caution}", WARNING),
    )
    _draw_rows(sheet, rgb, result, again)
    mixed = [_mix(stitched) for stitched in maps[:3]]
    titles = {
        "Side by side": "as without overlap",
        "50 % overlap": 'blend="hann"',
        "Halo cut off": 'crop="center"',
    }
    box = box_of_seams(head_of(maps.beside, "probability"), maps.beside.coverage())
    for (title, how), image, seams in zip(titles.items(), mixed, maps.seams, strict=True):
        panel = sheet.panel(title, f"{how}: seams {seams:.1f}", image)
        sheet.frame(panel, box, "white", 6)
        sheet.frame(panel, box, INK, 4)
    sheet.legend(sheet.panels[4], _CLASSES)
    sheet.legend(sheet.panels[5], {"no tile": NO_TILE})
    _draw_classes(sheet, head_of(maps.classes, "probability"))
    x0, y0, x1, y1 = box
    for title, image in zip(titles, mixed, strict=True):
        sheet.panel(title, f"the frame above, {_ZOOM:.0f} times larger", image[y0:y1, x0:x1])
    _draw_heat(sheet, rgb, head_of(maps.heat, "epithelium")[..., 0], maps.heat.coverage() > 0)
    return sheet


def _draw_rows(sheet: Sheet, rgb: NDArray[np.uint8], result: FullBatch, again: Again) -> None:
    """Draw the slide, and over it the middle of each tile in the colour of who wrote it.

    All borders of overlapping tiles would hide each other: only two tiles have theirs, beside each other.
    """
    faint = (255 - (255 - rgb.astype(np.float32)) * 0.45).astype(np.uint8)
    n_missing = int((~result.written).sum())
    sheet.panel("The slide", "H&E, one micrometre a pixel", rgb)
    panel = sheet.panel("The locations", "overlap by half: two outlined", faint)
    written, missing = f"{result.written.sum()} written", f"{n_missing} missing"
    _tint(sheet, panel, result, {_WRITTEN: result.written, _MISSING: ~result.written})
    for corner in result.output_locs[neighbours(result), :2].tolist():
        sheet.frame(panel, (*corner, corner[0] + TILE, corner[1] + TILE), INK, 4)
    for row, loc in enumerate(result.output_locs):
        sheet.number(panel, loc, str(row), INK)
    sheet.legend(panel, {written: _WRITTEN, missing: _MISSING})

    panel = sheet.panel("Killed and resumed", 'kill -9, then mode="a"', faint)
    _tint(sheet, panel, result, {_FIRST: again.before, _OTHER: again.after})
    sheet.legend(panel, {f"{again.before.sum()} recorded": _FIRST, f"{again.after.sum()} after": _OTHER})

    panel = sheet.panel("Two ranks", "and publish(): the same bytes", faint)
    colors = dict(zip((_FIRST, _OTHER), again.ranks, strict=True))
    _tint(sheet, panel, result, colors)
    labels = {f"{rank.sum()} of rank {number}": color for number, (color, rank) in enumerate(colors.items())}
    sheet.legend(panel, labels)


def _tint(sheet: Sheet, panel: Panel, result: FullBatch, colors: dict[str, NDArray[np.bool_]]) -> None:
    for color, chosen in colors.items():
        for loc in middles_of(result.output_locs[chosen]):
            sheet.fill(panel, loc, color, 0.5)


def _draw_classes(sheet: Sheet, classes: NDArray[np.uint8]) -> None:
    colors = np.array([(*rgb_of(color), 255) for color in _CLASSES.values()], np.uint8)
    image = np.zeros((*classes.shape, 4), np.uint8)
    image[classes != NO_CLASS] = colors[classes[classes != NO_CLASS]]
    sheet.panel("Label map", 'reduce="argmax"', image)


def _draw_heat(sheet: Sheet, rgb: NDArray[np.uint8], heat: NDArray[Any], covered: NDArray[np.bool_]) -> None:
    """Draw the heat map through which the slide is seen, and its colours, from nothing to the most."""
    most = float(heat[covered].max(initial=0)) or 1.0
    grey = rgb.astype(np.float32).mean(axis=-1, keepdims=True) / 255
    shown = _heat(heat / most) * (0.45 + 0.55 * grey)
    image = np.dstack([shown.astype(np.uint8), np.uint8(255) * covered])
    panel = sheet.panel("Heat map", "one number a tile: spread=True", image)
    sheet.scale(panel, _heat(np.linspace(0, 1, 256)).astype(np.uint8), ("epithelium 0", f"{most:.2f}"))


def _heat(share: NDArray[Any]) -> NDArray[np.float64]:
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(share, stops, channel) for channel in _HEAT.T], axis=-1)


def box_of_seams(values: NDArray[Any], coverage: NDArray[np.uint32]) -> tuple[int, int, int, int]:
    """Return a box ``x0, y0, x1, y1`` around that corner of four tiles where their seams are worst."""
    height, width = coverage.shape
    half_x, half_y = round(width / _ZOOM / 2), round(height / _ZOOM / 2)
    seen = np.where(coverage[..., None] > 0, values, np.nan)

    def sharpness(corner: tuple[int, int]) -> float:
        x, y = corner
        near_x, near_y = slice(max(0, x - half_x), x + half_x), slice(max(0, y - half_y), y + half_y)
        below, right = seen[y, near_x] - seen[y - 1, near_x], seen[near_y, x] - seen[near_y, x - 1]
        return float(np.nansum(np.abs(below)) + np.nansum(np.abs(right)))

    corners = [(x, y) for y in range(TILE, height, TILE) for x in range(TILE, width, TILE)]
    x, y = max(corners, key=sharpness, default=(width // 2, height // 2))
    x, y = min(max(x, half_x), width - half_x), min(max(y, half_y), height - half_y)
    return x - half_x, y - half_y, x + half_x, y + half_y


def neighbours(result: FullBatch) -> list[int]:
    """Return two tiles that were written and overlap by half, near the middle; none if there are not two."""
    starts, written = result.output_locs[:, :2], result.written
    is_pair = (starts[1:] - starts[:-1] == [STRIDE, 0]).all(axis=1) & written[:-1] & written[1:]
    firsts = np.flatnonzero(is_pair).tolist()
    return [firsts[len(firsts) // 2], firsts[len(firsts) // 2] + 1] if firsts else []


def _mix(stitched: StitchedMap) -> NDArray[np.uint8]:
    """Mix the colours of the classes in the proportion of their probabilities; clear where no tile is."""
    probability = head_of(stitched, "probability")
    share = probability / np.maximum(probability.sum(axis=-1, keepdims=True), 1e-6)
    colors = np.array([rgb_of(color) for color in _CLASSES.values()])
    return np.dstack([share @ colors, 255 * (stitched.coverage() > 0)]).round().astype(np.uint8)

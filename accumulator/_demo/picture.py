"""The picture: the slide, which locations were written, the map before and after blending, and its use.

Only draws. Everything is drawn at twice its size and shrunk at the end, which smooths the lines. Texts have
only characters that Pillow's own font has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont

from accumulator._demo.maps import head_of
from accumulator._demo.tiles import STRIDE, TILE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator._demo.maps import Maps

# Lengths in px as drawn: of the picture, a panel, the space around it, and what is above and below it.
_WIDTH: Final = 3840
_PANEL: Final = 900
_MARGIN: Final = 48
_HEADER: Final = 300
_TITLE: Final = 128
_LEGEND: Final = 112
_SWATCH: Final = (64, 34)
_LINE: Final = 5
_ZOOM: Final = 3.0  # of the enlarged place
_COLOURS: Final = 128  # of the file
_HATCH: Final = 38

_INK: Final = "#1f2933"
_QUIET: Final = "#5f6b7a"
_RULE: Final = "#cbd2d9"
_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_OUTLINE: Final = "#00b8d4"
_NO_TILE: Final = ("#eef0f3", "#c3cad4")
_CLASSES: Final = {"lumen": "#b9dff5", "epithelium": "#5b2a86", "stroma": "#f2a65a"}
_HAEMATOXYLIN: Final = ("#ffffff", "#8c9be0", "#3f3d9e", "#17123f")
_VALUES: Final = (0, 85, 170, 255)
_PLAIN: Final = (_INK, _QUIET, _RULE, _WRITTEN, _MISSING, _OUTLINE, *_NO_TILE, *_CLASSES.values())
_NAMED: Final = (*_PLAIN, *_HAEMATOXYLIN)


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch, maps: Maps) -> None:
    """Draw a result of the demo and its maps, and write them as a PNG.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    size = (_PANEL, round(_PANEL * rgb.shape[0] / rgb.shape[1]))
    slide = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
    height = _HEADER + 2 * (_TITLE + size[1] + _LEGEND)
    sheet = _Sheet(Image.new("RGB", (_WIDTH, height), "white"), size[1])
    sheet.write(
        _MARGIN,
        104,
        "Tile by tile through a network, stitched without visible seams by accumulator",
        84,
        _INK,
    )
    done = f"{maps.n_blended} of {len(result.written)} tiles were predicted, batch by batch, then stitched."
    sheet.write(_MARGIN, 180, f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}", 52, _INK)
    caution = "this shows the accumulator, it is no diagnosis."
    sheet.write(_MARGIN, 248, f"SHELL was trained on prostate and errs on skin: {caution}", 52, _MISSING)

    sheet.panel((0, 0), ("The slide", "H&E, one micrometre per pixel"), slide, {})
    _draw_locations(sheet, slide, rgb.shape, result, maps)
    _draw_seams(sheet, size, maps)
    probability = head_of(maps.blended, "probability")
    line = {"outline of epithelium": Image.new("RGB", (_SWATCH[0], 8), _OUTLINE)}
    titles = ("The map on the slide", "where epithelium is at least 0.5")
    sheet.panel((1, 0), titles, _outlined(slide, probability[..., 1]), line)

    stain = head_of(maps.blended, "stain")
    covered = maps.blended.coverage() > 0
    image = _over_hatching(_ramp(_HAEMATOXYLIN)[stain[..., 1]], covered, size)
    swatches = {str(value): _swatch(color) for value, color in zip(_VALUES, _HAEMATOXYLIN, strict=True)}
    titles = ("Second head: stain", f"haematoxylin, {stain.dtype}, blended alike")
    sheet.panel((1, 1), titles, image, swatches)
    sheet.save(path)


def _draw_locations(
    sheet: _Sheet, slide: Image.Image, shape: tuple[int, ...], result: FullBatch, maps: Maps
) -> None:
    n_missing = len(result.written) - maps.n_blended
    swatches = {f"written ({maps.n_blended})": _number_swatch(_WRITTEN)}
    swatches[f"missing ({n_missing})"] = _number_swatch(_MISSING)
    titles = ("The locations", "numbered in the middle; two outlined")
    image = _locations(slide, shape, result, maps.blended.coverage())
    sheet.panel((0, 1), titles, image, swatches)


def _draw_seams(sheet: _Sheet, size: tuple[int, int], maps: Maps) -> None:
    """Draw both maps of the probabilities, and below each the place with the worst seams enlarged."""
    classes = {name: _swatch(color) for name, color in _CLASSES.items()}
    shown = {
        "Before: tiles side by side": (maps.beside, maps.seams_beside, classes),
        "After: 50 % overlap, Hann": (
            maps.blended,
            maps.seams_blended,
            {"no tile": _framed(_hatching(_SWATCH))},
        ),
    }
    box = _box_of_seams(head_of(maps.beside, "probability"), maps.beside.coverage())
    for column, (title, (stitched, seams, legend)) in enumerate(shown.items(), start=2):
        colored, covered = _mix(head_of(stitched, "probability")), stitched.coverage() > 0
        whole = _over_hatching(colored, covered, size)
        scale = size[0] / colored.shape[1]
        x0, y0, x1, y1 = box
        frame = tuple(round(number * scale) for number in box)
        pen = ImageDraw.Draw(whole)
        pen.rectangle(frame, outline="white", width=3 * _LINE)
        pen.rectangle(frame, outline=_INK, width=2 * _LINE)
        sheet.panel((0, column), (title, f"seams {seams:.1f} times the usual gradient"), whole, legend)
        zoomed = _over_hatching(colored[y0:y1, x0:x1], covered[y0:y1, x0:x1], size)
        name = "before" if column == 2 else "after"
        titles = (f"Enlarged: {name}", f"the frame above, {_ZOOM:.0f} times larger")
        sheet.panel((1, column), titles, zoomed, {})


def _box_of_seams(values: NDArray[Any], coverage: NDArray[np.uint32]) -> tuple[int, int, int, int]:
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


@attrs.frozen
class _Sheet:
    """A white sheet with two rows of four panels."""

    image: Image.Image
    panel_height: int

    def write(self, left: int, baseline: int, text: str, size: int, color: str) -> int:
        """Write text that starts there, and return where it ends.

        The font has no bold; titles get a stroke around their letters, and as much space between them.
        """
        font, pen = ImageFont.load_default(size), ImageDraw.Draw(self.image)
        stroke = size // 40 if size > 52 else 0
        for i, letter in enumerate(text):
            start = left + font.getlength(text[: i + 1]) - font.getlength(letter) + stroke * i
            pen.text((start, baseline), letter, color, font, anchor="ls", stroke_width=stroke)
        return left + round(font.getlength(text))

    def panel(
        self,
        place: tuple[int, int],
        titles: tuple[str, str],
        image: Image.Image,
        legend: dict[str, Image.Image],
    ) -> None:
        """Put an image into its row and column, titles above it and swatches with labels below it."""
        top = _HEADER + place[0] * (_TITLE + self.panel_height + _LEGEND) + _TITLE
        left = _MARGIN + place[1] * (_PANEL + _MARGIN)
        self.write(left, top - 76, titles[0], 60, _INK)
        self.write(left, top - 24, titles[1], 48, _QUIET)
        self.image.paste(_framed(image), (left, top))
        baseline = top + self.panel_height + 58
        for label, swatch in legend.items():
            self.image.paste(swatch, (left, baseline - 16 - swatch.height // 2))
            left = self.write(left + swatch.width + 18, baseline, label, 44, _INK) + 44

    def save(self, path: Path) -> None:
        """Write few colours instead of millions: a third of the bytes, and hardly a difference to be seen.

        A strip of the named colours, cut off again, makes them weigh enough to be among the few.
        """
        width, height = self.image.width // 2, self.image.height // 2
        named = np.array([[ImageColor.getrgb(color) for color in _NAMED]], dtype=np.uint8)
        image = Image.new("RGB", (width, height + 200))
        image.paste(self.image.resize((width, height), Image.Resampling.LANCZOS))
        image.paste(Image.fromarray(named).resize((width, 200), Image.Resampling.NEAREST), (0, height))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(_COLOURS).crop((0, 0, width, height)).save(path, format="PNG", optimize=True)


def _locations(
    slide: Image.Image, shape: tuple[int, ...], result: FullBatch, coverage: NDArray[np.uint32]
) -> Image.Image:
    """Draw the number of every tile in its middle, over a slide that is the greener the more tiles cover it.

    All borders of overlapping tiles would hide each other: only two tiles have theirs, beside each other.
    """
    faint = Image.blend(slide, Image.new("RGB", slide.size, "white"), 0.5)
    opacity = np.minimum(coverage, 4).astype(np.uint8) * 22
    shade = Image.fromarray(opacity).resize(slide.size, Image.Resampling.NEAREST)
    image = Image.composite(Image.new("RGB", slide.size, _WRITTEN), faint, shade)
    scale = slide.width / shape[1]
    pen, font = ImageDraw.Draw(image, "RGBA"), ImageFont.load_default(46)
    for row in _neighbours(result):
        box = (np.asarray(result.output_locs[row]) * scale).round().astype(int).tolist()
        pen.rectangle(box, outline=_WRITTEN, width=2 * _LINE)
    for row, (x0, y0, x1, y1) in enumerate(result.output_locs):
        x, y = (x0 + x1) / 2 * scale, (y0 + y1) / 2 * scale
        color = _WRITTEN if result.written[row] else _MISSING
        half = font.getlength(str(row)) / 2 + 12
        pen.rounded_rectangle((x - half, y - 28, x + half, y + 28), radius=10, fill="#ffffffd8")
        pen.text((x, y + 16), str(row), color, font, anchor="ms", stroke_width=1)
    return image


def _neighbours(result: FullBatch) -> list[int]:
    """Return two tiles that were written and overlap by half, near the middle; none if there are not two."""
    starts = result.output_locs[:, :2]
    pairs = [
        (row, int(other))
        for row in np.flatnonzero(result.written).tolist()
        for other in np.flatnonzero((starts == starts[row] + [STRIDE, 0]).all(axis=1) & result.written)
    ]
    return list(pairs[len(pairs) // 2]) if pairs else []


def _mix(probability: NDArray[Any]) -> NDArray[np.uint8]:
    """Mix the colours of the three classes in the proportion of their probabilities."""
    colors = np.array([ImageColor.getrgb(color) for color in _CLASSES.values()])
    share = probability / np.maximum(probability.sum(axis=-1, keepdims=True), 1e-6)
    return np.asarray((share @ colors).round(), dtype=np.uint8)


def _ramp(colors: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return the colour of each of the 256 values."""
    channels = np.array([ImageColor.getrgb(color) for color in colors]).T
    ramp = [np.interp(np.arange(256), _VALUES, channel) for channel in channels]
    return np.stack(ramp, axis=-1).round().astype(np.uint8)


def _over_hatching(
    colored: NDArray[np.uint8], covered: NDArray[np.bool_], size: tuple[int, int]
) -> Image.Image:
    opacity = covered * np.uint8(255)
    tiles = Image.fromarray(np.dstack([colored, opacity])).resize(size, Image.Resampling.BICUBIC)
    image = _hatching(size)
    image.paste(tiles, mask=tiles)
    return image


def _hatching(size: tuple[int, int]) -> Image.Image:
    ground, line = map(ImageColor.getrgb, _NO_TILE)
    x, y = np.arange(size[0])[:, None], np.arange(size[1])[:, None, None]
    return Image.fromarray(np.where((x + y) % _HATCH < 3, line, ground).astype(np.uint8))


def _outlined(slide: Image.Image, probability: NDArray[Any]) -> Image.Image:
    """Draw the line along which the probability is 0.5 over the slide."""
    smooth = Image.fromarray(probability.astype(np.float32)).resize(slide.size, Image.Resampling.BICUBIC)
    inside = Image.fromarray((np.asarray(smooth) >= 0.5) * np.uint8(255))
    grown, shrunk = inside.filter(ImageFilter.MaxFilter(5)), inside.filter(ImageFilter.MinFilter(5))
    image = slide.copy()
    image.paste(_OUTLINE, mask=ImageChops.subtract(grown, shrunk))
    return image


def _framed(image: Image.Image) -> Image.Image:
    framed = image.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, image.width - 1, image.height - 1), outline=_RULE, width=2)
    return framed


def _swatch(color: str) -> Image.Image:
    return _framed(Image.new("RGB", _SWATCH, color))


def _number_swatch(color: str) -> Image.Image:
    image = Image.new("RGB", _SWATCH, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(40)
    pen.text((_SWATCH[0] / 2, _SWATCH[1] - 2), "12", color, font, anchor="ms", stroke_width=1)
    return image

"""The picture: the slide, which locations were written, and each head laid over the slide.

Only draws; what it draws is read from the result, row by row. Everything is drawn at twice its size and
shrunk at the end, which smooths the lines. Texts have only characters that Pillow's own font has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter, ImageFont

from accumulator._demo._tiles import STRIDE, TILE, lay_out

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator.typing import RowArray

# Lengths in px as drawn: of the picture, a panel, the space around it, and what is above and below it.
_WIDTH: Final = 3840
_PANEL: Final = 1200
_MARGIN: Final = 60
_HEADER: Final = 276
_TITLE: Final = 128
_LEGEND: Final = 124
_SWATCH: Final = (64, 34)
_LINE: Final = 5
_DASH: Final = 22
_HATCH: Final = 38

_INK: Final = "#1f2933"
_QUIET: Final = "#5f6b7a"
_RULE: Final = "#cbd2d9"
_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_OUTLINE: Final = "#00b8d4"
_NO_TILE: Final = ("#eef0f3", "#c3cad4")
_CLASSES: Final = {"lumen": "#b9dff5", "epithelium": "#5b2a86", "stroma": "#f2a65a"}
_EOSIN: Final = ("#ffffff", "#f08aa8", "#c2185b", "#5c0a2c")
_HAEMATOXYLIN: Final = ("#ffffff", "#8c9be0", "#3f3d9e", "#17123f")
_VALUES: Final = (0, 85, 170, 255)
_PLAIN: Final = (_INK, _QUIET, _RULE, _WRITTEN, _MISSING, _OUTLINE, *_NO_TILE, *_CLASSES.values())
_NAMED: Final = (*_PLAIN, *_EOSIN, *_HAEMATOXYLIN)


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch) -> None:
    """Draw a result of the demo over its slide, and write it as a PNG.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    heads = cast("dict[str, RowArray]", result.outputs)
    size = (_PANEL, round(_PANEL * rgb.shape[0] / rgb.shape[1]))
    slide = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
    n_tiles, n_written = len(result.written), int(result.written.sum())
    height = _HEADER + 2 * (_TITLE + size[1] + _LEGEND)
    sheet = _Sheet(Image.new("RGB", (_WIDTH, height), "white"), size[1])
    sheet.write(_MARGIN, 104, "A real slide through a real network, collected by accumulator", 84, _INK)
    done = f"{n_written} of {n_tiles} tiles were predicted, batch by batch, and laid over the slide."
    sheet.write(_MARGIN, 176, f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}", 52, _INK)
    caution = "this shows the accumulator, it is no diagnosis."
    sheet.write(_MARGIN, 238, f"SHELL was trained on prostate and errs on skin: {caution}", 52, _MISSING)

    sheet.panel((0, 0), ("The slide", "haematoxylin and eosin, at one micrometre per pixel"), slide, {})
    titles = ("The locations", "numbered in canonical order")
    tiles = {f"written ({n_written})": True, f"missing ({n_tiles - n_written})": False}
    swatches = {label: _tile_swatch(is_written=is_written) for label, is_written in tiles.items()}
    sheet.panel((0, 1), titles, _locations(slide, rgb.shape, result), swatches)

    head = heads["probability"]
    probability, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    no_tile = {"no tile": _framed(_hatching(_SWATCH))}
    titles = ("Head “probability”", f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier")
    swatches = {name: _swatch(color) for name, color in _CLASSES.items()}
    sheet.panel((0, 2), titles, _over_hatching(_mix(probability), covered, size), swatches | no_tile)
    titles = ("“probability” on the slide", "where epithelium is at least 0.5")
    line = {"outline of epithelium": Image.new("RGB", (_SWATCH[0], 6), _OUTLINE)}
    sheet.panel((1, 0), titles, _outlined(slide, probability[..., 1]), line)

    head = heads["stain"]
    stain, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    for channel, (name, colors) in enumerate({"eosin": _EOSIN, "haematoxylin": _HAEMATOXYLIN}.items()):
        image = _over_hatching(_ramp(colors)[stain[..., channel]], covered, size)
        titles = (f"Head “stain”: {name}", f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier")
        swatches = {str(value): _swatch(color) for value, color in zip(_VALUES, colors, strict=True)}
        sheet.panel((1, 1 + channel), titles, image, swatches | no_tile)
    sheet.save(path)


@attrs.frozen
class _Sheet:
    """A white sheet with two rows of three panels."""

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
        self.write(left, top - 24, titles[1], 44, _QUIET)
        self.image.paste(_framed(image), (left, top))
        baseline = top + self.panel_height + 58
        for label, swatch in legend.items():
            self.image.paste(swatch, (left, baseline - 16 - swatch.height // 2))
            left = self.write(left + swatch.width + 18, baseline, label, 44, _INK) + 44

    def save(self, path: Path) -> None:
        """Write 256 colours instead of millions: a third of the bytes, and hardly a difference to be seen.

        A strip of the named colours, cut off again, makes them weigh enough to be among the 256.
        """
        width, height = self.image.width // 2, self.image.height // 2
        named = np.array([[ImageColor.getrgb(color) for color in _NAMED]], dtype=np.uint8)
        image = Image.new("RGB", (width, height + 200))
        image.paste(self.image.resize((width, height), Image.Resampling.LANCZOS))
        image.paste(Image.fromarray(named).resize((width, 200), Image.Resampling.NEAREST), (0, height))
        path.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(256).crop((0, 0, width, height)).save(path, format="PNG", optimize=True)


def _locations(slide: Image.Image, shape: tuple[int, ...], result: FullBatch) -> Image.Image:
    """Draw every tile over a faint slide, and its number in the middle of what no other tile covers."""
    image = Image.blend(slide, Image.new("RGB", slide.size, "white"), 0.5)
    scale = slide.width / shape[1]
    boxes = (np.add(result.output_locs, [5, 5, -5, -5]) * scale).round().astype(int).tolist()
    for box, is_written in zip(boxes, result.written, strict=True):
        _draw_tile(image, box, is_written=is_written)
    pen = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(52)
    for row, (x0, y0, x1, y1) in enumerate(result.output_locs):
        x, y = _inner(x0, x1, shape[1]) * scale, _inner(y0, y1, shape[0]) * scale
        half = font.getlength(str(row)) / 2 + 12
        pen.rounded_rectangle((x - half, y - 30, x + half, y + 30), radius=10, fill="#ffffffc0")
        color = _WRITTEN if result.written[row] else _MISSING
        pen.text((x, y + 18), str(row), color, font, anchor="ms", stroke_width=1)
    return image


def _inner(start: int, end: int, length: int) -> float:
    overlap = TILE - STRIDE
    return ((start + overlap if start else start) + min(end - overlap, length)) / 2


def _draw_tile(image: Image.Image, box: list[int], *, is_written: bool) -> None:
    pen = ImageDraw.Draw(image, "RGBA")
    color = _WRITTEN if is_written else _MISSING
    x0, y0, x1, y1 = box
    pen.rectangle((x0, y0, x1, y1), fill=f"{color}1a")
    if is_written:
        pen.rectangle((x0, y0, x1, y1), outline=color, width=_LINE)
        return
    inset = _LINE - 1
    for start, end in _dashes(x0, x1):
        pen.rectangle((start, y0, end, y0 + inset), fill=color)
        pen.rectangle((start, y1 - inset, end, y1), fill=color)
    for start, end in _dashes(y0, y1):
        pen.rectangle((x0, start, x0 + inset, end), fill=color)
        pen.rectangle((x1 - inset, start, x1, end), fill=color)


def _dashes(start: int, end: int) -> list[tuple[int, int]]:
    """Return dashes, twice as long as the gaps, of which the first and the last reach the ends."""
    marks = np.linspace(start, end, 3 * max(2, round((end - start) / _DASH))).round().astype(int).tolist()
    return list(zip(marks[::3], marks[2::3], strict=True))


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


def _tile_swatch(*, is_written: bool) -> Image.Image:
    image = Image.new("RGB", _SWATCH, "white")
    _draw_tile(image, [0, 0, image.width - 1, image.height - 1], is_written=is_written)
    return image

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

_SCALE: Final = 2
# Lengths in px as drawn: of the picture, a panel, the space around it, and what is above and below it.
_WIDTH: Final = 1920 * _SCALE
_PANEL: Final = 600 * _SCALE
_MARGIN: Final = 30 * _SCALE
_HEADER: Final = 138 * _SCALE
_TITLE: Final = 64 * _SCALE
_LEGEND: Final = 62 * _SCALE
_SWATCH: Final = (32 * _SCALE, 17 * _SCALE)
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


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch) -> None:
    """Draw a result of the demo over its slide, and write it as a PNG.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    heads = cast("dict[str, RowArray]", result.outputs)
    sheet = _Sheet(round(_PANEL * rgb.shape[0] / rgb.shape[1]))
    _write_header(sheet, result)
    slide = Image.fromarray(rgb).resize((_PANEL, sheet.panel_height), Image.Resampling.LANCZOS)
    sheet.panel(0, 0, "The slide", "haematoxylin and eosin, at one micrometre per pixel", slide, {})

    locations = _locations(slide, result, rgb.shape[1], rgb.shape[0])
    n_written = int(result.written.sum())
    looks = {
        f"written ({n_written})": _tile_swatch(is_written=True),
        f"missing ({len(result.written) - n_written})": _tile_swatch(is_written=False),
    }
    sheet.panel(0, 1, "The locations", "numbered in canonical order", locations, looks)

    head = heads["probability"]
    probability, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    subtitle = f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier"
    classes = _over_hatching(_mix(probability), covered, slide.size)
    no_tile = {"no tile": _framed(_hatching(_SWATCH))}
    swatches = {name: _color_swatch(color) for name, color in _CLASSES.items()}
    sheet.panel(0, 2, "Head “probability”", subtitle, classes, swatches | no_tile)

    outlined = _outline(slide, probability[..., 1])
    line = {"outline of epithelium": _line_swatch()}
    sheet.panel(1, 0, "“probability” on the slide", "where epithelium is at least 0.5", outlined, line)

    head = heads["stain"]
    stain, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    subtitle = f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier"
    for channel, (name, stops) in enumerate({"eosin": _EOSIN, "haematoxylin": _HAEMATOXYLIN}.items()):
        colored = _over_hatching(_ramp(stops)[stain[..., channel]], covered, slide.size)
        swatches = {str(value): _color_swatch(color) for value, color in zip(_VALUES, stops, strict=True)}
        sheet.panel(1, 1 + channel, f"Head “stain”: {name}", subtitle, colored, swatches | no_tile)
    sheet.save(path)


def _write_header(sheet: _Sheet, result: FullBatch) -> None:
    title = "A real slide through a real network, collected by accumulator"
    sheet.write((_MARGIN, 52 * _SCALE), title, 42, _INK, bold=True)
    done = f"{result.written.sum()} of {len(result.written)} tiles were predicted"
    what = f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}, batch by batch, and laid over the slide."
    sheet.write((_MARGIN, 88 * _SCALE), what, 26, _INK)
    caution = "this shows the accumulator, it is no diagnosis."
    caution = f"SHELL was trained on prostate and errs on skin: {caution}"
    sheet.write((_MARGIN, 119 * _SCALE), caution, 26, _MISSING)


@attrs.frozen
class _Sheet:
    """A white sheet with two rows of three panels."""

    panel_height: int
    image: Image.Image = attrs.field(init=False)

    @image.default
    def _blank(self) -> Image.Image:
        height = _HEADER + 2 * (_TITLE + self.panel_height + _LEGEND)
        return Image.new("RGB", (_WIDTH, height + height % _SCALE), "white")

    def write(
        self, start: tuple[int, int], text: str, size: int, color: str, *, bold: bool = False
    ) -> int:
        """Write text that starts there on its baseline, and return where it ends.

        Bold letters are the font's own with a stroke around them, and as much further apart.
        """
        font = _font(size)
        stroke = _bold(size) if bold else 0
        pen = ImageDraw.Draw(self.image)
        left, baseline = start
        for i, letter in enumerate(text):
            end = left + font.getlength(text[: i + 1]) + stroke * i
            position = (end - font.getlength(letter), baseline)
            pen.text(position, letter, color, font, anchor="ls", stroke_width=stroke)
        return left + round(font.getlength(text))

    def panel(
        self,
        row: int,
        column: int,
        title: str,
        subtitle: str,
        image: Image.Image,
        legend: dict[str, Image.Image],
    ) -> None:
        """Put an image in its place, its titles above it and its legend, label to swatch, below it."""
        left = _MARGIN + column * (_PANEL + _MARGIN)
        top = _HEADER + row * (_TITLE + self.panel_height + _LEGEND) + _TITLE
        self.write((left, top - 38 * _SCALE), title, 30, _INK, bold=True)
        self.write((left, top - 12 * _SCALE), subtitle, 22, _QUIET)
        self.image.paste(_framed(image), (left, top))
        baseline = top + self.panel_height + 29 * _SCALE
        for label, swatch in legend.items():
            self.image.paste(swatch, (left, baseline - swatch.height + _SCALE // 2))
            left = self.write((left + swatch.width + 9 * _SCALE, baseline), label, 22, _INK) + 22 * _SCALE

    def save(self, path: Path) -> None:
        """Write 256 colours instead of millions: a third of the bytes, and hardly a difference to be seen."""
        size = (self.image.width // _SCALE, self.image.height // _SCALE)
        path.parent.mkdir(parents=True, exist_ok=True)
        shrunk = self.image.resize(size, Image.Resampling.LANCZOS)
        shrunk.quantize(256).save(path, format="PNG", optimize=True)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size * _SCALE))


def _bold(size: int) -> int:
    return max(1, round(size * _SCALE / 42))


def _locations(slide: Image.Image, result: FullBatch, width: int, height: int) -> Image.Image:
    """Draw every tile over a faint slide, and its number in the middle of what no other tile covers."""
    image = Image.blend(slide, Image.new("RGB", slide.size, "white"), 0.5)
    scale = slide.width / width
    for (x0, y0, x1, y1), is_written in zip(result.output_locs, result.written, strict=True):
        box = (round((x0 + 5) * scale), round((y0 + 5) * scale), round((x1 - 5) * scale), round((y1 - 5) * scale))
        _draw_tile(image, box, is_written=is_written)
    for row, (x0, y0, x1, y1) in enumerate(result.output_locs):
        middle = (round(_inner(x0, x1, width) * scale), round(_inner(y0, y1, height) * scale))
        _draw_number(image, middle, str(row), _WRITTEN if result.written[row] else _MISSING)
    return image


def _inner(start: int, end: int, length: int) -> float:
    overlap = TILE - STRIDE
    return ((start + overlap if start else start) + min(end - overlap, length)) / 2


def _draw_tile(image: Image.Image, box: tuple[int, int, int, int], *, is_written: bool) -> None:
    pen = ImageDraw.Draw(image, "RGBA")
    color = _WRITTEN if is_written else _MISSING
    pen.rectangle(box, fill=f"{color}1a")
    if is_written:
        pen.rectangle(box, outline=color, width=_LINE)
        return
    x0, y0, x1, y1 = box
    for start, end in _dashes(x0, x1):
        pen.rectangle((start, y0, end, y0 + _LINE - 1), fill=color)
        pen.rectangle((start, y1 - _LINE + 1, end, y1), fill=color)
    for start, end in _dashes(y0, y1):
        pen.rectangle((x0, start, x0 + _LINE - 1, end), fill=color)
        pen.rectangle((x1 - _LINE + 1, start, x1, end), fill=color)


def _dashes(start: int, end: int) -> list[tuple[int, int]]:
    """Return dashes, twice as long as the gaps, of which the first and the last reach the ends."""
    marks = np.linspace(start, end, 3 * max(2, round((end - start) / _DASH))).round().astype(int).tolist()
    return list(zip(marks[::3], marks[2::3], strict=True))


def _draw_number(image: Image.Image, middle: tuple[int, int], number: str, color: str) -> None:
    pen = ImageDraw.Draw(image, "RGBA")
    font = _font(26)
    x, y = middle
    half_width, half_height = round(font.getlength(number) / 2) + 6 * _SCALE, 15 * _SCALE
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    pen.rounded_rectangle(box, radius=5 * _SCALE, fill="#ffffffc0")
    baseline = y - round(font.getbbox("0", anchor="ls")[1] / 2)
    pen.text((x, baseline), number, color, font, anchor="ms", stroke_width=_bold(26))


def _mix(probability: NDArray[Any]) -> NDArray[np.uint8]:
    """Mix the colours of the three classes in the proportion of their probabilities."""
    colors = np.array([ImageColor.getrgb(color) for color in _CLASSES.values()])
    share = probability / np.maximum(probability.sum(axis=-1, keepdims=True), 1e-6)
    return (share @ colors).round().astype(np.uint8)


def _ramp(stops: tuple[str, ...]) -> NDArray[np.uint8]:
    """Return the colour of each of 256 values between evenly spaced colours."""
    channels = zip(*map(ImageColor.getrgb, stops), strict=True)
    ramp = [np.interp(np.arange(256), _VALUES, channel) for channel in channels]
    return np.stack(ramp, axis=-1).round().astype(np.uint8)


def _over_hatching(
    colored: NDArray[np.uint8], covered: NDArray[np.bool_], size: tuple[int, int]
) -> Image.Image:
    """Return the colours where a tile is, and hatching where none is."""
    opacity = np.where(covered, np.uint8(255), np.uint8(0))
    tiles = Image.fromarray(np.dstack([colored, opacity])).resize(size, Image.Resampling.BICUBIC)
    image = _hatching(size)
    image.paste(tiles, mask=tiles)
    return image


def _hatching(size: tuple[int, int]) -> Image.Image:
    ground, line = map(ImageColor.getrgb, _NO_TILE)
    x, y = np.arange(size[0]), np.arange(size[1])[:, None]
    is_line = (x + y) % _HATCH < 3
    return Image.fromarray(np.where(is_line[..., None], line, ground).astype(np.uint8))


def _outline(slide: Image.Image, probability: NDArray[Any]) -> Image.Image:
    """Draw the line along which the probability is 0.5 over the slide."""
    smooth = Image.fromarray(probability.astype(np.float32)).resize(slide.size, Image.Resampling.BICUBIC)
    inside = Image.fromarray(np.where(np.asarray(smooth) >= 0.5, np.uint8(255), np.uint8(0)))
    line = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(5)), inside.filter(ImageFilter.MinFilter(5)))
    image = slide.copy()
    image.paste(_OUTLINE, mask=line)
    return image


def _framed(image: Image.Image) -> Image.Image:
    framed = image.copy()
    ImageDraw.Draw(framed).rectangle((0, 0, image.width - 1, image.height - 1), outline=_RULE, width=_SCALE)
    return framed


def _color_swatch(color: str) -> Image.Image:
    return _framed(Image.new("RGB", _SWATCH, color))


def _tile_swatch(*, is_written: bool) -> Image.Image:
    image = Image.new("RGB", _SWATCH, "white")
    _draw_tile(image, (0, 0, image.width - 1, image.height - 1), is_written=is_written)
    return image


def _line_swatch() -> Image.Image:
    image = Image.new("RGB", _SWATCH, "white")
    middle = image.height // 2
    ImageDraw.Draw(image).rectangle((0, middle - 3, image.width, middle + 2), fill=_OUTLINE)
    return image

"""A sheet of panels, drawn with Pillow, which opens the slide anyway: images, squares, texts, legends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# In px: a page shows the sheet half as large, where the smallest letters are 12 px high.
COLUMNS: Final = 4
WIDTH: Final = 1800
PANEL: Final = 420
_MARGIN: Final = (WIDTH - COLUMNS * PANEL) // (COLUMNS + 1)
_HEADER: Final = 164
_TITLE: Final = 88
_LEGEND: Final = 62
_BIG, _MIDDLE, _SMALL, _TINY = 42, 31, 24, 20

QUIET: Final = "#52606d"
INK: Final = "#1f2933"
WARNING: Final = "#b93a0a"
NO_TILE: Final = "#eef0f3"
_HATCH: Final = "#c3cad4"
_FRAME: Final = "#cbd2d9"

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@attrs.frozen(eq=False)
class Text:
    """A text that was drawn, and where."""

    text: str
    box: Box


@attrs.frozen(eq=False)
class Panel:
    """Where a panel is, and how large a pixel of the slide is in it."""

    left: int
    top: int
    height: int
    scale: float

    def placed(self, box: Any) -> Box:
        """Return where a box of the slide is on the sheet."""
        x0, y0, x1, y1 = (float(edge) * self.scale for edge in box)
        return self.left + x0, self.top + y0, self.left + x1, self.top + y1


class Sheet:
    """Panels of one shape in rows of four, below a title."""

    def __init__(self, size: tuple[int, int], n_rows: int) -> None:
        """Take the width and height of what all panels show."""
        self._size = size
        self._panel_height = round(PANEL * size[1] / size[0])
        self._row_height = _TITLE + self._panel_height + _LEGEND
        self.image = Image.new("RGB", (WIDTH, _HEADER + n_rows * self._row_height), "white")
        self._pen = ImageDraw.Draw(self.image)
        self.texts: list[Text] = []
        self.panels: list[Panel] = []

    def header(self, title: str, *lines: tuple[str, str]) -> None:
        """Write the title, and lines below it in their colours."""
        self.write((_MARGIN, 22), title, _BIG, INK, is_bold=True)
        for number, (line, color) in enumerate(lines):
            self.write((_MARGIN, 82 + 36 * number), line, _SMALL, color)

    def panel(self, title: str, below: str, image: NDArray[np.uint8]) -> Panel:
        """Add a panel of an image of the slide, or of a part of its shape: RGB, or RGBA over hatching."""
        row, column = divmod(len(self.panels), COLUMNS)
        left, top = _MARGIN + column * (PANEL + _MARGIN), _HEADER + row * self._row_height
        self.write((left, top + 8), title, _MIDDLE, INK, is_bold=True)
        self.write((left, top + 49), below, _SMALL, QUIET)
        panel = Panel(left, top + _TITLE, self._panel_height, PANEL / self._size[0])
        self.panels.append(panel)
        size = (PANEL, panel.height)
        shown = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        if shown.mode == "RGBA":
            ground = _hatching(*size)
            ground.paste(shown, mask=shown.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
            shown = ground
        self.image.paste(shown, (panel.left, panel.top))
        self.frame(panel, (0, 0, *self._size), _FRAME, 1)
        return panel

    def frame(self, panel: Panel, box: Any, color: str, width: int) -> None:
        """Draw the edges of a box of the slide, inwards."""
        x0, y0, x1, y1 = panel.placed(box)
        self._pen.rectangle((round(x0), round(y0), round(x1) - 1, round(y1) - 1), outline=color, width=width)

    def fill(self, panel: Panel, box: Any, color: str, alpha: float) -> None:
        """Colour a box of the slide but for its edge; what is outside of the panel is not drawn."""
        x0, y0, x1, y1 = (round(edge) for edge in panel.placed(box))
        x0, y0 = max(x0, panel.left) + 1, max(y0, panel.top) + 1
        x1, y1 = min(x1, panel.left + PANEL) - 1, min(y1, panel.top + panel.height) - 1
        if x0 < x1 and y0 < y1:
            below = self.image.crop((x0, y0, x1, y1))
            self.image.paste(Image.blend(below, Image.new("RGB", below.size, color), alpha), (x0, y0))

    def number(self, panel: Panel, box: Any, text: str, color: str) -> None:
        """Write a number into the middle of a box of the slide; one whose middle is outside is moved in."""
        x0, y0, x1, y1 = panel.placed(box)
        x = min(max((x0 + x1) / 2, panel.left + 18), panel.left + PANEL - 18)
        y = min(max((y0 + y1) / 2, panel.top + 16), panel.top + panel.height - 16)
        wide = self._width(text, _TINY) / 2 + 4
        self._pen.rounded_rectangle((x - wide, y - 12, x + wide, y + 12), 5, "white")
        self.write((x, y), text, _TINY, color, is_bold=True, anchor="mm")

    def legend(self, panel: Panel, colors: Mapping[str, str]) -> None:
        """Write below a panel what colours mean."""
        x, y = panel.left, panel.top + panel.height + 12
        for label, color in colors.items():
            self._pen.rectangle((x, y + 3, x + 22, y + 25), fill=color, outline=QUIET)
            if color == NO_TILE:
                self.image.paste(_hatching(21, 21), (x + 1, y + 4))
            x = round(self.write((x + 30, y), label, _SMALL, INK)) + 16

    def scale(self, panel: Panel, colors: NDArray[np.uint8], ends: tuple[str, str]) -> None:
        """Draw below a panel what colours mean that go from one number to another."""
        y = panel.top + panel.height + 12
        start = round(self.write((panel.left, y), ends[0], _SMALL, INK)) + 12
        width = round(panel.left + PANEL - start - self._width(ends[1], _SMALL)) - 12
        self.image.paste(Image.fromarray(colors[None]).resize((width, 22)), (start, y + 3))
        self._pen.rectangle((start, y + 3, start + width, y + 25), outline=QUIET)
        self.write((start + width + 12, y), ends[1], _SMALL, INK)

    def write(  # noqa: PLR0913  what a text has
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        color: str,
        *,
        is_bold: bool = False,
        anchor: str = "la",
    ) -> float:
        """Write a text, and return where it ends."""
        font = ImageFont.load_default(size)
        stroke: dict[str, Any] = {"stroke_width": int(is_bold), "anchor": anchor}
        box = self._pen.textbbox(at, text, font, **stroke)
        self._pen.text(at, text, color, font, **stroke)
        self.texts.append(Text(text, box))
        return box[2]

    def _width(self, text: str, size: int) -> float:
        return self._pen.textlength(text, ImageFont.load_default(size))


def rgb_of(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of a colour."""
    return ImageColor.getcolor(color, "RGB")  # type: ignore[return-value]


def _hatching(width: int, height: int) -> Image.Image:
    y, x = np.indices((height, width))
    is_line = (x + y) % 14 < 2
    return Image.fromarray(np.where(is_line[..., None], rgb_of(_HATCH), rgb_of(NO_TILE)).astype(np.uint8))

"""The picture: the slide, which locations were written, and each head laid over the slide.

Only draws; what it draws is read from the result, row by row. Uses no global state of matplotlib.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from accumulator._demo._tiles import STRIDE, TILE, lay_out

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator.typing import RowArray

_DPI: Final = 100
# Lengths in px: of the picture, a panel, the space around it, and what is above and below it.
_WIDTH: Final = 1920
_PANEL: Final = 600
_MARGIN: Final = 30
_HEADER: Final = 138
_TITLE: Final = 64
_LEGEND: Final = 62

_INK: Final = "#1f2933"
_QUIET: Final = "#5f6b7a"
_RULE: Final = "#cbd2d9"
_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_OUTLINE: Final = "#00b8d4"
_CLASSES: Final = {"lumen": "#b9dff5", "epithelium": "#5b2a86", "stroma": "#f2a65a"}
_EOSIN: Final = LinearSegmentedColormap.from_list("eosin", ["#ffffff", "#f08aa8", "#c2185b", "#5c0a2c"])
_HAEMATOXYLIN: Final = LinearSegmentedColormap.from_list("", ["#ffffff", "#8c9be0", "#3f3d9e", "#17123f"])
_NO_TILE: Final[dict[str, Any]] = {"facecolor": "#eef0f3", "edgecolor": "#c3cad4", "hatch": "//"}


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch) -> None:
    """Draw a result of the demo over its slide, and write it as a PNG.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    heads = cast("dict[str, RowArray]", result.outputs)
    sheet = _Sheet(round(_PANEL * rgb.shape[0] / rgb.shape[1]))
    sheet.write(_MARGIN, 50, "A real slide through a real network, collected by accumulator", 29, _INK)
    done = f"{result.written.sum()} of {len(result.written)} tiles were predicted"
    what = f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}, batch by batch, and laid over the slide."
    sheet.write(_MARGIN, 86, what, 17.5, _INK)
    caution = (
        "SHELL was trained on prostate and errs on skin: this shows the accumulator, it is no diagnosis."
    )
    sheet.write(_MARGIN, 116, caution, 17.5, _MISSING)

    sheet.panel(0, 0, "The slide", "haematoxylin and eosin, at 1 µm/px").imshow(rgb)
    _draw_locations(sheet.panel(0, 1, "The locations", "numbered in canonical order"), rgb, result)

    head = heads["probability"]
    probability, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    subtitle = f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier"
    _draw_probability(sheet.panel(0, 2, "Head “probability”", subtitle), probability, covered)
    axes = sheet.panel(1, 0, "“probability” on the slide", "where epithelium is at least 0.5")
    _draw_epithelium(axes, rgb, probability[..., 1])

    head = heads["stain"]
    stain, covered = lay_out(head, result.output_locs, result.written, rgb.shape[:2])
    subtitle = f"{head.dtype}, {head.shape[1:]} a tile; later tile over earlier"
    axes = sheet.panel(1, 1, "Head “stain”: eosin", subtitle)
    _draw_stain(axes, stain[..., 0], covered, _EOSIN)
    axes = sheet.panel(1, 2, "Head “stain”: haematoxylin", subtitle)
    _draw_stain(axes, stain[..., 1], covered, _HAEMATOXYLIN)
    sheet.save(path)


@attrs.frozen
class _Sheet:
    """A figure of two rows of three panels, measured in px from its top left corner."""

    panel_height: int
    figure: Figure = attrs.field(init=False, factory=lambda: Figure(dpi=_DPI))

    def __attrs_post_init__(self) -> None:
        self.figure.set_size_inches(_WIDTH / _DPI, self.height / _DPI)

    @property
    def height(self) -> int:
        return _HEADER + 2 * (_TITLE + self.panel_height + _LEGEND)

    def write(self, left: int, bottom: int, text: str, size: float, color: str) -> None:
        weight = "bold" if size > 18 else "normal"
        self.figure.text(left / _WIDTH, 1 - bottom / self.height, text, size=size, weight=weight, color=color)

    def panel(self, row: int, column: int, title: str, subtitle: str) -> Axes:
        top = _HEADER + row * (_TITLE + self.panel_height + _LEGEND) + _TITLE
        left = _MARGIN + column * (_PANEL + _MARGIN)
        corner = (left / _WIDTH, 1 - (top + self.panel_height) / self.height)
        axes = self.figure.add_axes((*corner, _PANEL / _WIDTH, self.panel_height / self.height))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(_RULE)
        axes.patch.set(**_NO_TILE)
        self.write(left, top - 38, title, 20, _INK)
        self.write(left, top - 12, subtitle, 15, _QUIET)
        return axes

    def save(self, path: Path) -> None:
        """Write 256 colours instead of millions: a third of the bytes, and hardly a difference to be seen."""
        drawn = BytesIO()
        self.figure.savefig(drawn, format="png", dpi=_DPI, facecolor="white")
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(drawn) as image:
            image.convert("RGB").quantize(256).save(path, format="PNG", optimize=True)


def _draw_locations(axes: Axes, rgb: NDArray[np.uint8], result: FullBatch) -> None:
    height, width = rgb.shape[:2]
    axes.imshow(255 - (255 - rgb) // 2)
    axes.set_autoscale_on(False)
    looks: dict[bool, dict[str, Any]] = {
        True: {"edgecolor": _WRITTEN, "facecolor": (*to_rgb(_WRITTEN), 0.1), "linewidth": 2},
        False: {"edgecolor": _MISSING, "facecolor": (*to_rgb(_MISSING), 0.1), "linewidth": 2, "ls": "--"},
    }
    for row, (x0, y0, x1, y1) in enumerate(result.output_locs):
        look = looks[bool(result.written[row])]
        axes.add_patch(Rectangle((x0 + 5, y0 + 5), x1 - x0 - 10, y1 - y0 - 10, **look))
        # In the middle of what no other tile covers.
        middle = (_inner(x0, x1, width), _inner(y0, y1, height))
        axes.annotate(
            str(row),
            middle,
            color=look["edgecolor"],
            size=17,
            weight="bold",
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": (1, 1, 1, 0.75), "edgecolor": "none"},
        )
    n_written = result.written.sum()
    written = Patch(**looks[True], label=f"written ({n_written})")
    _legend(axes, [written, Patch(**looks[False], label=f"missing ({len(result.written) - n_written})")])


def _inner(start: int, end: int, length: int) -> float:
    overlap = TILE - STRIDE
    return ((start + overlap if start else start) + min(end - overlap, length)) / 2


def _draw_probability(axes: Axes, probability: NDArray[Any], covered: NDArray[np.bool_]) -> None:
    """Mix the colours of the three classes in the proportion of their probabilities."""
    colors = np.array([to_rgb(color) for color in _CLASSES.values()])
    share = probability / np.maximum(probability.sum(axis=-1, keepdims=True), 1e-6)
    axes.imshow(np.dstack([share @ colors, covered]))
    patches = [Patch(facecolor=color, edgecolor=_RULE, label=name) for name, color in _CLASSES.items()]
    _legend(axes, [*patches, Patch(**_NO_TILE, label="no tile")])


def _draw_epithelium(axes: Axes, rgb: NDArray[np.uint8], probability: NDArray[Any]) -> None:
    axes.imshow(rgb)
    axes.contour(probability, levels=[0.5], colors=[_OUTLINE], linewidths=1.6)
    _legend(axes, [Line2D([], [], color=_OUTLINE, linewidth=2.5, label="outline of epithelium")])


def _draw_stain(axes: Axes, stain: NDArray[Any], covered: NDArray[np.bool_], colors: Colormap) -> None:
    axes.imshow(np.dstack([colors(stain)[..., :3], covered]))
    values = (0, 85, 170, 255)
    patches = [Patch(facecolor=colors(value), edgecolor=_RULE, label=str(value)) for value in values]
    _legend(axes, [*patches, Patch(**_NO_TILE, label="no tile")])


def _legend(axes: Axes, handles: list[Artist]) -> None:
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.005, 0),
        ncols=len(handles),
        fontsize=15,
        frameon=False,
        labelcolor=_INK,
        borderaxespad=0.3,
        borderpad=0.3,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.2,
    )

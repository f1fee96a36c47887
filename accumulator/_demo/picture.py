"""The picture: the slide, which locations were written, and the maps before and after blending."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from accumulator._demo.maps import head_of
from accumulator._demo.tiles import STRIDE, TILE
from accumulator._stores.files.target import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator._demo.maps import Maps

# In px: the picture's width, a panel's, the space beside it, and what is above and below it.
_WIDTH: Final = 1920
_PANEL: Final = 450
_MARGIN: Final = 24
_HEADER: Final = 136
_TITLE: Final = 64
_LEGEND: Final = 52
_ZOOM: Final = 3.0  # of the enlarged place
_COLOURS: Final = 160  # of the file

_QUIET: Final = "#5f6b7a"
_INK: Final = "#1f2933"
_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_OUTLINE: Final = "#00b8d4"
_NO_TILE: Final[Any] = {"facecolor": "#eef0f3", "edgecolor": "#c3cad4", "hatch": "//", "linewidth": 0}
_CLASSES: Final = {"lumen": "#b9dff5", "epithelium": "#5b2a86", "stroma": "#f2a65a"}


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch, maps: Maps) -> None:
    """Draw a result of the demo and its maps, and write them as a PNG."""
    drawn = io.BytesIO()
    make_figure(rgb, result, maps).savefig(drawn, format="png")
    pixels = np.asarray(Image.open(drawn).convert("RGB"))
    # Few colours instead of millions: a third of the bytes, and hardly a difference to be seen. A strip of
    # those of thin lines, cut off again, makes them weigh enough to be among the few.
    thin = np.array([to_rgb(color) for color in (_WRITTEN, _MISSING, _OUTLINE)]) * 255
    strip = np.tile(thin.round().astype(np.uint8).repeat(_WIDTH // len(thin), axis=0), (120, 1, 1))
    few = Image.fromarray(np.vstack([pixels, strip])).quantize(_COLOURS)
    content = io.BytesIO()
    few.crop((0, 0, _WIDTH, len(pixels))).save(content, format="PNG", optimize=True)
    write_file(path, content.getvalue(), replaces=True)


def make_figure(rgb: NDArray[np.uint8], result: FullBatch, maps: Maps) -> Figure:
    """Return two rows of four panels, with titles and legends."""
    figure, axes = _sheet(rgb.shape[0] / rgb.shape[1])
    done = f"{result.written.sum()} of {len(result.written)} tiles were predicted, batch by batch"
    title = "Tile by tile through a network, stitched without visible seams by accumulator"
    caution = "this shows the accumulator, it is no diagnosis."
    for text, y, size, weight, color in (
        (title, 50, 21, "bold", _INK),
        (f"CMU-1-Small-Region (skin, H&E) and SHELL v1: {done}, then stitched.", 88, 13, "normal", _INK),
        (f"SHELL was trained on prostate and errs on skin: {caution}", 120, 13, "normal", _MISSING),
    ):
        at = _MARGIN / _WIDTH, 1 - y / figure.bbox.height
        figure.text(*at, text, fontsize=size, fontweight=weight, color=color)

    _panel(axes[0, 0], "The slide", "H&E, one micrometre per pixel", rgb)
    _panel(axes[0, 1], "The locations", "numbered in the middle; two outlined", rgb, alpha=0.5)
    _draw_locations(axes[0, 1], result)

    _panel(axes[1, 0], "The map on the slide", "where epithelium is at least 0.5", rgb)
    axes[1, 0].contour(head_of(maps.blended, "probability")[..., 1], [0.5], colors=[_OUTLINE], linewidths=1)
    _legend(axes[1, 0], [Line2D([], [], color=_OUTLINE, linewidth=3, label="outline of epithelium")])

    stain, covered = head_of(maps.blended, "stain"), maps.blended.coverage() > 0
    haematoxylin = np.ma.array(stain[..., 1], mask=~covered)
    below = f"haematoxylin, {stain.dtype}, blended alike"
    shown = _panel(axes[1, 1], "Second head: stain", below, haematoxylin, cmap="BuPu", vmin=0, vmax=255)
    scale = axes[1, 1].inset_axes((0, -0.035, 1, 0.02))
    figure.colorbar(shown, cax=scale, orientation="horizontal", ticks=[0, 85, 170, 255])

    box = box_of_seams(head_of(maps.beside, "probability"), maps.beside.coverage())
    titles = {"before": "Before: tiles side by side", "after": "After: 50 % overlap, Hann"}
    columns = zip(axes[:, 2:].T, titles.items(), maps, maps.seams, strict=True)
    for (above, below), (name, title), stitched, seams in columns:
        mixed = np.dstack([_mix(head_of(stitched, "probability")), stitched.coverage() > 0])
        _panel(above, title, f"seams {seams:.1f} times the usual gradient", mixed)
        for color, line in (("white", 4.5), (_INK, 3)):
            frame = Rectangle(
                box[:2], box[2] - box[0], box[3] - box[1], fill=False, color=color, linewidth=line
            )
            above.add_patch(frame)
        _panel(below, f"Enlarged: {name}", f"the frame above, {_ZOOM:.0f} times larger", mixed)
        below.set(xlim=box[::2], ylim=box[:0:-2])
    _legend(axes[0, 2], [Patch(color=color, label=name) for name, color in _CLASSES.items()])
    _legend(axes[0, 3], [Patch(**_NO_TILE, label="no tile")])
    return figure


def _sheet(ratio: float) -> tuple[Figure, Any]:
    """Return a figure and its empty panels, so many times as high as they are wide."""
    panel = _PANEL * ratio
    height = round(_HEADER + 2 * (_TITLE + panel + _LEGEND))
    figure = Figure((_WIDTH / 100, height / 100), dpi=100)
    edges = {"left": _MARGIN / _WIDTH, "right": 1 - _MARGIN / _WIDTH, "wspace": _MARGIN / _PANEL}
    edges |= {"top": 1 - (_HEADER + _TITLE) / height, "bottom": _LEGEND / height}
    return figure, figure.subplots(2, 4, gridspec_kw=edges | {"hspace": (_TITLE + _LEGEND) / panel})


def _panel(ax: Axes, title: str, below: str, image: NDArray[Any], **options: Any) -> Any:
    """Show an image, over hatching."""
    height, width = image.shape[:2]
    ax.patch.set(**_NO_TILE)
    ax.spines[:].set_color("#cbd2d9")
    ax.set_title(title, loc="left", fontsize=16, fontweight="bold", color=_INK, pad=24)
    ax.text(0, 1.012, below, transform=ax.transAxes, fontsize=12, color=_QUIET)
    shown = ax.imshow(image, extent=(0, width, height, 0), **options)
    ax.set(xticks=[], yticks=[], aspect="auto")
    return shown


def _legend(ax: Axes, handles: list[Any]) -> None:
    options = {"frameon": False, "fontsize": 12, "columnspacing": 1.2, "handletextpad": 0.5}
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, borderaxespad=0.2, **options)


def _draw_locations(ax: Axes, result: FullBatch) -> None:
    """Draw the number of every tile in its middle, over a slide that is the greener the more tiles cover it.

    All borders of overlapping tiles would hide each other: only two tiles have theirs, beside each other.
    """
    limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}
    result.plot_coverage(ax)
    missing, written = ax.collections
    missing.remove()
    written.set(alpha=0.16, linewidth=0)
    _legend(ax, legend.legend_handles if (legend := ax.get_legend()) else [])
    for corner in result.output_locs[neighbours(result), :2].tolist():
        ax.add_patch(Rectangle(corner, TILE, TILE, fill=False, color=_WRITTEN, linewidth=4))
    around = {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
    for row, (x, y) in enumerate((result.output_locs[:, :2] + TILE / 2).tolist()):
        color = _WRITTEN if result.written[row] else _MISSING
        ax.text(x, y, str(row), ha="center", va="center", color=color, fontweight="bold", bbox=around)
    ax.patch.set(facecolor="white", hatch="")
    ax.set(**limits, aspect="auto", xlabel="", ylabel="", xticks=[], yticks=[])


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


def _mix(probability: NDArray[Any]) -> NDArray[Any]:
    """Mix the colours of the three classes in the proportion of their probabilities."""
    share = probability / np.maximum(probability.sum(axis=-1, keepdims=True), 1e-6)
    return np.asarray(share @ np.array([to_rgb(color) for color in _CLASSES.values()]))

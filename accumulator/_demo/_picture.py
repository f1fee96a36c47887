"""The picture: the slide, which locations were written, and each head laid over the slide.

Only draws; what it draws is read from the result, row by row. Uses no global state of matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from accumulator._demo._tiles import lay_out

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator.typing import RowArray

_DPI: Final = 100
_INK: Final = "#1f2933"
_QUIET: Final = "#5f6b7a"
_GAP: Final = "#e4e7eb"
_WRITTEN: Final = "#00796b"
_MISSING: Final = "#c2410c"
_CLASSES: Final = {"lumen": "#d6ecf8", "epithelium": "#5b2a86", "stroma": "#f2a65a"}
_EOSIN: Final = LinearSegmentedColormap.from_list("eosin", ["#ffffff", "#f08aa8", "#c2185b", "#5c0a2c"])
_HAEMATOXYLIN: Final = LinearSegmentedColormap.from_list(
    "haematoxylin", ["#ffffff", "#8c9be0", "#3f3d9e", "#17123f"]
)


def draw(path: Path, rgb: NDArray[np.uint8], result: FullBatch) -> None:
    """Draw a result of the demo over its slide, and write it as a PNG.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    heads = cast("dict[str, RowArray]", result.outputs)
    locs, written = result.output_locs, result.written
    height, width = rgb.shape[:2]
    probability = lay_out(heads["probability"], locs, written, height, width)
    stain = lay_out(heads["stain"], locs, written, height, width)

    figure = Figure(figsize=(19.2, 18.9), dpi=_DPI, facecolor="white")
    axes = figure.subplots(2, 3).ravel()
    figure.subplots_adjust(left=0.015, right=0.985, top=0.895, bottom=0.03, wspace=0.04, hspace=0.13)
    _write_title(figure, written)

    axes[0].imshow(rgb)
    _label(axes[0], "The slide", "skin, haematoxylin and eosin, 1 µm/px")
    _draw_locations(axes[1], rgb, locs, written)
    _draw_probability(axes[2], probability)
    _draw_epithelium(axes[3], rgb, probability)
    _draw_stain(axes[4], stain[..., 0], _EOSIN, "eosin")
    _draw_stain(axes[5], stain[..., 1], _HAEMATOXYLIN, "haematoxylin")
    _save(figure, path)


def _write_title(figure: Figure, written: NDArray[np.bool_]) -> None:
    figure.text(0.015, 0.972, "accumulator demo", size=30, weight="bold", color=_INK, va="center")
    figure.text(
        0.015,
        0.946,
        f"SHELL v1 over CMU-1-Small-Region: {written.sum()} of {len(written)} tiles predicted in batches, "
        "collected in canonical order, laid over the slide.",
        size=18,
        color=_INK,
        va="center",
    )
    figure.text(
        0.015,
        0.928,
        "The network was trained on prostate, this is skin: a demonstration of the accumulator, no diagnosis.",
        size=18,
        color=_MISSING,
        va="center",
    )


def _label(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cbd2d9")
    axes.text(0, 1.042, title, transform=axes.transAxes, size=19, weight="bold", color=_INK)
    axes.text(0, 1.014, subtitle, transform=axes.transAxes, size=15, color=_QUIET)


def _legend(axes: Axes, handles: list[Patch]) -> None:
    legend = axes.legend(handles=handles, loc="lower left", fontsize=15, framealpha=0.92, labelcolor=_INK)
    legend.get_frame().set_edgecolor("#cbd2d9")


def _draw_locations(
    axes: Axes, rgb: NDArray[np.uint8], locs: NDArray[np.int64], written: NDArray[np.bool_]
) -> None:
    axes.imshow(rgb, alpha=0.45)
    axes.set_autoscale_on(False)
    for row, (x0, y0, x1, y1) in enumerate(locs):
        color = _WRITTEN if written[row] else _MISSING
        axes.add_patch(
            Rectangle(
                (x0 + 6, y0 + 6),
                x1 - x0 - 12,
                y1 - y0 - 12,
                facecolor=(*to_rgb(color), 0.10),
                edgecolor=color,
                linewidth=2,
                linestyle="-" if written[row] else (0, (4, 3)),
            )
        )
        middle = (x0 + min(x1, rgb.shape[1])) / 2, (y0 + min(y1, rgb.shape[0])) / 2
        axes.text(*middle, str(row), size=19, weight="bold", color=color, ha="center", va="center")
    _label(axes, "The locations", f"{len(locs)} in canonical order; tiles overlap, edge tiles reach beyond")
    _legend(
        axes,
        [
            Patch(facecolor=(*to_rgb(_WRITTEN), 0.2), edgecolor=_WRITTEN, label=f"written ({written.sum()})"),
            Patch(
                facecolor=(*to_rgb(_MISSING), 0.2),
                edgecolor=_MISSING,
                linestyle="--",
                label=f"missing ({(~written).sum()})",
            ),
        ],
    )


def _draw_probability(axes: Axes, probability: NDArray[Any]) -> None:
    colors = np.array([to_rgb(color) for color in _CLASSES.values()])
    weights = probability.data / np.maximum(probability.data.sum(axis=-1, keepdims=True), 1e-6)
    mixed = weights @ colors
    mixed[probability.mask[..., 0]] = to_rgb(_GAP)
    axes.imshow(mixed)
    _label(axes, "Head “probability”", "float32, 320 × 320 × 3; later tile over earlier")
    _legend(axes, [Patch(facecolor=color, edgecolor=_QUIET, label=name) for name, color in _CLASSES.items()])


def _draw_epithelium(axes: Axes, rgb: NDArray[np.uint8], probability: NDArray[Any]) -> None:
    axes.imshow(rgb)
    axes.contour(probability[..., 1].filled(0), levels=[0.5], colors=["#00b8d4"], linewidths=1.6)
    _label(axes, "“probability” on the slide", "outline where epithelium is at least 0.5")


def _draw_stain(axes: Axes, channel: NDArray[Any], colors: LinearSegmentedColormap, name: str) -> None:
    axes.imshow(channel, cmap=colors.with_extremes(bad=_GAP), vmin=0, vmax=255)
    _label(axes, f"Head “stain”: {name}", "uint8, 320 × 320 × 2; later tile over earlier")


def _save(figure: Figure, path: Path) -> None:
    """Write 256 colours instead of millions: a third of the bytes, and no difference to be seen."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(path, format="PNG", optimize=True)

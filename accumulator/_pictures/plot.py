"""Plots by matplotlib, which is imported when the first one is asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs.extras import need
from accumulator._pictures.coverage import coverage
from accumulator._pictures.svg import WRITTEN, color_of_others, counts
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from accumulator._pictures.coverage import Coverage
    from accumulator.typing import RowArray

_MOST_BOXES: Final = 20_000  # that are drawn one by one; more are a raster
_FEW_BOXES: Final = 2000  # that have an edge each
_RASTER_CELLS: Final = 512
_MOST_PX: Final = 2000  # of a map's longer side: more cannot be seen
_MOST_PANELS: Final = 16
_GROUND: Final = "#e4e7eb"
_HATCH: Final = "#a3adb8"


def plot_coverage(
    locs: NDArray[Any], written: NDArray[np.bool_], ax: Axes | None = None, n_left_out: int = 0
) -> Axes:
    """Draw which locations are written and which are missing."""
    need("matplotlib", "plot")
    if ax is None:
        ax = _panels(1)[0]
    shown = coverage(locs, written, _RASTER_CELLS, n_left_out)
    other = color_of_others(shown)
    if shown.note:
        ax.set_title(f"drawn {shown.note}", fontsize="small", wrap=True, pad=20)
    if shown.kind == "boxes" and shown.n <= _MOST_BOXES:
        _draw_boxes(ax, locs, written, other)
    elif shown.kind == "points":
        _draw_points(ax, locs, written, other)
    else:
        _draw_raster(ax, shown, other)
    if shown.kind == "strip":
        ax.set(xlim=(0, max(1, shown.n)), yticks=[], xlabel="row, in canonical order", aspect="auto")
    else:
        left, top, right, bottom = shown.extent
        if shown.kind == "boxes":  # the raster may end behind the last of them
            right, bottom = locs[:, 2:].max(axis=0)
        ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y", aspect="equal")
        ax.ticklabel_format(style="plain", useOffset=False)
    patches: Any = need("matplotlib.patches", "plot")
    ax.legend(
        handles=[patches.Patch(facecolor=color, label=label) for color, label in counts(shown)],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.2,
    )
    return ax


def plot_map(
    array: RowArray,
    *,
    channel: int | None = None,
    ax: Axes | None = None,
    origin: tuple[float, float] = (0, 0),
    title: str | None = None,
) -> list[Axes]:
    """Show a map, one panel a channel; return the panels.

    A map longer than 2000 px is shown by every second pixel, every third and so on, and only these are kept
    in memory. What is missing (NaN, infinite) is hatched.
    """
    need("matplotlib", "plot")
    image, step = _decimated(array, channel)
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    channels = [image] if is_rgb or image.ndim == 2 else [image[..., i] for i in range(image.shape[2])]
    if ax is not None and len(channels) > 1:
        raise OptionError(f"the map has {len(channels)} channels and there is one ax: choose with channel=")
    height, width = array.shape[:2]
    panels = _panels(len(channels), height / width) if ax is None else [ax]
    left, top = origin
    extent = (left, left + width, top + height, top)
    for number, (panel, values) in enumerate(zip(panels, channels, strict=True)):
        names = [] if title is None else [title]
        names += [f"channel {number}"] if len(channels) > 1 else []
        _draw_map(panel, values, extent, ", ".join(names))
        if step > 1:
            panel.set_xlabel(f"x (every {step} px)")
    return panels


def _panels(n: int, ratio: float = 0.75) -> list[Axes]:
    """Return the panels of a new figure, so many times as high as they are wide."""
    pyplot: Any = need("matplotlib.pyplot", "plot")
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    width = 6.4 if n == 1 else 4.2
    height = width * min(2.0, max(0.3, ratio))
    size = (width * columns + 0.6, height * rows + 0.8)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.24)  # inches: it does not reckon with the labels of colorbars
    panels: list[Axes] = list(grid.ravel())
    for unused in panels[n:]:
        figure.delaxes(unused)
    return panels[:n]


def _draw_boxes(ax: Axes, locs: NDArray[Any], written: NDArray[np.bool_], other: str) -> None:
    collections: Any = need("matplotlib.collections", "plot")
    boxes = locs.astype(np.float64)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    for rows, color in ((~written, other), (written, WRITTEN)):
        ax.add_collection(
            collections.PolyCollection(
                corners[rows],
                facecolor=color,
                edgecolor="white",
                linewidth=0.5 if len(locs) <= _FEW_BOXES else 0,
            )
        )


def _draw_points(ax: Axes, locs: NDArray[Any], written: NDArray[np.bool_], other: str) -> None:
    size = 6 if len(locs) < 5000 else 2
    for rows, color in ((~written, other), (written, WRITTEN)):
        ax.plot(locs[rows, 0], locs[rows, 1], "s", color=color, markersize=size, markeredgewidth=0)
    ax.margins(0.02)


def _draw_raster(ax: Axes, shown: Coverage, other: str) -> None:
    colors: Any = need("matplotlib.colors", "plot")
    ends = np.array([colors.to_rgb(other), colors.to_rgb(WRITTEN)])
    share = np.nan_to_num(shown.share)[..., None]
    image = np.dstack([(1 - share) * ends[0] + share * ends[1], ~np.isnan(shown.share)])
    left, top, right, bottom = shown.extent
    ax.imshow(image, extent=(left, right, bottom, top), interpolation="nearest")


def _decimated(array: RowArray, channel: int | None) -> tuple[NDArray[Any], int]:
    """Return every n-th pixel of the channels that are asked for, and n."""
    if array.ndim not in {2, 3} or 0 in array.shape or np.dtype(array.dtype).kind not in "biufc":
        raise OptionError(f"a map is (H, W) or (H, W, C) numbers, not {tuple(array.shape)} {array.dtype}")
    n_channels = array.shape[2] if array.ndim == 3 else 1
    if channel is not None and not (_is_number(channel) and -n_channels <= channel < n_channels):
        raise OptionError(f"channel is {channel!r}, and the map has {n_channels}: the first is 0")
    if channel is None and n_channels > _MOST_PANELS:
        raise OptionError(
            f"the map has {n_channels} channels, and {_MOST_PANELS} are shown: choose with channel="
        )
    step = max(1, math.ceil(max(array.shape[:2]) / _MOST_PX))
    chosen: tuple[Any, ...] = (slice(None, None, step), slice(None, None, step))
    if array.ndim == 3 and channel is not None:
        chosen += (channel % n_channels,)
    elif array.ndim == 3 and n_channels == 1:
        chosen += (0,)
    return np.asarray(array[chosen]), step


def _is_number(raw: Any) -> bool:
    return isinstance(raw, (int, np.integer)) and not isinstance(raw, bool)


def _draw_map(ax: Axes, image: NDArray[Any], extent: tuple[float, float, float, float], title: str) -> None:
    patches: Any = need("matplotlib.patches", "plot")
    left, right, bottom, top = extent
    if image.ndim == 2:
        values = np.abs(image) if image.dtype.kind == "c" else image
        values = values.astype(np.float32) if values.dtype == np.float16 else values
        values = values.astype(np.uint8) if values.dtype.kind == "b" else values
        masked: Any = np.ma.masked_invalid(values)
        if np.ma.is_masked(masked):
            ground = patches.Rectangle((left, top), right - left, bottom - top, zorder=-2)
            ground.set(facecolor=_GROUND, edgecolor=_HATCH, hatch="///", linewidth=0)
            ax.add_patch(ground)
            handle = patches.Patch(facecolor=_GROUND, edgecolor=_HATCH, hatch="///", label="missing")
            ax.legend(handles=[handle], loc="upper right", bbox_to_anchor=(1, -0.08), frameon=False)
        shown = ax.imshow(masked, extent=extent, cmap="viridis", interpolation="nearest")
        if ax.figure is not None and masked.count():
            ax.figure.colorbar(shown, cax=ax.inset_axes((1.03, 0.0, 0.04, 1.0)))  # as high as the map
    else:
        ax.imshow(image, extent=extent, interpolation="nearest")
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
    ax.set_title(title.replace("$", r"\$"), loc="left")  # a name is no formula
    ax.ticklabel_format(style="plain", useOffset=False)

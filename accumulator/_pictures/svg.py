"""A coverage raster as a small inline SVG: no dependency, no script, and no identifier that could clash."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from accumulator._pictures.coverage import Coverage

WRITTEN: Final = "#0f8a7e"
MISSING: Final = "#d9622b"
LEFT_OUT: Final = "#8a97a6"
_LEVELS: Final = 10  # shares that can be told apart
_STRIP_HEIGHT: Final = 12  # px


def color_of_others(shown: Coverage) -> str:
    """Return how all that is not written is drawn: as left out only where nothing is missing."""
    return LEFT_OUT if shown.n_left_out and not shown.n_missing else MISSING


def counts(shown: Coverage) -> list[tuple[str, str]]:
    """Return what the picture shows, as colours and words: a legend."""
    others = [f"{shown.n_missing:,} missing"] if shown.n_missing or not shown.n_left_out else []
    others += [f"{shown.n_left_out:,} left out"] if shown.n_left_out else []
    return [(WRITTEN, f"{shown.n_written:,} written"), (color_of_others(shown), ", ".join(others))]


def describe(shown: Coverage) -> str:
    """Return what the picture shows, as a sentence."""
    n = shown.n - shown.n_left_out
    share = f" ({shown.n_written / n:.1%})" if n else ""
    return (
        f"{shown.n_written} of {n} locations written{share}, {shown.n_missing} missing"
        + f", {shown.n_left_out} left out" * bool(shown.n_left_out)
        + f", drawn {shown.note}" * bool(shown.note)
    )


def as_svg(shown: Coverage, px: int = 180) -> str:
    """Return a raster as an SVG element whose longer side has so many px.

    What is written is green, what is missing orange, or grey where all else is left out, and a cell that
    holds both is green in proportion, over that.
    """
    rows, columns = shown.share.shape
    scale = px / max(rows, columns)
    width, height = columns * scale, rows * scale
    if shown.kind == "strip":
        width, height = float(px), float(_STRIP_HEIGHT)
    listed = ~np.isnan(shown.share)
    levels = np.where(listed, np.ceil(np.nan_to_num(shown.share) * _LEVELS - 1e-9), -1).astype(int)
    # All that is written is never rounded up to: a gap of one row must be seen.
    levels[(levels == _LEVELS) & (shown.share < 1)] = _LEVELS - 1
    parts = [_path(listed & (levels < _LEVELS), color_of_others(shown), 0.75)]
    parts += [_path(levels == level, WRITTEN, level / _LEVELS) for level in range(1, _LEVELS + 1)]
    label = describe(shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{width:.0f}" '
        f'height="{max(1, math.ceil(height))}" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" '
        f'shape-rendering="crispEdges"><title>{label}</title>{"".join(parts)}</svg>'
    )


def _path(cells: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], color: str, opacity: float) -> str:
    """Return all cells as one path, cells beside each other as one rectangle."""
    edges = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), (_, stops) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    if len(rows) == 0:
        return ""
    drawn = "".join(
        f"M{start} {row}h{stop - start}v1h{start - stop}z"
        for row, start, stop in zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
    )
    return f'<path fill="{color}" fill-opacity="{opacity:g}" d="{drawn}"/>'

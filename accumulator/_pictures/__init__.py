"""Pictures of what has been accumulated: for notebooks, for plots, and for the report.

Nothing here reads rows, or writes any: it is given locations and which of them are written.
"""

from __future__ import annotations

from accumulator._pictures.coverage import Coverage, coverage, left_out
from accumulator._pictures.html import as_html, memory_text
from accumulator._pictures.plot import plot_coverage, plot_map
from accumulator._pictures.svg import as_svg, color_of_others, counts, describe

__all__ = [
    "Coverage",
    "as_html",
    "as_svg",
    "color_of_others",
    "counts",
    "coverage",
    "describe",
    "left_out",
    "memory_text",
    "plot_coverage",
    "plot_map",
]

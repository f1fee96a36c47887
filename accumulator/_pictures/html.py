"""What a notebook shows of an accumulator and of a result: a small table beside a picture of the coverage.

No script, and no colour of text or ground: both are the notebook's, light or dark. Names of heads may come
from a stranger, and everything is escaped.
"""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Any, Final

from accumulator._inputs.text import as_text, shape_text, visible
from accumulator._pictures.coverage import coverage
from accumulator._pictures.svg import as_svg, counts

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

_MOST_HEADS: Final = 20  # that are listed
_CELL: Final = "padding:1px 10px 1px 0;text-align:left;vertical-align:top;background:none;border:none"


def as_html(  # noqa: PLR0913, PLR0917  what is shown
    title: str,
    heads: Mapping[str, tuple[tuple[int, ...], str]],
    facts: dict[str, str],
    locs: NDArray[Any],
    written: NDArray[np.bool_],
    n_left_out: int = 0,
) -> str:
    """Return a table of facts and heads, each its shape and dtype, beside a picture of the coverage."""
    shown = coverage(locs, written, n_left_out=n_left_out)
    n = shown.n - n_left_out
    share = f" ({shown.n_written / n:.1%})" if n else ""
    left = f", {n_left_out:,} left out" * bool(n_left_out)
    rows = {"written": f"{shown.n_written:,} of {n:,}{share}, {shown.n_missing:,} missing{left}"} | facts
    if shown.note:
        rows["drawn"] = shown.note
    plain = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:.75">{_escaped(label)}</th>'
        f"{_cells(value)}</tr>"
        for label, value in rows.items()
    )
    names = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in ("head", "shape", "dtype"))
    listed = "".join(
        f"<tr>{_cells(name, shape_text(shape) or '()', dtype)}</tr>"
        for name, (shape, dtype) in itertools.islice(heads.items(), _MOST_HEADS)
    )
    if len(heads) > _MOST_HEADS:
        listed += f'<tr><td colspan="3" style="{_CELL}">and {len(heads) - _MOST_HEADS} more</td></tr>'
    table = f'<table style="border:none;margin:6px 0 0"><tr>{names}</tr>{listed}</table>' if heads else ""
    legend = "".join(
        '<span style="margin-right:12px;white-space:nowrap"><span style="display:inline-block;width:10px;'
        f'height:10px;background:{color};margin-right:5px"></span>{text}</span>'
        for color, text in counts(shown)
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start;font-size:13px;'
        'line-height:1.45;padding:4px 0">'
        f'<div><div style="font-weight:600">{_escaped(title)}</div>'
        f'<table style="border:none;margin:4px 0 0">{plain}</table>{table}</div>'
        f'<div style="padding-top:4px">{as_svg(shown)}<div style="margin-top:4px">{legend}</div></div></div>'
    )


def _cells(*texts: str) -> str:
    return "".join(f'<td style="{_CELL}">{_escaped(text)}</td>' for text in texts)


def _escaped(text: str) -> str:
    return escape(visible(text), quote=True)


def memory_text(held: int, available: int | None) -> str:
    """Return how much memory is held, and how much there is beside it."""
    return as_text(held) + ("" if available is None else f" held, {as_text(available)} available")

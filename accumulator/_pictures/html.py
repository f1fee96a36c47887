"""What a notebook shows of an accumulator and of a result: a small table beside a picture of the coverage.

No script, and no colour of text or ground: both are the notebook's, light or dark. Names of heads may come
from a stranger, and everything is escaped.
"""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Any, Final

from accumulator._inputs.text import as_text, visible
from accumulator._pictures.coverage import coverage
from accumulator._pictures.svg import MISSING, WRITTEN, as_svg

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from accumulator.typing import RowArray

_MOST_HEADS: Final = 20  # that are listed
_CELL: Final = "padding:1px 10px 1px 0;text-align:left;vertical-align:top;background:none;border:none"


def as_html(
    title: str,
    heads: Mapping[str, RowArray],
    facts: dict[str, str],
    locs: NDArray[Any],
    written: NDArray[np.bool_],
) -> str:
    """Return a table of facts and heads beside a picture of the coverage."""
    shown = coverage(locs, written)
    rows = {"written": f"{_share(shown.n_written, shown.n)}, {shown.n - shown.n_written:,} missing", **facts}
    listed = "".join(
        f'<tr><td style="{_CELL}">{shown_text(name)}</td>'
        f'<td style="{_CELL}">{shown_text(" x ".join(map(str, array.shape)) or "()")}</td>'
        f'<td style="{_CELL}">{shown_text(str(array.dtype))}</td></tr>'
        for name, array in itertools.islice(heads.items(), _MOST_HEADS)
    )
    if len(heads) > _MOST_HEADS:
        listed += f'<tr><td colspan="3" style="{_CELL}">and {len(heads) - _MOST_HEADS} more</td></tr>'
    names = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in ("head", "shape", "dtype"))
    table = f'<table style="border:none;margin:6px 0 0"><tr>{names}</tr>{listed}</table>' if heads else ""
    plain = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:normal;opacity:.75">{shown_text(label)}</th>'
        f'<td style="{_CELL}">{shown_text(value)}</td></tr>'
        for label, value in rows.items()
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:20px;align-items:flex-start;font-size:13px;'
        'line-height:1.45;padding:4px 0">'
        f'<div><div style="font-weight:600">{shown_text(title)}</div>'
        f'<table style="border:none;margin:4px 0 0">{plain}</table>{table}</div>'
        f'<div style="padding-top:4px">{as_svg(shown)}{_legend(shown.n, shown.n_written)}</div></div>'
    )


def shown_text(text: str) -> str:
    """Return text as HTML shows it: escaped, no characters that are not to be seen, and not without end."""
    return escape(visible(text), quote=True)


def memory_text(held: int, available: int | None) -> str:
    """Return how much memory is held, and how much there is beside it."""
    return as_text(held) + ("" if available is None else f" held, {as_text(available)} available")


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,}" + (f" ({part / whole:.1%})" if whole else "")


def _legend(n: int, n_written: int) -> str:
    swatches = {"written": (WRITTEN, n_written), "missing": (MISSING, n - n_written)}
    return (
        '<div style="margin-top:4px">'
        + "".join(
            f'<span style="margin-right:12px;white-space:nowrap"><span style="display:inline-block;'
            f'width:10px;height:10px;background:{color};margin-right:5px"></span>{count:,} {label}</span>'
            for label, (color, count) in swatches.items()
        )
        + "</div>"
    )

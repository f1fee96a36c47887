"""The page: one HTML file that asks nobody for anything.

Its template, style and script are files beside this one. A policy in its head lets no other script run and
nothing be fetched. All text is escaped besides, cut and made visible, as names may come from a stranger.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import math
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs.extras import need
from accumulator._inputs.text import as_text, few, shape_text, visible
from accumulator._pictures import as_svg, counts, describe
from accumulator._report.content import gather
from accumulator._report.facts import state_of
from accumulator._report.images import MASKS, RAMP
from accumulator._stores.files.target import check_free, is_inside, write_file
from accumulator.exceptions import OptionError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accumulator._report.content import ChannelNames, Report
    from accumulator._report.histogram import Histogram

_COVERAGE_PX: Final = 380
_HAIR: Final = 1e-9
_MANY: Final = 1000  # of a unit: micrometres become millimetres, and digits get commas


def write_report(  # noqa: PLR0913  what a page has
    store: Path,
    target: Path,
    *,
    refresh: int | None = None,
    replaces: bool = False,
    pixel_size: tuple[float, float] | None = None,
    channel_names: ChannelNames | None = None,
) -> int:
    """Write the report of a store to a file that is not there yet, and return its bytes.

    With ``refresh`` a browser loads it anew every so many seconds; with ``replaces`` the file may be there.
    The size of a pixel, (x, y) in micrometres, is that of a unit of the locations, or of a pixel of maps.
    """
    need("jinja2", "report")  # before much is read
    state_of(store)  # a path that is no store is told of first
    if not replaces:
        check_free(target)
    if is_inside(target, store):
        raise OptionError(f"{target} is in the store: write the report elsewhere")
    if not target.parent.is_dir():
        raise StorageError(errno.ENOENT, "there is no such folder to write the report to", str(target.parent))
    report = gather(store, pixel_size=pixel_size, channel_names=channel_names)
    page = render(report, refresh).encode("utf-8")
    write_file(target, page, replaces=replaces)
    return len(page)


def render(report: Report, refresh: int | None = None) -> str:
    """Return the page, which a browser loads anew every so many seconds, or not."""
    jinja2 = need("jinja2", "report")
    here = files("accumulator._report")
    page, style, script = (here.joinpath(f"page.{end}").read_text("utf-8") for end in ("html", "css", "js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_finalize, trim_blocks=True
    )
    environment.filters |= {
        "bars": _bars,
        "base64": lambda content: base64.b64encode(content).decode(),
        "bytes": as_text,
        "date": _date,
        "describe": describe,
        "counts": counts,
        "duration": lambda seconds: timedelta(seconds=round(seconds)),
        "few": lambda rows: few(rows, 10),
        "length_text": _length,
        "nice": _nice,
        "number": lambda number: f"{number:,}",
        "rgba": lambda color: f"rgb({color[0]} {color[1]} {color[2]} / {color[3] / 255:.2f})",
        "shape": shape_text,
        "short": lambda number: f"{number:.4g}",
        "svg": lambda coverage: as_svg(coverage, _COVERAGE_PX),
    }
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text: str = environment.from_string(page).render(
        report=report,
        title=Path(report.info.path).name,
        style=style,
        script=script,
        digest=digest,
        masks=MASKS,
        ramp=RAMP,
        refresh=refresh,
    )
    return text.lstrip()  # the macros leave empty lines


def _finalize(value: Any) -> Any:
    """Return text cut and visible, as strangers wrote some; it is escaped next, unless it is marked safe."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _bars(histogram: Histogram) -> Iterator[tuple[float | int | str, ...]]:
    """Yield x, width and height of each bar in a box of 500 x 100, its first and last value and its count."""
    counts, edges = histogram.counts, histogram.edges
    middle, span = edges[0] / 2, edges[-1] / 2 - edges[0] / 2  # halves: all of it may be too much for a float
    places = (500 * ((edges / 2 - middle) / span)).round(1)
    heights = np.maximum(0.8, 100 * counts / counts.max()).round(2)
    widths = np.maximum(1.0, np.diff(places) - 0.8).round(1)
    for number in np.flatnonzero(counts).tolist():
        first, last = (f"{edge:.6g}" for edge in edges[number : number + 2])
        yield places[number], widths[number], heights[number], first, last, int(counts[number])


def _nice(whole: float) -> float:
    """Return the length of a scale bar, 1, 2 or 5 of some unit, of at most a quarter of the whole."""
    power = 10.0 ** math.floor(math.log10(whole / 4))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= whole / 4 * (1 + _HAIR))


def _length(number: float, unit: str) -> str:
    """Return a length as people read it: ``1.5 mm`` for 1500 micrometres."""
    if unit == "µm" and number >= _MANY:
        number, unit = number / _MANY, "mm"
    return f"{number:,.0f} {unit}" if number >= _MANY else f"{number:.4g} {unit}"


def _date(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"

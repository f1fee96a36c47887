"""The page: one HTML file that asks nobody for anything.

Style and script are files beside this one, and pictures are in the page itself. A policy in its head lets no
other script run and nothing be fetched; all text is escaped besides, as names may come from a stranger.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from accumulator._inputs.text import as_text
from accumulator._pictures import as_svg, describe, shown_text
from accumulator._report.content import gather
from accumulator._report.images import MASKS, ramp_css
from accumulator._stores import storage_error
from accumulator.exceptions import OptionError, ResultExistsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from accumulator._report.content import HeadReport, Histogram, Report
    from accumulator._report.images import Picture
    from accumulator._report.timing import Timing

_COVERAGE_PX: Final = 380
_STAGE_PX: Final = 620  # of its height
_LISTED: Final = 10  # rows
_KEY: Final = {
    "missing": "missing",
    "unread": "written, not read for this page",
    "damaged": "damaged",
    "strange": "NaN or infinite",
}


def write_report(store: Path, target: Path) -> int:
    """Write the report of a store to a file that is not there yet, and return its bytes.

    Raises
    ------
    ResultExistsError
        Something is at ``target``.
    OptionError
        ``target`` is in the store.
    StorageError
        It cannot be written, or the store cannot be read.
    MissingExtraError, ResultNotFoundError, ResultFormatError
        As in `gather`.
    """
    if os.path.lexists(target):
        raise _exists(target)
    if target.resolve().is_relative_to(store.resolve()):
        raise OptionError(f"{target} is in the store: write the report elsewhere")
    page = render(gather(store)).encode("utf-8")
    try:
        with target.open("xb") as file:
            try:
                file.write(page)
                file.flush()
            except BaseException:
                with contextlib.suppress(OSError):
                    target.unlink()
                raise
    except FileExistsError as cause:
        raise _exists(target) from cause
    except OSError as cause:
        raise storage_error(cause, f"the report cannot be written to {target}") from cause
    return len(page)


def render(report: Report) -> str:
    """Return the page."""
    style = _resource("page.css").replace("RAMP", ramp_css())
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = shown_text(os.path.basename(report.info.path))  # noqa: PTH119  a text, of another system maybe
    heads = "\n".join(_head(number, head) for number, head in enumerate(report.heads))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: accumulator report</title>
<style>{style}</style>
</head>
<body>
<main>
{_header(report, name)}
{_alarm(report)}
{_coverage(report)}
{heads}
{_storage(report)}
{_timing(report.timing)}
<footer>Made by <code>accumulator report</code>. The page needs no network.</footer>
</main>
<script>{script}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    return files("accumulator._report").joinpath(name).read_text(encoding="utf-8")


def _exists(target: Path) -> ResultExistsError:
    return ResultExistsError(
        errno.EEXIST, "something is there already: write the report elsewhere or remove it first", str(target)
    )


def _header(report: Report, name: str) -> str:
    found, shown = report.info, report.coverage
    state = found.state + (", being written" if found.is_locked else "")
    if found.state == "running" and found.is_locked is False:
        state = "not complete, nobody is writing it"
    share = f"{shown.n_written / shown.n:.1%}" if shown.n else "0"
    figures = {
        "of the locations written": share,
        "written": f"{shown.n_written:,}",
        "missing": f"{shown.n - shown.n_written:,}",
        "heads": str(len(report.heads)),
        "bytes of all heads": as_text(sum(head.details["nbytes"] for head in report.heads)),
        "on disk": as_text(found.disk_nbytes),
    }
    listed = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in figures.items())
    token = "" if found.resume_token is None else f"resume_token: {shown_text(found.resume_token)}"
    return f"""<header class="card">
<div class="title"><h1>{name}</h1><span class="pill">{state}</span></div>
<p class="path">{shown_text(found.path)}</p>
<p class="quiet">{token}</p>
<dl class="figures">{listed}</dl>
</header>"""


def _alarm(report: Report) -> str:
    """Return what was found damaged, if anything was."""
    lines = []
    for head in report.heads:
        damaged, n_lost = head.reading.damaged, len(head.reading.lost)
        if len(damaged):
            lost = f", and {n_lost} rows share chunks with them" if n_lost else ""
            rows = f"{len(damaged)} damaged rows: {_rows(damaged.tolist())}{lost}"
            lines.append(f"<p>Head {shown_text(head.name)}: {rows}.</p>")
    if not lines:
        return ""
    return f"""<section class="card alarm" role="alert" aria-label="Damage">
<h2>Damaged rows</h2>
{"".join(lines)}
<p>Only what was read for this page was checked: <code>accumulator verify</code> checks every byte, and a run
that is resumed predicts damaged rows again.</p>
</section>"""


def _coverage(report: Report) -> str:
    shown = report.coverage
    counts = {
        "written": ("--written", shown.n_written),
        "missing": ("--missing", shown.n - shown.n_written),
    }
    legend = "".join(
        f'<li><span class="swatch" style="background: var({color})"></span>{count:,} {label}</li>'
        for label, (color, count) in counts.items()
    )
    if shown.kind == "strip":
        kind = (
            "Rows in canonical order, from left to right: locations of "
            f"{report.info.n_columns} numbers are neither boxes nor points of a plane."
        )
    else:
        kind = "Each location where it lies; y goes downwards. Cells with both are green in proportion."
    return f"""<section class="card" aria-labelledby="coverage">
<h2 id="coverage">Coverage</h2>
<div class="coverage">{as_svg(shown, _COVERAGE_PX)}
<div style="flex: 1 1 260px"><p>{describe(shown)}.</p><ul class="legend">{legend}</ul>
<p class="quiet">{kind} <code>accumulator missing</code> lists what is missing.</p></div></div>
</section>"""


def _head(number: int, head: HeadReport) -> str:
    name = shown_text(head.name)
    shape = shown_text(" x ".join(map(str, head.details["shape"])))
    if head.pictures:
        shown = _viewer(number, head, name)
    else:
        shown = f'<p class="quiet">No map: {shown_text(head.no_map)}.</p>'
    return f"""<section class="card head" aria-labelledby="head-{number}">
<h2 id="head-{number}">{name}</h2>
<p class="quiet">{shape} {shown_text(head.details["dtype"])}. {_sampling(head)}</p>
<div>{shown}</div>
{_histogram(head.histogram, name)}
</section>"""


def _sampling(head: HeadReport) -> str:
    """Return what of a head is shown."""
    if not head.pictures:
        return ""
    width, height = head.map_size
    texts = [f"The whole map has {width:,} x {height:,} px"]
    texts[0] += f", of which one in {head.step} along each side is shown." if head.step > 1 else "."
    texts.append("Patches are not blended here: later ones lie over earlier ones, so that seams show.")
    reading = head.reading
    if reading.n_met < reading.n_wanted:
        texts.append(
            f"Of {reading.n_wanted:,} rows, {reading.n_met:,} in evenly chosen chunks were read: "
            f"{as_text(reading.most_nbytes)} are the most."
        )
    if len(reading.lost):
        texts.append(
            f"{len(reading.lost):,} rows could not be read: they share chunks with damaged rows, or were "
            "just being replaced."
        )
    n_channels = sum(picture.label.startswith("channel") for picture in head.pictures)
    if n_channels < head.n_channels:
        texts.append(f"The first {n_channels} of {head.n_channels} channels are shown.")
    return " ".join(texts)


def _viewer(number: int, head: HeadReport, name: str) -> str:
    views = "".join(_view(picture, name, len(head.pictures)) for picture in head.pictures)
    options = "".join(f"<option>{picture.label}</option>" for picture in head.pictures)
    chooser = ""
    if len(head.pictures) > 1:
        chooser = (
            f'<label for="channel-{number}">Show</label>'
            f'<select id="channel-{number}" autocomplete="off">{options}</select>'
        )
    return f"""<div data-viewer="{number}">
<div class="tools" hidden>{chooser}
<div class="zoom" role="group" aria-label="Zoom">
<button type="button" data-action="out" aria-label="Zoom out">&minus;</button>
<button type="button" data-action="in" aria-label="Zoom in">+</button>
<button type="button" data-action="reset">Whole map</button>
</div></div>
{views}
</div>"""


def _view(picture: Picture, name: str, n_pictures: int) -> str:
    source = base64.b64encode(picture.png).decode()
    which = f", {picture.label}" if n_pictures > 1 or picture.label == "as colours" else ""
    values = f", values from {picture.low} to {picture.high}" if picture.low else ""
    ramp = ""
    if picture.low:
        ramp = f'<div class="ramp"><span>{picture.low}</span><i></i><span>{picture.high}</span></div>'
    style = (
        f"aspect-ratio: {picture.width} / {picture.height}; "
        f"max-width: {max(80, round(_STAGE_PX * picture.width / picture.height))}px"
    )
    return f"""<figure class="view" data-view>
<div class="stage" role="group" style="{style}"
 aria-label="Map that zooms: plus and minus zoom, arrows move, 0 shows all">
<img src="data:image/png;base64,{source}" width="{picture.width}" height="{picture.height}" draggable="false"
 alt="Map of head {name}{which}{values}"></div>
<figcaption>{ramp}{_key(picture)}</figcaption>
</figure>"""


def _key(picture: Picture) -> str:
    """Return what hatched places mean."""
    spans = []
    for mask, label in _KEY.items():
        if mask not in picture.masks:
            continue
        plain, line = MASKS[mask]
        colors = [f"rgb({r} {g} {b} / {alpha / 255:.2f})" for r, g, b, alpha in (plain, line)]
        color = f"repeating-linear-gradient(135deg, {colors[0]} 0 3px, {colors[1]} 3px 5px)"
        spans.append(f'<span><span class="swatch" style="background: {color}"></span>{label}</span>')
    return f'<div class="key">{"".join(spans)}</div>' if spans else ""


def _histogram(histogram: Histogram | None, name: str) -> str:
    if histogram is None:
        return '<div class="quiet">No values to count.</div>'
    most = max(1, int(histogram.counts.max()))
    low, high = histogram.edges[0], histogram.edges[-1]
    span = high / 2 - low / 2 or 1.0
    bars = []
    for count, start, stop in zip(
        histogram.counts.tolist(), histogram.edges[:-1].tolist(), histogram.edges[1:].tolist(), strict=True
    ):
        left, right = (500 * (edge / 2 - low / 2) / span for edge in (start, stop))
        if count:
            height, width = max(0.8, 100 * count / most), max(1.0, right - left - 0.8)
            bars.append(
                f'<rect x="{left:.1f}" y="{100 - height:.2f}" width="{width:.1f}" height="{height:.2f}">'
                f"<title>{start:.6g} to {stop:.6g}: {count:,}</title></rect>"
            )
    ends = f"{histogram.low:.4g}", f"{histogram.median:.4g}", f"{histogram.high:.4g}"
    strange = f", {histogram.n_strange:,} of them NaN or infinite" if histogram.n_strange else ""
    counted = f"{histogram.n_values:,} values of {histogram.n_rows:,} rows, evenly chosen{strange}."
    label = f"Histogram of head {name}: lowest {ends[0]}, median {ends[1]}, highest {ends[2]}"
    return f"""<div class="histogram"><h3>Values</h3>
<svg viewBox="0 0 500 100" preserveAspectRatio="none" role="img" aria-label="{label}">{"".join(bars)}</svg>
<div class="ends"><span>{ends[0]}</span><span>median {ends[1]}</span><span>{ends[2]}</span></div>
<p class="quiet">{counted}</p></div>"""


def _storage(report: Report) -> str:
    columns = (
        "head",
        "shape",
        "dtype",
        "chunks",
        "shards",
        "codecs",
        "fill value",
        "bytes",
        "on disk",
        "files",
    )
    numbers = {"bytes", "on disk", "files"}
    titles = "".join(f'<th scope="col"{_number_class(column in numbers)}>{column}</th>' for column in columns)
    rows = []
    for head in report.heads:
        details = head.details
        cells = {
            "shape": _shape(details["shape"]),
            "dtype": details["dtype"],
            "chunks": _shape(details["chunks"]),
            "shards": "none" if details["shards"] is None else _shape(details["shards"]),
            "codecs": " ".join(details["codecs"]),
            "fill value": str(details["fill_value"]),
            "bytes": as_text(details["nbytes"]),
            "on disk": as_text(head.disk_nbytes),
            "files": f"{details['files']:,}",
        }
        listed = "".join(
            f"<td{_number_class(column in numbers)}>{shown_text(value)}</td>"
            for column, value in cells.items()
        )
        rows.append(f'<tr><th scope="row">{shown_text(head.name)}</th>{listed}</tr>')
    return f"""<section class="card" aria-labelledby="storage">
<h2 id="storage">Storage</h2>
<div class="scroll" tabindex="0" role="region" aria-labelledby="storage">
<table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class="quiet">Bytes are those of all rows as if dense; files are those once all rows have come.</p>
</section>"""


def _timing(times: Timing) -> str:
    rows = {
        "created": _date(times.created),
        "rows recorded last": _date(times.recorded),
        "finished": _date(times.finished) if times.finished else "not yet",
    }
    if times.rows_per_second is not None and times.seconds is not None:
        rows["duration"] = _duration(times.seconds)
        rows["rows per second"] = f"{times.rows_per_second:,.3g}, pauses included"
        why = "By the times of the files, in UTC: a copy of a store may not have them."
    else:
        why = (
            "By the times of the files, in UTC. How long the run took they do not tell: the store was saved "
            "when it was over, or took less than a second."
        )
    listed = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows.items())
    return f"""<section class="card" aria-labelledby="timing">
<h2 id="timing">Timing</h2>
<dl class="times">{listed}</dl>
<p class="quiet">{why}</p>
</section>"""


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min {rest} s"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _rows(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _LISTED:,} more" if len(rows) > _LISTED else ""
    return ", ".join(map(str, rows[:_LISTED])) + more


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _number_class(is_number: bool) -> str:  # noqa: FBT001  what a cell is
    return ' class="number"' if is_number else ""

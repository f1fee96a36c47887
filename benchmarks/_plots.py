"""A few plots of what was measured, where matplotlib is installed; drawn from medians, with ranges."""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

try:
    from matplotlib.figure import Figure
except ImportError:  # not in the group that tests are run with
    Figure = None

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from benchmarks._questions import Result

_OURS: Final = "accumulator"
_COLOR, _OTHERS, _LIMIT = "#1f77b4", "#b0b7bf", "#d62728"


def draw(results: Sequence[Result], folder: Path) -> dict[str, str]:
    """Draw what there are results for; return captions and paths beside the page."""
    if Figure is None:
        return {}
    by_name = {result.workload.name: result for result in results}
    images = {}
    for file, (names, caption, plot) in _PLOTS.items():
        chosen = [by_name[name] for name in names if name in by_name]
        if chosen:
            folder.mkdir(exist_ok=True)
            figure = plot(chosen)
            # Without a date, and with fixed ids, the same numbers make the same file.
            figure.savefig(folder / file, format="svg", bbox_inches="tight", metadata={"Date": None})
            images[caption] = f"{folder.name}/{file}"
    return images


def _disk_times(results: Sequence[Result]) -> Any:
    """Draw times relative to the better raw write of the round."""
    (result,) = results
    raw = [entry for entry in result.workload.entries if entry.startswith("raw write")]
    bars = defaultdict(list)
    for one in result.rounds:
        limit = min(one[entry]["seconds"] for entry in raw if entry in one)
        for entry, metrics in one.items():
            bars[entry].append(metrics["seconds"] / limit)
    figure, axes = _axes(0.36 * len(bars) + 0.9)
    _bars(axes, bars, "{:.2f}")
    axes.axvline(1, color=_LIMIT, linewidth=1)
    axes.set_xlabel("time / time of the better raw write")
    return figure


def _memory(results: Sequence[Result]) -> Any:
    figure, axes = _axes(0.36 * sum(len(result.workload.entries) for result in results) + 0.9)
    bars = {
        f"{entry} ({_PLACES[result.workload.name]})": [run["peak_nbytes"] / 1e9 for run in result.runs(entry)]
        for result in results
        for entry in result.workload.entries
        if result.runs(entry)
    }
    _bars(axes, bars, "{:.2f}")
    axes.set_xlabel("peak memory, GB")
    return figure


def _growth(results: Sequence[Result]) -> Any:
    (result,) = results
    lines = defaultdict(list)
    for entry in result.workload.entries:
        who, _, size = entry.partition(", N = ")
        if result.runs(entry):
            seconds = median(run["seconds"] for run in result.runs(entry))
            lines[who].append((int(size.replace(",", "")), seconds))
    figure, axes = _axes(4.2)
    names = {"RAM": f"{_OURS}, RAM", "zarr": f"{_OURS}, zarr"}
    for who, points in lines.items():
        style = {"linewidth": 2.2} if who in names else {"linewidth": 1.2, "linestyle": "--"}
        axes.loglog(*zip(*points, strict=True), marker="o", label=names.get(who, who), **style)
    axes.set_xlabel("N")
    axes.set_ylabel("whole run, s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _bars(axes: Any, bars: Mapping[str, Sequence[float]], shown: str) -> None:
    """Draw horizontal bars of medians, with lines from least to most."""
    middles = [median(values) for values in bars.values()]
    spreads = [
        [middle - min(values) for middle, values in zip(middles, bars.values(), strict=True)],
        [max(values) - middle for middle, values in zip(middles, bars.values(), strict=True)],
    ]
    colors = [_COLOR if re.match(_OURS, name) else _OTHERS for name in bars]
    drawn = axes.barh(list(bars), middles, xerr=spreads, color=colors, error_kw={"linewidth": 0.8})
    axes.bar_label(drawn, [f" {shown.format(middle)}" for middle in middles], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _axes(height: float) -> tuple[Any, Any]:
    figure = Figure(figsize=(7.5, height))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


_PLACES: Final = {"disk": "disk", "ram": "RAM"}
_PLOTS: Final[Mapping[str, tuple[Sequence[str], str, Callable[[Sequence[Result]], Any]]]] = {
    "benchmark-disk.svg": (
        ("disk",),
        "`disk`: time relative to the better raw write of the same round; the thin lines show the range.",
        _disk_times,
    ),
    "benchmark-growth.svg": (("growth",), "`growth`: time of the whole run against N.", _growth),
    "benchmark-memory.svg": (
        ("disk", "ram"),
        "`disk` and `ram`: peak memory; pages of mapped files count.",
        _memory,
    ),
}

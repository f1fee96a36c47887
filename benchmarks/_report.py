"""What was measured as one Markdown page: answers and targets, raw medians, machine, how to run again."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks._workloads import Question, Workload

    Rounds = Sequence[Mapping[str, Mapping[str, float]]]
    """For each round every entry's metrics."""

_INTRODUCTION: Final = """\
Written by `python -m benchmarks`, which takes a quarter of an hour, 4 GB of memory and 2 GB of disk. With
`--only ram` it runs one workload and prints; with `--smoke`, all of them in tiny sizes, whose times mean
nothing."""

_METHOD: Final = """\
Every timed run is a process of its own. The runs of a workload take turns, round after round, in an order
that is reversed every other time, and a ratio is taken within its round. Shown are the median of the
rounds, the middle half of them, and all. A target is held against the median. Rounds: {rounds}.

Locations and batches are made before the clock starts; batches come from a pool of four, used round and
round, the same for everybody. Time runs from construction to the complete result, allocation included.
What an earlier run left to be written is synced before the next starts. As much memory as a run may need
is touched and freed before its clock starts: where the host of a virtual machine takes free memory back,
the first touch of a page was measured to cost twenty times as much as the next.

Peak memory is VmHWM, set back through `/proc/self/clear_refs` (5) right before the clock starts, less the
VmRSS of that moment: what imports and inputs take does not count. `ru_maxrss` is not used, as a process
inherits it from the one that started it. Disk is what the files take in blocks, holes left out, as `du`
counts it."""

_UNITS: Final[Mapping[str, Callable[[float], str]]] = {
    "seconds": lambda value: f"{value:.3g} s",
    "push_us": lambda value: f"{value:.1f} µs",
    "match_us": lambda value: f"{value:.1f} µs",
    "location_ns": lambda value: f"{value:.0f} ns/location",
    "peak_nbytes": lambda value: f"{value / 1e6:.1f} MB",
    "disk_nbytes": lambda value: f"{value / 1e6:.1f} MB",
    "same": lambda value: "yes" if value == 1 else "NO",
}
_RAW: Final = {
    "seconds": "whole run",
    "push_us": "a push",
    "peak_nbytes": "peak memory",
    "disk_nbytes": "on disk",
}


def report(results: Sequence[tuple[Workload, Rounds]]) -> str:
    """Return the page."""
    answers = [
        _row(workload.name, question.text, *_answer(question, rounds))
        for workload, rounds in results
        for question in workload.questions
    ]
    raw = [
        _row(workload.name, entry, *_medians([each[entry] for each in rounds]))
        for workload, rounds in results
        for entry in workload.entries
    ]
    parts = [
        "# Benchmarks",
        _INTRODUCTION,
        "## Workloads",
        "\n".join(f"- `{workload.name}`: {workload.text}" for workload, _ in results),
        "## Answers",
        _table(["workload", "what", "measured", "middle half", "range", "target", "met"], answers),
        "## Medians",
        _table(["workload", "entry", *_RAW.values()], raw),
        "## How it is measured",
        _METHOD.format(rounds=", ".join(f"{len(rounds)} for `{each.name}`" for each, rounds in results)),
        "## Machine",
        "\n".join(f"- {fact}" for fact in _machine()),
    ]
    return "\n\n".join(parts) + "\n"


def _answer(question: Question, rounds: Rounds) -> tuple[str, ...]:
    values = [question.value(each) for each in rounds]
    shown = _UNITS[question.top[1]] if question.bottom is None else "{:.2f}".format
    low, lower, upper, high = (shown(each) for each in np.percentile(values, [0, 25, 75, 100]))
    half = lower if lower == upper else f"{lower} to {upper}"
    spread = low if low == high else f"{low} to {high}"
    target = ""
    if question.at_most is not None:
        target = f"at most {shown(question.at_most)}"
    elif question.at_least is not None:
        target = (
            shown(question.at_least) if question.top[1] == "same" else f"at least {shown(question.at_least)}"
        )
    met = {True: "yes", False: "**no**", None: ""}[question.is_met(median(values))]
    return shown(median(values)), half, spread, target, met


def _medians(runs: Sequence[Mapping[str, float]]) -> Iterable[str]:
    for metric in _RAW:
        known = metric in runs[0]
        yield _UNITS[metric](median(run[metric] for run in runs)) if known else ""


def _machine() -> list[str]:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chosen = huge.read_text(encoding="ascii").strip() if huge.exists() else "unknown"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "zarr", "accumulator"))
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return [
        f"{os.cpu_count()} cores ({platform.machine()}), {memory / 1e9:.0f} GB of memory, {kernel}",
        f"transparent huge pages: {chosen} (NumPy asks for them for large arrays)",
        f"Python {platform.python_version()}, {libraries}",
    ]


def _table(header: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([_row(*header), _row(*("---" for _ in header)), *rows])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

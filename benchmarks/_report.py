"""What was measured as one Markdown page: answers and targets, raw medians, machine, how to run again."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from benchmarks._questions import Question, Result

_INTRODUCTION: Final = """\
Written by `python -m benchmarks`, which takes an hour or more, 14 GB of memory and 20 GB of disk where
`TMPDIR` is. The libraries that accumulator is held against are in the dependency group `bench`:
`pip install -e . --group bench`; those that are not installed are left out. With `--only ram` it runs one
workload and prints; with `--smoke`, all of them in tiny sizes, whose times mean nothing."""

_METHOD: Final = """\
Every timed run is a process of its own. The runs of a workload take turns, round after round, in an order
that is reversed every other time, and a ratio is taken within its round. Shown are the median of the
rounds, the middle half of them, and all. A target is held against the median. Rounds: {rounds}.
The slowest entries run in fewer.

Locations and batches are made before the clock starts; batches come from a pool of four (for stitching, of
0.8 GB), used round and round, the same for everybody. Time runs from construction to the complete result,
allocation included. What an earlier run left to be written is synced before the next starts. As much memory
as a run may need is touched and freed before its clock starts: where the host of a virtual machine takes
free memory back, the first touch of a page was measured to cost twenty times as much as the next.

Peak memory is VmHWM, set back through `/proc/self/clear_refs` (5) right before the clock starts, less the
VmRSS of that moment: what imports and inputs take does not count. `ru_maxrss` is not used, as a process
inherits it from the one that started it. Disk is what the files take in blocks, holes left out, as `du`
counts it. CPU time is user and system of all threads of the run. Where a run is synced, `os.sync` is inside
of its clock; CPU time that the kernel spends in threads of its own to write the pages is not seen. All
runs have BLAS on one thread; torch, which MONAI and torchio compute with, has all cores."""


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.1f} MB"


_UNITS: Final[Mapping[str, Callable[[float], str]]] = {
    "seconds": _seconds,
    "cpu_seconds": _seconds,
    "gb_cpu_seconds": lambda value: f"{value:.2f} s/GB",
    "output_gb_s": lambda value: f"{value:.2f} GB/s",
    "loop_s": _seconds,
    "longest_push_s": _seconds,
    "finalize_s": _seconds,
    "resume_s": _seconds,
    "push_us": lambda value: f"{value:.1f} µs",
    "match_us": lambda value: f"{value:.1f} µs",
    "location_ns": lambda value: f"{value:.0f} ns/location",
    "published_gb_s": lambda value: f"{value:.2f} GB/s",
    "of_allowed": lambda value: f"{value:.2f}",
    "of_alone": lambda value: f"{value:.2f}",
    "record_nbytes": lambda value: f"{value:.1f} bytes",
    "row_nbytes": lambda value: f"{value:.1f} bytes",
    "peak_nbytes": _megabytes,
    "group_peak_nbytes": _megabytes,
    "disk_nbytes": _megabytes,
    "limit_met": lambda value: f"{value:,.0f}",
    "oom_kills": lambda value: f"{value:.0f}",
    "same": lambda value: "yes" if value == 1 else "NO",
    "finished": lambda value: "yes" if value == 1 else "NO",
}
_LIBRARIES: Final = (
    "numpy",
    "zarr",
    "numcodecs",
    "full-batch-accumulator",
    "tensorstore",
    "h5py",
    "tiatoolbox",
    "monai",
    "torchio",
    "tiler",
    "torch",
)
_RAW: Final = {
    "seconds": "whole run",
    "cpu_seconds": "CPU time",
    "push_us": "a push",
    "peak_nbytes": "peak memory",
    "disk_nbytes": "on disk",
}


def report(results: Sequence[Result], images: Mapping[str, str] | None = None) -> str:
    """Return the page; ``images`` are captions and paths."""
    answers = [
        _row(result.workload.name, question.text, *_answer(question, result))
        for result in results
        for question in result.workload.questions
    ]
    raw = [
        _row(result.workload.name, entry, *_medians(result, entry))
        for result in results
        for entry in result.workload.entries
    ]
    plots = [f"![{caption}]({path})\n\n{caption}" for caption, path in (images or {}).items()]
    rounds = ", ".join(f"{len(each.rounds)} for `{each.workload.name}`" for each in results)
    parts = [
        "# Benchmarks",
        _INTRODUCTION,
        "## Workloads",
        "\n".join(f"- `{each.workload.name}`: {each.workload.text}" for each in results),
        *(["## Plots", *plots] if plots else []),
        "## Answers",
        _table(["workload", "what", "measured", "middle half", "range", "target", "met"], answers),
        "## Medians",
        _table(["workload", "entry", *_RAW.values()], raw),
        "## How it is measured",
        _METHOD.format(rounds=rounds),
        "## Machine",
        "\n".join(f"- {fact}" for fact in _machine()),
    ]
    return "\n\n".join(parts) + "\n"


def _answer(question: Question, result: Result) -> tuple[str, ...]:
    shown = "{:.2f}".format if question.unit is None else _UNITS[question.unit]
    target = ""
    if question.at_most is not None:
        target = f"at most {shown(question.at_most)}"
    elif question.at_least is not None:
        least = shown(question.at_least)
        target = least if question.unit in {"same", "finished"} else f"at least {least}"
    values = result.answers(question)
    if not values:
        reasons = {result.absent[entry] for entry in question.entries if entry in result.absent}
        return f"not measured: {'; '.join(sorted(reasons)) or 'it was killed'}", "", "", target, ""
    low, lower, upper, high = (shown(each) for each in np.percentile(values, [0, 25, 75, 100]))
    half = lower if lower == upper else f"{lower} to {upper}"
    spread = low if low == high else f"{low} to {high}"
    missed = f"**no**: {question.reason}" if question.reason else "**no**"
    met = {True: "yes", False: missed, None: ""}[question.is_met(median(values))]
    return shown(median(values)), half, spread, target, met


def _medians(result: Result, entry: str) -> Iterable[str]:
    if entry in result.absent:
        return [f"left out: {result.absent[entry]}", *[""] * (len(_RAW) - 1)]
    runs = result.runs(entry)
    return [
        _UNITS[metric](median(run[metric] for run in runs)) if metric in runs[0] else "" for metric in _RAW
    ]


def _machine() -> list[str]:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    chosen = huge.read_text(encoding="ascii").strip() if huge.exists() else "unknown"
    libraries = ", ".join(f"{name} {known}" for name in _LIBRARIES if (known := _version(name)))
    kernel = f"{platform.system()} {platform.release().split('-')[0]}"
    return [
        f"{os.cpu_count()} cores ({platform.machine()}), {memory / 1e9:.0f} GB of memory, {kernel}",
        f"transparent huge pages: {chosen} (NumPy asks for them for large arrays)",
        f"Python {platform.python_version()}, {libraries}",
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _table(header: Sequence[str], rows: Iterable[str]) -> str:
    return "\n".join([_row(*header), _row(*("---" for _ in header)), *rows])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"

"""The command line: runs the workloads in rounds, and writes the page."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks._measure import measure
from benchmarks._outcome import UnavailableError
from benchmarks._plots import draw
from benchmarks._questions import Result
from benchmarks._report import report
from benchmarks._workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks._questions import Round, Workload

_PAGE: Final = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def run_rounds(workload: Workload, n_rounds: int) -> Result:
    """Run every entry once a round, in an order that turns round each time."""
    rounds: list[Round] = []
    absent: dict[str, str] = {}
    total = n_rounds * workload.repeats
    for number in range(total):
        print(f"{workload.name}: round {number + 1} of {total}", file=sys.stderr, flush=True)
        names = [
            name
            for name in workload.entries
            if name not in absent and number < workload.seldom.get(name, total)
        ]
        metrics = {}
        for name in names[:: 1 if number % 2 == 0 else -1]:
            try:
                metrics[name] = measure(workload.entries[name])
            except UnavailableError as reason:
                absent[name] = str(reason)
        rounds.append(metrics)
        if set(absent) == set(workload.entries):
            break
    return Result(workload, rounds, absent)


def _hasty(workload: Workload) -> Workload:
    """Return a workload that leaves out what only makes times comparable."""
    entries = {name: replace(run, spare=0) for name, run in workload.entries.items()}
    return replace(workload, entries=entries)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure accumulator.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once: does it run?")
    parser.add_argument(
        "--only", nargs="+", choices=WORKLOADS, metavar="NAME", help=f"some of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--rounds", type=int, help="default 3, with --smoke 1; some workloads run more")
    parser.add_argument(
        "--output",
        type=Path,
        help="default docs/benchmarks.md, plots in images/ beside it; with --smoke or --only just printed",
    )
    options = parser.parse_args(arguments)

    n_rounds = options.rounds or (1 if options.smoke else 3)
    names = options.only or list(WORKLOADS)
    workloads = [WORKLOADS[name](is_smoke=options.smoke) for name in names]
    if options.smoke:
        workloads = [_hasty(workload) for workload in workloads]
    # Times of a smoke run say nothing: two workloads may run side by side.
    with ThreadPoolExecutor(max_workers=2 if options.smoke else 1) as pool:
        results = list(pool.map(partial(run_rounds, n_rounds=n_rounds), workloads))
    output = options.output or (None if options.smoke or options.only else _PAGE)
    images = {} if output is None else draw(results, output.parent / "images")
    page = report(results, images)
    print(page)
    if output is not None:
        output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The command line: runs the workloads in rounds, and writes the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks._measure import measure
from benchmarks._report import report
from benchmarks._workloads import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks._report import Rounds
    from benchmarks._workloads import Workload

_PAGE: Final = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def run_rounds(workload: Workload, n_rounds: int) -> Rounds:
    """Run every entry once a round, in an order that turns round each time."""
    rounds = []
    total = n_rounds * workload.repeats
    for number in range(total):
        print(f"{workload.name}: round {number + 1} of {total}", file=sys.stderr, flush=True)
        names = list(workload.entries)[:: 1 if number % 2 == 0 else -1]
        rounds.append({name: measure(workload.entries[name]) for name in names})
    return rounds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure accumulator.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, once: does it run?")
    parser.add_argument("--only", choices=WORKLOADS, metavar="NAME", help=f"one of {', '.join(WORKLOADS)}")
    parser.add_argument("--rounds", type=int, help="default 5, with --smoke 1")
    parser.add_argument(
        "--output", type=Path, help="default docs/benchmarks.md; with --smoke or --only it is just printed"
    )
    options = parser.parse_args(arguments)

    n_rounds = options.rounds or (1 if options.smoke else 5)
    names = [options.only] if options.only else list(WORKLOADS)
    workloads = [WORKLOADS[name](is_smoke=options.smoke) for name in names]
    page = report([(workload, run_rounds(workload, n_rounds)) for workload in workloads])
    print(page)
    output = options.output or (None if options.smoke or options.only else _PAGE)
    if output is not None:
        output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

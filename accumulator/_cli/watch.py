"""The command ``accumulator watch``: a run while it goes on, in the terminal or in a page."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accumulator._cli.shared import add_command, let_go
from accumulator._inputs.text import encodable
from accumulator._report.live import Watch, glimpse
from accumulator._report.page import write_report

if TYPE_CHECKING:
    from collections.abc import Callable

_DESCRIPTION: Final = """\
Shows how far a run is, again and again until it is complete: which locations have come, how many, how fast,
how long it will take, and what each rank does. Nothing is changed, and nobody is disturbed.

It sees what the run has recorded: what was pushed since its last checkpoint is not there yet. On a terminal
the picture is drawn over until Ctrl-C, also while nobody writes the run, which may be resumed. Elsewhere
there is a line a look, when something has changed, and two looks at a run that nobody writes are the last.

With --report it also writes the page of accumulator report, again and again; a browser that shows it loads it
anew by itself, until the run is complete.
"""
_EXAMPLES: Final = """\
examples:
  accumulator watch run.zarr
  accumulator watch run.zarr --report live.html --every 30    open live.html in a browser, and leave it open

exit codes: 0 the run is complete, or nobody reads any more, 1 no store, one that cannot be read, or one that
nobody writes and that is not complete, 2 wrong arguments, 130 Ctrl-C
"""
_MOST_CELLS: Final = 64  # characters of the picture
_LEAST_CELLS: Final = 8
_SHARE: Final = 10  # a look takes a tenth of the time at most


def add_watch(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the others."""
    short = "show how far a run is, until it is complete"
    parser = add_command(add, "watch", _watch, short, _DESCRIPTION, _EXAMPLES)
    parser.add_argument("path", type=Path, metavar="PATH", help="the store's folder")
    parser.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="between two looks (default: 2)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="a page, not there yet, that each look writes",
    )


def _watch(arguments: argparse.Namespace) -> int:
    try:
        return _look_on(arguments)
    except BrokenPipeError:  # nobody watches any more
        let_go()
        return 0


def _look_on(arguments: argparse.Namespace) -> int:
    watch, n_drawn, last, is_first, was_left = Watch(), 0, "", True, False
    is_terminal = sys.stdout.isatty()
    while True:
        start = time.monotonic()
        look = glimpse(arguments.path)
        watch.add(look)
        if arguments.report is not None:
            refresh = None if look.is_over else math.ceil(arguments.every)
            write_report(arguments.path, arguments.report, refresh=refresh, replaces=not is_first)
        lines = _lines(watch) if is_terminal else [encodable(line, sys.stdout) for line in watch.lines()]
        if is_terminal:
            sys.stdout.write(f"\x1b[{n_drawn}F\x1b[J" * bool(n_drawn) + "\n".join(lines) + "\n")
            n_drawn = len(lines)
        elif is_first or look.is_over or f"{look.n_written} {look.is_left}" != last:
            print("\n".join(lines))
        last, is_first = f"{look.n_written} {look.is_left}", False
        sys.stdout.flush()
        if look.is_over:
            return 0
        if look.is_left and was_left and not is_terminal:
            return 1  # what waits for this command would wait for ever
        was_left = look.is_left
        time.sleep(max(arguments.every, _SHARE * (time.monotonic() - start)))


def _lines(watch: Watch) -> list[str]:
    """Return what fits on the terminal: a character is twice as high as wide."""
    size = shutil.get_terminal_size()
    cells = min(_MOST_CELLS, size.columns - 1, 2 * (size.lines - 2 - len(watch.looks[-1].parts)))
    is_plain = "█" not in encodable("█", sys.stdout)
    lines = watch.lines(cells if cells >= _LEAST_CELLS else 0, is_plain=is_plain)
    most = max(1, size.columns - 1)
    shown = [encodable(line, sys.stdout) for line in lines]
    return [part for line in shown for part in ([line] if len(line) <= most else textwrap.wrap(line, most))]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds, above 0 and at most a day")
    return seconds

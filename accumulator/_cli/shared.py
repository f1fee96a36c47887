"""What commands share: how they are added and read, and how they print what they found."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from accumulator._cli.words import tell
from accumulator._inputs.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_NEGATIVE: Final = re.compile(r"-\.?\d[^=]*")


class Found(Protocol):
    """What a command found."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""

    def lines(self) -> Iterable[str]:
        """Return what is printed for people."""


class Parser(argparse.ArgumentParser):
    """A parser that takes ``--origin -32,0``, and shows a command's own usage whatever is wrong with it."""

    _is_json: bool = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Return the arguments; what is unknown is refused here, not by the parser of all commands."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            before = words[-1] if words else ""
            if _NEGATIVE.fullmatch(word) and before.startswith("--") and "=" not in before:
                words[-1] += f"={word}"  # else it would be taken for an option
            else:
                words.append(word)
        self._is_json = "--json" in words
        found, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Tell what is wrong with the arguments, as JSON where that was asked for, and end."""
        if self._is_json:
            self.exit(2, tell("error", argparse.ArgumentTypeError(message), is_json=True) + "\n")
        super().error(message)


def add_command(  # noqa: PLR0913, PLR0917  what a command is
    add: Callable[..., argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    short: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Add a command, and return its parser."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = add(name, help=short, description=description, epilog=epilog, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def as_count(text: str) -> int:
    """Return a number of things that an argument says."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def as_sizes(text: str) -> list[float]:
    """Return the size of a pixel: one number for all axes, or one an axis."""
    sizes = [as_number(part) for part in text.split(",")]
    if not all(size > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text} is not the size of a pixel")
    return sizes


def as_number(text: str) -> float:
    """Return a number as it was typed, or NaN."""
    try:
        return int(text)  # which a float may not hold
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = math.inf
    if math.isinf(number):
        raise argparse.ArgumentTypeError(f"{text} is not a number, or nan")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def show(found: Found, *, is_json: bool) -> None:
    """Print what was found."""
    say(*([json.dumps(found.as_json())] if is_json else found.lines()))


def say(*lines: str) -> None:
    """Print lines at once; names may have characters that the terminal has not.

    Whoever reads may have seen enough: what a command does goes on, and what it returns still counts.
    """
    try:
        for line in lines:
            print(encodable(line, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        let_go()


def let_go() -> None:
    """Print for nobody from now on, as whoever read has gone: else Python complains at its end."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, sys.stdout.fileno())
    os.close(nobody)

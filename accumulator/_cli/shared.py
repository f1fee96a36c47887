"""What commands share: how they are added, and how they print what they found."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any, Protocol

from accumulator._inputs.text import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Found(Protocol):
    """What a command found."""

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""

    def lines(self) -> Iterable[str]:
        """Return what is printed for people."""


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


def show(found: Found, *, is_json: bool) -> None:
    """Print what was found; names may have characters that the terminal has not."""
    for line in [json.dumps(found.as_json())] if is_json else found.lines():
        print(encodable(line, sys.stdout))
    sys.stdout.flush()  # while errors are still caught

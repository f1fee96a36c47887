"""How culprits, heads, sizes and strangers' text are written in messages and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_MOST_LETTERS: Final = 200  # of a stranger's text
_UNITS: Final = ("bytes", "kB", "MB", "GB", "TB", "PB")


def named(culprits: NDArray[Any], where: str) -> str:
    """Return the first few culprits as text: ``rows 3, 7 and 12 more of batch_locs``."""
    return f"row{'s' if len(culprits) != 1 else ''} {few(culprits)} of {where}"


def few(numbers: NDArray[Any], most: int = 5) -> str:
    """Return the first few numbers as text: ``3, 7 and 12 more``."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most].tolist())) + more


def listed(names: Iterable[str], most: int = 10, separator: str = ", ") -> str:
    """Return the first few names as text: ``'a', 'b' and 68 more``."""
    every = list(names)
    return separator.join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def shape_text(shape: Iterable[int]) -> str:
    """Return a shape as people read it: ``24 x 16 x 3``."""
    return " x ".join(map(str, shape))


def as_text(nbytes: float) -> str:
    """Return a number of bytes as people read it."""
    unit = 0
    while nbytes >= 999.5 and unit < len(_UNITS) - 1:
        nbytes, unit = nbytes / 1000, unit + 1
    return f"{nbytes:.3g} {_UNITS[unit]}"


def printable(text: str) -> str:
    """Return text with escapes for what is no character that can be printed."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def visible(text: str) -> str:
    """Return text as a page shows it: printable, and not without end; it is not escaped."""
    return printable(text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…")


def encodable(text: str, stream: TextIO) -> str:
    """Return text with escapes for what a stream's encoding does not have."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)

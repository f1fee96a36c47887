"""What words of the command line become: each raises argparse's error, which names the word."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import TYPE_CHECKING, Any, get_args

from accumulator._cli.shared import as_sizes
from accumulator.typing import BlendName, WindowName

if TYPE_CHECKING:
    from collections.abc import Callable


def for_head(read: Callable[[str], Any]) -> Callable[[str], tuple[str | None, Any]]:
    """Return what reads ``VALUE`` or ``HEAD=VALUE``."""

    def reading(text: str) -> tuple[str | None, Any]:
        head, found, value = text.rpartition("=")
        return head if found else None, read(value)

    return reading


def as_blend(text: str) -> Any:
    """Return a blend, or a vote with its window."""
    name, is_pair, window = text.partition(":")
    windows = get_args(WindowName)
    if name not in get_args(BlendName) or (is_pair and (name != "vote" or window not in windows)):
        pairs = ", ".join(f"vote:{each}" for each in windows)
        raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(get_args(BlendName))}, {pairs}")
    return (name, window) if is_pair else name


def as_reduce(text: str) -> str:
    """Return what becomes of bands."""
    if text != "argmax":
        raise argparse.ArgumentTypeError(f"{text} is not argmax: other functions are for Python")
    return text


def as_crop(text: str) -> Any:
    """Return which part of a patch counts."""
    if text in {"center", "start"}:
        return text
    try:
        pixels = [int(part) for part in text.split(",")]
    except ValueError as cause:
        raise argparse.ArgumentTypeError(f"{text} is not center, start, or a number of pixels") from cause
    return pixels[0] if len(pixels) == 1 else pixels


def as_size(text: str) -> float | list[float]:
    """Return the size of a pixel: one number, or one an axis."""
    sizes = as_sizes(text)
    return sizes[0] if len(sizes) == 1 else sizes


def as_scale(text: str) -> Any:
    """Return one factor, or one an axis."""
    try:
        factors = [float(Fraction(part)) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError) as cause:
        raise argparse.ArgumentTypeError(f"{text} is not a factor such as 1/4 or 0.25") from cause
    return factors[0] if len(factors) == 1 else factors


def as_whole_numbers(text: str) -> list[int]:
    """Return numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as cause:
        raise argparse.ArgumentTypeError(f"{text} is not whole numbers with commas between them") from cause


def as_origin(text: str) -> Any:
    """Return a place, or "min"."""
    return text if text == "min" else as_whole_numbers(text)

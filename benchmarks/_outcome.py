"""What a contestant is, and what it hands back.

A contestant takes a case, a folder and its options, prepares what is not to be timed, and returns the
function that is. What that returns is kept until time and memory are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias


class UnavailableError(Exception):
    """A contestant that cannot take part here; the message says why, for the page."""


@dataclass(frozen=True)
class Outcome:
    """What a run made, and what it found out about itself."""

    outputs: list[Any] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


Work: TypeAlias = Callable[[], Outcome]


Contestant: TypeAlias = Callable[..., Work]
"""Takes a `Case`, a folder, and options by name."""

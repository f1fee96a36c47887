"""What is asked of a workload's runs, and how a workload is put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from benchmarks._measure import Run

Term: TypeAlias = tuple[str, ...]
"""Names of entries and, last, a metric; of several entries the least counts."""

Round: TypeAlias = Mapping[str, Mapping[str, float]]
"""Every entry's metrics; those that did not run in this round are left out."""


@dataclass(frozen=True)
class Question:
    """A number asked of each round: a metric, or the ratio of two."""

    text: str
    top: Term
    bottom: Term | None = None
    at_most: float | None = None
    at_least: float | None = None
    reason: str = ""  # shown where the target is missed

    @property
    def entries(self) -> list[str]:
        """The entries that have to be there for an answer."""
        return [*self.top[:-1], *(self.bottom or ())[:-1]]

    @property
    def unit(self) -> str | None:
        """The metric that is shown; None for a mere ratio."""
        return self.top[-1] if self.bottom is None else None

    def has_answer(self, one: Round) -> bool:
        """Whether all that it names ran in a round, and left what is asked for."""
        return all(
            entry in one and term[-1] in one[entry]
            for term in (self.top, self.bottom or ())
            for entry in term[:-1]
        )

    def value(self, one: Round) -> float:
        """Return the answer of one round."""
        top = _least(self.top, one)
        return top if self.bottom is None else top / _least(self.bottom, one)

    def is_met(self, value: float) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is not None:
            return value <= self.at_most
        return None if self.at_least is None else value >= self.at_least


@dataclass(frozen=True)
class Exponent(Question):
    """How a metric grows with size: the slope in log-log, by least squares.

    ``top`` names entries in the order of ``sizes``.
    """

    sizes: Sequence[int] = ()

    @property
    def unit(self) -> None:
        """It has none."""

    def value(self, one: Round) -> float:
        """Return the slope of one round."""
        values = [one[entry][self.top[-1]] for entry in self.top[:-1]]
        return float(np.polyfit(np.log(self.sizes), np.log(values), 1)[0])


@dataclass(frozen=True)
class AgainstFastest(Question):
    """A metric against the same of the fastest of several entries, not against the least."""

    def value(self, one: Round) -> float:
        """Return the answer of one round."""
        *names, metric = self.bottom or ()
        fastest = min(names, key=lambda name: one[name]["seconds"])
        return _least(self.top, one) / max(one[fastest][metric], 1)  # a tiny run has no peak


@dataclass(frozen=True)
class Workload:
    """Entries that run in turn, and what is asked of them."""

    name: str
    text: str
    entries: Mapping[str, Run]
    questions: Sequence[Question]
    repeats: int = 1  # how many times as many rounds as others, where runs are short and vary much
    seldom: Mapping[str, int] = field(default_factory=dict)  # in how many rounds the slowest entries run


@dataclass(frozen=True)
class Result:
    """What came out of a workload."""

    workload: Workload
    rounds: Sequence[Round]
    absent: Mapping[str, str]  # entries that could not take part, and why

    def runs(self, entry: str) -> list[Mapping[str, float]]:
        """Return the metrics of all runs of an entry."""
        return [one[entry] for one in self.rounds if entry in one]

    def answers(self, question: Question) -> list[float]:
        """Return the answers of those rounds in which all that it names ran, and was not killed."""
        return [question.value(one) for one in self.rounds if question.has_answer(one)]


def _least(term: Term, one: Round) -> float:
    return min(one[entry][term[-1]] for entry in term[:-1])


def never_behind(ours: str, peers: Sequence[str], reason: str = "") -> list[Question]:
    """Ask of each peer whether it is as slow as this library at least."""
    return [
        Question(f"time: {peer} / {ours}", (peer, "seconds"), (ours, "seconds"), at_least=1.0, reason=reason)
        for peer in peers
    ]

"""A run while it goes on: what it has by now, how fast it is, and how long it will take."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.text import printable
from accumulator._pictures import coverage, left_out
from accumulator._report.facts import open_record
from accumulator._report.parts import ALIVE, InParts, Part
from accumulator._report.timing import timing
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.format.mark import COMPLETE, CREATING
from accumulator._stores.reading.saved import open_mark

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_SHADES: Final = "·░▒▓█"  # from nothing to everything
_PLAIN: Final = ".:+*#"  # where the terminal has no others
_KEPT: Final = 20  # looks that a rate is made of


@attrs.frozen(eq=False)
class Glimpse:
    """What a store had at a moment."""

    seconds: float  # when, of a clock that only goes forward
    path: str
    state: str
    is_written: bool | None  # whether somebody writes it; None where the system does not tell
    locs: NDArray[Any]
    written: NDArray[np.bool_]  # recorded, published or not
    rows_per_second: float | None  # of the whole run, as far as its files tell
    parts: list[Part]
    n_expected: int | None  # locations that are to come; None where nobody told

    @property
    def n_to_come(self) -> int:
        """How many locations are to come, those that have included."""
        return len(self.written) - left_out(len(self.written), self.n_written, self.n_expected)

    @property
    def n_written(self) -> int:
        """How many locations have come."""
        return int(np.count_nonzero(self.written))

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        return self.state == COMPLETE

    @property
    def is_left(self) -> bool:
        """Whether something is to come, and nobody brings it."""
        return self.is_written is False and not self.is_over


def glimpse(path: Path) -> Glimpse:
    """Look at a store; whoever writes it is not disturbed, and no row is read."""
    root = path.absolute()
    run, now = InParts.find(root), time.monotonic()
    if run is not None:
        parts = run.parts()
        fast = sum(part.rows_per_second for part in parts if part.state == ALIVE)
        return Glimpse(
            now,
            str(root),
            run.state,
            run.is_written,
            run.locs,
            run.recorded(),
            fast or None,
            parts,
            run.shared.terms.n_expected,
        )
    mark, is_written = open_mark(root), is_locked(root)
    if mark.state == CREATING:
        nothing = np.zeros(mark.n_rows, dtype=bool)
        blank = np.zeros((mark.n_rows, 0))
        return Glimpse(now, str(root), mark.state, is_written, blank, nothing, None, [], mark.n_expected)
    saved = open_record(root)
    n_written = int(np.count_nonzero(saved.written))
    rate = timing(root, saved.mark.state, n_written).rows_per_second
    locs, written = saved.output_locs, saved.written
    return Glimpse(now, str(root), saved.mark.state, is_written, locs, written, rate, [], mark.n_expected)


@attrs.define(eq=False)
class Watch:
    """Several looks at a store, and what they tell together."""

    looks: deque[Glimpse] = attrs.field(factory=lambda: deque(maxlen=_KEPT))

    def add(self, look: Glimpse) -> None:
        """Take a look; of those with as many rows the first is kept, as that is when they came."""
        if not self.looks or self.looks[-1].n_written != look.n_written:
            self.looks.append(look)
        elif self.looks:
            self.looks[-1] = attrs.evolve(look, seconds=self.looks[-1].seconds)

    @property
    def rows_per_second(self) -> float | None:
        """Of the last looks; before there are some, of the whole run."""
        first, last = self.looks[0], self.looks[-1]
        seconds = last.seconds - first.seconds
        if len(self.looks) > 2 and seconds > 0:
            first = self.looks[1]
            return max(0.0, (last.n_written - first.n_written) / max(1e-9, last.seconds - first.seconds))
        return last.rows_per_second

    @property
    def seconds_left(self) -> float | None:
        """How long it takes until all have come, if it goes on so."""
        rate, last = self.rows_per_second, self.looks[-1]
        left = last.n_to_come - last.n_written
        return None if not rate or not left or last.is_over else left / rate

    def lines(self, most_cells: int = 0, *, is_plain: bool = False) -> Iterator[str]:
        """Yield what is shown for people, with a picture that is so many characters wide, or none."""
        last = self.looks[-1]
        n, n_written, rate, left = last.n_to_come, last.n_written, self.rows_per_second, self.seconds_left
        if most_cells > 0:
            yield from picture(last.locs, last.written, most_cells, is_plain=is_plain)
        share = f" ({n_written / n:.1%})" if n else ""
        state = f"{last.state}, but nobody is writing it" if last.is_left else last.state
        facts = [f"{state}: {n_written} of {n}{share} recorded"]
        if not last.is_over and not last.is_left:
            facts.append("speed unknown yet" if rate is None else f"{rate:,.1f} rows/s")
            if left is not None:
                facts.append(f"{timedelta(seconds=round(left))} left")
        if not last.is_over:
            since = time.monotonic() - last.seconds
            facts.append(f"the last {timedelta(seconds=round(since))} ago")
        yield f"{printable(last.path)}: {', '.join(facts)}"
        for part in last.parts:
            yield part.line()


def picture(
    locs: NDArray[Any], written: NDArray[np.bool_], most_cells: int, *, is_plain: bool
) -> Iterator[str]:
    """Yield lines of characters, by how much of what is listed there has come."""
    share = coverage(locs, written, most_cells).share
    shades = _PLAIN if is_plain else _SHADES
    if len(share) % 2:
        share = np.vstack([share, np.full((1, share.shape[1]), np.nan)])
    pairs = share.reshape(len(share) // 2, 2, -1)
    listed = ~np.isnan(pairs)
    totals = np.nan_to_num(pairs).sum(axis=1) / np.maximum(1, listed.sum(axis=1))
    # What is begun is never nothing, and what is not whole never everything.
    levels = np.where(totals <= 0, 0, np.where(totals >= 1, 4, 1 + np.floor(totals * 3))).astype(int)
    for line, is_listed in zip(levels.tolist(), np.any(listed, axis=1).tolist(), strict=True):
        shown = zip(line, is_listed, strict=True)
        yield "".join(shades[level] if is_there else " " for level, is_there in shown).rstrip()

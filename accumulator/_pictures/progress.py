"""A progress bar, by tqdm: in a terminal and in a notebook.

Most pushes cost one look at the clock. What is shown besides the rows is asked for as often as the bar is
drawn, and that is bounded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from accumulator._inputs import tuning
from accumulator._inputs.extras import need
from accumulator._pictures.html import memory_text
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable


def as_progress(raw: bool) -> Any:  # noqa: FBT001  an argument to be checked
    """Return the class of the bar, None where none is wanted."""
    if not isinstance(raw, bool):
        raise OptionError(f"progress is {raw!r}: it is True or False")
    return need("tqdm.auto", "progress").tqdm if raw else None


class Progress:
    """The bar of one run: ``state`` returns how many rows have come, and what is shown beside that."""

    def __init__(
        self, bar: Any, n_expected: int | None, n_most: int, state: Callable[[], tuple[int, str]]
    ) -> None:
        self._n_most, self._state = n_most, state
        self._bar: Any = bar(
            total=n_most if n_expected is None else n_expected,
            initial=state()[0],
            desc="accumulated",
            unit=" rows",
            mininterval=0,  # it is asked to draw seldom enough
            miniters=1,
            dynamic_ncols=True,
        )
        self._next = 0.0

    def show(self) -> None:
        """Draw the bar, if the last drawing is some time ago."""
        start = time.monotonic()
        if start < self._next or self._bar is None:
            return
        self._draw()
        now = time.monotonic()
        self._next = now + max(tuning.now.bar_pause_seconds, tuning.now.bar_share * (now - start))

    def close(self) -> None:
        """Draw it for the last time, and leave it there."""
        bar = self._bar
        if bar is not None:
            self._draw()
            self._bar = None
            bar.close()

    def _draw(self) -> None:
        n_written, text = self._state()
        bar = self._bar
        try:
            if n_written > bar.total:  # more than were expected at least
                bar.total = self._n_most
            bar.set_postfix_str(text, refresh=False)
            bar.update(n_written - bar.n)
        except (OSError, ValueError):  # nobody sees it any more: the predictions matter, not the bar
            bar.disable, self._bar = True, None


def memory_state(held_nbytes: int, available_nbytes: int, *, is_in_ram: bool) -> str:
    """Return where a result is, and how much memory it and others take."""
    place = "RAM" if is_in_ram else "zarr"
    return f"{place}, {memory_text(held_nbytes, available_nbytes)}"

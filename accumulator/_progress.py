"""A progress bar, by tqdm: in a terminal and in a notebook.

Most pushes cost one look at the clock. What is shown besides the rows is asked for as often as the bar is
drawn, and that is bounded.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any, Final

from accumulator._memory import available_memory
from accumulator._plan import as_text
from accumulator.exceptions import MissingExtraError, OptionError

if TYPE_CHECKING:
    from accumulator._canvas import Canvas

_PAUSE_SECONDS: Final = 0.1  # between two drawings; tqdm's own default
_SHARE: Final = 20  # drawing takes a twentieth of the time at most


def as_progress(raw: bool) -> Any:  # noqa: FBT001  an argument to be checked
    """Return the class of the bar, None where none is wanted.

    Raises
    ------
    OptionError
        It is neither True nor False.
    MissingExtraError
        tqdm is not installed.
    """
    if not isinstance(raw, bool):
        raise OptionError(f"progress is {raw!r}: it is True or False")
    if not raw:
        return None
    try:
        return importlib.import_module("tqdm.auto").tqdm
    except ImportError as cause:
        raise MissingExtraError(
            f"progress=True needs tqdm, which cannot be imported ({cause}): "
            "pip install 'accumulator[progress]'"
        ) from cause


class Progress:
    """The bar of one run.

    Parameters
    ----------
    bar : type
        What `as_progress` returned.
    canvas : Canvas
        What is shown. The bar starts at what is written already.
    """

    def __init__(self, bar: Any, canvas: Canvas) -> None:
        self._canvas = canvas
        self._drawn_at = -1
        self._bar: Any = bar(
            total=canvas.n_expected or canvas.n_rows,
            initial=canvas.n_written,
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
        self._next = now + max(_PAUSE_SECONDS, _SHARE * (now - start))

    def close(self) -> None:
        """Draw it for the last time, and leave it there."""
        if self._bar is not None:
            self._draw()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _draw(self) -> None:
        canvas, bar = self._canvas, self._bar
        try:
            if canvas.n_written > bar.total:  # more than were expected at least
                bar.total = canvas.n_rows
            bar.set_postfix_str(self._postfix(), refresh=False)
            bar.update(canvas.n_written - bar.n)
        except (OSError, ValueError):  # nobody sees it any more: the predictions matter, not the bar
            bar.disable, self._bar = True, None

    def _postfix(self) -> str:
        canvas = self._canvas
        place = "RAM" if canvas.zarr_store is None else "zarr"
        memory = f"{as_text(canvas.held_nbytes)} held, {as_text(available_memory())} available"
        n_gaps = canvas.n_consumed - canvas.n_written
        return f"{n_gaps} gaps, {place}, {memory}"

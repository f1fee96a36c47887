"""How a canvas is opened: empty, or with the store of a run that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from accumulator._core.canvas import Canvas
from accumulator._stores import KeptRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._core.plan import Budget
    from accumulator._inputs.options import HeadOptions
    from accumulator.typing import Mode, OnDuplicate


def open_canvas(  # noqa: PLR0913  each is told by its name
    locs: NDArray[Any],
    budget: Budget,
    on_duplicate: OnDuplicate,
    options: HeadOptions,
    n_expected: int = 0,
    *,
    store: str | None = None,
    mode: Mode = "w-",
    resume_token: str | None = None,
    checkpoint_interval: float | None = None,
) -> Canvas:
    """Return a canvas of one row a location; with ``store``, what is there is resumed, or something made.

    Raises
    ------
    StorageError
        The store cannot be made or read.
    ResultExistsError
        Something is there already, and ``mode`` is "w-"; or it is no run.
    ResumeError
        It is of another run.
    ResultFormatError
        It is damaged beyond its rows.
    LockedError
        Somebody is writing it.
    """
    if store is None:
        return Canvas(len(locs), budget, on_duplicate, options, n_expected)
    run = KeptRun(store, mode, locs, resume_token)
    budget = attrs.evolve(budget, save_path=str(Path(store).parent))
    interval = 30 if checkpoint_interval is None else checkpoint_interval
    try:
        return Canvas.resume(run, budget, on_duplicate, options, n_expected, interval)
    except BaseException:
        run.release()
        raise

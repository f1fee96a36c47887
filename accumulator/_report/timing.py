"""When a store was made and written, as far as the times of its files tell."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SLACK_SECONDS: Final = 1.0
_SOME: Final = 1000  # files that are looked at


@attrs.frozen
class Timing:
    """Seconds since 1970; None where it is unknown."""

    created: float | None  # when the store was made
    recorded: float | None  # when rows were recorded last
    finished: float | None  # when the run was finalized
    # over all the time between, pauses included; None where rows were there before the store was
    rows_per_second: float | None

    @property
    def seconds(self) -> float | None:
        """From the first to the last."""
        end = self.finished or self.recorded
        return None if self.created is None or end is None else max(0.0, end - self.created)


def timing(root: Path, state: str, n_written: int) -> Timing:
    """Return when a store was made and written.

    A run that is kept makes the list of locations before any row comes. Where it came after rows, the store
    was saved when all was over, and its files do not tell how long that took.
    """
    made, listed = _time(root / "outputs" / "zarr.json"), _time(root / "output_locs" / "zarr.json")
    recorded = max(_times(root / "written"), default=None)
    finished = _time(root / "zarr.json") if state == "complete" else None
    some_head = next((root / "outputs").glob("*/"), root / "outputs" / "0")
    first_row = min(itertools.islice(_times(some_head), _SOME), default=None)
    is_run = listed is not None and (first_row is None or listed <= first_row + _SLACK_SECONDS)
    created = made if is_run else listed
    end = finished or recorded
    if not is_run or created is None or end is None or end - created < _SLACK_SECONDS:
        return Timing(created, recorded, finished, None)
    return Timing(created, recorded, finished, n_written / (end - created))


def _times(folder: Path) -> Iterator[float]:
    """Yield when the chunks in a folder were written."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # whoever writes the store replaces files
                if entry.name.startswith("c"):
                    yield entry.stat(follow_symlinks=False).st_mtime


def _time(path: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return path.lstat().st_mtime
    return None

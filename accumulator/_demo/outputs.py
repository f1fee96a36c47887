"""What the demo leaves in a folder: rows, map and report; what an earlier demo left there is replaced.

Only in a folder that a demo has marked: whoever has a ``report.html`` of his own there keeps it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accumulator._inputs.extras import need
from accumulator._report.page import write_report
from accumulator.exceptions import ResultExistsError

if TYPE_CHECKING:
    from accumulator import FullBatch, StitchedMap

ROWS: Final = "rows.zarr"
MAP: Final = "map.ome.zarr"
PAGE: Final = "report.html"
MARK: Final = ".accumulator-demo"
_MARK_TEXT: Final = f"`accumulator demo` writes {ROWS}, {MAP} and {PAGE} here, and replaces them each time.\n"
_CHANNELS: Final = {
    "probability": ("lumen", "epithelium", "stroma"),
    "stain": ("eosin", "haematoxylin"),
}
_UM_PER_PX: Final = 1.0  # of the shrunken slide that the tiles were cut from


def claim(folder: Path) -> None:
    """Mark a folder as the demo's own, before anything is computed for it.

    Raises
    ------
    MissingExtraError
        What the map is written with is not installed; an ImportError.
    ResultExistsError
        Something that no demo wrote has the name of an output; a FileExistsError.
    """
    need("ome_zarr", "demo")  # before anything is made
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.is_file():
        for name in (ROWS, MAP, PAGE):
            if os.path.lexists(folder / name):
                raise ResultExistsError(
                    errno.EEXIST,
                    "no demo wrote this, so it is not replaced: choose another --output, or remove it first",
                    str(folder / name),
                )
        mark.write_text(_MARK_TEXT, encoding="utf-8")


def write_outputs(folder: Path, result: FullBatch, maps: StitchedMap) -> dict[str, Path]:
    """Write rows, map and report into a folder that was claimed, and return where each is.

    Each is written under another name, and takes its own when it is whole. A result that is on disk may be
    moved, and can be read no more afterwards.

    Raises
    ------
    StorageError
        The disk refused; an OSError.
    """
    with tempfile.TemporaryDirectory(prefix=f"{MARK}-", dir=folder) as name:
        fresh, old = Path(name, "new"), Path(name, "old")
        fresh.mkdir()
        old.mkdir()  # goes with the temporary folder
        maps.save_ome_zarr(fresh / MAP, pixel_size=_UM_PER_PX, channel_names=_CHANNELS)
        result.save(fresh / ROWS)
        for output in (ROWS, MAP):
            _replace(folder / output, fresh / output, old)
        write_report(folder / ROWS, fresh / PAGE)  # which says where the rows are
        _replace(folder / PAGE, fresh / PAGE, old)
    return {"rows": folder / ROWS, "map": folder / MAP, "report": folder / PAGE}


def _replace(target: Path, fresh: Path, old: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        target.rename(old / target.name)
    fresh.rename(target)

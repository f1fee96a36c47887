"""What the demo leaves in a folder: rows, map and report; what an earlier demo left there is replaced.

Only in a folder that a demo has marked: whoever has a ``report.html`` of his own there keeps it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from accumulator._report.page import write_report
from accumulator._stores.files.target import staged, write_file
from accumulator._stores.files.temporary import make_parents
from accumulator.exceptions import ResultExistsError

if TYPE_CHECKING:
    from pathlib import Path

    from accumulator import FullBatch, StitchedMap

_NAMES: Final = {"rows": "rows.zarr", "map": "map.ome.zarr", "report": "report.html"}
_MARK: Final = ".accumulator-demo"
_CHANNELS: Final = {"probability": ("lumen", "epithelium", "stroma"), "stain": ("eosin", "haematoxylin")}
_UM_PER_PX: Final = 1.0  # of the shrunken slide that the tiles were cut from


def claim(folder: Path) -> None:
    """Mark a folder as the demo's own, before anything is computed for it."""
    make_parents(folder)
    mark = folder / _MARK
    if mark.is_file():
        return
    for path in (folder / name for name in _NAMES.values()):
        if os.path.lexists(path):
            raise ResultExistsError(
                errno.EEXIST,
                "no demo wrote this, so it is not replaced: choose another --output, or remove it first",
                str(path),
            )
    names = ", ".join(_NAMES.values())
    text = f"`accumulator demo` writes {names} here, and replaces them each time.\n"
    write_file(mark, text.encode(), replaces=True)


def write_outputs(folder: Path, result: FullBatch, maps: StitchedMap) -> dict[str, Path]:
    """Write rows, map and report into a folder that was claimed, and return where each is.

    Each is written elsewhere and takes its place when it is whole. A result on disk may be moved, and cannot
    be read any more afterwards.
    """
    places = {label: folder / name for label, name in _NAMES.items()}
    with staged(places["map"], replaces=True) as image, staged(places["rows"], replaces=True) as rows:
        maps.save_ome_zarr(image, pixel_size=_UM_PER_PX, channel_names=_CHANNELS)
        result.save(rows)
    with staged(places["report"], replaces=True) as page:
        size = (_UM_PER_PX, _UM_PER_PX)
        write_report(places["rows"], page, pixel_size=size, channel_names=_CHANNELS)
    return places

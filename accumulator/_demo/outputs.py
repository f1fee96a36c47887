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

_NAMES: Final = {"rows": "rows.zarr", "map": "map.ome.zarr", "report": "report.html"}
_MARK: Final = ".accumulator-demo"
_CHANNELS: Final = {"probability": ("lumen", "epithelium", "stroma"), "stain": ("eosin", "haematoxylin")}
_UM_PER_PX: Final = 1.0  # of the shrunken slide that the tiles were cut from


def claim(folder: Path) -> None:
    """Mark a folder as the demo's own, before anything is computed for it."""
    need("ome_zarr", "demo")
    folder.mkdir(parents=True, exist_ok=True)
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
    mark.write_text(f"`accumulator demo` writes {names} here, and replaces them each time.\n", "utf-8")


def write_outputs(folder: Path, result: FullBatch, maps: StitchedMap) -> dict[str, Path]:
    """Write rows, map and report into a folder that was claimed, and return where each is.

    Each is written elsewhere and takes its place when it is whole. A result on disk may be moved, and cannot
    be read any more afterwards.
    """
    places = {label: folder / name for label, name in _NAMES.items()}
    with tempfile.TemporaryDirectory(prefix=f"{_MARK}-", dir=folder) as name:
        new = {label: Path(name, place.name) for label, place in places.items()}
        maps.save_ome_zarr(new["map"], pixel_size=_UM_PER_PX, channel_names=_CHANNELS)
        result.save(new["rows"])
        for label in ("rows", "map", "report"):
            if label == "report":
                write_report(places["rows"], new["report"])  # which says where the rows are
            with contextlib.suppress(FileNotFoundError):
                places[label].rename(Path(name, f"old-{label}"))  # goes with the temporary folder
            new[label].rename(places[label])
    return places

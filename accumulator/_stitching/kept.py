"""Maps on disk: what is written beside their rows, so that they are opened as the maps they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from accumulator._core.full_batch import FullBatch
from accumulator._core.memory import available_memory
from accumulator._inputs.heads import Heads
from accumulator._stitching.frame import as_frame
from accumulator._stitching.geometry import as_geometry
from accumulator._stitching.sheet import Sheet
from accumulator._stores.files.target import staged
from accumulator._stores.reading.patches import read_patches
from accumulator._stores.reading.saved import expects_patches, has_patches, is_map, unfinished_map
from accumulator._stores.writing.patches import write_patches, write_root
from accumulator.exceptions import HeadError, LocationError, OptionError, ResultFormatError, UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from accumulator._stitching.frame import Frame, Lay

_VERSION: Final = 1


@attrs.frozen(eq=False)
class Kept:
    """Maps as they are kept: all but their rows, which sheets have."""

    names: tuple[str, ...] | None
    frame: Frame
    sheets: Sequence[Sheet]
    locs: NDArray[Any]
    written: NDArray[np.bool_]
    n_outside: int

    @property
    def facts(self) -> dict[str, Any]:
        """What JSON holds of them."""
        placed = [(sheet.heads, sheet.lay) for sheet in self.sheets]
        return facts_of(self.names, self.frame, placed, self.n_outside)

    def note(self, root: Path) -> None:
        """Write them beside the rows of the maps, before those are complete."""
        note(root, self.facts, self.locs, self.written)

    def save(self, path: Any) -> None:
        """Write maps and all to a path; one sheet's store is that, several are stores in it."""
        if len(self.sheets) == 1:
            self.sheets[0].rows._save(path, self.note)  # noqa: SLF001  they are its rows
            return
        for sheet in self.sheets:
            sheet.rows._target(path)  # noqa: SLF001
        with staged(path) as place:
            write_root(place, len(self.sheets))
            for number, sheet in enumerate(self.sheets):
                sheet.rows._copy(place / str(number))  # noqa: SLF001
            self.note(place)


def facts_of(
    names: tuple[str, ...] | None,
    frame: Frame,
    placed: Sequence[tuple[tuple[int, ...], Lay]],
    n_outside: int,
) -> dict[str, Any]:
    """Return what JSON holds of maps: the numbers of heads of one shape each, and how they lie."""
    return {
        "version": _VERSION,
        "names": None if names is None else list(names),
        "origin": list(frame.origin),
        "columns": list(frame.geometry.columns),
        "n_outside": n_outside,
        "sheets": [
            {
                "folder": "" if len(placed) == 1 else str(number),
                "heads": list(heads),
                "shape": list(lay.shape),
                "patch": list(lay.grid.patch[: lay.grid.n_spatial]),
                "scale": list(lay.scale),
                **({"spread": True} if lay.is_spread else {}),
            }
            for number, (heads, lay) in enumerate(placed)
        ],
    }


def note(root: Path, facts: dict[str, Any], locs: NDArray[Any], written: NDArray[np.bool_]) -> None:
    """Write facts about maps and their patches into a folder that is about to be complete."""
    if len(facts["sheets"]) > 1:
        write_root(root, len(facts["sheets"]))
    write_patches(root, facts, locs, written)


def load_kept(root: Path) -> Kept:
    """Open maps that were kept."""
    if not has_patches(root):
        FullBatch.load(root)  # which says what there is, if it is no result
        if is_map(root):
            raise ResultFormatError(
                f"{root} holds maps of one shape of several: open {root.resolve().parent}, and take its heads"
            )
        raise ResultFormatError(
            f"{root} says nothing of patches: it holds no maps, or those of an earlier version of the "
            "library; FullBatch.load opens it"
        )
    if expects_patches(root):
        raise unfinished_map(root)
    facts, saved = read_patches(root, available_memory())
    locs, written = saved.output_locs, saved.written.copy()
    try:
        if facts["version"] != _VERSION:
            raise ResultFormatError(
                f"{root} has maps of version {facts['version']!r}, this library reads {_VERSION}"
            )
        names = None if facts["names"] is None else tuple(facts["names"])
        # With a shape that is known: all boxes may lie outside, or there may be none.
        shape = next((each["shape"] for each in facts["sheets"]), None)
        geometry = as_geometry(locs.shape[1], origin=facts["origin"], output_shape=shape)
        if sorted(facts["columns"]) != list(range(geometry.n_spatial)):
            raise ResultFormatError(f"{root} is damaged: it has other axes than its locations")
        geometry = attrs.evolve(geometry, columns=facts["columns"])
        sheets = [_load_sheet(root, each, geometry, locs, written) for each in facts["sheets"]]
        heads = [head for sheet in sheets for head in sheet.heads]
        if sorted(heads) != list(range(len(heads))) or not heads or (names and len(names) != len(heads)):
            raise ResultFormatError(f"{root} is damaged: its heads are not those of its maps")
        return Kept(names, as_frame(locs, geometry), sheets, locs, written, int(facts["n_outside"]))
    except UnfinishedError as cause:
        raise unfinished_map(root) from cause
    except (KeyError, TypeError, AttributeError, LocationError, OptionError, HeadError, ValueError) as cause:
        if isinstance(cause, ResultFormatError):
            raise
        raise ResultFormatError(
            f"{root} is damaged: what it says of its maps is impossible ({cause})"
        ) from cause


def _load_sheet(
    root: Path, facts: dict[str, Any], geometry: Any, locs: NDArray[Any], written: NDArray[Any]
) -> Sheet:
    """Open the maps of one shape."""
    folder, n = facts["folder"], geometry.n_spatial
    if folder and not (isinstance(folder, str) and folder.isascii() and folder.isdigit()):
        raise ResultFormatError(f"{root} is damaged: it has maps in {folder!r}")
    is_spread = bool(facts.get("spread", False))
    said = as_geometry(
        locs.shape[1], output_shape=facts["shape"], scale=facts["scale"], crop="start", spread=is_spread
    )
    said = attrs.evolve(said, origin=geometry.origin, columns=geometry.columns)
    patch = () if is_spread else tuple(facts["patch"])
    lay = as_frame(locs, said).lay(0, f"the maps in {root / folder}", patch)
    rows = FullBatch.load(root / folder)
    shapes = {tuple(array.shape[:n]) for array in Heads.of(rows.outputs)}
    if shapes != {lay.shape} or len(facts["heads"]) != len(rows.outputs):
        raise ResultFormatError(f"{root / folder} is damaged: its maps are not of the shape {lay.shape}")
    return Sheet(tuple(facts["heads"]), lay, rows, lay.grid.of(written))

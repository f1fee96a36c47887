"""What a store of maps says of the patches they were made of; it may come from a stranger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accumulator._stores.format.mark import digest, read_json
from accumulator._stores.format.names import MAPS, PATCHES
from accumulator._stores.reading.saved import open_result
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from accumulator._stores.reading.saved import SavedResult


def read_patches(root: Path, most_nbytes: int | None) -> tuple[dict[str, Any], SavedResult]:
    """Return facts about maps, and the record of their patches; a ResultFormatError if they are damaged."""
    folder = root / PATCHES
    saved = open_result(folder, most_nbytes=most_nbytes)
    attributes = read_json(folder / "zarr.json", root).get("attributes")
    told = attributes.get(MAPS) if isinstance(attributes, dict) else None
    facts = {key: value for key, value in told.items() if key != "digest"} if isinstance(told, dict) else {}
    if not isinstance(told, dict) or told.get("digest") != digest(facts):
        raise ResultFormatError(f"{root} is damaged: what it says of its maps was changed")
    return facts, saved

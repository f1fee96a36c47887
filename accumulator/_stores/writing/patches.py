"""What a store of maps says of the patches they were made of: a record of its own, which has no rows."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any

import zarr

from accumulator._inputs.heads import Heads
from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.unsynced import Unsynced
from accumulator._stores.format.mark import digest
from accumulator._stores.format.names import MAPS, OUTPUTS, PATCHES, SCRATCH
from accumulator._stores.format.store import FolderStore
from accumulator._stores.writing.record import complete_result
from accumulator.exceptions import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


def expect_patches(root: Path) -> None:
    """Make the folders that tell that maps are being made, and no other rows.

    Where the disk refuses that, what is said of maps that were never finished is less plain.
    """
    with contextlib.suppress(OSError):
        system.make_folder(root / PATCHES)  # as other people may call theirs
        system.make_folder(root / PATCHES / SCRATCH)


def expect_no_patches(root: Path) -> None:
    """Remove what `expect_patches` has made."""
    for folder in (root / PATCHES / SCRATCH, root / PATCHES):
        system.remove_folder(folder)


def write_patches(root: Path, facts: dict[str, Any], locs: NDArray[Any], written: NDArray[np.bool_]) -> None:
    """Write where patches lie and which have come, with facts about the maps, before those are complete.

    All of it is on the disk when this returns. What an earlier attempt left is replaced.
    """
    folder = root / PATCHES
    with telling(f"the patches of {root} cannot be recorded"):
        if folder.exists():
            system.remove_tree(folder)
        expect_patches(root)
        unsynced = Unsynced()
        store = FolderStore(folder, unsynced=unsynced)
        told = {MAPS: {**facts, "digest": digest(facts)}}
        zarr.create_group(store, zarr_format=3, attributes=told).create_group(OUTPUTS)
        complete_result(store, Heads(), locs, written, [])
        if not system.remove_folder(folder / SCRATCH):
            raise StorageError(errno.ENOTEMPTY, "somebody has put something there", str(folder / SCRATCH))
        unsynced.add_folder(root)
        unsynced.sync()


def write_root(root: Path, n_stores: int) -> None:
    """Make a group of a folder that holds several stores of maps, if it is none yet."""
    if (root / "zarr.json").exists():
        return
    with telling(f"{root} cannot be made a group"):
        system.make_folder(root)
        unsynced = Unsynced()
        store = FolderStore(root, unsynced=unsynced)
        zarr.create_group(store, zarr_format=3, attributes={MAPS: {"n_stores": n_stores}})
        unsynced.sync()

"""A whole result as one zarr group: ``outputs/0`` and so on, ``output_locs``, ``written``.

The group's attribute ``accumulator`` says which version of this layout it is and how the heads are
called; a group without it is not a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr

from accumulator._stores._disk import OUTPUTS
from accumulator._stores._folder import storage_error
from accumulator._stores._folder_store import FolderStore
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator.typing import RowArray

_MARK: Final = "accumulator"
_VERSION: Final = 1


@attrs.frozen(eq=False)
class SavedResult:
    """What `read_result` finds."""

    store: FolderStore
    arrays: list[RowArray]
    names: list[str] | None
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]


def complete_result(
    store: FolderStore,
    n_heads: int,
    names: list[str] | None,
    output_locs: NDArray[Any],
    written: NDArray[np.bool_],
) -> None:
    """Add to a group of ``n_heads`` outputs all that makes it a result; the mark comes last.

    Raises
    ------
    StorageError
        The folder cannot be written.
    """
    try:
        group = zarr.open_group(store, mode="r+")
        for head in range(n_heads):
            group[f"{OUTPUTS}/{head}"].attrs["name"] = str(head) if names is None else names[head]
        group.create_array("output_locs", data=output_locs, overwrite=True)
        group.create_array("written", data=written, overwrite=True)
        group.attrs[_MARK] = {"version": _VERSION, "names": names, "n_heads": n_heads}
    except OSError as cause:
        raise storage_error(cause, f"the result in {store} cannot be completed") from cause


def read_result(path: Path) -> SavedResult:
    """Open a saved result, read-only; the outputs stay on disk.

    Raises
    ------
    ResultFormatError
        The folder is not a saved result, or its parts do not fit together.
    """
    if not path.is_dir():
        raise ResultFormatError(f"{path} is a file: a saved result is a folder")
    store = FolderStore(path, read_only=True)
    try:
        group: Any = zarr.open_group(store, mode="r")
        mark = group.attrs[_MARK]
        version, names = mark["version"], mark["names"]
        arrays = [group[f"{OUTPUTS}/{head}"] for head in range(mark["n_heads"])]
        output_locs, written = group["output_locs"][:], group["written"][:]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, AssertionError) as cause:
        raise ResultFormatError(
            f"{path} is not a result saved by FullBatch.save, or not the folder given to it ({cause!r})"
        ) from cause
    if version != _VERSION:
        raise ResultFormatError(
            f"{path} has version {version!r} of the layout, this library reads {_VERSION}: upgrade it"
        )
    lengths = {len(written), len(output_locs), *(array.shape[0] for array in arrays)}
    if len(lengths) != 1 or written.dtype != np.bool_ or len(names or arrays) != len(arrays):
        raise ResultFormatError(f"{path} is damaged: its arrays do not belong together")
    return SavedResult(store, arrays, names, output_locs, written)

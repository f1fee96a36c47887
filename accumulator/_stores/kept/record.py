"""The record of a run as it grows: chunks of its arrays are replaced, each in one step, and then synced."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._stores.format.checksums import spoil
from accumulator._stores.format.names import RECORD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.files.unsynced import Unsynced
    from accumulator._stores.kept.reserve import Reserve

    Checksums = Sequence[NDArray[np.uint64]]  # of each head


@attrs.define(eq=False)
class Record:
    """The arrays ``written`` and ``checksums`` in a store."""

    root: Path
    reserve: Reserve
    unsynced: Unsynced
    arrays: dict[str, Any] = attrs.field(factory=dict)

    def put(
        self,
        changed: NDArray[np.intp],
        new: NDArray[np.bool_],
        known: NDArray[np.bool_],
        checksums: Checksums,
        held: NDArray[np.bool_],
    ) -> None:
        """Record rows that have ``changed``, some of which are ``new``; it is on the disk when this returns.

        All that are ``known`` are recorded then; those that are ``held`` keep the checksums that they have.
        """
        # A row that is written has its checksum.
        self.write("checksums", changed, known, checksums, held)
        self.write("written", np.flatnonzero(new), known)

    def write(
        self,
        name: str,
        rows: NDArray[np.intp],
        known: NDArray[np.bool_],
        checksums: Checksums = (),
        held: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write those chunks of an array that rows lie in, each in one step; then sync.

        Rows that are ``held`` keep the checksums that they have there.
        """
        array, step = self.arrays[name], RECORD[name]
        (self.root / name / "zarr.json").lstat()  # where somebody removed it, zarr would make a folder
        for chunk in np.flatnonzero(np.bincount(rows // step)).tolist():
            part = slice(chunk * step, (chunk + 1) * step)
            values: NDArray[Any] = known[part]
            if checksums:
                values = np.stack([column[part] for column in checksums], axis=1)
                spoil(values, known[part])
            if held is not None and held[part].any():
                values[held[part]] = np.asarray(array[part])[held[part]]
            self.reserve.used(partial(array.__setitem__, part, values))
        self.unsynced.sync()

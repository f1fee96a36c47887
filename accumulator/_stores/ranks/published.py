"""The result that parts are published to: a run that is kept, whose rows come as whole files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import names_in
from accumulator._stores.format.arrays import layout_of, open_group, over
from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator._stores.format.names import PARTS, RECORD, REDO, SCRATCH
from accumulator._stores.kept.restore import remove_partial
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.reading.saved import open_result
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads


def _kinds(heads: Heads[zarr.Array[Any]]) -> dict[str, dict[str, Any]]:
    """Return how each head is stored, by its name."""
    kinds = {}
    for name, array in heads.by_name().items():
        kinds[name] = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    return kinds


@attrs.define(eq=False)
class PublishedRun(KeptRun):
    """The store of a run of several ranks, which no other process publishes to meanwhile."""

    def _found(self) -> list[str]:
        return [name for name in names_in(self.root) if not (system.is_partial(name) or name == PARTS)]

    @property
    def keys(self) -> list[str]:
        """What the arrays of heads are called here, once `open_heads` has returned."""
        return self._mark.keys

    def open_heads(self, heads: Heads[zarr.Array[Any]], most_nbytes: int) -> NDArray[np.uint64]:
        """Open what was published, or make it; return its checksums, ``(N, heads)``."""
        checksums = np.empty((len(self._locs), len(heads)), np.uint64)
        for number, head in enumerate(heads):  # of rows that nobody recorded, as any run has them
            blank = np.full((1, *head.shape[1:]), head.fill_value, head.dtype)
            checksums[:, number] = row_checksums(blank)[0]
        if not self.is_resumed:
            self.create(heads.like(layout_of(head).spec for head in heads), BUFFER_NBYTES).close()
            return checksums
        saved = open_result(
            self.root, mark=self._mark, is_partial=True, is_written=True, most_nbytes=most_nbytes
        )
        if _kinds(saved.heads) != _kinds(heads):
            raise ResultFormatError(f"{self.root} is damaged: its parts have other heads than the result")
        with telling(f"{self.root} cannot be published to"):
            self._group = open_group(self._store)
            self._record.arrays = {name: over(self._group[name], self._store) for name in RECORD}
            for name in ("", *self._mark.parts):
                remove_partial(self.root / name)
        self.recorded = saved.written.copy()
        for number, column in enumerate(saved.checksums):
            checksums[self.recorded, number] = column[self.recorded]
        return checksums

    def let_go_of_locations(self) -> None:
        """Map the list no longer, before its file is removed: a network file system would keep that."""
        self._locs = np.broadcast_to(np.zeros((), self._locs.dtype), self._locs.shape)

    def redo_folders(self) -> Iterator[Path]:
        """Yield, for each head, where rows wait that replace others: a killed run may have left some."""
        for head in self._mark.heads:
            yield self.root / head / REDO

    def record_rows(self, new: NDArray[np.bool_], checksums: NDArray[np.uint64]) -> None:
        """Record rows whose files are on the disk."""
        known = self.recorded | new
        with telling(f"rows cannot be recorded in {self.root}"):
            columns = [np.ascontiguousarray(column) for column in checksums.T]
            self._record.put(np.flatnonzero(new), new, known, columns, np.zeros_like(known))
        self.recorded = known

    def tidy(self) -> None:
        """Remove what a killed run of one process left beside chunks, now that all of them are right."""
        with telling(f"{self.root} cannot be tidied"):
            for redo in self.redo_folders():
                system.clear(redo)
                system.clear(redo.with_name(SCRATCH))

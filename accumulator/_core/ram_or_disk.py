"""In RAM or on disk: rows are in RAM where they fit, and leave it when it gets short."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from accumulator._core.memory import Watch
from accumulator._inputs.text import as_text
from accumulator._inputs.warn import log, warn
from accumulator._stores.files.temporary import TemporaryFolder
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator._stores.format.names import head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory.ram import RamRows
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import AccumulatorError, StorageWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from accumulator._core.all_or_nothing import AllOrNothing
    from accumulator._core.plan import Budget
    from accumulator._inputs.heads import Heads
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.memory.row_store import RowStore


class RamOrDisk:
    """Decides where the rows of a result are, and makes their stores."""

    def __init__(self, n_rows: int, budget: Budget, specs: Heads[HeadSpec]) -> None:
        self._n_rows, self._budget, self._specs = n_rows, budget, specs
        self._ram: RamRows | None = None
        self._watch = Watch(budget.memory_threshold)

    def make(self, first: Sequence[NDArray[Any]], check_disk: Callable[[], None]) -> RowStore:
        """Return a store for all rows, of which the first that come are given."""
        if self._budget.fits(self._n_rows * sum(spec.row_nbytes for spec in self._specs)):
            # The system may refuse memory all the same: then the disk is used.
            with contextlib.suppress(MemoryError):
                self._ram = RamRows(self._n_rows, self._specs.values, first)
                return self._ram
        check_disk()
        return self._on_disk(self._budget.buffer_nbytes)

    def leave_if_tight(self, batches: AllOrNothing, n_new: int, check_disk: Callable[[int], None]) -> None:
        """Let rows move to disk, from now on and bit by bit, if there is no room in RAM for new ones."""
        held, ram = (batches.n_written + n_new) * batches.row_nbytes, self._ram
        if ram is None or n_new == 0 or not self._watch.is_tight(held):
            return
        try:
            check_disk(batches.n_written + n_new)
            # Under pressure hardly anything may be left; what moves out makes room for its own buffers.
            store = self._on_disk(max(self._budget.buffer_nbytes, min(BUFFER_NBYTES, held // 20)))
        except AccumulatorError as refusal:
            self._watch.rest()
            warn(f"memory is short, but the result has to stay there: {refusal}", StorageWarning)
            return
        try:
            store.take_over(ram, batches.written)
            batches.store, self._ram = store, None
        except BaseException:
            store.remove()
            batches.store = self._ram = ram
            raise
        ram.close()
        log(
            logging.INFO,
            "memory is short: %d rows (%s) move from RAM to zarr in %s, while the run goes on",
            batches.n_written,
            as_text(batches.n_written * batches.row_nbytes),
            store.zarr_store,
        )

    def _on_disk(self, buffer_nbytes: int) -> ZarrRows:
        folder = TemporaryFolder(self._budget.save_path)
        zarr_store = FolderStore(folder.path / "result.zarr", folder=folder)
        try:
            keys = head_keys(self._specs.names, len(self._specs))
            return ZarrRows(zarr_store, self._n_rows, self._specs.values, buffer_nbytes, keys=keys)
        except BaseException:
            zarr_store.shut()
            raise

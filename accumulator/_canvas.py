"""The canvas: what has been accumulated, one row store a head, and which rows are real.

It decides once, when the heads are known, whether the rows live in RAM or on disk, and it makes every
placement all or nothing. It is told rows, not locations: those are matched above.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator import _memory
from accumulator._stores import (
    BUFFER_NBYTES,
    FolderStore,
    RamRows,
    RowStore,
    TemporaryFolder,
    create_zarr_rows,
)
from accumulator._validation import Heads, HeadSpec, as_spec, check_specs, named
from accumulator.exceptions import DuplicateLocationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator.typing import OnDuplicate, RowArray, Rows


@attrs.frozen
class Budget:
    """What decides between RAM and disk, and where on disk."""

    save_path: str
    memory_threshold: float
    memory_limit: int | None = None
    held_nbytes: int = 0  # accumulated elsewhere, and counted against the same share of the memory


@attrs.define(eq=False)
class Canvas:
    """N rows a head, the record of which are written, and the policy for those that come twice.

    Parameters
    ----------
    n_rows : int
        N, the number of canonical locations.
    budget : Budget
        What decides between RAM and disk.
    on_duplicate : {"error", "first", "last"}
        What a row put twice does.
    """

    n_rows: int
    budget: Budget
    on_duplicate: OnDuplicate = "error"
    written: NDArray[np.bool_] = attrs.field(init=False)
    specs: tuple[HeadSpec, ...] | None = attrs.field(init=False, default=None)  # None until the first batch
    names: tuple[str, ...] | None = attrs.field(init=False, default=None)
    stores: list[RowStore] = attrs.field(init=False, factory=list)
    zarr_store: FolderStore | None = attrs.field(init=False, default=None)  # None in RAM
    n_consumed: int = attrs.field(init=False, default=0)
    _undo: list[Callable[[], None]] = attrs.field(init=False, factory=list)  # what a failed push left to do

    def __attrs_post_init__(self) -> None:
        """Start with no row written."""
        self.written = np.zeros(self.n_rows, dtype=bool)

    @property
    def arrays(self) -> list[RowArray]:
        """One array a head, ``(N, *patch_shape)``; call `flush` before reading those on disk."""
        return [store.array for store in self.stores]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows of all heads, written or not."""
        return self.n_rows * sum(spec.row_nbytes for spec in self.specs or ())

    def empty_batch(self) -> list[NDArray[Any]] | dict[str, NDArray[Any]]:
        """Return a batch without rows, with heads like those of the first batch."""
        heads = [np.empty((0, *spec.patch_shape), spec.dtype) for spec in self.specs or ()]
        return heads if self.names is None else dict(zip(self.names, heads, strict=True))

    def place(self, heads: Heads, rows: Rows, n_consumed: int, locs: NDArray[Any]) -> None:
        """Put each prediction in its row: all of them, or none.

        The first call fixes number, names, patch shapes and dtypes of the heads, and makes the stores.

        Parameters
        ----------
        heads : Heads
            One row for each of ``rows``.
        rows : slice or int array
            Where they go, no row twice.
        n_consumed : int
            How many rows are consumed once these are placed.
        locs : (N, K) array
            The canonical locations, to name culprits.

        Raises
        ------
        HeadError, HeadDtypeError
            The heads are not like those of the first batch.
        DuplicateLocationError
            A row is written already and ``on_duplicate`` is "error".
        StorageError
            The disk refused.
        """
        self._put_back()
        is_first = self.specs is None
        if self.specs is not None:
            heads = check_specs(heads, self.specs, self.names)
        arrays = heads.arrays
        seen = self.written[rows]
        repeats = bool(seen.any())
        if repeats and self.on_duplicate == "error":
            self._refuse(np.flatnonzero(seen), locs[rows])
        if repeats and self.on_duplicate == "first":
            rows = _as_numbers(rows)[~seen]
            arrays = tuple(head[~seen] for head in arrays)
        try:
            if is_first:
                self._open(heads)
            self._put(rows, arrays, seen if repeats and self.on_duplicate == "last" else None)
            self.n_consumed = max(self.n_consumed, n_consumed)
        except BaseException:
            if is_first:
                self.close()
            raise

    def flush(self) -> None:
        """Make `arrays` show every row that was placed."""
        self._put_back()
        for store in self.stores:
            store.flush()

    def close(self) -> None:
        """Forget all rows and remove the temporary folder; the canvas is as if never used."""
        self.specs, self.names, self.stores, self._undo = None, None, [], []
        store, self.zarr_store = self.zarr_store, None
        if store is not None:
            store.shut()

    def _refuse(self, repeats: NDArray[np.intp], batch_locs: NDArray[Any]) -> None:
        locations = batch_locs[repeats]
        raise DuplicateLocationError(
            f"pushed before: {named(repeats, 'batch_locs')}, the first being {locations[0].tolist()}; "
            'push each location once, or say on_duplicate="first" or "last"',
            repeats,
            locations,
        )

    def _open(self, heads: Heads) -> None:
        self.specs, self.names = tuple(as_spec(head) for head in heads.arrays), heads.names
        budget = self.budget
        if _memory.fits_in_memory(
            self.nbytes, budget.held_nbytes, budget.memory_threshold, budget.memory_limit
        ):
            # What was there a moment ago may be refused all the same: then the disk serves.
            with contextlib.suppress(MemoryError):
                self.stores = [RamRows(self.n_rows, spec) for spec in self.specs]
                return
        folder = TemporaryFolder(budget.save_path)
        root = folder.path / "result.zarr"
        root.mkdir()
        self.zarr_store = FolderStore(root, folder=folder)
        buffer_nbytes = _memory.buffer_nbytes(BUFFER_NBYTES, budget.memory_limit)
        self.stores = list(create_zarr_rows(self.zarr_store, self.n_rows, self.specs, buffer_nbytes))

    def _put(self, rows: Rows, arrays: tuple[NDArray[Any], ...], seen: NDArray[np.bool_] | None) -> None:
        """Put values in all stores, or put back what was there; ``seen`` marks rows that hold something."""
        if not self.written[rows].size:
            return
        new, again, held = rows, rows, []
        if seen is not None:
            new, again = _as_numbers(rows)[~seen], _as_numbers(rows)[seen]
            held = [store.get(again) for store in self.stores]
        try:
            for store, values in zip(self.stores, arrays, strict=True):
                store.put(rows, values)
            self.written[rows] = True
        except BaseException as failure:
            self.written[new] = False
            # Erasing first: putting back may complete a chunk, which then wants to be written.
            self._undo = [partial(store.erase, new) for store in self.stores]
            self._undo += [
                partial(store.put, again, old) for store, old in zip(self.stores, held, strict=False)
            ]
            try:
                self._put_back()
            except OSError as another:
                failure.add_note(f"Undoing it failed too, and is tried again before anything else: {another}")
            raise

    def _put_back(self) -> None:
        """Undo what a failed push has changed; what fails here stays to be done."""
        failed = None
        for step in list(self._undo):
            try:
                step()
            except OSError as error:
                failed = error
            else:
                self._undo.remove(step)
        if failed is not None:
            raise failed


def _as_numbers(rows: Rows) -> NDArray[np.intp]:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows

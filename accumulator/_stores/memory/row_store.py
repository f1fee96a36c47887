"""What a store of rows can do, in RAM or on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._stores.format.store import FolderStore
    from accumulator.typing import RowArray, Rows


class RowStore(Protocol):
    """All rows of all heads, of which those that were never put hold the fill value and take no room."""

    @property
    def zarr_store(self) -> FolderStore | None:
        """Where its files are; None in RAM."""

    @property
    def part_nbytes(self) -> int:
        """How many bytes may be put at a time."""

    @property
    def buffer_nbytes(self) -> int:
        """Bytes of memory that rows may take on their way to disk; 0 in RAM."""

    @property
    def n_files(self) -> int:
        """How many files all rows take."""

    @property
    def arrays(self) -> list[RowArray]:
        """One array a head, ``(N, *patch_shape)``; what was put is in it after `flush`."""

    def views(self, start: int, stop: int) -> list[NDArray[Any]] | None:
        """Return rows of each head, to be written by whoever puts them next; None on disk."""

    def make_room(self, nbytes: int) -> None:
        """Wait until so many bytes may be put.

        Raises
        ------
        StorageError
            Rows put earlier could not be written. They are still held, and nothing has changed.
        """

    def put(self, rows: Rows, values: Sequence[NDArray[Any]], *, is_lent: bool = False) -> None:
        """Copy each head's values to their rows; they count from `commit` on.

        Values that are lent do not change before `flush`, and may be copied until then.
        """

    def settle(self) -> None:
        """Wait until no value is lent any more."""

    def commit(self) -> None:
        """Let what was put count; after an interrupt it is called again."""

    def discard(self) -> None:
        """Forget what was put since `commit`."""

    def get(self, rows: Rows) -> list[NDArray[Any]]:
        """Return a copy of rows of each head.

        Raises
        ------
        StorageError
            They cannot be read back.
        """

    def flush(self) -> None:
        """Make `arrays` show every row that was put.

        Raises
        ------
        StorageError
            Rows could not be written; those are still held.
        """

    def close(self) -> None:
        """End all threads; what was not flushed is dropped."""

    def remove(self) -> None:
        """Close it, and remove its files if they are temporary."""

"""Rows on local disk: an ordinary zarr v3 array whose chunk files are written here.

zarr makes the metadata and reads everything; a chunk without compression is just its rows one after the
other, and writing that file whole costs a third of going through a zarr array. A chunk is absent, open
(its rows are in a buffer) or on disk, never two of these:

- absent -> open: its first rows come. A batch that covers it whole skips the buffer.
- open -> on disk: its last row has come, so that it is written once and whole. Or too many are open, or
  somebody wants to read: then only the rows that have come are written, and the others stay holes.
- on disk: late rows are written straight to their place in the file.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr
from zarr.storage import LocalStore

from accumulator._stores._folder import TemporaryFolder, storage_error
from accumulator.exceptions import ClosedError, HeadDtypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from accumulator._validation import HeadSpec
    from accumulator.typing import RowArray, Rows

CHUNK_NBYTES: Final = 16 * 2**20
OPEN_CHUNKS: Final = 4  # a head; enough for batches that several loaders deliver slightly out of order
OUTPUTS: Final = "outputs"


class FolderStore(LocalStore):
    """A local zarr store that keeps the temporary folder it lies in alive, and that can move.

    Every array opened from it holds it, so that the files outlive the last array. Once it is closed,
    reading fails: zarr would take the missing chunks for zeros.

    Parameters
    ----------
    root : Path
        The zarr group's folder.
    folder : TemporaryFolder, optional
        The temporary folder that ``root`` lies in; None for a store that stays.
    """

    def __init__(self, root: Path, *, read_only: bool = False, folder: TemporaryFolder | None = None) -> None:
        self.folder = folder
        self.is_closed = False
        super().__init__(root, read_only=read_only)

    @property
    def root(self) -> Path:  # LocalStore asks it before whatever it does
        """The zarr group's folder."""
        if self.is_closed:
            raise ClosedError(f"the result in {self._root} was closed: save() it before close()")
        return self._root

    @root.setter
    def root(self, root: Path) -> None:
        self._root = root

    def move_to(self, root: Path) -> None:
        """Rename the group's folder and serve it from there, where it stays.

        Raises
        ------
        OSError
            The operating system cannot rename it, for one because it is another file system; nothing
            has changed then.
        """
        self.root.rename(root)
        self.root = root
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.remove()

    def keep(self) -> None:
        """Leave the folder to the caller from now on."""
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.keep()

    def shut(self) -> None:
        """Refuse all reading from now on, and remove the temporary folder."""
        self.is_closed = True
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.remove()

    def with_read_only(self, read_only: bool = False) -> FolderStore:  # noqa: FBT001, FBT002  zarr's signature
        """Return the same store, read-only or not."""
        return FolderStore(self.root, read_only=read_only, folder=self.folder)

    def __str__(self) -> str:
        """Return the store as a URL, closed or not."""
        return self._root.as_uri()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy in another process needs: the folder stays with this one."""
        return vars(self) | {"folder": None}


def create_zarr_rows(store: FolderStore, n_rows: int, specs: Iterable[HeadSpec]) -> list[ZarrRows]:
    """Create a zarr group with one array a head, ``outputs/0``, ``outputs/1`` and so on.

    Raises
    ------
    StorageError
        The folder cannot be written.
    HeadDtypeError
        zarr does not know a head's dtype.
    """
    try:
        outputs = zarr.create_group(store=store, zarr_format=3).create_group(OUTPUTS)
        return [ZarrRows(_create_array(outputs, str(head), n_rows, spec)) for head, spec in enumerate(specs)]
    except OSError as cause:
        raise storage_error(cause, f"no zarr group can be made in {store.root}") from cause


def _create_array(group: zarr.Group, name: str, n_rows: int, spec: HeadSpec) -> zarr.Array[Any]:
    chunk_rows = max(1, min(n_rows, CHUNK_NBYTES // max(1, spec.row_nbytes)))
    try:
        return group.create_array(
            name,
            shape=(n_rows, *spec.patch_shape),
            chunks=(chunk_rows, *(max(1, length) for length in spec.patch_shape)),
            dtype=spec.dtype,
            compressors=None,
            filters=None,
            fill_value=0,
            # "." keeps all chunks of an array in one folder; "/" would make a folder for each.
            chunk_key_encoding={"name": "default", "separator": "."},
        )
    except ValueError as cause:
        raise HeadDtypeError(
            f"head {name} has dtype {spec.dtype}, which zarr cannot store: convert it to float64, or "
            "give it more memory"
        ) from cause


@attrs.define(eq=False)
class _OpenChunk:
    """Rows of one chunk that wait for the others."""

    buffer: NDArray[Any]  # (rows of the chunk, *patch_shape); rows that have not come hold anything
    filled: NDArray[np.bool_]
    n_filled: int = 0

    def fill(self, local: Rows, values: NDArray[Any]) -> None:
        self.n_filled += len(values) - int(np.count_nonzero(self.filled[local]))
        self.buffer[local] = values
        self.filled[local] = True

    def get(self, local: Rows) -> NDArray[Any]:
        filled = self.filled[local]
        mask = filled.reshape(len(filled), *(1 for _ in self.buffer.shape[1:]))
        return np.where(mask, self.buffer[local], self.buffer.dtype.type(0))

    def clear(self, local: Rows) -> None:
        self.n_filled -= int(np.count_nonzero(self.filled[local]))
        self.filled[local] = False


class ZarrRows:
    """All rows of one head in one zarr array of which only what was written takes space.

    At most `OPEN_CHUNKS` chunks are in memory. After a `StorageError` what was held in memory still is,
    and no chunk file is left half written.
    """

    def __init__(self, array: zarr.Array[Any]) -> None:
        self.array = array
        self._dtype = array.dtype.newbyteorder("<")
        self._patch_shape = array.shape[1:]
        self._row_nbytes = array.dtype.itemsize * int(np.prod(self._patch_shape, dtype=np.int64))
        self._n_rows, self._chunk_rows = array.shape[0], array.chunks[0]
        self._open: OrderedDict[int, _OpenChunk] = OrderedDict()
        self._on_disk: set[int] = set()
        self._spare: NDArray[Any] | None = None  # the last buffer, its pages already touched

    def put(self, rows: Rows, values: NDArray[Any]) -> None:
        """Copy values to their rows: into open chunks, and to disk what is complete."""
        if self._row_nbytes == 0:
            return
        for chunk, local, where in _by_chunk(rows, self._chunk_rows):
            if chunk in self._on_disk:
                self._write(chunk, _runs(local, values[where]))
            elif chunk in self._open or not self._covers(chunk, local):
                self._fill(chunk, local, values[where])
            else:
                self._write(chunk, [(0, values[where])])

    def get(self, rows: Rows) -> NDArray[Any]:
        """Return a copy of rows, zeros where nothing was written."""
        n_rows = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        values = np.zeros((n_rows, *self._patch_shape), self._dtype)
        for chunk, local, where in _by_chunk(rows, self._chunk_rows):
            if chunk in self._open:
                values[where] = self._open[chunk].get(local)
            elif chunk in self._on_disk:
                values[where] = self._read(chunk)[local]
        return values

    def erase(self, rows: Rows) -> None:
        """Make rows zero again."""
        for chunk, local, _ in _by_chunk(rows, self._chunk_rows):
            if chunk in self._open:
                self._open[chunk].clear(local)
            elif chunk in self._on_disk and (stale := self._read(chunk)[local]).any():
                self._write(chunk, _runs(local, np.zeros_like(stale)))

    def flush(self) -> None:
        """Write the open chunks, so that `array` shows every row; their other rows stay holes."""
        for chunk in list(self._open):
            self._close_chunk(chunk)
        self._spare = None

    def _covers(self, chunk: int, local: Rows) -> bool:
        return isinstance(local, slice) and local.stop - local.start == self._size(chunk)

    def _size(self, chunk: int) -> int:
        """Return how many rows a chunk has: the last one may have fewer."""
        return min(self._chunk_rows, self._n_rows - chunk * self._chunk_rows)

    def _fill(self, chunk: int, local: Rows, values: NDArray[Any]) -> None:
        if chunk not in self._open:
            while len(self._open) >= OPEN_CHUNKS:
                self._close_chunk(next(iter(self._open)))
            self._open[chunk] = self._new_chunk(self._size(chunk))
        held = self._open[chunk]
        self._open.move_to_end(chunk)
        held.fill(local, values)
        if held.n_filled == len(held.filled):
            self._close_chunk(chunk)

    def _new_chunk(self, size: int) -> _OpenChunk:
        buffer, self._spare = self._spare, None
        if buffer is None:
            buffer = np.empty((self._chunk_rows, *self._patch_shape), self._dtype)
        return _OpenChunk(buffer[:size], np.zeros(size, dtype=bool))

    def _close_chunk(self, chunk: int) -> None:
        held = self._open[chunk]
        if held.n_filled:
            edges = np.flatnonzero(np.diff(held.filled, prepend=False, append=False)).tolist()
            runs = zip(edges[::2], edges[1::2], strict=True)
            self._write(chunk, [(start, held.buffer[start:stop]) for start, stop in runs])
        del self._open[chunk]
        self._spare = held.buffer.base

    def _write(self, chunk: int, runs: Iterable[tuple[int, NDArray[Any]]]) -> None:
        """Write runs of rows, each from its first row on, into a chunk's file."""
        path = _chunk_path(self.array, chunk)
        fresh = chunk not in self._on_disk
        try:
            with path.open("xb" if fresh else "r+b", buffering=0) as file:
                for first, values in runs:
                    file.seek(first * self._row_nbytes)
                    left = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data
                    while left:
                        left = left[file.write(left) :]
                if fresh:  # zarr wants whole chunks: rows that have not come are a hole
                    file.truncate(self._chunk_rows * self._row_nbytes)
        except BaseException as cause:
            if fresh:
                path.unlink(missing_ok=True)
            if isinstance(cause, OSError):
                first_row = chunk * self._chunk_rows
                what = f"rows {first_row} to {first_row + self._size(chunk) - 1} cannot be written"
                raise storage_error(cause, what) from cause
            raise
        self._on_disk.add(chunk)

    def _read(self, chunk: int) -> NDArray[Any]:
        """Look at the rows of a chunk that is on disk."""
        shape = (self._chunk_rows, *self._patch_shape)
        return np.memmap(_chunk_path(self.array, chunk), self._dtype, mode="r", shape=shape)


def _by_chunk(rows: Rows, chunk_rows: int) -> Iterator[tuple[int, Rows, Rows]]:
    """Yield each chunk that rows lie in, which of its rows they are, and which of the given ones."""
    if isinstance(rows, slice):
        for chunk in range(rows.start // chunk_rows, -(-rows.stop // chunk_rows)):
            first = chunk * chunk_rows
            start, stop = max(rows.start, first), min(rows.stop, first + chunk_rows)
            yield (
                chunk,
                slice(start - first, stop - first),
                slice(start - rows.start, stop - rows.start),
            )
        return
    chunks = rows // chunk_rows
    order = np.argsort(chunks, kind="stable")
    for where in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1):
        if len(where):
            chunk = int(chunks[where[0]])
            yield chunk, rows[where] - chunk * chunk_rows, where


def _runs(local: Rows, values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield values in runs of rows that follow each other, with the first row of each run."""
    if isinstance(local, slice):
        yield local.start, values
        return
    order = np.argsort(local, kind="stable")
    for run in np.split(order, np.flatnonzero(np.diff(local[order]) != 1) + 1):
        yield int(local[run[0]]), values[run]


def copy_rows(source: RowArray, target: ZarrRows) -> None:
    """Copy all rows that are not zero, chunk by chunk, so that gaps stay gaps."""
    n_rows, step = target.array.shape[0], target.array.chunks[0]
    for chunk, start in enumerate(range(0, n_rows, step)):
        if (
            isinstance(source, zarr.Array)
            and isinstance(source.store, FolderStore)  # ours, and so with the same chunks
            and not _chunk_path(source, chunk).exists()
        ):
            continue
        block = np.asarray(source[start : start + step])
        rows = np.flatnonzero(block.reshape(len(block), -1).any(axis=1))
        if len(rows) == len(block):
            target.put(slice(start, start + len(block)), block)
        elif len(rows):
            target.put(start + rows, block[rows])
    target.flush()


def _chunk_path(array: zarr.Array[Any], chunk: int) -> Path:
    """Return the file of a chunk of whole rows."""
    key = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
    store: Any = array.store
    return Path(store.root, array.path, key)

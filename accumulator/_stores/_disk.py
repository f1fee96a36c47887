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

import errno
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr
from zarr.storage import StorePath

from accumulator._stores._folder import storage_error
from accumulator._stores._folder_store import FolderStore
from accumulator.exceptions import HeadDtypeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from accumulator._validation import HeadSpec
    from accumulator.exceptions import StorageError
    from accumulator.typing import RowArray, Rows

    _Piece = tuple[int, NDArray[Any]]  # an offset in bytes, and what goes there

CHUNK_NBYTES: Final = 16 * 2**20
OPEN_CHUNKS: Final = 4  # a head; enough for batches that several loaders deliver slightly out of order
BUFFER_NBYTES: Final = 256 * 2**20  # what open chunks of all heads may take together
BLOCK_NBYTES: Final = 4096  # what file systems allocate at once: a gap below it saves nothing
OUTPUTS: Final = "outputs"


def create_zarr_rows(
    store: FolderStore, n_rows: int, specs: Sequence[HeadSpec], buffer_nbytes: int = BUFFER_NBYTES
) -> list[ZarrRows]:
    """Create a zarr group with one array a head, ``outputs/0``, ``outputs/1`` and so on.

    Parameters
    ----------
    store : FolderStore
        Where.
    n_rows : int
        N, the same for all heads.
    specs : sequence of HeadSpec
        The heads.
    buffer_nbytes : int
        What their open chunks may take in memory together. With little of it fewer chunks are open, and
        then smaller ones; a chunk has one row at least.

    Raises
    ------
    StorageError
        The folder cannot be written.
    HeadDtypeError
        zarr does not know a head's dtype.
    """
    n_heads = max(1, len(specs))
    open_chunks = max(1, min(OPEN_CHUNKS, buffer_nbytes // (n_heads * CHUNK_NBYTES)))
    chunk_nbytes = min(CHUNK_NBYTES, buffer_nbytes // (n_heads * open_chunks))
    for head, spec in enumerate(specs):
        if spec.dtype.char in "gG":  # long double, which only NumPy knows
            raise HeadDtypeError(f"head {head} has dtype {spec.dtype}, which zarr cannot store: use float64")
    try:
        outputs = zarr.create_group(store=store, zarr_format=3).create_group(OUTPUTS)
        return [
            ZarrRows(_create_array(outputs, str(head), n_rows, spec, chunk_nbytes), open_chunks)
            for head, spec in enumerate(specs)
        ]
    except OSError as cause:
        raise storage_error(cause, f"no zarr group can be made in {store}") from cause


def read_only(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array for reading alone."""
    store = array.store.with_read_only(read_only=True)
    return zarr.Array(zarr.AsyncArray(metadata=array.metadata, store_path=StorePath(store, array.path)))


def _create_array(
    group: zarr.Group, name: str, n_rows: int, spec: HeadSpec, chunk_nbytes: int
) -> zarr.Array[Any]:
    chunk_rows = max(1, min(n_rows, chunk_nbytes // max(1, spec.row_nbytes)))
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

    A few chunks are in memory, no more than ``open_chunks``. After a `StorageError` what was held in
    memory still is, and no chunk file is left half written.
    """

    def __init__(self, array: zarr.Array[Any], open_chunks: int) -> None:
        self.array = array
        self._open_chunks = open_chunks
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
                self._write(chunk, self._late(chunk, local, values[where]))
            elif chunk in self._open or not self._covers(chunk, local):
                self._fill(chunk, local, values[where])
            else:
                self._write(chunk, [(0, values[where])])

    def get(self, rows: Rows) -> NDArray[Any]:
        """Return a copy of rows, zeros where nothing was written."""
        values = np.zeros((_count(rows), *self._patch_shape), self._dtype)
        for chunk, local, where in _by_chunk(rows, self._chunk_rows):
            if chunk in self._open:
                values[where] = self._open[chunk].get(local)
            elif chunk in self._on_disk:
                values[where] = self._read_rows(chunk, local)
        return values

    def erase(self, rows: Rows) -> None:
        """Make rows zero again."""
        for chunk, local, _ in _by_chunk(rows, self._chunk_rows):
            if chunk in self._open:
                self._open[chunk].clear(local)
            elif chunk in self._on_disk:
                self._write(chunk, self._zeros(chunk, local))

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
            while len(self._open) >= self._open_chunks:
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
        if held.n_filled == len(held.filled):
            self._write(chunk, [(0, held.buffer)])
        elif held.n_filled:
            rows = np.flatnonzero(held.filled)
            if self._gap_rows:
                held.buffer[~held.filled] = 0  # gaps below a block are written along
            spans = [(int(rows[a]), int(rows[b - 1]) + 1) for a, b in _spans(rows, self._gap_rows)]
            self._write(chunk, [(a * self._row_nbytes, held.buffer[a:b]) for a, b in spans])
        del self._open[chunk]
        self._spare = held.buffer.base

    @property
    def _gap_rows(self) -> int:
        """Rows that may be written along with their neighbours, to save a call for each."""
        return BLOCK_NBYTES // self._row_nbytes

    def _late(self, chunk: int, local: Rows, values: NDArray[Any]) -> Iterator[_Piece]:
        """Yield pieces that put rows into a chunk on disk, with what is there between close ones."""
        if isinstance(local, slice):
            yield local.start * self._row_nbytes, values
            return
        order = np.argsort(local, kind="stable")
        rows = local[order]
        for a, b in _spans(rows, self._gap_rows):
            first, stop = int(rows[a]), int(rows[b - 1]) + 1
            piece = values[order[a:b]]
            if stop - first != b - a:
                piece = self._read(chunk, first, stop)
                piece[rows[a:b] - first] = values[order[a:b]]
            yield first * self._row_nbytes, piece

    def _zeros(self, chunk: int, local: Rows) -> Iterator[_Piece]:
        """Yield zeros for those blocks of rows that hold anything: a hole stays one.

        So this needs no space, and works on a disk that is full.
        """
        rows = np.arange(local.start, local.stop) if isinstance(local, slice) else local
        for row in rows.tolist():
            start = row * self._row_nbytes
            stale = np.flatnonzero(self._read(chunk, row, row + 1).reshape(-1).view(np.uint8))
            for block in np.unique((stale + start) // BLOCK_NBYTES).tolist():
                first = max(start, block * BLOCK_NBYTES)
                stop = min(start + self._row_nbytes, (block + 1) * BLOCK_NBYTES)
                yield first, np.zeros((stop - first) // self._dtype.itemsize, self._dtype)

    def _write(self, chunk: int, pieces: Iterable[_Piece]) -> None:
        """Write pieces into a chunk's file, each at its offset in bytes; make the file if need be."""
        fresh = chunk not in self._on_disk
        path = _chunk_path(self.array, chunk)
        try:
            with path.open("xb" if fresh else "r+b", buffering=0) as file:
                for offset, values in pieces:
                    left = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data
                    file.seek(offset)
                    while left:
                        left = left[file.write(left) :]
                if fresh:  # zarr wants whole chunks: rows that have not come are a hole
                    file.truncate(self._chunk_rows * self._row_nbytes)
        except BaseException as cause:
            if fresh:
                path.unlink(missing_ok=True)
            if isinstance(cause, OSError):
                raise self._storage_error(cause, chunk, "written") from cause
            raise
        self._on_disk.add(chunk)

    def _read_rows(self, chunk: int, local: Rows) -> NDArray[Any]:
        """Read any rows of a chunk that is on disk."""
        if isinstance(local, slice):
            return self._read(chunk, local.start, local.stop)
        order = np.argsort(local, kind="stable")
        rows = local[order]
        values = np.empty((len(rows), *self._patch_shape), self._dtype)
        for a, b in _spans(rows, self._gap_rows):
            first = int(rows[a])
            values[order[a:b]] = self._read(chunk, first, int(rows[b - 1]) + 1)[rows[a:b] - first]
        return values

    def _read(self, chunk: int, start: int, stop: int) -> NDArray[Any]:
        """Read rows that follow each other. Not by mmap: touching a hole may need space."""
        values = np.empty((stop - start, *self._patch_shape), self._dtype)
        left = values.reshape(-1).view(np.uint8).data
        path = _chunk_path(self.array, chunk)
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start * self._row_nbytes)
                while left and (n_read := file.readinto(left)):
                    left = left[n_read:]
        except OSError as cause:
            raise self._storage_error(cause, chunk, "read") from cause
        if left:
            cut = OSError(errno.EIO, "the chunk file was cut", str(path))
            raise self._storage_error(cut, chunk, "read")
        return values

    def _storage_error(self, cause: OSError, chunk: int, action: str) -> StorageError:
        first = chunk * self._chunk_rows
        rows = f"rows {first} to {first + self._size(chunk) - 1} of head {self.array.basename}"
        return storage_error(cause, f"{rows} cannot be {action}", str(_chunk_path(self.array, chunk)))


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


def _spans(rows: NDArray[np.intp], gap: int) -> Iterator[tuple[int, int]]:
    """Yield runs of rising rows, as positions in the array; a gap up to the given one is run over."""
    cuts = (np.flatnonzero(np.diff(rows) > gap + 1) + 1).tolist()
    yield from itertools.pairwise([0, *cuts, len(rows)])


def _count(rows: Rows) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def copy_rows(source: RowArray, target: ZarrRows) -> None:
    """Copy all rows that hold anything, chunk by chunk of the source, so that gaps stay gaps."""
    is_ours = isinstance(source, zarr.Array) and isinstance(source.store, FolderStore)
    step = source.chunks[0] if isinstance(source, zarr.Array) else target.array.chunks[0]
    for chunk, start in enumerate(range(0, source.shape[0], step)):
        if is_ours and not _chunk_path(source, chunk).exists():
            continue
        block = np.ascontiguousarray(source[start : start + step])
        # Not its values: minus zero is something too.
        rows = np.flatnonzero(block.reshape(len(block), -1).view(np.uint8).any(axis=1))
        if len(rows) == len(block):
            target.put(slice(start, start + len(block)), block)
        elif len(rows):
            target.put(start + rows, block[rows])
    target.flush()


def _chunk_path(array: Any, chunk: int) -> Path:
    """Return the file of a chunk of whole rows."""
    key = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
    return Path(array.store.root, array.path, key)

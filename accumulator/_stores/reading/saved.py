"""Opening a group that may come from a stranger, or be damaged: nothing of it is believed unchecked."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from accumulator._inputs.heads import Heads
from accumulator._stores.files.errors import is_refusal
from accumulator._stores.format.arrays import open_group
from accumulator._stores.format.layout import BUFFER_NBYTES, COMPRESSORS, HANDED_CHUNKS
from accumulator._stores.format.mark import (
    COMPLETE,
    CREATING,
    Mark,
    hash_locations,
    hash_of,
    hash_written,
    read_json,
    read_mark,
    stamp_of,
)
from accumulator._stores.format.names import OUTPUTS
from accumulator._stores.format.record import record_chunks
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory.threads import n_cores
from accumulator.exceptions import AccumulatorError, ResultFormatError, UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_SHARDS: Final = "sharding_indexed"
_KEYS: Final = {"name": "default", "configuration": {"separator": "."}}
_FEW_PIECES: Final = 2**16  # of a row: more are believed only where as many files are there
_INDEX_NBYTES: Final = 16  # of a piece, in a shard's index
_FIXED_NBYTES: Final = 4  # of a CRC
_MOST_DEPTH: Final = 8  # of folders: half of it is used
_MOST_LOCATION: Final = 2**63
_MOST_COLUMNS: Final = 2**10  # of locations: a box of an image has two for each of its few axes
_MOST_METADATA: Final = 16 * 2**20
_NUMBER_NBYTES: Final = 16  # of a number of the record, with what is made of it
_COPIES: Final = 3  # of rows that are decoded: compressed, decompressed, and in their place
_OURS_NBYTES: Final = BUFFER_NBYTES // (1 + HANDED_CHUNKS)  # of chunks that the library itself would write


@attrs.frozen(eq=False)
class SavedResult:
    """What `read_result` finds."""

    store: FolderStore
    mark: Mark
    arrays: list[zarr.Array[Any]]
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]
    checksums: NDArray[np.uint64]  # (N, heads)
    stamp: tuple[tuple[int, int], ...]  # of when it was opened: see `stamp_of`

    @property
    def heads(self) -> Heads[zarr.Array[Any]]:
        """The arrays, with their names."""
        names = self.mark.names
        return Heads(tuple(self.arrays), None if names is None else tuple(names))


def read_result(path: Path, *, is_partial: bool = False, most_nbytes: int | None = None) -> SavedResult:
    """Open a result for reading alone; the outputs stay on disk.

    Parameters
    ----------
    path : Path
        The group's folder.
    is_partial : bool
        Take a run that is not complete, too.
    most_nbytes : int, optional
        What may be taken in memory: by the record, and by chunks that are looked at together.

    Raises
    ------
    ResultFormatError
        The folder is not a result, is damaged, or its parts do not fit together.
    UnfinishedError
        The run is not complete.
    """
    if not path.is_dir():
        raise ResultFormatError(f"{path} is a file: a saved result is a folder")
    stamp, mark = stamp_of(path), read_mark(path)
    if mark.state == CREATING or (mark.state != COMPLETE and not is_partial):
        raise UnfinishedError(
            f"{path} is a run that is not complete: resume it with FullBatchAccumulator(..., store=, "
            'mode="a"), or look at what there is with FullBatch.load(path, partial=True)'
        )
    check_tree(path)
    store = FolderStore(path, read_only=True)
    store.limit(_MOST_METADATA)
    for name in mark.parts:
        file = path / name / "zarr.json"
        document = read_json(file, path)
        if hash_of(file) != mark.arrays.get(name):
            raise ResultFormatError(f"{path} is damaged: the metadata of {name} was changed")
        if name != OUTPUTS:
            _check_codecs(document, path / name)
    try:
        group: Any = open_group(store, mode="r")
        outputs: Any = open_group(store, OUTPUTS, mode="r")
        arrays = [outputs[str(head)] for head in range(mark.n_heads)]
        for head, array in enumerate(arrays):
            _check_output(array, mark, most_nbytes, path / OUTPUTS / str(head))
        parts = _record(group, mark, most_nbytes, path)
        written = _read(parts[0], path).view(np.uint8) != 0
        checksums = _read(parts[1], path, written)
        locs = _read(parts[2], path)
    except Exception as cause:  # whatever zarr and its codecs raise for what is none of their own
        if isinstance(cause, AccumulatorError) or is_refusal(cause):
            raise
        raise ResultFormatError(f"{path} is damaged: it cannot be opened ({cause!r})") from cause
    _check_record(mark, locs, written, path)
    return SavedResult(store, mark, arrays, locs, written, checksums, stamp)


def check_tree(path: Path, *, is_written: bool = False) -> None:
    """Refuse a folder that holds anything but folders and files: a link may lead out of it.

    ``is_written`` says that files will be changed in their place: one that has another name elsewhere, as in
    a copy made of hard links, would change there too.

    Raises
    ------
    ResultFormatError
        It does.
    """
    root = len(path.parts)
    for entry in walk(path):
        if len(Path(entry.path).parts) - root > _MOST_DEPTH:
            raise ResultFormatError(f"{path} is damaged: it holds folders in folders without end")
        is_file = entry.is_file(follow_symlinks=False)
        if not (entry.is_dir(follow_symlinks=False) or is_file):
            kind = "a symbolic link" if entry.is_symlink() else "not a file"
            raise ResultFormatError(f"{entry.path} is {kind}: a store holds folders and files alone")
        if is_written and is_file and entry.stat(follow_symlinks=False).st_nlink > 1:
            raise ResultFormatError(
                f"{entry.path} has another name (a hard link), and would be changed there too: resume a copy "
                "of the store"
            )


def walk(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield whatever is below a folder, however deep, following no link."""
    folders = [os.fspath(path)]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            if folder == os.fspath(path):
                raise
            continue  # whoever writes it has removed it
        with entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _record(group: Any, mark: Mark, most_nbytes: int | None, path: Path) -> list[zarr.Array[Any]]:
    """Return the arrays that belong to all heads, which fit in memory together; nothing is read yet."""
    n = mark.n_rows
    parts = [
        _part(group, path, "written", (n,), "b"),
        _part(group, path, "checksums", (n, mark.n_heads), "u"),
        _part(group, path, "output_locs", (n, None), "iuf"),
    ]
    nbytes = _NUMBER_NBYTES * sum(part.size for part in parts)
    if most_nbytes is not None and nbytes > most_nbytes:
        raise ResultFormatError(
            f"{path} has a record of {n} rows, which takes {nbytes} bytes, and {most_nbytes} bytes of memory "
            "are available: read it on a larger machine"
        )
    return parts


def _part(group: Any, path: Path, name: str, shape: tuple[int | None, ...], kinds: str) -> zarr.Array[Any]:
    """Return one of the record's arrays, of which nothing is read yet."""
    array: zarr.Array[Any] = group[name]
    fits = array.ndim == len(shape) and all(
        length in (None, actual) for length, actual in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in kinds or array.chunks != record_chunks(name, array.shape):
        raise ResultFormatError(f"{path} is damaged: {name} has shape {array.shape} and dtype {array.dtype}")
    if name == "output_locs" and array.shape[1] > _MOST_COLUMNS:
        raise ResultFormatError(
            f"{path} has locations of {array.shape[1]} numbers each, and {_MOST_COLUMNS} are the most"
        )
    if [type(codec) for codec in array.compressors] != [Crc32cCodec] or array.shards:
        raise ResultFormatError(f"{path} is damaged: {name} is not stored as it should be")
    return array


def _read(array: Any, path: Path, needed: NDArray[np.bool_] | None = None) -> Any:
    """Read a whole array, of which every chunk must be there, or every one with needed rows."""
    name, step = array.basename, array.chunks[0]
    nbytes = math.prod(array.chunks) * array.dtype.itemsize + _FIXED_NBYTES
    for chunk in range(-(-array.shape[0] // step) if array.size else 0):
        key = array.metadata.encode_chunk_key((chunk, *(0 for _ in array.shape[1:])))
        try:
            size = (path / name / key).lstat().st_size
        except FileNotFoundError:
            size = None
        may_miss = needed is not None and not needed[chunk * step : (chunk + 1) * step].any()
        if size != nbytes and not (may_miss and size is None):
            what = "is missing" if size is None else f"has {size} bytes, not {nbytes}"
            raise ResultFormatError(f"{path} is damaged: {name}/{key} {what}")
    array.store.limit(max(_MOST_METADATA, nbytes))
    return np.asarray(array[...]) if array.size else np.zeros(array.shape, array.dtype)


def _check_record(mark: Mark, locs: NDArray[Any], written: NDArray[np.bool_], path: Path) -> None:
    """Refuse locations and written rows that are not those of the mark."""
    if locs.dtype.kind == "f" and not (np.abs(locs) < _MOST_LOCATION).all():
        raise ResultFormatError(f"{path} is damaged: its locations are no whole numbers")
    if mark.locations != hash_locations(locs):
        raise ResultFormatError(f"{path} is damaged: its locations were changed")
    if mark.state == COMPLETE and mark.written != hash_written(written):
        raise ResultFormatError(f"{path} is damaged: which rows are written was changed")


def _check_output(array: Any, mark: Mark, most_nbytes: int | None, where: Path) -> None:
    """Refuse a head that is no array of the rows, or that no memory and no patience would do for."""
    if not isinstance(array, zarr.Array) or array.ndim < 1 or array.shape[0] != mark.n_rows:
        raise ResultFormatError(f"{where} is damaged: it is no array of {mark.n_rows} rows")
    if array.dtype.kind not in "biufc" or min(array.chunks) < 1:
        raise ResultFormatError(f"{where} is damaged: it has dtype {array.dtype} and chunks {array.chunks}")
    unit = array.shards or array.chunks
    n_rows = max(1, min(unit[0], array.shape[0]))  # that are read at once, from all files that they are in
    nbytes = array.dtype.itemsize * max(math.prod(unit), n_rows * math.prod(array.shape[1:]))
    is_raw = not array.compressors and not array.shards and unit[1:] == array.shape[1:]
    needed = nbytes if is_raw else _COPIES * nbytes
    if nbytes > _OURS_NBYTES:  # those that are smaller need no large machine, however many cores it has
        needed *= max(1, min(n_cores(), -(-array.shape[0] // unit[0])))
    if most_nbytes is not None and needed > most_nbytes:
        raise ResultFormatError(
            f"{where} has chunks or rows of {nbytes} bytes, which take {needed} bytes to check, and "
            f"{most_nbytes} bytes of memory are available: read it on a larger machine"
        )
    n_files = math.prod(-(-length // size) for length, size in zip(array.shape[1:], unit[1:], strict=True))
    n_pieces = math.prod(unit) // math.prod(array.chunks)
    if max(n_files, n_pieces) > _FEW_PIECES:
        sizes = [entry.stat(follow_symlinks=False).st_size for entry in walk(where)]
        if n_files > len(sizes) or n_pieces > max(sizes) // _INDEX_NBYTES:
            raise ResultFormatError(f"{where} is damaged: its rows are in {n_files * n_pieces} pieces")


def _check_codecs(document: Any, where: Path) -> None:
    """Refuse what no result is stored with: another codec is code that somebody else wrote."""
    if document.get("chunk_key_encoding") != _KEYS:
        raise ResultFormatError(f"{where} is damaged: its chunks have other names")
    codecs = _codecs(document.get("codecs"), where)
    if [name for name, _ in codecs] == [_SHARDS]:
        for key in ("codecs", "index_codecs"):
            _check_chain(_codecs(codecs[0][1].get(key), where), where)
    else:
        _check_chain(codecs, where)


def _check_chain(codecs: list[tuple[str, dict[str, Any]]], where: Path) -> None:
    """Refuse anything but bytes as they are, and compressors behind them."""
    for position, (name, configuration) in enumerate(codecs):
        is_fitting = name in COMPRESSORS
        if position == 0:  # rows are checked as they lie in their file: it must have them as they are
            is_fitting = name == "bytes" and configuration.get("endian", "little") == "little"
        if not is_fitting:
            raise ResultFormatError(f"{where} uses the codec {name!r}, which no result is stored with")


def _codecs(plain: Any, where: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and settings of codecs."""
    found = []
    for codec in plain if isinstance(plain, list) else []:
        named = {"name": codec} if isinstance(codec, str) else codec
        name = named.get("name") if isinstance(named, dict) else None
        configuration = named.get("configuration", {}) if isinstance(named, dict) else None
        if not isinstance(name, str) or not isinstance(configuration, dict):
            raise ResultFormatError(f"{where} is damaged: it has codecs that are none")
        found.append((name, configuration))
    if not found:
        raise ResultFormatError(f"{where} is damaged: it has no codecs")
    return found

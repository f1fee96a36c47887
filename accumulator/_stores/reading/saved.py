"""Opening a store to read: what can be checked is not believed, and whoever writes it is not disturbed."""

from __future__ import annotations

import contextlib
import errno
import math
import stat
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from zarr.codecs import Crc32cCodec

from accumulator._inputs.heads import Heads
from accumulator._stores.files.errors import is_refusal, storage_error, telling
from accumulator._stores.format.arrays import open_group, over
from accumulator._stores.format.mark import (
    COMPLETE,
    CREATING,
    MOST_METADATA,
    Mark,
    hash_locations,
    hash_of,
    hash_written,
    read_json,
    read_mark,
)
from accumulator._stores.format.names import MAPS, OUTPUTS, PARTS, PATCHES, SCRATCH, record_chunks
from accumulator._stores.format.store import FolderStore
from accumulator._stores.reading.trust import check_codecs, check_output, check_tree
from accumulator.exceptions import AccumulatorError, ResultFormatError, ResultNotFoundError, UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

_FIXED_NBYTES: Final = 4  # of a CRC
_MOST_LOCATION: Final = 2**63
_MOST_COLUMNS: Final = 2**10  # of locations: a box of an image has two for each of its few axes
_RANKS: Final = "run.json"  # in `PARTS`: what ranks agree on, until all of it is published
_PUBLISH: Final = (
    "accumulator.publish(path), or `accumulator publish` in a shell, makes a result of what they have"
)
_NUMBER_NBYTES: Final = 16  # of a number of the record, with what is made of it


@attrs.frozen(eq=False)
class SavedResult:
    """A store, and all of it but the rows."""

    store: FolderStore
    mark: Mark
    arrays: list[zarr.Array[Any]]
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]
    checksums: Sequence[NDArray[np.uint64]]  # of each head, (N,)
    stamp: tuple[tuple[int, int], ...]  # of when it was opened: see `stamp_of`

    @property
    def heads(self) -> Heads[zarr.Array[Any]]:
        """The arrays, with their names."""
        names = self.mark.names
        return Heads(tuple(self.arrays), None if names is None else tuple(names))


def stamp_of(root: Path) -> tuple[tuple[int, int], ...]:
    """Return what changes with the mark and with the record: times and numbers of inodes."""
    stamps = []
    for name in ("zarr.json", "written", "checksums"):
        with contextlib.suppress(OSError):
            status = (root / name).lstat()
            stamps.append((status.st_ino, status.st_mtime_ns))
    return tuple(stamps)


def open_mark(path: Path) -> Mark:
    """Return what a store says of itself.

    ResultNotFoundError tells that there is nothing, ResultFormatError that it is no store, StorageError that
    the operating system does not let us look. UnfinishedError tells that ranks write it, of whom nothing was
    published yet; and that maps are not finished.
    """
    with telling(f"{path} cannot be read"):
        try:
            path.stat()
        except FileNotFoundError as cause:
            raise ResultNotFoundError(errno.ENOENT, "there is no saved result", str(path)) from cause
    if not path.is_dir():
        raise ResultFormatError(f"{path} is a file: a saved result is a folder")
    is_map = has_patches(path)
    has_ranks = _has_ranks(path)
    if is_map and not (path / "zarr.json").exists():
        raise unfinished_map(path)
    if has_ranks and not (path / "zarr.json").exists():
        raise _unpublished(path)
    mark = read_mark(path)
    if is_map and not (mark.is_complete or has_ranks):
        raise unfinished_map(path)
    return mark


def _has_ranks(path: Path) -> bool:
    """Whether several ranks write a store, or have written it, and not all is published."""
    with telling(f"{path} cannot be read"):
        return (path / PARTS / _RANKS).exists()


def _unpublished(path: Path) -> UnfinishedError:
    return UnfinishedError(
        f"{path} is a run of several ranks, of which nothing was published yet: {_PUBLISH}, with "
        "partial=True also while they are at work"
    )


def has_patches(root: Path) -> bool:
    """Whether a store holds maps, or is to: it has a folder for what they are made of."""
    if expects_patches(root):
        return True
    with telling(f"{root} cannot be read"):
        is_group = (root / PATCHES / "zarr.json").is_file()
        if is_group and (root / "zarr.json").exists():
            return True  # or damaged, which is told when it is read
    return is_group and _tells_of_maps(root / PATCHES)


def is_map(root: Path) -> bool:
    """Whether a store holds maps, or those of one shape of several, of which the folder above tells."""
    root = root.resolve()
    if has_patches(root):
        return True
    return root.name.isdecimal() and (expects_patches(root.parent) or _tells_of_maps(root.parent))


def _tells_of_maps(folder: Path) -> bool:
    with contextlib.suppress(ResultFormatError):
        attributes = read_json(folder / "zarr.json", folder).get("attributes")
        return isinstance(attributes, dict) and MAPS in attributes
    return False


def expects_patches(root: Path) -> bool:
    """Whether a stitcher has begun maps there, and not come to its end."""
    with telling(f"{root} cannot be read"):
        return (root / PATCHES / SCRATCH).is_dir()


def unfinished_map(path: Path) -> UnfinishedError:
    """Return what is said of maps whose stitcher has not finished."""
    return UnfinishedError(
        f"{path} is an unfinished map, and maps are not resumed: unless it is being stitched just now, "
        "remove it and stitch again"
    )


def open_result(
    path: Path,
    *,
    mark: Mark | None = None,
    is_partial: bool = False,
    is_written: bool = False,
    most_nbytes: int | None = None,
) -> SavedResult:
    """Open a result for reading alone; the outputs stay on disk.

    ``mark`` is what it says of itself, where nobody can have changed that since it was read. A run that is
    not complete is taken if ``is_partial``, else UnfinishedError is raised. If its files are about to be
    written, ``is_written``, none may have another name. The record may take ``most_nbytes`` of memory, and so
    may the chunks that are looked at together. Other errors are those of `open_mark`, also for damage.
    """
    stamp = stamp_of(path)
    mark = mark or open_mark(path)
    if mark.state == CREATING:
        if _has_ranks(path):
            raise _unpublished(path)
        raise UnfinishedError(
            f"{path} is a run of which nothing was recorded yet: if it has ended, run it again with "
            'FullBatchAccumulator(..., store=, mode="a")'
        )
    if not (is_partial or mark.is_complete):
        if _has_ranks(path):
            raise UnfinishedError(
                f"{path} is a run of several ranks that is not complete: {_PUBLISH}, once they have ended, "
                "or look at what was published by now with FullBatch.load(path, partial=True)"
            )
        raise UnfinishedError(
            f"{path} is a run that is not complete: resume it with FullBatchAccumulator(..., store=, "
            'mode="a"), or look at what there is with FullBatch.load(path, partial=True)'
        )
    try:
        check_tree(path, is_written=is_written)
        _check_metadata(mark, path)
        store = FolderStore(path, read_only=True)
        store.limit(MOST_METADATA)
        group: Any = open_group(store, mode="r")
        arrays: list[Any] = [group[head] for head in mark.heads]
        for head, array in zip(mark.heads, arrays, strict=True):
            check_output(array, mark.n_rows, most_nbytes, path / head)
        record = _record(group, mark, most_nbytes, path)
        written = _read(record[0], path).view(np.uint8) != 0
        checksums, locs = _read(record[1], path, written), _read(record[2], path)
        _check_record(mark, locs, written, path)
    except AccumulatorError:
        raise
    except Exception as cause:  # zarr's and its codecs', for what they did not write
        if is_refusal(cause):
            raise storage_error(cause, f"{path} cannot be read") from cause
        raise ResultFormatError(f"{path} is damaged: it cannot be opened ({cause!r})") from cause
    return SavedResult(store, mark, arrays, locs, written, list(checksums.T), stamp)


def _check_metadata(mark: Mark, path: Path) -> None:
    for name in mark.parts:
        file = path / name / "zarr.json"
        document = read_json(file, path)
        if hash_of(file) != mark.arrays.get(name):
            raise ResultFormatError(f"{path} is damaged: the metadata of {name} was changed")
        if name != OUTPUTS:
            check_codecs(document, path / name)


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
    array = over(group[name], group.store)
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
            status = (path / name / key).lstat()
        except FileNotFoundError:
            size = None
        else:
            size = status.st_size if stat.S_ISREG(status.st_mode) else -1
        may_miss = needed is not None and not needed[chunk * step : (chunk + 1) * step].any()
        if size != nbytes and not (may_miss and size is None):
            what = {None: "is missing", -1: "is no file"}.get(size, f"has {size} bytes, not {nbytes}")
            raise ResultFormatError(f"{path} is damaged: {name}/{key} {what}")
    array.store.limit(max(MOST_METADATA, nbytes))
    return np.asarray(array[...]) if array.size else np.zeros(array.shape, array.dtype)


def _check_record(mark: Mark, locs: NDArray[Any], written: NDArray[np.bool_], path: Path) -> None:
    """Refuse locations and written rows of another store."""
    if locs.dtype.kind == "f" and not (np.abs(locs) < _MOST_LOCATION).all():
        raise ResultFormatError(f"{path} is damaged: its locations are not whole numbers")
    if mark.locations != hash_locations(locs):
        raise ResultFormatError(f"{path} is damaged: its locations were changed")
    if mark.state == COMPLETE and mark.written != hash_written(written):
        raise ResultFormatError(f"{path} is damaged: which rows are written was changed")

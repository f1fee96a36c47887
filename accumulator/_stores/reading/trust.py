"""Whether what a store holds may be opened at all: it may come from a stranger, or be damaged."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Final

import zarr

from accumulator._stores.format.layout import BUFFER_NBYTES, COMPRESSORS, HANDED_CHUNKS
from accumulator._stores.format.names import PARTS
from accumulator._stores.memory.threads import n_cores
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHARDS: Final = "sharding_indexed"
_KEYS: Final = {"name": "default", "configuration": {"separator": "."}}
_FEW_PIECES: Final = 2**16  # of a row: more are believed only where as many files are there
_INDEX_NBYTES: Final = 16  # of a piece, in a shard's index
_MOST_DEPTH: Final = 8  # of folders: half of it is used
_COPIES: Final = 3  # of rows that are decoded: compressed, decompressed, and in their place
_OURS_NBYTES: Final = BUFFER_NBYTES // (1 + HANDED_CHUNKS)  # of chunks that the library itself would write


def check_tree(path: Path, *, is_written: bool = False) -> None:
    """Refuse a folder that holds anything but folders and files: a link may lead out of it.

    Where files are about to be written, also those that have another name, and would be changed there too.
    """
    root = os.fspath(path).count(os.sep)
    for entry in walk(path, without=PARTS):  # nothing of a result is read from there
        if entry.path.count(os.sep) - root > _MOST_DEPTH:
            raise ResultFormatError(f"{path} is damaged: its folders are nested too deep")
        is_file = entry.is_file(follow_symlinks=False)
        if not (entry.is_dir(follow_symlinks=False) or is_file):
            kind = "a symbolic link" if entry.is_symlink() else "not a file"
            raise ResultFormatError(f"{entry.path} is {kind}: a store holds only folders and files")
        if is_written and is_file and entry.stat(follow_symlinks=False).st_nlink > 1:
            raise ResultFormatError(
                f"{entry.path} has another name (a hard link), and would be changed there too: resume a copy "
                "of the store"
            )


def walk(path: Path, *, without: str | None = None) -> Iterator[os.DirEntry[str]]:
    """Yield whatever is below a folder, however deep, following no link; one folder in it may be left out."""
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
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder and entry.name == without and folder == os.fspath(path):
                    continue
                yield entry
                if is_folder:
                    folders.append(entry.path)


def check_output(array: Any, n_rows: int, most_nbytes: int | None, where: Path) -> None:
    """Refuse a head that is not an array of the rows, or that needs more memory or time than there is."""
    if not isinstance(array, zarr.Array) or array.ndim < 1 or array.shape[0] != n_rows:
        raise ResultFormatError(f"{where} is damaged: it is not an array of {n_rows} rows")
    if array.dtype.kind not in "biufc" or min(array.chunks) < 1:
        raise ResultFormatError(f"{where} is damaged: it has dtype {array.dtype} and chunks {array.chunks}")
    unit = array.shards or array.chunks
    n_read = max(1, min(unit[0], array.shape[0]))  # rows at once, from all files that they are in
    nbytes = array.dtype.itemsize * max(math.prod(unit), n_read * math.prod(array.shape[1:]))
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


def check_codecs(document: Any, where: Path) -> None:
    """Refuse what no result is stored with: another codec is code that somebody else wrote."""
    if document.get("chunk_key_encoding") != _KEYS:
        raise ResultFormatError(f"{where} is damaged: its chunk files are named in another way")
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
            raise ResultFormatError(f"{where} is damaged: its codecs are not listed as zarr lists them")
        found.append((name, configuration))
    if not found:
        raise ResultFormatError(f"{where} is damaged: it has no codecs")
    return found

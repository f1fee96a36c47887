"""A kept run's files after whatever ended it: rows that are right stay, and no trace is left of others."""

from __future__ import annotations

import contextlib
import itertools
import threading
from functools import partial
from stat import S_ISREG
from typing import TYPE_CHECKING

import numpy as np

from accumulator._stores.files import system
from accumulator._stores.format.chunk_files import ChunkFiles, Part
from accumulator._stores.format.names import OUTPUTS, RECORD, REDO, SCRATCH
from accumulator._stores.memory.threads import to_its_end

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.files.unsynced import Unsynced
    from accumulator._stores.reading.check import Findings, RowChecker, Unit
    from accumulator._stores.writing.zarr_rows import ZarrRows


def restore(
    checker: RowChecker, rows: ZarrRows, recorded: NDArray[np.bool_], unsynced: Unsynced
) -> NDArray[np.bool_]:
    """Check every recorded row; blank those that are damaged, and whatever else a crash has left.

    ``rows`` are the store of ``checker``, opened to go on; they get its checksums. Rows that are lost are
    taken out of ``recorded``, and returned as a bool array ``(heads, N)``. All is synced then.
    """
    root, saved, lock = checker.saved.store.root, checker.saved, threading.Lock()
    suspects: list[Unit] = []

    def note(unit: Unit, findings: Findings) -> None:
        wrong = (findings.damaged, findings.dirty, findings.redone)
        if not findings.is_readable or any(rows.any() for rows in wrong):
            with lock:
                suspects.append(unit)

    for part in ("", OUTPUTS, *RECORD):
        remove_partial(root / part)
        unsynced.add_folder(root / part)
    for head in rows.heads:
        _tidy(root / head.array.path, head.chunk_rows, recorded, unsynced)
    unsynced.sync()  # who wrote here last may have been killed before it did, and what is read is believed
    checker.look_at_all(note)
    lost = np.zeros((len(rows.heads), len(recorded)), dtype=bool)
    for unit in suspects:
        lost[unit.head, unit.rows] = _mend(unit, checker, rows, unsynced)
    recorded &= ~lost.any(axis=0)
    for number, (head, checksums) in enumerate(zip(rows.heads, rows.checksums, strict=True)):
        checksums[recorded] = saved.checksums[number][recorded]
        if head.row_nbytes:
            for chunk in np.unique(np.flatnonzero(recorded) // head.chunk_rows).tolist():
                first = chunk * head.chunk_rows
                head.restore(chunk, recorded[first : first + head.chunk_rows])
    _blank(rows, np.flatnonzero(saved.written & ~recorded))
    unsynced.sync()
    for head in rows.heads:
        _remove_tree(root / head.array.path / REDO)
    return lost


def remove_partial(folder: Path) -> None:
    """Remove files that a crash kept from becoming whole."""
    for path in list(folder.iterdir()):
        if system.is_partial(path.name):
            system.clear(path)


def _remove_tree(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is of no use; another resume tries again
        system.clear(folder)


def _tidy(folder: Path, chunk_rows: int, recorded: NDArray[np.bool_], unsynced: Unsynced) -> None:
    """Remove files of rows that are not recorded, and those that never became whole.

    Chunks whose recorded rows may have been replaced, and others blanked, are noted: who did may have been
    killed before it synced them.
    """
    _remove_tree(folder / SCRATCH)
    known, partly = (
        set(np.unique(np.flatnonzero(rows) // chunk_rows).tolist()) for rows in (recorded, ~recorded)
    )
    redone = {path.name for path in _listed(folder / REDO)}
    for path in _listed(folder):
        parts = path.name.split(".")
        is_chunk = parts[0] == "c" and len(parts) > 1 and parts[1].isdecimal()
        if system.is_partial(path.name) or (is_chunk and int(parts[1]) not in known):
            system.clear(path)
        elif is_chunk and (parts[1] in redone or int(parts[1]) in partly) and S_ISREG(path.lstat().st_mode):
            unsynced.add(path, is_new=False)
    unsynced.add_folder(folder)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _mend(unit: Unit, checker: RowChecker, rows: ZarrRows, unsynced: Unsynced) -> NDArray[np.bool_]:
    """Put rows that wait to be redone in their place, blank the unrecorded; return the lost."""
    saved, redo, head = checker.saved, rows.redo[unit.head], rows.heads[unit.head]
    files = redo.inner if isinstance(redo.inner, ChunkFiles) else None
    path = None if files is None else files.path_of(unit.number)
    if path is not None and path.is_dir():
        system.clear(path)
    if files is not None and path is not None and path.exists():
        with system.opened(path, system.CHANGE) as file:  # one that was cut has lost its end alone
            system.set_size(file, files.file_nbytes)
        unsynced.add(path, is_new=False)
    found = checker.look(unit)
    if files is None:
        # zarr would read it before it writes what is left of a last unit, and cannot replace a folder
        inner = head.array.shards or head.array.chunks
        grid = [range(-(-n // size)) for n, size in zip(head.array.shape[1:], inner[1:], strict=True)]
        for piece in itertools.product(*grid):
            key = head.array.metadata.encode_chunk_key((unit.number, *piece))
            piece_path = saved.store.root / head.array.path / key
            if not found.is_readable or piece_path.is_dir():
                system.clear(piece_path)
    fill = np.asarray(head.array.fill_value, head.dtype)
    shape = (len(found.damaged), *head.array.shape[1:])
    values = np.full(shape, fill) if found.values is None else np.array(found.values, dtype=head.dtype)
    values[found.damaged | found.dirty] = fill
    if files is None:
        to_its_end(partial(head.array.__setitem__, unit.rows, values))
    elif path is not None:
        changed = found.damaged | found.dirty | found.redone
        files.write(Part(unit.number, values, changed), is_there=path.exists())
    return found.damaged


def _blank(rows: ZarrRows, lost: NDArray[np.intp]) -> None:
    """Put the fill value in rows that are lost in one head: they are none in the others, too."""
    if len(lost) == 0:
        return
    row_nbytes = sum(head.row_nbytes for head in rows.heads)
    step = max(1, rows.part_nbytes // max(1, row_nbytes))
    blanks = [np.full((1, *head.array.shape[1:]), head.array.fill_value, head.dtype) for head in rows.heads]
    for start in range(0, len(lost), step):
        some = lost[start : start + step]
        rows.make_room(len(some) * row_nbytes)
        rows.put(some, [np.broadcast_to(blank, (len(some), *blank.shape[1:])) for blank in blanks])
        rows.commit()
    rows.flush()

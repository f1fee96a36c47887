"""What a result needs, and what there is: known before anything is stored."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from accumulator._core import memory
from accumulator._inputs.text import as_text
from accumulator._inputs.warn import warn
from accumulator._stores.files.errors import telling
from accumulator._stores.format.layout import BUFFER_NBYTES, layout
from accumulator.exceptions import StorageError, StorageWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.memory.row_store import RowStore

_NO_SPACE = 28  # errno.ENOSPC, which not every platform has


@attrs.frozen
class Budget:
    """What decides between RAM and disk, and where on disk."""

    save_path: str
    memory_threshold: float
    memory_limit: int | None = None
    held_nbytes: int = 0  # accumulated elsewhere, and counted against the same share of the memory
    n_sharing: int = 1  # processes of this machine, which share what is available

    def fits(self, nbytes: int) -> bool:
        """Whether RAM holds a result."""
        return memory.fits_in_memory(nbytes, self.held_nbytes, self.memory_threshold, self.memory_limit)

    def share(self, part: float) -> Budget:
        """Return what one part of a result may take, so that all parts decide alike."""
        limit = None if self.memory_limit is None else int(Fraction(part) * self.memory_limit)
        return attrs.evolve(self, memory_threshold=self.memory_threshold * part, memory_limit=limit)

    @property
    def buffer_nbytes(self) -> int:
        """Bytes that may be in memory of a result on disk."""
        return memory.buffer_nbytes(BUFFER_NBYTES, self.memory_limit, self.n_sharing)


@attrs.frozen
class Plan:
    """What the result needs, and what there is; ``print`` it.

    Attributes
    ----------
    place : {"RAM", "zarr"}
        Where the result is, or would be with what is available now.
    heads : tuple of str
        Each head in a line: its name, shape, dtype and bytes.
    n_rows, n_written, n_expected : int
        All locations, those with a prediction, and how many have to come at least as far as is known.
    nbytes : int
        Bytes of all rows, gaps included.
    nbytes_expected : int
        Bytes of the rows that have to come.
    memory_nbytes : int
        Bytes of memory the result takes where it is: itself in RAM, buffers for zarr.
    memory_available : int
        Bytes of memory there are for this process.
    memory_allowed : int
        Bytes of it the result may take by ``memory_threshold`` and ``memory_limit``.
    disk_nbytes : int
        Bytes the result takes on disk if every row comes, without compression; 0 in RAM.
    disk_free : int
        Bytes that are free where ``save_path`` or ``store`` is.
    n_files : int
        Files the result takes on disk if every row comes; 0 in RAM.
    save_path : str
        Where it goes if it does not fit in RAM; the folder of ``store`` in a run that is kept.
    is_compressed : bool
        Whether any head is compressed, and may take less on disk.
    row_nbytes_plain : int
        Bytes of a row of the heads that are not.
    is_kept : bool
        Whether the run is kept in ``store``.
    n_on_disk : int
        Rows recorded in ``store``, which take their room on disk already.
    files_free : int, optional
        Files that may still be made where ``save_path`` or ``store`` is (free inodes); None where the file
        system sets no limit.

    See Also
    --------
    FullBatchAccumulator.plan : makes it.
    """

    place: str
    heads: tuple[str, ...]
    n_rows: int
    n_written: int
    n_expected: int
    nbytes: int
    nbytes_expected: int
    memory_nbytes: int
    memory_available: int
    memory_allowed: int
    disk_nbytes: int
    disk_free: int
    n_files: int
    save_path: str
    is_compressed: bool
    row_nbytes_plain: int
    is_kept: bool
    n_on_disk: int
    files_free: int | None = None

    def __str__(self) -> str:
        """Return it as a few lines of text."""
        lines = [
            f"{self.n_rows} locations, {self.n_written} written; the result goes to {self.place}",
            *(f"  {head}" for head in self.heads),
            f"  all rows: {as_text(self.nbytes)}",
        ]
        available = f"({as_text(self.memory_available)} available)"
        if self.n_expected > self.n_written:
            lines.append(f"  {self.n_expected} have to come: {as_text(self.nbytes_expected)}")
        if self.place == "RAM":
            allowed = as_text(self.memory_allowed)
            lines.append(f"memory: {as_text(self.memory_nbytes)} of {allowed} allowed {available}")
        else:
            lines.append(f"memory: buffers of {as_text(self.memory_nbytes)} at most {available}")
            most = "before compression" if self.is_compressed else "if every location comes"
            to_come = f", {as_text(self.nbytes_to_come)} of it to come" if self.n_on_disk else ""
            lines.append(
                f"disk: {as_text(self.disk_nbytes)} in {self.n_files} files {most}{to_come}, of "
                f"{as_text(self.disk_free)} free at {self.save_path}"
            )
            if self.files_free is not None and self.files_free < self.n_files:
                lines.append(f"  only {self.files_free} files more can be made there (free inodes)")
        return "\n".join(lines)

    @property
    def nbytes_to_come(self) -> int:
        """Bytes of all rows that are not on disk yet: what the disk still needs room for."""
        return self.nbytes // max(1, self.n_rows) * (self.n_rows - self.n_on_disk)

    def _n_files_of(self, n_rows: int) -> int:
        """Return how many files so many rows take at least: those of whole chunks."""
        return self.n_files * n_rows // max(1, self.n_rows)

    def check_disk(self, n_at_once: int) -> None:
        """Refuse a disk that cannot hold the rows that have to come; warn of one that may not hold all.

        Both its bytes and its files count, for a file system may have room and no inodes.

        Parameters
        ----------
        n_at_once : int
            How many rows come now, whatever is expected.

        Raises
        ------
        StorageError
            ENOSPC: there is too little room.
        """
        n_must = max(n_at_once, self.n_expected) - self.n_on_disk
        must = n_must * self.row_nbytes_plain
        other = "another store" if self.is_kept else "another save_path"
        free = f"{as_text(self.disk_free)} free at {self.save_path}"
        if must > self.disk_free:
            raise StorageError(
                _NO_SPACE,
                f"{as_text(must)} have to go to disk, but there are {free}: make room, give {other}, or "
                "store less with dtype=, say float16",
                self.save_path,
            )
        n_free = self.files_free
        if n_free is not None and self._n_files_of(n_must) > n_free:
            raise StorageError(
                _NO_SPACE,
                f"{self._n_files_of(n_must)} files have to go to disk, but only {n_free} more can be made at "
                f"{self.save_path} (free inodes): remove files, give {other}, or say chunks= for more "
                "rows in a file",
                self.save_path,
            )
        n_to_come = self._n_files_of(self.n_rows - self.n_on_disk)
        if n_free is not None and n_to_come > n_free:
            warn(
                f"the result may take {n_to_come} files if all {self.n_rows} rows come, but only {n_free} "
                f"more can be made at {self.save_path} (free inodes): remove files, give {other}, or say "
                "chunks= for more rows in a file",
                StorageWarning,
            )
        if self.nbytes_to_come > self.disk_free:
            more = " more" if self.n_on_disk else ""
            warn(
                f"the result may take {as_text(self.nbytes_to_come)}{more} if all {self.n_rows} rows "
                f"come, but there are {free}: make room, or give {other}",
                StorageWarning,
            )


def make_plan(  # noqa: PLR0913  what it depends on
    n_rows: int,
    specs: Heads[HeadSpec],
    budget: Budget,
    store: RowStore | None,
    *,
    n_expected: int,
    n_written: int,
    recorded: NDArray[np.bool_] | None,
) -> Plan:
    """Return the plan for N rows, in a store if there is one yet; some may be ``recorded`` in a kept run."""
    row_nbytes = sum(spec.row_nbytes for spec in specs)
    nbytes = n_rows * row_nbytes
    is_kept, n_files, buffer_nbytes = recorded is not None, 0, 0
    if store is not None:
        is_in_ram, n_files, buffer_nbytes = store.zarr_store is None, store.n_files, store.buffer_nbytes
    else:
        is_in_ram = not is_kept and budget.fits(nbytes)
        if not is_in_ram:
            layouts, open_chunks = layout(n_rows, specs.values, budget.buffer_nbytes)
            n_files = sum(each.n_files for each in layouts)
            buffer_nbytes = sum(each.buffer_nbytes(open_chunks) for each in layouts)
    available = memory.available_memory() + is_in_ram * n_written * row_nbytes
    allowed = max(0, int(available * budget.memory_threshold / 100) - budget.held_nbytes)
    return Plan(
        place="RAM" if is_in_ram else "zarr",
        heads=tuple(
            f"{specs.label(i)}: {(n_rows, *spec.patch_shape)} {spec.dtype}, "
            f"{as_text(n_rows * spec.row_nbytes)}"
            for i, spec in enumerate(specs)
        ),
        n_rows=n_rows,
        n_written=n_written,
        n_expected=n_expected,
        nbytes=nbytes,
        nbytes_expected=n_expected * row_nbytes,
        memory_nbytes=nbytes if is_in_ram else buffer_nbytes,
        memory_available=available,
        memory_allowed=allowed if budget.memory_limit is None else min(allowed, budget.memory_limit),
        disk_nbytes=0 if is_in_ram else nbytes,
        disk_free=free_nbytes(budget.save_path),
        n_files=n_files,
        save_path=budget.save_path,
        is_compressed=any(spec.storage.compressors is not None for spec in specs),
        row_nbytes_plain=sum(spec.row_nbytes for spec in specs if spec.storage.compressors is None),
        is_kept=is_kept,
        n_on_disk=0 if recorded is None else int(np.count_nonzero(recorded)),
        files_free=free_files(budget.save_path),
    )


def free_nbytes(save_path: str) -> int:
    """Return the bytes free for this user where a folder is, or will be."""
    with telling(f"the disk of {save_path} cannot be looked at"):
        return shutil.disk_usage(_existing(save_path)).free


def free_files(save_path: str) -> int | None:
    """Return how many files may be made there; None where the file system has no such number, as btrfs."""
    if not hasattr(os, "statvfs"):
        return None
    with telling(f"the disk of {save_path} cannot be looked at"):
        found = os.statvfs(_existing(save_path))
    return found.f_favail if found.f_files else None


def _existing(save_path: str) -> Path:
    """Return a folder, or the first above it that is there."""
    path = Path(save_path)
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

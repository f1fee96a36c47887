"""Whether stored rows are those that were written: each is compared with its checksum."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import zarr
from zarr.storage import MemoryStore

from accumulator._stores.files.errors import SizeError, is_refusal, storage_error
from accumulator._stores.format.arrays import chunk_path, is_there, layout_of, over
from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.format.chunk_files import ChunkFiles
from accumulator._stores.format.mark import MOST_METADATA
from accumulator._stores.format.names import OUTPUTS
from accumulator._stores.format.stamps import stamp_at
from accumulator._stores.memory.threads import run_all, start_threads
from accumulator._stores.reading.bounded import bounded, file_nbytes
from accumulator._stores.reading.redone import Redone
from accumulator._stores.reading.saved import open_result, stamp_of
from accumulator.exceptions import DamagedError, ResultFormatError, ResultNotFoundError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.format.stamps import Stamp
    from accumulator._stores.format.store import FolderStore
    from accumulator._stores.reading.saved import SavedResult

    _Found = tuple["Findings", dict[str, Stamp], MemoryStore | None]

_LOOKS: Final = 100  # at files that are written to meanwhile


class Unit(NamedTuple):
    """Rows that are written at once: a chunk, or a shard, of one head."""

    head: int
    number: int
    rows: slice


class Findings(NamedTuple):
    """What a unit's rows look like."""

    values: NDArray[Any] | None  # None where there are none to be had
    is_readable: bool  # whether their place could be read
    damaged: NDArray[np.bool_]  # recorded rows that are not what they were
    dirty: NDArray[np.bool_]  # other rows that do not hold the fill value
    redone: NDArray[np.bool_]  # recorded rows that still wait beside their place, and are right there


class RowChecker:
    """Compares rows of a saved result with their checksums, a unit at a time; threads may share it."""

    def __init__(self, saved: SavedResult) -> None:
        self.saved = saved
        self.layouts = [layout_of(array) for array in saved.arrays]
        self._is_complete = saved.mark.is_complete
        self._tasks: dict[tuple[int, int], asyncio.Future[_Found]] = {}
        self._nothing = MemoryStore()
        self._redone = Redone(saved.store.root, saved.arrays, self.layouts)
        self._blanks = [_blank(array) for array in saved.arrays]
        self._readers = [bounded(array) for array in saved.arrays]
        saved.store.limit(max([MOST_METADATA, *(file_nbytes(array) for array in saved.arrays)]))
        self._keys = {f"{array.path}/c.": head for head, array in enumerate(saved.arrays)}
        self._files = [
            ChunkFiles(partial(chunk_path, array), each.chunks, array.dtype.newbyteorder("<"))
            if each.is_raw
            else None
            for array, each in zip(saved.arrays, self.layouts, strict=True)
        ]

    def units(self) -> Iterator[Unit]:
        """Yield all units with recorded rows; in a complete result also the others, which must be empty."""
        for head, made in enumerate(self.layouts):
            if made.spec.row_nbytes == 0:
                continue
            known = np.ones_like(self.saved.written) if self._is_complete else self.saved.written
            numbers = np.flatnonzero(known) // made.unit_rows
            for number in np.unique(numbers).tolist():
                yield self._unit(head, number)

    def look(
        self,
        unit: Unit,
        written: NDArray[np.bool_] | None = None,
        checksums: NDArray[np.uint64] | None = None,
    ) -> Findings:
        """Read a unit, and say which rows are damaged; a StorageError says nothing of them.

        Which of its rows are ``written``, and their ``checksums``, may be told by who has another record.
        """
        waiting, values = self._waiting(unit), None
        with self._reading(unit):
            values = self._values(unit)
        if written is None or checksums is None:
            written, checksums = self._recorded(unit)
        return self._compare(unit, values, waiting, written, checksums)

    def fill(
        self, unit: Unit, values: NDArray[Any], wanted: NDArray[np.bool_], checksums: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Put wanted rows of a unit in their place in ``values``, and return which of them are right.

        ``checksums`` are of all its rows. Those that are not right hold what was found, or the fill value.
        """
        files, is_right, is_read = self._files[unit.head], np.zeros_like(wanted), False
        if files is None or self._waiting(unit) is not None:
            found = self.look(unit, wanted, checksums)
            if found.values is not None:
                values[wanted], is_read = found.values[wanted], True
            is_right = wanted & ~found.damaged
        else:
            with self._reading(unit):
                if self._is_there(unit, files):
                    files.read_rows(unit.number, wanted, values)
                    for start, stop in files.pieces(wanted):
                        is_right[start:stop] = row_checksums(values[start:stop]) == checksums[start:stop]
                    is_read = True
                else:
                    is_right |= checksums == self._blanks[unit.head]
        if not is_read:
            values[wanted] = self.saved.arrays[unit.head].fill_value
        return wanted & is_right

    def look_at_all(self, use: Callable[[Unit, Findings], None] | None = None) -> list[NDArray[np.bool_]]:
        """Check every unit, on all cores, and return for each head which rows are damaged.

        ``use`` is called for each unit by the threads that check.
        """
        damaged = [np.zeros_like(self.saved.written) for _ in self.saved.arrays]

        def check(unit: Unit) -> None:
            findings = self.look(unit)
            if use is not None:
                use(unit, findings)
            damaged[unit.head][unit.rows] = findings.damaged | (findings.dirty & self._is_complete)

        run_all(check, self.units())
        return damaged

    def covers(self, key: str) -> bool:
        """Whether a key's file holds rows."""
        return self._unit_of(key) is not None

    async def find_right(self, key: str) -> tuple[dict[str, Stamp], MemoryStore | None]:
        """Return the stamps of the files that a file of rows is read with, or raise if rows are damaged.

        A store is returned where the file's place is not what is to be read: one with the rows that still
        wait beside it, or an empty one where the record names no row of it, whatever a crash left there.

        It runs on zarr's event loop and waits for nothing else there: zarr's own threads may all be taken by
        readers that wait for this.
        """
        unit = self._unit_of(key)
        if unit is None:
            return {}, None
        if not (self._is_complete or self.saved.written[unit.rows].any()):
            return {}, self._nothing
        served = self._redone.served(*unit[:2])
        if served is not None:
            return {}, served
        task = self._tasks.get(unit[:2])
        if task is None or task.get_loop() is not asyncio.get_running_loop():  # which a fork has left behind
            # A unit may be in many files, which are all asked for at once.
            task = self._tasks[unit[:2]] = asyncio.ensure_future(self._check(unit))
            task.add_done_callback(lambda _: self._tasks.pop(unit[:2], None))
        findings, stamps, served = await asyncio.shield(task)
        is_all = self._is_complete or (not findings.is_readable and findings.damaged.any())
        wrong = findings.damaged | (findings.dirty & is_all)
        if wrong.any():
            if self.saved.stamp != stamp_of(self.saved.store.root):
                raise StorageError(
                    errno.ESTALE,
                    "the store was written to since it was loaded: load it again",
                    str(self.saved.store),
                )
            rows = np.flatnonzero(wrong) + unit.rows.start
            raise DamagedError(
                errno.EIO,
                f"{self._label(unit)}: {len(rows)} of rows {unit.rows.start} to {unit.rows.stop - 1} are "
                f"damaged, the first being row {rows[0]}: `accumulator verify` lists all, and a run that is "
                'resumed with mode="a" takes them as missing',
                str(self.saved.store.root / key),
                rows=rows,
            )
        return stamps, served

    def guarded(self, store: FolderStore) -> list[zarr.Array[Any]]:
        """Return the arrays over another store of the same files, whose every reading is checked."""
        store.watch(self)
        return [over(array, store) for array in self.saved.arrays]

    def __reduce__(self) -> tuple[type[RowChecker], tuple[SavedResult]]:
        """Return what a copy in another process needs: it checks by itself."""
        return RowChecker, (self.saved,)

    def _label(self, unit: Unit) -> str:
        return self.saved.heads.label(unit.head)

    async def _check(self, unit: Unit) -> _Found:
        """Return what a unit's rows look like, and its files, none of which was changed meanwhile."""
        for _ in range(_LOOKS):
            stamps = await asyncio.to_thread(self._stamps, unit)
            findings, served = await self._look(unit, is_there=bool(stamps))
            if stamps == await asyncio.to_thread(self._stamps, unit):
                return findings, stamps, served
        rows = f"rows {unit.rows.start} to {unit.rows.stop - 1} of {self._label(unit)}"
        what = f"{rows} are being written to: read them again"
        raise StorageError(errno.ESTALE, what, str(self.saved.store))

    async def _look(self, unit: Unit, *, is_there: bool) -> tuple[Findings, MemoryStore | None]:
        written, recorded = self._recorded(unit)
        if not (is_there or (written & (recorded != self._blanks[unit.head])).any()):
            none = np.zeros_like(written)  # of the rows is lost: their chunk reads as what they hold
            return Findings(None, is_readable=True, damaged=none, dirty=none, redone=none), None
        if self._files[unit.head] is not None:
            findings = await asyncio.to_thread(self.look, unit)
        else:
            waiting, values = await asyncio.to_thread(self._waiting, unit), None
            with self._reading(unit):
                values = np.asarray(await self._readers[unit.head].getitem(unit.rows))
            findings = await asyncio.to_thread(self._compare, unit, values, waiting, written, recorded)
        if findings.values is None or not findings.redone.any():
            return findings, None
        return findings, await self._redone.serve(*unit, findings.values)

    def _waiting(self, unit: Unit) -> NDArray[Any] | None:
        """Return what waits beside a unit. Its place is read later: it has the rows before they go here."""
        with self._reading(unit):
            return self._redone.read(unit.head, unit.number, unit.rows.stop - unit.rows.start)
        return None

    def _stamps(self, unit: Unit) -> dict[str, Stamp]:
        """Return the files of a unit that are there, as they are."""
        array, root = self.saved.arrays[unit.head], self.saved.store.root
        inner = array.shards or array.chunks
        grid = [range(-(-n // size)) for n, size in zip(array.shape[1:], inner[1:], strict=True)]
        found = {}
        for piece in itertools.product([unit.number], *grid):
            key = f"{array.path}/{array.metadata.encode_chunk_key(piece)}"
            stamp = stamp_at(root / key)
            if stamp is not None:
                found[key] = stamp
        return found

    @contextlib.contextmanager
    def _reading(self, unit: Unit) -> Iterator[None]:
        """Raise what says nothing of the rows; whatever else a codec raises is damage."""
        try:
            yield
        except MemoryError as cause:
            raise self._no_memory(unit) from cause
        except Exception as cause:
            if is_refusal(cause):
                raise storage_error(cause, f"{self._label(unit)} cannot be read") from cause

    def _no_memory(self, unit: Unit) -> StorageError:
        rows = f"rows {unit.rows.start} to {unit.rows.stop - 1} of {self._label(unit)}"
        return StorageError(errno.ENOMEM, f"there is not enough memory to read {rows}", str(self.saved.store))

    def _recorded(self, unit: Unit) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        return self.saved.written[unit.rows], self.saved.checksums[unit.head][unit.rows]

    def _compare(
        self,
        unit: Unit,
        values: NDArray[Any] | None,
        waiting: NDArray[Any] | None,
        written: NDArray[np.bool_],
        recorded: NDArray[np.uint64],
    ) -> Findings:
        is_readable, redone = values is not None, np.zeros_like(written)
        try:
            if values is None:
                damaged, dirty = written.copy(), ~written
            else:
                sums = row_checksums(values)
                damaged, dirty = written & (sums != recorded), ~written & (sums != self._blanks[unit.head])
                if self._is_complete:  # else a crash may have left the checksum of a row without record
                    dirty &= sums != recorded
            if waiting is not None and damaged.any():
                redone = damaged & (row_checksums(waiting) == recorded)
                damaged &= ~redone
            if waiting is not None and redone.any():
                array = self.saved.arrays[unit.head]
                values = np.full_like(waiting, array.fill_value) if values is None else np.array(values)
                values[redone] = waiting[redone]
        except MemoryError as cause:
            raise self._no_memory(unit) from cause
        return Findings(values, is_readable, damaged, dirty, redone)

    def _unit_of(self, key: str) -> Unit | None:
        """Return the unit that a key's file belongs to; None for metadata."""
        for prefix, head in self._keys.items():
            if key.startswith(prefix):
                return self._unit(head, int(key.removeprefix(prefix).split(".")[0]))
        return None

    def _unit(self, head: int, number: int) -> Unit:
        rows = self.layouts[head].unit_rows
        return Unit(head, number, slice(number * rows, min((number + 1) * rows, len(self.saved.written))))

    def _values(self, unit: Unit) -> NDArray[Any]:
        array, files = self.saved.arrays[unit.head], self._files[unit.head]
        if files is None:
            return np.asarray(zarr.Array(self._readers[unit.head])[unit.rows])
        n = unit.rows.stop - unit.rows.start
        if self._is_there(unit, files):
            return files.read(unit.number, 0, n)
        return np.full((n, *array.shape[1:]), array.fill_value, array.dtype)

    @staticmethod
    def _is_there(unit: Unit, files: ChunkFiles) -> bool:
        """Tell whether a unit has a file; SizeError says that it has another size than all have."""
        stamp = stamp_at(files.path_of(unit.number))
        if stamp is not None and stamp[0] != files.file_nbytes:
            raise SizeError(errno.EIO, f"it is no file of {files.file_nbytes} bytes")
        return stamp is not None


class LateChecker:
    """Checks a result that was saved, once a file of it was changed since: only then it is opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._checker: RowChecker | None = None
        self._opening: asyncio.Future[SavedResult] | None = None

    def covers(self, key: str) -> bool:
        """Whether a key's file holds rows."""
        return key.startswith(f"{OUTPUTS}/") and "/c." in key

    async def find_right(self, key: str) -> tuple[dict[str, Stamp], MemoryStore | None]:
        """Return the stamps of the files that a file of rows is read with, or raise if rows are damaged."""
        if self._checker is None:
            task = self._opening
            if task is None or task.get_loop() is not asyncio.get_running_loop():
                task = self._opening = asyncio.ensure_future(self._open())
                task.add_done_callback(self._opened)
            try:
                saved = await asyncio.shield(task)
            except (ResultFormatError, ResultNotFoundError) as cause:
                what = f"{key} was removed or changed since it was written, and so was what tells of it"
                raise DamagedError(errno.EIO, f"{what} ({cause})", str(self._root / key)) from cause
            self._checker = self._checker or RowChecker(saved)
        return await self._checker.find_right(key)

    async def _open(self) -> SavedResult:
        """Open the result in a thread of its own: zarr's may be one alone, and opening waits for that."""
        pool = start_threads(1, "accumulator")
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, open_result, self._root)
        finally:
            if pool is not None:
                pool.shutdown()

    def _opened(self, task: asyncio.Future[SavedResult]) -> None:
        if self._opening is task:
            self._opening = None

    def __reduce__(self) -> tuple[type[LateChecker], tuple[Path]]:
        """Return what a copy in another process needs: it opens the result by itself."""
        return LateChecker, (self._root,)


def make_checksums(arrays: Sequence[Any], written: NDArray[np.bool_]) -> list[NDArray[np.uint64]]:
    """Read all rows that were written or have a file, on all cores, and return the checksums of all."""
    sums = [np.full(array.shape[0], _blank(array), dtype=np.uint64) for array in arrays]

    def parts() -> Iterator[tuple[int, slice]]:
        for head, array in enumerate(arrays):
            made = layout_of(array)
            for number, start in enumerate(range(0, array.shape[0] if array.size else 0, made.unit_rows)):
                rows = slice(start, start + made.unit_rows)
                if not made.is_raw or written[rows].any() or is_there(array, number):
                    yield head, rows

    def fill(part: tuple[int, slice]) -> None:
        head, rows = part
        sums[head][rows] = row_checksums(np.asarray(arrays[head][rows]))

    run_all(fill, parts())
    return sums


def _blank(array: zarr.Array[Any]) -> np.uint64:
    blank = np.full((1, *array.shape[1:]), array.fill_value, array.dtype)
    return np.uint64(row_checksums(blank)[0])

"""Publishing: what all parts have recorded becomes one result, in steps that may end anywhere and begin again.

1. Parts whose process has ended are retired, by a rename: they record nothing more, whatever was thought of them.
2. Chunks that one part has all of move to the result, by a rename; others are put together.
3. All that is synced, then recorded, as of any run that is kept; and the mark says that it is complete.
4. Only then parts are removed, whose rows are all published.

A publishing that is killed leaves chunks in the result that no record names: the next one finds them there.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs
import numpy as np
import zarr

from accumulator._inputs.heads import Heads
from accumulator._inputs.text import few, listed
from accumulator._inputs.warn import warn
from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import names_in
from accumulator._stores.format.arrays import layout_of, open_group, over
from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator._stores.format.mark import COMPLETE, hash_locations
from accumulator._stores.format.names import OUTPUTS, PARTS, RECORD, REDO, SCRATCH
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.ranks.assemble import Assembler, unit_rows_of
from accumulator._stores.ranks.facts import RETIRED, part_folders
from accumulator._stores.ranks.gather import NOBODY, PUBLISHED, Gathered, Units, gather, units_of
from accumulator._stores.ranks.recorded import look_at_parts
from accumulator._stores.ranks.shared import HEADS, LEAVING, RUN, SharedRun
from accumulator._stores.reading.saved import open_result
from accumulator._stores.reading.trust import check_tree
from accumulator.exceptions import (
    LockedError,
    NothingPushedError,
    OptionError,
    ResultFormatError,
    StorageWarning,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.ranks.facts import PartLook
    from accumulator.typing import OnDuplicate

_TASK_UNITS: Final = 16  # that a process puts together at a time


class _Task(NamedTuple):
    """Units of one head to put together: of each the rows, their checksums, and who may have them."""

    head: int
    units: list[tuple[int, NDArray[np.bool_], NDArray[np.uint64], list[int]]]


@attrs.define(eq=False)
class PublishedRun(KeptRun):
    """The result that parts are published to, which no other process changes meanwhile."""

    def _found(self) -> list[str]:
        return [name for name in names_in(self.root) if not (system.is_partial(name) or name == PARTS)]

    def open_heads(self, heads: Heads[zarr.Array[Any]], most_nbytes: int) -> NDArray[np.uint64]:
        """Open what was published, or make it; return its checksums, ``(N, heads)``."""
        n_rows = len(self._locs)
        checksums = np.empty((n_rows, len(heads)), np.uint64)
        for number, head in enumerate(heads):  # of rows that nobody recorded, as any run has them
            checksums[:, number] = row_checksums(np.full((1, *head.shape[1:]), head.fill_value, head.dtype))[0]
        if not self.is_resumed:
            self.create(heads.like(layout_of(head).spec for head in heads), BUFFER_NBYTES).close()
            return checksums
        saved = open_result(
            self.root, mark=self._mark, is_partial=True, is_written=True, most_nbytes=most_nbytes
        )
        with telling(f"{self.root} cannot be published to"):
            self._group = open_group(self._store)
            self._record.arrays = {name: over(self._group[name], self._store) for name in RECORD}
        self.recorded = saved.written.copy()
        for number, column in enumerate(saved.checksums):
            checksums[self.recorded, number] = column[self.recorded]
        return checksums

    def record(self, new: NDArray[np.bool_], checksums: NDArray[np.uint64]) -> None:
        """Record rows whose files are on the disk."""
        known = self.recorded | new
        with telling(f"rows cannot be recorded in {self.root}"):
            columns = [np.ascontiguousarray(column) for column in checksums.T]
            self._record.put(np.flatnonzero(new), new, known, columns, np.zeros_like(known))
        self.recorded = known


def publish_parts(
    root: Path,
    *,
    is_partial: bool,
    processes: int,
    on_duplicate: OnDuplicate | None,
    leave_out: Sequence[str],
    most_nbytes: int,
) -> bool:
    """Publish what parts have recorded; return False where there are none, and nothing is changed.

    Errors are those of `accumulator.publish`.
    """
    shared = SharedRun.find(root)
    if shared is None:
        return False
    locs = shared.locations()
    if hash_locations(locs) != shared.terms.locations:
        raise ResultFormatError(f"{shared.folder} is damaged: its locations were changed")
    run = PublishedRun.claim(str(root), "a", locs, shared.terms.resume_token)
    try:
        shared.wait_is_over(is_ours=True)
        looks = _usable(shared, leave_out, is_partial=is_partial)
        _publish(run, shared, looks, on_duplicate or shared.terms.on_duplicate, processes, most_nbytes)
        if not is_partial:
            _complete(run, looks)
        _remove_published(shared, looks, leave_out, is_all=not is_partial)
    finally:
        run.release()
    return True


def _usable(shared: SharedRun, leave_out: Sequence[str], *, is_partial: bool) -> list[PartLook]:
    """Return the parts to publish, of which those that have ended are retired; refuse what may not be."""
    names = [path.name.removesuffix(RETIRED) for path in part_folders(shared.folder)]
    unknown = [name for name in leave_out if name not in names]
    if unknown:
        raise OptionError(
            f"leave_out names parts that are not there: {listed(unknown)}; there are {listed(names)}"
        )
    looks = look_at_parts(shared)
    damaged = {
        path: cause
        for path, cause in looks.damaged.items()
        if path.name.removesuffix(RETIRED) not in leave_out
    }
    if damaged:
        path, cause = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} others" if len(damaged) > 1 else ""
        name = path.name.removesuffix(RETIRED)
        raise ResultFormatError(
            f"a part is damaged, and none is left out without a word{more}: {cause}. Restore it from a copy, or "
            f"publish with leave_out=[{name!r}], and its rows are missing"
        )
    alive = [look for look in looks.parts if look.is_alive]
    if alive and not is_partial:
        who = listed((str(look.facts) for look in alive), most=3, separator="; ")
        raise LockedError(
            errno.EAGAIN,
            f"ranks are still writing parts of this store ({who}): wait until they have ended, or publish what "
            "they have recorded by now with partial=True",
            str(shared.root),
        )
    with telling(f"parts cannot be retired in {shared.folder}"):
        for look in looks.parts:
            if not (look.is_alive or look.is_retired):
                system.rename(look.path, look.path.with_name(look.path.name + RETIRED))
        system.sync(shared.folder)
    left_out = set(leave_out)
    # Again: a process that was taken for ended may have recorded rows until its part was retired.
    found = [
        look for look in look_at_parts(shared).parts if look.path.name.removesuffix(RETIRED) not in left_out
    ]
    for look in found:
        check_tree(look.path)
    return found


def _publish(
    run: PublishedRun,
    shared: SharedRun,
    parts: list[PartLook],
    on_duplicate: OnDuplicate,
    processes: int,
    most_nbytes: int,
) -> None:
    heads = shared.heads()
    if heads is None:
        if shared.terms.n_rows:
            raise NothingPushedError(
                f"nothing was pushed by any rank of {shared.root}, so that heads are unknown"
            )
        heads = Heads()
    checksums = run.open_heads(heads, most_nbytes)
    is_dirty = shared.terms.is_joined and not run.is_complete
    gathered = gather(run.recorded, checksums, parts, on_duplicate, shared.locations("exact"))
    if gathered.n_differing:
        warn(
            f"{gathered.n_differing} locations of {run.root} had several predictions that differ: on_duplicate="
            f"{on_duplicate!r} decided, and what was published before stays",
            StorageWarning,
        )
    if not (is_dirty or (gathered.source > PUBLISHED).any()):
        return
    run.begin()
    lost = np.zeros(shared.terms.n_rows, dtype=bool)
    while True:
        more = _place(run, heads, parts, gathered, lost, processes, is_dirty=is_dirty)
        if not more.any():
            break
        lost |= more
    new = (gathered.source > PUBLISHED) & ~lost
    run.record(new, gathered.checksums)
    if is_dirty:
        for folder in _redo_folders(run, len(heads)):
            for path in (folder, folder.with_name(SCRATCH)):
                system.clear(path)
    if lost.any():
        rows = np.flatnonzero(lost)
        warn(
            f"{len(rows)} rows that parts of {run.root} have recorded are damaged, and missing: {few(rows, 10)}",
            StorageWarning,
        )


def _place(
    run: PublishedRun,
    heads: Heads[zarr.Array[Any]],
    parts: list[PartLook],
    gathered: Gathered,
    lost: NDArray[np.bool_],
    processes: int,
    *,
    is_dirty: bool,
) -> NDArray[np.bool_]:
    """Put all units of all heads in their place, and sync them; return rows that turn out to be nobody's.

    What is put together comes first: it is read, and shows what is lost.
    """
    paths = [part.path for part in parts]
    assembler = Assembler(run.root, heads.values, paths)
    plans = [
        units_of(gathered, rows, run.recorded, lost, is_dirty=is_dirty) for rows in unit_rows_of(heads.values)
    ]
    if is_dirty:  # rows that replace others were left beside their place
        for plan, folder in zip(plans, _redo_folders(run, len(heads)), strict=True):
            plan.copied.extend({int(name) for name in _numbers(folder)} - set(plan.copied))
    more = np.zeros_like(lost)
    moves: list[tuple[int, int, int]] = []
    for head, plan in enumerate(plans):
        for number, part in plan.moved:
            if _is_movable(assembler, head, number, part, parts[part - 1]):
                moves.append((head, number, part))
            else:
                plan.copied.append(number)
    with telling(f"chunks cannot be put together in {run.root}"):
        for head, number, missing in _put_together(
            run, assembler, heads, paths, plans, gathered, lost, processes
        ):
            start = number * layout_of(heads.values[head]).unit_rows
            more[start : start + len(missing)] |= missing
    if more.any():
        return more
    with telling(f"chunks cannot be moved to {run.root}"):
        for head, number, part in moves:
            pairs = zip(assembler.files(head, number, part), assembler.files(head, number), strict=True)
            for source, target in pairs:
                system.rename(source, target)
        for head in range(len(heads)):
            assembler.unsynced.add_folder(run.root / OUTPUTS / str(head))
        assembler.unsynced.sync()
    return more


def _redo_folders(run: PublishedRun, n_heads: int) -> list[Path]:
    return [run.root / OUTPUTS / str(head) / REDO for head in range(n_heads)]


def _numbers(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if name.isdecimal()] if folder.is_dir() else []


def _is_movable(assembler: Assembler, head: int, number: int, part: int, look: PartLook) -> bool:
    """Whether a part's files of a unit are whole, and nobody's but the publishing's."""
    if not look.is_retired or (look.path / OUTPUTS / str(head) / REDO / str(number)).exists():
        return False
    return all(path.is_file() and not path.is_symlink() for path in assembler.files(head, number, part))


def _put_together(
    run: PublishedRun,
    assembler: Assembler,
    heads: Heads[zarr.Array[Any]],
    paths: list[Path],
    plans: list[Units],
    gathered: Gathered,
    lost: NDArray[np.bool_],
    processes: int,
) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Put units together, and yield of each the rows that nobody has."""
    tasks = list(_tasks(heads, plans, gathered, lost))
    if processes == 1 or len(tasks) < 2:
        for task in tasks:
            yield from _do(assembler, task)
        assembler.unsynced.sync()
        return
    spawn = multiprocessing.get_context("spawn")  # no thread of this process is there
    with ProcessPoolExecutor(
        min(processes, len(tasks)), mp_context=spawn, initializer=_begin, initargs=(run.root, paths)
    ) as pool:
        for found in pool.map(_work, tasks):
            yield from found


def _tasks(
    heads: Heads[zarr.Array[Any]], plans: list[Units], gathered: Gathered, lost: NDArray[np.bool_]
) -> Iterator[_Task]:
    n = len(lost)
    for head, plan in enumerate(plans):
        size = layout_of(heads.values[head]).unit_rows
        for start in range(0, len(plan.copied), _TASK_UNITS):
            units = []
            for number in sorted(plan.copied)[start : start + _TASK_UNITS]:
                rows = slice(number * size, min(n, (number + 1) * size))
                needed = (gathered.source[rows] != NOBODY) & ~lost[rows]
                units.append(
                    (number, needed, gathered.checksums[rows, head].copy(), [PUBLISHED, *gathered.of(rows)])
                )
            yield _Task(head, units)


def _do(assembler: Assembler, task: _Task) -> list[tuple[int, int, NDArray[np.bool_]]]:
    return [(task.head, unit[0], assembler.put_together(task.head, *unit)) for unit in task.units]


_assembler: Assembler | None = None  # of a process that does nothing else


def _begin(root: Path, paths: list[Path]) -> None:
    global _assembler  # noqa: PLW0603  what a worker of a pool is made with
    shared = SharedRun.find(root)
    heads = None if shared is None else shared.heads()
    _assembler = Assembler(root, () if heads is None else heads.values, paths)


def _work(task: _Task) -> list[tuple[int, int, NDArray[np.bool_]]]:
    if _assembler is None:
        return []
    found = _do(_assembler, task)
    _assembler.unsynced.sync()
    return found


def _complete(run: PublishedRun, parts: list[PartLook]) -> None:
    n_missing = int(np.count_nonzero(~run.recorded))
    killed = [str(look.facts) for look in parts if look.facts.state != COMPLETE]
    if n_missing and killed:
        warn(
            f"{n_missing} locations of {run.root} are missing, and not every rank has come to its end "
            f"({listed(killed, most=3, separator='; ')}): missing_locs has them",
            StorageWarning,
        )
    if not run.is_complete:
        run.complete()


def _remove_published(
    shared: SharedRun, parts: list[PartLook], leave_out: Sequence[str], *, is_all: bool
) -> None:
    """Remove parts that were published; after the last of them all that ranks have in common."""
    folder = shared.folder
    with telling(f"what was published cannot be removed from {folder}"):
        for look in parts:
            if look.is_retired:
                system.clear(look.path)
        system.sync(folder)
        if not is_all or leave_out:
            return
        with contextlib.suppress(FileNotFoundError):
            system.rename(folder / RUN, folder / LEAVING)
        system.sync(folder)
        if any(part_folders(folder)):  # of a rank that came just now: it goes on
            system.rename(folder / LEAVING, folder / RUN)
            return
        for name in [*shared.terms.arrays, HEADS]:
            system.clear(folder / name)
        system.clear(folder)
        system.sync(shared.root)

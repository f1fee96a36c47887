"""Publishing: what all parts have recorded becomes one result, in steps that may end anywhere, and go on.

1. Parts whose process has ended are retired, by a rename: they record no more, whatever was thought of them.
2. Chunks that one part has all of move to the result, by a rename; others are put together.
3. All that is synced, then recorded, as of any run that is kept; and the mark says that it is complete.
4. Only then parts are removed, whose rows are all published.

A publishing that is killed leaves chunks in the result that no record names: the next one finds them there.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs.heads import Heads
from accumulator._inputs.text import few, listed
from accumulator._inputs.warn import warn
from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import is_locked, names_in
from accumulator._stores.format.mark import COMPLETE
from accumulator._stores.format.names import PATCHES, REDO
from accumulator._stores.ranks.assemble import Assembler, Task, put_together, unit_rows_of
from accumulator._stores.ranks.facts import RETIRED, name_of, part_folders
from accumulator._stores.ranks.gather import NOBODY, PUBLISHED, Gathered, gather, units_of
from accumulator._stores.ranks.published import PublishedRun
from accumulator._stores.ranks.recorded import look_at_parts
from accumulator._stores.ranks.shared import LEAVING, RUN, SharedRun
from accumulator._stores.reading.patches import read_patches
from accumulator._stores.reading.trust import check_tree
from accumulator.exceptions import (
    LockedError,
    NothingPushedError,
    OptionError,
    ResultFormatError,
    StorageWarning,
    UnfinishedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from accumulator._stores.ranks.facts import PartLook
    from accumulator._stores.ranks.recorded import Looks
    from accumulator.typing import OnDuplicate

_FROM = itemgetter(0, 2)  # of a move: its head and part
_TASK_UNITS = 16  # that a process puts together at a time
_LEFT = "left"  # how names of folders begin that nobody needs any more
_HELD = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY)


@attrs.frozen
class Wish:
    """How parts are to be published."""

    is_partial: bool
    processes: int
    on_duplicate: OnDuplicate | None  # that of the run, where none is given
    leave_out: Sequence[str]
    most_nbytes: int  # of memory


def publish_parts(root: Path, wish: Wish) -> bool:
    """Publish what parts have recorded; return False where there are none, and nothing is changed.

    Errors are those of `accumulator.publish`.
    """
    _clear_left(root)
    shared = SharedRun.find(root)
    if shared is None:
        return False
    try:
        locs = shared.true_locations()
    except ResultFormatError:
        if SharedRun.find(root) is None:  # another process has published all of it just now
            return False
        raise
    terms = shared.terms
    run = PublishedRun.claim(str(root), "a", locs, terms.resume_token, terms.n_expected)
    try:
        shared = SharedRun.find(root)  # again: until here another process may have published
        if shared is None:
            return False
        shared.wait_is_over(is_ours=True)
        parts = _usable(shared, wish)
        heads = shared.heads() or Heads()
        if not heads.values and shared.terms.n_rows:
            raise NothingPushedError(f"nothing was pushed by any rank of {root}, so that heads are unknown")
        checksums = run.open_heads(heads, wish.most_nbytes)
        policy = wish.on_duplicate or shared.terms.on_duplicate
        gathered = gather(run.recorded, checksums, parts, policy, shared.locations("exact"))
        _tell_differing(run, gathered, policy)
        publishing = Publishing(run, shared, heads, parts, gathered, wish.processes, bool(wish.leave_out))
        if shared.terms.is_of_maps and not (root / PATCHES).is_dir():
            read_patches(shared.folder, wish.most_nbytes)  # or parts would go, and nobody knew what they are
        publishing.place_all()
        n_missing = int(np.count_nonzero(~run.recorded))
        is_whole = not (wish.is_partial or (shared.terms.is_of_maps and n_missing))
        if is_whole:
            _complete(run, shared, parts, n_missing)
        del locs
        run.let_go_of_locations()
        _remove_published(shared, parts, is_all=is_whole and not wish.leave_out)
        if not (is_whole or wish.is_partial):
            raise UnfinishedError(
                f"{n_missing} rows of the maps in {root} are missing, and would look empty: stitch with rank="
                " again, in any number of ranks, and then publish; or look at what there is with partial=True"
            )
    finally:
        run.release()
    return True


def _usable(shared: SharedRun, wish: Wish) -> list[PartLook]:
    """Return the parts to publish, of which those that have ended are retired; refuse what may not be."""
    names = [name_of(path) for path in part_folders(shared.folder)]
    unknown = [name for name in wish.leave_out if name not in names]
    if unknown:
        there = listed(names) or "none"
        raise OptionError(f"leave_out names parts that are not there: {listed(unknown)}; there are {there}")
    _remove_unborn(shared)
    looks = _look(shared, wish)
    healthy = [name_of(look.path) for look in looks.parts if name_of(look.path) in wish.leave_out]
    if healthy:
        raise OptionError(
            f"leave_out names parts that are not damaged: {listed(healthy)}; their rows would be missing"
        )
    while ended := [look for look in looks.parts if not (look.is_alive or look.is_retired)]:
        with telling(f"parts cannot be retired in {shared.folder}"):
            for look in ended:
                system.rename(look.path, look.path.with_name(look.path.name + RETIRED))
        # Again: a process that was taken for ended may have recorded rows until its part was retired. And
        # what network file systems have kept of the folder they forget by then: there may be more parts.
        looks = _look(shared, wish)
    for look in looks.parts:
        check_tree(look.path)
    return looks.parts


def _look(shared: SharedRun, wish: Wish) -> Looks:
    """Return what all parts have; refuse damaged ones, and living ones where not all may be published."""
    looks = look_at_parts(shared)
    _refuse_damaged(looks, wish)
    alive = [look for look in looks.parts if look.is_alive]
    if alive and not wish.is_partial:
        who = listed((str(look.facts) for look in alive), most=3, separator="; ")
        raise LockedError(
            errno.EAGAIN,
            f"ranks are still writing parts of this store ({who}): wait until they have ended, or publish "
            "what they have recorded by now with partial=True",
            str(shared.root),
        )
    return looks


def _remove_unborn(shared: SharedRun) -> None:
    """Remove the folders of processes that were killed before they had told who they are."""
    for path in part_folders(shared.folder):
        names = names_in(path)
        if not is_locked(path) and all(system.is_partial(name) for name in names):
            with telling(f"{path} cannot be removed"):
                for name in names:
                    system.clear(path / name)
                system.remove_folder(path)  # not what has come since, from where locks do not reach


def _refuse_damaged(looks: Looks, wish: Wish) -> None:
    damaged = {path: why for path, why in looks.damaged.items() if name_of(path) not in wish.leave_out}
    if damaged:
        path, why = next(iter(damaged.items()))
        more = f", nor are {len(damaged) - 1} others" if len(damaged) > 1 else ""
        raise ResultFormatError(
            f"a part cannot be published{more}: {why}. Restore it from a copy; or publish without it, and "
            f"its rows are missing, with leave_out=[{name_of(path)!r}]"
        )


def _tell_differing(run: PublishedRun, gathered: Gathered, policy: OnDuplicate) -> None:
    if gathered.n_differing:
        warn(
            f"{gathered.n_differing} locations of {run.root} had several predictions that differ: "
            f"on_duplicate={policy!r} decided, and what was published before stays",
            StorageWarning,
        )


@attrs.define(eq=False)
class Publishing:
    """Puts rows in their place: those of ``parts`` that count, in the result ``run``."""

    run: PublishedRun
    shared: SharedRun
    heads: Heads[zarr.Array[Any]]
    parts: list[PartLook]
    gathered: Gathered
    processes: int
    is_left_out: bool  # whether a part is: a killed publishing may have moved some of its chunks
    lost: NDArray[np.bool_] = attrs.field(init=False)  # rows that are recorded, and damaged
    _assembler: Assembler = attrs.field(init=False)
    _there: dict[tuple[int, int], tuple[set[str], set[int]]] = attrs.field(factory=dict, init=False)
    _is_dirty: bool = attrs.field(init=False)  # whether more may be there than what is recorded

    @lost.default
    def _none(self) -> NDArray[np.bool_]:
        return np.zeros(self.shared.terms.n_rows, dtype=bool)

    @_assembler.default
    def _open(self) -> Assembler:
        return Assembler(self.run.root, self.run.keys, self.heads.values, [part.path for part in self.parts])

    @_is_dirty.default
    def _look(self) -> bool:
        return self.is_left_out or (self.shared.terms.is_joined and not self.run.is_complete)

    def place_all(self) -> None:
        """Put all rows in their place, and record them."""
        source = self.gathered.source
        if not (self._is_dirty or (source > PUBLISHED).any()):
            return
        self.run.begin()
        while (more := self._place()).any():  # what is lost in one head is taken out of the others
            self.lost |= more
        self.run.record_rows((source > PUBLISHED) & ~self.lost, self.gathered.checksums)
        if self._is_dirty:
            self.run.tidy()
        of_living = np.zeros_like(self.lost)  # which may have replaced them since: the next publishing tells
        for part in self.parts:
            if not part.is_retired:
                of_living[part.rows] = True
        rows = np.flatnonzero(self.lost & ~of_living)
        if len(rows):
            warn(
                f"{len(rows)} rows that parts of {self.run.root} have recorded are damaged, and missing: "
                f"{few(rows, 10)}",
                StorageWarning,
            )

    def _place(self) -> NDArray[np.bool_]:
        """Put units in their place, and sync them; return rows that turn out to be nobody's.

        What is put together comes first: it is read, and shows what is lost.
        """
        more = np.zeros_like(self.lost)
        tasks: list[Task] = []
        moves: list[tuple[int, int, int]] = []
        redone = list(self.run.redo_folders()) if self._is_dirty else []
        for head, rows in enumerate(unit_rows_of(self.heads.values)):
            if self.heads.values[head].size == 0:  # it has no files
                continue
            plan = units_of(self.gathered, rows, self.run.recorded, self.lost, is_dirty=self._is_dirty)
            copied = set(plan.copied)
            if redone:
                copied |= _numbers(redone[head])
            for number, part in plan.moved:
                if self._is_movable(head, number, part):
                    moves.append((head, number, part))
                else:
                    copied.add(number)
            tasks += self._tasks(head, rows, sorted(copied))
        with telling(f"chunks cannot be put together in {self.run.root}"):
            for head, number, missing in put_together(self._assembler, tasks, self.processes):
                start = number * unit_rows_of(self.heads.values)[head]
                more[start : start + len(missing)] |= missing
        if not more.any():
            with telling(f"chunks cannot be moved to {self.run.root}"):
                self._move(moves)
        return more

    def _is_movable(self, head: int, number: int, part: int) -> bool:
        """Whether a part's files of a unit are whole, and nobody's but the publishing's."""
        if not self.parts[part - 1].is_retired:
            return False
        if (head, part) not in self._there:
            folder = self._assembler.folder(head, part)
            self._there[head, part] = set(_files_in(folder)), _numbers(folder / REDO)
        files, waiting = self._there[head, part]
        return number not in waiting and files.issuperset(self._assembler.names(head, number))

    def _tasks(self, head: int, unit_rows: int, numbers: list[int]) -> Iterator[Task]:
        for start in range(0, len(numbers), _TASK_UNITS):
            units = []
            for number in numbers[start : start + _TASK_UNITS]:
                rows = slice(number * unit_rows, min(len(self.lost), (number + 1) * unit_rows))
                source = self.gathered.source[rows]
                needed = (source != NOBODY) & ~self.lost[rows]
                checksums = self.gathered.checksums[rows, head].copy()
                sources = [PUBLISHED, *self.gathered.of(rows)]
                units.append((number, needed, source == PUBLISHED, checksums, sources))
            yield Task(head, units)

    def _move(self, moves: list[tuple[int, int, int]]) -> None:
        moves.sort(key=_FROM)
        for (head, part), group in itertools.groupby(moves, key=_FROM):
            source = os.fspath(self._assembler.folder(head, part))
            target = os.fspath(self._assembler.folder(head))
            for _, number, _ in group:
                for name in self._assembler.names(head, number):
                    system.rename(f"{source}/{name}", f"{target}/{name}")
        for head in range(len(self.heads)):
            self._assembler.unsynced.add_folder(self._assembler.folder(head))
        self._assembler.unsynced.sync()


def _files_in(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if entry.is_file(follow_symlinks=False))


def _numbers(folder: Path) -> set[int]:
    return {int(name) for name in names_in(folder) if name.isdecimal()} if folder.is_dir() else set()


def _complete(run: PublishedRun, shared: SharedRun, parts: list[PartLook], n_missing: int) -> None:
    killed = [str(look.facts) for look in parts if look.facts.state != COMPLETE]
    if n_missing and killed:
        warn(
            f"{n_missing} locations of {run.root} are missing, and not every rank has come to its end "
            f"({listed(killed, most=3, separator='; ')}): missing_locs has them",
            StorageWarning,
        )
    if shared.terms.is_of_maps and not (run.root / PATCHES).exists():
        with telling(f"what is said of the maps cannot be moved to {run.root}"):
            system.rename(shared.folder / PATCHES, run.root / PATCHES)
            system.sync(run.root)
    if not run.is_complete:
        run.complete()


def _remove_published(shared: SharedRun, parts: list[PartLook], *, is_all: bool) -> None:
    """Remove parts that were published; after the last of them all that ranks have in common.

    Each gets another name first, in one step: a half of a part would look damaged.
    """
    folder = shared.folder
    with telling(f"what was published cannot be removed from {folder}"):
        gone = []
        for look in parts:
            if look.is_retired:
                gone.append(folder / f"{name_of(look.path)}.{system.unique_name()}.partial")
                system.rename(look.path, gone[-1])
        if gone:
            system.sync(folder)
        for path in gone:
            _clear(path)
        if not is_all:
            return
        with contextlib.suppress(FileNotFoundError):
            system.rename(folder / RUN, folder / LEAVING)  # no rank begins a part from now on
        if any(part_folders(folder)):  # but one has just now, and goes on
            system.rename(folder / LEAVING, folder / RUN)
            return
        leaving = shared.root / f"{_LEFT}.{system.unique_name()}.partial"
        system.rename(folder, leaving)
        system.sync(shared.root)
        _clear(leaving)


def _clear_left(root: Path) -> None:
    """Remove what an earlier publishing had to leave."""
    for name in names_in(root) if root.is_dir() else []:
        if name.startswith(f"{_LEFT}.") and system.is_partial(name):
            with contextlib.suppress(OSError):
                _clear(root / name)


def _clear(folder: Path) -> None:
    """Remove what nobody finds any more; files that processes have open may stay until these close them.

    Network file systems give them another name until then, in the folder, which stays with them. The next
    publishing tries again.
    """
    try:
        system.clear(folder)
    except OSError as refusal:
        if refusal.errno not in _HELD:
            raise

"""A part: what one process of several writes, from its beginning to its end, and nobody else.

It is a run that is kept, but for its record, which is a few files that grow with its own rows alone, and for
the locations, which are those of all ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import numpy as np
import zarr

from accumulator._inputs.options import HeadOptions
from accumulator._stores.files import system
from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import ClaimedFolder
from accumulator._stores.format.arrays import layout_of
from accumulator._stores.format.mark import COMPLETE, CREATING, RUNNING, Mark, hash_written
from accumulator._stores.format.names import OUTPUTS
from accumulator._stores.format.segments import ALL, Segment, join, split
from accumulator._stores.format.store import FolderStore
from accumulator._stores.kept.fit import fit_options
from accumulator._stores.kept.record import Record
from accumulator._stores.kept.run import KeptRun
from accumulator._stores.memory.threads import to_its_end
from accumulator._stores.ranks.facts import FACTS, SEGMENTS, Facts
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.ranks import Rank
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stores.kept.record import Checksums
    from accumulator._stores.ranks.shared import SharedRun

_MOST_ROWS: Final = 2**16  # of a segment: it is in memory a few times over
_MOST_SEGMENTS: Final = (
    64  # before all are written as one, once together they hold as much as the last such one
)


@attrs.define(eq=False)
class PartRecord(Record):
    """The record of a part, in the folder ``root``: a segment a checkpoint."""

    _n: int = 0  # checkpoints
    _names: list[str] = attrs.field(factory=list)  # of files: all by then, if there were many, and each since
    _nbytes: int = 0  # of those since
    _nbytes_all: int = 0

    @property
    def n_segments(self) -> int:
        """How many checkpoints there are by now."""
        return self._n

    def put(
        self,
        changed: NDArray[np.intp],
        new: NDArray[np.bool_],
        known: NDArray[np.bool_],
        checksums: Checksums,
        held: NDArray[np.bool_],
    ) -> None:
        """Record rows that have ``changed``, many step by step; all is on the disk when this returns."""
        del new, known, held
        rows = changed if (changed[1:] > changed[:-1]).all() else np.unique(changed)
        for start in range(0, len(rows), _MOST_ROWS):
            some = rows[start : start + _MOST_ROWS]
            self._put(some, np.stack([column[some] for column in checksums], axis=1))

    def _put(self, rows: NDArray[np.intp], sums: NDArray[np.uint64]) -> None:
        content, name = Segment(rows, sums, time.time()).encode(), str(self._n)
        is_all = len(self._names) > _MOST_SEGMENTS and self._nbytes >= self._nbytes_all
        if is_all:
            name += ALL
            earlier = [(self.root / each).read_bytes() for each in self._names]
            parts = [split(each) if i == 0 and self._nbytes_all else [each] for i, each in enumerate(earlier)]
            content = join([*itertools.chain(*parts), content])
        path = self.root / name
        self.reserve.used(partial(system.replace, path, memoryview(content), is_synced=True))
        system.sync(self.root)
        self._n += 1
        self._nbytes += len(content)
        names, self._names = self._names, [*self._names, name]
        if is_all:
            self._names, self._nbytes, self._nbytes_all = [name], 0, len(content)
            for each in names:  # readers begin with the file that has all
                with contextlib.suppress(OSError):
                    system.remove(self.root / each)


@attrs.define(eq=False)
class PartRun(KeptRun):
    """The part of one process, which is made with it and never resumed."""

    shared: SharedRun = attrs.field(kw_only=True)
    who: Rank = attrs.field(kw_only=True)
    _began: float = attrs.field(factory=time.time)

    @classmethod
    def begin_part(cls, shared: SharedRun, who: Rank, locs: NDArray[Any]) -> Self:
        """Make a part, which is alive from now on: LockedError or StorageError where that is not possible."""
        terms = shared.terms
        root = shared.folder / system.unique_name()
        mark = Mark(CREATING, None, 0, terms.n_rows, terms.locations, terms.resume_token)
        mark = attrs.evolve(mark, n_expected=terms.n_expected)
        claimed = ClaimedFolder.claim(root, "w-")
        try:
            none = np.zeros(terms.n_rows, dtype=bool)
            run = cls(root, none, locs, claimed, mark, shared=shared, who=who)
            with telling(f"no part can be made in {shared.folder}"):
                run._tell(CREATING)
                run.is_resumed = shared.heads() is not None
        except BaseException:
            with contextlib.suppress(OSError):
                system.clear(root / FACTS)
            claimed.release(is_unused=True)
            raise
        return run

    def offer(self, specs: Heads[HeadSpec]) -> None:
        """Fix the heads of all ranks, unless another has."""
        self.shared.offer(specs)

    def create(self, specs: Heads[HeadSpec], buffer_nbytes: int) -> ZarrRows:
        """Take the heads of all ranks, which are these if nobody has told any yet."""
        self.offer(specs)
        return self.resume(HeadOptions(), buffer_nbytes, 0)[0]

    def resume(
        self, options: HeadOptions, buffer_nbytes: int, most_nbytes: int
    ) -> tuple[ZarrRows, Heads[HeadSpec]]:
        """Make this part's arrays for the heads of the run; ResumeError tells that the options are others."""
        del most_nbytes
        stored = self.shared.specs()
        if stored is None:
            raise ResultFormatError(f"{self.shared.folder} is damaged: what it said of heads is gone")
        specs = fit_options(self.shared.root, len(self._locs), options, stored)
        names = None if specs.names is None else list(specs.names)
        try:
            with telling(f"no part can be made in {self.root}"):
                rows = to_its_end(partial(self._make, specs, buffer_nbytes))
                self._mark = attrs.evolve(self._mark, names=names, n_heads=len(specs))
                self._set_state(RUNNING)
        except BaseException:
            self.abandon()
            raise
        return rows, specs.like(made.spec for made in rows.layouts)

    def _make(self, specs: Heads[HeadSpec], buffer_nbytes: int) -> ZarrRows:
        store = FolderStore(self.root, unsynced=self._unsynced)
        outputs = zarr.create_group(store, zarr_format=3).require_group(OUTPUTS)
        heads: Any = self.shared.heads()
        arrays = [layout_of(head).create(outputs, str(number)) for number, head in enumerate(heads)]
        self._rows = ZarrRows(
            store,
            len(self._locs),
            specs.values,
            buffer_nbytes,
            recorded=self.recorded,
            there=arrays,
            has_checksums=True,
        )
        system.make_folder(self.root / SEGMENTS)
        self._record = PartRecord(self.root / SEGMENTS, self._reserve, self._unsynced)
        self._unsynced.add_folder(self.root)
        self._unsynced.sync()
        return self._rows

    def complete(self) -> None:
        """Say that this process has come to its end, after the last checkpoint."""
        with telling(f"{self.root} cannot be completed"):
            self._reserve.drop()
        self._set_state(COMPLETE, hash_written(self.recorded))

    def release(self) -> None:
        """End the part; nothing is left of one that has recorded nothing, and has not come to its end."""
        is_left = self._mark.is_complete or bool(self.recorded.any())
        if not is_left and self._folder.is_current():
            if self._rows is not None:
                self._rows.close()
            with contextlib.suppress(OSError):  # publishing removes it
                self._empty()
                system.remove(self.root / FACTS)
            self._mark = attrs.evolve(self._mark, state=CREATING)
        super().release()

    def _empty(self) -> None:
        for name in (OUTPUTS, SEGMENTS, "zarr.json"):
            system.clear(self.root / name)

    def _set_state(self, state: str, written: str = "") -> None:
        self._is_marked = False
        mark = attrs.evolve(self._mark, state=state, written=written)
        with telling(f"{self.root} cannot be marked as {state}"):
            self._reserve.used(partial(self._tell, state))
            self._mark = mark
            self._unsynced.sync()
        self._is_marked = True
        if state == RUNNING:
            self._reserve.hold(self._mark.n_heads)

    def _tell(self, state: str) -> None:
        """Write who writes this part, and how far it is."""
        facts = Facts(
            state,
            self.who.rank,
            0 if self.who.is_of_pool else self.who.world_size,
            socket.gethostname(),
            os.getpid(),
            self._began,
            time.time(),
            self._record.n_segments if isinstance(self._record, PartRecord) else 0,
        )
        system.replace(self.root / FACTS, memoryview(facts.encode()), is_synced=True)
        self._unsynced.add_folder(self.root)

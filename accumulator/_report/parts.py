"""What is found in a run of several ranks: who writes parts, what they recorded, and whether it is right.

Nothing is changed, and no rank is disturbed. Parts are looked at before what was published: so rows that move
from there to here meanwhile are seen.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

import attrs
import numpy as np

from accumulator._core.memory import available_memory
from accumulator._inputs.text import few, printable
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.format.arrays import over
from accumulator._stores.format.mark import COMPLETE, RUNNING, Mark
from accumulator._stores.format.names import OUTPUTS, head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.ranks.facts import name_of, part_folders
from accumulator._stores.ranks.recorded import Looks, look_at_parts, open_published
from accumulator._stores.ranks.shared import SharedRun
from accumulator._stores.reading.check import RowChecker
from accumulator._stores.reading.saved import SavedResult
from accumulator._stores.reading.trust import check_tree
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stores.ranks.facts import PartLook

IN_PARTS: Final = (
    "in parts"  # the state of a store that ranks write, or have written, and that is not whole yet
)
ALIVE: Final = "alive"
ENDED: Final = "ended"
DEAD: Final = "dead"
_WORDS: Final = {ALIVE: "alive", ENDED: "ended", DEAD: "dead (killed, or closed too early)"}
_ATTEMPTS: Final = 5  # while parts are published, and so renamed and removed
_SHOWN: Final = 10  # rows of a head that text lists


@attrs.frozen
class Part:
    """What one process has recorded."""

    name: str  # of its folder, as `publish` takes it to leave it out
    state: str  # ALIVE, ENDED by finalize(), or DEAD: it ended without that
    rank: int
    world_size: int
    pid: int
    host: str
    n_recorded: int
    rows_per_second: float  # from its beginning to what was recorded last
    began: float  # seconds since 1970
    recorded: float | None  # when rows were recorded last; None where none were

    @classmethod
    def of(cls, look: PartLook) -> Self:
        """Describe a part that was looked at."""
        facts = look.facts
        state = ALIVE if look.is_alive else ENDED if facts.state == COMPLETE else DEAD
        last = float(look.seconds.max()) if len(look.seconds) else None
        n, name = len(look.rows), name_of(look.path)
        return cls(
            name,
            state,
            facts.rank,
            facts.world_size,
            facts.pid,
            facts.host,
            n,
            look.rate,
            facts.began,
            last,
        )

    @property
    def state_text(self) -> str:
        """The state as people read it."""
        return _WORDS[self.state]

    @property
    def recorded_text(self) -> str:
        """When rows were recorded last, as people read it."""
        if self.recorded is None:
            return "never"
        try:
            return f"{datetime.fromtimestamp(self.recorded, UTC):%Y-%m-%d %H:%M:%S} UTC"
        except (ValueError, OverflowError, OSError):  # a stranger's number
            return "unknown"

    def line(self) -> str:
        """Return what is printed for people."""
        who = f"rank {self.rank} of {self.world_size}, " if self.world_size else ""  # an engine's have none
        return (
            f"{who}process {self.pid} on {printable(self.host)}: "
            f"{self.state_text}, {self.n_recorded} rows recorded, {self.rows_per_second:,.1f} rows/s, "
            f"last {self.recorded_text}"
        )


@attrs.frozen
class DamagedPart:
    """A part that nothing can be read of."""

    name: str
    reason: str

    def line(self) -> str:
        """Return what is printed for people."""
        return f"part {self.name}: DAMAGED: {printable(self.reason)}"


@attrs.frozen
class PartVerdict:
    """What checking every recorded row of a part has shown."""

    name: str
    who: str  # who wrote it
    n_recorded: int
    heads: list[str]
    damaged: list[NDArray[np.intp]]  # for each head: recorded rows that are not what was written

    @property
    def is_right(self) -> bool:
        """Whether nothing is damaged."""
        return not any(len(rows) for rows in self.damaged)

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        heads = [
            {"name": name, "damaged_rows": rows.tolist()}
            for name, rows in zip(self.heads, self.damaged, strict=True)
        ]
        return {"name": self.name, "who": self.who, "n_recorded": self.n_recorded, "heads": heads}

    def lines(self) -> Iterator[str]:
        """Yield what is printed for people: what is damaged."""
        for name, rows in zip(self.heads, self.damaged, strict=True):
            if len(rows):
                what = f"head {printable(name)}: {len(rows)} damaged rows: {few(rows, _SHOWN)}"
                yield f"{printable(self.who)}: {what} (part {self.name})"


@attrs.frozen(eq=False)
class InParts:
    """A run of several ranks, as it is now."""

    shared: SharedRun
    looks: Looks
    locs: NDArray[Any]  # (N, columns)
    published: SavedResult | None  # None where nothing was

    @classmethod
    def find(cls, root: Path) -> Self | None:
        """Return the run that is in a store; None where no ranks write it, or all of it was published."""
        shared = SharedRun.find(root)
        if shared is None or not (shared.is_open or any(part_folders(shared.folder))):
            return None
        locs = shared.true_locations()
        looks, published = _look(shared), open_published(shared, available_memory())
        return cls(shared, looks, locs, published)

    @property
    def state(self) -> str:
        """`IN_PARTS`, or "complete" where only parts are left that publishing has left out."""
        is_complete = self.published is not None and self.published.mark.is_complete
        return COMPLETE if is_complete and not self.looks.parts else IN_PARTS

    @property
    def is_written(self) -> bool | None:
        """Whether a rank is at work, or somebody publishes; None where the system does not tell."""
        return any(look.is_alive for look in self.looks.parts) or is_locked(self.shared.root)

    @property
    def n_published(self) -> int:
        """How many rows the result has by now."""
        return 0 if self.published is None else int(np.count_nonzero(self.published.written))

    @property
    def heads(self) -> Heads[zarr.Array[Any]] | None:
        """The arrays of all heads; None while nobody has told what they are."""
        return self.shared.heads() if self.published is None else self.published.heads

    def parts(self) -> list[Part]:
        """Return all parts, the earliest first."""
        return [Part.of(look) for look in self.looks.parts]

    def damaged(self) -> list[DamagedPart]:
        """Return the parts that nothing can be read of."""
        return [DamagedPart(name_of(path), str(cause)) for path, cause in self.looks.damaged.items()]

    def recorded(self) -> NDArray[np.bool_]:
        """Return which rows anybody has recorded: ``(N,)``."""
        recorded = np.zeros(len(self.locs), dtype=bool)
        if self.published is not None:
            recorded |= self.published.written
        for look in self.looks.parts:
            recorded[look.rows] = True
        return recorded

    def check(self) -> Iterator[PartVerdict | DamagedPart]:
        """Compare every recorded row of every part with its checksum."""
        yield from self.damaged()
        for look in self.looks.parts:
            try:
                verdict = self._verdict(look)
            except FileNotFoundError:  # it was published just now
                continue
            except ResultFormatError as cause:
                yield DamagedPart(name_of(look.path), str(cause))
            else:
                if verdict is not None:
                    yield verdict

    def _check(self, look: PartLook) -> PartVerdict | None:
        """Return what is found in a part; None of a run without heads, which has no rows either."""
        heads = self.shared.heads()
        if heads is None:
            return None
        check_tree(look.path)
        every = np.zeros(len(self.locs), dtype=bool)
        every[look.rows] = True
        damaged = self._wrong_in(look.path, look, heads, every)
        lost = np.logical_or.reduce(damaged, axis=0) if damaged else np.zeros_like(every)
        if lost.any():  # a publishing may have moved them already, and been killed before that was recorded
            keys = head_keys(heads.names, len(heads)) if self.published is None else self.published.mark.keys
            there = self._wrong_in(self.shared.root, look, heads, lost, keys)
            damaged = [rows & more for rows, more in zip(damaged, there, strict=True)]
        names, wrong = list(heads.by_name()), [np.flatnonzero(rows) for rows in damaged]
        return PartVerdict(name_of(look.path), str(look.facts), len(look.rows), names, wrong)

    def _verdict(self, look: PartLook) -> PartVerdict | None:
        """Return what is found in a part, None where it has gone; what changes meanwhile is read again."""
        for _ in range(_ATTEMPTS):
            found = self._check(look)
            if found is None or found.is_right:
                return found
            again = self._look_again(look)
            if again is None:
                return None
            needed, same = self._needed(again), self._same(look, again)
            damaged = [rows[needed[rows]] for rows in found.damaged]
            found = attrs.evolve(found, damaged=[rows[same[rows]] for rows in damaged])
            if all(same[rows].all() for rows in damaged):
                break
            look = again  # rows were pushed again, or the part has got its other name
        return found

    def _look_again(self, look: PartLook) -> PartLook | None:
        looks, name = _look(self.shared), name_of(look.path)
        for path, cause in looks.damaged.items():
            if name_of(path) == name:
                raise cause
        return next((again for again in looks.parts if name_of(again.path) == name), None)

    def _needed(self, look: PartLook) -> NDArray[np.bool_]:
        """Return which rows are nowhere else: a part is removed once all of them are published."""
        published = open_published(self.shared, available_memory()) if look.is_retired else None
        return np.ones(len(self.locs), dtype=bool) if published is None else ~published.written

    def _same(self, look: PartLook, again: PartLook) -> NDArray[np.bool_]:
        """Return which rows of a part were not recorded again between two looks."""
        same = np.zeros(len(self.locs), dtype=bool)
        if look.path == again.path:
            rows, was, now = np.intersect1d(look.rows, again.rows, return_indices=True)
            is_equal = (look.checksums[was] == again.checksums[now]).all(axis=1)
            same[rows] = is_equal & (look.seconds[was] == again.seconds[now])
        return same

    def _wrong_in(
        self,
        folder: Path,
        look: PartLook,
        heads: Heads[zarr.Array[Any]],
        rows: NDArray[np.bool_],
        keys: Sequence[str] | None = None,
    ) -> list[NDArray[np.bool_]]:
        """Return which of a part's rows a folder does not hold as they were recorded, for each head.

        Arrays have numbers in parts, and ``keys`` elsewhere.
        """
        checksums = np.zeros((len(self.locs), len(heads)), np.uint64)
        checksums[look.rows] = look.checksums
        store = FolderStore(folder, read_only=True)
        paths = [head.path for head in heads] if keys is None else [f"{OUTPUTS}/{key}" for key in keys]
        arrays = [over(head, store, path) for head, path in zip(heads, paths, strict=True)]
        mark = Mark(RUNNING, None, len(arrays), len(self.locs))
        return RowChecker(
            SavedResult(store, mark, arrays, self.locs, rows, list(checksums.T), ())
        ).look_at_all()


def _look(shared: SharedRun) -> Looks:
    """Return what all parts have; again, where some got another name meanwhile, or were half removed."""
    for _ in range(_ATTEMPTS):
        before = list(part_folders(shared.folder))
        looks = look_at_parts(shared)
        if not looks.damaged and list(part_folders(shared.folder)) == before:
            break
    return looks

"""What the commands ``info``, ``verify`` and ``missing`` find in a store, as JSON and as text.

Nothing is changed, and whoever writes the store is not disturbed. Names may come from a stranger: text has
escapes for every character that a terminal would obey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core.memory import available_memory
from accumulator._inputs.text import few, printable, shape_text
from accumulator._pictures import left_out
from accumulator._report.parts import IN_PARTS, DamagedPart, InParts, Part, PartVerdict
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.format.mark import COMPLETE, CREATING
from accumulator._stores.reading.check import RowChecker
from accumulator._stores.reading.look import disk_nbytes, head_details
from accumulator._stores.reading.patches import read_patches
from accumulator._stores.reading.saved import has_patches, open_mark, open_result

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._stores.reading.saved import SavedResult

    _Found = tuple[list[NDArray[np.intp]], list[NDArray[np.intp]], list[NDArray[np.intp]]]

_SHOWN: Final = 10  # rows of a head that text lists


@attrs.frozen
class Info:
    """What a store is."""

    path: str  # its folder
    state: str  # how far it is
    is_locked: bool | None  # whether somebody is writing it; None where the system does not tell
    n: int  # locations
    n_written: int  # how many have come
    n_columns: int | None  # numbers of a location; None while the store is created, or maps are in parts
    resume_token: str | None  # what the user gave
    disk_nbytes: int  # what it takes on disk
    heads: list[dict[str, Any]]  # name and storage of each
    # of a run of several ranks, whose rows were written by anybody:
    n_published: int = 0  # rows of the result by now; all of any other store
    parts: list[Part] = attrs.field(factory=list)
    damaged_parts: list[DamagedPart] = attrs.field(factory=list)
    n_expected: int | None = None  # locations that are to come; None where nobody told

    @property
    def n_left_out(self) -> int:
        """How many locations will never come, as a mask leaves them out."""
        return left_out(self.n, self.n_written, self.n_expected)

    @property
    def n_missing(self) -> int:
        """How many are still to come."""
        return self.n - self.n_written - self.n_left_out

    @property
    def is_in_parts(self) -> bool:
        """Whether ranks have parts there that are not published."""
        return self.state == IN_PARTS or bool(self.parts or self.damaged_parts)

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return attrs.asdict(self) | {"n_missing": self.n_missing, "n_left_out": self.n_left_out}

    def lines(self) -> Iterator[str]:
        """Yield what is printed for people."""
        writing = {None: "unknown", True: "yes", False: "no"}[self.is_locked]
        token = "none" if self.resume_token is None else printable(self.resume_token)
        n_wanted = self.n - self.n_left_out
        share = f" ({self.n_written / n_wanted:.1%})" if n_wanted else ""
        what = " rows of maps" if self.is_in_parts else ""
        rows = {
            "store": printable(self.path),
            "state": self.state,
            "being written": writing,
            "locations": f"{self.n}" + (what if self.n_columns is None else f" of {self.n_columns} numbers"),
            "written": f"{self.n_written}{share}",
            **({"published": f"{self.n_published}"} if self.is_in_parts else {}),
            "missing": f"{self.n_missing}",
            **({} if self.n_expected is None else {"left out by a mask": f"{self.n_left_out}"}),
            "resume_token": token,
            "bytes on disk": f"{self.disk_nbytes:,}",
            "bytes of all heads": f"{sum(head['nbytes'] for head in self.heads):,}",
        }
        for label, value in rows.items():
            yield f"{label:18}  {value}"
        for head in self.heads:
            yield f"head {printable(head['name'])}: {', '.join(_described(head))}"
        yield from (part.line() for part in self.parts)
        yield from (part.line() for part in self.damaged_parts)


@attrs.frozen
class Verdict:
    """What checking every byte of a store has shown; rows are counted as they were at the start."""

    path: str
    state: str
    is_locked: bool | None
    n: int
    n_written: int
    names: list[str]  # the heads
    # for each head: recorded rows that are not what was written
    damaged: list[NDArray[np.intp]]
    # for each head: others that do not hold the fill value; in a running store a crash left them, and they
    # are no damage: resuming removes them
    dirty: list[NDArray[np.intp]]
    # for each head: recorded rows that are right, and not in their place yet: a run that replaced them ended
    # too early. They are read as they were recorded, and resuming puts them there
    replaced: list[NDArray[np.intp]]
    is_complete: bool  # whether what is not recorded has to be empty; of ranks: in what was published
    parts: list[PartVerdict] = attrs.field(factory=list)  # of a run of several ranks
    damaged_parts: list[DamagedPart] = attrs.field(factory=list)

    @property
    def is_right(self) -> bool:
        """Whether nothing is damaged."""
        wrong = [*self.damaged, *(self.dirty if self.is_complete else [])]
        is_whole = not self.damaged_parts and all(part.is_right for part in self.parts)
        return is_whole and not any(len(rows) for rows in wrong)

    @property
    def verdict(self) -> str:
        """Return "right", "unfinished" or "damaged"."""
        is_finished = self.state == COMPLETE and not any(len(rows) for rows in self.replaced)
        return ("right" if is_finished else "unfinished") if self.is_right else "damaged"

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        rows = (self.damaged, self.dirty, self.replaced)
        heads = [
            {
                "name": name,
                "damaged_rows": damaged.tolist(),
                "dirty_rows": dirty.tolist(),
                "replaced_rows": replaced.tolist(),
            }
            for name, damaged, dirty, replaced in zip(self.names, *rows, strict=True)
        ]
        return {
            "path": self.path,
            "verdict": self.verdict,
            "is_right": self.is_right,
            "state": self.state,
            "is_locked": self.is_locked,
            "n": self.n,
            "n_written": self.n_written,
            "heads": heads,
            "parts": [part.as_json() for part in self.parts],
            "damaged_parts": [attrs.asdict(part) for part in self.damaged_parts],
        }

    def lines(self) -> Iterator[str]:
        """Yield what is printed for people."""
        if self.is_locked:
            yield "somebody is writing this store: only what it had recorded at the start was checked"
        ends = "publishing" if self.state == IN_PARTS else "resuming"
        found = (self.damaged, self.dirty, self.replaced)
        for name, damaged, dirty, replaced in zip(self.names, *found, strict=True):
            if len(replaced):
                yield (
                    f"head {printable(name)}: {len(replaced)} rows whose replacement is unfinished and which "
                    f"are right ({ends} finishes it): {few(replaced, _SHOWN)}"
                )
            if len(damaged):
                yield f"head {printable(name)}: {len(damaged)} damaged rows: {few(damaged, _SHOWN)}"
            if len(dirty):
                removes = "" if self.state == IN_PARTS else ": resuming removes them"
                remedy = "" if self.is_complete else f" (a crash left them{removes})"
                yield (
                    f"head {printable(name)}: {len(dirty)} rows that never came do not hold the fill value: "
                    f"{few(dirty, _SHOWN)}{remedy}"
                )
        for part in self.parts:
            yield from part.lines()
        for broken in self.damaged_parts:
            yield broken.line()
        words = {"right": "right", "unfinished": "unfinished, right so far", "damaged": "DAMAGED"}
        rows = f"{self.n_written} of {self.n} rows of {len(self.names)} heads"
        yield f"{printable(self.path)}: {words[self.verdict]}: {rows}, {self.state}"


@attrs.frozen
class Missing:
    """What has not come: rows of the list, and their locations."""

    rows: NDArray[np.intp]
    locations: NDArray[Any]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {"n": len(self.rows), "rows": self.rows.tolist(), "locations": self.locations.tolist()}

    def lines(self) -> Iterator[str]:
        """Yield a line a location, with spaces between its numbers."""
        for location in self.locations:
            yield " ".join(map(str, location.tolist()))


def info(path: Path) -> Info:
    """Return what a store is."""
    root = path.absolute()
    run = InParts.find(root)
    if run is not None:
        return _info_of_parts(root, run)
    mark, is_written = open_mark(root), is_locked(root)
    n, n_written, heads, n_columns = mark.n_rows, 0, [], None
    if mark.state != CREATING:
        saved = _open(root)
        mark, locations = saved.mark, _record(root, saved)
        n, n_columns = locations.output_locs.shape
        n_written = int(np.count_nonzero(locations.written))
        heads = [{"name": name, **head_details(array)} for name, array in saved.heads.by_name().items()]
    taken = disk_nbytes(root)
    token = mark.resume_token
    return Info(
        str(root),
        mark.state,
        is_written,
        n,
        n_written,
        n_columns,
        token,
        taken,
        heads,
        n_published=n_written,
        n_expected=mark.n_expected,
    )


def _info_of_parts(root: Path, run: InParts) -> Info:
    heads = {} if run.heads is None else run.heads.by_name()
    return Info(
        str(root),
        run.state,
        run.is_written,
        len(run.locs),
        int(np.count_nonzero(run.recorded())),
        None if run.shared.terms.is_of_maps else run.locs.shape[1],
        run.shared.terms.resume_token,
        disk_nbytes(root),
        [{"name": name, **head_details(array)} for name, array in heads.items()],
        run.n_published,
        run.parts(),
        run.damaged(),
        run.shared.terms.n_expected,
    )


def state_of(path: Path) -> str:
    """Return how far a store is, as `info` has it."""
    root = path.absolute()
    run = InParts.find(root)
    return open_mark(root).state if run is None else run.state


def verify(path: Path) -> Verdict:
    """Compare every byte of a store with its checksums."""
    root = path.absolute()
    run = InParts.find(root)
    if run is not None:
        return _verify_parts(root, run)
    mark, is_written = open_mark(root), is_locked(root)
    if mark.state == CREATING:
        return Verdict(str(root), mark.state, is_written, mark.n_rows, 0, [], [], [], [], is_complete=False)
    saved = _open(root)
    _record(root, saved)
    return Verdict(
        str(root),
        saved.mark.state,
        is_written,
        len(saved.written),
        int(np.count_nonzero(saved.written)),
        list(saved.heads.by_name()),
        *_check_all(root, saved, is_written=is_written),
        is_complete=saved.mark.is_complete,
    )


def _verify_parts(root: Path, run: InParts) -> Verdict:
    """Compare what was published, and then every part, with their checksums."""
    is_written, saved, recorded = run.is_written, run.published, run.recorded()
    is_complete = saved is not None and saved.mark.is_complete
    names = [] if run.heads is None else list(run.heads.by_name())
    nothing = [np.empty(0, np.intp) for _ in names]
    found: _Found = (nothing, nothing, nothing)
    if saved is not None:
        damaged, dirty, replaced = _check_all(root, saved, is_written=is_written)
        if not is_complete:  # some may be on their way, from a part whose record has them
            dirty = [rows[~recorded[rows]] for rows in dirty]
        found = (damaged, dirty, replaced)
    parts = list(run.check())
    return Verdict(
        str(root),
        run.state,
        is_written,
        len(run.locs),
        int(np.count_nonzero(recorded)),
        names,
        *found,
        is_complete=is_complete,
        parts=[part for part in parts if isinstance(part, PartVerdict)],
        damaged_parts=[part for part in parts if isinstance(part, DamagedPart)],
    )


def missing(path: Path) -> Missing:
    """Return what has not come yet; errors are those of `verify`."""
    root = path.absolute()
    run = InParts.find(root)
    if run is not None:
        rows = np.flatnonzero(~run.recorded())
        return Missing(rows, run.locs[rows].astype(np.int64))
    saved = open_record(root)
    rows = np.flatnonzero(~saved.written)
    return Missing(rows, saved.output_locs[rows].astype(np.int64))


def open_record(root: Path) -> SavedResult:
    """Return what a store has recorded of its locations."""
    return _record(root, _open(root))


def _open(root: Path) -> SavedResult:
    return open_result(root, is_partial=True, most_nbytes=available_memory())


def _record(root: Path, saved: SavedResult) -> SavedResult:
    """Return what has locations: a store's own record, or that of the patches which maps were made of."""
    return read_patches(root, available_memory())[1] if has_patches(root) else saved


def _check_all(root: Path, saved: SavedResult, *, is_written: bool | None) -> _Found:
    """Return for each head the rows that are damaged, not empty, and not in their place yet."""
    damaged, dirty, replaced = _check(saved)
    if is_written and any(rows.any() for rows in damaged):
        # A recorded row that is pushed again just now may be in its place with a checksum that came later.
        again, *_ = _check(_open(root))
        damaged = [rows & more for rows, more in zip(damaged, again, strict=True)]
    return _rows(damaged), _rows(dirty), _rows(replaced)


def _rows(each: list[NDArray[np.bool_]]) -> list[NDArray[np.intp]]:
    return [np.flatnonzero(rows) for rows in each]


def _check(saved: SavedResult) -> tuple[list[NDArray[np.bool_]], ...]:
    """Return for each head which recorded rows are damaged, which others are not empty, and which wait."""
    damaged, dirty, replaced = ([np.zeros_like(saved.written) for _ in saved.arrays] for _ in range(3))

    def note(unit: Any, findings: Any) -> None:
        damaged[unit.head][unit.rows] = findings.damaged
        dirty[unit.head][unit.rows] = findings.dirty
        replaced[unit.head][unit.rows] = findings.redone

    RowChecker(saved).look_at_all(note)
    return damaged, dirty, replaced


def _described(head: dict[str, Any]) -> Iterator[str]:
    yield f"{shape_text(head['shape'])} {head['dtype']}"
    yield f"{head['nbytes']:,} bytes"
    yield f"fill value {head['fill_value']}"
    yield f"chunks {shape_text(head['chunks'])}"
    if head["shards"] is not None:
        yield f"shards {shape_text(head['shards'])}"
    yield f"codecs {' '.join(map(printable, head['codecs']))}"

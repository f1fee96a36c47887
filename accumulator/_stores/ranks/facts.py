"""Who writes a part, and what it has recorded: read without disturbing anybody."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from accumulator._stores.files.errors import telling
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.files.system import is_partial
from accumulator._stores.format.mark import COMPLETE, CREATING, RUNNING, digest, read_json
from accumulator._stores.format.segments import ALL, Segment, decode, split
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FACTS: Final = "part.json"
SEGMENTS: Final = "record"
RETIRED: Final = ".retired"  # behind the name of a part that is being published
_ATTEMPTS: Final = 20  # while whoever writes it puts many segments into one
_FRESH_SECONDS: Final = 120.0


@attrs.frozen
class Facts:
    """Who writes a part."""

    state: str
    rank: int
    world_size: int
    host: str
    pid: int
    began: float  # seconds since 1970
    told: float  # when this was written
    n_segments: int = 0  # checkpoints by then, which a look from another machine may not see at once

    def encode(self) -> bytes:
        """Return the file's bytes."""
        plain = attrs.asdict(self)
        return json.dumps(plain | {"digest": digest(plain)}).encode()

    def __str__(self) -> str:
        """Return it as people look for it."""
        who = f"rank {self.rank} of {self.world_size}, " if self.world_size else ""  # an engine's have none
        return f"{who}process {self.pid} on {self.host}"


@attrs.frozen(eq=False)
class PartLook:
    """A part as it is now."""

    path: Path
    facts: Facts
    rows: NDArray[np.intp]  # recorded, rising
    checksums: NDArray[np.uint64]  # (n, heads)
    seconds: NDArray[np.float64]  # when each was recorded
    is_locked: bool | None

    @property
    def is_alive(self) -> bool:
        """Whether its process goes on, as far as can be told.

        Some file systems keep locks within one machine. There a part of another one counts as alive for a
        while after it has recorded rows.
        """
        if self.is_retired or self.facts.state == COMPLETE:
            return False
        if self.is_locked:
            return True
        is_elsewhere = self.facts.host != socket.gethostname()
        last = max(self.facts.told, float(self.seconds.max()) if len(self.seconds) else 0.0)
        return is_elsewhere and abs(time.time() - last) < _FRESH_SECONDS  # of clocks that differ a little

    @property
    def is_retired(self) -> bool:
        """Whether its process can record nothing more."""
        return self.path.name.endswith(RETIRED)

    @property
    def rate(self) -> float:
        """Rows a second, from the beginning to what was recorded last."""
        if len(self.seconds) == 0:
            return 0.0
        return len(self.rows) / max(1e-3, float(self.seconds.max()) - self.facts.began)


def name_of(path: Path) -> str:
    """Return what a part is called, retired or not."""
    return path.name.removesuffix(RETIRED)


def part_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of all parts, in the order of their names."""
    with telling(f"{folder} cannot be read"):
        found = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in found:
        name = name_of(path)
        if len(name) == 32 and set(name) <= set("0123456789abcdef"):
            yield path


def living(folder: Path) -> Iterator[Facts]:
    """Yield who writes parts just now, as far as locks tell; a damaged part is told of elsewhere."""
    for path in part_folders(folder):
        with contextlib.suppress(ResultFormatError, FileNotFoundError):
            if is_locked(path):
                yield _read_facts(path)


def look_at(path: Path, n_rows: int, n_heads: int) -> PartLook | None:
    """Return a part as it is now; None where nothing was put into it, or where it has just gone.

    ResultFormatError tells that its metadata is damaged.
    """
    if not (path / FACTS).exists():
        with contextlib.suppress(FileNotFoundError):  # it was published just now
            if any(not is_partial(each.name) for each in path.iterdir()):
                raise ResultFormatError(f"{path} is damaged: there is no {FACTS}")
        return None
    locked = is_locked(path)
    facts = _read_facts(path)
    for attempt in range(_ATTEMPTS):
        try:
            segments, n_segments = _read_segments(path / SEGMENTS, n_rows, n_heads)
            break
        except FileNotFoundError:  # it was put into another
            if attempt == _ATTEMPTS - 1:
                raise
    if n_segments < facts.n_segments:
        raise ResultFormatError(
            f"{path} is damaged: {facts.n_segments - n_segments} of its last checkpoints are gone; or they "
            "cannot be seen from this machine yet, and in a minute they can"
        )
    rows, checksums, seconds = merged(segments, n_heads)
    return PartLook(path, facts, rows, checksums, seconds, locked)


def merged(
    segments: list[Segment], n_heads: int
) -> tuple[NDArray[np.intp], NDArray[np.uint64], NDArray[np.float64]]:
    """Return what segments say together; of a row that was recorded twice the last counts."""
    if not segments:
        return np.empty(0, np.intp), np.empty((0, n_heads), np.uint64), np.empty(0)
    rows = np.concatenate([segment.rows for segment in segments])
    checksums = np.concatenate([segment.checksums for segment in segments])
    seconds = np.repeat([each.seconds for each in segments], [len(each.rows) for each in segments])
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    is_last = np.ones(len(rows), bool)
    is_last[:-1] = rows[1:] != rows[:-1]
    return rows[is_last], checksums[order[is_last]], seconds[order[is_last]]


def _read_segments(folder: Path, n_rows: int, n_heads: int) -> tuple[list[Segment], int]:
    """Return all segments, the earliest first, and of how many checkpoints they are.

    FileNotFoundError tells to look again.
    """
    if not folder.is_dir():
        return [], 0
    names = {path.name for path in folder.iterdir()}
    numbers = sorted(int(name.removesuffix(ALL)) for name in names if name.removesuffix(ALL).isdecimal())
    first = max((number for number in numbers if f"{number}{ALL}" in names), default=0)
    found: list[Segment] = []
    for number in range(first, numbers[-1] + 1 if numbers else 0):
        name = f"{number}{ALL}" if f"{number}{ALL}" in names else str(number)
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            if name in names or _is_newer(folder, names):
                raise  # all have just been put into one file
            raise ResultFormatError(f"{folder} is damaged: there is no {name}") from None
        try:
            parts = split(content) if name.endswith(ALL) else [content]
            found += [decode(part, n_rows, n_heads) for part in parts]
        except (ValueError, KeyError) as cause:
            raise ResultFormatError(f"{folder / name} is damaged: {cause}") from cause
    return found, numbers[-1] + 1 if numbers else 0


def _is_newer(folder: Path, names: set[str]) -> bool:
    return any(path.name not in names for path in folder.iterdir())


def _read_facts(path: Path) -> Facts:
    told = read_json(path / FACTS, path)
    plain = {key: value for key, value in told.items() if key != "digest"}
    is_told = told.get("digest") == digest(plain)
    plain.setdefault("n_segments", 0)
    if not is_told or set(plain) != {field.name for field in attrs.fields(Facts)}:
        raise ResultFormatError(f"{path / FACTS} is damaged: it was changed")
    is_possible = (
        isinstance(plain["host"], str)
        and plain["state"] in (CREATING, RUNNING, COMPLETE)
        and all(type(plain[name]) is int for name in ("rank", "world_size", "pid", "n_segments"))
        and all(type(plain[name]) in (int, float) for name in ("began", "told"))
    )
    if not is_possible:
        raise ResultFormatError(f"{path / FACTS} is damaged: it holds impossible values")
    return Facts(**plain)

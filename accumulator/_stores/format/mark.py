"""What a store says of itself: the group's attribute ``accumulator``.

It is trusted no further than it can be checked: a group may come from a stranger.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import stat
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._stores.files.errors import storage_error
from accumulator._stores.format.names import MAPS, OUTPUTS, RECORD, head_keys
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MARK: Final = "accumulator"
VERSION: Final = 2
NAMED: Final = 3  # the version of stores in which heads lie under their own names
CREATING, RUNNING, COMPLETE = "creating", "running", "complete"
MOST_METADATA: Final = 16 * 2**20  # bytes of a file of it
_MOST_NAMED: Final = 3  # stores in a folder
_HASHED_NUMBERS: Final = 2**16  # that are copied at a time


@attrs.frozen
class Mark:
    """What the group says of itself."""

    state: str = CREATING
    names: list[str] | None = None  # of the heads
    n_heads: int = 0
    n_rows: int = 0
    locations: str = ""  # `hash_locations` of them
    resume_token: str | None = None
    arrays: dict[str, str] = attrs.field(factory=dict)  # `hash_of` the metadata file of each of `parts`
    written: str = ""  # `hash_written`, of a complete run: a file of another run would pass for its record
    n_expected: int | None = None  # rows that are to come, which not every store tells
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """Return it as it is stored, with a hash of itself."""
        plain = attrs.asdict(self)
        if self.n_expected is None:  # what earlier versions wrote, and read
            del plain["n_expected"]
        return plain | {"digest": digest(plain)}

    @property
    def is_complete(self) -> bool:
        """Whether the run was finalized."""
        return self.state == COMPLETE

    @property
    def parts(self) -> list[str]:
        """The group of outputs, and the arrays of so many heads."""
        return [OUTPUTS, *self.heads, *RECORD]

    @property
    def heads(self) -> list[str]:
        """The array of each head."""
        return [f"{OUTPUTS}/{key}" for key in self.keys]

    @property
    def keys(self) -> list[str]:
        """What the array of each head is called: earlier versions have numbers for all."""
        return head_keys(self.names if self.version == NAMED else None, self.n_heads)

    def of_heads(self, names: Sequence[str] | None, n_heads: int) -> Mark:
        """Return the mark of a store that is made for such heads."""
        keys = head_keys(names, n_heads)
        return attrs.evolve(
            self,
            names=None if names is None else list(names),
            n_heads=n_heads,
            arrays={},
            version=VERSION if keys == head_keys(None, n_heads) else NAMED,
        )


def hash_locations(locs: NDArray[Any]) -> str:
    """Return the SHA-256 of how many columns locations have, and of their rows as little-endian int64."""
    n_columns = locs.shape[1]
    made = hashlib.sha256(f"{n_columns}:".encode())
    step = max(1, _HASHED_NUMBERS // max(1, n_columns))
    for start in range(0, len(locs), step):
        made.update(locs[start : start + step].astype("<i8").tobytes())
    return made.hexdigest()


def hash_written(written: NDArray[np.bool_]) -> str:
    """Return the SHA-256 of which rows are written, as bits."""
    return hashlib.sha256(np.packbits(written).tobytes()).hexdigest()


def hash_of(file: Path) -> str:
    """Return the SHA-256 of a file; nothing where there is none."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""


def digest(plain: dict[str, Any]) -> str:
    """Return the SHA-256 of what a mark has besides."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_mark(path: Path) -> Mark:
    """Read and check what a group says of itself; ResultFormatError tells that it is none, or was changed."""
    document = read_json(path / "zarr.json", path)
    attributes = document.get("attributes")
    plain = attributes.get(MARK) if isinstance(attributes, dict) else None
    if plain is None and isinstance(attributes, dict) and MAPS in attributes:
        raise ResultFormatError(
            f"{path} holds maps of several shapes, each a store of its own ({path / '0'} and so on): open "
            "all of them with StitchedMap.load"
        )
    if not isinstance(plain, dict) or document.get("node_type") != "group":
        raise ResultFormatError(
            f"{path} is neither a result that FullBatch.save wrote nor a run kept by store=: its metadata "
            "has nothing of either"
        )
    version = plain.get("version")
    if version not in (VERSION, NAMED) or type(version) is not int:
        raise ResultFormatError(
            f"{path} has version {version!r} of the layout, this library reads {VERSION} and {NAMED}: use "
            "the version of the library that wrote it"
        )
    stated = {key: value for key, value in plain.items() if key != "digest"}
    fields = {field.name for field in attrs.fields(Mark)}
    try:
        is_whole = plain.get("digest") == digest(stated) and set(stated) | {"n_expected"} == fields
    except RecursionError:
        is_whole = False
    if not is_whole:
        raise ResultFormatError(f"{path} is damaged: its metadata was changed")
    mark = Mark(**stated)
    if not _is_possible(mark):
        raise ResultFormatError(f"{path} is damaged: its metadata holds impossible values")
    return mark


def read_json(file: Path, path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a group; what is no file, no JSON, or too long is refused."""
    name = file.relative_to(path)
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ResultFormatError(f"{file} is not a file: a store holds only folders and files")
        if status.st_size > MOST_METADATA:
            raise ResultFormatError(f"{file} has {status.st_size} bytes: metadata is never that long")
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as cause:
        raise ResultFormatError(
            f"{path} is neither a result that FullBatch.save wrote nor a run kept by store=, or its first "
            f"push has not come: there is no {name}{_stores_in(path)}"
        ) from cause
    except OSError as cause:
        raise storage_error(cause, f"{file} cannot be read") from cause
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise ResultFormatError(f"{path} is damaged: {name} is not JSON ({cause})") from cause
    if not isinstance(document, dict):
        raise ResultFormatError(f"{path} is damaged: {name} is not a JSON object")
    return document


def _stores_in(path: Path) -> str:
    """Return the first few stores in a folder, as whoever gave it may mean one of them."""
    if (path / OUTPUTS).exists():  # or it was one itself
        return ""
    some = sorted(file.parent.name for file in itertools.islice(path.glob("*/zarr.json"), _MOST_NAMED))
    return f"; in it there is {', or '.join(map(repr, some))}" if some else ""


def _is_possible(mark: Mark) -> bool:
    counts, names = (mark.n_heads, mark.n_rows), mark.names
    return (
        mark.state in (CREATING, RUNNING, COMPLETE)
        and all(type(count) is int and 0 <= count < 2**62 for count in counts)
        and isinstance(names, list | None)
        and (names is None or _are_names(names, mark.n_heads))
        and isinstance(mark.locations, str)
        and isinstance(mark.written, str)
        and isinstance(mark.resume_token, str | None)
        and isinstance(mark.arrays, dict)
        and is_count(mark.n_expected, mark.n_rows)
        and (
            mark.state == CREATING
            or (
                len(mark.arrays) == 1 + mark.n_heads + len(RECORD)  # before so many names are made
                and set(mark.arrays) == set(mark.parts)
            )
        )
    )


def is_count(raw: Any, most: int) -> bool:
    """Whether it is a number of rows to come, or not told."""
    return raw is None or (type(raw) is int and 0 <= raw <= most)


def _are_names(names: list[Any], n_heads: int) -> bool:
    return all(isinstance(name, str) for name in names) and len(set(names)) == len(names) == n_heads

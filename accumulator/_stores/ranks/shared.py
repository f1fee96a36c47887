"""What all ranks of a run have in common: what they agree on, the list of locations, and the heads.

It lies in the folder `parts` of the store, and each piece of it gets its name in one step: whoever is first
makes it, and all others find it whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
from typing import TYPE_CHECKING, Any, Final, Self, get_args

import attrs
import numpy as np
import zarr

from accumulator._inputs.heads import Heads
from accumulator._inputs.text import listed
from accumulator._stores.files import system
from accumulator._stores.files.errors import SizeError, telling
from accumulator._stores.files.mapped import make_mapped, open_mapped
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.files.temporary import make_parents
from accumulator._stores.files.unsynced import Unsynced
from accumulator._stores.format.arrays import layout_of, open_group, read_only
from accumulator._stores.format.layout import BUFFER_NBYTES, layout
from accumulator._stores.format.mark import digest, hash_locations, hash_of, is_count, read_json
from accumulator._stores.format.names import OUTPUTS, PARTS
from accumulator._stores.format.store import FolderStore
from accumulator._stores.reading.trust import check_output, check_tree
from accumulator.exceptions import ResultFormatError, ResumeError
from accumulator.typing import OnDuplicate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._inputs.validation import HeadSpec

RUN: Final = "run.json"
LEAVING: Final = "run.json.leaving"  # its name while all that is published is removed
HEADS: Final = "heads"
LOCATIONS: Final = "locations"
_ARRAYS: Final = (LOCATIONS, "exact", "keys", "order")
_MARK: Final = "accumulator_heads"
_VERSION: Final = 1
_MOST_ROWS: Final = 2**62
_OPTION: Final = "; "
_MOST_COLUMNS: Final = 2**10  # of locations
_THERE: Final = (errno.ENOTEMPTY, errno.EEXIST)


@attrs.frozen
class Terms:
    """What ranks agree on, fixed by the first of them."""

    n_rows: int
    locations: str  # `hash_locations` of them
    resume_token: str | None
    on_duplicate: OnDuplicate
    unit_rows: int | None  # rows of a chunk, by which shares are cut; None where heads were not declared
    arrays: dict[str, tuple[list[int], str]]  # shape and dtype of each file of the index
    is_joined: bool  # whether a run of one process was there before
    is_of_maps: bool = False  # whether rows are those of maps, whose patches are told of beside the heads
    n_expected: int | None = None  # rows that are to come, of all ranks together

    def differences(self, given: Terms) -> Iterator[str]:
        """Yield in which a rank differs from the first."""
        if self.n_rows != given.n_rows:
            yield f"it has {self.n_rows} locations, and {given.n_rows} are given"
        elif self.locations != given.locations:
            yield "its locations are others, or in another order"
        for what in ("resume_token", "on_duplicate", "n_expected"):
            was, now = getattr(self, what), getattr(given, what)
            if what == "n_expected" and None in {was, now}:
                continue  # not every rank has to tell
            if was != now and self.is_of_maps and given.is_of_maps and what == "resume_token":
                yield f"it has maps of other patches, or made otherwise: {_others(was, now)}"
            elif was != now:
                yield f"its {what} is {was!r}, and {now!r} is given"


@attrs.define(eq=False)
class SharedRun:
    """A run of several ranks, in the folder of its store."""

    root: Path
    terms: Terms

    @property
    def folder(self) -> Path:
        """Where parts are."""
        return self.root / PARTS

    @classmethod
    def find(cls, root: Path) -> Self | None:
        """Return the run of several ranks that is in a store; None where there is none.

        ResultFormatError tells that it is damaged, StorageError that the system does not let us look.
        """
        while True:
            with telling(f"{root} cannot be read"):
                names = [name for name in (RUN, LEAVING) if (root / PARTS / name).exists()]
            if not names:
                return None
            try:
                return cls(root, _read_terms(root / PARTS, names[0]))
            except ResultFormatError:
                if (root / PARTS / names[0]).exists():
                    raise  # else it has just got the other name, or was removed

    @contextlib.contextmanager
    @staticmethod
    def making(root: Path) -> Iterator[Path]:
        """Give a folder that `make` lets be the run's; nothing is left of it otherwise."""
        with telling(f"the store {root} cannot be made"):
            made = [folder for folder in (root, *root.parents) if not folder.exists()]
            make_parents(root)
            for folder in made:
                system.sync(folder.parent)
            place = root / f"{PARTS}.{system.unique_name()}.partial"
            system.make_folder(place)
            try:
                yield place
            finally:
                if place.exists():
                    system.clear(place)

    @classmethod
    def make(
        cls,
        root: Path,
        place: Path,
        terms: Terms,
        specs: Heads[HeadSpec] | None,
        write_patches: Callable[[Path], None] | None = None,
    ) -> Self:
        """Let all be found that was made in a place; where another rank was faster, return what that made.

        For maps, ``write_patches`` writes the record of their patches into the place.
        """
        with telling(f"the store {root} cannot be made"):
            if write_patches is not None:
                write_patches(place)
            if specs is not None:
                _write_heads(place / HEADS, terms.n_rows, specs)
            plain = {"version": _VERSION, **attrs.asdict(terms)}
            if terms.n_expected is None:  # what earlier versions wrote, and read
                del plain["n_expected"]
            content = json.dumps(plain | {"digest": digest(plain)}).encode()
            system.replace(place / RUN, memoryview(content), is_synced=True)
            for name in terms.arrays:
                system.sync(place / name)
            system.sync(place)
            _name(place, root / PARTS)
            system.sync(root)
        found = cls.find(root)
        if found is None:
            raise ResultFormatError(f"{root / PARTS} holds other things: give another path")
        return found

    @property
    def is_open(self) -> bool:
        """Whether parts may be made: what is being removed, once it was published, gets no more."""
        return (self.folder / RUN).exists()

    def wait_is_over(self, *, is_ours: bool = False) -> bool:
        """Whether parts may be made; what a killed publishing was about to remove may be used again.

        It is being removed by whoever has the lock of the store, unless that ``is_ours``.
        """
        if self.is_open:
            return True
        if is_ours or not is_locked(self.root):
            with contextlib.suppress(FileNotFoundError):
                system.rename(self.folder / LEAVING, self.folder / RUN)
        return self.is_open

    def check(self, given: Terms) -> None:
        """Refuse a rank that differs from the first, by ResumeError."""
        differences = list(self.terms.differences(given))
        if differences:
            what = listed(differences, separator="; ")
            raise ResumeError(
                f"{self.root} is the store of another run: {what}. Give all ranks the same, or another path"
            )

    def index_arrays(self, locs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the index, read-only, which are those of a list with this hash."""
        found = {name: self._open(name) for name in self.terms.arrays}
        step = 2**16
        for start in range(0, len(locs), step):
            same = [found[name][start : start + step] for name in (LOCATIONS, "exact") if name in found]
            if not all(np.array_equal(part, locs[start : start + step]) for part in same):
                raise ResultFormatError(f"{self.folder / LOCATIONS} is damaged: its locations were changed")
        return found

    def locations(self, name: str = LOCATIONS) -> NDArray[Any]:
        """Return the list, read-only: as it was given, or ``exact``, in int64."""
        return self._open(name if name in self.terms.arrays else LOCATIONS)

    def true_locations(self) -> NDArray[Any]:
        """Return the list as it was given, once it is known to be that."""
        locs = self.locations()
        if hash_locations(locs) != self.terms.locations:
            raise ResultFormatError(f"{self.folder} is damaged: its locations were changed")
        return locs

    def _open(self, name: str) -> NDArray[Any]:
        path, (shape, dtype) = self.folder / name, self.terms.arrays[name]
        with telling(f"{path} cannot be read"):
            try:
                return open_mapped(path, tuple(shape), np.dtype(dtype))
            except (SizeError, FileNotFoundError) as cause:
                raise ResultFormatError(f"{path} is damaged: {cause}") from cause

    def heads(self) -> Heads[zarr.Array[Any]] | None:
        """Return an empty array for each head as it is stored; None while nobody has told what they are.

        ResultFormatError tells that they are damaged.
        """
        folder = self.folder / HEADS
        with telling(f"{folder} cannot be read"):
            if not folder.is_dir():
                return None
        check_tree(folder)
        attributes = read_json(folder / "zarr.json", folder).get("attributes")
        told = attributes.get(_MARK) if isinstance(attributes, dict) else None
        plain = (
            {key: value for key, value in told.items() if key != "digest"} if isinstance(told, dict) else {}
        )
        n, names, arrays = (plain.get(name) for name in ("n", "names", "arrays"))
        is_whole = (
            isinstance(told, dict)
            and told.get("digest") == digest(plain)
            and type(n) is int
            and isinstance(arrays, dict)
            and len(arrays) == 1 + n
            and list(arrays) == _array_names(n)
            and arrays == {name: hash_of(folder / name / "zarr.json") for name in arrays}
            and (names is None or (isinstance(names, list) and len(names) == n))
        )
        if not is_whole:
            raise ResultFormatError(f"{folder} is damaged: the metadata of heads was changed")
        outputs: Any = open_group(FolderStore(folder, read_only=True), OUTPUTS, mode="r")
        arrays = tuple(read_only(outputs[str(head)]) for head in range(plain["n"]))
        for array in arrays:
            check_output(array, self.terms.n_rows, None, folder)
        return Heads(arrays, None if plain["names"] is None else tuple(plain["names"]))

    def specs(self) -> Heads[HeadSpec] | None:
        """Return what rows of each head look like; None while nobody has told."""
        heads = self.heads()
        return None if heads is None else heads.like(layout_of(array).spec for array in heads)

    def offer(self, specs: Heads[HeadSpec]) -> None:
        """Fix the heads of the run, unless another rank has."""
        place = self.folder / f"{HEADS}.{system.unique_name()}.partial"
        with telling(f"no heads can be made in {self.folder}"):
            if (self.folder / HEADS).exists():
                return
            try:
                _write_heads(place, self.terms.n_rows, specs)
                _name(place, self.folder / HEADS)
            finally:
                if place.exists():
                    system.clear(place)
            system.sync(self.folder)


def _name(place: Path, target: Path) -> None:
    """Give a folder its name, unless another rank was faster."""
    try:
        system.rename(place, target)
    except OSError as cause:
        if not (cause.errno in _THERE or target.exists()):  # some network file systems say no more than "no"
            raise


def make_array(place: Path, arrays: dict[str, tuple[list[int], str]]) -> Any:
    """Return what makes the arrays of an index in a place, and notes them."""

    def make(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        arrays[name] = (list(shape), dtype.str)
        with telling(f"{place / name} cannot be made"):
            return make_mapped(place / name, shape, dtype)

    return make


def terms_of(  # noqa: PLR0913  what ranks agree on
    locs: NDArray[Any],
    resume_token: str | None,
    on_duplicate: OnDuplicate,
    specs: Heads[HeadSpec] | None,
    arrays: dict[str, tuple[list[int], str]],
    *,
    is_joined: bool,
    is_of_maps: bool = False,
    n_expected: int | None = None,
) -> Terms:
    """Return what a rank proposes."""
    unit_rows = None
    if specs is not None and len(specs):  # the head that has the most to copy decides how shares are cut
        layouts, _ = layout(len(locs), specs.values, BUFFER_NBYTES)
        unit_rows = max(layouts, key=lambda made: made.spec.row_nbytes).unit_rows
    return Terms(
        len(locs),
        hash_locations(locs),
        resume_token,
        on_duplicate,
        unit_rows,
        arrays,
        is_joined,
        is_of_maps,
        n_expected,
    )


def _write_heads(folder: Path, n_rows: int, specs: Heads[HeadSpec]) -> None:
    """Write empty arrays, of which every part takes its own; all is synced then."""
    unsynced = Unsynced()
    store = FolderStore(folder, unsynced=unsynced)
    system.make_folder(folder)
    group = zarr.create_group(store, zarr_format=3)
    outputs = group.require_group(OUTPUTS)
    layouts, _ = layout(n_rows, specs.values, BUFFER_NBYTES)
    for number, made in enumerate(layouts):
        made.create(outputs, str(number))
    plain = {
        "n": len(specs),
        "names": None if specs.names is None else list(specs.names),
        "arrays": {name: hash_of(folder / name / "zarr.json") for name in _array_names(len(specs))},
    }
    group.attrs[_MARK] = plain | {"digest": digest(plain)}
    unsynced.add_folder(folder.parent)
    unsynced.sync()


def _array_names(n_heads: int) -> list[str]:
    return [OUTPUTS, *(f"{OUTPUTS}/{head}" for head in range(n_heads))]


def _others(was: str | None, now: str | None) -> str:
    """Return in what two lists of options differ, with a semicolon between them."""
    pairs = zip(str(was).split(_OPTION), str(now).split(_OPTION), strict=False)
    return listed(
        [f"{one!r}, and {other!r} is given" for one, other in pairs if one != other], separator="; "
    )


def _read_terms(folder: Path, name: str) -> Terms:
    told = read_json(folder / name, folder)
    plain = {key: value for key, value in told.items() if key != "digest"}
    if told.get("digest") != digest(plain) or plain.pop("version", None) != _VERSION:
        raise ResultFormatError(f"{folder / name} is damaged, or of another version of the library")
    plain = {"is_of_maps": False, "n_expected": None} | plain
    if set(plain) != {field.name for field in attrs.fields(Terms)}:
        raise ResultFormatError(f"{folder / name} is damaged: it is not what ranks agree on")
    terms = Terms(**plain)
    if not _is_possible(terms):
        raise ResultFormatError(f"{folder / name} is damaged: it holds impossible values")
    return terms


def _is_possible(terms: Terms) -> bool:
    """Whether values are of the kinds that they have to be: they may come from a stranger."""
    numbers = [terms.n_rows, *([] if terms.unit_rows is None else [terms.unit_rows])]
    if not (
        all(type(number) is int and 0 <= number < _MOST_ROWS for number in numbers)
        and isinstance(terms.locations, str)
        and isinstance(terms.resume_token, str | None)
        and terms.on_duplicate in get_args(OnDuplicate)
        and isinstance(terms.is_joined, bool)
        and isinstance(terms.is_of_maps, bool)
        and is_count(terms.n_expected, terms.n_rows)
        and isinstance(terms.arrays, dict)
        and {LOCATIONS, "keys"} <= set(terms.arrays) <= set(_ARRAYS)
    ):
        return False
    return all(_is_array(name, kind, terms.n_rows) for name, kind in terms.arrays.items())


def _is_array(name: str, kind: Any, n_rows: int) -> bool:
    try:
        (first, *more), dtype = kind
        plain = np.dtype(dtype)
    except (TypeError, ValueError):
        return False
    columns = [] if name in {"keys", "order"} else [1]
    return (
        isinstance(dtype, str)
        and first == n_rows
        and [type(n) is int and 0 < n < _MOST_COLUMNS for n in more] == columns
        and (plain.kind in "iuf" if name == LOCATIONS else plain == np.int64)
    )

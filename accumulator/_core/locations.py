"""Which row of the canonical list is meant: locations in, row numbers out.

The lookup is built once, from one exact integer key a row, and every answer is compared with the
canonical row itself before it is given. Nothing here knows of heads, memory or disks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np

from accumulator._inputs.text import named
from accumulator._inputs.validation import as_locations, is_list_of_arrays
from accumulator.exceptions import DuplicateLocationError, LocationError, UnknownLocationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike, Rows

    Keys: TypeAlias = NDArray[np.int64]
    Make: TypeAlias = Callable[[str, tuple[int, ...], np.dtype[Any]], NDArray[Any]]
    Pack: TypeAlias = Callable[[NDArray[np.int64]], Keys]

_KEY_LIMIT: Final = 2**63
_PART_ROWS: Final = 2**16  # that are packed at a time
_BUCKET_KEYS: Final = 8  # on average; the largest decides how many steps a search takes
_KEYS_PER_STEP: Final = 8  # a step for all keys takes as long as so many keys that are looked up one by one
_FEW_NBYTES: Final = 2**16  # of locations that are compared as bytes
_NONE: Final = np.empty(0, dtype=np.intp)
_ONCE: Final = (
    "give each location once (FullBatchAccumulator and Stitcher take on_duplicate=, which says what counts)"
)


def _in_memory(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    del name
    return np.empty(shape, dtype)


class LocationIndex:
    """The canonical locations, copied, with their lookup, built once and used for every batch.

    A LocationError if they are not whole numbers, a DuplicateLocationError if one is there twice. Who
    wants its arrays elsewhere gives what will ``make`` them, each by its name.

    Examples
    --------
    >>> index = LocationIndex([[0, 0], [4, 0], [8, 0], [0, 4]])
    >>> index.match([[4, 0], [8, 0]])
    slice(1, 3, None)
    >>> index.match([[0, 4], [0, 0]])
    array([3, 0])
    """

    def __init__(self, full_output_locs: ArrayLike, make: Make = _in_memory) -> None:
        given = as_locations(full_output_locs, "full_output_locs")
        locs = make("locations", given.shape, given.dtype)
        locs[...] = given
        exact = locs
        if locs.dtype != np.int64:
            exact = make("exact", given.shape, np.dtype(np.int64))
            exact[...] = locs
        pack, keys = _packing(exact), make("keys", (len(locs),), np.dtype(np.int64))
        for part in _parts(len(locs)):
            keys[part] = pack(exact[part])
        order: NDArray[np.intp] | None = None  # where the keys rise as they are
        if not all(_is_rising(keys[part.start : part.stop + 1]) for part in _parts(len(locs))):
            order = make("order", (len(locs),), np.dtype(np.intp))
            order[...] = np.argsort(keys, kind="stable")
            keys[...] = keys[order]
            repeats = np.sort(order[1:][keys[1:] == keys[:-1]])
            if len(repeats):
                remedy = "drop repeats before cutting patches"
                raise _repeated(repeats, locs, "the list", "full_output_locs", remedy)
        self._set(locs, exact, pack, keys, order)

    @classmethod
    def over(
        cls,
        locs: NDArray[Any],
        exact: NDArray[np.int64],
        keys: NDArray[np.int64],
        order: NDArray[np.intp] | None,
    ) -> Self:
        """Return an index over the arrays that another one has made.

        Wrong keys would have locations refused, and never taken for others.
        """
        index = cls.__new__(cls)
        index._set(locs, exact, _packing(exact), keys, order)  # noqa: SLF001  its own
        return index

    def _set(
        self,
        locs: NDArray[Any],
        exact: NDArray[np.int64],
        pack: Pack,
        keys: NDArray[np.int64],
        order: NDArray[np.intp] | None,
    ) -> None:
        locs.flags.writeable = False
        self.locs, self._exact, self._pack, self._keys, self._order = locs, exact, pack, keys, order
        self._next = 0  # where the last match ended: the next batch nearly always starts there
        self._lookup: _Lookup | None = None  # made when it is needed: in order it never is
        self._are_columns: bool | None = None  # what the arrays of lists were in earlier batches, once known

    def __len__(self) -> int:
        """Return the number of locations."""
        return len(self.locs)

    def match(self, batch_locs: ArrayLike) -> Rows:
        """Return the canonical row of each location: a slice where they follow each other.

        Raises LocationError, UnknownLocationError or DuplicateLocationError.
        """
        rows, _ = self.match_any(batch_locs)
        return rows

    def match_any(
        self, batch_locs: ArrayLike, *, may_repeat: bool = False, prefers_rows: bool = False
    ) -> tuple[Rows, bool]:
        """Return what `match` does, and whether a row comes twice, if it may.

        K arrays of K numbers that may be rows or columns are refused, unless the caller ``prefers_rows``.
        """
        given, are_columns = self._read(batch_locs, "batch_locs", prefers_rows=prefers_rows)
        rows = self._match(given, may_repeat=may_repeat)
        if are_columns is not None:
            self._are_columns = are_columns
        return rows

    def _match(self, given: NDArray[Any], *, may_repeat: bool) -> tuple[Rows, bool]:
        locs = given.astype(np.int64, copy=False)
        n = len(locs)
        if n == 0:
            return slice(0, 0), False
        start = self._next
        if not _is_equal(self._exact[start : start + n], locs):
            rows, repeats = self._search(locs, given)
            if len(repeats) and not may_repeat:
                raise _repeated(repeats, given, "one batch", "batch_locs", _ONCE)
            start = int(rows[0])
            if int(rows[-1]) != start + n - 1 or not _is_rising(rows):
                self._next = int(rows[-1]) + 1
                return rows, len(repeats) > 0
        self._next = start + n
        return slice(start, start + n), False

    def find(self, locs: ArrayLike) -> NDArray[np.intp]:
        """Return the canonical row of each location, as `match` does, for a look that is no batch."""
        given, _ = self._read(locs, "locs")
        rows, repeats = self._search(given.astype(np.int64, copy=False), given)
        if len(repeats):
            raise _repeated(repeats, given, "one look", "locs", "give each location once")
        return rows

    def _read(
        self, raw: ArrayLike, name: str, *, prefers_rows: bool = False
    ) -> tuple[NDArray[Any], bool | None]:
        """Return locations as rows, and whether they are a list of columns; None where that is not told.

        K arrays of K numbers are rows or columns, whichever are in the canonical list. Where both are, they
        are what such lists were in earlier batches: a loader does not change its ways.
        """
        n_columns = self.locs.shape[1]
        given = as_locations(raw, name, n_columns)
        if type(raw) is np.ndarray or not is_list_of_arrays(raw):
            return given, None
        if len(given) != n_columns:
            return given, len(raw) == n_columns
        if np.array_equal(given, given.T):
            return given, None
        are_rows, are_columns = (self._places(each.astype(np.int64))[1].all() for each in (given, given.T))
        if are_rows != are_columns:
            return (given.T, True) if are_columns else (given, False)
        if are_rows and self._are_columns is None and not prefers_rows:
            raise LocationError(
                f"{name} is a list of {n_columns} arrays of {n_columns} numbers, and full_output_locs has "
                f"both their rows and their columns: pass np.stack({name}) if each array is a location, or "
                f"the transpose, np.stack({name}, axis=1), if each is a column"
            )
        return given.T if self._are_columns else given, None

    def _places(self, locs: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Find rows by key, compare them with the canonical rows, and return which are there."""
        if not len(self):
            return np.zeros(len(locs), dtype=np.intp), np.zeros(len(locs), dtype=bool)
        # A location that is not in the list may get any key: the comparison finds it out.
        if self._lookup is None:
            self._lookup = _Lookup(self._keys)
        rows: NDArray[np.intp] = np.minimum(self._lookup.places(self._pack(locs)), len(self) - 1)
        if self._order is not None:
            rows = self._order[rows]
        return rows, (self._exact[rows] == locs).all(axis=1)

    def _search(
        self, locs: NDArray[np.int64], given: NDArray[Any]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the rows of locations that are there, and which repeat another."""
        rows, found = self._places(locs)
        if not found.all():
            unknown = np.flatnonzero(~found)
            raise UnknownLocationError(
                f"not in full_output_locs: {named(unknown, 'batch_locs')}, the first being "
                f"{given[unknown[0]].tolist()}, while the list has rows such as {self.locs[:1].tolist()}; "
                "it must be the list that the patches were cut by, and for prepare_multitask_full_batch "
                "what an earlier batch consumed is not in it any more",
                unknown,
                given[unknown],
            )
        if _is_rising(rows) or _is_rising(np.sort(rows)):
            return rows, _NONE
        ranked = np.argsort(rows, kind="stable")
        return rows, np.sort(ranked[1:][np.diff(rows[ranked]) == 0])


def _repeated(
    repeats: NDArray[np.intp], locs: NDArray[Any], where: str, name: str, remedy: str
) -> DuplicateLocationError:
    return DuplicateLocationError(
        f"repeated in {where}: {named(repeats, name)}, the first being {locs[repeats[0]].tolist()}; {remedy}",
        repeats,
        locs[repeats],
    )


class _Lookup:
    """Where keys are in a rising list that starts at zero or above; of a key that is not there, anything.

    A table says where each of many stretches of numbers begins, and the search goes on there: for all keys
    step by step, as the processor then waits for many reads at once. `np.searchsorted` waits for each.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._shift = np.int64((int(keys[-1]) // max(1, len(keys) // _BUCKET_KEYS)).bit_length())
        n_buckets = (int(keys[-1]) >> int(self._shift)) + 1
        starts = np.searchsorted(keys, np.arange(n_buckets, dtype=np.int64) << self._shift)
        self._most = int(np.diff(starts, append=len(keys)).max())  # keys in one bucket
        self._starts = starts.astype(np.min_scalar_type(len(keys)))  # small, to be in the cache

    def places(self, wanted: Keys) -> NDArray[np.intp]:
        if len(wanted) < _KEYS_PER_STEP * self._most.bit_length():
            return np.searchsorted(self._keys, wanted)
        places = self._starts.take(wanted >> self._shift, mode="clip").astype(np.intp)
        left = self._most
        while left > 1:
            half = left // 2
            places += half * (self._keys.take(places + (half - 1), mode="clip") < wanted)
            left -= half
        return places


def _parts(n: int) -> Iterator[slice]:
    """Yield parts of so many rows: what is computed of each is small."""
    for start in range(0, n, _PART_ROWS):
        yield slice(start, min(n, start + _PART_ROWS))


def _is_equal(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    """Whether two arrays of one width are equal; of few, bytes are compared sooner than numbers."""
    return a.tobytes() == b.tobytes() if b.nbytes <= _FEW_NBYTES else np.array_equal(a, b)


def _is_rising(numbers: NDArray[Any]) -> bool:
    return bool((numbers[1:] > numbers[:-1]).all())


def _packing(locs: NDArray[np.int64]) -> Pack:
    """Return the map from rows to keys: different for different rows of the list.

    Boxes are packed as (start, size), last axis first: sizes hardly vary, so that the key of an image
    of any real size fits 63 bits, and raster order gives keys that already rise.
    """
    n_columns = locs.shape[1]
    parts = np.eye(n_columns, dtype=np.int64)[:, ::-1]
    if n_columns % 2 == 0:
        half = n_columns // 2
        starts, ends = parts[:, half:], parts[:, :half]
        parts = np.hstack([starts, ends - starts])
    weights, size, offset = np.zeros(n_columns, dtype=np.int64), 1, 0
    for part in parts.T[::-1]:  # the last part varies fastest
        values = (_combine(locs[some], part) for some in _parts(len(locs)))
        limits = [(int(some.min()), int(some.max())) for some in values]
        lowest = min((low for low, _ in limits), default=0)
        highest = max((high for _, high in limits), default=0)
        if highest > lowest:
            if size * (highest - lowest + 1) >= _KEY_LIMIT:
                return _ranked_packing(locs)
            weights += part * size
            offset += lowest * size
            size *= highest - lowest + 1
    start = np.int64(offset % 2**64 - 2**64 * (offset % 2**64 >= _KEY_LIMIT))  # wraps as int64 does
    return lambda rows: _combine(rows, weights) - start


def _combine(rows: NDArray[np.int64], weights: NDArray[np.int64]) -> Keys:
    """Return ``rows @ weights``, column by column, which is faster for integers."""
    keys = np.zeros(len(rows), dtype=np.int64)
    for column in np.flatnonzero(weights):
        keys += rows[:, column] * weights[column]
    return keys


def _ranked_packing(locs: NDArray[np.int64]) -> Pack:
    """Pack coordinates too wide for one key: columns are folded in, and ranked after each.

    A rank is below N, so that two of them always fit one key.
    """
    key = np.zeros(len(locs), dtype=np.int64)
    tables = []
    for column in locs.T:
        values, ranks = np.unique(column, return_inverse=True)
        folded, key = np.unique(key * len(values) + ranks, return_inverse=True)
        tables.append((values, folded))

    def pack(rows: NDArray[np.int64]) -> Keys:
        key = np.zeros(len(rows), dtype=np.int64)
        for column, (values, folded) in zip(rows.T, tables, strict=True):
            key = np.searchsorted(folded, key * len(values) + np.searchsorted(values, column))
        return key

    return pack

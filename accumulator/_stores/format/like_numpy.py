"""Heads on disk, indexed as NumPy indexes those in RAM: by lists, masks and backwards, and row by row."""

from __future__ import annotations

import itertools
import operator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_CPU: Final = (1, 0)  # DLPack's words for it
_ALL: Final = slice(None)


class HeadArray(zarr.Array[Any]):
    """A zarr array that is read like a NumPy array.

    What zarr understands is left to zarr. Of whatever else NumPy takes, what is needed of each axis is read,
    each chunk once, and NumPy makes of it what it would make of the whole: it is the same by construction.
    """

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __bool__(self) -> bool:
        return True  # by its length, a head without rows would be false

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), self.chunks[0]):
            yield from self[start : start + self.chunks[0]]

    def __getitem__(self, selection: Any) -> Any:
        parts = selection if isinstance(selection, tuple) else (selection,)
        if all(map(_is_plain, parts)):
            found: Any = super().__getitem__(selection)
            if found.ndim:
                return found
            return found[...] if Ellipsis in parts else found[()]  # an array without axes, or a number
        needed, within = _split(parts, self.shape)
        return self._read(needed)[within]

    def __getitems__(self, rows: list[int]) -> Any:
        """Return a batch of rows, which torch's data loaders ask for at once."""
        return self[rows]

    def __dlpack__(self, **options: Any) -> Any:
        return np.asarray(self).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def _read(self, needed: tuple[Any, ...]) -> NDArray[Any]:
        """Read a rising list of rows, or a slice of them, and a slice of each other axis."""
        rows, others = needed[0], needed[1:]
        if not isinstance(rows, slice) and rows[-1] - rows[0] == len(rows) - 1:
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
        if isinstance(rows, slice):
            return np.asarray(super().__getitem__((rows, *others)))
        # Chunk by chunk: zarr's own reading of a list copies number by number, which takes longer.
        unit = (self.shards or self.chunks)[0]
        edges = [0, *(np.flatnonzero(np.diff(rows // unit)) + 1).tolist(), len(rows)]
        shape = [len(range(length)[part]) for part, length in zip(others, self.shape[1:], strict=True)]
        values = np.empty((len(rows), *shape), self.dtype)
        for start, stop in itertools.pairwise(edges):
            some = rows[start:stop]
            first = int(some[0])
            block: Any = super().__getitem__((slice(first, int(some[-1]) + 1), *others))
            values[start:stop] = block[some - first]
        return values


def _is_plain(part: Any) -> bool:
    """Whether zarr understands a part of an index."""
    if type(part) is slice:
        return part.step is None or part.step > 0
    return type(part) is int or part is Ellipsis or isinstance(part, np.integer)


def _split(parts: Sequence[Any], shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what is needed of each axis, and the index of that which NumPy is to take.

    An IndexError tells of what NumPy would refuse; of arrays that do not go together it tells later.
    """
    needed: list[Any] = []
    within: list[Any] = []
    for index, lengths in _by_axes([_as_index(part) for part in parts], shape):
        if not lengths:
            within.append(index)
        elif isinstance(index, np.ndarray) and index.dtype == np.bool_:
            if index.shape != lengths:
                raise IndexError(f"a mask of shape {index.shape} is for axes of shape {lengths}")
            for numbers, length in zip(index.nonzero(), lengths, strict=True):
                _add(numbers, length, needed, within)
        else:
            _add(index, lengths[0], needed, within)
    arrays = [index for index in within if isinstance(index, (np.ndarray, bool, np.bool_))]
    if len(arrays) == 1 and arrays[0] is within[0]:
        is_in_order = np.array_equal(arrays[0], np.arange(np.size(arrays[0])))
        within[0] = _ALL if is_in_order else arrays[0]  # rows that are as asked for are not copied
    return tuple(needed), tuple(within)


def _by_axes(indices: list[Any], shape: tuple[int, ...]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Yield each part with the lengths of the axes that it is for: none, one, or those of a mask."""
    n_axes = [_n_axes(index) for index in indices]
    n_left = len(shape) - sum(n_axes)
    n_gaps = sum(index is Ellipsis for index in indices)
    if n_left < 0 or n_gaps > 1:
        what = f"for {sum(n_axes)} axes, and there are {len(shape)}" if n_left < 0 else "with two ellipses"
        raise IndexError(f"an index {what}")
    gap = next((at for at, index in enumerate(indices) if index is Ellipsis), len(indices))
    if n_left:  # an ellipsis of no axis stays: what lies on both sides of it is not side by side
        indices[gap : gap + 1], n_axes[gap : gap + 1] = [_ALL] * n_left, [1] * n_left
    axis = 0
    for index, n in zip(indices, n_axes, strict=True):
        yield index, shape[axis : axis + n]
        axis += n


def _as_index(part: Any) -> Any:
    """Return a part of an index as what NumPy takes it for."""
    if part is None or part is Ellipsis or isinstance(part, (slice, bool, np.bool_)):
        return part
    try:
        return operator.index(part)
    except TypeError:
        array = np.asarray(part)
    if array.size == 0 and not isinstance(part, np.ndarray):
        array = array.astype(np.intp)  # an empty list has no dtype
    if array.dtype.kind not in "biu":
        raise IndexError(f"{array.dtype} is no index: give whole numbers, slices, lists of numbers, or masks")
    return array if array.dtype == np.bool_ else array.astype(np.intp)


def _n_axes(index: Any) -> int:
    if index is None or index is Ellipsis or isinstance(index, (bool, np.bool_)):
        return 0
    return index.ndim if isinstance(index, np.ndarray) and index.dtype == np.bool_ else 1


def _add(index: Any, length: int, needed: list[Any], within: list[Any]) -> None:
    """Add what an index needs of the next axis, and what that index is in there."""
    if isinstance(index, slice):
        picked = range(length)[index]
        rising = picked if picked.step > 0 else picked[::-1]
        needed.append(slice(rising.start, rising.stop, rising.step) if picked else slice(0, 0))
        within.append(_ALL if rising is picked else slice(None, None, -1))
        return
    numbers = np.asarray(index)
    if numbers.size and not (-length <= numbers.min() and numbers.max() < length):
        wrong = numbers[(numbers < -length) | (numbers >= length)].flat[0]
        raise IndexError(f"index {wrong} is out of bounds for axis {len(needed)} with size {length}")
    numbers = np.where(numbers < 0, numbers + length, numbers)
    if isinstance(index, int):
        needed.append(slice(int(numbers), int(numbers) + 1))
        within.append(0)
    elif needed or numbers.size == 0:
        first = int(numbers.min()) if numbers.size else 0
        needed.append(slice(first, int(numbers.max(initial=-1)) + 1))
        within.append(numbers - first)
    else:
        rows, places = np.unique(numbers, return_inverse=True)
        needed.append(rows)
        within.append(places.reshape(numbers.shape))

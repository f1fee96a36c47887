"""The patches of a result: where they are, and how they are read best."""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import TYPE_CHECKING, Any, TypeGuard

import attrs
import numpy as np

from accumulator._core.memory import fits_in_memory
from accumulator._inputs import tuning
from accumulator._inputs.heads import Heads
from accumulator._stitching.given import as_weights
from accumulator._stores.format.checksums import row_checksums
from accumulator._stores.reading.saved import open_result
from accumulator.exceptions import ResultFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from accumulator._core.full_batch import FullBatch
    from accumulator._inputs.options import HeadOptions
    from accumulator._stitching.frame import Lay
    from accumulator._stitching.grid import Grid
    from accumulator.typing import RowArray


@attrs.frozen(eq=False)
class Source:
    """What is to be stitched: some rows of some heads of a result."""

    batch: FullBatch
    heads: Heads[RowArray]
    picked: Sequence[int | str]  # what the result calls each of them
    rows: NDArray[np.intp]  # rising
    lays: Heads[Lay]
    weights: RowArray | None = None  # of the result: what pixels count, ``(N, h, ...)`` or ``(N,)``

    def is_at_hand(self, options: HeadOptions) -> bool:
        """Whether all patches can be blended from where they are."""
        if not isinstance(self.weights, (np.ndarray, type(None))):
            return False
        lays = zip(self.heads.keys, self.heads, self.lays, strict=True)
        return all(_is_at_hand(head, lay, options.for_head(key, head.dtype)[1]) for key, head, lay in lays)

    def weights_of(self, rows: NDArray[np.intp] | None) -> NDArray[Any] | None:
        """Return what pixels of some rows count, or of all; None where all count the same."""
        if self.weights is None:
            return None
        return np.asarray(self.weights) if rows is None else read(self.weights, rows)

    def weigh(self, rows: NDArray[np.intp] | None = None) -> list[Any] | None:
        """Return the same for each head; of all, those that are to be stitched have to be right."""
        weights = self.weights_of(rows)
        if weights is None:
            return None
        return as_weights(weights, self.rows if rows is None else None, len(weights), self.lays)

    @property
    def none(self) -> Heads[NDArray[Any]]:
        """No row of each head."""
        return self.heads.like(np.empty((0, *head.shape[1:]), head.dtype) for head in self.heads)

    @property
    def largest(self) -> Grid:
        """The boxes in the largest of the maps."""
        return max((lay.grid for lay in self.lays), key=lambda grid: math.prod(grid.shape))

    def hash(self) -> str:
        """Return a hash of all patches, by their checksums: the recorded ones, where they are in a store."""
        recorded = self._recorded()
        found = hashlib.sha256()
        for key, head in zip([*self.picked, *self.weighed_by], self.arrays, strict=True):
            sums = self._sums(head) if recorded is None else recorded[key][self.rows]
            found.update(sums.astype("<u8").tobytes())
        return found.hexdigest()

    def _recorded(self) -> dict[int | str, NDArray[np.uint64]] | None:
        """Return the checksums of all rows of each head; None where none are kept."""
        files = self.batch._store  # noqa: SLF001  of the result that is looked at
        if files is None or not (files.root / "checksums").is_dir():
            return None
        with contextlib.suppress(ResultFormatError):
            saved = open_result(files.root, is_partial=True)
            return dict(zip(saved.heads.keys, saved.checksums, strict=True))
        return None

    @property
    def weighed_by(self) -> list[int | str]:
        """What the result calls the weights, if there are any."""
        keyed = zip(Heads.of(self.batch.outputs).keys, Heads.of(self.batch.outputs), strict=True)
        return [key for key, array in keyed if array is self.weights]

    @property
    def arrays(self) -> list[RowArray]:
        """All that is read."""
        return [*self.heads, *([] if self.weights is None else [self.weights])]

    def _sums(self, head: RowArray) -> NDArray[np.uint64]:
        sums = np.empty(len(self.rows), np.uint64)
        row_nbytes = head.dtype.itemsize * math.prod(head.shape[1:])
        step = max(1, tuning.now.read_nbytes // max(1, row_nbytes))
        for start in range(0, len(self.rows), step):
            values = read(head, self.rows[start : start + step])
            sums[start : start + step] = row_checksums(values)
        return sums


def _is_at_hand(array: RowArray, lay: Lay, asked: np.dtype[Any] | None) -> TypeGuard[NDArray[Any]]:
    """Whether patches can be blended from where they are."""
    if not isinstance(array, np.ndarray) or not array.dtype.isnative or asked not in {None, array.dtype}:
        return False
    return lay.seen(array).flags.c_contiguous


def in_batches(grid: Grid, rows: NDArray[np.intp], arrays: Sequence[RowArray]) -> Iterator[NDArray[np.intp]]:
    """Yield rows as they lie, which is read fastest, or if that opens too many bands, from top to bottom."""
    pixel_nbytes = sum(int(array.nbytes) for array in arrays) // max(
        1, arrays[0].shape[0] * math.prod(grid.patch)
    )
    start, stop = grid.start[rows, 0], grid.stop[rows, 0]
    if len(rows):
        n_open = (np.maximum.accumulate(stop) - np.minimum.accumulate(start[::-1])[::-1]).max()
        nbytes = int(n_open) * math.prod(grid.shape[1:]) * pixel_nbytes
        if not fits_in_memory(nbytes, 0, tuning.now.small_percent):
            rows = rows[np.argsort(start, kind="stable")]
    row_nbytes = max(1, pixel_nbytes * math.prod(grid.patch))
    step = max(1, tuning.now.read_nbytes // row_nbytes)
    chunks = [array.chunks[0] for array in arrays if not isinstance(array, np.ndarray)]
    if chunks:  # whole ones
        step = -(-step // max(chunks)) * max(chunks)
    yield rows[:0]  # which tells the heads, if there are no rows at all
    first = 0
    while first < len(rows):
        last = min(first + step, len(rows))
        if chunks:
            part = rows[first:last] // step
            is_other = np.append(part != part[0], [True])
            gap = np.abs(np.diff(rows[first:last]))  # what lies between is not read, if that costs more
            is_other[1:-1] |= (gap > max(chunks)) & (gap * row_nbytes > tuning.now.read_gap_nbytes)
            last = first + int(np.argmax(is_other))
        yield rows[first:last]
        first = last


def read(array: RowArray, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return some rows, of which a store on disk reads what lies between them, too."""
    if isinstance(array, np.ndarray):
        is_run = len(rows) and (np.diff(rows) == 1).all()
        return array[rows[0] : rows[-1] + 1] if is_run else array[rows]
    if not len(rows):
        return np.empty((0, *array.shape[1:]), array.dtype)
    first = int(rows.min())
    values = np.asarray(array[first : int(rows.max()) + 1])
    return values[rows - first]

"""What is to be stitched: patches that overlap by half, in batches, made before the clock runs.

Patches come from a pool that is used round and round, the same for everybody. It is larger than caches are,
as a patch that waits in the cache is no patch that a model has just put into memory.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._cases import Batch, Case

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class StitchSpec:
    """What defines a case; travels to the process that runs it.

    Patches lie half a patch apart, in raster order, and the last on each axis ends where the map does.
    """

    shape: Sequence[int]  # of the map, without channels
    patch: Sequence[int]  # of a patch, without channels
    channels: int = 1
    batch: int = 16  # patches
    pool_nbytes: int = 800_000_000  # more than three times the largest cache it was measured with

    def make(self) -> StitchCase:
        """Return all inputs of a run."""
        return _make(self)


@dataclass(frozen=True)
class StitchCase(Case):
    """All inputs of a run: one head, float32, channels last.

    `locs` name x before y before z, `starts` are in the order of the array's axes.
    """

    shape: tuple[int, ...]  # of the map, channels and all
    starts: NDArray[np.int64]
    pool: NDArray[np.float32]

    @property
    def patch(self) -> tuple[int, ...]:
        """The spatial shape of a patch."""
        return self.pool.shape[1:-1]

    @property
    def output_nbytes(self) -> int:
        """Bytes of the map."""
        return int(np.prod(self.shape)) * self.pool.itemsize

    def boxes(self) -> list[list[tuple[slice, ...]]]:
        """Return where patches lie in the map, batch by batch."""
        return [
            [
                tuple(slice(at, at + length) for at, length in zip(start, self.patch, strict=True))
                for start in self.starts[batch.rows].tolist()
            ]
            for batch in self.batches
        ]

    def batches_of(self, pool: Any) -> Iterator[Any]:
        """Yield the patches of each batch from a pool that holds the same in another layout."""
        first = 0
        for batch in self.batches:
            first = 0 if first == len(self.pool) else first
            yield pool[first : first + len(batch.locs)]
            first += len(batch.locs)


def hann(patch: Sequence[int], *, has_zeros: bool = False) -> NDArray[np.float32]:
    """Return Hann's window; its zeros at both ends are left out, or not, as libraries differ in that."""
    window = np.ones(())
    for length in patch:
        line = np.hanning(length) if has_zeros else np.hanning(length + 2)[1:-1]
        window = window[..., None] * line
    return window.astype(np.float32)


def _make(spec: StitchSpec) -> StitchCase:
    rng = np.random.default_rng(0)
    axes = []
    for length, size in zip(spec.shape, spec.patch, strict=True):
        last = length - size
        axes.append(sorted({*range(0, last + 1, size // 2), last}))
    starts = np.array(list(itertools.product(*axes)), dtype=np.int64)
    locs = np.hstack([starts[:, ::-1], starts[:, ::-1] + np.array(spec.patch[::-1])])
    head = (*spec.patch, spec.channels)
    n_batches = -(-len(starts) // spec.batch)
    nbytes = spec.batch * 4 * int(np.prod(head))
    n_pool = spec.batch * min(n_batches, max(1, spec.pool_nbytes // nbytes))
    pool = rng.random((n_pool, *head), dtype=np.float32)
    batches = []
    for first in range(0, len(starts), spec.batch):
        rows = slice(first, min(first + spec.batch, len(starts)))
        at = first % n_pool
        batches.append(Batch((pool[at : at + rows.stop - first],), locs[rows], rows))
    return StitchCase(locs, ((head, "float32"),), batches, (*spec.shape, spec.channels), starts, pool)

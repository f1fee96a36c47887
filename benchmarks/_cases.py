"""What is to be accumulated: locations, heads, and batches in some order, all made before the clock runs.

Large outputs would need as much memory again for their inputs. Batches therefore come from a small pool
that is used round and round; every contestant gets the same one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from accumulator.typing import Rows

POOL: Final = 4  # different batches; for the "large" heads 165 MB, more than most caches hold
PATCH: Final = 256
_KNOTS: Final = 6  # of the smooth noise, along each side of a patch
HEADS: Final[Mapping[str, tuple[tuple[tuple[int, ...], str], ...]]] = {
    "none": (),
    "tiny": (((1,), "uint8"), ((8,), "float32")),
    "small": (((4, 4, 1), "float32"),) * 3,
    "kilobyte": (((256,), "float32"),),
    "medium": (((64, 64, 8), "float32"),),
    "large": (((164, 164, 4), "float32"),) * 3,
    "wide": (((256, 256, 8), "float32"),),
}


@dataclass(frozen=True)
class CaseSpec:
    """What defines a case; travels to the process that runs it."""

    n_locs: int
    heads: str  # of HEADS
    order: str = "in order"  # of ORDERS
    batch_sizes: Sequence[int] = (32,)  # used round and round
    is_list_shuffled: bool = False
    values: str = "numbers"  # of VALUES

    def make(self) -> Case:
        """Return all inputs of a run."""
        return make_case(self)


@dataclass(frozen=True)
class Batch:
    """One call of push: predictions of each head, their locations, and the rows those are."""

    heads: tuple[NDArray[Any], ...]
    locs: NDArray[np.int64]
    rows: Rows


@dataclass(frozen=True)
class Case:
    """All inputs of a run."""

    locs: NDArray[np.int64]
    heads: tuple[tuple[tuple[int, ...], str], ...]
    batches: list[Batch]

    @property
    def n_rows(self) -> int:
        """How many rows are pushed."""
        return sum(len(batch.locs) for batch in self.batches)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row of all heads."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.heads)

    @property
    def batch_nbytes(self) -> int:
        """Bytes of the longest batch."""
        return self.row_nbytes * max((len(batch.locs) for batch in self.batches), default=0)

    @property
    def output_nbytes(self) -> int:
        """Bytes of the result."""
        return self.row_nbytes * len(self.locs)


def make_case(spec: CaseSpec) -> Case:
    rng = np.random.default_rng(0)
    locs = grid(spec.n_locs)
    if spec.is_list_shuffled:
        locs = locs[rng.permutation(len(locs))]
    heads = HEADS[spec.heads]
    longest = min(max(spec.batch_sizes), spec.n_locs)
    values_of = VALUES[spec.values]
    batches_rows = list(_split(ORDERS[spec.order](spec.n_locs, longest, rng), spec.batch_sizes))
    pool = [
        tuple(values_of(rng, (longest, *shape), dtype) for shape, dtype in heads)
        for _ in range(min(POOL, len(batches_rows)))
    ]
    batches = []
    for batch_rows, values in zip(batches_rows, itertools.cycle(pool)):
        cut = tuple(head[: len(batch_rows)] for head in values)
        at = as_rows(batch_rows)
        batches.append(Batch(cut, locs[at], at))
    return Case(locs, heads, batches)


def grid(n_locs: int) -> NDArray[np.int64]:
    """Return a raster of square patches as ``[x0, y0, x1, y1]``, row by row."""
    y, x = np.divmod(np.arange(n_locs) * PATCH, PATCH * max(1, int(np.sqrt(n_locs))))
    y *= PATCH
    return np.stack([x, y, x + PATCH, y + PATCH], axis=1)


def as_rows(rows: NDArray[np.intp]) -> Rows:
    """Return a slice where rows follow each other, as whoever writes a loop by hand would."""
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    return rng.integers(1, 100, size=shape, dtype=np.uint8).astype(dtype)


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return the softmax of low-frequency noise over the last axis, as exact as a model in half precision."""
    n, height, width, channels = shape
    coarse = rng.normal(scale=6, size=(n, _KNOTS, _KNOTS, channels))
    logits = np.einsum("ai,nijc,bj->nabc", _stretch(height), coarse, _stretch(width), optimize=True)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    odds /= odds.sum(axis=-1, keepdims=True)
    return odds.astype(np.float16).astype(dtype, order="C")


def _stretch(size: int) -> NDArray[np.float64]:
    """Return the matrix of linear interpolation from a few knots to ``size`` points."""
    at = np.linspace(0, _KNOTS - 1, size)[:, None]
    return np.clip(1 - np.abs(at - np.arange(_KNOTS)), 0, 1)


VALUES: Final[Mapping[str, Callable[[np.random.Generator, tuple[int, ...], str], NDArray[Any]]]] = {
    "numbers": _numbers,
    "probabilities": _probabilities,
}


def _split(rows: NDArray[np.intp], sizes: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(rows):
            return
        yield rows[start : start + size]
        start += size


def _in_order(n_locs: int, _batch: int, _rng: np.random.Generator) -> NDArray[np.intp]:
    return np.arange(n_locs)


def _every_other_batch(n_locs: int, batch: int, _rng: np.random.Generator) -> NDArray[np.intp]:
    rows: NDArray[np.intp] = np.arange(n_locs)
    return rows[np.flatnonzero(rows // batch % 2)]


def _shuffled_batches(n_locs: int, batch: int, rng: np.random.Generator) -> NDArray[np.intp]:
    whole = n_locs // batch * batch  # a shorter last batch stays last
    blocks: NDArray[np.intp] = rng.permutation(np.arange(whole).reshape(-1, batch))
    return np.concatenate([blocks.ravel(), np.arange(whole, n_locs)])


def _shuffled_rows(n_locs: int, _batch: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.permutation(n_locs)


def _every_thousandth(n_locs: int, _batch: int, _rng: np.random.Generator) -> NDArray[np.intp]:
    return np.arange(0, n_locs, 1000)


def _random_thousandth(n_locs: int, _batch: int, rng: np.random.Generator) -> NDArray[np.intp]:
    return rng.choice(n_locs, size=-(-n_locs // 1000), replace=False)


ORDERS: Final[Mapping[str, Callable[[int, int, np.random.Generator], NDArray[np.intp]]]] = {
    "in order": _in_order,
    "every other batch": _every_other_batch,
    "shuffled batches": _shuffled_batches,
    "shuffled rows": _shuffled_rows,
    "every thousandth": _every_thousandth,
    "random thousandth": _random_thousandth,
}

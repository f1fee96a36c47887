"""One band: rows of the maps, and what is known of them while patches come."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._core import memory
from accumulator._inputs.text import as_text
from accumulator._stitching.numbers import blank
from accumulator._stitching.votes import Votes
from accumulator._stores.memory.pages import Pages
from accumulator.exceptions import MemoryLimitError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from accumulator._stitching.numbers import MapSpec


@attrs.define(eq=False)
class Band:
    """Rows of the map: one array a head, ``(height, ..., channels)``.

    Its home is where its values belong, if that is in RAM; the sums may be made there.
    """

    sums: list[NDArray[Any]]
    home: list[NDArray[Any]] | None
    known: list[NDArray[Any] | Votes | None]  # what is known of each number, where that is needed
    is_used: bool = False  # before, for another band
    is_blank: bool = False  # or has patches: what it held before is gone
    values: list[NDArray[Any]] | None = None  # of the map, once it is finished

    @property
    def more_nbytes(self) -> int:
        """Bytes of slots for votes beyond those that bands are thought to need."""
        return sum(known.more_nbytes for known in self.known if isinstance(known, Votes))

    def forget(self) -> None:
        """Let nothing be known of any number."""
        for known in self.known:
            if isinstance(known, Votes):
                known.clear()
            elif known is not None:
                known[...] = 0

    @classmethod
    def make(cls, shape: tuple[int, ...], specs: Sequence[MapSpec], home: list[NDArray[Any]] | None) -> Self:
        """Return a band of such a spatial shape, not blank yet; its sums are made at home if they fit."""
        sums = [
            home[head].reshape(*home[head].shape[:1], *shape[1:], spec.n_channels)
            if home is not None and spec.sum_dtype == spec.dtype
            else fresh((*shape, spec.n_channels), spec.sum_dtype)
            for head, spec in enumerate(specs)
        ]
        return cls(sums, home, [_fresh_known(shape, spec) for spec in specs])

    def blank(self, specs: Sequence[MapSpec]) -> None:
        """Let it be as if nothing had been blended."""
        for spec, array in zip(specs, self.sums, strict=True):
            empty = blank(spec.sum_dtype, spec.window.blend)
            is_filled = self.home is not None and any(np.asarray(spec.fill_value, spec.dtype).tobytes())
            if empty or self.is_used or is_filled:
                array[...] = empty
        if self.is_used:
            self.forget()
        self.is_blank = True


def fresh(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return zeros in pages of their own; MemoryLimitError where there are none."""
    try:
        return Pages(math.prod(shape) * dtype.itemsize, is_huge=True).array(shape, dtype)
    except MemoryError as cause:
        raise MemoryLimitError(f"a band of {shape[0]} rows of the map: {cause}") from cause


def _fresh_known(shape: tuple[int, ...], spec: MapSpec) -> NDArray[Any] | Votes | None:
    if spec.known_dtype is None:
        return None
    shape = (*shape, 1 if spec.is_known_by_pixel else spec.n_channels)
    if spec.window.blend == "vote":
        make = partial(_fresh_slot, shape, spec.sum_dtype, spec.known_dtype)
        return Votes([], make, slack=spec.slack)
    return fresh(shape, spec.known_dtype)


def _fresh_slot(
    shape: tuple[int, ...], classes: np.dtype[Any], votes: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    nbytes = math.prod(shape) * (classes.itemsize + votes.itemsize)
    if not memory.fits_in_memory(nbytes, 0, 100):
        raise MemoryLimitError(
            f"so many classes meet in a pixel that a band of {shape[0]} rows needs {as_text(nbytes)} more, "
            "which do not fit in memory: give memory_limit for lower bands"
        )
    return fresh(shape, classes), fresh(shape, votes)

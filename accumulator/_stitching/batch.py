"""Patches on their way into the bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from accumulator._stores.memory.pages import Pages


@attrs.define(eq=False)
class Batch:
    """Patches that were taken, and are to be blended: their rows, and heads and weights of each group."""

    rows: NDArray[np.intp]
    heads: list[list[NDArray[Any]]]
    given: list[list[NDArray[Any] | None] | None]
    used: Sequence[Pages] = ()  # the memory of copies

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All arrays, which are the caller's."""
        given = [each for some in self.given for each in some or () if each is not None]
        return [head for some in self.heads for head in some] + given

    def with_arrays(self, arrays: Sequence[NDArray[Any]], used: Sequence[Pages]) -> Batch:
        """Return the same batch with other arrays of the same values."""
        left = iter(arrays)
        heads = [[next(left) for _ in some] for some in self.heads]
        given = [
            None if some is None else [None if each is None else next(left) for each in some]
            for some in self.given
        ]
        return Batch(self.rows, heads, given, used)

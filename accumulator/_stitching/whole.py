"""Bands of a map whose patches are all at hand: cores share bands, and no band waits for a later patch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator._stitching.bands import Bands
from accumulator._stitching.blend import blend_share, quick
from accumulator._stitching.numbers import wider
from accumulator._stitching.parts import share_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from accumulator._stitching.numbers import MapSpec
    from accumulator._stitching.parts import Share

_PER_THREAD: Final = 4  # bands, so that all threads end at about the same time


class WholeBands(Bands):
    """Bands that are blended from all of their patches at once.

    That the patches stay at hand saves the look for values too large to be added up: where a sum gets
    infinite, its band is made anew.
    """

    _given: Sequence[NDArray[Any] | None] | None = None

    def blend_all(
        self,
        heads: Sequence[NDArray[Any]],
        patches: NDArray[np.intp],
        given: Sequence[NDArray[Any] | None] | None = None,
    ) -> Iterator[int]:
        """Blend all patches, and yield the bands as they are ready to be finished, in order.

        Pixels of each head count as much as is ``given``, ``(n, h, ...)``, besides their weights.
        """
        self._given = given
        heads = [
            head.reshape(spec.patches_shape(len(head))) for head, spec in zip(heads, self._specs, strict=True)
        ]
        numbers = self._touched()
        is_shared = self._patch_nbytes >= tuning.now.shared_patch_nbytes
        step = self._pool.n if is_shared else 1
        for first in range(0, len(numbers), step):
            some = numbers[first : first + step]
            self._open_all(some)
            self.is_torn = True
            self._pool.run(quick, [partial(self._blend, number, heads, patches) for number in some])
            self.is_torn = False
            yield from some

    def are_over(self, number: int) -> NDArray[np.bool_]:
        """Return which rows end with a band or before."""
        are: NDArray[np.bool_] = self.grid.stop[:, 0] <= self._extent(number)[1]
        return are

    def _rows_between(self, start: int, stop: int) -> NDArray[np.intp]:
        return self._near(start, stop)  # which are all there

    def _touched(self) -> list[int]:
        """Return the bands that any row lies in."""
        first, last = self._tops // self.height, (self.grid.stop[self._order, 0] - 1) // self.height
        edges = np.zeros(-(-self.grid.shape[0] // self.height) + 1, dtype=np.intp)
        np.add.at(edges, first, 1)
        np.add.at(edges, last + 1, -1)
        numbers: list[int] = np.flatnonzero(np.cumsum(edges)).tolist()
        return numbers

    def _blend(self, number: int, heads: Sequence[NDArray[Any]], patches: NDArray[np.intp]) -> None:
        """Blend all patches of a band, and finish it."""
        self._blank(self._open[number])
        start, stop = self._extent(number)
        rows = np.sort(self._rows_between(start, stop))
        share = share_of(self.grid, rows, start, stop, self.height, self._patch_nbytes)
        if share is not None:
            share.patches = patches[rows[share.patches]].tolist()
        try:
            with np.errstate(over="raise"):
                self._make_values(number, share, heads, self._specs)
        except FloatingPointError:
            specs = [
                attrs.evolve(spec, sum_dtype=wider(spec.sum_dtype)) if spec.window.is_sum else spec
                for spec in self._specs
            ]
            band = self._open[number]
            band.sums, band.is_used = [self._fresh(spec) for spec in specs], True
            band.blank(specs)
            self._make_values(number, share, heads, specs)

    def _make_values(
        self, number: int, share: Share | None, heads: Sequence[NDArray[Any]], specs: Sequence[MapSpec]
    ) -> None:
        band, (start, stop) = self._open[number], self._extent(number)
        if share is not None:
            layers = self._layers(heads, {number: band}, specs, given=self._given)
            unchecked = [layer._replace(is_checked=False) for layer in layers]
            blend_share(unchecked, attrs.evolve(share, done=0), set(), _nothing_later)
        for finish in self._strips(band, start, stop):
            finish()

    @property
    def _most_nbytes(self) -> int:
        fair = self.grid.shape[0] * self._row_nbytes // (_PER_THREAD * self._pool.n)
        return min(max(fair, tuning.now.least_band_nbytes), tuning.now.whole_band_nbytes)


def _nothing_later(_share: Share, _part: int, _n_channels: int) -> bool:
    """Say that no later row has come before: rows are blended in their order."""
    return True

"""Finished bands go to the maps, and to the callback."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs

from accumulator._core.full_batch import hand_over
from accumulator._core.memory import fits_in_memory
from accumulator._inputs.text import as_text
from accumulator._inputs.warn import warn
from accumulator._stitching.sheet import Sheet
from accumulator.exceptions import StorageError, StorageWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from accumulator._core.canvas import Canvas
    from accumulator._stitching.bands import Bands
    from accumulator._stitching.groups import Group
    from accumulator._stitching.passes import Passes
    from accumulator.typing import Bands as BandValues

_log: Final = logging.getLogger("accumulator")
_LARGE: Final = 50  # per cent of the available memory


_SomeBands = TypeVar("_SomeBands", bound="Bands")


@attrs.define(eq=False)
class Delivery(Generic[_SomeBands]):
    """Takes the bands of some heads as they get complete."""

    group: Group
    bands: _SomeBands
    canvas: Canvas  # the rows of the maps
    locs: NDArray[Any]  # their numbers
    on_band: Callable[[slice, BandValues], object] | None
    make: Callable[..., _SomeBands]  # bands of a grid, like these
    first: int = 0  # the row of the maps that the bands begin with
    passes: Passes | None = None  # where boxes are averaged before they are blended
    is_calling: bool = False  # on_band, which must not push
    _waiting: int | None = None  # a band that the disk refused
    _has_told: bool = False
    _made: tuple[int, slice, list[NDArray[Any]]] | None = None  # what is stored of a band, by its number

    @property
    def is_torn(self) -> bool:
        """Whether an interrupt left a push half-done."""
        return self.bands.is_torn or (self.passes is not None and self.passes.is_torn)

    def close(self) -> None:
        """End the threads, and let go of what is in memory."""
        self.bands.close()
        if self.passes is not None:
            self.passes.close()

    def deliver_averages(self) -> None:
        """Blend the means of all boxes that came, and deliver what gets complete."""
        if self.passes is None:
            return
        if not self.passes.is_ended:
            grid, blended = self.passes.end(self.group.grid)
            self.bands.close()
            self.bands = self.make(grid, written=blended)
        bands = self.bands
        for rows in self.passes.left(bands.grid):
            bands.open(rows)
            bands.add(bands.prepare(rows, self.passes.means(rows)))
            self.deliver(bands.complete())

    def deliver(self, numbers: Iterable[int], *, is_pushing: bool = False) -> None:
        """Write bands to the maps, and hand them to the callback.

        StorageError if the disk refuses one; in a push, whose batch was taken, it waits for the next call.
        """
        for number in numbers:
            self._waiting = number
            try:
                self._write(number)
            except StorageError as refusal:
                if not is_pushing:
                    raise
                _log.warning("a band of the map waits for the disk: %s", str(refusal))
                return
            self._waiting = None
            try:
                self._call_back(number)
            finally:
                self._made = None
                self.bands.let_go(number)

    def deliver_waiting(self) -> None:
        """Deliver the band that the disk refused, if there is one."""
        if self._waiting is not None:
            self.deliver([self._waiting])

    def _write(self, number: int) -> None:
        rows, values = self._finished(number)
        self.canvas.place(self.group.maps.like(values), rows, rows.stop, self.locs)

    def _finished(self, number: int) -> tuple[slice, list[NDArray[Any]]]:
        """Return rows of the maps and what is stored of them, which is made of a band once."""
        if self._made is None or self._made[0] != number:
            rows, values = self.bands.finish(number)
            specs = self.group.maps
            if any(spec.reduced is not None for spec in specs):
                values = [
                    value if spec.reduced is None else spec.reduced(value, gaps)
                    for spec, value, gaps in zip(specs, values, self.bands.gaps(number), strict=True)
                ]
            self._made = number, slice(self.first + rows.start, self.first + rows.stop), values
        return self._made[1:]

    def _call_back(self, number: int) -> None:
        if self.on_band is None:
            return
        rows, values = self._finished(number)
        views = [value.view() for value in values]
        for view in views:
            view.flags.writeable = False
        self.is_calling = True
        try:
            self.on_band(rows, self.group.maps.like(views).as_given())
        finally:
            self.is_calling = False

    def hand_over(self, written: NDArray[np.bool_]) -> Sheet:
        """Return the maps, whose bands are all delivered, with the boxes that have come."""
        lay = self.group.lays[0]
        return Sheet(self.group.heads.values, lay, hand_over(self.canvas, self.locs), lay.grid.of(written))

    def tell_if_large(self) -> None:
        """Warn once when more bands wait than patches in order have open, and take much of the memory."""
        nbytes = self.bands.nbytes
        is_much = nbytes > 2 * self.bands.least_nbytes and not fits_in_memory(nbytes, 0, _LARGE)
        if is_much and not self._has_told:
            self._has_told = True
            warn(
                f"{as_text(nbytes)} of the map wait for rows that have not come: push in the order of the "
                "list, and leave out of it what will not come",
                StorageWarning,
            )

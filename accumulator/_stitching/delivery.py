"""Finished bands go to the maps, and to the callback."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

from accumulator.exceptions import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from accumulator._core.canvas import Canvas
    from accumulator._inputs.heads import Heads
    from accumulator._stitching.bands import Bands
    from accumulator._stitching.numbers import MapSpec
    from accumulator.typing import Bands as BandValues

_log: Final = logging.getLogger("accumulator")


@attrs.define(eq=False)
class Delivery:
    """Takes bands as they get complete.

    Attributes
    ----------
    bands : Bands
        The open ones.
    maps : Heads of MapSpec
        What they are bands of.
    canvas : Canvas
        The rows of the maps.
    locs : (H, 1) array
        Their numbers.
    on_band : callable, optional
        Called once for each band.
    is_calling : bool
        Whether that is under way.
    """

    bands: Bands
    maps: Heads[MapSpec]
    canvas: Canvas
    locs: NDArray[Any]
    on_band: Callable[[slice, BandValues], object] | None
    is_calling: bool = False
    _waiting: int | None = None  # a band that the disk refused

    def deliver(self, numbers: Iterable[int], *, is_pushing: bool = False) -> None:
        """Write bands to the maps, and hand them to the callback.

        Raises
        ------
        StorageError
            The disk refused one. In a push, whose batch was taken, it waits for the next call instead.
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
                self.bands.let_go(number)

    def deliver_waiting(self) -> None:
        """Deliver the band that the disk refused, if there is one."""
        if self._waiting is not None:
            self.deliver([self._waiting])

    def _write(self, number: int) -> None:
        rows, values = self.bands.finish(number)
        self.canvas.place(self.maps.like(values), rows, rows.stop, self.locs)

    def _call_back(self, number: int) -> None:
        if self.on_band is None:
            return
        rows, values = self.bands.finish(number)
        views = [value.view() for value in values]
        for view in views:
            view.flags.writeable = False
        self.is_calling = True
        try:
            self.on_band(rows, self.maps.like(views).as_given())
        finally:
            self.is_calling = False

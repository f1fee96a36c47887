"""Heads whose patches lie alike make maps of one shape: they share bands, and a canvas."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
import numpy as np

from accumulator._core.canvas import Canvas
from accumulator._core.memory import fits_in_memory
from accumulator._inputs.options import check_heads, of_some
from accumulator._stitching.counting import as_nodata, counting, with_nodata
from accumulator._stitching.delivery import Delivery
from accumulator._stitching.heads import check_shapes, lay_heads, map_specs
from accumulator._stitching.reduce import with_reduced
from accumulator.exceptions import MemoryLimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._core.plan import Budget
    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import HeadOptions
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.bands import Bands
    from accumulator._stitching.frame import Lay
    from accumulator._stitching.grid import Grid
    from accumulator._stitching.numbers import MapSpec
    from accumulator._stitching.request import Request

_ROW_NBYTES: Final = 64  # that it takes to know a row of the maps
_SomeBands = TypeVar("_SomeBands", bound="Bands")
_log: Final = logging.getLogger("accumulator")


@attrs.frozen(eq=False)
class Group:
    """Some heads of a batch, whose patches lie alike."""

    heads: Heads[int]  # their numbers in the batch
    lays: Sequence[Lay]
    maps: Heads[MapSpec]
    stored: HeadOptions  # how the maps are stored

    @property
    def grid(self) -> Grid:
        """The boxes of each of them."""
        return self.lays[0].grid

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return math.prod(self.grid.shape) * sum(
            math.prod(each.stored_channels) * each.stored_dtype.itemsize for each in self.maps
        )

    def given(self, weights: Sequence[NDArray[Any] | None] | None) -> list[NDArray[Any] | None] | None:
        """Return what the user says that pixels of these heads count, out of what is said of all."""
        if weights is None:
            return None
        some = [weights[head] for head in self.heads]
        return [
            None if each is None else lay.cropped(each).reshape(len(each), *lay.grid.patch)
            for lay, each in zip(self.lays, some, strict=True)
        ]

    def seen(self, heads: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return what counts of a batch: patches of these heads, channels last."""
        return [lay.seen(heads[head]) for lay, head in zip(self.lays, self.heads, strict=True)]

    @property
    def map_rows(self) -> NDArray[np.intp]:
        """What stands for the locations of the maps' rows: their numbers, ``(H, 1)``."""
        return np.arange(self.grid.shape[0])[:, None]

    @property
    def blank(self) -> Heads[NDArray[Any]]:
        """No row of each map."""
        shape = self.grid.shape[1 : self.grid.n_spatial]
        return self.maps.like(
            np.empty((0, *shape, *each.stored_channels), each.stored_dtype) for each in self.maps
        )

    def open(self, budget: Budget, store: str | None) -> Canvas:
        """Return the canvas for the maps, whose heads are fixed; nobody has it if this raises."""
        check_rows_fit(self.grid.shape[0])
        # A band whose writing was interrupted is written again; it has the dtype asked for already.
        canvas = Canvas.open(self.map_rows, budget, "last", self.stored, store=store)
        try:
            canvas.place(self.blank, slice(0, 0), 0, self.map_rows)
        except BaseException:
            let_go([canvas])
            raise
        return canvas

    def deliver(  # noqa: PLR0913  what it depends on
        self,
        kind: type[_SomeBands],
        canvas: Canvas,
        written: NDArray[np.bool_],
        left_out: NDArray[np.bool_],
        request: Request,
        *,
        is_small: bool,
    ) -> Delivery[_SomeBands]:
        """Return what takes bands of such a kind; maps that are not small may have to leave memory."""
        is_reduced = any(each.reduced is not None for each in self.maps)
        home = canvas.views if is_small and not is_reduced else None  # else no band is held in a map
        specs, limit = self.maps.values, request.budget.memory_limit
        make = partial(kind, specs=specs, home=home, memory_limit=limit)
        bands = make(self.grid, written=written, left_out=left_out)
        return Delivery(self, bands, canvas, self.map_rows, request.on_band, make)


def check_rows_fit(n_rows: int) -> None:
    """Refuse maps of so many rows that memory has no room for what is known of each."""
    if not fits_in_memory(_ROW_NBYTES * n_rows, 0, 100):
        raise MemoryLimitError(
            f"a map of {n_rows} rows: what is known of each does not fit in memory; give a smaller "
            "output_shape, and an origin"
        )


def as_groups(request: Request, specs: Heads[HeadSpec], *, has_weights: bool) -> list[Group]:
    """Return the heads of a batch by how their patches lie, or refuse them."""
    frame, none = request.frame, as_nodata(request.nodata, specs.keys)
    blendings = request.blendings(specs.keys)
    check_heads({"reduce": request.reduce}, specs.keys)
    lays = lay_heads(frame, specs)
    by_place: dict[Any, list[int]] = {}
    for head, lay in enumerate(lays):
        by_place.setdefault(lay.group, []).append(head)
    check_shapes(frame.geometry, lays)
    groups = []
    for heads in by_place.values():
        some = specs.some(heads)
        own = lays.some(heads)
        grid, n = own.values[0].grid, len(frame.start)
        some_blendings = [blendings[head] for head in heads]
        maps = map_specs(some, own, some_blendings, grid.most_overlaps(), is_averaged=request.is_averaged)
        maps = with_nodata(maps, of_some(none, specs.keys, heads))
        maps = maps.like(counting(each, n, has_weights=has_weights) for each in maps)
        fills, labels = [spec.storage.fill_value for spec in some], [specs.label(head) for head in heads]
        reduce = of_some(request.reduce, specs.keys, heads)
        maps = with_reduced(maps, reduce, fills, grid.shape[: grid.n_spatial], labels)
        stored = request.stored.of_some(specs.keys, heads)
        groups.append(Group(some.like(heads), own.values, maps, stored))
    return groups


def open_all(groups: Sequence[Group], budget: Budget, store: str | None, canvases: list[Canvas]) -> None:
    """Add a canvas for each group, all in RAM or none; if this raises, the caller lets go of those there are.

    One group has the store itself, several have folders in it.
    """
    whole = max(1, sum(group.nbytes for group in groups))
    for number, group in enumerate(groups):
        path = store if store is None or len(groups) == 1 else str(Path(store) / str(number))
        canvases.append(group.open(budget.share(group.nbytes / whole), path))
    _tell(groups, canvases)


def let_go(canvases: Sequence[Canvas]) -> None:
    """Leave nothing of canvases whose maps will not be made."""
    for canvas in canvases:
        canvas.close()
        if canvas.run is not None:
            canvas.run.abandon()
        canvas.stop()


def _tell(groups: Sequence[Group], canvases: Sequence[Canvas]) -> None:
    for group, canvas in zip(groups, canvases, strict=True):
        shape, where = group.lays[0].shape, canvas.zarr_store or "RAM"
        _log.info("stitching %d maps of %s in %s", len(group.maps), shape, where)
        if group.grid.n_outside:
            _log.info("%d boxes lie wholly outside of the maps, and are left out", group.grid.n_outside)

"""Maps by several ranks: each makes whole rows of the maps, which `publish` puts together.

Rows of the maps are what a run of several ranks has as locations. So parts, records, resuming and publishing
are those of any such run. A rank's rows follow each other, and end where chunks do: a patch is read twice
only where it lies across two shares.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core.canvas import Canvas
from accumulator._core.ranks import Together, join
from accumulator._inputs.arguments import as_store
from accumulator._inputs.validation import as_specs, as_stored_heads
from accumulator._pictures.progress import Progress
from accumulator._stitching.bands import Bands
from accumulator._stitching.delivery import Delivery
from accumulator._stitching.grid import n_outside
from accumulator._stitching.groups import as_groups, check_rows_fit
from accumulator._stitching.heads import warn_of_mean
from accumulator._stitching.kept import facts_of, note
from accumulator._stitching.source import in_batches, read
from accumulator._stitching.stitcher import Stitcher
from accumulator._stitching.whole import WholeBands
from accumulator._stores.format.mark import hash_locations, hash_written
from accumulator._stores.memory.row_numbers import spans
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.ranks import Rank
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.grid import Grid
    from accumulator._stitching.groups import Group
    from accumulator._stitching.request import Request
    from accumulator._stitching.source import Source
    from accumulator.typing import StitchOptions

_FILLED_NBYTES: Final = 64 * 2**20  # of rows that nothing covers, at a time


def stitch_share(source: Source, who: Rank, raw_store: Any, options: StitchOptions) -> None:
    """Make a rank's rows of the maps that some patches lie in; errors are those of `stitch`."""
    batch, store = source.batch, as_store(raw_store)
    if store is None:
        raise OptionError("rank= and world_size= are for maps that several make: give store= too")
    with contextlib.closing(Stitcher(batch.output_locs[source.rows], **options)) as unused:
        request = unused._canvas.request  # noqa: SLF001  what it was asked for is all that is wanted of it
    specs = as_specs(source.none, request.options)
    groups = as_groups(request, specs, has_weights=source.weights is not None)
    if len(groups) > 1:
        raise OptionError(
            "heads whose maps are of different shape cannot be in one store that ranks write: stitch each "
            "shape to its own, with heads="
        )
    group = groups[0]
    warn_of_mean(specs, request.blendings(specs.keys), range(len(specs)), group.grid)
    check_rows_fit(group.grid.shape[0])
    outside = n_outside([lay.grid for lay in source.lays])
    facts = facts_of(specs.names, request.frame, [(group.heads.values, group.lays[0])], outside)
    _, together = join(
        store,
        who,
        group.map_rows,
        group.blank,
        group.stored,
        "last",
        _token(source, request, group),
        lambda root: note(root, facts, batch.output_locs, batch.written),
    )
    budget = attrs.evolve(request.budget, n_sharing=who.n_on_node)
    canvas = Canvas.open(
        group.map_rows,
        budget,
        "last",
        group.stored,
        store=store,
        declared=group.blank,
        part=together.part,
    )
    try:
        Share(source, request, group, specs, canvas).make(_needed(group.grid, together))
        canvas.flush()
        canvas.complete()
    finally:
        canvas.stop()


def _token(source: Source, request: Request, group: Group) -> str:
    """Return all that tells other maps from these, as text that an error may show."""
    batch, blends = source.batch, [str(each) for each in request.blendings(source.none.keys)]
    lists = hash_locations(batch.output_locs)[:8], hash_written(batch.written)[:8], source.hash()[:16]
    said: dict[str, Any] = {
        "heads": list(source.picked),
        "blend": blends[0] if len(set(blends)) == 1 else blends,
        "nodata": [None if each.nodata is None else complex(each.nodata) for each in group.maps],
        "origin": list(map(int, request.frame.origin)),
        "shape": list(group.grid.shape[: group.grid.n_spatial]),
        "scale": list(map(float, group.lays[0].scale)),
        "crop": [lay.crop for lay in group.lays],
        "channels_first": [lay.moves_channels for lay in group.lays],
        "axes": list(request.frame.geometry.columns),
        "patches": f"{len(source.rows)} ({'-'.join(lists)})",
    }
    since: dict[str, list[Any]] = {  # told where there are any, as runs that were begun before do not
        "spread": [lay.is_spread for lay in group.lays],
        "reduce": [None if each.reduced is None else each.reduced.name for each in group.maps],
        "weights": source.weighed_by,
    }
    said |= {name: values for name, values in since.items() if any(values)}
    return "; ".join(f"{name} {value}" for name, value in said.items())


def _needed(grid: Grid, together: Together) -> list[tuple[int, int]]:
    """Return runs of the maps' rows that are this rank's, and that nobody has recorded."""
    who, n_rows = together.who, grid.shape[0]
    unit = together.part.shared.terms.unit_rows or 1
    inside = np.flatnonzero(grid.is_inside)
    inner = np.arange(1, who.world_size) * n_rows // who.world_size
    if len(inside):
        inner = grid.cuts(inside, who.world_size)
    edges = [0, *((inner + unit // 2) // unit * unit).clip(None, n_rows).tolist(), n_rows]
    first, last = edges[who.rank : who.rank + 2]
    return list(spans(first + np.flatnonzero(~together.recorded()[first:last]), 0))


@attrs.frozen(eq=False)
class Share:
    """Makes a rank's rows of the maps: bands of a cut-out of them, for each run of rows."""

    source: Source
    request: Request
    group: Group
    specs: Heads[HeadSpec]
    canvas: Canvas

    def make(self, runs: list[tuple[int, int]]) -> None:
        """Make runs of the maps' rows, of which nothing is there."""
        bar, n_rows = self.request.bar, sum(last - first for first, last in runs)
        progress = None if bar is None else Progress(bar, n_rows, n_rows, self._shown)
        for first, last in runs:
            for _ in self._bands(first, last):
                if progress is not None:
                    progress.show()
            self._fill(first, last)
        if progress is not None:
            progress.close()

    def _bands(self, first: int, last: int) -> Iterator[None]:
        """Deliver the bands that lie between two rows of the maps, some at a time."""
        source, group, request = self.source, self.group, self.request
        grid = group.grid.between(first, last)
        written = np.zeros(len(source.rows), dtype=bool)
        kind: type[Bands] = WholeBands if self._is_at_hand() else Bands
        limit = request.budget.memory_limit
        make = partial(kind, specs=group.maps.values, home=None, memory_limit=limit)
        bands = make(grid, written=written)
        delivery = Delivery(group, bands, self.canvas, group.map_rows, request.on_band, make, first)
        try:
            if isinstance(bands, WholeBands):
                arrays: list[Any] = list(source.heads)  # all of them in memory
                given = group.given(source.weigh(slice(None)))
                for number in bands.blend_all(group.seen(arrays), source.rows, given):
                    delivery.deliver([number])
                    yield
                return
            touching = np.flatnonzero(grid.is_inside)
            for some in in_batches(source.largest, source.rows[touching], source.heads.values):
                heads = self.source.heads.like(read(head, some) for head in source.heads)
                values = as_stored_heads(heads, self.specs)
                rows = np.searchsorted(source.rows, some)
                bands.open(rows)
                given = group.given(source.weigh(some))
                bands.add(bands.prepare(rows, group.seen(values), given))
                delivery.deliver(bands.complete())
                yield
            delivery.deliver(bands.all_open())
        finally:
            delivery.close()

    def _is_at_hand(self) -> bool:
        """Whether all patches can be blended from where they are."""
        return self.source.is_at_hand(self.request.options)

    def _fill(self, first: int, last: int) -> None:
        """Place rows that no patch touches: each row has somebody who has made it."""
        blank = self.group.blank
        fills = [
            spec.fill_value if spec.reduced is None else spec.reduced.fill_value for spec in self.group.maps
        ]
        row_nbytes = sum(math.prod(head.shape[1:]) * head.itemsize for head in blank)
        step = max(1, _FILLED_NBYTES // max(1, row_nbytes))
        for start, stop in spans(first + np.flatnonzero(~self.canvas.written[first:last]), 0):
            for at in range(start, stop, step):
                n = min(step, stop - at)
                heads = [
                    np.full((n, *head.shape[1:]), fill, head.dtype)
                    for head, fill in zip(blank, fills, strict=True)
                ]
                self.canvas.place(blank.like(heads), slice(at, at + n), at + n, self.group.map_rows)

    def _shown(self) -> tuple[int, str]:
        return int(np.count_nonzero(self.canvas.written)), "rows of the maps"

"""What the report says: gathered once, from what a store had recorded when it was opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._inputs import tuning
from accumulator._inputs.extras import need
from accumulator._inputs.heads import Heads
from accumulator._pictures import Coverage, coverage
from accumulator._report.facts import Info, info
from accumulator._report.histogram import Histogram, histogram
from accumulator._report.images import Picture, as_pictures
from accumulator._report.reading import Reading
from accumulator._report.thumbnail import MAX_PX, Grid, NoMapError, channel_axis, n_channels, thumbnail
from accumulator._report.timing import Timing, timing
from accumulator._stores.reading.look import disk_nbytes

if TYPE_CHECKING:
    from pathlib import Path

    from accumulator.typing import RowArray

_MOST_HEADS: Final = 24  # that have pictures


@attrs.frozen(eq=False)
class HeadMap:
    """The map of a head, a picture a channel."""

    pictures: list[Picture]  # of the first channels
    width: int  # of the whole map, in px
    height: int
    step: int  # every so many px one is shown
    n_channels: int  # of the head


@attrs.frozen(eq=False)
class HeadReport:
    """A head."""

    details: dict[str, Any]  # its name, which may hold anything, and how it is stored
    disk_nbytes: int  # what it takes on disk
    map: HeadMap | str  # its map, or why there is none
    reading: Reading  # what was read of it for its map
    histogram: Histogram | None  # of its values


@attrs.frozen(eq=False)
class Report:
    """What a store holds."""

    info: Info
    coverage: Coverage
    heads: list[HeadReport]
    timing: Timing


def gather(path: Path, max_px: int = MAX_PX) -> Report:
    """Read what the report of a store says; whoever writes the store is not disturbed."""
    need("PIL.Image", "report")  # before much is read
    with FullBatch.load(path, partial=True) as batch:
        found, root = info(path), path.absolute()
        arrays, now = Heads.of(batch.outputs), tuning.now
        most_nbytes = min(now.report_head_nbytes, now.report_nbytes // max(1, len(arrays)))
        heads = []
        for number, (array, details) in enumerate(zip(arrays, found.heads, strict=True)):
            reading, shown, counted = Reading(most_nbytes), None, None
            if number < _MOST_HEADS:
                shown, counted = _map(array, batch, reading, max_px), histogram(array, batch.written)
            taken = disk_nbytes(root / "outputs" / str(number))
            many = f"only the first {_MOST_HEADS} heads are painted"
            heads.append(HeadReport(details, taken, shown or many, reading, counted))
        covered = coverage(batch.output_locs, batch.written)
        return Report(found, covered, heads, timing(root, found.state, covered.n_written))


def _map(array: RowArray, batch: FullBatch, reading: Reading, max_px: int) -> HeadMap | str:
    """Return the map of a head, or why it has none."""
    try:
        grid = Grid.of(batch.output_locs, max_px)
        image, covered = thumbnail(array, batch.output_locs, batch.written, max_px, reading=reading)
    except NoMapError as reason:
        return str(reason)
    is_unread = batch.written.copy()
    is_unread[reading.rows] = is_unread[reading.damaged] = False
    masks = {
        "missing": grid.paint(np.flatnonzero(~batch.written)),
        "unread": grid.paint(np.flatnonzero(is_unread)),
        "damaged": grid.paint(reading.damaged),
    }
    n = n_channels(array, channel_axis(array, grid))
    return HeadMap(as_pictures(image, covered, masks), *grid.size, grid.step, n)

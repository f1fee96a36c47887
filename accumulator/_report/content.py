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
from accumulator._stores import disk_nbytes

if TYPE_CHECKING:
    from pathlib import Path

    from accumulator.typing import RowArray

_MOST_HEADS: Final = 24  # that have pictures


@attrs.frozen(eq=False)
class HeadMap:
    """The map of a head, a picture a channel.

    Attributes
    ----------
    pictures : list of Picture
        Of the first channels.
    width, height : int
        Of the whole map, in px.
    step : int
        Every so many px one is shown.
    n_channels : int
        Of the head.
    """

    pictures: list[Picture]
    width: int
    height: int
    step: int
    n_channels: int


@attrs.frozen(eq=False)
class HeadReport:
    """A head.

    Attributes
    ----------
    details : dict
        Its name, which may hold anything, and how it is stored.
    disk_nbytes : int
        What it takes on disk.
    map : HeadMap or str
        Its map, or why there is none.
    reading : Reading
        What was read of it for its map.
    histogram : Histogram or None
        Of its values.
    """

    details: dict[str, Any]
    disk_nbytes: int
    map: HeadMap | str
    reading: Reading
    histogram: Histogram | None


@attrs.frozen(eq=False)
class Report:
    """What a store holds."""

    info: Info
    coverage: Coverage
    heads: list[HeadReport]
    timing: Timing


def gather(path: Path, max_px: int = MAX_PX) -> Report:
    """Read what the report of a store says; whoever writes the store is not disturbed.

    Raises
    ------
    MissingExtraError
        Pillow is not installed.
    ResultNotFoundError, ResultFormatError, StorageError
        There is no store, it cannot be read, or nothing was pushed yet.
    """
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

"""What the report says: gathered once, from what a store had recorded when it was opened."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import attrs
import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._inputs import tuning
from accumulator._inputs.extras import need
from accumulator._inputs.heads import Heads
from accumulator._inputs.text import shape_text
from accumulator._pictures import Coverage, coverage, left_out
from accumulator._report.facts import Info, info
from accumulator._report.histogram import Histogram, histogram
from accumulator._report.images import Picture, as_pictures
from accumulator._report.reading import Reading
from accumulator._report.thumbnail import (
    MAX_PX,
    Grid,
    NoMapError,
    channel_axis,
    decimated,
    n_channels,
    thumbnail,
)
from accumulator._report.timing import Timing, timing
from accumulator._stitching.map import StitchedMap
from accumulator._stores.reading.look import disk_nbytes
from accumulator._stores.reading.saved import has_patches
from accumulator.exceptions import OptionError, UnfinishedError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import TypeAlias

    from numpy.typing import NDArray

    from accumulator.typing import RowArray

    ChannelNames: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]

_MOST_HEADS: Final = 24  # that have pictures


@attrs.frozen(eq=False)
class HeadMap:
    """The map of a head, a picture a channel."""

    pictures: list[Picture]  # of the first channels
    width: int  # of the whole map, in px
    height: int
    step: int  # every so many px one is shown
    n_channels: int  # of the head
    overlap: str  # what became of boxes that lie over each other: "averaged", "last", or "" where none do
    stretched: tuple[str, str] | None = None  # sizes of patch and box, where they differ


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
    pixel_size: tuple[float, float] | None  # (x, y) in micrometres, where somebody told it
    is_of_maps: bool

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the whole map in px; None where no head has one."""
        return next(((head.map.width, head.map.height) for head in self.heads if is_map(head.map)), None)


def _stretched(array: RowArray, grid: Grid) -> tuple[str, str] | None:
    """Return how large patches and most boxes are, where that differs: by a halo, a scale, or an error."""
    if array.ndim < 3:
        return None  # a number a box
    axis = channel_axis(array, grid)
    patch = [length for at, length in enumerate(array.shape) if at not in {0, axis}]
    width, height = (int(each) for each in np.median(grid.sizes, axis=0))
    return None if patch == [height, width] else (shape_text(patch), shape_text([height, width]))


def is_map(found: HeadMap | str) -> TypeGuard[HeadMap]:
    """Whether a head has a map, and not a reason why it has none."""
    return isinstance(found, HeadMap)


@attrs.frozen(eq=False)
class _Source:
    """Where rows of a store lie, and how they become pictures."""

    maps: StitchedMap | None  # where the rows are those of maps
    locs: NDArray[Any]  # of patches, x first
    written: NDArray[np.bool_]
    n_left_out: int  # how many will never come
    max_px: int
    names: ChannelNames | None

    @property
    def others(self) -> str:
        """What those are called that have not come: one of both names where there are both."""
        n_others = int(np.count_nonzero(~self.written))
        return "left out" if n_others and n_others == self.n_left_out else "missing"

    def head_map(self, number: int, name: str, array: RowArray, reading: Reading) -> HeadMap | str:
        """Return the map of a head, or why it has none."""
        try:
            if self.maps is None:
                return self._of_patches(name, array, reading)
            return self._of_map(self.maps, number, name, array, reading)
        except NoMapError as reason:
            return str(reason)

    def _of_patches(self, name: str, array: RowArray, reading: Reading) -> HeadMap:
        grid = Grid.of(self.locs, self.max_px)
        image, counts = thumbnail(array, self.locs, self.written, self.max_px, reading=reading)
        is_unread = self.written.copy()
        is_unread[reading.rows] = is_unread[reading.damaged] = False
        masks = {
            self.others: grid.paint(np.flatnonzero(~self.written)),
            "unread": grid.paint(np.flatnonzero(is_unread)),
            "damaged": grid.paint(reading.damaged),
        }
        n = n_channels(array, channel_axis(array, grid))
        overlap = "" if counts.max(initial=0) < 2 else "averaged" if array.dtype.kind in "fc" else "last"
        pictures = as_pictures(image, counts > 0, masks, self._names(name, n))
        return HeadMap(pictures, *grid.size, grid.step, n, overlap, _stretched(array, grid))

    def _of_map(
        self, maps: StitchedMap, number: int, name: str, array: RowArray, reading: Reading
    ) -> HeadMap:
        laid = next(sheet for sheet in maps._sheets if number in sheet.heads).lay.grid  # noqa: SLF001
        if laid.n_spatial != 2 or array.dtype.kind not in "biufc":
            raise NoMapError(f"it is a map of {laid.n_spatial} axes of {array.dtype}, and two are painted")
        height, width = array.shape[:2]
        boxes = np.concatenate([laid.start[:, ::-1], laid.stop[:, ::-1]], axis=1)
        boxes[~laid.is_inside] = 0
        grid = Grid.of(boxes, self.max_px, (width, height))
        image, is_read = decimated(array, grid, reading)
        is_written = grid.paint(np.flatnonzero(self.written))
        is_damaged = np.zeros(grid.shape, np.bool_)
        is_damaged[reading.damaged // grid.step] = True
        masks = {
            self.others: grid.paint(np.flatnonzero(~self.written)),
            "unread": is_written & ~is_read[:, None],
            "damaged": is_damaged,
        }
        n = array.shape[2] if array.ndim == 3 else 1
        pictures = as_pictures(image, is_written & is_read[:, None], masks, self._names(name, n))
        return HeadMap(pictures, *grid.size, grid.step, n, "")

    def _names(self, name: str, n: int) -> Sequence[str] | None:
        names = self.names.get(name) if isinstance(self.names, Mapping) else self.names
        return names if names is not None and len(names) == n else None


def gather(
    path: Path,
    max_px: int = MAX_PX,
    *,
    pixel_size: tuple[float, float] | None = None,
    channel_names: ChannelNames | None = None,
) -> Report:
    """Read what the report of a store says; whoever writes the store is not disturbed.

    Names of channels are for heads that have as many, or a dict by head.
    """
    need("PIL.Image", "report")  # before much is read
    with FullBatch.load(path, partial=True) as batch:
        found, root = info(path), path.absolute()
        arrays, now = Heads.of(batch.outputs), tuning.now
        most_nbytes = min(now.report_head_nbytes, now.report_nbytes // max(1, len(arrays)))
        source = _source(path, batch, found, max_px, channel_names)
        heads = []
        for number, (array, details) in enumerate(zip(arrays, found.heads, strict=True)):
            reading, shown, counted = Reading(most_nbytes), None, None
            if number < _MOST_HEADS:
                shown, counted = (
                    source.head_map(number, details["name"], array, reading),
                    histogram(array, batch.written),
                )
            taken = 0 if isinstance(array, np.ndarray) else disk_nbytes(root / array.path)
            many = f"only the first {_MOST_HEADS} heads are painted"
            heads.append(HeadReport(details, taken, shown or many, reading, counted))
        _check_names(channel_names, heads)
        covered = coverage(source.locs, source.written, n_left_out=source.n_left_out)
        times = timing(root, found.state, int(np.count_nonzero(batch.written)))
        return Report(found, covered, heads, times, pixel_size, source.maps is not None)


def _source(path: Path, batch: FullBatch, found: Info, max_px: int, names: ChannelNames | None) -> _Source:
    with contextlib.suppress(UnfinishedError):  # of maps that ranks make together: these have no place yet
        if has_patches(path):
            maps = StitchedMap.load(path)
            return _Source(maps, maps._shown_locs, maps.written, 0, max_px, names)  # noqa: SLF001
    never = left_out(len(batch.written), int(np.count_nonzero(batch.written)), found.n_expected)
    return _Source(None, batch.output_locs, batch.written, never, max_px, names)


def _check_names(names: ChannelNames | None, heads: list[HeadReport]) -> None:
    """Refuse names of channels that no head has."""
    numbers = {head.map.n_channels for head in heads if is_map(head.map)}
    if names is not None and not isinstance(names, Mapping) and len(names) not in numbers:
        raise OptionError(
            f"channel_names has {len(names)} names, and the heads that have a map have "
            f"{' or '.join(map(str, sorted(numbers))) or 'no'} channels: give one name a channel"
        )

"""What the report says: gathered once, from what a store had recorded when it was opened."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._inputs.extras import need
from accumulator._pictures import Coverage, coverage
from accumulator._report.images import Picture, as_pictures
from accumulator._report.inspect import Info, info
from accumulator._report.reading import MOST_NBYTES, Reading, read_rows
from accumulator._report.timing import Timing, timing
from accumulator._stores import disk_nbytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator.typing import RowArray

MAX_PX: Final = 1024
_MOST_CHANNELS: Final = 8  # that are shown: a head may be an embedding of a thousand numbers
_MOST_HEADS: Final = 24  # that have pictures
_ALL_NBYTES: Final = 4 * MOST_NBYTES  # of all heads together
_MOST_PLACE: Final = 2**62
_MOST_EXTENT: Final = 2**31
_MOST_PAINTED: Final = 2**31  # px: boxes that lie over each other a thousand times are no map
_FEW_PX: Final = 64  # of a row: so small ones are pasted many at once
_PASTED_ROWS: Final = 2**13
_PAINTED_ROWS: Final = 2**16  # at a time
_MOST_VALUES: Final = 2**20  # of a histogram
_HISTOGRAM_NBYTES: Final = 2**28
_HISTOGRAM_ROWS: Final = 4096
_BINS: Final = 48
_COARSE: Final = 2.0**50  # beyond it a float64 has no halves


class _NoMapError(ValueError):
    """A head that has no picture; the message says why."""


@attrs.frozen(eq=False)
class Histogram:
    """How often values are met.

    Attributes
    ----------
    counts, edges : array
        Of each bin, and where bins begin and end.
    low, median, high : float
        Of the values.
    n_values, n_rows, n_strange : int
        Values and rows that were looked at, and values that are NaN or infinite.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    low: float
    median: float
    high: float
    n_values: int
    n_rows: int
    n_strange: int


@attrs.frozen(eq=False)
class HeadReport:
    """A head.

    Attributes
    ----------
    name : str
        As it was pushed; it may hold anything.
    details : dict
        How it is stored.
    disk_nbytes : int
        What it takes on disk.
    pictures : list of Picture
        Its map, a channel each.
    no_map : str
        Why there is none.
    map_size : (width, height)
        Of the whole map, in px.
    step : int
        Every so manieth pixel is shown.
    n_channels : int
        Of which pictures may show the first ones.
    reading : Reading
        What was read of it for its map.
    histogram : Histogram or None
        Of its values.
    """

    name: str
    details: dict[str, Any]
    disk_nbytes: int
    pictures: list[Picture]
    no_map: str
    map_size: tuple[int, int]
    step: int
    n_channels: int
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
        found = info(path)
        named = batch.outputs if isinstance(batch.outputs, dict) else dict(enumerate(batch.outputs))
        root, most = path.absolute(), min(MOST_NBYTES, _ALL_NBYTES // max(1, len(named)))
        heads = [
            _head(str(name), array, batch, number, Reading(most), max_px, found, root)
            for number, (name, array) in enumerate(named.items())
        ]
        shown = coverage(batch.output_locs, batch.written)
        return Report(found, shown, heads, timing(root, found.state, shown.n_written))


def thumbnail(
    array: RowArray,
    output_locs: NDArray[Any],
    written: NDArray[np.bool_],
    max_px: int = MAX_PX,
    *,
    reading: Reading | None = None,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return a small map of a head: every so manieth pixel, later rows over earlier ones.

    Rows are read chunk by chunk. Patches that are coarser or finer than their box are stretched; a head
    without height and width paints its boxes all over.

    Parameters
    ----------
    array : (N, *patch_shape) numpy.ndarray or zarr.Array
        The head: patches ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, or ``(C,)`` or ``()``.
    output_locs : (N, 4) array
        ``[start_x, start_y, end_x, end_y]`` of each row.
    written : (N,) bool array
        Which rows are shown.
    max_px : int
        Of the longer side.
    reading : Reading, optional
        What may be read, 1 GiB by default; it says afterwards what was.

    Returns
    -------
    image : (h, w, C) array
        The first channels.
    covered : (h, w) bool array
        Where a row is.

    Raises
    ------
    ValueError
        The head has no map; the message says why.
    """
    grid = _Grid.of(output_locs, max_px)
    axis = _channel_axis(array, grid)
    n_channels = min(_MOST_CHANNELS, _n_channels(array, axis))
    image = np.zeros((*grid.shape, n_channels), array.dtype)
    covered = np.zeros(grid.shape, np.bool_)
    wanted = np.flatnonzero(written & grid.is_shown)
    for rows, values in read_rows(array, wanted, Reading() if reading is None else reading):
        patches = _channels_last(values, axis)[..., :n_channels]
        if grid.areas[rows].mean() <= _FEW_PX:
            for first in range(0, len(rows), _PASTED_ROWS):
                block = slice(first, first + _PASTED_ROWS)
                at, source = grid.few_samples(rows[block], *patches.shape[1:3])
                image[at], covered[at] = patches[block][source], True
            continue
        for row, patch in zip(rows.tolist(), patches, strict=True):
            x0, y0, x1, y1 = grid.boxes[row].tolist()
            image[y0:y1, x0:x1] = patch[grid.samples(row, 1, patch), grid.samples(row, 0, patch)]
            covered[y0:y1, x0:x1] = True
    return image, covered


@attrs.frozen(eq=False)
class _Grid:
    """Every so manieth pixel of the plane that all boxes lie in.

    ``boxes`` says for each row which pixels of the small map are its own, ``offsets`` and ``sizes`` where its
    box begins, in px of the whole map, and how large it is.
    """

    step: int
    shape: tuple[int, int]
    size: tuple[int, int]  # width and height of the whole map
    boxes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    areas: NDArray[np.int64]  # of `boxes`
    is_shown: NDArray[np.bool_]

    @classmethod
    def of(cls, output_locs: NDArray[Any], max_px: int) -> _Grid:
        if output_locs.shape[1] != 4:
            raise _NoMapError(
                f"its locations have {output_locs.shape[1]} numbers: a map needs boxes of four, start_x, "
                "start_y, end_x and end_y"
            )
        if len(output_locs) == 0:
            raise _NoMapError("there are no locations")
        left, top = (int(each) for each in output_locs[:, :2].min(axis=0))
        right, bottom = (int(each) for each in output_locs[:, 2:].max(axis=0))
        width, height = right - left, bottom - top
        if min(width, height) < 1:
            raise _NoMapError("its boxes have no area")
        if max(abs(left), abs(top), abs(right), abs(bottom)) >= _MOST_PLACE or (
            max(width, height) >= _MOST_EXTENT
        ):
            raise _NoMapError("its boxes are too far apart")
        corners = output_locs.astype(np.int64) - np.array([left, top, left, top])
        step = max(1, math.ceil(max(width, height) / max_px))
        boxes = np.maximum(-(-corners // step), 0)
        areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
        if int(areas.sum()) > _MOST_PAINTED:
            raise _NoMapError("too many of its boxes lie over each other")
        shape = (-(-height // step), -(-width // step))
        sizes = corners[:, 2:] - corners[:, :2]
        return cls(step, shape, (width, height), boxes, corners[:, :2], sizes, areas, areas > 0)

    def samples(self, row: int, axis: int, patch: NDArray[Any]) -> Any:
        """Return which pixels of a patch the small map shows, of width (0) or height (1)."""
        start, stop = self.boxes[row, axis], self.boxes[row, axis + 2]
        inside = np.arange(start, stop) * self.step - self.offsets[row, axis]
        at = inside * patch.shape[1 - axis] // self.sizes[row, axis]
        return at[:, None] if axis == 1 else at

    def few_samples(self, rows: NDArray[np.intp], height: int, width: int) -> tuple[Any, Any]:
        """Return which pixels of the small map some rows have, and which of their patches these are."""
        spans = self.boxes[rows, 2:] - self.boxes[rows, :2]
        counts = self.areas[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        inside = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = self.boxes[rows, :2][of] + np.stack(np.divmod(inside, spans[of, 0])[::-1], axis=1)
        place = (at * self.step - self.offsets[rows][of]) * np.array([width, height]) // self.sizes[rows][of]
        return (at[:, 1], at[:, 0]), (
            of,
            place[:, 1],
            place[:, 0],
        )  # where some are the same, the last one stays

    def paint(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return where the boxes of some rows are."""
        mask = np.zeros(self.shape, np.bool_)
        rows = rows[self.is_shown[rows]]
        for first in range(0, len(rows), _PAINTED_ROWS):
            for x0, y0, x1, y1 in self.boxes[rows[first : first + _PAINTED_ROWS]].tolist():
                mask[y0:y1, x0:x1] = True
        return mask


def _channel_axis(array: RowArray, grid: _Grid) -> int | None:
    """Return which axis of the array has the channels; None where there is none."""
    patch_shape = array.shape[1:]
    if array.dtype.kind not in "biufc":
        raise _NoMapError(f"{array.dtype} cannot be painted")
    if 0 in patch_shape:
        raise _NoMapError("its patches are empty")
    if len(patch_shape) > 3:
        raise _NoMapError(
            f"its patches have {len(patch_shape)} axes, and a map has height, width and channels"
        )
    if len(patch_shape) in {0, 2}:
        return None
    if len(patch_shape) == 1:
        return 1
    width, height = grid.sizes[0].tolist()
    if (height, width) in {patch_shape[:2], patch_shape[1:]}:
        return 3 if patch_shape[:2] == (height, width) else 1
    return 1 if patch_shape[0] < min(patch_shape[1:]) else 3


def _n_channels(array: RowArray, axis: int | None) -> int:
    return 1 if axis is None else int(array.shape[axis])


def _channels_last(values: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """Return rows as ``(n, H, W, C)``."""
    if values.ndim == 1:
        return values[:, None, None, None]
    if values.ndim == 2:
        return values[:, None, None, :]
    return values[..., None] if axis is None else np.moveaxis(values, axis, -1)


def _head(  # noqa: PLR0913, PLR0917  what a head's part of the page depends on
    name: str,
    array: RowArray,
    batch: FullBatch,
    number: int,
    reading: Reading,
    max_px: int,
    found: Info,
    root: Path,
) -> HeadReport:
    pictures: list[Picture] = []
    no_map, map_size, step, n_channels = "", (0, 0), 1, 0
    try:
        if number >= _MOST_HEADS:
            raise _NoMapError(f"only the first {_MOST_HEADS} heads are painted")  # noqa: TRY301  one reason of many
        grid = _Grid.of(batch.output_locs, max_px)
        image, covered = thumbnail(array, batch.output_locs, batch.written, max_px, reading=reading)
        n_channels = _n_channels(array, _channel_axis(array, grid))
        map_size, step = grid.size, grid.step
        is_unread = batch.written.copy()
        is_unread[reading.rows] = is_unread[reading.damaged] = False
        masks = {
            "missing": grid.paint(np.flatnonzero(~batch.written)),
            "unread": grid.paint(np.flatnonzero(is_unread)),
            "damaged": grid.paint(reading.damaged),
        }
        pictures = as_pictures(image, covered, masks)
    except _NoMapError as reason:
        no_map = str(reason)
    details = found.heads[number]
    taken = disk_nbytes(root / "outputs" / str(number))
    histogram = _histogram(array, batch.written) if number < _MOST_HEADS else None
    return HeadReport(name, details, taken, pictures, no_map, map_size, step, n_channels, reading, histogram)


def _histogram(array: RowArray, written: NDArray[np.bool_]) -> Histogram | None:
    """Return the histogram of some rows, evenly chosen; None where there is nothing to count."""
    if array.dtype.kind not in "biufc" or 0 in array.shape[1:]:
        return None
    rows = np.flatnonzero(written)
    if len(rows) > _HISTOGRAM_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, _HISTOGRAM_ROWS).round().astype(np.intp)]
    reading, parts = Reading(_HISTOGRAM_NBYTES), []
    each = max(1, _MOST_VALUES // max(1, len(rows)))
    for _, values in read_rows(array, rows, reading):
        flat = values.reshape(len(values), -1)
        part = flat[:, :: -(-flat.shape[1] // each)].ravel()
        parts.append((np.abs(part) if part.dtype.kind == "c" else part).astype(np.float64))
    if not parts:
        return None
    values = np.concatenate(parts)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None
    low, high = float(known.min()), float(known.max())
    counts, edges = np.histogram(known, _edges(low, high, is_whole=array.dtype.kind in "biu"))
    return Histogram(
        counts,
        edges,
        low,
        float(np.partition(known, len(known) // 2)[len(known) // 2]),  # of two, no mean: it may be infinite
        high,
        len(values),
        len(reading.rows),
        len(values) - len(known),
    )


def _edges(low: float, high: float, *, is_whole: bool) -> NDArray[np.float64]:
    """Return where bins begin and end; a bin of whole numbers has as many of them as any other."""
    if low == high and abs(low) >= _COARSE:
        return np.array(sorted((0.0, low)))
    if low == high and not is_whole:
        return np.array([low - 0.5, low + 0.5])
    if is_whole and high - low < _COARSE and max(-low, high) < _COARSE:
        width = max(1.0, math.ceil((high - low + 1) / _BINS))
        n_bins = math.ceil((high - low + 1) / width)
        return np.asarray(low - 0.5 + width * np.arange(n_bins + 1), np.float64)
    if not math.isfinite(high - low):
        return np.array([low, 0.0, high])
    return np.unique(np.linspace(low, high, _BINS + 1))  # neighbours in float64 have no bins between them

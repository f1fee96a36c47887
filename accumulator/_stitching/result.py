"""`stitch`: a whole result through a `Stitcher`: at once from memory, from disk as it is read best."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TypeGuard, Unpack

import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._core.memory import fits_in_memory
from accumulator._inputs import tuning
from accumulator._inputs.heads import Heads, plain_key
from accumulator._inputs.options import HeadOptions
from accumulator._inputs.text import listed
from accumulator._inputs.validation import HeadSpec
from accumulator._stitching.frame import as_frame
from accumulator._stitching.geometry import GEOMETRY, as_geometry
from accumulator._stitching.grid import n_outside
from accumulator._stitching.heads import check_shapes, lay_heads
from accumulator._stitching.stitcher import Stitcher
from accumulator._stores.reading.saved import is_map
from accumulator.exceptions import NothingPushedError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from accumulator._stitching.frame import Lay
    from accumulator._stitching.grid import Grid
    from accumulator._stitching.map import StitchedMap
    from accumulator.typing import RowArray, StitchOptions


_log: Final = logging.getLogger("accumulator")


def stitch(
    batch: FullBatch, *, heads: Sequence[int | str] | None = None, **options: Unpack[StitchOptions]
) -> StitchedMap:
    """Stitch the patches of a result into one map a head.

    Parameters
    ----------
    batch : FullBatch
        What `FullBatchAccumulator.finalize` or `FullBatch.load` returned, in RAM or on disk, of a run that is
        complete or not. Only rows that were written count.
    heads : sequence of str or int, optional
        Names or numbers of the heads to stitch, which must have patches of the same height and width; by
        default all. Heads without names are numbered anew, in the options too.
    **options
        Those of `Stitcher`. By default the maps end with the last of all locations, written or not; where
        there are none, give ``output_shape``.

    Returns
    -------
    StitchedMap
        One map a head, with all locations of ``batch``; if none was written, of fill values.

    Raises
    ------
    LocationError
        Locations are not boxes, or larger than the patches; a ValueError.
    HeadError
        Heads are not patches, or of different size; a ValueError.
    NothingPushedError
        ``batch`` has no heads, as nothing was pushed and none were declared; a ValueError.
    HeadDtypeError
        A head has a dtype that zarr cannot store (long double); a TypeError.
    HeadValueError
        The ``dtype`` asked for cannot hold a value; a ValueError and an OverflowError.
    OptionError
        ``batch``, ``heads`` or an option is not what it can be; a ValueError.
    ResultExistsError
        Something is at ``store`` already; a FileExistsError.
    MemoryLimitError
        The bands that would be open do not fit in memory; a MemoryError.
    StorageError
        The disk refused; an OSError.
    ClosedError
        ``batch`` was closed; a ValueError.
    DamagedError
        Rows on disk are not those that were written; an OSError.

    Notes
    -----
    After an error nothing is left on disk but what ``store`` has; ``batch`` is as it was.

    Examples
    --------
    >>> locs = [[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]]
    >>> with FullBatchAccumulator(locs) as accumulator:
    ...     accumulator.push({"tumour": np.ones((2, 4, 4, 1), np.float32)}, locs[:2])
    >>> maps = stitch(accumulator.finalize(), blend="hann")
    >>> maps.outputs["tumour"].shape, maps.outputs["tumour"][0, :, 0].tolist()
    ((4, 8, 1), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    """
    if not isinstance(batch, FullBatch):
        raise OptionError(f"batch is {type(batch).__name__}: give a FullBatch, such as FullBatch.load(path)")
    check_is_of_patches(batch)
    if options.get("on_duplicate", "error") != "error":
        raise OptionError(
            "on_duplicate is for patches that come one by one: a result has each once. Give it to the "
            "FullBatchAccumulator or the Stitcher that they are pushed to"
        )
    chosen = _chosen(Heads.of(batch.outputs), heads)
    lays = _lay(batch, chosen, options)
    grids = [lay.grid for lay in lays]
    if n := n_outside(grids):
        _log.info("%d boxes lie wholly outside of the maps, and are left out", n)
    touching = np.any([grid.is_inside for grid in grids], axis=0)  # of a cut-out, no other row is read
    rows = np.flatnonzero(batch.written & touching)
    with Stitcher(batch.output_locs[rows], **options) as stitcher:
        stitcher._told = batch.output_locs, batch.written, n_outside(grids)  # noqa: SLF001
        dtypes = HeadOptions(dtype=options.get("dtype"))
        at_hand = [
            array
            for key, array, lay in zip(chosen.keys, chosen, lays, strict=True)
            if _is_at_hand(array, lay, dtypes.for_head(key, array.dtype)[1])
        ]
        if len(rows) and len(at_hand) == len(chosen):
            stitcher._push_whole(chosen.like(at_hand).as_given(), rows)  # noqa: SLF001
        else:
            largest = max(grids, key=lambda grid: math.prod(grid.shape))
            for some in _in_batches(largest, rows, chosen.values):
                values = chosen.like(_read(array, some) for array in chosen)
                stitcher.push(values.as_given(), batch.output_locs[some])
    return stitcher.finalize()


def _lay(batch: FullBatch, chosen: Heads[RowArray], options: StitchOptions) -> Heads[Lay]:
    """Look at all boxes, written or not, and put what they tell into the options; return how heads lie."""
    said: dict[str, Any] = {name: options[name] for name in GEOMETRY if name in options}
    geometry = as_geometry(batch.output_locs.shape[1], name="output_locs", **said)
    frame = as_frame(batch.output_locs, geometry, name="output_locs")
    lays = lay_heads(frame, chosen.like(HeadSpec(array.shape[1:], array.dtype) for array in chosen))
    check_shapes(geometry, lays)
    options["origin"] = frame.origin
    options["output_shape"] = dict(zip(lays.keys, (lay.shape for lay in lays), strict=True))
    options["crop"] = dict(zip(lays.keys, (lay.crop for lay in lays), strict=True))
    return lays


def check_is_of_patches(batch: FullBatch) -> None:
    """Refuse a result whose heads nobody has told, and rows of a map."""
    store = batch._store  # noqa: SLF001
    if store is not None and is_map(store.root):
        raise OptionError(
            f"{store.root} is a map already: StitchedMap.load(path) opens it, and its save_ome_zarr() or "
            "save_ome_tiff() writes a file for others"
        )
    if not batch.outputs:
        raise NothingPushedError(
            "the result has no heads, as nothing was pushed: declare them where it is collected, with "
            "FullBatchAccumulator(..., heads=[(patch_shape, dtype), ...]), and its maps are complete"
        )


def _chosen(outputs: Heads[RowArray], heads: Sequence[int | str] | None) -> Heads[RowArray]:
    """Return the heads that were asked for, by name or by number."""
    known = dict(zip(outputs.keys, outputs, strict=True))
    if heads is not None and (isinstance(heads, str) or not isinstance(heads, Sequence)):
        raise OptionError(f"heads is {heads!r}: give a list of them, of [{listed(map(repr, known))}]")
    chosen = list(known) if heads is None else [plain_key(head) for head in heads]
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= known.keys():
        raise OptionError(f"heads is {heads!r}: choose from [{listed(map(repr, known))}], each once")
    names = None if outputs.names is None else tuple(map(str, chosen))
    return Heads(tuple(known[head] for head in chosen), names)


def _is_at_hand(array: RowArray, lay: Lay, asked: np.dtype[Any] | None) -> TypeGuard[NDArray[Any]]:
    """Whether patches can be blended from where they are."""
    if not isinstance(array, np.ndarray) or not array.dtype.isnative or asked not in {None, array.dtype}:
        return False
    return lay.seen(array).flags.c_contiguous


def _in_batches(grid: Grid, rows: NDArray[np.intp], arrays: Sequence[RowArray]) -> Iterator[NDArray[np.intp]]:
    """Yield rows as they lie, which is read fastest, or if that opens too many bands, from top to bottom."""
    pixel_nbytes = sum(int(array.nbytes) for array in arrays) // max(
        1, arrays[0].shape[0] * math.prod(grid.patch)
    )
    start, stop = grid.start[rows, 0], grid.stop[rows, 0]
    if len(rows):
        n_open = (np.maximum.accumulate(stop) - np.minimum.accumulate(start[::-1])[::-1]).max()
        nbytes = int(n_open) * math.prod(grid.shape[1:]) * pixel_nbytes
        if not fits_in_memory(nbytes, 0, tuning.now.small_percent):
            rows = rows[np.argsort(start, kind="stable")]
    row_nbytes = max(1, pixel_nbytes * math.prod(grid.patch))
    step = max(1, tuning.now.read_nbytes // row_nbytes)
    chunks = [array.chunks[0] for array in arrays if not isinstance(array, np.ndarray)]
    if chunks:  # whole ones
        step = -(-step // max(chunks)) * max(chunks)
    yield rows[:0]  # which tells the heads, if there are no rows at all
    first = 0
    while first < len(rows):
        last = min(first + step, len(rows))
        if chunks:
            part = rows[first:last] // step
            is_other = np.append(part != part[0], [True])
            gap = np.abs(np.diff(rows[first:last]))  # what lies between is not read, if that costs more
            is_other[1:-1] |= (gap > max(chunks)) & (gap * row_nbytes > tuning.now.read_gap_nbytes)
            last = first + int(np.argmax(is_other))
        yield rows[first:last]
        first = last


def _read(array: RowArray, rows: NDArray[np.intp]) -> NDArray[Any]:
    """Return some rows, of which a store on disk reads what lies between them, too."""
    if isinstance(array, np.ndarray):
        is_run = len(rows) and (np.diff(rows) == 1).all()
        return array[rows[0] : rows[-1] + 1] if is_run else array[rows]
    if not len(rows):
        return np.empty((0, *array.shape[1:]), array.dtype)
    first = int(rows.min())
    values = np.asarray(array[first : int(rows.max()) + 1])
    return values[rows - first]

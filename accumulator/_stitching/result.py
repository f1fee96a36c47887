"""`stitch`: a whole result through a `Stitcher`: at once from memory, from disk as it is read best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, overload

import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._inputs.heads import Heads, plain_key
from accumulator._inputs.options import HeadOptions
from accumulator._inputs.ranks import as_rank
from accumulator._inputs.text import listed
from accumulator._inputs.validation import HeadSpec
from accumulator._stitching.blends import DEFAULT_BLEND
from accumulator._stitching.frame import as_frame
from accumulator._stitching.geometry import GEOMETRY, Filled, as_geometry
from accumulator._stitching.grid import n_outside
from accumulator._stitching.heads import check_shapes, lay_heads
from accumulator._stitching.ranks import stitch_share
from accumulator._stitching.source import Source, in_batches, read
from accumulator._stitching.stitcher import Stitcher
from accumulator._stores.reading.saved import is_map
from accumulator.exceptions import NothingPushedError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

    from accumulator._inputs.ranks import Rank
    from accumulator._stitching.frame import Lay
    from accumulator._stitching.map import StitchedMap
    from accumulator.typing import (
        Auto,
        Bands,
        Blend,
        Chunks,
        Compressors,
        Crop,
        FillValue,
        Reduce,
        RowArray,
        Scale,
        StitchOptions,
        StorageOption,
        StrPath,
    )


_log: Final = logging.getLogger("accumulator")


@overload
def stitch(
    batch: FullBatch,
    *,
    heads: Sequence[int | str] | None = None,
    weights: int | str | None = None,
    rank: None = None,
    world_size: None = None,
    **options: Unpack[StitchOptions],
) -> StitchedMap: ...


@overload
def stitch(
    batch: FullBatch,
    *,
    heads: Sequence[int | str] | None = None,
    weights: int | str | None = None,
    rank: int | Auto,
    world_size: int | Auto,
    **options: Unpack[StitchOptions],
) -> None: ...


def stitch(  # noqa: PLR0913  each is told by its name
    batch: FullBatch,
    *,
    heads: Sequence[int | str] | None = None,
    weights: int | str | None = None,
    blend: StorageOption[Blend] = DEFAULT_BLEND,
    spread: StorageOption[bool] = False,
    reduce: StorageOption[Reduce | None] = None,
    output_shape: StorageOption[Sequence[int] | None] = None,
    origin: Sequence[int] | Literal["min"] | None = None,
    channels_first: StorageOption[bool] = False,
    crop: StorageOption[Crop] = None,
    scale: StorageOption[Scale] = None,
    axes: str | None = None,
    dtype: StorageOption[DTypeLike | None] = None,
    fill_value: StorageOption[FillValue] = 0,
    nodata: StorageOption[FillValue | None] = None,
    on_band: Callable[[slice, Bands], object] | None = None,
    save_path: StrPath = "temp_fullbatch",
    memory_threshold: float = 80,
    memory_limit: int | str | None = None,
    store: StrPath | None = None,
    progress: bool = False,
    chunks: StorageOption[Chunks] = None,
    shards: StorageOption[Chunks] = None,
    compressors: StorageOption[Compressors] = None,
    on_duplicate: Literal["error"] = "error",
    rank: int | Auto | None = None,
    world_size: int | Auto | None = None,
) -> StitchedMap | None:
    """Stitch the patches of a result into one map a head.

    Parameters
    ----------
    batch : FullBatch
        What `FullBatchAccumulator.finalize` or `FullBatch.load` returned, in RAM or on disk, of a run that is
        complete or not. Only rows that were written count.
    heads : sequence of str or int, optional
        Names or numbers of the heads to stitch; by default all but ``weights``. Heads without names are
        numbered anew, in the options too.
    weights : str or int, optional
        The name or number of a head that says what the pixels of the others count, as `Stitcher.push` takes
        it: ``(N, h, w)``, or ``(N,)`` for one number a patch.
    rank, world_size : int or "auto", optional
        Which of several processes this is, as in `FullBatchAccumulator`: each makes whole rows of the maps,
        a part of ``store``, and leaves out those that somebody has made already. `publish` makes maps of all
        parts, with the same bytes for any number of ranks, and `StitchedMap.load` opens them.
    blend, spread, reduce, output_shape, origin, channels_first, crop, scale, axes
        How patches lie and are blended, as `Stitcher` takes it. By default the maps end with the last of all
        locations, written or not; where there are none, give ``output_shape``.
    dtype, fill_value, nodata, chunks, shards, compressors
        What maps hold and how they are stored, as `Stitcher` takes it.
    on_band, save_path, memory_threshold, memory_limit, store, progress
        Where maps go and who is told of them, as `Stitcher` takes it.
    on_duplicate : {"error"}, default "error"
        A result has each patch once: nothing else has a meaning here.

    Returns
    -------
    StitchedMap
        One map a head, with all locations of ``batch``; if none was written, of fill values. None where
        ``rank`` is given: no rank has the maps.

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
        Something is at ``store`` already, which with ``rank`` is no part of these maps; a FileExistsError.
    ResumeError
        Other ranks make other maps there, of other patches or with other options; a ValueError.
    LockedError
        What is there is being published; a BlockingIOError.
    MemoryLimitError
        The bands that would be open do not fit in memory; a MemoryError.
    StorageError
        The disk refused; an OSError.
    ClosedError
        ``batch`` was closed; a ValueError.
    DamagedError
        Rows on disk are not those that were written; an OSError.

    See Also
    --------
    Stitcher : makes maps while the model runs, and keeps no patch.
    StitchedMap.save_ome_zarr : one of the files that others open.

    Notes
    -----
    After an error nothing is left on disk but what ``store`` has; ``batch`` is as it was. With ``rank`` those
    rows stay that are recorded, as after a kill, and whoever is started again makes the others.

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
    if on_duplicate != "error":
        raise OptionError(
            "on_duplicate is for patches that come one by one: a result has each once. Give it to the "
            "FullBatchAccumulator or the Stitcher that they are pushed to"
        )
    options: StitchOptions = {
        "blend": blend,
        "spread": spread,
        "reduce": reduce,
        "output_shape": output_shape,
        "origin": origin,
        "channels_first": channels_first,
        "crop": crop,
        "scale": scale,
        "axes": axes,
        "dtype": dtype,
        "fill_value": fill_value,
        "nodata": nodata,
        "on_band": on_band,
        "save_path": save_path,
        "memory_threshold": memory_threshold,
        "memory_limit": memory_limit,
        "store": store,
        "progress": progress,
        "chunks": chunks,
        "shards": shards,
        "compressors": compressors,
    }
    return _stitch(batch, heads, weights, as_rank(rank, world_size), options)


def _stitch(
    batch: FullBatch,
    heads: Sequence[int | str] | None,
    weights: int | str | None,
    who: Rank | None,
    options: StitchOptions,
) -> StitchedMap | None:
    outputs = Heads.of(batch.outputs)
    weighing = None if weights is None else _chosen(outputs, weights, "weights").values[0]
    if heads is None and weights is not None:
        heads = [key for key in outputs.keys if key != plain_key(weights)]
        if not heads:
            raise OptionError(f"weights is {weights!r}, and there is no other head to stitch")
    chosen = _chosen(outputs, heads)
    store = options.pop("store", None) if who is not None else None
    lays = _lay(batch, chosen, options)
    grids = [lay.grid for lay in lays]
    if n := n_outside(grids):
        _log.info("%d boxes lie wholly outside of the maps, and are left out", n)
    touching = np.any([grid.is_inside for grid in grids], axis=0)  # of a cut-out, no other row is read
    rows = np.flatnonzero(batch.written & touching)
    picked = [plain_key(head) for head in heads or outputs.keys]
    source = Source(batch, chosen, picked, rows, lays, weighing)
    if who is not None:
        stitch_share(source, who, store, options)
        return None
    with Stitcher(batch.output_locs[rows], **options) as stitcher:
        stitcher._told = batch.output_locs, batch.written, n_outside(grids)  # noqa: SLF001
        if len(rows) and source.is_at_hand(HeadOptions(dtype=options.get("dtype"))):
            stitcher._push_whole(chosen.like(map(np.asarray, chosen)), rows, source.weigh())  # noqa: SLF001
        else:
            for some in in_batches(source.largest, rows, source.arrays):
                values = chosen.like(read(array, some) for array in chosen)
                stitcher._take(  # noqa: SLF001
                    values, batch.output_locs[some], source.weights_of(some), is_lent=True
                )
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
    spread: list[Any] = [Filled(lay.whole) if lay.is_spread else False for lay in lays]
    options["spread"] = dict(zip(lays.keys, spread, strict=True))
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


def _chosen(
    outputs: Heads[RowArray], heads: int | str | Sequence[int | str] | None, name: str = "heads"
) -> Heads[RowArray]:
    """Return the heads that were asked for, by name or by number, in an option of such a name."""
    known = dict(zip(outputs.keys, outputs, strict=True))
    some: Any = [heads] if name == "weights" else heads
    if some is not None and (isinstance(some, str) or not isinstance(some, Sequence)):
        raise OptionError(f"{name} is {heads!r}: give a list of them, of [{listed(map(repr, known))}]")
    chosen = list(known) if some is None else [plain_key(head) for head in some]
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= known.keys():
        raise OptionError(f"{name} is {heads!r}: choose from [{listed(map(repr, known))}], each once")
    names = None if outputs.names is None else tuple(map(str, chosen))
    return Heads(tuple(known[head] for head in chosen), names)

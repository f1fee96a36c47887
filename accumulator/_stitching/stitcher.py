"""`Stitcher`: patches in, maps out, band by band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import attrs
import numpy as np

from accumulator._core.lifecycle import Collector
from accumulator._inputs.text import as_text
from accumulator._inputs.validation import as_heads, check_rows
from accumulator._pictures.progress import Progress
from accumulator._stitching.bands import Bands
from accumulator._stitching.blends import DEFAULT_BLEND
from accumulator._stitching.deliveries import Deliveries
from accumulator._stitching.map import StitchedMap, as_map
from accumulator._stitching.request import as_request
from accumulator._stitching.whole import WholeBands
from accumulator._stores.memory.row_numbers import as_numbers
from accumulator.exceptions import ClosedError, HeadError, NothingPushedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.delivery import Delivery
    from accumulator.typing import (
        ArrayLike,
        BatchOutput,
        Blend,
        Chunks,
        Compressors,
        Crop,
        DeclaredHeads,
        FillValue,
        Reduce,
        Scale,
        StorageOption,
        StrPath,
    )
    from accumulator.typing import Bands as BandValues
    from accumulator.typing import Passes as OnPasses

_SomeBands = TypeVar("_SomeBands", bound=Bands)


@attrs.define(eq=False, repr=False, init=False)
class Stitcher(Collector[StitchedMap, Deliveries]):
    """Blends patches into maps as they come, and keeps none of them.

    Memory holds the maps, if they fit, and the open bands: rows of the maps that patches are still expected
    for. A band is written once all patches that lie in it have come. Patches may be late or shuffled, and
    more bands are open then. Patches are blended, and bands written, by a thread while the loop computes the
    next batch; at most 128 MiB of batches wait for it, and at most ``memory_limit``.

    As a context manager it finalizes when the block ends normally, and closes when it ends by an exception.

    Parameters
    ----------
    full_output_locs : (N, K) array-like of whole numbers
        The boxes that will come, no two the same, in pixels of the maps: ``[start_x, start_y, end_x,
        end_y]``, or for other than two axes all starts and then all ends, x before y before z. A box is as
        large as its patch, and may reach over the edges of the maps. One that was cut where the maps end is
        the first part of its patch; any other smaller one is refused, unless ``crop`` says what it is. Bands
        wait for every box of the list until `finalize`, or until `will_not_come` names it.
    blend : str, ("vote", window) or array, or dict of them by head, default "average"
        The value of a pixel that several patches cover:

        - "average", "gaussian", "hann": their mean, where all count the same or most in their middle (a
          Gaussian whose sigma is an eighth of the patch; Hann's window, on each axis
          ``np.hanning(n + 2)[1:-1]`` of what ``crop`` leaves of the patch, also if the box was cut). An array
          of weights, of a patch's spatial shape, is a window of your own.
        - "max", "min": the largest or the smallest. "last": that of the box that comes last in the list.
          "nearest": that of the patch whose centre is nearest, of several the first in the list.
        - "vote": the class that most patches have, of several the lowest. ``("vote", "hann")``, "gaussian" or
          an array: votes count as that window says. For integers and bools; bands take more memory, beyond
          ``memory_limit``, where more than two classes meet in a pixel.

        A pixel that only weights of 0 reach holds the fill value. Labels have no mean: take "vote", "last"
        or "max"; a mean of integers that is not said by its name warns. NaN in a patch makes its pixels NaN.
    spread : bool or dict by head, default False
        Whether heads of one value a patch, ``(n,)`` or ``(n, C)``, fill their boxes with it: a heat map of a
        patch classifier. With ``scale`` it is a coarse one, of one pixel a patch if that is 1 / stride; a
        box then goes from the pixel nearest to its start to that nearest to its end. ``crop`` and
        ``channels_first`` are not for them. Boxes may be of any size: a window is that of the largest, of
        which others are the middle.
    reduce : "argmax" or callable, or dict of them by head, optional
        What becomes of the blended map before it is stored: the class that is largest, as the smallest
        unsigned integers that hold it, so that probabilities are never stored; or a function that takes rows
        of the map, ``(n, W, C)``, read-only, and returns an array ``(n, W, ...)`` of any dtype. It sees some
        rows at a time, and at the first push one of zeros, to learn what it makes. ``fill_value`` and
        ``chunks`` are then of what is stored; gaps have the first, also where ``nodata`` is all there is.
        Channels that are nodata are not the largest.
    output_shape : sequence of int, optional
        The spatial shape of the maps in their own pixels, ``(height, width)``; by default they end with the
        last box.
    origin : "min" or sequence of int, optional
        The location ``[x, y]`` of the maps' first pixel, in the unit of the boxes, by default ``[0, 0]``;
        "min" is where the first box begins, on each axis. With ``output_shape`` it chooses a region. Where
        one of both is given, boxes that lie wholly outside are left out, which `StitchedMap.n_outside`
        counts; otherwise they are refused, and so are maps of more than 1,000 times the pixels of all boxes.
    channels_first : bool, default False
        Whether patches are ``(n, C, h, w)``. Maps are ``(H, W, C)`` in any case. This option, ``crop``,
        ``scale`` and ``output_shape`` may be a dict by head.
    crop : "center", "start", int or sequence of int, optional
        Which part of a larger patch is its box: the middle, the first part, or what is left when so many
        pixels are cut on each side (on all axes, or one number an axis, x first). "start" is for each box
        alone; with the others a box may be cut where the maps end, and for "center" the largest box is a
        whole one.
    scale : float or sequence of float, default 1
        The pixels of the map that a unit of the locations has, such as 1/4 for boxes in pixels of a level
        that is four times as fine; on all axes, or one number an axis, x first. A box begins at the nearest
        pixel and is as long as its patch, which it has to be to less than a pixel. Heads of different scale
        make maps of different shape.
    axes : str, optional
        The order of the columns of the boxes, "xy" or "xyz" by default; "yx" or "zyx" if they are in the
        order of an array's axes. ``origin`` and whatever else is x first stays so.
    dtype : dtype, optional
        What patches are taken as, and so the dtype of the maps, as in `FullBatchAccumulator`: floats are
        rounded, and a value that it cannot hold is an error. By default as they come. A mean of integers is
        rounded to the nearest, a tie to the even one; a mean of bools is True from one half on. With unequal
        weights, what is a tie is subject to rounding, and 64-bit integers may be off by 2**-50 of the largest
        that meet: nothing below 2**49, 256 where all are about 2**58.
    fill_value : scalar, default 0
        The value of pixels that no patch covers, such as nan.
    nodata : scalar, optional
        A number that is no prediction, such as nan or 255: in every blend it does not count where another
        patch has a value, each channel for itself. Where all patches have it, the map does. A dict by head
        is for those it names. What is known of each number takes as much room in the open bands as the sums
        do, for "last" 4 bytes, for "max" 1.
    on_band : callable, optional
        Called once for each band with a slice, the rows of the maps, and their values: a list or a dict, as
        heads were pushed, of read-only arrays that are used again. Bands come from top to bottom; those
        that nothing covers are left out. Heads whose boxes differ in pixels come in calls of their own, and
        need names. It must not push, nor wait for a thread that looks at the stitcher: this is its turn.
    progress : bool, default False
        Show a bar of the patches that have come; needs the extra ``progress``.
    save_path, memory_threshold, memory_limit, store, chunks, shards, compressors
        Where the maps go, as in `FullBatchAccumulator`; here a row is a row of the maps. On disk a chunk has
        whole rows by default; ``chunks=(512, 512, C)`` makes tiles, which are slower to write. The store of a
        process that died is not resumed: stitch again. ``memory_limit`` bounds the maps, and each band.
    heads : list, or dict by name, optional
        The heads that will come, as `FullBatchAccumulator` takes them: pairs ``(patch_shape, dtype)``, or
        example arrays, which are batches of any number of rows. All that the first push could refuse of them
        is refused at once, and maps that nothing is pushed to are complete: fill values. With an empty list
        of boxes they need ``output_shape``.
    on_duplicate : {"error", "first", "average"}, default "error"
        What a box does that comes twice, in one batch or in two: raise; keep the first patch; or average all
        of them, as of test-time augmentation or folds. They then count as one patch, their mean, so that a
        box which came often counts no more than its neighbours. The means of all boxes are kept until
        `finalize`, 8 bytes a number, in RAM or on disk as `FullBatchAccumulator` keeps rows; the maps are
        made there, and ``on_band`` is called. 64-bit integers beyond 2**53 are rounded.
        Integers warn where ``blend`` is no mean: labels have none. For "vote" the means are whole classes.

    Raises
    ------
    LocationError
        The list is not a 2-d array of whole numbers, or its rows are not boxes, or lie outside of the maps,
        or far apart; a ValueError.
    DuplicateLocationError
        A box is in the list twice; a ValueError.
    OptionError
        An option has a value that it cannot have; or there are no boxes, and no ``output_shape``. A
        ValueError.
    HeadError
        ``heads`` that are declared cannot be maps, or ``reduce`` makes none of them; a ValueError.
    HeadDtypeError
        ``heads`` are not numbers, or of a dtype that zarr cannot store; a TypeError.
    MemoryLimitError
        The maps have so many rows that what has to be known of each does not fit in memory; a MemoryError.
    StorageError
        ``save_path`` is a file, or ``store`` cannot be made; an OSError.
    ResultExistsError
        Something is at ``store`` already; a FileExistsError.
    LockedError
        Somebody else is just making ``store``; a BlockingIOError.
    MissingExtraError
        ``progress`` is True, and tqdm is not installed; an ImportError.

    See Also
    --------
    stitch : makes maps of a result that is there.
    FullBatchAccumulator : keeps the patches, and goes on after a kill.
    StitchedMap : what `finalize` hands over.

    Examples
    --------
    >>> full_output_locs = [[0, 0, 4, 4], [2, 0, 6, 4], [8, 0, 12, 4]]
    >>> with Stitcher(full_output_locs, fill_value=np.nan) as stitcher:
    ...     stitcher.push(np.ones((1, 4, 4), np.float32), [[0, 0, 4, 4]])
    ...     stitcher.push(np.full((2, 4, 4), 3, np.float32), full_output_locs[1:])
    >>> stitcher.finalize().outputs[0][0].tolist()
    [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, nan, nan, 3.0, 3.0, 3.0, 3.0]
    """

    _name: ClassVar[str] = "stitcher"
    _pushed: ClassVar[str] = "patches"

    # All locations, which were written and how many lie outside, where only some of them were to come.
    _told: tuple[NDArray[Any], NDArray[np.bool_], int] | None = attrs.field(init=False, default=None)

    def __init__(  # noqa: PLR0913  each is told by its name
        self,
        full_output_locs: ArrayLike,
        *,
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
        on_band: Callable[[slice, BandValues], object] | None = None,
        save_path: StrPath = "temp_fullbatch",
        memory_threshold: float = 80,
        memory_limit: int | str | None = None,
        store: StrPath | None = None,
        progress: bool = False,
        chunks: StorageOption[Chunks] = None,
        shards: StorageOption[Chunks] = None,
        compressors: StorageOption[Compressors] = None,
        heads: DeclaredHeads | None = None,
        on_duplicate: OnPasses = "error",
    ) -> None:
        request = as_request(
            full_output_locs,
            heads,
            on_duplicate,
            blend=blend,
            spread=spread,
            reduce=reduce,
            output_shape=output_shape,
            origin=origin,
            channels_first=channels_first,
            crop=crop,
            scale=scale,
            axes=axes,
            dtype=dtype,
            fill_value=fill_value,
            nodata=nodata,
            on_band=on_band,
            save_path=save_path,
            memory_threshold=memory_threshold,
            memory_limit=memory_limit,
            store=store,
            progress=progress,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
        )
        came, left_out = (np.zeros(len(request.index), dtype=bool) for _ in range(2))
        self.__attrs_init__(request.index, Deliveries(request, came, left_out), came)
        if request.declared is not None:
            try:
                self._start(request.declared, Bands)
            except BaseException:
                self.close()
                raise
            self._canvas.told_by = "heads="

    @property
    def open_nbytes(self) -> int:
        """Bytes of memory that the open bands take, and the batches that wait to be blended."""
        with self._lock:
            return self._canvas.open_nbytes

    def push(
        self,
        batch_output: BatchOutput,
        batch_locs: ArrayLike,
        *,
        weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        copy: bool = True,
    ) -> None:
        """Blend a batch of patches into the maps.

        The first push fixes the number, names, patch shapes and dtypes of the heads, unless ``heads`` has
        declared them. Patches have come when this returns, though a thread may still have to blend them, from
        a copy. ``on_band`` and functions given to ``reduce`` are called before it returns, in this thread.

        Parameters
        ----------
        batch_output : tuple, list or dict of ``(n, h, w, C)`` or ``(n, h, w)`` array-like, or one such array
            Patches of each head, as `FullBatchAccumulator.push` takes them.
        batch_locs : (n, K) array-like of whole numbers
            The box of each patch: rows or columns, as `FullBatchAccumulator.push` takes locations.
        weights : (n, h, w) or (n,) array-like, or dict of them by head, optional
            What each pixel of the patches counts, or each patch: masks, confidences. Numbers of at least 0,
            or bools, with an axis of one channel or without; they are multiplied with those of ``blend``.
            What counts 0 is as if it had not come: for "max", "min", "last" and "nearest" that is all they
            say. Where nothing counts the map has the fill value, or ``nodata`` where that is given. Given
            with one batch, they are given with the first; a batch without them, and a head that a dict does
            not name, counts 1.
        copy : bool, default True
            Whether the caller may use the arrays again. If not they are handed over, ``weights`` too, and the
            loop is spared the copy: they must not change any more, until `finalize` has returned.

        Raises
        ------
        UnknownLocationError
            A box is not in the list; a KeyError.
        DuplicateLocationError
            A box comes twice, in this batch or after an earlier one, and ``on_duplicate`` is "error"; a
            ValueError.
        LocationError
            ``batch_locs`` is not whole numbers, has other columns than the list, or may be rows or columns;
            or `will_not_come` has named a box. At the first push also: boxes are not as large as patches, and
            no option says why. A ValueError.
        HeadError
            The number of rows or heads, the names, a patch shape or that of ``weights`` are wrong; at the
            first push also: ``blend`` or ``reduce`` is not for such a head. A ValueError.
        HeadDtypeError
            A head is not numbers, has a mask, or is of a dtype that its first batch's cannot hold without
            loss; a TypeError.
        HeadValueError
            The ``dtype`` asked for cannot hold a value, or weights are negative, infinite, NaN, or out of
            proportion (1e-100 to 1e100); a ValueError and an OverflowError.
        OptionError
            At the first push: options do not fit the heads. ``weights`` are no numbers, come after batches
            without them, or where passes are averaged. A ValueError.
        MemoryLimitError
            The bands that would be open do not fit in memory; or values are so large that sums need a wider
            dtype, which does not. A MemoryError.
        StorageError
            The disk refused a band that was complete before; an OSError. The band is held, and the next call
            writes it once the cause is gone.
        MemoryError
            There was no memory to blend a batch that was taken before. It is held, as above, unless that was
            found half-way.
        ClosedError
            It was finalized or closed, or began to be, or a push was interrupted half-way; a ValueError.
        ProcessError
            This is another process than the stitcher's, such as a forked worker; a RuntimeError.

        Warns
        -----
        StorageWarning
            Many bands are open, and take much of the memory.
        BlendWarning
            At the first push: heads are integers, and boxes overlap while ``blend`` was not given, or
            ``on_duplicate`` is "average" while ``blend`` is no mean.

        Notes
        -----
        After an error nothing of the batch was taken, with two exceptions. Values too large for the memory
        there is may be found half-way, and told by this call or the next one: the stitcher then refuses all
        further calls, as it does after an interrupt while patches are blended. And errors of ``on_band`` and
        ``reduce`` are raised here too: after ``on_band``'s the band counts as delivered, with ``reduce``'s
        the next call tries again; `written` tells whether the batch was taken. Heads may be fixed even if the
        first push failed for want of memory or disk. Threads may push at the same time; they take turns.
        """
        with self._lock:
            self._refuse_if_done("push")
            self._take(as_heads(batch_output), batch_locs, weights, is_lent=not copy)

    def will_not_come(self, locs: ArrayLike) -> None:
        """Say that boxes of the list have no patch: bands wait for them no more.

        Their pixels are those of other patches, or the fill value. The locations stay in the list, not
        written; those that have come already stay as they are.

        Parameters
        ----------
        locs : (n, K) array-like of whole numbers
            The boxes, as `push` takes them.

        Raises
        ------
        UnknownLocationError
            A box is not in the list; a KeyError.
        LocationError
            ``locs`` is not whole numbers, has other columns than the list, or may be rows or columns; a
            ValueError.
        StorageError
            The disk refused a band, as for `push`; an OSError.
        MemoryError
            There was no memory to blend a batch that was taken before, as for `push`.
        ClosedError
            It was finalized or closed, or began to be, or a push was interrupted half-way; a ValueError.
        ProcessError
            This is another process than the stitcher's; a RuntimeError.

        Notes
        -----
        After an error nothing was said, unless it is one of ``on_band`` or ``reduce``.

        Examples
        --------
        >>> full_output_locs = [[0, 0, 2, 1], [2, 0, 4, 1]]
        >>> with Stitcher(full_output_locs) as stitcher:
        ...     stitcher.push(np.ones((1, 1, 2), np.float32), full_output_locs[:1])
        ...     stitcher.will_not_come(full_output_locs[1:])
        >>> stitcher.finalize().outputs[0].tolist()
        [[1.0, 1.0, 0.0, 0.0]]
        """
        with self._lock:
            self._refuse_if_done("say what will not come")
            found, _ = self._index.match_any(locs, may_repeat=True)
            rows = as_numbers(found)
            self._canvas.settle()
            self._canvas.left_out[rows[~self._written[rows]]] = True
            if self._canvas.request.on_duplicate != "average":
                self._canvas.deliver()

    def _take(
        self, heads: Heads[NDArray[Any]], batch_locs: ArrayLike, weights: Any, *, is_lent: bool
    ) -> None:
        """Do what `push` does."""
        maps, policy = self._canvas, self._canvas.request.on_duplicate
        found, has_repeats = self._index.match_any(batch_locs, may_repeat=policy != "error")
        rows = as_numbers(found)
        if not heads:
            raise HeadError("the batch has no heads: push at least one array a batch")
        check_rows(heads, len(rows))
        maps.refuse_left_out(rows)
        heads = maps.fit(heads)
        counts = None if weights is None else maps.weigh(weights, len(rows), heads)
        kept: Any = slice(None)
        if policy != "average" and (has_repeats or self._written[rows].any()):
            kept = maps.without_repeats(rows)
        if not maps.each:
            self._start(heads, Bands, has_weights=weights is not None)
        if policy == "average":
            maps.average(rows, heads)
        else:
            if counts is not None:
                maps.take_weights(Bands)
                counts = [None if each is None else each[kept] for each in counts]
            maps.blend(rows[kept], heads.like(head[kept] for head in heads), counts, is_lent=is_lent)
        if self._progress is not None:
            self._progress.show()
        if policy != "average":  # which blends in the end
            maps.deliver()

    def finalize(self) -> StitchedMap:
        """Return the maps.

        Returns
        -------
        StitchedMap
            One map a head, with the fill value where nothing came; the same object when called again.

        Raises
        ------
        NothingPushedError
            Nothing was ever pushed and no heads declared, so that they are unknown; a ValueError.
        StorageError
            The disk refused the last bands; an OSError. Nothing is lost: make room and call again.
        ClosedError
            The stitcher was closed, or a push was interrupted half-way; a ValueError.
        ProcessError
            This is another process than the stitcher's; a RuntimeError.
        """
        with self._lock:
            if self._result is None:
                self._refuse_if_done("finalize")
                if not self._canvas.each:
                    raise NothingPushedError(
                        "nothing was pushed, so that the heads are unknown: declare them with "
                        "heads=[(patch_shape, dtype), ...], and the maps are complete without a push"
                    )
                self._canvas.deliver_rest()
                self._canvas.flush()  # all of them, before any is complete
                self._result = as_map(self._canvas.hand_over(self._told), StitchedMap)
                self._stop()
            elif self._is_ours:
                self._stop()  # if an interrupt came before
            return self._result

    def __repr__(self) -> str:
        """Return coverage, heads and state in one line."""
        with self._lock:
            state = "finalized" if self._result is not None else "closed" if self._is_closed else "open"
            return (
                f"<Stitcher heads: {len(self._canvas.specs)}, patches: {self._written.sum()} of "
                f"{len(self._written)}, {as_text(self.open_nbytes)} in open bands, {state}>"
            )

    def _push_whole(
        self, heads: Heads[NDArray[Any]], patches: NDArray[np.intp], weights: list[Any] | None
    ) -> None:
        """Blend all that will come: each box's patch is a row of arrays in memory, told by its number.

        ``weights`` say what pixels of the rows of each head count, or nothing.

        Raises what `push` does, and leaves the stitcher to be closed then.
        """
        with self._lock:
            deliveries = self._start(heads, WholeBands, has_weights=weights is not None)
            for each in deliveries:
                given = each.group.given(weights)
                for number in each.bands.blend_all(each.group.seen(heads.values), patches, given):
                    each.deliver([number])
                    if each is deliveries[-1]:
                        self._written |= each.bands.are_over(number)
                    if self._progress is not None:
                        self._progress.show()
            self._written[:] = True

    def _start(
        self, heads: Heads[NDArray[Any]], kind: type[_SomeBands], *, has_weights: bool = False
    ) -> Sequence[Delivery[_SomeBands]]:
        """Fix the heads; nothing has changed if this raises."""
        deliveries = self._canvas.start(heads, kind, has_weights=has_weights)
        self._tell_at_exit()
        bar, n = self._canvas.request.bar, len(self._index)
        if bar is not None:
            self._progress = Progress(bar, n, n, self._canvas.shown)
        return deliveries

    def _refuse_if_done(self, action: str) -> None:
        super()._refuse_if_done(action)
        if self._canvas.is_calling:
            raise ClosedError(f"cannot {action} from within on_band: keep what it is given, and do it later")
        if self._canvas.is_ending and action == "push":
            raise ClosedError("cannot push: finalize() has begun, and bands are written; call it again")
        self._canvas.tell_torn()
        if self._canvas.is_torn:
            raise ClosedError(
                f"cannot {action}: a push was interrupted half-way; close(), and make a new one"
            )

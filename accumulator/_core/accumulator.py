"""`FullBatchAccumulator`: state and lifecycle around `prepare_multitask_full_batch`."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
import numpy as np

from accumulator._core.align import prepare_multitask_full_batch
from accumulator._core.canvas import Canvas
from accumulator._core.full_batch import FullBatch, as_read_only, hand_over
from accumulator._core.lifecycle import Collector, Covered
from accumulator._core.locations import LocationIndex
from accumulator._core.memory import available_memory
from accumulator._core.plan import Budget
from accumulator._core.ranks import join
from accumulator._inputs.arguments import (
    as_expected,
    as_folder,
    as_limit,
    as_mode,
    as_on_duplicate,
    as_seconds,
    as_store,
    as_threshold,
    as_token,
    check_expected,
)
from accumulator._inputs.declared import as_declared
from accumulator._inputs.options import HeadOptions
from accumulator._inputs.ranks import as_rank
from accumulator._inputs.validation import as_heads
from accumulator._pictures import as_html, memory_text
from accumulator._pictures.progress import Progress, as_progress, memory_state
from accumulator.exceptions import NothingPushedError, OptionError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from accumulator._core.plan import Plan
    from accumulator._core.ranks import Together
    from accumulator.typing import (
        ArrayLike,
        Auto,
        BatchOutput,
        Chunks,
        Compressors,
        DeclaredHeads,
        FillValue,
        Mode,
        OnDuplicate,
        RowArray,
        StorageOption,
        StrPath,
    )

_log: Final = logging.getLogger("accumulator")


@attrs.define(eq=False, repr=False, init=False)
class FullBatchAccumulator(Collector[FullBatch, Canvas], Covered):
    """Collects predictions batch by batch and hands them over complete, in canonical order.

    The whole result is planned at the first push, when every head's shape is known: in RAM if it fits,
    otherwise in zarr on disk, which threads write in the background. Memory is checked again as the run
    goes on: if it gets short, what is in RAM moves to disk. The cost of a push depends on its own rows, not
    on N. Batches may be late, shuffled or have gaps.

    As a context manager it finalizes when the block ends normally. When the block ends by an exception it
    closes: without ``store`` nothing is kept, with it everything that was pushed. The result that `finalize`
    returned outlives the block.

    Threads may push and look at the same time: they take turns, and what a look returns does not change. Only
    the arrays of `canvas` are live.

    Parameters
    ----------
    full_output_locs : (N, K) array-like of whole numbers
        The canonical list, no two rows the same; usually ``[start_x, start_y, end_x, end_y]``. Copied.
        ``(N,)`` integers are N locations of one number.
    save_path : path, default "temp_fullbatch"
        Where a result that does not fit in RAM goes, in a unique sub-folder of mode 0700 which is made
        at the first push and removed with the result.
    memory_threshold : float, default 80
        Per cent of the available memory that the result may take. What is available is the smaller of
        what the machine, the containers (cgroups v1 and v2) and RLIMIT_AS leave. 0 means disk; 0.8 is less
        than one per cent, and warns.
    memory_limit : int or str, optional
        Bytes of memory that the result may take at most, whatever is available: an int, or text such as
        "8 GiB". On disk it also bounds the buffers, which need at least one row a head, or in a resumed
        run, whose chunks have their size already, one chunk a head.
    on_duplicate : {"error", "first", "last"}, default "error"
        What a location pushed twice does, in one batch or in two: raise, keep the first prediction, or keep
        the last.
    store : path, optional
        Where the run is kept: a zarr group, on disk from the first push, that survives the end of the
        process, however it comes. ``save_path`` and ``memory_threshold`` have no effect then. One
        accumulator at a time writes it. Links that the path leads through are followed, those inside of
        the store never.
    mode : {"w-", "a"}, default "w-"
        "w-" makes a new store, and refuses a path where something is already. "a" resumes the run that is
        there, or starts one: rows that were recorded are `written` from the start, once every byte of them
        has been checked.
    resume_token : str, optional
        What else has to be the same when the run is resumed: the version of the model, say.
    checkpoint_interval : float, default 30
        With ``store``: after so many seconds the next push also does what `flush` does; later, where that
        would take more than a twentieth of the time. Nothing but a push and `flush` records rows. With 0 it
        is every push that leaves time for it, with inf only `flush`: call that where a row must not be lost.
    n_expected : int, optional
        How many of the locations are to come, where a mask leaves others out; more may. The others count as
        left out, not as missing, in what is printed and drawn of the run, and ``store`` keeps the number.
        Which locations these are nobody is told: `missing_locs` has all that have not come. A disk without
        room for so many refuses the first push; one without room for all locations is warned of.
    dtype : dtype, optional
        What predictions are stored as, such as float16, in RAM too; by default as they come. Floats are
        rounded, and a value that the dtype cannot hold is an error.
    fill_value : scalar, default 0
        The value of rows that nothing was pushed for.
    chunks : int or tuple of int, optional
        Rows of a chunk, or its whole shape; about 16 MiB of rows by default. Chunks, shards and
        compressors are those of zarr, and matter on disk and in what `FullBatch.save` writes.
    shards : int or tuple of int, optional
        Rows of a shard, or its whole shape; chunks are then one row by default. None means no shards.
    compressors : str, zarr codec or sequence of codecs, optional
        "zstd", "gzip" or "blosc" with zarr's settings, or codecs with others. None, the default, does not
        compress: predictions hardly get smaller, and writing takes many times longer. ``dtype``,
        ``fill_value``, ``chunks``, ``shards`` and ``compressors`` are for all heads, or a dict by head name
        or number.
    progress : bool, default False
        Show a bar of the rows that have come, out of ``n_expected`` or of all, with the gaps that no mask
        explains, the memory, and whether they are in RAM or in zarr. Needs tqdm, the extra ``progress``.
    heads : list, or dict by name, optional
        The heads that will come: pairs ``(patch_shape, dtype)``, such as ``((256, 256, 1), "float32")``, or
        example arrays, which are batches of any number of rows, even 0, as `push` takes them: their first
        axis does not count. The result is planned and the store made at once, and a first batch that differs
        is refused as any other is. A run that nothing is pushed to, as of a slide without tissue, then gives
        a complete result of fill values.

    rank, world_size : int or "auto", optional
        With ``store`` and ``mode="a"``: this is one of several processes that write one run, each a part of
        its own; `accumulator.publish` makes one result of all parts. "auto" reads RANK and WORLD_SIZE
        (torchrun), SLURM_PROCID and SLURM_NTASKS, or SLURM_ARRAY_TASK_ID and its MIN, MAX and COUNT, in this
        order; without them it is rank 0 of 1. `missing_rows` is then the share of this rank, less what any
        part has recorded; whatever is pushed is right, of other shares too. `written` and the result of
        `finalize` are of this process alone. The other arguments have to be the same for all ranks, and are
        fixed by the first.

    Raises
    ------
    LocationError
        The list is not whole numbers, one location a row; a ValueError.
    DuplicateLocationError
        A location is in the list twice; a ValueError.
    OptionError
        An option has a value that it cannot have; a ValueError. Storage options that do not fit the heads
        are found at the first push, or here where ``heads`` are declared.
    HeadError
        An example array of ``heads`` is a single number; a ValueError.
    HeadDtypeError
        ``heads`` are not numbers; a TypeError.
    StorageError
        ``save_path`` is a file, or cannot be looked at; ``store`` cannot be made or read; or the disk has no
        room for declared heads. An OSError.
    ResultExistsError
        Something is at ``store``, and ``mode`` is "w-" or it is not the store of a run; a
        FileExistsError.
    ResumeError
        ``store`` was made for other locations, with another ``resume_token``, with other storage options, or
        for other heads than those declared; a ValueError. Without ``heads`` those that it was not made for
        are refused by the first push.
    ResultFormatError
        More than rows of ``store`` is damaged, or somebody tampered with it; a ValueError.
    LockedError
        Another accumulator is writing ``store``; a BlockingIOError.
    MissingExtraError
        ``progress`` is True, and tqdm is not installed; an ImportError.

    Warns
    -----
    UserWarning
        ``memory_threshold`` looks like a fraction.
    StorageWarning
        Rows of a resumed store were damaged, and are missing again.

    See Also
    --------
    FullBatch : what `finalize` hands over.
    Stitcher : maps alone, while the model runs.
    grid_locations : makes the list.
    publish : makes one result of what several ranks have recorded.

    Notes
    -----
    An error here leaves everything as it was, and no lock on ``store``.

    Examples
    --------
    >>> full_output_locs = grid_locations((4, 20), 4)
    >>> with FullBatchAccumulator(full_output_locs) as accumulator:
    ...     for rows in ([0, 1], [4, 3]):
    ...         model_output = np.full((2, 4, 4, 1), 0.5, dtype=np.float32)
    ...         accumulator.push((model_output,), full_output_locs[rows])
    ...     accumulator.missing_locs.tolist()
    [[8, 0, 12, 4]]
    >>> accumulator.finalize().outputs[0].shape
    (5, 4, 4, 1)
    """

    _name: ClassVar[str] = "accumulator"
    _pushed: ClassVar[str] = "predictions"

    _together: Together | None = attrs.field(init=False, default=None)  # where it is one of several

    def __init__(  # noqa: PLR0913  each is told by its name
        self,
        full_output_locs: ArrayLike,
        *,
        save_path: StrPath = "temp_fullbatch",
        memory_threshold: float = 80,
        memory_limit: float | str | None = None,
        on_duplicate: OnDuplicate = "error",
        n_expected: int | None = None,
        dtype: StorageOption[DTypeLike | None] = None,
        fill_value: StorageOption[FillValue] = 0,
        chunks: StorageOption[Chunks] = None,
        shards: StorageOption[Chunks] = None,
        compressors: StorageOption[Compressors] = None,
        store: StrPath | None = None,
        mode: Mode = "w-",
        resume_token: str | None = None,
        checkpoint_interval: float | None = None,
        progress: bool = False,
        heads: DeclaredHeads | None = None,
        rank: int | Auto | None = None,
        world_size: int | Auto | None = None,
    ) -> None:
        who = as_rank(rank, world_size)
        budget = Budget(as_folder(save_path), as_threshold(memory_threshold), as_limit(memory_limit))
        on_duplicate, n_expected = as_on_duplicate(on_duplicate), as_expected(n_expected)
        path, mode, token = as_store(store), as_mode(mode), as_token(resume_token)
        interval, bar = as_seconds(checkpoint_interval), as_progress(progress)
        options = HeadOptions(
            chunks=chunks, shards=shards, compressors=compressors, fill_value=fill_value, dtype=dtype
        )
        if who is not None and (path is None or mode != "a"):
            raise OptionError(
                'rank= and world_size= are for a run that several keep: give store= and mode="a"'
            )
        declared = as_declared(heads)
        if who is None or path is None:
            index, together = LocationIndex(full_output_locs), None
            check_expected(n_expected, len(index))
        else:
            budget = attrs.evolve(budget, n_sharing=who.n_on_node)
            index, together = join(
                path, who, full_output_locs, declared, options, on_duplicate, token, n_expected=n_expected
            )
        if path is None and (mode != "w-" or token is not None or interval is not None):
            raise OptionError(
                "mode, resume_token and checkpoint_interval are for a run that is kept: give store= too"
            )
        canvas: Canvas | None = None
        try:
            canvas = Canvas.open(
                index.locs,
                budget,
                on_duplicate,
                options,
                n_expected,
                path,
                mode,
                token,
                interval,
                declared,
                None if together is None else together.part,
            )
            self.__attrs_init__(index, canvas, canvas.written)
            self._together = together
            self._tell_at_exit()
            if bar is not None:
                self._progress = Progress(bar, canvas.n_expected, canvas.n_rows, partial(_shown, canvas))
        except BaseException:
            self._is_closed = True
            if canvas is not None:  # an interrupt: nobody may hold the store then
                canvas.stop()
            raise

    @property
    def full_output_locs(self) -> NDArray[Any]:
        """The locations behind the last that came, which are still outstanding: ``(N - M, K)``, read-only."""
        with self._lock:
            return self._index.locs[self._canvas.n_consumed :]

    @property
    def output_locs(self) -> NDArray[Any]:
        """The locations up to the last that came, gaps included: ``(M, K)``, read-only."""
        with self._lock:
            return self._index.locs[: self._canvas.n_consumed]

    @property
    def canvas(self) -> list[RowArray]:
        """A list of one read-only array a head, ``(N, *patch_shape)``, empty before the first push.

        Rows that have not come hold the fill value. On disk, what is still in memory is written first. The
        arrays are those that later pushes go to: where other threads push meanwhile, rows that came when this
        returned stay as they are (but for ``on_duplicate="last"``), and others may appear, bit by bit.

        Raises
        ------
        StorageError
            The disk refused it; an OSError. Nothing is lost: make room and ask again. Reading an array later
            may be a DamagedError: somebody has removed or changed its files.
        ProcessError
            This is another process than the accumulator's, and the result is on disk; a RuntimeError.
        """
        with self._lock:
            if not self._is_ours and self._canvas.zarr_store is not None:
                raise self._elsewhere(f"be looked at in process {os.getpid()}")
            self._canvas.flush()
            return [as_read_only(array) for array in self._canvas.readable()[1]]

    def missing_rows(self, locs: ArrayLike | None = None) -> NDArray[np.intp]:
        """Return which of some locations still have to be predicted.

        So a loader skips what is done: ``Subset(dataset, accumulator.missing_rows(locs))`` or
        ``DataLoader(dataset, sampler=accumulator.missing_rows(locs))``, where the items of ``dataset`` lie at
        ``locs``; ``locs[accumulator.missing_rows(locs)]`` are the locations themselves.

        Parameters
        ----------
        locs : (n, K) array-like of whole numbers, optional
            Some of the locations, as `push` takes them, none twice, in any order; all of them by default.

        Returns
        -------
        (m,) int numpy.ndarray
            Positions in ``locs``, rising.

        Raises
        ------
        LocationError
            ``locs`` is not whole numbers, has the wrong number of columns, or may be rows or columns; a
            ValueError.
        UnknownLocationError
            A location is not in the list; a KeyError.
        DuplicateLocationError
            A location is in ``locs`` twice; a ValueError.

        Examples
        --------
        >>> accumulator = FullBatchAccumulator([[0, 0], [4, 0], [8, 0]])
        >>> accumulator.push(np.ones((1, 2)), [[4, 0]])
        >>> accumulator.missing_rows([[8, 0], [4, 0]]).tolist()
        [0]
        >>> accumulator.close()
        """
        together = self._together
        if together is not None:
            rows = together.share() if locs is None else self._index.find(locs)
            is_left = ~together.recorded()[rows] & together.is_mine(rows)
            with self._lock:
                is_left &= ~self._canvas.written[rows]
            return rows[is_left] if locs is None else np.flatnonzero(is_left)
        with self._lock:
            given = slice(None) if locs is None else self._index.find(locs)
            missing = ~self._canvas.written[given]
        return np.flatnonzero(missing)

    @property
    def missing_locs(self) -> NDArray[Any]:
        """The locations that have not come by now, in the order of the list: ``(n, K)``.

        With a ``rank`` those of its share that nobody has recorded.
        """
        return super().missing_locs if self._together is None else self._index.locs[self.missing_rows()]

    def plan(self, batch_output: BatchOutput | None = None) -> Plan:
        """Return what the result needs of memory, disk and files, and what there is of them.

        Parameters
        ----------
        batch_output : optional
            Before the first push: predictions as `push` takes them, of which only shapes and dtypes count.
            They need no rows: ``np.empty((0, 256, 256, 1))`` will do.

        Returns
        -------
        Plan
            Which ``print`` shows as text. Nothing is made or reserved.

        Raises
        ------
        HeadError
            ``batch_output`` is not what `push` takes; a ValueError.
        HeadDtypeError
            Its heads are not numbers, have a mask, or a dtype that zarr cannot store; a TypeError.
        StorageError
            The disk cannot be looked at; an OSError.
        OptionError
            Storage options that do not fit the heads; a ValueError.
        NothingPushedError
            Nothing was pushed and no batch given, so that the heads are unknown; a ValueError.

        Examples
        --------
        >>> accumulator = FullBatchAccumulator(np.arange(4000).reshape(1000, 4))
        >>> plan = accumulator.plan({"tumour": np.empty((0, 256, 256, 1), np.float32)})
        >>> plan.place, plan.nbytes
        ('RAM', 262144000)
        >>> accumulator.close()
        """
        with self._lock:
            if batch_output is None and self._canvas.store is None:
                raise NothingPushedError(
                    "the heads are unknown before the first push: give a batch to plan for"
                )
            return self._canvas.plan(None if batch_output is None else as_heads(batch_output))

    def flush(self) -> None:
        """Wait until every row that was pushed is on disk; in RAM do nothing.

        With ``store`` the rows are recorded and on the device when this returns: they survive the end of
        the process and a power cut. Without it they are in their files.

        Raises
        ------
        StorageError
            The disk refused; an OSError. Nothing is lost: make room and call again.
        ClosedError
            The accumulator was finalized or closed; a ValueError.
        ProcessError
            This is another process than the accumulator's; a RuntimeError.
        """
        with self._lock:
            self._refuse_if_done("flush")
            self._canvas.flush()

    def push(self, batch_output: BatchOutput, batch_locs: ArrayLike, *, copy: bool = True) -> None:
        """Put a batch of predictions where they belong.

        The first push fixes the number, names, patch shapes and dtypes of the heads, unless ``heads`` has
        declared them. Predictions are copied before this returns, and the caller may reuse the arrays.

        Parameters
        ----------
        batch_output : tuple, list or dict of ``(n, *patch_shape)`` array-like, or one such array
            Predictions of each head: NumPy arrays, tensors, nested lists, anything with ``__array__`` or
            DLPack. From a device they are copied here, once, without gradients. Floats of 16 bits and less
            that only other libraries know, such as bfloat16 and float8, are kept as float32, int4 as int8.
            Masks are refused: fill them; so are sparse, quantized and meta tensors.
        batch_locs : (n, K) array-like of whole numbers, or a list of K arrays ``(n,)``
            The location of each prediction, from any device too: rows, or their columns, as loaders collate
            tuples. A list of K arrays ``(K,)`` is of rows or of columns, whichever are all in the list of
            locations; if both are, of what earlier batches were, and without one that told it is refused.
            For K = 1 also ``(n,)``.
        copy : bool, default True
            Whether predictions are copied before this returns. If not the arrays are handed over, and large
            ones are copied while the loop goes on: they must not change any more, until `finalize` or `flush`
            has returned, or rows are wrong, in a store too, and nothing tells. Arrays that `canvas` returned
            before show them from then on.

        Raises
        ------
        UnknownLocationError
            A location is not in the list; a KeyError.
        DuplicateLocationError
            A location comes twice in the batch or was pushed before, and ``on_duplicate`` is "error"; a
            ValueError.
        LocationError
            ``batch_locs`` is not whole numbers, has the wrong number of columns, or may be rows or columns; a
            ValueError.
        HeadError
            The number of rows or heads, the names or a patch shape are wrong; a ValueError.
        HeadDtypeError
            A head is not numbers, has a mask, or a dtype that zarr cannot store (long double) or that its
            first batch's, or the declared one, cannot hold without loss; a TypeError.
        HeadValueError
            The ``dtype`` asked for cannot hold a value; a ValueError and an OverflowError.
        OptionError
            At the first push: storage options do not fit the heads; a ValueError.
        ResumeError
            At the first push after ``store`` was resumed: it has other names or patch shapes, or a dtype
            that cannot hold this one without loss; a ValueError.
        StorageError
            The disk refused rows of this push or of earlier ones; an OSError, whose ``rows`` are those that
            are not on disk but held in memory. The next call writes them, once the cause is gone. At the
            first push also: the disk has no room for the rows that have to come.
        DamagedError
            A row on disk that is to be replaced is not what was written; an OSError.
        ClosedError
            The accumulator was finalized or closed; a ValueError.
        ProcessError
            This is another process than the accumulator's, such as a forked worker; a RuntimeError.

        Warns
        -----
        StorageWarning
            The disk may not hold all rows; or memory is short, and the disk cannot take what is in it.

        Notes
        -----
        All or nothing: after an error the accumulator is as it was before the call. (Ctrl-C at the very end
        may come after the batch was taken: `written` tells.) On disk this returns once the rows are copied,
        and threads write them; it waits where too much is waiting to be written. Threads may push at the same
        time; they take turns.
        """
        with self._lock:
            self._refuse_if_done("push")
            self._canvas.takes_over = not copy
            prepare_multitask_full_batch(
                batch_output, batch_locs, self._index, None, is_last=False, out=self._canvas
            )
            if self._progress is not None:
                self._progress.show()

    def finalize(self) -> FullBatch:
        """Return the complete result.

        Returns
        -------
        FullBatch
            All N rows, with the fill value where nothing came; the same object when called again. For N = 0
            it has the heads that were declared or pushed, if any.

        Raises
        ------
        NothingPushedError
            Nothing was ever pushed and no heads declared, so that they are unknown; a ValueError.
        StorageError
            The disk refused the last rows; an OSError. Nothing is lost: make room and call again.
        ClosedError
            The accumulator was closed; a ValueError.
        ProcessError
            This is another process than the accumulator's; a RuntimeError.
        """
        with self._lock:
            if self._result is None:
                self._refuse_if_done("finalize")
                canvas, locs = self._canvas, self._index.locs
                if canvas.specs:  # an empty last batch consumes all that is outstanding
                    prepare_multitask_full_batch(
                        canvas.empty_batch(), locs[:0], self._index, None, is_last=True, out=canvas
                    )
                elif len(locs) and self._together is None:
                    raise NothingPushedError(
                        f"nothing was pushed for any of the {len(locs)} locations, so that the heads are "
                        "unknown: declare them with heads=[(patch_shape, dtype), ...], and the result is "
                        "complete without a push"
                    )
                self._result = hand_over(canvas, locs, is_partial=self._together is not None)
                self._stop()
                _log.info("finalized: %r", self._result)
            elif self._is_ours:
                self._stop()  # if an interrupt came before
            return self._result

    def __repr__(self) -> str:
        """Return coverage, heads and place in one line."""
        with self._lock:
            canvas, n_left_out = self._canvas, self._n_left_out
            return (
                f"<FullBatchAccumulator heads: {len(canvas.specs)}, written: {canvas.written.sum()} of "
                f"{canvas.n_rows - n_left_out}{f', {n_left_out} left out' * bool(n_left_out)}, {self._state}>"
            )

    def _repr_html_(self) -> str:
        """Return heads, coverage, memory and place as a notebook shows them; nothing is read or written."""
        with self._lock:
            canvas, written, n_left_out = self._canvas, self.written, self._n_left_out
            shapes = [((canvas.n_rows, *spec.patch_shape), str(spec.dtype)) for spec in canvas.specs]
            heads = canvas.specs.like(shapes).by_name()
            facts = {"state": self._state, "memory": memory_text(canvas.held_nbytes, available_memory())}
            if canvas.zarr_store is not None:
                facts["stored in"] = str(canvas.zarr_store)
        return as_html("FullBatchAccumulator", heads, facts, self._index.locs, written, n_left_out)

    @property
    def _coverage(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return self._index.locs, self.written

    @property
    def _n_left_out(self) -> int:
        return self._canvas.n_left_out

    @property
    def _state(self) -> str:
        canvas = self._canvas
        place = "nothing pushed" if canvas.store is None else "RAM" if canvas.zarr_store is None else "zarr"
        return "finalized" if self._result is not None else "closed" if self._is_closed else place


def _shown(canvas: Canvas) -> tuple[int, str]:
    """Return what a progress bar shows."""
    memory = memory_state(canvas.held_nbytes, available_memory(), is_in_ram=canvas.zarr_store is None)
    # Those that a mask leaves out are no gaps; where they lie nobody is told.
    n_gaps = max(0, canvas.n_consumed - canvas.n_written - canvas.n_left_out)
    return canvas.n_written, memory if canvas.n_left_out and not n_gaps else f"{n_gaps} gaps, {memory}"

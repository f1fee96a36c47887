"""`Stitcher`: patches in, maps out, band by band."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

import attrs
import numpy as np

from accumulator._core.accumulator import FullBatchAccumulator
from accumulator._core.locations import LocationIndex
from accumulator._core.memory import available_memory, fits_in_memory
from accumulator._inputs import tuning
from accumulator._inputs.arguments import as_limit
from accumulator._inputs.heads import Heads
from accumulator._inputs.options import StorageOptions
from accumulator._inputs.text import as_text, named
from accumulator._inputs.validation import as_heads, as_specs, check_rows, check_specs
from accumulator._inputs.warn import warn
from accumulator._pictures.progress import Progress, as_progress, memory_state
from accumulator._stitching.bands import Bands
from accumulator._stitching.grid import Grid, as_grid, count_axes
from accumulator._stitching.map import StitchedMap
from accumulator._stitching.numbers import MapSpec, result_dtype, sum_dtype, wider
from accumulator._stitching.weights import as_blend, as_window
from accumulator._stitching.whole import WholeBands
from accumulator._stores import as_numbers
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadError,
    MemoryLimitError,
    NothingPushedError,
    OptionError,
    ProcessError,
    ResultExistsError,
    StorageError,
    StorageWarning,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from accumulator._inputs.validation import HeadSpec
    from accumulator.typing import ArrayLike, BatchOutput, StrPath
    from accumulator.typing import Bands as BandValues

_LARGE: Final = 50
_ROW_NBYTES: Final = 64  # that the accumulator of a map's rows needs to know a row
_SomeBands = TypeVar("_SomeBands", bound=Bands)
_logger = logging.getLogger("accumulator")


@attrs.define(eq=False, repr=False)
class Stitcher:
    """Blends patches into maps as they come, and keeps none of them.

    In memory are the maps, if they fit there, and those bands of them that rows are still expected for. A
    band is complete, and written, when all patches have come that lie in it; patches may be late or
    shuffled, and then more bands are open.

    Parameters
    ----------
    full_output_locs : (N, K) array-like of whole numbers
        The boxes that will come, no two the same: ``[start_x, start_y, end_x, end_y]``, or for other than
        two axes all starts and then all ends, x before y before z. In pixels of the maps; a box may reach
        over their edges, and be smaller than its patch, of which the first part is taken then. A band that a
        listed box lies in waits for it until `finalize`: leave out what will not come.
    blend : {"average", "gaussian", "hann", "max", "last"} or array, default "average"
        What a pixel gets that several patches cover: their mean, with the same weight or with more of it for
        the middle of a patch (a Gaussian of an eighth of its length; Hann's window), the largest value, or
        that of the location that is last in the list. Or the weights, an array of a patch's spatial shape;
        a pixel that only weights of 0 reach holds the fill value. Classes and other labels have no mean:
        take "last" or "max" for them. NaN in a patch makes its pixels NaN.
    output_shape : sequence of int, optional
        The spatial shape of the maps, ``(height, width)``; by default they end with the last box.
    origin : sequence of int, optional
        The location ``[x, y]`` of the first pixel of the maps, by default ``[0, 0]``. With `output_shape` it
        places a region in a slide, or cuts it out.
    dtype : dtype, optional
        Of the maps, by default that of the heads. Means of integers are rounded to the nearest, bools are
        True where half of the weight is or more. A tie goes to the even one; with unequal weights it is one
        only up to rounding. 64-bit integers beyond 2**53 are as exact as long double and weights of float64.
    fill_value : scalar, default 0
        Of pixels that no patch covers, such as nan.
    on_band : callable, optional
        Called once for each band with a slice of rows of the maps and, as heads were pushed, a list or dict
        of their values there, for reading alone. Bands come from top to bottom; those that nothing covers
        are left out. The arrays are used again after it returns. It must not push.
    progress : bool, default False
        Show a bar of the patches that have come; needs the extra ``progress``.
    save_path, memory_threshold, memory_limit, store, chunks, shards, compressors
        Where the maps go, as in `FullBatchAccumulator`, whose rows are those of the maps. On disk a chunk has
        whole rows by default; ``chunks=(512, 512, C)`` makes tiles, which are slower to write. A store whose
        process died is not resumed: stitch again. ``memory_limit`` is for the maps and the height of a band.

    Raises
    ------
    LocationError
        The list is not 2-d whole numbers, or they are no boxes; a ValueError.
    DuplicateLocationError
        The list names a location twice; a ValueError.
    OptionError
        An option is not what it may be; a ValueError.
    StorageError
        ``save_path`` is a file, or ``store`` cannot be made; an OSError.
    ResultExistsError
        Something is at ``store``; a FileExistsError.

    Examples
    --------
    >>> full_output_locs = [[0, 0, 4, 4], [2, 0, 6, 4], [8, 0, 12, 4]]
    >>> with Stitcher(full_output_locs, fill_value=np.nan) as stitcher:
    ...     stitcher.push(np.ones((1, 4, 4), np.float32), [[0, 0, 4, 4]])
    ...     stitcher.push(np.full((2, 4, 4), 3, np.float32), full_output_locs[1:])
    >>> stitcher.finalize().outputs[0][0].tolist()
    [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, nan, nan, 3.0, 3.0, 3.0, 3.0]
    """

    _index: LocationIndex = attrs.field(alias="full_output_locs", converter=LocationIndex)
    _blend: Any = attrs.field(default="average", converter=as_blend, kw_only=True)
    _output_shape: Sequence[int] | None = attrs.field(default=None, kw_only=True)
    _origin: Sequence[int] | None = attrs.field(default=None, kw_only=True)
    _dtype: Any = attrs.field(default=None, kw_only=True)
    _fill_value: Any = attrs.field(default=0, kw_only=True)
    _on_band: Callable[[slice, BandValues], object] | None = attrs.field(default=None, kw_only=True)
    _save_path: StrPath = attrs.field(default="temp_fullbatch", kw_only=True)
    _memory_threshold: float = attrs.field(default=80, kw_only=True)
    _memory_limit: int | str | None = attrs.field(default=None, kw_only=True)
    _store: StrPath | None = attrs.field(default=None, kw_only=True)
    _bar_type: Any = attrs.field(default=False, kw_only=True, converter=as_progress, alias="progress")
    _chunks: Any = attrs.field(default=None, kw_only=True)
    _shards: Any = attrs.field(default=None, kw_only=True)
    _compressors: Any = attrs.field(default=None, kw_only=True)
    _options: StorageOptions = attrs.field(init=False)
    _written: NDArray[np.bool_] = attrs.field(init=False)
    _specs: Heads[HeadSpec] = attrs.field(init=False, factory=Heads)
    _grid: Grid | None = attrs.field(init=False, default=None)
    _bands: Bands | None = attrs.field(init=False, default=None)
    _rows: FullBatchAccumulator = attrs.field(init=False)  # those of the maps
    _waiting: int | None = attrs.field(init=False, default=None)  # a band that the disk refused
    _result: StitchedMap | None = attrs.field(init=False, default=None)
    _is_closed: bool = attrs.field(init=False, default=False)
    _is_calling: bool = attrs.field(init=False, default=False)
    _process: int = attrs.field(init=False, factory=os.getpid)
    _has_told: bool = attrs.field(init=False, default=False)
    _progress: Progress | None = attrs.field(init=False, default=None)
    _lock: threading.RLock = attrs.field(init=False, factory=threading.RLock)

    def __attrs_post_init__(self) -> None:
        """Work out how large the maps are; they take no room before the first push."""
        self._options = StorageOptions(
            chunks=self._chunks,
            shards=self._shards,
            compressors=self._compressors,
            fill_value=self._fill_value,
            dtype=self._dtype,
        )
        if self._on_band is not None and not callable(self._on_band):
            raise OptionError(
                f"on_band is {self._on_band!r}: it is called with a slice and the values of a band"
            )
        grid = as_grid(self._index.locs, None, self._output_shape, self._origin)
        if not fits_in_memory(_ROW_NBYTES * grid.shape[0], 0, 100):
            raise MemoryLimitError(
                f"a map of {grid.shape[0]} rows: what is known of each does not fit in memory; give a "
                "smaller output_shape, and an origin"
            )
        self._written = np.zeros(len(self._index), dtype=bool)
        if self._store is not None and os.path.lexists(self._store):
            raise ResultExistsError(
                errno.EEXIST, "something is there already, and maps are not resumed", str(self._store)
            )
        self._rows = FullBatchAccumulator(
            np.arange(grid.shape[0])[:, None],
            save_path=self._save_path,
            memory_threshold=self._memory_threshold,
            memory_limit=self._memory_limit,
            on_duplicate="last",  # a band whose push was interrupted is pushed again
            store=self._store,
            fill_value=self._fill_value,
            chunks=self._chunks,
            shards=self._shards,
            compressors=self._compressors,
        )

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which of the N boxes have come: ``(N,)``, read-only."""
        view = self._written.view()
        view.flags.writeable = False
        return view

    @property
    def missing_locs(self) -> NDArray[Any]:
        """The boxes that have not come, in the order of the list: ``(n, K)``."""
        return self._index.locs[~self._written]

    @property
    def nbytes(self) -> int:
        """Bytes of all maps, 0 before the first push."""
        return self._rows.nbytes

    @property
    def open_nbytes(self) -> int:
        """Bytes of memory that bands take which rows are still expected for."""
        return 0 if self._bands is None else self._bands.nbytes

    def push(self, batch_output: BatchOutput, batch_locs: ArrayLike) -> None:
        """Blend a batch of patches into the maps.

        The first push fixes number, names, patch shapes and dtypes of the heads. What is passed is used
        before this returns, and may be reused.

        Parameters
        ----------
        batch_output : tuple, list or dict of ``(n, h, w, C)`` or ``(n, h, w)`` array-like, or one such array
            Patches of each head, as `FullBatchAccumulator.push` takes them; all heads have the same ``h, w``.
        batch_locs : (n, K) array-like of whole numbers
            The box of each patch.

        Raises
        ------
        UnknownLocationError, DuplicateLocationError, LocationError, HeadError, HeadDtypeError, ProcessError
            As `FullBatchAccumulator.push`. At the first push a LocationError also tells of boxes that are
            larger than the patches.
        OptionError
            At the first push: options or weights that do not fit the heads; a ValueError.
        MemoryLimitError
            More bands would have to be open than fit in memory, or wider ones; a MemoryError.
        StorageError
            The disk refused a band that was complete before; it is held, and written by the next call once
            the cause is gone; an OSError.
        ClosedError
            The stitcher was finalized or closed, or a push was interrupted half-way; a ValueError.

        Notes
        -----
        After any of these errors nothing of the batch was taken, but for one: values so large that their sums
        need a wider dtype, with no memory for it, may be met half-way, and end the stitcher. The heads are
        fixed all the same if only memory or disk were missing. What ``on_band`` raises comes out of here,
        too: the band counts as delivered then, and `written` tells whether the batch was taken. An interrupt
        while patches are blended cannot be undone: every later call says so. Threads may push at the same
        time.
        """
        with self._lock:
            self._refuse_if_done("push")
            heads, rows = as_heads(batch_output), as_numbers(self._index.match(batch_locs))
            if not heads:
                raise HeadError("the batch has no heads: push at least one array a batch")
            check_rows(heads, len(rows))
            if not self._specs:
                self._start(heads, Bands)
            heads = check_specs(heads, self._specs)
            self._refuse_repeats(rows)
            self._deliver_waiting()
            self._open_bands.open(rows)
            push = self._open_bands.prepare(rows, heads.values)
            self._open_bands.add(push)  # which says in `_written` that they came
            if self._progress is not None:
                self._progress.show()
            self._tell_if_large()
            self._deliver(self._open_bands.complete(), is_pushing=True)

    def finalize(self) -> StitchedMap:
        """Return the maps, the fill value where nothing came; called again, the same object.

        Raises
        ------
        NothingPushedError
            Nothing was ever pushed, so that the heads are unknown; a ValueError.
        StorageError
            The disk refused the last bands; an OSError. Nothing is lost: make room and call again.
        ClosedError
            The stitcher was closed, or a push was interrupted half-way; a ValueError.
        """
        with self._lock:
            if self._result is None:
                self._refuse_if_done("finalize")
                if self._grid is None or self._bands is None:
                    raise NothingPushedError(
                        "nothing was pushed, so that the heads are unknown: push at least one batch (an "
                        "empty one with the right shapes will do), or close()"
                    )
                self._deliver_waiting()
                self._deliver(self._bands.all_open())
                rows = self._rows.finalize()
                self._end()
                origin = tuple(int(number) for number in self._origin or [0] * self._grid.n_spatial)
                grid = self._grid.of(self._written)
                self._result = StitchedMap(
                    rows.outputs, origin, self._index.locs.copy(), self._written.copy(), rows, grid
                )
            return self._result

    def close(self) -> None:
        """End without maps; after `finalize`, or a second time, do nothing."""
        with self._lock:
            if not self._is_over:
                self._is_closed = True
                if self._process == os.getpid():
                    self._end()
                self._rows.close()

    def __enter__(self) -> Self:
        """Return the stitcher."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finalize if that was not done; after an exception close instead."""
        if exc_value is not None:
            self.close()
        elif not self._is_closed:
            try:
                self.finalize()
            except NothingPushedError:
                self.close()
                raise

    def __del__(self) -> None:
        """Warn of a stitcher that was neither finalized nor closed."""
        if getattr(self, "_rows", None) is None or self._is_over or sys.is_finalizing():
            return
        if self._process != os.getpid():
            return
        self.close()
        warn(
            f"{self!r} was dropped without finalize() or close(): use it as a context manager, or call one "
            "of them",
            ResourceWarning,
            source=self,
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied, or sent to another process."""
        raise ProcessError("a stitcher cannot be copied or sent to another process: push where it is")

    def __repr__(self) -> str:
        """Return coverage, heads and state in one line."""
        state = "finalized" if self._result is not None else "closed" if self._is_closed else "open"
        return (
            f"<Stitcher heads: {len(self._specs)}, patches: {self._written.sum()} of "
            f"{len(self._written)}, {as_text(self.open_nbytes)} in open bands, {state}>"
        )

    def _end(self) -> None:
        """End the threads and the bar."""
        if self._progress is not None:
            self._progress.close()
        if self._bands is not None:
            self._bands.close()

    @property
    def _is_over(self) -> bool:
        return self._result is not None or self._is_closed

    @property
    def _open_bands(self) -> Bands:
        if self._bands is None:
            raise ClosedError("the stitcher has no bands yet")
        return self._bands

    def _push_whole(self, batch_output: BatchOutput, patches: NDArray[np.intp]) -> None:
        """Blend all that will come: each box's patch is a row of arrays in memory, told by its number.

        Raises what `push` does, and leaves the stitcher to be closed then.
        """
        with self._lock:
            heads = as_heads(batch_output)
            bands = self._start(heads, WholeBands)
            for number in bands.blend_all(heads.values, patches):
                self._deliver([number])
                self._written |= bands.are_over(number)
                if self._progress is not None:
                    self._progress.show()
            self._written[:] = True

    def _start(self, heads: Heads[NDArray[Any]], kind: type[_SomeBands]) -> _SomeBands:
        """Fix the heads; nothing has changed if this raises."""
        specs = as_specs(heads, StorageOptions())
        self._options.check_heads(specs.keys)
        n_spatial = count_axes(self._index.locs.shape[1])
        patch = specs.values[0].patch_shape[:n_spatial]
        for i, spec in enumerate(specs):
            if len(spec.patch_shape) not in {n_spatial, n_spatial + 1} or 0 in spec.patch_shape:
                raise HeadError(
                    f"{heads.label(i)} has patch shape {spec.patch_shape}: with locations of "
                    f"{2 * n_spatial} numbers a patch has {n_spatial} axes, or one more for channels; leave "
                    "heads of another kind out, with stitch(batch, heads=[...])"
                )
            if spec.patch_shape[:n_spatial] != patch:
                raise HeadError(
                    f"{heads.label(i)} has patches of {spec.patch_shape[:n_spatial]}, but {heads.label(0)} "
                    f"of {patch}: stitch heads of different size one by one"
                )
        grid = as_grid(self._index.locs, patch, self._output_shape, self._origin)
        window = as_window(self._blend, grid.patch)
        n_overlaps = grid.most_overlaps()
        maps = []
        for key, spec in zip(specs.keys, specs, strict=True):
            storage, asked = self._options.for_head(key, spec.dtype)
            if window.blend == "max" and spec.dtype.kind == "c":
                raise HeadError(f"head {key!r} is complex, which has no largest value: blend its parts")
            dtype = result_dtype(spec.dtype, asked, f"head {key!r}")
            sums = sum_dtype(spec.dtype, window, n_overlaps)
            is_checked = window.is_sum and sums == spec.dtype.newbyteorder("=") and wider(sums) != sums
            maps.append(MapSpec(spec.patch_shape[n_spatial:], dtype, storage.fill_value, sums, is_checked))
        blank = [np.empty((0, *grid.shape[1 : grid.n_spatial], *each.channels), each.dtype) for each in maps]
        self._rows.push(specs.like(blank).as_given(), np.empty((0, 1), dtype=np.intp))
        _logger.info(
            "stitching %d maps of %s in %s", len(maps), grid.shape[: grid.n_spatial], str(self._rows)
        )
        # A map that takes much of the memory may have to leave it: then no band is held in it.
        is_small = fits_in_memory(self._rows.nbytes, 0, tuning.now.small_percent)
        home = self._rows._views if is_small else _nowhere  # noqa: SLF001  its rows are made in their place
        bands = kind(grid, window, maps, self._written, home, as_limit(self._memory_limit))
        self._grid, self._bands = grid, bands
        self._specs = specs
        if self._bar_type is not None:
            n, state = len(self._index), partial(_shown, self._rows, bands, self._written)
            self._progress = Progress(self._bar_type, n, n, state)
        return bands

    def _deliver(self, numbers: list[int], *, is_pushing: bool = False) -> None:
        """Write bands to the maps, and hand them to the callback."""
        for number in numbers:
            self._waiting = number
            try:
                self._write_waiting(number)
            except StorageError as refusal:
                if not is_pushing:
                    raise
                # The batch was taken: the next call tries again, and tells.
                _logger.warning("a band of the map waits for the disk: %s", str(refusal))
                return
            self._hand_over(number)

    def _deliver_waiting(self) -> None:
        """Deliver the band that the disk refused, if there is one."""
        if self._waiting is not None:
            self._deliver([self._waiting])

    def _write_waiting(self, number: int) -> None:
        rows, values = self._open_bands.finish(number)
        self._rows.push(self._specs.like(values).as_given(), np.arange(rows.start, rows.stop)[:, None])

    def _hand_over(self, number: int) -> None:
        self._waiting = None
        try:
            self._call_back(*self._open_bands.finish(number))
        finally:
            self._open_bands.let_go(number)

    def _call_back(self, rows: slice, values: list[NDArray[Any]]) -> None:
        if self._on_band is None:
            return
        views = [value.view() for value in values]
        for view in views:
            view.flags.writeable = False
        self._is_calling = True
        try:
            self._on_band(rows, self._specs.like(views).as_given())
        finally:
            self._is_calling = False

    def _tell_if_large(self) -> None:
        """Warn once when more bands wait than patches in order have open, and take much of the memory."""
        bands = self._open_bands
        is_much = bands.nbytes > 2 * bands.least_nbytes and not fits_in_memory(bands.nbytes, 0, _LARGE)
        if is_much and not self._has_told:
            self._has_told = True
            warn(
                f"{as_text(bands.nbytes)} of the map wait for rows that have not come: push in the order of "
                "the list, and leave out of it what will not come",
                StorageWarning,
            )

    def _refuse_repeats(self, rows: NDArray[np.intp]) -> None:
        repeats = np.flatnonzero(self._written[rows])
        if len(repeats):
            locations = self._index.locs[rows[repeats]]
            raise DuplicateLocationError(
                f"pushed before: {named(repeats, 'batch_locs')}, the first being {locations[0].tolist()}; a "
                "patch that was blended cannot be taken out again: push each location once",
                repeats,
                locations,
            )

    def _refuse_if_done(self, action: str) -> None:
        if self._process != os.getpid():
            raise ProcessError(
                f"the stitcher of process {self._process} cannot {action} in process {os.getpid()}: send the "
                "patches and their locations back, and push them there"
            )
        if self._is_calling:
            raise ClosedError(f"cannot {action} from within on_band: keep what it is given, and do it later")
        if self._bands is not None and self._bands.is_torn:
            raise ClosedError(
                f"cannot {action}: a push was interrupted half-way; close(), and make a new one"
            )
        if self._is_over:
            done = "closed" if self._is_closed else "finalized"
            raise ClosedError(f"cannot {action}: the stitcher was {done}; make a new one")


def _shown(rows: FullBatchAccumulator, bands: Bands, written: NDArray[np.bool_]) -> tuple[int, str]:
    """Return what a progress bar shows."""
    is_in_ram = rows._canvas.zarr_store is None  # noqa: SLF001  what the stitcher's own rows are in
    memory = memory_state(
        (rows.nbytes if is_in_ram else 0) + bands.nbytes, available_memory(), is_in_ram=is_in_ram
    )
    return int(np.count_nonzero(written)), f"{as_text(bands.nbytes)} in open bands, {memory}"


def _nowhere(_start: int, _stop: int) -> None:
    """Say that rows of a map have no place in RAM yet."""

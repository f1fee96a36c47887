"""`Stitcher`: patches in, maps out, band by band."""

from __future__ import annotations

import errno
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import attrs
import numpy as np

from accumulator._core.canvas import Canvas
from accumulator._core.full_batch import hand_over
from accumulator._core.lifecycle import Collector
from accumulator._core.locations import LocationIndex
from accumulator._core.memory import available_memory, fits_in_memory
from accumulator._core.plan import Budget
from accumulator._inputs import tuning
from accumulator._inputs.arguments import as_folder, as_limit, as_store, as_threshold
from accumulator._inputs.heads import Heads
from accumulator._inputs.options import HeadOptions
from accumulator._inputs.text import as_text, named
from accumulator._inputs.validation import as_heads, as_specs, check_rows, check_specs
from accumulator._inputs.warn import warn
from accumulator._pictures.progress import Progress, as_progress, memory_state
from accumulator._stitching.bands import Bands
from accumulator._stitching.delivery import Delivery
from accumulator._stitching.grid import as_grid, count_axes
from accumulator._stitching.heads import map_specs, patch_of
from accumulator._stitching.map import StitchedMap
from accumulator._stitching.weights import as_blend, as_window
from accumulator._stitching.whole import WholeBands
from accumulator._stores.memory.row_numbers import as_numbers
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadError,
    MemoryLimitError,
    NothingPushedError,
    OptionError,
    ResultExistsError,
    StorageWarning,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import DTypeLike, NDArray

    from accumulator._inputs.validation import HeadSpec
    from accumulator.typing import (
        ArrayLike,
        BatchOutput,
        Blend,
        Chunks,
        Compressors,
        FillValue,
        StorageOption,
        StorageOptions,
        StrPath,
    )
    from accumulator.typing import Bands as BandValues

_LARGE: Final = 50
_ROW_NBYTES: Final = 64  # that it takes to know a row of the maps
_SomeBands = TypeVar("_SomeBands", bound=Bands)
_log: Final = logging.getLogger("accumulator")


@attrs.define(eq=False, repr=False, init=False)
class Stitcher(Collector[StitchedMap]):
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

    _name: ClassVar[str] = "stitcher"
    _pushed: ClassVar[str] = "patches"

    _map_rows: NDArray[Any]  # their numbers: what locations are elsewhere
    _blend: Blend | NDArray[np.float64]
    _options: HeadOptions
    _output_shape: Sequence[int] | None
    _origin: Sequence[int] | None
    _on_band: Callable[[slice, BandValues], object] | None
    _memory_limit: int | None
    _bar: Any
    _specs: Heads[HeadSpec] = attrs.field(init=False, factory=Heads)  # none until the first batch
    _delivery: Delivery | None = attrs.field(init=False, default=None)
    _has_told: bool = attrs.field(init=False, default=False)

    def __init__(  # noqa: PLR0913  each is told by its name
        self,
        full_output_locs: ArrayLike,
        *,
        blend: Blend | ArrayLike = "average",
        output_shape: Sequence[int] | None = None,
        origin: Sequence[int] | None = None,
        dtype: StorageOption[DTypeLike | None] = None,
        fill_value: StorageOption[FillValue] = 0,
        on_band: Callable[[slice, BandValues], object] | None = None,
        save_path: StrPath = "temp_fullbatch",
        memory_threshold: float = 80,
        memory_limit: int | str | None = None,
        store: StrPath | None = None,
        progress: bool = False,
        chunks: StorageOption[Chunks] = None,
        shards: StorageOption[Chunks] = None,
        compressors: StorageOption[Compressors] = None,
    ) -> None:
        index, window, bar = LocationIndex(full_output_locs), as_blend(blend), as_progress(progress)
        stored: StorageOptions = {
            "fill_value": fill_value,
            "chunks": chunks,
            "shards": shards,
            "compressors": compressors,
        }
        asked: StorageOptions = {**stored, "dtype": dtype}
        options = HeadOptions(**asked)
        if on_band is not None and not callable(on_band):
            raise OptionError(f"on_band is {on_band!r}: it is called with a slice and the values of a band")
        n_rows = as_grid(index.locs, None, output_shape, origin).shape[0]
        if not fits_in_memory(_ROW_NBYTES * n_rows, 0, 100):
            raise MemoryLimitError(
                f"a map of {n_rows} rows: what is known of each does not fit in memory; give a smaller "
                "output_shape, and an origin"
            )
        budget = Budget(as_folder(save_path), as_threshold(memory_threshold), as_limit(memory_limit))
        path, map_rows = as_store(store), np.arange(n_rows)[:, None]
        if path is not None and os.path.lexists(path):
            raise ResultExistsError(
                errno.EEXIST, "something is there already, and maps are not resumed", str(store)
            )
        # A band whose writing was interrupted is written again; it has the dtype asked for already.
        canvas = Canvas.open(map_rows, budget, "last", HeadOptions(**stored), store=path)
        self.__attrs_init__(
            index,
            canvas,
            np.zeros(len(index), dtype=bool),
            map_rows,
            window,
            options,
            output_shape,
            origin,
            on_band,
            budget.memory_limit,
            bar,
        )
        self._tell_at_exit()

    @property
    def open_nbytes(self) -> int:
        """Bytes of memory that bands take which rows are still expected for."""
        return 0 if self._delivery is None else self._delivery.bands.nbytes

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
            delivery = self._delivery or self._start(heads, Bands)[0]
            heads = check_specs(heads, self._specs)
            self._refuse_repeats(rows)
            delivery.deliver_waiting()
            bands = delivery.bands
            bands.open(rows)
            bands.add(bands.prepare(rows, heads.values))  # which says in `written` that they came
            if self._progress is not None:
                self._progress.show()
            self._tell_if_large(bands)
            delivery.deliver(bands.complete(), is_pushing=True)

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
                if self._delivery is None:
                    raise NothingPushedError(
                        "nothing was pushed, so that the heads are unknown: push at least one batch (an "
                        "empty one with the right shapes will do), or close()"
                    )
                self._delivery.deliver_waiting()
                self._delivery.deliver(self._delivery.bands.all_open())
                rows, grid = hand_over(self._canvas, self._map_rows), self._delivery.bands.grid
                origin = tuple(int(number) for number in self._origin or [0] * grid.n_spatial)
                locs, written = self._index.locs.copy(), self._written.copy()
                self._result = StitchedMap(rows.outputs, origin, locs, written, rows, grid.of(written))
                self._stop()
            return self._result

    def __repr__(self) -> str:
        """Return coverage, heads and state in one line."""
        state = "finalized" if self._result is not None else "closed" if self._is_closed else "open"
        return (
            f"<Stitcher heads: {len(self._specs)}, patches: {self._written.sum()} of "
            f"{len(self._written)}, {as_text(self.open_nbytes)} in open bands, {state}>"
        )

    def _push_whole(self, batch_output: BatchOutput, patches: NDArray[np.intp]) -> None:
        """Blend all that will come: each box's patch is a row of arrays in memory, told by its number.

        Raises what `push` does, and leaves the stitcher to be closed then.
        """
        with self._lock:
            heads = as_heads(batch_output)
            delivery, bands = self._start(heads, WholeBands)
            for number in bands.blend_all(heads.values, patches):
                delivery.deliver([number])
                self._written |= bands.are_over(number)
                if self._progress is not None:
                    self._progress.show()
            self._written[:] = True

    def _start(self, heads: Heads[NDArray[Any]], kind: type[_SomeBands]) -> tuple[Delivery, _SomeBands]:
        """Fix the heads; nothing has changed if this raises."""
        specs = as_specs(heads, HeadOptions())
        self._options.check_heads(specs.keys)
        n_spatial = count_axes(self._index.locs.shape[1])
        grid = as_grid(self._index.locs, patch_of(specs, n_spatial), self._output_shape, self._origin)
        window = as_window(self._blend, grid.patch)
        maps = map_specs(specs, n_spatial, self._options, window, grid.most_overlaps())
        shape, canvas = grid.shape[1:n_spatial], self._canvas
        blank = [np.empty((0, *shape, *each.channels), each.dtype) for each in maps]
        canvas.place(maps.like(blank), slice(0, 0), 0, self._map_rows)
        _log.info(
            "stitching %d maps of %s in %s", len(maps), grid.shape[:n_spatial], canvas.zarr_store or "RAM"
        )
        # A map that takes much of the memory may have to leave it: then no band is held in it.
        home = canvas.views if fits_in_memory(canvas.nbytes, 0, tuning.now.small_percent) else _nowhere
        bands = kind(grid, window, maps.values, self._written, home, self._memory_limit)
        delivery = Delivery(bands, maps, canvas, self._map_rows, self._on_band)
        self._specs, self._delivery = specs, delivery
        if self._bar is not None:
            n, state = len(self._index), partial(_shown, canvas, bands, self._written)
            self._progress = Progress(self._bar, n, n, state)
        return delivery, bands

    def _stop(self) -> None:
        super()._stop()
        if self._delivery is not None:
            self._delivery.bands.close()

    def _tell_if_large(self, bands: Bands) -> None:
        """Warn once when more bands wait than patches in order have open, and take much of the memory."""
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
        super()._refuse_if_done(action)
        if self._delivery is not None and self._delivery.is_calling:
            raise ClosedError(f"cannot {action} from within on_band: keep what it is given, and do it later")
        if self._delivery is not None and self._delivery.bands.is_torn:
            raise ClosedError(
                f"cannot {action}: a push was interrupted half-way; close(), and make a new one"
            )


def _shown(canvas: Canvas, bands: Bands, written: NDArray[np.bool_]) -> tuple[int, str]:
    """Return what a progress bar shows."""
    is_in_ram = canvas.zarr_store is None
    held = (canvas.nbytes if is_in_ram else 0) + bands.nbytes
    memory = memory_state(held, available_memory(), is_in_ram=is_in_ram)
    return int(np.count_nonzero(written)), f"{as_text(bands.nbytes)} in open bands, {memory}"


def _nowhere(_start: int, _stop: int) -> None:
    """Say that rows of a map have no place in RAM yet."""

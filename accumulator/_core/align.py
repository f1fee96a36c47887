"""`prepare_multitask_full_batch`: the one place where alignment is defined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._core.canvas import Canvas
from accumulator._core.locations import LocationIndex
from accumulator._core.plan import Budget
from accumulator._inputs.arguments import as_percent
from accumulator._inputs.validation import (
    as_canvas_nbytes,
    as_heads,
    as_locations,
    as_path,
    check_rows,
)
from accumulator._stores.memory.row_numbers import count
from accumulator.exceptions import HeadError, LocationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike, BatchOutput, RowArray, Rows, StrPath


def prepare_multitask_full_batch(  # noqa: PLR0913, PLR0917  the documented signature
    batch_output: BatchOutput,
    batch_locs: ArrayLike,
    full_output_locs: ArrayLike | LocationIndex,
    output_locs: ArrayLike | None,
    canvas_np: Sequence[RowArray | None] | None = None,
    save_path: StrPath = "temp_fullbatch",
    memory_threshold: float = 80,
    *,
    is_last: bool,
    out: Canvas | None = None,
) -> tuple[list[RowArray], NDArray[Any], NDArray[Any]]:
    """Put a batch of predictions in the order of the canonical locations, with zeros where there are gaps.

    Every row of ``batch_locs`` is matched with its row of ``full_output_locs``, which are consumed from
    the front up to the last match: M = max(match) + 1 rows. Each head gets an array of M zero rows in
    which its predictions are placed at their matches. With ``is_last`` all that remains is consumed.

    Parameters
    ----------
    batch_output : tuple, list or dict of ``(n, *patch_shape)`` array-like, or one such array
        Predictions of each head, usually ``(n, H, W, C)``: bool, integer, float or complex. One array is
        one head. Of a dict, what is returned has the order and not the names.
    batch_locs : (n, K) array-like of whole numbers, or a list of K arrays ``(n,)``
        The location of each prediction, equal by value to a row of ``full_output_locs``. A list of K arrays
        ``(K,)`` is of rows or of columns, whichever are all there; it is refused if both are.
    full_output_locs : (N, K) array-like of whole numbers
        Outstanding locations in canonical order, no two the same. For K = 1 all locations may be 1-d.
    output_locs : (m, K) array-like, or None
        Locations consumed so far.
    canvas_np : list of arrays or None, one a head, optional
        What is accumulated already. Only its ``nbytes`` matter, which count as memory that is taken.
    save_path : path, default "temp_fullbatch"
        Where a result that does not fit in memory goes, in a unique sub-folder, which the caller removes.
    memory_threshold : float, default 80
        Per cent of the available memory that the result and ``canvas_np`` together may take; if they need
        more, every head is a zarr array.
    is_last : bool
        Whether this is the final batch.
    out : optional
        Internal, with an index as ``full_output_locs``: place predictions in this canvas of all rows instead
        of new arrays, and leave gaps as they are. This is how `FullBatchAccumulator` streams: nothing is
        allocated, and the returned locations are views. ``canvas_np``, ``save_path`` and
        ``memory_threshold`` have no effect then.

    Returns
    -------
    full_batch_output : list of ``(M, *patch_shape)`` numpy.ndarray or zarr.Array
        One array a head, in the head's dtype; with ``out`` those of the canvas.
    full_output_locs : (N - M, K) numpy.ndarray
        What is still outstanding.
    output_locs : (m + M, K) numpy.ndarray
        What has been consumed.

    Raises
    ------
    UnknownLocationError
        A location of the batch is not outstanding; a KeyError.
    DuplicateLocationError
        A location comes twice, in the batch or in the list; a ValueError.
    LocationError
        Locations are not whole numbers, differ in their number of columns, or may be rows or columns; a
        ValueError.
    HeadError
        A head does not have one row for each location, or ``canvas_np`` not one entry a head; a ValueError.
    HeadDtypeError
        A head is not numbers; a TypeError.
    OptionError
        ``memory_threshold`` is not a percentage, or ``save_path`` not a local path; a ValueError.
    StorageError
        The disk refused; an OSError.

    See Also
    --------
    FullBatchAccumulator : holds the state, and copies nothing twice.

    Notes
    -----
    No argument is changed, and without ``out`` nothing returned shares memory with one. After an error
    nothing is placed, and no folder is left behind.

    Examples
    --------
    >>> full_output_locs = np.array([[0, 0], [4, 0], [8, 0], [12, 0]])
    >>> scores = np.array([[0.5], [0.25]])
    >>> outputs, remaining, consumed = prepare_multitask_full_batch(
    ...     (scores,), [[8, 0], [0, 0]], full_output_locs, None, is_last=False
    ... )
    >>> outputs[0].tolist()
    [[0.25], [0.0], [0.5]]
    >>> remaining.tolist()
    [[12, 0]]
    >>> consumed.tolist()
    [[0, 0], [4, 0], [8, 0]]
    """
    is_index = isinstance(full_output_locs, LocationIndex)
    index = (
        full_output_locs if isinstance(full_output_locs, LocationIndex) else LocationIndex(full_output_locs)
    )
    heads = as_heads(batch_output)
    may_repeat = out is not None and out.takes_repeats
    # Arrays in a list have always been rows to who calls this by itself.
    rows, has_repeats = index.match_any(batch_locs, may_repeat=may_repeat, prefers_rows=not is_index)
    if heads.values:
        check_rows(heads, count(rows))
    consumed = len(index) if is_last else _last(rows) + 1
    if out is not None:
        if not heads.values:
            raise HeadError("the batch has no heads: push at least one array a batch")
        out.place(heads, rows, consumed, index.locs, has_repeats=has_repeats)
        return out.arrays, index.locs[consumed:], index.locs[:consumed]

    held = as_canvas_nbytes(canvas_np, len(heads))
    budget = Budget(as_path(save_path, "save_path"), as_percent(memory_threshold), held_nbytes=held)
    canvas = Canvas(consumed, budget, is_one_call=True)
    done = _extended(output_locs, index.locs[:consumed])
    try:
        canvas.place(heads, rows, consumed, index.locs)
        canvas.flush()
        canvas.stop()
    except BaseException:
        canvas.close()
        raise
    if canvas.zarr_store is not None:
        canvas.zarr_store.keep()
    return canvas.arrays, index.locs[consumed:].copy(), done


def _last(rows: Rows) -> int:
    """Return the highest row, -1 where there is none."""
    return rows.stop - 1 if isinstance(rows, slice) else int(rows.max())


def _extended(output_locs: ArrayLike | None, more: NDArray[Any]) -> NDArray[Any]:
    """Return the consumed locations with more of them, in the dtype of ``full_output_locs``."""
    if output_locs is None:
        return more.copy()
    done = as_locations(output_locs, "output_locs", more.shape[1])
    with np.errstate(invalid="ignore"):  # it is compared
        cast = done.astype(more.dtype)
    if not np.array_equal(cast, done):
        raise LocationError(
            f"output_locs has values that the dtype of full_output_locs, {more.dtype}, cannot hold: "
            "pass both in one dtype"
        )
    return np.concatenate([cast, more])

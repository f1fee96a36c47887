"""`publish`: one result of what several processes have recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from accumulator._core.full_batch import FullBatch
from accumulator._core.memory import available_memory
from accumulator._inputs.arguments import as_on_duplicate, as_processes
from accumulator._inputs.validation import as_place
from accumulator._stores.ranks.publish import Wish, publish_parts
from accumulator._stores.reading.saved import open_mark
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator.typing import OnDuplicate, StrPath


def publish(
    path: StrPath,
    partial: bool = False,  # noqa: FBT001, FBT002  as it was asked for
    processes: int = 1,
    *,
    on_duplicate: OnDuplicate | None = None,
    leave_out: Sequence[str] = (),
) -> FullBatch:
    """Make one result of what all ranks of a run have recorded.

    Any process may do it, on any machine that sees the store, and again after it was killed at any moment.
    The result is an ordinary store, with the same bytes as from one process. Chunks that one rank has all of
    are renamed, and others put together from what each has. What is published already is only opened.

    Parameters
    ----------
    path : path
        What ranks were given as ``store``.
    partial : bool, default False
        Publish while ranks are still at work: what they have recorded by now. The rest joins the next
        publishing, and the result is not complete until then.
    processes : int, default 1
        So many put chunks together.
    on_duplicate : {"error", "first", "last"}, optional
        What a location does that several ranks have different predictions of, by when each was recorded; that
        of the run by default. Where they are the same, the location is simply there.
    leave_out : sequence of str, default ()
        Names of damaged parts to publish without, as the error about them has them. They stay where they are.

    Returns
    -------
    FullBatch
        The result, with the fill value where nobody recorded anything.

    Raises
    ------
    LockedError
        A rank is still at work, and ``partial`` is False; or another process is publishing; a
        BlockingIOError.
    DuplicateLocationError
        Predictions of a location differ, and ``on_duplicate`` is "error"; a ValueError.
    ResultFormatError
        A part is damaged, or what ranks have in common, or this is no store; a ValueError.
    UnfinishedError
        It is a run of one process that is not complete, and ``partial`` is False; a ResultFormatError.
    NothingPushedError
        No rank has pushed anything, and no heads were declared; a ValueError.
    ResultNotFoundError
        Nothing is at ``path``; a FileNotFoundError.
    StorageError
        The disk refused; an OSError. Nothing is lost: make room, and publish again.
    OptionError
        An argument is not what it can be, or ``leave_out`` names no part, or one that is not damaged; a
        ValueError.
    ProcessError
        One of several ``processes`` has ended; a RuntimeError.

    Warns
    -----
    StorageWarning
        Locations are missing, and a rank has not come to its end; rows that were recorded are damaged; or
        predictions differed, and ``on_duplicate`` decided.

    See Also
    --------
    FullBatchAccumulator : with ``rank`` and ``world_size`` it is one of several.
    stitch : with ``rank`` and ``world_size`` it makes a part of a map.

    Notes
    -----
    An error leaves every row that was recorded where it is, or in the result.

    Examples
    --------
    >>> locs = np.array([[x, 0] for x in range(0, 24, 4)])
    >>> for rank in range(2):  # each a process of its own
    ...     accumulator = FullBatchAccumulator(locs, store="run.zarr", mode="a", rank=rank, world_size=2)
    ...     for row in accumulator.missing_rows():
    ...         accumulator.push({"x": locs[row : row + 1, :1]}, locs[row : row + 1])
    ...     _ = accumulator.finalize()
    >>> publish("run.zarr").outputs["x"][:].ravel().tolist()
    [0, 4, 8, 12, 16, 20]
    """
    root, count = as_place(path, "path"), as_processes(processes)
    policy = None if on_duplicate is None else as_on_duplicate(on_duplicate)
    names = (
        [leave_out] if isinstance(leave_out, str) else list(leave_out) if np.iterable(leave_out) else [None]
    )
    if not all(isinstance(name, str) for name in names):
        raise OptionError(f"leave_out is {leave_out!r}: it is a list of names of parts")
    wish = Wish(bool(partial), count, policy, names, available_memory())
    if not publish_parts(root, wish):
        open_mark(root)  # which tells what is wrong with it
    return FullBatch.load(root, partial=bool(partial))

"""Ray Data: write tasks record what a dataset predicts, and what they have recorded outlives each of them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import publish
from accumulator._inputs.extras import need
from accumulator._inputs.ranks import Rank
from accumulator.exceptions import HeadError, LocationError, LockedError
from accumulator.integrations._begin import OneRun

need("ray.data", "ray")
from ray.data import Datasink  # noqa: E402  behind an error that names the extra
from ray.data.block import BlockAccessor  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from accumulator.typing import ArrayLike, StrPath

__all__ = ["AccumulatorDatasink"]

_PATIENCE_SECONDS: Final = 180.0  # a part of a machine that was lost counts as alive for two minutes
_PAUSE_SECONDS: Final = 1.0


class AccumulatorDatasink(OneRun, Datasink):
    """Writes the predictions of a Ray dataset to one store, and publishes them.

    Rows have a column with the location, and a column for each head. Each write task records a part of its
    own: all of it when it returns, and every ``checkpoint_interval`` what it has by then. When a worker is
    killed, Ray tries its task again; what was recorded stays, and the same rows again do no harm. A job that
    failed, however that was, goes on with a sink like it, and a dataset of the rows that are missing.

    Parameters
    ----------
    locs : (N, K) array-like of whole numbers
        The canonical list, as for `FullBatchAccumulator`.
    store : path
        Where the result will be: all machines have it at this path. Nothing is there yet, or the same run.
    loc : str, default "loc"
        The column of locations: ``(n, K)`` whole numbers in a block of n rows, ``(n,)`` where K is 1.
    heads : sequence of str, optional
        The columns that are heads, ``(n, *patch_shape)``; all but ``loc`` by default. They keep their names.
    **options
        Others of `FullBatchAccumulator`: ``dtype``, ``fill_value``, ``chunks``, ``shards``, ``compressors``,
        ``resume_token``, ``checkpoint_interval``, ``memory_limit`` (of a task). ``on_duplicate`` is "first"
        by default: a task that is tried again, on another GPU say, may differ in the last bit.

    Raises
    ------
    MissingExtraError
        At import: Ray Data is not installed, the extra ``ray``; an ImportError.
    LocationError
        ``locs`` are not whole numbers; in a task also: blocks have no column ``loc``. A ValueError.
    OptionError
        An option cannot be given here, or ``store`` is not a local path; a ValueError.

    Notes
    -----
    `ray.data.Dataset.write_datasink` raises what a task or publishing raised; what was recorded is in the
    store then. A part costs a tenth of a second, half of one for a million locations: prefer large blocks.

    Examples
    --------
    >>> sink = AccumulatorDatasink(locs, "run.zarr")  # doctest: +SKIP
    >>> todo = ray.data.from_numpy(locs[sink.missing_rows()])  # all at first, then what a job left
    >>> todo.map_batches(Model, concurrency=4).write_datasink(sink)  # gives {"loc": ..., "mask": ...}
    >>> sink.result.outputs["mask"]
    """

    def __init__(
        self,
        locs: ArrayLike,
        store: StrPath,
        *,
        loc: str = "loc",
        heads: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self._take(locs, store, options)
        self._loc, self._heads = loc, None if heads is None else list(heads)

    def on_write_start(self, schema: Any = None) -> None:
        """Refuse on the driver what each task would refuse: errors are those of `FullBatchAccumulator`."""
        del schema
        self._begin(Rank(0, 1, is_of_pool=True)).close()

    def write(self, blocks: Iterable[Any], ctx: Any) -> int:
        """Record all rows of a task, and return their number; after an error what came before is recorded."""
        n_tasks = os.cpu_count() or 1  # at once on this machine, at most: they share its memory
        count = 0
        who = Rank(ctx.task_idx % n_tasks, n_tasks, n_tasks, is_of_pool=True)
        with self._begin(who) as accumulator:
            for block in blocks:
                rows = BlockAccessor.for_block(block)
                if rows.num_rows():  # others may have no columns
                    accumulator.push(*self._heads_and_locs(rows.to_numpy()))
                    count += rows.num_rows()
        return count

    def on_write_complete(self, write_result: Any) -> None:
        """Publish what tasks have recorded; the errors are those of `accumulator.publish`."""
        del write_result
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                publish(self._store).close()
            except LockedError:  # of a task that Ray has given up
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def _heads_and_locs(self, columns: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if self._loc not in columns:
            raise LocationError(f"blocks have no column {self._loc!r} for locations, but {sorted(columns)}")
        # An object for each row is what lists become: they are numbers, unless push tells otherwise.
        told = {name: list(data) if data.dtype == object else data for name, data in columns.items()}
        locs = told.pop(self._loc)
        if isinstance(locs, list):  # of rows, which arrays in a list might not be
            locs = [row.tolist() if isinstance(row, np.ndarray) else row for row in locs]
        heads = list(told) if self._heads is None else self._heads
        missing = [name for name in heads if name not in told]
        if missing:
            raise HeadError(f"blocks have no columns {missing}, but {sorted(columns)}")
        return {name: told[name] for name in heads}, locs

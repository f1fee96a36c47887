"""Dask: workers of a `distributed` cluster predict, and what they have recorded outlives each of them."""

from __future__ import annotations

import contextlib
import pickle
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatch, FullBatchAccumulator, publish
from accumulator._inputs.extras import need
from accumulator._inputs.ranks import Rank
from accumulator._inputs.validation import as_locations, as_path
from accumulator._pictures.progress import as_progress
from accumulator._stores.memory.threads import n_cores
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.share import block_rows
from accumulator._stores.ranks.shared import SharedRun
from accumulator.exceptions import ClosedError, OptionError, ResultNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike, BatchOutput, DeclaredHeads, StrPath

_RANK: Final[dict[str, Any]] = {"mode": "a", "rank": Rank(0, 1, n_cores(), is_of_pool=True)}
_LOCK: Final = threading.Lock()
_PARTS: Final[
    dict[str, tuple[SharedRun, FullBatchAccumulator, Any] | None]
] = {}  # by call; None if it has ended


def accumulate(  # noqa: PLR0913  each is told by its name
    client: Any,
    predict: Callable[[NDArray[Any]], BatchOutput],
    locs: ArrayLike,
    store: StrPath,
    *,
    batch_size: int,
    heads: DeclaredHeads | None = None,
    mask: ArrayLike | None = None,
    progress: bool = False,
    **options: Any,
) -> FullBatch:
    """Predict all locations on a cluster, block by block, and publish the result.

    A block that was done is recorded. When a worker is killed, others do what it had not recorded, and no
    more; so does the next call for the same store, however this one ended.

    Parameters
    ----------
    client : distributed.Client
        Its workers need this library, and ``store`` at the same path.
    predict : callable
        Takes ``(n, K)`` locations, n at most ``batch_size``, and returns what `FullBatchAccumulator.push`
        takes. Unpickled once a worker process, for all its threads: load a model at the first call.
    locs, store, heads
        As for `FullBatchAccumulator`. A call ends an earlier one of the same cluster for a store.
    mask : (N,) array_like of bool, optional
        Which locations to predict; the others are left out. Default: all.
    progress : bool, default False
        Show a bar of the rows that are recorded. Needs tqdm, the extra ``progress``.
    **options
        ``dtype``, ``fill_value``, ``chunks``, ``shards``, ``compressors``, ``on_duplicate``, ``resume_token``
        and ``checkpoint_interval`` of `FullBatchAccumulator`.

    Returns
    -------
    FullBatch
        The published result: ``(N, *patch_shape)`` a head.

    Raises
    ------
    MissingExtraError
        distributed is not installed, the extra ``dask``; an ImportError.
    OptionError
        ``batch_size`` is not a whole number of at least 1, or ``mask`` not a bool a location; a ValueError.
    ResultNotFoundError
        A worker does not see ``store``; a FileNotFoundError.
    LockedError
        All is recorded, but a worker that was lost may live on, elsewhere: call again after two minutes; a
        BlockingIOError.
    Exception
        What ``predict`` raised; what `FullBatchAccumulator` and `publish` raise.

    Notes
    -----
    After an error or an interrupt all that was pushed is recorded, and workers hold nothing.
    """
    distributed, bar = need("distributed", "dask"), as_progress(progress)
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}: it is a number of locations, at least 1")
    locs = as_locations(locs, "locs")
    wanted = np.ones(len(locs), bool) if mask is None else np.asarray(mask)
    if wanted.dtype != np.bool_ or wanted.shape != (len(locs),):
        raise OptionError(f"mask is {wanted.dtype} {wanted.shape}: it is bool ({len(locs)},), one a location")
    place, name = Path(as_path(store, "store")).absolute(), f"accumulate-{uuid.uuid4().hex}"
    with FullBatchAccumulator(locs, store=place, heads=heads, **_RANK, **options):  # nobody publishes
        client.run(_end, place)  # what is left of a client that was killed
        shared = _shared(place)
        done = recorded_rows(shared)
        n_done, done = int((done & wanted).sum()), done | ~wanted
        size = block_rows(len(done), shared.terms.unit_rows, max(1, sum(client.nthreads().values())))
        blocks = {f"{name}-{row}": (row, done[row : row + size]) for row in range(0, len(done), size)}
        blocks = {key: block for key, block in blocks.items() if not block[1].all()}
        # Bytes, as a worker may get them from another, whose `predict` has loaded its model. From a task, not
        # scattered: it is done again where all workers that had them are lost.
        code = client.submit(bytes, need("cloudpickle", "dask").dumps(predict), pure=False)
        shown = bar and bar(total=int(wanted.sum()), initial=n_done, desc="recorded", unit=" rows")
        about = {"name": name, "store": place, "most": int(batch_size), "options": options, "code": code}
        tasks = client.map(_work, list(blocks.values()), key=list(blocks), **about)
        left = {future.key: future for future in tasks}
        try:
            for future, n in distributed.as_completed(tasks, with_results=True):
                left.pop(future.key).release()  # or it is done again where its worker is lost
                if shown:
                    shown.update(n)
        finally:
            with contextlib.suppress(Exception):  # an error matters more; without one all is recorded
                client.cancel(list(left.values()))
                client.run(_end, place, name, on_error="ignore")
                client.run_on_scheduler(  # which need not have this library
                    lambda dask_scheduler: [*map(dask_scheduler.extensions["events"].event_clear, blocks)]
                )
            if shown:
                shown.close()
    return publish(place)


def to_dask(batch: FullBatch) -> list[Any] | dict[str, Any]:
    """Return the heads of a result as dask arrays, as `FullBatch.to_dask` does.

    Parameters
    ----------
    batch : FullBatch
        Saved or published, if processes are to compute: that is an UnsavedError otherwise.

    Returns
    -------
    list or dict of ``(N, *patch_shape)`` dask.array.Array
        As ``batch.outputs``; chunks are those stored, or shards.

    Raises
    ------
    MissingExtraError
        dask is not installed, the extra ``dask``; an ImportError. Computing may be a DamagedError.
    """
    return batch.to_dask()


def _shared(store: Path) -> SharedRun:
    shared = SharedRun.find(store)
    if shared is None:
        raise ResultNotFoundError(f"{store} has no run: workers need the store at the client's path")
    return shared


def _work(block: Any, *, name: str, store: Path, most: int, options: Any, code: bytes) -> int:  # noqa: PLR0913
    """Record what is to be done of a block; return how many rows that is."""
    first, done = block
    n = int(np.count_nonzero(~done))
    with _LOCK:
        if name not in _PARTS:
            shared = _shared(store)
            accumulator = FullBatchAccumulator(shared.locations(), store=store, **_RANK, **options)
            _PARTS[name] = shared, accumulator, pickle.loads(code)  # noqa: S301  the client's
        part = _PARTS[name]
    if part is None:
        raise ClosedError(f"this call has ended, or another has begun for {store}")
    shared, accumulator, predict = part
    began = need("distributed", "dask").Event(f"{name}-{first}")
    if began.is_set():  # by a worker that was lost. To look each time would take longer with every task
        done = done | (recorded_rows(shared) | accumulator.written)[first : first + len(done)]
    began.set()
    missing = first + np.flatnonzero(~done)
    for start in range(0, len(missing), most):
        locs = np.array(shared.locations()[missing[start : start + most]])
        accumulator.push(predict(locs), locs)
    accumulator.flush()
    return n


def _end(store: Path, name: str = "") -> None:
    """End this process's parts of a store; a task of these calls that comes too late begins none."""
    with _LOCK:
        ending = {key: part for key, part in _PARTS.items() if part is not None and part[0].root == store}
        _PARTS.update(dict.fromkeys([*ending, name]))
    for _, accumulator, _ in ending.values():
        with accumulator:
            accumulator.finalize()

"""The Dask engine: what is recorded is not predicted again, whoever is killed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import uuid
from functools import partial
from multiprocessing import resource_tracker

import numpy as np
import pytest
from helpers.oracle import grid

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.shared import SharedRun
from accumulator.exceptions import (
    ClosedError,
    MissingExtraError,
    OptionError,
    ResultNotFoundError,
    StorageWarning,
)
from accumulator.integrations import dask as engine
from accumulator.integrations.dask import accumulate, to_dask

N = 90
LOCS = grid(N)
HEADS = {"map": ((2, 3), "f4"), "score": ((1,), "i8")}
OPTIONS = {"batch_size": 3, "checkpoint_interval": 0, "heads": HEADS, "chunks": 7}


def values(locs):
    """Return what heads hold at locations."""
    rows = np.array([LOCS.tolist().index(loc) for loc in np.asarray(locs).tolist()], int)
    return {
        "map": (1 + 6 * rows[:, None] + np.arange(6)).reshape(-1, 2, 3).astype("f4"),
        "score": 1 + rows[:, None],
    }


def predict(folder, then, locs):
    """Note which rows were asked for, and which of them were recorded already; ``then`` is done once."""
    assert 0 < len(locs) <= OPTIONS["batch_size"]
    shared = SharedRun.find(folder / "run.zarr")
    rows = values(locs)["score"].ravel() - 1
    again = rows[recorded_rows(shared)[rows]]
    (folder / f"{uuid.uuid4().hex}.rows").write_text(f"{rows.tolist()} {again.tolist()}")
    if then is not None and 40 in rows:
        try:
            (folder / "once").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            then()
    return values(locs)


def die():
    """End as the kernel ends what takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    """Raise what nobody else does."""
    raise ZeroDivisionError("of the model")


def asked(folder):
    """Return how often each row was predicted; none when it was recorded."""
    counts = np.zeros(N, int)
    for path in folder.glob("*.rows"):
        rows, again = path.read_text().removesuffix("]").split("] [")
        assert not again, "what was recorded was predicted again"
        counts[[int(row) for row in rows[1:].split(",")]] += 1
    return counts


def check(batch):
    """Compare a result with what heads hold."""
    assert batch.written.all()
    for name, expected in values(LOCS).items():
        assert batch.outputs[name].dtype == expected.dtype
        np.testing.assert_array_equal(batch.outputs[name][:], expected)


@pytest.fixture(scope="module", autouse=True)
def _processes_are_watched():
    """Start what watches over processes, whose pipe stays open for good, before anything is counted."""
    resource_tracker.ensure_running()


@pytest.fixture
def cluster():
    """Return what starts a cluster of processes, and a client of it."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    opened = []

    def start(n_workers=2, threads=1):
        cluster = distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=threads, processes=True, dashboard_address=None
        )
        opened.append(cluster)
        opened.append(distributed.Client(cluster))
        return opened[-1]

    yield start
    for each in reversed(opened):
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_killed_worker_costs_only_what_it_had_not_recorded(cluster, tmp_path, n_workers):
    """Killed within a block: what it had done, and its batches before, are not predicted again."""
    client = cluster(n_workers)
    check(accumulate(client, partial(predict, tmp_path, die), LOCS, tmp_path / "run.zarr", **OPTIONS))
    counts = asked(tmp_path)
    assert (tmp_path / "once").exists()
    assert counts.min() == 1
    assert counts[40] == 2
    assert counts.sum() <= N + 2 * OPTIONS["batch_size"]  # what both workers had just come to, at most
    assert (
        client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.extensions["events"]._events)) == 0
    )


@pytest.mark.slow
def test_an_error_is_what_predict_raised_and_the_next_call_goes_on(cluster, tmp_path):
    """Its parts are closed, so that what came before is recorded; in the end nothing is left to predict."""
    client, store = cluster(threads=2), tmp_path / "run.zarr"
    with pytest.raises(ZeroDivisionError, match="of the model"):
        accumulate(client, partial(predict, tmp_path, fail), LOCS, store, **OPTIONS)
    recorded = recorded_rows(SharedRun.find(store))
    assert 0 < recorded.sum() < N
    check(accumulate(client, partial(predict, tmp_path, fail), LOCS, store, **OPTIONS))
    counts = asked(tmp_path)
    assert (counts[recorded] == 1).all()
    assert counts.sum() <= N + 4 * OPTIONS["batch_size"]  # what each thread had just come to
    check(accumulate(client, fail, LOCS, store, **OPTIONS))  # which nobody calls any more


def _run(address, folder):
    import distributed  # noqa: PLC0415  where it is there

    with distributed.Client(address) as client:
        accumulate(
            client, partial(predict, folder, partial(time.sleep, 1)), LOCS, folder / "run.zarr", **OPTIONS
        )


@pytest.mark.slow
def test_a_killed_client_leaves_what_the_next_one_goes_on_with(cluster, tmp_path):
    """Its workers live on, with parts that the next call ends."""
    client = cluster()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(client.scheduler.address, tmp_path)
    )
    process.start()
    while not (tmp_path / "once").exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    process.close()
    check(accumulate(client, partial(predict, tmp_path, None), LOCS, tmp_path / "run.zarr", **OPTIONS))
    asked(tmp_path)


@pytest.mark.slow
def test_heads_that_nobody_declared_and_a_result_on_the_cluster(cluster, tmp_path, capsys, monkeypatch):
    """Threads share a process's part, also if srun started it; a lambda is sent; workers read the result."""
    pytest.importorskip("tqdm")
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    client = cluster(threads=3)
    batch = accumulate(
        client, lambda locs: locs[:, :2] * 0.5, LOCS, tmp_path / "run.zarr", batch_size=64, progress=True
    )
    np.testing.assert_array_equal(batch.outputs[0][:], LOCS[:, :2] * 0.5)
    assert f"{N}/{N}" in capsys.readouterr().err
    lazy = to_dask(batch)[0]
    assert client.compute(lazy.sum()).result() == (LOCS[:, :2] * 0.5).sum()


@pytest.mark.slow
def test_only_what_a_mask_has_is_predicted(cluster, tmp_path, capsys):
    """Once, though a worker was killed; another mask adds to what is there."""
    client, store, mask = cluster(), tmp_path / "run.zarr", np.arange(N) % 3 == 1
    then = {"mask": mask.tolist(), **OPTIONS}
    with pytest.warns(StorageWarning, match="come to its end"):
        batch = accumulate(client, partial(predict, tmp_path, die), LOCS, store, progress=True, **then)
    assert (tmp_path / "once").exists()
    np.testing.assert_array_equal(batch.written, mask)
    np.testing.assert_array_equal(batch.outputs["score"][:], values(LOCS)["score"] * mask[:, None])
    assert f"{N // 3}/{N // 3}" in capsys.readouterr().err
    assert not asked(tmp_path)[~mask].any()
    check(accumulate(client, partial(predict, tmp_path, None), LOCS, store, **OPTIONS))
    assert asked(tmp_path)[~mask].max() == 1


@pytest.mark.slow
def test_a_slide_without_tissue(cluster, tmp_path):
    """No location, and so no task."""
    batch = accumulate(cluster(1), fail, LOCS[:0], tmp_path / "run.zarr", **OPTIONS)
    assert {name: head.shape for name, head in batch.outputs.items()} == {"map": (0, 2, 3), "score": (0, 1)}


@pytest.mark.parametrize(
    "storage", [{"chunks": 7}, {"shards": 8, "chunks": 2}, {"chunks": {"map": (4, 1, 3)}}]
)
def test_dask_arrays_hold_what_heads_do(tmp_path, storage):
    """Chunked as they are stored, named as they are, and readable where they are sent."""
    pytest.importorskip("distributed", reason="needs the extra dask")
    with FullBatchAccumulator(LOCS, store=tmp_path / "run.zarr", **storage) as accumulator:
        accumulator.push(values(LOCS), LOCS)
    batch = FullBatch.load(tmp_path / "run.zarr")
    lazy = to_dask(batch)
    assert list(lazy) == list(HEADS)
    for name, array in lazy.items():
        stored = batch.outputs[name]
        assert array.chunksize == (stored.shards or stored.chunks)
        assert (array.shape, array.dtype) == (stored.shape, stored.dtype)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(array)).compute(), values(LOCS)[name])  # noqa: S301


def test_dask_arrays_of_a_result_in_ram(tmp_path):
    """A list where heads have no names."""
    pytest.importorskip("distributed", reason="needs the extra dask")
    with FullBatchAccumulator(LOCS, save_path=tmp_path) as accumulator:
        accumulator.push(list(values(LOCS).values()), LOCS)
    lazy = to_dask(accumulator.finalize())
    for array, expected in zip(lazy, values(LOCS).values(), strict=True):
        np.testing.assert_array_equal(array.compute(), expected)


def test_without_the_extra_it_says_which(monkeypatch, tmp_path):
    """Nothing is made then."""
    for name in ("dask.array", "distributed"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"\[dask\]"):
        accumulate(None, values, LOCS, tmp_path / "run.zarr", batch_size=3)
    with pytest.raises(MissingExtraError, match=r"\[dask\]"):
        to_dask(FullBatch([], LOCS, np.zeros(N, bool)))
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, None])
def test_a_batch_has_a_location_at_least(tmp_path, batch_size):
    """What else is given is refused before anything is made."""
    pytest.importorskip("distributed", reason="needs the extra dask")
    with pytest.raises(OptionError, match="batch_size"):
        accumulate(None, values, LOCS, tmp_path / "run.zarr", batch_size=batch_size)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("mask", [[0, 1, 2], np.ones(N), np.ones(N + 1, bool), np.ones((N, 1), bool)])
def test_a_mask_is_one_bool_a_location(tmp_path, mask):
    """What else is given is refused before anything is made."""
    pytest.importorskip("distributed", reason="needs the extra dask")
    with pytest.raises(OptionError, match=r"mask is .*: it is bool \(90,\)"):
        accumulate(None, values, LOCS, tmp_path / "run.zarr", mask=mask, **OPTIONS)
    assert not (tmp_path / "run.zarr").exists()


def test_a_task_that_comes_too_late_or_sees_no_store_begins_nothing(tmp_path):
    """A thread cannot be stopped, and may come back when its call is over."""
    store, name = tmp_path / "run.zarr", uuid.uuid4().hex
    work = partial(engine._work, (0, np.zeros(5, bool)), name=name, store=store, most=3, options={}, code=b"")
    with pytest.raises(ResultNotFoundError, match=r"run\.zarr"):
        work()
    engine._end(store, name)
    with pytest.raises(ClosedError, match="ended"):
        work()
    assert not store.exists()

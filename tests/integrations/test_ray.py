"""Ray Data on two cores: workers, actors and whole jobs are killed, and each row is right in the end.

Ray keeps files and processes of its own: each job is a process, which is this file, run as a script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from accumulator import FullBatch, publish
from accumulator.exceptions import (
    HeadError,
    LocationError,
    MissingExtraError,
    OptionError,
    ResumeError,
    UnfinishedError,
)

HAS_RAY = find_spec("ray") is not None
N = 97
LOCS = np.array([[7 * row, 3, 7 * row + 7, 10] for row in range(N)])
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "SLURM_PROCID": "3",  # of the job that Ray runs in
    "SLURM_NTASKS": "4",
}


def expected(locs):
    """Return what is predicted: no two values are the same."""
    first = (np.asarray(locs)[:, 0] * 8).astype("f4")
    return {
        "map": first[:, None, None] + np.arange(6, dtype="f4").reshape(2, 3),
        "score": first.astype("i4") + 1,
    }


class Model:
    """Predicts, and dies or fails where a job says so, once."""

    def __init__(self, plan):
        self.plan = plan

    def __call__(self, batch):
        """Predict a batch, note which, and meet its fate."""
        locs = batch["data"] if "data" in batch else np.stack(list(batch["loc"]))
        with Path("predicted").open("a") as file:  # in one write, which processes do not cut
            file.write("".join(f"{row}\n" for row in locs[:, 0] // 7))
        if self.plan["fate"] and self.plan["at"] in locs[:, 0] // 7:
            with contextlib.suppress(FileExistsError):
                Path("met").touch(exist_ok=False)
                if self.plan["fate"] == "fail":
                    raise ArithmeticError("the model fails")
                os.kill(
                    self.plan["driver"] if self.plan["fate"] == "kill job" else os.getpid(), signal.SIGKILL
                )
                signal.pause()
        image = np.zeros((len(locs), 4))
        given = [loc.tolist() for loc in locs] if self.plan["lists"] else locs
        return {self.plan["loc"]: given, "image": image, **expected(locs)}


def job(plan):
    """Do what a plan says, as a user's script would."""
    import ray  # noqa: PLC0415  this process alone needs it

    from accumulator.integrations.ray import AccumulatorDatasink  # noqa: PLC0415  the same

    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    ray.data.DataContext.get_current().target_max_block_size = 800  # a task has many blocks
    sink = AccumulatorDatasink(
        LOCS,
        "run.zarr",
        loc=plan["loc"],
        heads=["map", "score"],
        checkpoint_interval=0,
        chunks=8,
        **plan["more"],
    )
    todo = sink.missing_rows()
    Path("todo").write_text(json.dumps(todo.tolist()))
    if plan["lists"]:
        rows = ray.data.from_items(
            [{"loc": [int(x) for x in loc]} for loc in LOCS[todo]], override_num_blocks=3
        )
    else:
        rows = ray.data.from_numpy(np.array_split(LOCS[todo], min(4, len(todo) or 1)))
    plan |= {"driver": os.getpid()}
    if plan["actors"]:
        rows = rows.map_batches(Model, fn_constructor_args=(plan,), batch_size=5, concurrency=2)
    else:
        rows = rows.map_batches(Model(plan), batch_size=5)
    rows.write_datasink(sink)
    assert sink.result.written.all()
    assert not len(sink.missing_rows())


def run(*, fate=None, at=65, actors=False, lists=False, loc="loc", **more):
    """Run a job to its end, whatever that is; return its status, errors, and the rows that it predicted."""
    plan = {"fate": fate, "at": at, "actors": actors, "lists": lists, "loc": loc, "more": more}
    Path("predicted").write_text("")
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(plan)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert fate is None or Path("met").exists()
    return done.returncode, done.stderr, [int(row) for row in Path("predicted").read_text().split()]


def check():
    """Every row of the result is right."""
    with FullBatch.load("run.zarr") as batch:
        assert batch.written.all()
        np.testing.assert_array_equal(batch.output_locs, LOCS)
        assert list(batch.outputs) == ["map", "score"]
        for name, wanted in expected(LOCS).items():
            assert batch.outputs[name].dtype == wanted.dtype
            np.testing.assert_array_equal(batch.outputs[name][:], wanted)
    assert not Path("run.zarr", "parts").exists()


needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray Data: pip install '.[ray]'")


def with_ray(test):
    """Mark a test that starts Ray."""
    return needs_ray(pytest.mark.slow(test))


@pytest.mark.skipif(HAS_RAY, reason="Ray Data is installed")
def test_the_extra_is_named():
    """Without Ray Data the import tells what to install."""
    with pytest.raises(MissingExtraError, match=r"full-batch-accumulator\[ray\]"):
        importlib.import_module("accumulator.integrations.ray")


def sink_of(**options):
    """Return a sink; no cluster is needed to make one."""
    return importlib.import_module("accumulator.integrations.ray").AccumulatorDatasink(
        LOCS, "run.zarr", **options
    )


def blocks_of(rows):
    """Return blocks of rows as pandas has them, an empty one between them."""
    pandas = importlib.import_module("pandas")
    tables = [{"loc": LOCS[some], **expected(LOCS[some])} for some in np.array_split(rows, 2)]
    frames = [pandas.DataFrame({name: list(data) for name, data in table.items()}) for table in tables]
    return [frames[0], pandas.DataFrame(), frames[1]]


@needs_ray
def test_a_task_that_is_done_again_in_one_process():
    """Rows that a process has recorded already do no harm, and each task ends its part."""
    sink, task = sink_of(), SimpleNamespace(task_idx=0)
    assert len(sink.missing_rows()) == N
    sink.on_write_start()
    rows = np.arange(N)
    assert sink.write(blocks_of(rows[:40]), task) == 40
    assert sink.write(blocks_of(rows[:40]), task) == 40
    assert sink.missing_rows().tolist() == list(range(40, N))
    with pytest.raises(UnfinishedError):
        _ = sink.result
    assert sink.write(blocks_of(rows[40:]), SimpleNamespace(task_idx=1)) == N - 40
    sink.on_write_complete(None)
    check()


@needs_ray
def test_as_many_rows_as_columns_are_rows():
    """A block says which are its rows, also where its columns would be locations, too."""
    points, pandas = np.array([[0, 1], [2, 3], [0, 2], [1, 3]]), importlib.import_module("pandas")
    sink = importlib.import_module("accumulator.integrations.ray").AccumulatorDatasink(points, "run.zarr")
    frame = pandas.DataFrame({"loc": list(points[:2]), "score": [0.5, 0.25]})
    assert sink.write([frame], SimpleNamespace(task_idx=0)) == 2
    assert sink.missing_rows().tolist() == [2, 3]


@needs_ray
def test_what_is_refused():
    """Errors name the column, and what came before in a task is recorded."""
    task = SimpleNamespace(task_idx=0)
    with pytest.raises(OptionError, match="rank, world_size cannot be given here"):
        sink_of(rank=0, world_size=1)
    with pytest.raises(LocationError, match="no column 'place' for locations, but"):
        sink_of(loc="place").write(blocks_of(np.arange(4)), task)
    with pytest.raises(HeadError, match=r"no columns \['mask'\], but"):
        sink_of(heads=["map", "mask"]).write(blocks_of(np.arange(4)), task)
    first, _, second = blocks_of(np.arange(8))
    with pytest.raises(LocationError, match="no column 'loc'"):
        sink_of().write([first, second.drop(columns="loc")], task)
    assert sink_of().missing_rows().tolist() == list(range(4, N))
    other = importlib.import_module("accumulator.integrations.ray").AccumulatorDatasink(
        LOCS[::-1], "run.zarr"
    )
    with pytest.raises(ResumeError, match="other locations"):
        other.missing_rows()


@with_ray
@pytest.mark.parametrize("actors", [False, True])
def test_all_rows(actors):
    """Tasks and actors predict each row once; nothing is left to do for another job."""
    status, errors, predicted = run(actors=actors)
    assert status == 0, errors
    assert sorted(predicted) == list(range(N))
    check()


@with_ray
def test_lists_and_another_column():
    """Locations may be lists, and their column may have any name."""
    status, errors, _ = run(lists=True, loc="where")
    assert status == 0, errors
    check()


@with_ray
@pytest.mark.parametrize("actors", [False, True])
def test_a_killed_worker(actors):
    """Ray tries again what a killed worker had, and no row is there twice or missing."""
    status, errors, predicted = run(fate="kill worker", actors=actors)
    assert status == 0, errors
    assert len(predicted) > N
    check()


@with_ray
@pytest.mark.parametrize("fate", ["fail", "kill job"])
def test_a_job_that_fails_goes_on(fate):
    """Another job reads what nobody has recorded, and predicts no other row."""
    status, errors, _ = run(fate=fate)
    assert status != 0
    assert fate != "fail" or "the model fails" in errors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        publish("run.zarr", partial=True).close()
    status, errors, predicted = run(fate=None)
    assert status == 0, errors
    assert 0 < len(predicted) < N
    assert sorted(predicted) == json.loads(Path("todo").read_text())
    check()
    status, errors, predicted = run()  # there is nothing left to do
    assert (status, predicted) == (0, []), errors
    check()


@with_ray
def test_another_run_is_refused_before_a_task():
    """A store of another token is refused by the driver, and stays as it is."""
    status, errors, _ = run(resume_token="a")
    assert status == 0, errors
    status, errors, _ = run(resume_token="b")
    assert status != 0
    assert "ResumeError" in errors
    assert "resume_token is 'a'" in errors
    check()


if __name__ == "__main__":
    job(json.loads(sys.argv[1]))

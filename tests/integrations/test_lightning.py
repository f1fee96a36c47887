"""Lightning in two processes: each row is right, whatever samplers repeat and whoever is killed.

Lightning starts the script again for each process: it is this file, run by itself.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from accumulator import FullBatch
from accumulator.exceptions import (
    LocationError,
    MissingExtraError,
    OptionError,
    ResumeError,
    UnfinishedError,
)

HAS_LIGHTNING = find_spec("lightning") is not None
N = 53  # odd: a sampler that gives both processes as many repeats a row
LOCS = np.array([[7 * row, 3, 7 * row + 7, 10] for row in range(N)])
SLURM = (
    ("SLURM_JOB_NAME", "bash"),
    ("SLURM_NTASKS", "4"),
    ("SLURM_PROCID", "3"),
)  # an interactive job, which is not meant


def expected(locs):
    """Return what is predicted: no two values are the same."""
    first = (np.asarray(locs)[:, 0] * 8).astype("f4")
    return {
        "map": first[:, None, None] + np.arange(6, dtype="f4").reshape(2, 3),
        "score": first.astype("i4") + 1,
    }


if __name__ in {"__main__", "__mp_main__"}:  # only the processes that are started need it
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, Subset
    from torch.utils.data.distributed import DistributedSampler

    from accumulator.integrations.lightning import AccumulatorWriter

    class Model(LightningModule):
        """Predicts, and dies or fails where a plan says so."""

        def __init__(self, plan):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.plan = plan

        def predict_step(self, batch, batch_idx):
            """Predict a batch, note which, and meet its fate."""
            locs = batch["where"] if isinstance(batch, dict) else batch
            with Path("predicted").open("a") as file:
                file.write("".join(f"{row}\n" for row in (locs[:, 0] // 7).tolist()))
            if self.plan["fate"] and batch_idx == 3 and self.global_rank == self.plan["rank"]:
                time.sleep(1)  # the other process goes on meanwhile
                if self.plan["fate"] == "fail":
                    raise ArithmeticError("the model fails")
                os.kill(os.getpid(), signal.SIGKILL)
            output = {name: torch.from_numpy(data) for name, data in expected(locs.numpy()).items()}
            styles = {"pair": (output, locs), "prediction": {**output, "where": locs}}
            return styles.get(self.plan["style"], output)


def script(plan):
    """Do what a plan says, as a user's script would."""
    torch.set_num_threads(1)
    style, rank = plan["style"], os.environ.get("LOCAL_RANK", "0")  # as Lightning tells the second process
    where = {"pair": None, "function": lambda _, batch: batch["where"]}.get(style, "where")
    writer = AccumulatorWriter(
        LOCS, "run.zarr", batch_locs=where, checkpoint_interval=0 if plan["fate"] == "kill" else 30, chunks=8
    )
    todo = writer.missing_rows()
    Path(f"todo-{rank}").write_text(json.dumps(todo.tolist()))
    items = [torch.from_numpy(loc) for loc in LOCS]
    data = Subset(items if style == "pair" else [{"where": item} for item in items], todo.tolist())
    sampler = None
    if plan["is_padded"]:
        sampler = DistributedSampler(data, 2, int(rank), shuffle=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=plan["devices"],
        strategy=plan["strategy"],
        callbacks=[writer],
        use_distributed_sampler=sampler is None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.predict(Model(plan), DataLoader(data, batch_size=4, sampler=sampler), return_predictions=False)
    if trainer.is_global_zero:
        assert writer.result.written.all()
        assert not len(writer.missing_rows())


def run(**given):
    """Run the script to its end, whatever that is; return its status, errors, and rows that it predicted."""
    plan = {
        "fate": None,
        "rank": 1,
        "style": "pair",
        "is_padded": False,
        "devices": 2,
        "strategy": "ddp",
    } | given
    Path("predicted").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MASTER_PORT": str(port)} | dict(SLURM)
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(plan)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # what is left of it ends with it
    )
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        if process.returncode != 0:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, errors, [int(row) for row in Path("predicted").read_text().split()]


def check():
    """Every row of the result is right."""
    with FullBatch.load("run.zarr") as batch:
        assert batch.written.all()
        np.testing.assert_array_equal(batch.output_locs, LOCS)
        for name, wanted in expected(LOCS).items():
            assert batch.outputs[name].dtype == wanted.dtype
            np.testing.assert_array_equal(batch.outputs[name][:], wanted)
    assert not Path("run.zarr", "parts").exists()


needs_lightning = pytest.mark.skipif(not HAS_LIGHTNING, reason="needs Lightning: pip install '.[lightning]'")


def with_lightning(test):
    """Mark a test that starts processes."""
    return needs_lightning(pytest.mark.slow(test))


@pytest.mark.skipif(HAS_LIGHTNING, reason="Lightning is installed")
def test_the_extra_is_named():
    """Without Lightning the import tells what to install."""
    with pytest.raises(MissingExtraError, match=r"full-batch-accumulator\[lightning\]"):
        importlib.import_module("accumulator.integrations.lightning")


def begin(**options):
    """Return a writer as it is when predictions come, and the trainer."""
    kind = importlib.import_module("accumulator.integrations.lightning").AccumulatorWriter
    writer, strategy = kind(LOCS, "run.zarr", **options), SimpleNamespace(barrier=lambda _: None)
    trainer = SimpleNamespace(
        global_rank=0, world_size=1, num_devices=1, is_global_zero=True, strategy=strategy
    )
    module = SimpleNamespace(predict_step=lambda batch: batch)
    writer.setup(trainer, module, "predict")
    return writer, trainer


@needs_lightning
def test_what_is_refused():
    """A batch without locations is refused, and what came before is recorded."""
    writer, trainer = begin()
    output = expected(LOCS[:4])
    writer.write_on_batch_end(None, None, (output, LOCS[:4]), None, None, 0, 0)
    with pytest.raises(LocationError, match="no pair") as refused:
        writer.write_on_batch_end(None, None, output, None, None, 1, 0)
    writer.on_exception(trainer, None, refused.value)
    assert writer.missing_rows().tolist() == list(range(4, N))
    with pytest.raises(UnfinishedError):
        _ = writer.result
    writer, trainer = begin(batch_locs="where")
    with pytest.raises(LocationError, match="neither prediction nor batch has locations at 'where'"):
        writer.write_on_batch_end(None, None, output, None, {"there": LOCS[:4]}, 0, 0)
    writer.on_exception(trainer, None, ValueError())
    with pytest.raises(OptionError, match="mode cannot be given here"):
        begin(mode="a")


@needs_lightning
def test_the_environment_stays_as_it_is(monkeypatch):
    """What is set for a moment is put back, whatever was there, and an error leaves it as it was, too."""
    monkeypatch.setenv("RANK", "7")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = dict(os.environ)
    writer, trainer = begin()
    assert dict(os.environ) == before
    with pytest.raises(ResumeError):
        begin(resume_token="other")
    assert dict(os.environ) == before
    writer.write_on_batch_end(None, None, (expected(LOCS), LOCS), None, None, 0, 0)
    writer.teardown(trainer, None, "predict")
    check()


@with_lightning
@pytest.mark.parametrize(
    ("strategy", "style"), [("ddp", "pair"), ("ddp", "prediction"), ("ddp_spawn", "batch")]
)
def test_all_rows(strategy, style):
    """Lightning's own sampler gives each row to one of two processes."""
    status, errors, predicted = run(strategy=strategy, style=style)
    assert status == 0, errors
    assert sorted(predicted) == list(range(N))
    check()


@with_lightning
def test_one_process():
    """It needs no strategy, and locations may come from a function."""
    status, errors, _ = run(strategy="auto", devices=1, style="function")
    assert status == 0, errors
    check()


@with_lightning
def test_a_sampler_that_repeats_rows():
    """A row that both processes predict is simply there."""
    status, errors, predicted = run(is_padded=True)
    assert status == 0, errors
    assert len(predicted) == N + 1
    check()


@with_lightning
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fate", ["kill", "fail"])
def test_what_came_before_an_end_is_there(fate, rank):
    """The next run predicts what nobody has recorded, and no other row; all processes see the same."""
    status, errors, predicted = run(fate=fate, rank=rank)
    assert status != 0, errors
    assert len(predicted) < N or fate == "kill"
    status, errors, predicted = run()
    assert status == 0, errors
    todo = json.loads(Path("todo-0").read_text())
    assert json.loads(Path("todo-1").read_text()) == todo
    assert sorted(predicted) == todo
    assert len(todo) <= N - 3 * 4  # of the process that ended: three batches
    check()
    status, errors, predicted = run()  # there is nothing left to do
    assert (status, predicted) == (0, []), errors
    check()


if __name__ == "__main__":
    script(json.loads(sys.argv[1]))

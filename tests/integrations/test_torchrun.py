"""The documentation's script under torchrun: each row is right, whatever samplers repeat and whoever dies.

It needs torch: ``pip install torch``. Without it these tests are skipped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.peers import leave_out
from helpers.processes import ENVIRONMENT, TIMEOUT

from accumulator import FullBatch
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.shared import SharedRun

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "docs/scripts/torchrun_predict.py"
STORE = Path("run.zarr")
COLUMNS, ROWS = 7, 13
N = COLUMNS * ROWS  # no multiple of 2, 3 or 4: a sampler that gives all ranks as many repeats some
GRID = ["--grid", str(COLUMNS), str(ROWS)]
SLOW = ["--seconds", "0.25", "--batch-size", "2", "--checkpoint-interval", "0"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_")


@pytest.fixture(autouse=True)
def _needs_torch():
    if find_spec("torch") is None:
        leave_out()


def environment():
    """Return this one without what launchers set; ``torchrun`` is that of this Python.

    Without that store of each start, torch 2.13 has gloo find addresses of ranks that have gone, and wait.
    """
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(LAUNCHERS)}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


class Torchrun:
    """The script in so many processes, which runs while others look."""

    def __init__(self, n_ranks, *arguments, restarts=0):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={n_ranks}",
        ]
        command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", str(SCRIPT), *GRID, *arguments]
        self.output = Path(f"output-{time.monotonic_ns()}")
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def kill_one(self):
        """Kill a rank in the middle of its share, once a quarter of all rows is recorded."""
        deadline = time.monotonic() + TIMEOUT
        while len(self.shares()) == 0 or n_recorded() < N // 4:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.05)
        assert n_recorded() < N
        ranks = psutil.Process(self.process.pid).children()
        ranks = [each for each in ranks if any(SCRIPT.name in word for word in each.cmdline())]
        ranks[-1].kill()

    def end(self):
        """Wait for its end, and return how it ended."""
        try:
            return self.process.wait(TIMEOUT)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def shares(self):
        """Return how many rows each rank was given, by what they said."""
        told = re.findall(rf"^rank \d+: (\d+) of {N} rows$", self.output.read_text(), re.MULTILINE)
        return [int(share) for share in told]

    def ends_well(self):
        """All ranks end, and rank 0 has published."""
        assert self.end() == 0, self.output.read_text()
        assert f"published: {N} of {N} rows" in self.output.read_text()


def n_recorded():
    """Return how many rows anybody has recorded."""
    shared = SharedRun.find(STORE)
    return 0 if shared is None else int(recorded_rows(shared).sum())


def check(columns=COLUMNS, rows=ROWS):
    """Check that all is there, in canonical order, and each row what one patch gives, pixel by pixel."""
    assert sorted(path.name for path in STORE.iterdir()) == [
        "checksums", "output_locs", "outputs", "written", "zarr.json",
    ]  # fmt: skip
    with FullBatch.load(STORE) as batch:
        assert batch.written.all()
        assert len(batch.written) == columns * rows
        for row in range(columns * rows):
            x, y = 16 * (row % columns), 16 * (row // columns)
            assert batch.output_locs[row].tolist() == [x, y, x + 16, y + 16]
            image = np.array([[(7 * (x + j) + 13 * (y + i)) % 251 for j in range(16)] for i in range(16)])
            mean = sum(image[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
            assert np.array_equal(batch.outputs["mean"][row], mean)
            assert batch.outputs["brightest"][row].tolist() == [image.max()]


def test_as_it_stands():
    """The command of the script's first lines does what they say."""
    (command,) = re.findall(r"^    (torchrun .*)$", SCRIPT.read_text(), re.MULTILINE)
    Path("docs").symlink_to(SCRIPT.parents[1])
    ended = subprocess.run(
        command.split(), env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "published: 713 of 713 rows" in ended.stdout
    check(23, 31)


def test_shares_are_all_rows():
    """With missing_rows as the sampler each row is predicted once; and again there is nothing to do."""
    run = Torchrun(3)
    run.ends_well()
    assert sum(run.shares()) == N
    assert max(run.shares()) - min(run.shares()) <= N // (8 * 3)  # a block
    check()
    again = Torchrun(2)
    again.ends_well()
    assert again.shares() == [0, 0]
    check()


def test_a_sampler_that_pads():
    """DistributedSampler gives some rows to two ranks: each is there once, and right."""
    run = Torchrun(4, "--sampler", "distributed", "--workers", "1")
    run.ends_well()
    assert sum(run.shares()) == -(-N // 4) * 4 > N
    check()


@pytest.mark.parametrize(("sampler", "before", "after"), [("missing", 4, 3), ("distributed", 2, 3)])
def test_killed_and_started_again_with_another_number_of_ranks(sampler, before, after):
    """All end with one that is killed; what is recorded by then is not predicted again."""
    run = Torchrun(before, "--sampler", sampler, *SLOW)
    run.kill_one()
    assert run.end() != 0
    done = n_recorded()
    assert 0 < done < N
    again = Torchrun(after)
    again.ends_well()
    assert sum(again.shares()) == N - done
    check()


def test_torchrun_starts_all_again():
    """With --max-restarts nobody has to."""
    run = Torchrun(2, *SLOW, restarts=1)
    run.kill_one()
    run.ends_well()
    first, again = run.shares()[:2], run.shares()[2:]
    assert sum(first) == N
    assert 0 < sum(again) < N
    check()

"""Many ranks, killed and stopped at random moments, in changing numbers: what was recorded is in the result.

ACCUMULATOR_RANK_ROWS and ACCUMULATOR_RANK_KILLS make it longer: 1000000 and 100 are what is promised.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
import warnings

import numpy as np
import pytest
from helpers.processes import Process
from helpers.ranked import check_same
from helpers.ranks_at_work import OPTIONS, locs_of, values

from accumulator import FullBatchAccumulator, publish
from accumulator._report.facts import verify
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.shared import SharedRun
from accumulator.exceptions import StorageWarning

N = int(os.environ.get("ACCUMULATOR_RANK_ROWS", "100000"))
KILLS = int(os.environ.get("ACCUMULATOR_RANK_KILLS", "10"))
ORDERS = ["share", "padded", "shuffled", "mixed"]


class Ranks:
    """Processes of one run, and what each has said that it recorded."""

    def __init__(self, folder, seed):
        self.store, self.errors = folder / "run.zarr", folder / "errors"
        self.chance = random.Random(seed)  # noqa: S311  no secret
        self.n_kills = 0

    def begin(self, rank, size, order):
        """Start a rank."""
        arguments = [str(self.store), str(rank), str(size), str(N), order, "0.002"]
        return Process(self.errors, "helpers.ranks_at_work", *arguments)

    def generation(self, size, order, n_kills):
        """Let so many ranks work, and kill some of them; publish over a stopped one."""
        ranks = [self.begin(rank, size, order) for rank in range(size)]
        time.sleep(1 + self.chance.random())
        for number in range(n_kills):
            time.sleep(self.chance.random() * 0.4)
            alive = [rank for rank in ranks if rank.process.poll() is None]
            if not alive:
                break
            victim = self.chance.choice(alive)
            if number == 0:
                os.kill(victim.process.pid, signal.SIGSTOP)
                self.publish_over(victim)
            os.kill(victim.process.pid, signal.SIGKILL)
            self.n_kills += 1
        for rank in ranks:
            status = rank.end(120)
            assert status in {0, -signal.SIGKILL}, self.errors.read_text()
        if (self.store / "parts" / "run.json").exists():
            assert recorded_rows(SharedRun.find(self.store))[self.acknowledged()].all(), (
                "recorded and then lost"
            )

    def acknowledged(self):
        """Return the rows that any `flush` has returned for."""
        rows = np.zeros(N, bool)
        for path in self.store.with_name("run.zarr.acks").glob("*[0-9].npy"):
            rows[np.load(path)] = True
        return rows

    def publish_over(self, stopped):
        """Publish while a rank is stopped, and the others go on."""
        if not (self.store / "parts" / "run.json").exists():
            return
        recorded = self.acknowledged()
        batch = publish(self.store, partial=True)
        assert batch.written[recorded].all(), "recorded and then lost"
        check_values(batch)
        os.kill(stopped.process.pid, signal.SIGCONT)


def check_values(batch):
    """Each written row of each head is right."""
    rows = np.flatnonzero(batch.written)
    for head, wanted in values(rows).items():
        np.testing.assert_array_equal(batch.outputs[head][:][rows], wanted)


@pytest.mark.slow
def test_killed_ranks_lose_nothing(tmp_path):
    """Restarts as 8, 6, 3 and 8 ranks, killed again and again: no row is lost or wrong, no byte another."""
    ranks, turns = Ranks(tmp_path, seed=1), itertools.cycle(zip([8, 6, 3, 8], ORDERS, strict=True))
    while ranks.n_kills < KILLS:
        ranks.generation(*next(turns), min(3, KILLS - ranks.n_kills))
    for rank in [ranks.begin(rank, 8, "share") for rank in range(8)]:
        assert rank.end(600) == 0, ranks.errors.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StorageWarning)
        batch = publish(ranks.store)
    assert batch.written.all(), f"{np.count_nonzero(~batch.written)} rows are missing"
    check_values(batch)
    options = {name: value for name, value in OPTIONS.items() if name != "checkpoint_interval"}
    with FullBatchAccumulator(locs_of(N), store=tmp_path / "alone.zarr", **options) as alone:
        for start in range(0, N, 10_000):
            rows = np.arange(start, min(N, start + 10_000))
            alone.push(values(rows), locs_of(N)[rows])
    check_same(ranks.store, tmp_path / "alone.zarr")
    assert verify(ranks.store).verdict == "right"

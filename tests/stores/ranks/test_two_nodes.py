"""Ranks on two machines: one folder through two mounts of a network file system, which share no locks.

There a rank may be taken for alive when it is dead, and for dead when it is alive. No row may be lost by
either. Where a mount keeps for a while what it saw, a call made meanwhile may be refused, later not.
"""

from __future__ import annotations

import gc
import random
import signal
import time
from functools import partial

import numpy as np
import pytest
import zarr
from helpers.mounts import CACHED_SECONDS, CACHES, mounted, why_not
from helpers.processes import Process
from helpers.ranked import check_same, files
from helpers.ranks_at_work import OPTIONS, locs_of, values

from accumulator import FullBatch, FullBatchAccumulator, publish
from accumulator._report.facts import verify
from accumulator._stores.ranks import facts
from accumulator.exceptions import AccumulatorError, LockedError, StorageWarning

N = 16_384
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

more = partial(pytest.param, marks=pytest.mark.soak)


class Nodes:
    """Machines "a" and "b", and "disk", which is what they share as it is."""

    def __init__(self, folder, cache):
        self.folder, self.cache, self.errors = folder, cache, folder / "errors"
        self._ranks = []

    def store(self, node):
        """Return the store as a machine sees it."""
        return self.folder / node / "run.zarr"

    def start(self, node, rank, size, seconds="0.05"):
        """Start a rank on a machine, which waits until it is told to begin."""
        arguments = [node, str(self.store(node)), str(rank), str(size), str(N), "share", seconds]
        self._ranks.append(Process(self.errors, "helpers.rank_elsewhere", *arguments))
        return self._ranks[-1]

    def begin(self, node, rank, size, seconds="0.05"):
        """Start a rank on a machine, and let it begin."""
        started = self.start(node, rank, size, seconds)
        started.tell("begin")
        return started

    def stopped_on_b(self):
        """Let rank 0 end on "a", and stop rank 1 on "b" when it has recorded some rows; return that."""
        other, living = self.begin("a", 0, 2), self.begin("b", 1, 2, "0.3")
        self.wait_for(f"run.zarr.acks/{living.process.pid}.npy", 1)
        living.process.send_signal(signal.SIGSTOP)
        self.end(other)
        return living

    def end(self, rank, wanted=0):
        """Wait for the end of a rank."""
        assert rank.end(60) == wanted, self.errors.read_text()

    def wait_for(self, pattern, n):
        """Wait until so many files are on the disk."""
        for _ in range(6000):
            if len(list((self.folder / "disk").glob(pattern))) >= n:
                return
            if any(rank.process.poll() for rank in self._ranks):
                break
            time.sleep(0.01)
        raise AssertionError(self.errors.read_text())

    def publish(self, node):
        """Publish all; what a mount has kept may be in the way, and must not lose a row."""
        try:
            publish(self.store(node)).close()
        except AccumulatorError:
            if self.cache == "no cache":
                raise
            self.wait_for_caches()
            publish(self.store(node)).close()
        for _ in range(10):  # what it could not remove goes with a later one
            if not list(self.store("disk").glob("left.*")):
                break
            gc.collect()  # a call that was refused may have the list mapped until then
            self.wait_for_caches()
            publish(self.store(node)).close()

    def wait_for_caches(self):
        """Let the mounts forget what they have seen."""
        time.sleep(CACHED_SECONDS if self.cache == "cached" else 0)

    def acknowledged(self):
        """Return the rows that any `flush` has returned for."""
        rows = np.zeros(N, bool)
        for path in (self.folder / "disk").glob("run.zarr.acks/*[0-9].npy"):
            rows[np.load(path)] = True
        return rows

    def check(self):
        """Check that the disk has the result, whole, and each machine has it as the disk does."""
        check_rows(self.store("disk"), np.ones(N, bool))
        assert verify(self.store("disk")).verdict == "right"
        options = {name: value for name, value in OPTIONS.items() if name != "checkpoint_interval"}
        with FullBatchAccumulator(locs_of(N), store=self.folder / "alone.zarr", **options) as alone:
            alone.push(values(np.arange(N)), locs_of(N))
        check_same(self.store("disk"), self.folder / "alone.zarr")
        self.wait_for_caches()
        for node in ("a", "b"):
            assert files(self.store(node)) == files(self.store("disk"))
            with FullBatch.load(self.store(node)) as batch:
                assert batch.written.all()
                for head, wanted in values(np.arange(N)).items():
                    np.testing.assert_array_equal(batch.outputs[head][:], wanted)

    def close(self):
        """Leave no process."""
        for rank in self._ranks:
            rank.end(0)


@pytest.fixture
def nodes(tmp_path, request):
    """Return two machines; mounts go last, so that nobody is in them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, tmp_path / "a", request.param), mounted(disk, tmp_path / "b", request.param):
        both = Nodes(tmp_path, request.param)
        yield both
        both.close()


@pytest.fixture
def here(monkeypatch):
    """Return what lets this process be on a machine of some name."""
    return lambda name: monkeypatch.setattr("socket.gethostname", lambda: name)


def check_rows(store, wanted):
    """Check by zarr alone that these rows are there, and all that are there right; return which are."""
    group = zarr.open_group(store, mode="r")
    written = group["written"][:].astype(bool)
    assert written[wanted].all(), f"{np.count_nonzero(wanted & ~written)} rows are lost"
    np.testing.assert_array_equal(group["output_locs"][:], locs_of(N))
    for name, right in values(np.arange(N)).items():
        np.testing.assert_array_equal(group[f"outputs/{name}"][:][written], right[written])
    return written


def times_are_over(monkeypatch):
    """Let the two minutes pass in which a part of another machine counts as alive."""
    monkeypatch.setattr(facts, "_FRESH_SECONDS", 0)


@pytest.mark.parametrize(
    ("nodes", "publisher"),
    [("no cache", "a"), more("no cache", "b"), more("cached", "a"), more("cached", "b")],
    indirect=["nodes"],
)
def test_a_killed_rank_goes_on_on_the_other_machine(nodes, here, publisher, monkeypatch):
    """Its own machine knows at once that it is dead, the other one after two minutes; no row is missing."""
    chance = random.Random(f"{nodes.cache}, {publisher}")  # noqa: S311  no secret
    ranks = [nodes.begin(node, rank, 4, "0.2") for rank, node in enumerate("aabb")]
    nodes.wait_for("run.zarr/parts/*/record/0", 4)
    time.sleep(chance.random() * 0.6)
    victim = chance.choice([2, 3])
    ranks[victim].process.kill()
    for number, rank in enumerate(ranks):
        nodes.end(rank, -signal.SIGKILL if number == victim else 0)
    acknowledged = nodes.acknowledged()
    nodes.end(nodes.begin("a", victim, 4))
    here(publisher)
    if publisher == "a":
        with pytest.raises(
            LockedError, match=f"rank {victim} of 4, process {ranks[victim].process.pid} on b"
        ):
            publish(nodes.store("a"))
        times_are_over(monkeypatch)
    nodes.publish(publisher)
    check_rows(nodes.store("disk"), acknowledged)
    nodes.check()


@pytest.mark.parametrize("nodes", CACHES, indirect=True)
def test_publishing_while_a_rank_of_the_other_machine_lives(nodes, here):
    """It is refused, but for a part of the rows; the rank goes on, and the next publishing has all."""
    living = nodes.stopped_on_b()
    here("a")
    with pytest.raises(LockedError, match=f"rank 1 of 2, process {living.process.pid} on b"):
        publish(nodes.store("a"))
    acknowledged = nodes.acknowledged()
    living.process.send_signal(signal.SIGCONT)
    publish(nodes.store("a"), partial=True).close()
    written = check_rows(nodes.store("disk"), acknowledged if nodes.cache == "no cache" else [])
    assert written.any()
    nodes.end(living)
    nodes.publish("a")
    nodes.check()


@pytest.mark.parametrize(
    ("nodes", "what"),
    [("no cache", "all"), ("no cache", "partial"), more("cached", "all"), more("cached", "partial")],
    indirect=["nodes"],
)
def test_a_living_rank_that_is_taken_for_dead_is_told(nodes, here, what, monkeypatch):
    """What it recorded is in the result, its next checkpoint is a StorageError, and the rest can be done."""
    living = nodes.stopped_on_b()
    here("a")
    times_are_over(monkeypatch)
    acknowledged = nodes.acknowledged()
    if what == "partial":
        publish(nodes.store("a"), partial=True).close()
    else:
        with pytest.warns(StorageWarning, match="missing, and not every rank has come to its end"):
            publish(nodes.store("a")).close()
    living.process.send_signal(signal.SIGCONT)
    written = check_rows(nodes.store("disk"), acknowledged)
    nodes.end(living, 1)
    assert "\naccumulator.exceptions.StorageError: " in nodes.errors.read_text()
    assert written[nodes.acknowledged()].all(), "acknowledged, and lost"
    assert not written.all()
    nodes.wait_for_caches()
    nodes.end(nodes.begin("b", 1, 2))
    nodes.publish("a")
    nodes.check()


@pytest.mark.parametrize("nodes", CACHES, indirect=True)
def test_both_machines_begin_at_the_same_moment(nodes, here):
    """One of them makes what all have in common, the others take it."""
    ranks = [nodes.start(node, rank, 4, "0") for rank, node in enumerate("abab")]
    assert [rank.line() for rank in ranks] == ["ready"] * 4
    for rank in ranks:
        rank.tell("begin")
    for rank in ranks:
        nodes.end(rank)
    here("b")
    nodes.publish("b")
    nodes.check()

"""Ranks of a run for the commands to look at: dead ones, and living ones in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import processes
from helpers.processes import Process

_RANK = """
import os, sys
from helpers.ranked import open_rank, push
rank, world_size = int(sys.argv[1]), int(sys.argv[2])
accumulator = open_rank("run.zarr", rank, world_size, chunks=7, checkpoint_interval=1e9)
for line in sys.stdin:
    what, _, words = line.strip().partition(" ")
    rows = [int(word) for word in words.split()]
    if what == "die":
        os._exit(7)
    elif what == "end":
        accumulator.finalize().close()
    else:
        push(accumulator, rows)
        accumulator.flush()
    print("done", flush=True)
"""


class Rank:
    """A rank in a process of its own, which does what it is told."""

    def __init__(self, rank, world_size):
        self._process = Process(Path("rank.err"), "rank_process", str(rank), str(world_size))
        self.pid = self._process.process.pid

    def tell(self, what, rows=()):
        """Let it do something, and wait until that is done."""
        self._process.tell(" ".join(map(str, [what, *rows])))
        assert self._process.line() == ("" if what == "die" else "done"), Path("rank.err").read_text("utf-8")

    def stop(self):
        """Let its process end, if it goes on."""
        self._process.process.kill()
        self._process.end(60)


@pytest.fixture
def start_rank(monkeypatch):
    """Return what starts a rank of run.zarr."""
    Path("rank_process.py").write_text(_RANK, "utf-8")
    monkeypatch.setitem(processes.ENVIRONMENT, "PYTHONPATH", _paths())
    ranks = []

    def start(rank, world_size, rows=()):
        ranks.append(Rank(rank, world_size))
        if len(rows):
            ranks[-1].tell("push", rows)
        return ranks[-1]

    yield start
    for rank in ranks:
        rank.stop()


def _paths():
    return os.pathsep.join([str(Path.cwd()), processes.PYTHONPATH])

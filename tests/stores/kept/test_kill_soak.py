"""Kept runs that are killed at random moments, again and again: nothing that was promised is ever lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
from helpers import mortal
from helpers.processes import TIMEOUT, Process

from accumulator import FullBatch
from accumulator._report.facts import verify
from accumulator._stores.files.ownership import is_locked
from accumulator.exceptions import ResultFormatError, ResultNotFoundError, UnfinishedError

KILLS = int(os.environ.get("ACCUMULATOR_KILLS", "50"))


class Killer:
    """Lets lives begin and ends them, and knows what they said."""

    def __init__(self, folder, seed):
        self.chance = random.Random(seed)  # noqa: S311  no secret
        self.errors = folder / "errors"
        self.parent = Process(self.errors, "helpers.mortal", "serve")
        assert self.parent.line() == "ready", self.errors.read_text()

    def life(self, store, name, acknowledged, *, is_spared=False):
        """Let one process go on with a run; return what it acknowledged, and whether it was killed in it.

        It is killed a random while after it began, or after something that it said.
        """
        chance = self.chance
        trigger = chance.choice(["", "", "start", "made", "flush", "flush", "finalize"])
        n_triggers = chance.randint(1, 3) if trigger == "flush" else 1
        delay = chance.random() * chance.choice([0.001, 0.01, 0.1])
        is_alone = not is_spared and chance.random() < 0.04
        if is_alone and trigger == "":
            delay = chance.random() / 2  # while it imports
        process = Process(self.errors, "helpers.mortal", "once") if is_alone else self.parent
        process.tell(json.dumps([str(store), name, chance.randrange(2**32), acknowledged]))
        child = process.process.pid if is_alone else int(process.line().removeprefix("born "))
        said, is_through = "", False
        while True:
            if said == trigger and not is_through and not is_spared:
                n_triggers -= 1
                if n_triggers == 0:
                    time.sleep(delay)
                    os.kill(child, signal.SIGKILL)  # if it has ended, what is left of it
            said = process.line()
            if said.startswith("flushed "):
                acknowledged = json.loads(said.removeprefix("flushed "))
            is_through |= said == "end"
            if said == "" or said.startswith("ended "):
                break
        if is_alone:
            status = process.end(TIMEOUT)
        else:
            status = int(said.removeprefix("ended "))
            process.tell("")
        assert status in {0, -signal.SIGKILL}, self.errors.read_text()
        assert is_through or status != 0
        return acknowledged, not is_through


def check_readers(store, name, acknowledged):
    """Nothing that a kill leaves is damage: `verify` and a reader find all that was acknowledged."""
    try:
        found = verify(store)
    except (ResultFormatError, ResultNotFoundError):  # its first push had not come to its end
        assert acknowledged == mortal.NOTHING
        return
    assert found.verdict == ("right" if found.state == "complete" else "unfinished"), found.as_json()
    if found.state == "creating":  # nothing was recorded
        assert acknowledged == mortal.NOTHING
        with pytest.raises(UnfinishedError, match="nothing was recorded yet"):
            FullBatch.load(store, partial=True)
        return
    with FullBatch.load(store, partial=True) as batch:
        assert batch.written[np.array(acknowledged) != mortal.MISSING].all(), "lost"
        arrays = {head: array[:] for head, array in batch.outputs.items()}
        mortal.check_written(arrays, batch.written, name, acknowledged)


@pytest.fixture
def killer(tmp_path, request):
    """Give a process to fork lives from."""
    killer = Killer(tmp_path, request.node.name)
    yield killer
    killer.parent.end(0)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(mortal.CONFIGURATIONS)), ids=mortal.CONFIGURATIONS)
def test_killed_runs_end_with_the_same_bytes(tmp_path, killer, number):
    """Killed at any moment, a run has all rows that flush() returned for, no wrong one, and ends the same."""
    name = list(mortal.CONFIGURATIONS)[number]
    n_kills = (KILLS + number) // len(mortal.CONFIGURATIONS)  # the sum of all is KILLS
    whole, store = tmp_path / "whole.zarr", tmp_path / "run.zarr"
    assert killer.life(whole, name, mortal.NOTHING, is_spared=True)[1] is False
    wanted, done = mortal.check_complete(whole, name), 0
    while done < n_kills:
        acknowledged, is_killed = mortal.NOTHING, True
        while is_killed:
            acknowledged, is_killed = killer.life(store, name, acknowledged, is_spared=done >= n_kills)
            done += is_killed
            assert not is_killed or is_locked(store) in {False, None}, "the lock outlived its process"
            if is_killed:
                check_readers(store, name, acknowledged)
        mortal.check_complete(store, name, wanted)
        shutil.rmtree(store)

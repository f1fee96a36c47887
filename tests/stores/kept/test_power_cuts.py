"""Kept runs on a disk whose power is cut: what was acknowledged is there, and no sync can be left out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal

import pytest
from helpers import mortal
from helpers.power.mount import Machine, why_not
from helpers.processes import Process

from accumulator import FullBatch
from accumulator._cli import main
from accumulator.exceptions import AccumulatorError, UnfinishedError

CUTS = int(os.environ.get("ACCUMULATOR_CUTS", "11"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


class Lives:
    """Lets processes go on with a run until the power is cut, and knows what they said."""

    def __init__(self, folder, parent, seed):
        self.chance = random.Random(seed)  # noqa: S311  no secret
        self.machine = Machine(folder / "disk", folder / "errors of the disk")
        self.store, self.n_cuts = folder / "disk" / "run.zarr", 0
        self._parent, self._errors, self._most = parent, parent.errors, 0

    def run(self, name, *, wanted, n_cuts, ignores=None):
        """Go on with a run until it is complete, over at most so many cuts; return hashes of its files.

        Some processes are killed alone: the next one finds what was not synced, and must not rely on it.
        """
        acknowledged, is_through = mortal.NOTHING, False
        while not is_through:
            dies_at = self.chance.randint(1, self._most) if n_cuts > 0 else None
            acknowledged, is_through = self._live(name, acknowledged, dies_at, ignores)
            is_cut = is_through or self.chance.random() < 0.6
            n_changes = self.machine.cut(self.chance.random()) if is_cut else self.machine.unmount()
            self._most = max(self._most, n_changes)
            self.n_cuts += is_cut
            n_cuts -= is_cut
            if not is_through:
                self.machine.mount()
                self._look(name, acknowledged)
                self.machine.unmount()
        self.machine.mount()
        # That rows do not wait any more is not synced: what is left of it says nothing of any row.
        found = mortal.check_complete(self.store, name, wanted, leftovers={"redo", "part"})
        shutil.rmtree(self.store)
        self.machine.unmount()
        return found

    def die(self, name):
        """Go on with a run whose process was killed shortly before its end, and cut the power at its end."""
        acknowledged, is_through = self._live(
            name, mortal.NOTHING, self._most - self.chance.randrange(60), None
        )
        if not is_through:
            self.machine.unmount()
            assert self._live(name, acknowledged, None, None)[1]
        self.machine.cut(self.chance.random())
        self.machine.mount()
        mortal.check_complete(self.store, name, leftovers={"redo", "part"})
        shutil.rmtree(self.store)
        self.machine.unmount()

    def _live(self, name, acknowledged, dies_at, ignores):
        """Let one process live; return what it acknowledged, and whether it came to its end."""
        self.machine.mount(dies_at, ignores)
        self._parent.tell(json.dumps([str(self.store), name, self.chance.randrange(2**32), acknowledged]))
        said, is_through = "", False
        while not said.startswith("ended "):
            said = self._parent.line()
            assert said, self._errors.read_text()
            if said.startswith("flushed "):
                acknowledged = json.loads(said.removeprefix("flushed "))
            is_through |= said == "end"
        self._parent.tell("")
        status = int(said.removeprefix("ended "))
        assert status in {0, -signal.SIGKILL}, self._errors.read_text()
        assert is_through or status != 0
        return acknowledged, is_through

    def _look(self, name, acknowledged):
        """Have readers look at what is left: it is unfinished and not damaged, and what it has is right."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(["verify", str(self.store)])
        assert "damaged" not in said.getvalue().lower(), said.getvalue()
        assert code == 0 or acknowledged == mortal.NOTHING, said.getvalue()
        if "creating" in said.getvalue():  # nothing was recorded
            assert acknowledged == mortal.NOTHING
            with pytest.raises(UnfinishedError, match="nothing was recorded yet"):
                FullBatch.load(self.store, partial=True)
        elif code == 0:
            with FullBatch.load(self.store, partial=True) as result:
                arrays = {head: array[:] for head, array in result.outputs.items()}
                mortal.check_written(arrays, result.written, name, acknowledged)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Give a process to fork lives from."""
    parent = Process(tmp_path_factory.mktemp("parent") / "errors", "helpers.mortal", "serve")
    assert parent.line() == "ready", parent.errors.read_text()
    yield parent
    parent.end(0)


@pytest.fixture
def lives(tmp_path, parent, request):
    """Give a disk, and processes that live on it."""
    lives = Lives(tmp_path, parent, request.node.name)
    yield lives
    lives.machine.close()


@pytest.mark.parametrize("number", range(len(mortal.CONFIGURATIONS)), ids=mortal.CONFIGURATIONS)
def test_power_cuts_take_nothing_that_was_acknowledged(lives, number):
    """After any cut a run has all rows that flush() returned for, no wrong one, and ends the same."""
    name = list(mortal.CONFIGURATIONS)[number]
    n_cuts = (CUTS + number) // len(mortal.CONFIGURATIONS)  # the sum of all is CUTS
    wanted = lives.run(name, wanted=None, n_cuts=0)  # and cut after its end
    while lives.n_cuts <= n_cuts:  # that one does not count
        lives.run(name, wanted=wanted, n_cuts=n_cuts - lives.n_cuts)


@pytest.mark.parametrize("name", ["sparse", "shuffled, repeats", "sparse, repeats, zstd"])
def test_what_a_killed_process_did_not_sync_the_next_one_does(lives, name):
    """Who finds all in place, as the process before was killed at its end, acknowledges nothing unsynced."""
    lives.run(name, wanted=None, n_cuts=0)
    for _ in range(CUTS // 11):
        lives.die(name)


HEAD, RECORD = r"/run\.zarr/outputs/\w+", r"/run\.zarr/(written|checksums)"
SYNCS = {  # which file or folder, and a run that needs it
    "chunks": (HEAD + r"/c\.[\d.]+", "shuffled"),
    "encoded chunks before they are renamed": (HEAD + r"/c\.\S+\.partial", "shuffled, zstd"),
    "names of chunks": (HEAD, "shuffled"),
    "names of encoded chunks": (HEAD, "shuffled, shards"),
    "rows that wait": (HEAD + r"/redo/\d+", "shuffled, repeats"),
    "names of rows that wait": (HEAD + r"/redo", "shuffled, repeats"),
    "the record before it is renamed": (RECORD + r"/c\S+\.partial", "in order"),
    "names of the record": (RECORD, "in order"),
    "locations before they are renamed": (r"/run\.zarr/output_locs/c\S+\.partial", "in order"),
    "the name of locations": (r"/run\.zarr/output_locs", "in order"),
    "what arrays are, before it is renamed": (r"/run\.zarr/.+/zarr\.json\.\S+\.partial", "in order"),
    "names of heads": (r"/run\.zarr/outputs", "in order"),
    "the mark before it is renamed": (r"/run\.zarr/zarr\.json\.\S+\.partial", "in order"),
    "the name of the mark": (r"/run\.zarr", "in order"),
    "the name of the store": ("/", "in order"),
}


@pytest.mark.parametrize("kind", SYNCS)
def test_a_sync_that_is_not_done_is_missed(lives, kind):
    """A disk that acknowledges a sync of this kind and does not do it loses what was acknowledged."""
    ignores, name = SYNCS[kind]
    found = None
    while found is None and lives.n_cuts < 100:
        try:
            lives.run(name, wanted=None, n_cuts=0 if lives.n_cuts == 0 else 10, ignores=ignores)
        except (AssertionError, AccumulatorError) as failure:
            found = failure
    assert found is not None, "nothing misses this sync"

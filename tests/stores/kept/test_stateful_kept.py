"""A state machine drives a kept run and the oracle together: pushes, crashes, damage, resumes, ends."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
from helpers.files import quick_folder, tree
from helpers.oracle import Oracle, distinct, grid
from helpers.soak import examples
from helpers.tuned import tune
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.files import system as _system
from accumulator._stores.reading.check import RowChecker
from accumulator._stores.reading.saved import open_result
from accumulator.exceptions import AccumulatorError, LockedError, ResumeError, StorageWarning, UnfinishedError

SHAPES, DTYPES = [(2, 1), (3,), (5,)], ["f4", "i2", "f8"]
FILLS = [0, 7, 0]
OPTIONS = {
    "chunks": {0: 4, 1: 3},
    "shards": {2: 4},
    "fill_value": {1: 7},
    "compressors": {2: ZstdCodec()},
}
EXAMPLES = examples(8, "ACCUMULATOR_STATEFUL_EXAMPLES")
STEPS = {"n": 0}


class Machine(RuleBasedStateMachine):
    """Everything that can happen to a kept run."""

    def __init__(self):
        super().__init__()
        self.folder = quick_folder()
        self.count = 0
        self.accumulator = self.result = None
        self.patch = pytest.MonkeyPatch()
        # Syncing, which takes most of the time, is the matter of test_crash_order.
        self.patch.setattr(_system, "sync", lambda _: None)
        tune(self.patch, direct_flag=0)
        tune(self.patch, checkpoint_share=0)  # every push, and not as time allows

    @initialize(
        n=st.integers(1, 24),
        policy=st.sampled_from(["error", "first", "last"]),
        is_eager=st.booleans(),
        raster=st.booleans(),
    )
    def start(self, n, policy, is_eager, raster):
        """Make both, over a list in raster order or not."""
        locs = grid(n)
        self.locs = locs if raster else np.random.default_rng(n).permutation(locs)
        self.policy, self.interval = policy, 0 if is_eager else np.inf
        self.oracle = Oracle(self.locs, policy)
        self.kept = {}  # row -> heads that the last flush returned for
        self.pushed = {}  # row -> every prediction since
        self.path = self.folder / "0.zarr"
        self.accumulator = self.open("w-")

    def open(self, mode="a", path=None, **options):
        """Open the store."""
        return FullBatchAccumulator(
            self.locs,
            **{
                "store": path or self.path,
                "mode": mode,
                "resume_token": "7",
                "on_duplicate": self.policy,
                "checkpoint_interval": self.interval,
            }
            | OPTIONS
            | options,
        )

    def is_open(self):
        """Whether pushes are taken."""
        return self.accumulator is not None and self.result is None

    def heads(self, n):
        """Return heads of values that never came before."""
        self.count += 1
        first = 1 + 97 * self.count
        return [distinct(n, shape, d, first=first) for shape, d in zip(SHAPES, DTYPES, strict=True)]

    @precondition(is_open)
    @rule(rows=st.lists(st.integers(0, 23), max_size=10))
    def push(self, rows):
        """Push any rows; the accumulator takes exactly what the oracle takes."""
        self.push_both(self.locs[[row for row in rows if row < len(self.locs)]].reshape(-1, 4))

    @precondition(is_open)
    @rule(n=st.integers(1, 9))
    def push_next(self, n):
        """Push what follows the front."""
        self.push_both(self.locs[self.oracle.n_consumed :][:n])

    @precondition(is_open)
    @rule(n=st.integers(1, 9))
    def push_missing(self, n):
        """Push what is missing."""
        self.push_both(self.locs[self.accumulator.missing_rows()[:n]])

    def push_both(self, locs):
        """Push to the oracle and to the accumulator, which must agree whether it is taken."""
        heads = self.heads(len(locs))
        if not self.oracle.accepts(locs):
            with pytest.raises(ValueError, match="batch_locs"):
                self.accumulator.push(heads, locs)
            return
        self.accumulator.push(heads, locs)
        self.oracle.push(heads, locs)
        for key in map(tuple, locs.tolist()):
            self.pushed.setdefault(key, []).append(self.oracle.rows[key])
        if self.interval == 0 and self.oracle.rows:
            self.keep()

    def keep(self):
        """Take note that all is recorded."""
        self.kept, self.pushed = dict(self.oracle.rows), {}

    @precondition(lambda self: self.is_open() and self.accumulator.canvas)
    @rule(kind=st.sampled_from(["unknown", "shape", "dtype", "count", "rows"]))
    def push_nonsense(self, kind):
        """Push what no accumulator takes."""
        locs = self.locs[:1].copy()
        heads = self.heads(1)
        if kind == "unknown":
            locs = locs + 1
        elif kind == "shape":
            heads[0] = heads[0][..., 0]
        elif kind == "dtype":
            heads[0] = heads[0].astype("f8")
        elif kind == "count":
            heads.append(heads[0])
        else:
            heads[1] = np.vstack([heads[1], np.ones((1, 3), "i2")])
        with pytest.raises(AccumulatorError):
            self.accumulator.push(heads, locs)
        self.keep_if_flushed()

    def keep_if_flushed(self):
        """Take note that looking at the canvas records, too."""
        self.keep()

    @precondition(is_open)
    @rule()
    def flush(self):
        """Record all."""
        self.accumulator.flush()
        self.keep()

    @precondition(is_open)
    @rule(flips=st.integers(0, 3), seed=st.integers(0, 2**16))
    def crash(self, flips, seed):
        """End as SIGKILL ends it, maybe with flipped bits; what was kept and not hit is there."""
        self.count += 1
        path = self.folder / f"{self.count}.zarr"
        rows = self.accumulator._canvas.store
        if rows is not None:
            rows._writer.drain()  # what it has begun: otherwise every run would leave something else
        shutil.copytree(self.path, path)
        self.accumulator.close()
        rng = np.random.default_rng(seed)
        chunks = sorted(file for file in path.glob("outputs/*/c.*") if file.stat().st_size)
        hit = chunks if flips else []
        for _ in range(flips if chunks else 0):
            file = chunks[rng.integers(len(chunks))]
            content = bytearray(file.read_bytes())
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            file.write_bytes(content)
        self.path = path
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", StorageWarning)
            self.accumulator = self.open()
        written = self.accumulator.written
        lost = [row for row, key in enumerate(self.oracle.locs) if key in self.kept and not written[row]]
        assert not lost or (hit and told), "kept rows are missing"
        self.learn(written)

    def learn(self, written):
        """Let the oracle know what of the rows that were not recorded for certain is there."""
        old, self.oracle.rows = self.oracle.rows, {}
        canvas = [array[:] for array in self.accumulator.canvas]
        for row, key in enumerate(self.oracle.locs):
            if not written[row]:
                continue
            possible = [*([self.kept[key]] if key in self.kept else []), *self.pushed.get(key, [])]
            right = [
                heads
                for heads in possible
                if all((array[row] == head).all() for array, head in zip(canvas, heads, strict=True))
            ]
            assert right, f"row {row} is none of its predictions"
            self.oracle.rows[key] = right[-1]
        assert set(self.oracle.rows) <= set(old)
        rows = np.flatnonzero(written)
        self.oracle.n_consumed = int(rows[-1]) + 1 if len(rows) else 0
        self.keep()

    @precondition(is_open)
    @rule()
    def close_and_resume(self):
        """Close, which records all, and go on."""
        has_heads = bool(self.oracle.rows)
        self.accumulator.close()
        assert self.path.exists() or not has_heads
        self.accumulator = self.open()
        assert self.accumulator.written.sum() == len(self.oracle.rows)
        self.keep()

    @precondition(lambda self: self.is_open() and self.oracle.rows)
    @rule()
    def strangers_are_refused(self):
        """Open it a second time, and as other runs: all are refused and change nothing."""
        with pytest.raises(LockedError):
            self.open()
        self.accumulator.close()
        before = tree(self.path)
        with pytest.raises(ResumeError, match="resume_token"):
            self.open(resume_token="8")
        with pytest.raises(ResumeError, match="locations"):
            FullBatchAccumulator(self.locs + 4, store=self.path, mode="a", resume_token="7")
        with pytest.raises(FileExistsError):
            self.open("w-")
        assert tree(self.path) == before
        self.accumulator = self.open()
        self.keep()

    @precondition(lambda self: self.is_open() and self.oracle.rows)
    @rule()
    def look_from_outside(self):
        """Whoever loads the running store finds what was recorded."""
        self.flush()
        with pytest.raises(UnfinishedError) if self.is_running() else warnings.catch_warnings():
            FullBatch.load(self.path)
        self.check(FullBatch.load(self.path, partial=True), is_partial=True)

    def is_running(self):
        """Whether the store says that the run is not complete."""
        return b'"state": "complete"' not in (self.path / "zarr.json").read_bytes()

    @precondition(lambda self: self.is_open() and self.accumulator.canvas)
    @rule()
    def finalize(self):
        """End the run; the result is what the oracle holds, from disk too."""
        self.result = self.accumulator.finalize()
        self.check(self.result)
        self.check(FullBatch.load(self.path))
        found = RowChecker(open_result(self.path)).look_at_all()
        assert not any(damaged.any() for damaged in found)
        self.keep()

    @precondition(lambda self: self.result is not None)
    @rule()
    def fill_gaps_after_the_end(self):
        """Resume a complete run."""
        self.result = None
        self.accumulator = self.open()

    @precondition(lambda self: self.result is not None)
    @rule()
    def save_elsewhere(self):
        """Save a copy, and open it."""
        self.count += 1
        path = self.folder / f"kept-{self.count}"
        self.result.save(path)
        self.check(FullBatch.load(path))

    @invariant()
    def agrees(self):
        """Compare what is consumed, written and missing with the oracle."""
        STEPS["n"] += 1
        if not self.is_open():
            return
        accumulator, oracle = self.accumulator, self.oracle
        np.testing.assert_array_equal(accumulator.written, oracle.written())
        np.testing.assert_array_equal(accumulator.output_locs, self.locs[: oracle.n_consumed])
        np.testing.assert_array_equal(accumulator.missing_locs, self.locs[~oracle.written()])
        backwards = self.locs[::-1]
        missing = backwards[accumulator.missing_rows(backwards)]
        np.testing.assert_array_equal(missing, self.locs[~oracle.written()][::-1])

    def check(self, result, *, is_partial=False):
        """Compare a result with the oracle."""
        written = self.oracle.written()
        np.testing.assert_array_equal(result.written, written)
        np.testing.assert_array_equal(result.output_locs, self.locs)
        expected = self.oracle.outputs(SHAPES, DTYPES)
        for output, wanted, fill in zip(result.outputs, expected, FILLS, strict=True):
            wanted[~written] = fill
            rows = np.flatnonzero(written) if is_partial else np.arange(len(written))
            np.testing.assert_array_equal(output[:][rows], wanted[rows], strict=True)

    def teardown(self):
        """Leave nothing."""
        if self.accumulator is not None:
            self.accumulator.close()
        shutil.rmtree(self.folder)
        self.patch.undo()


@pytest.mark.slow
class TestKept(Machine.TestCase):
    """Run the machine."""

    settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)


@pytest.mark.slow
def test_steps_are_many():
    """As many steps ran as the number of examples promises; the full run is 20,000 or more."""
    print(f"{STEPS['n']} steps")  # noqa: T201  pytest -s shows it
    assert EXAMPLES < 560 or STEPS["n"] >= 20_000

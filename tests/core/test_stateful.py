"""A state machine drives the accumulator and the oracle together, over both stores."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import Oracle, distinct, grid
from helpers.soak import examples
from helpers.tuned import tune
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from accumulator import FullBatch, FullBatchAccumulator
from accumulator.exceptions import AccumulatorError, ClosedError, NothingPushedError

SHAPES, DTYPES = [(2, 1), (3,)], ["f4", "i2"]


class Machine(RuleBasedStateMachine):
    """Pushes of every kind, refusals, reads in between, and the end of it."""

    memory_threshold = 100

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        tune(self.patch, behind_nbytes=0)  # rows that are handed over are copied later, however small
        self.folder = Path(tempfile.mkdtemp())
        self.count = 0
        self.result = None
        self.is_closed = False

    @initialize(
        n=st.integers(0, 30), policy=st.sampled_from(["error", "first", "last"]), raster=st.booleans()
    )
    def start(self, n, policy, raster):
        """Make both, over a list in raster order or not."""
        locs = grid(n)
        self.locs = locs if raster else np.random.default_rng(n).permutation(locs)
        self.oracle = Oracle(self.locs, policy)
        self.accumulator = FullBatchAccumulator(
            self.locs,
            save_path=self.folder / "spill",
            memory_threshold=self.memory_threshold,
            on_duplicate=policy,
        )

    def is_open(self):
        """Whether pushes are taken."""
        return self.result is None and not self.is_closed

    def heads(self, n):
        """Return two heads of values that never came before."""
        self.count += 1
        first = 1 + 97 * self.count
        return [distinct(n, shape, d, first=first) for shape, d in zip(SHAPES, DTYPES, strict=True)]

    @precondition(lambda self: self.is_open())
    @rule(rows=st.lists(st.integers(0, 29), max_size=12))
    def push(self, rows):
        """Push any rows; the accumulator takes exactly what the oracle takes."""
        locs = self.locs[[row for row in rows if row < len(self.locs)]].reshape(-1, 4)
        self.push_both(locs)

    @precondition(lambda self: self.is_open())
    @rule(start=st.integers(0, 29), n=st.integers(0, 12))
    def push_run(self, start, n):
        """Push rows that follow each other."""
        self.push_both(self.locs[start : start + n])

    @precondition(lambda self: self.is_open())
    @rule(n=st.integers(1, 12))
    def push_next(self, n):
        """Push what follows the front, as a loop in order does."""
        self.push_both(self.locs[self.oracle.n_consumed :][:n])

    def push_both(self, locs):
        """Push to the oracle and to the accumulator, which must agree whether it is taken."""
        heads = self.heads(len(locs))
        if self.oracle.accepts(locs):
            self.oracle.push([head.copy() for head in heads], locs)
            is_lent = self.count % 3 == 0
            self.accumulator.push(tuple(heads), locs.astype("i4"), copy=not is_lent)
            if not is_lent:
                for head in heads:
                    head[...] = 0  # the loop uses its arrays again
        else:
            with pytest.raises(ValueError, match="batch_locs"):
                self.accumulator.push(tuple(heads), locs)

    @precondition(lambda self: self.is_open() and self.accumulator.canvas)
    @rule(kind=st.sampled_from(["unknown", "shape", "dtype", "count", "rows"]))
    def push_nonsense(self, kind):
        """Push what no accumulator takes."""
        locs = self.locs[:2].copy()
        heads = self.heads(len(locs))
        if kind == "unknown":
            locs, heads = np.vstack([locs, [[7, 7, 7, 7]]]), self.heads(len(locs) + 1)
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

    @precondition(lambda self: self.is_open())
    @rule()
    def look_at_the_canvas(self):
        """Read everything in between, which writes open chunks early."""
        for canvas, wanted in zip(self.accumulator.canvas, self.expected(), strict=False):
            np.testing.assert_array_equal(canvas[:], wanted)

    @precondition(lambda self: self.is_open())
    @rule()
    def finalize(self):
        """End the run; the result is what the oracle holds."""
        if not self.accumulator.canvas and len(self.locs):
            with pytest.raises(NothingPushedError):
                self.accumulator.finalize()
            return
        self.result = self.accumulator.finalize()
        self.check(self.result)

    @precondition(lambda self: self.result is not None)
    @rule()
    def save_and_load(self):
        """Keep the result, and open what was kept."""
        self.count += 1
        path = self.folder / f"kept-{self.count}"
        self.result.save(path)
        loaded = FullBatch.load(path)
        self.check(loaded)
        self.check(self.result)

    @precondition(lambda self: self.is_open())
    @rule()
    def close(self):
        """Give up."""
        self.accumulator.close()
        self.is_closed = True

    @precondition(lambda self: not self.is_open())
    @rule()
    def push_too_late(self):
        """Nothing is taken after the end."""
        with pytest.raises(ClosedError):
            self.accumulator.push(tuple(self.heads(1)), self.locs[:1])

    @invariant()
    def agrees(self):
        """Compare what is consumed, written and missing with the oracle."""
        if not self.is_open():
            return
        accumulator, oracle = self.accumulator, self.oracle
        np.testing.assert_array_equal(accumulator.written, oracle.written())
        np.testing.assert_array_equal(accumulator.output_locs, self.locs[: oracle.n_consumed])
        np.testing.assert_array_equal(accumulator.full_output_locs, self.locs[oracle.n_consumed :])
        np.testing.assert_array_equal(accumulator.missing_locs, self.locs[~oracle.written()])

    def expected(self):
        """Return the rows of all heads."""
        if not len(self.locs):
            return [np.zeros((0, *s), d) for s, d in zip(SHAPES, DTYPES, strict=True)]
        return self.oracle.outputs(SHAPES, DTYPES)

    def check(self, result):
        """Compare a result with the oracle."""
        for output, wanted in zip(result.outputs, self.expected(), strict=bool(result.outputs)):
            np.testing.assert_array_equal(output[:], wanted, strict=True)
        np.testing.assert_array_equal(result.output_locs, self.locs)
        np.testing.assert_array_equal(result.written, self.oracle.written())

    def teardown(self):
        """Leave nothing."""
        if hasattr(self, "accumulator"):
            self.accumulator.close()
        if self.result is not None:
            self.result.close()
            assert not (self.folder / "spill").exists()
        shutil.rmtree(self.folder)
        self.patch.undo()


class MachineOnDisk(Machine):
    """The same over zarr, with chunks of a few rows."""

    memory_threshold = 0

    def __init__(self):
        super().__init__()
        tune(self.patch, chunk_nbytes=32)


class MachineWithBlocks(MachineOnDisk):
    """The same where all rows go to blocks, none to a log."""

    def __init__(self):
        super().__init__()
        tune(self.patch, loose_row_nbytes=0)


TestInRam = Machine.TestCase
TestOnDisk = MachineOnDisk.TestCase
TestWithBlocks = MachineWithBlocks.TestCase
TestInRam.settings = TestOnDisk.settings = TestWithBlocks.settings = settings(
    max_examples=examples(15), stateful_step_count=30, deadline=None
)

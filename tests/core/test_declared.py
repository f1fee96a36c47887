"""Heads that are declared before the first batch: a run that nothing is pushed to is complete."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator
from accumulator.exceptions import (
    HeadDtypeError,
    HeadError,
    NothingPushedError,
    OptionError,
    ResumeError,
    StorageError,
)

LOCS = grid(7)


class Tensor:
    """What another library calls an array, of no rows."""

    def __array__(self, dtype=None, copy=None):
        """Return its values."""
        return np.zeros((0, 3), "u1")


PAIRS = {"map": ((2, 3, 1), "float32"), "label": ((3,), np.uint8)}
EXAMPLES = {"map": np.ones((5, 2, 3, 1), "f4"), "label": Tensor()}
KINDS = [{}, {"memory_threshold": 0}, {"store": "run.zarr"}]


@pytest.mark.parametrize("how", KINDS, ids=["RAM", "disk", "store"])
@pytest.mark.parametrize("heads", [PAIRS, EXAMPLES, {"map": PAIRS["map"], "label": EXAMPLES["label"]}])
@pytest.mark.parametrize("n", [7, 0])
def test_slide_without_tissue_gives_a_complete_result_of_fill_values(how, heads, n):
    """Nothing is pushed, or there is no location: every head is there, in its shape and dtype."""
    with FullBatchAccumulator(LOCS[:n], heads=heads, fill_value={"map": 0.5}, **how) as accumulator:
        assert "heads: 2" in repr(accumulator)
        assert accumulator.nbytes == n * (24 + 3)
        assert accumulator.plan().n_rows == n
    batch = accumulator.finalize()
    assert list(batch.outputs) == ["map", "label"]
    np.testing.assert_array_equal(batch.outputs["map"][:], np.full((n, 2, 3, 1), 0.5, "f4"), strict=True)
    np.testing.assert_array_equal(batch.outputs["label"][:], np.zeros((n, 3), "u1"), strict=True)
    assert not batch.written.any()
    if how.get("store"):
        batch = FullBatch.load("run.zarr")
        np.testing.assert_array_equal(batch.outputs["map"][:], np.full((n, 2, 3, 1), 0.5, "f4"))


@pytest.mark.parametrize("how", KINDS, ids=["RAM", "disk", "store"])
def test_declared_heads_are_those_of_the_first_batch(how):
    """What is pushed goes where it belongs; a list declares heads without names."""
    heads = [distinct(4, (2, 3)), distinct(4, (), "i8")]
    with FullBatchAccumulator(LOCS, heads=[((2, 3), "f4"), ((), int)], **how) as accumulator:
        accumulator.push(heads, LOCS[[5, 2, 0, 6]])
    for output, head in zip(accumulator.finalize().outputs, heads, strict=True):
        np.testing.assert_array_equal(output[:][[5, 2, 0, 6]], head, strict=True)
        assert not output[:][[1, 3, 4]].any()


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        ({"map": np.ones((1, 2, 3, 1), "f4")}, HeadError, "but heads= had"),
        ([np.ones((1, 2, 3, 1), "f4"), np.ones((1, 3), "u1")], HeadError, "heads= came with names"),
        ({"map": np.ones((1, 3, 2, 1), "f4"), "label": np.ones((1, 3), "u1")}, HeadError, "heads= had"),
        (
            {"map": np.ones((1, 2, 3, 1)), "label": np.ones((1, 3), "u1")},
            HeadDtypeError,
            "heads= had float32",
        ),
    ],
)
@pytest.mark.parametrize("how", KINDS, ids=["RAM", "disk", "store"])
def test_first_batch_that_differs_from_what_was_declared_is_refused(how, batch, error, said):
    """As a later batch is that differs from the first; nothing of it is taken."""
    with FullBatchAccumulator(LOCS, heads=PAIRS, **how) as accumulator:
        with pytest.raises(error, match=said):
            accumulator.push(batch, LOCS[:1])
        assert not accumulator.written.any()
        accumulator.push({"label": np.ones((1, 3), "u1"), "map": np.ones((1, 2, 3, 1), "f2")}, LOCS[:1])
    assert accumulator.finalize().outputs["map"][0].all()


def test_declared_dtype_is_what_dtype_says():
    """As with a batch, `dtype=` decides what is stored, and takes what it can hold."""
    with FullBatchAccumulator(LOCS, heads=[((2,), "f8")], dtype="f2") as accumulator:
        accumulator.push([np.ones((1, 2), "f4")], LOCS[:1])
    assert accumulator.finalize().outputs[0].dtype == np.float16
    with FullBatchAccumulator(LOCS, heads=[((2,), ml_dtypes.bfloat16)]) as accumulator:
        pass
    assert accumulator.finalize().outputs[0].dtype == np.float32


def test_resumed_store_that_has_other_heads_is_refused():
    """At construction, before anything is pushed; and it is free for who declares the right ones."""
    FullBatchAccumulator(LOCS, heads=PAIRS, store="run.zarr").close()
    for heads in ([((2, 3, 1), "f4"), ((3,), "u1")], {**PAIRS, "map": ((2, 3), "f4")}, {"map": PAIRS["map"]}):
        with pytest.raises(ResumeError, match="another run"):
            FullBatchAccumulator(LOCS, heads=heads, store="run.zarr", mode="a")
    with FullBatchAccumulator(LOCS, heads=PAIRS, store="run.zarr", mode="a") as accumulator:
        accumulator.push({"map": np.ones((7, 2, 3, 1), "f4"), "label": np.ones((7, 3), "u1")}, LOCS)
    assert FullBatch.load("run.zarr").outputs["map"][:].all()


@pytest.mark.parametrize(
    ("heads", "error", "said"),
    [
        ([], OptionError, "heads is empty"),
        ({}, OptionError, "heads is empty"),
        ("f4", OptionError, "give a list"),
        (np.ones((1, 2)), OptionError, "give a list"),
        (((2, 3), "f4"), OptionError, r"heads\[0\] has the patch shape 2"),
        ([(5, "f4")], OptionError, "patch shape 5"),
        ([((2, -3), "f4")], OptionError, "patch shape"),
        ([((2, True), "f4")], OptionError, "patch shape"),
        ([((2, 3), "nonsense")], OptionError, "'nonsense', which NumPy does not know"),
        ([((2, 3), "f4,,")], OptionError, "'f4,,', which NumPy does not know"),
        ([((2**62, 4), "f4")], OptionError, "too large for any array"),
        ([((2, 3), None)], OptionError, "dtype None"),
        ([[[1, 2], [3, 4]]], OptionError, "NumPy does not know"),
        ([[[1.0, 2.0], [3, 4], [5, 6]]], OptionError, "is declared by a pair"),
        ({"a": np.float32}, OptionError, "is declared by a pair"),
        ([((2, 3), "U3")], HeadDtypeError, "predictions are bool"),
        ([np.array(1.0)], HeadError, "single number"),
        ({1: ((2,), "f4")}, HeadError, "names must be strings"),
    ],
)
def test_declaration_that_may_mean_something_else_is_refused(heads, error, said):
    """Before anything is made on disk."""
    with pytest.raises(error, match=said):
        FullBatchAccumulator(LOCS, heads=heads, store="run.zarr")
    assert not Path("run.zarr").exists()


def test_disk_without_room_for_declared_heads_is_refused_at_once():
    """A plan is made of what was declared, and nothing is left."""
    heads = [((2**20, 2**20), "f8")]
    with pytest.raises(StorageError, match="have to go to disk"):
        FullBatchAccumulator(LOCS, heads=heads, n_expected=7, memory_threshold=0)
    with pytest.raises(StorageError, match="have to go to disk"):
        FullBatchAccumulator(LOCS, heads=heads, n_expected=7, store="run.zarr")
    assert not Path("run.zarr").exists()
    assert not Path("temp_fullbatch").exists()


def test_without_declared_heads_the_error_names_them():
    """One sentence, with what would have helped."""
    said = r"declare them with heads=\[\(patch_shape, dtype\)"
    with pytest.raises(NothingPushedError, match=said), FullBatchAccumulator(LOCS):
        pass

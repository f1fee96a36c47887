"""What may be passed as predictions: every array-like that NumPy can look at, by its values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, prepare_multitask_full_batch
from accumulator.exceptions import (
    DuplicateLocationError,
    HeadDtypeError,
    HeadError,
    LocationError,
    UnknownLocationError,
)

LOCS = grid(3)


class Arrayish:
    """Anything with ``__array__``."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Capsule:
    """Anything with DLPack only."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **kwargs):
        return self.values.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Tensor:
    """What a torch tensor does: it must be detached first, and NumPy does not know its bfloat16."""

    def __init__(self, values, dtype="torch.float32", *, requires_grad=True):
        self.values, self.dtype, self.requires_grad = values, dtype, requires_grad

    def detach(self):
        return Tensor(self.values, self.dtype, requires_grad=False)

    def float(self):
        return Tensor(self.values.astype("f4"), "torch.float32", requires_grad=False)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


def read_only(values):
    """Return an array that cannot be written to."""
    values = values.copy()
    values.flags.writeable = False
    return values


VALUES = distinct(3)
INPUTS = {
    "list": VALUES.tolist(),
    "list of arrays": list(VALUES),
    "F order": np.asfortranarray(VALUES),
    "negative strides": VALUES[::-1, ::-1].copy()[::-1, ::-1],
    "channels first": np.ascontiguousarray(VALUES.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
    "read-only": read_only(VALUES),
    "big-endian": VALUES.astype(">f4"),
    "subclass": VALUES.view(np.recarray),
    "broadcast": np.broadcast_to(VALUES, (3, 2, 2, 1)),
    "__array__": Arrayish(VALUES),
    "DLPack": Capsule(VALUES),
    "tensor": Tensor(VALUES),
    "bfloat16 tensor": Tensor(VALUES, "torch.bfloat16"),
    "bfloat16 array": VALUES.astype(ml_dtypes.bfloat16),
    "bfloat16 __array__": Arrayish(VALUES.astype(ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_heads_are_taken_by_value(where, kind):
    """A head of any kind of array ends in its rows, alone, in a tuple, or named."""
    for batch_output in (INPUTS[kind], (INPUTS[kind],), {"head": INPUTS[kind]}):
        if isinstance(batch_output, list):
            continue  # a list is a list of heads
        with FullBatchAccumulator(LOCS, **where) as accumulator:
            accumulator.push(batch_output, LOCS[[2, 0, 1]])
        (output,) = accumulator.canvas
        np.testing.assert_array_equal(output[:][[2, 0, 1]], VALUES)
        if kind != "list":
            assert output.dtype == (">f4" if kind == "big-endian" else "f4")


@pytest.mark.parametrize("wrap", [Arrayish, Capsule, Tensor, np.asfortranarray, read_only, list])
def test_locations_are_taken_by_value(wrap):
    """Locations may be tensors and other array-likes too, in class and function."""
    with FullBatchAccumulator(wrap(LOCS)) as accumulator:
        accumulator.push(VALUES, wrap(LOCS[::-1]))
    np.testing.assert_array_equal(accumulator.finalize().outputs[0], VALUES[::-1])
    outputs, _, done = prepare_multitask_full_batch(
        (VALUES,), wrap(LOCS[::-1]), wrap(LOCS), wrap(LOCS + 100), is_last=True
    )
    np.testing.assert_array_equal(outputs[0], VALUES[::-1])
    np.testing.assert_array_equal(done, [*(LOCS + 100), *LOCS])


def as_columns(locs, wrap=np.ascontiguousarray, kind=list):
    """Return what a loader makes of tuples: an array for each number of a location."""
    return kind(wrap(column) for column in np.ascontiguousarray(np.asarray(locs).T))


@pytest.mark.parametrize("wrap", [np.ascontiguousarray, Arrayish, Capsule, Tensor])
@pytest.mark.parametrize("kind", [list, tuple])
def test_locations_may_be_columns_everywhere(where, wrap, kind):
    """As loaders collate tuples: in both classes, in a look and in the function, also four boxes at once."""
    locs, patches = grid(11), distinct(11, (4, 4, 1))
    order = np.random.default_rng(7).permutation(11)
    for collector in (FullBatchAccumulator, Stitcher):
        with collector(locs, **where) as one, collector(locs, **where) as other:
            for start in range(0, 11, 4):  # the first two batches are of four
                rows = order[start : start + 4]
                one.push(patches[rows], as_columns(locs[rows], wrap, kind))
                other.push(patches[rows], locs[rows])
            if collector is Stitcher:
                one.will_not_come(as_columns(locs, wrap, kind))  # those that came stay
            if collector is FullBatchAccumulator:
                assert one.missing_rows(as_columns(locs, wrap, kind)).tolist() == []
            np.testing.assert_array_equal(one.written, other.written)
        np.testing.assert_array_equal(one.finalize().outputs[0][:], other.finalize().outputs[0][:])
    for n in (4, 7):
        outputs, left, done = prepare_multitask_full_batch(
            (patches[:n],), as_columns(locs[:n], wrap, kind), locs, None, is_last=False
        )
        np.testing.assert_array_equal(outputs[0], patches[:n])
        assert (len(left), len(done)) == (11 - n, n)


@pytest.mark.parametrize("wrap", [list, np.asarray, Arrayish, Capsule, Tensor])
def test_locations_of_one_number_may_be_in_one_dimension_everywhere(tmp_path, where, wrap):
    """`[3, 7, 9]` are three locations: in both classes, in a look, in the function, and in what is stored."""
    locs, rows, patches = np.array([3, 7, 9, 4]), [2, 0, 3], distinct(3)
    with FullBatchAccumulator(wrap(locs), **where) as accumulator:
        assert accumulator.missing_rows(wrap(locs[1:])).tolist() == [0, 1, 2]
        accumulator.push(patches, wrap(locs[rows]))
        assert accumulator.missing_locs.tolist() == [[7]]
    result = accumulator.finalize()
    np.testing.assert_array_equal(result.outputs[0][:][rows], patches)
    result.save(tmp_path / "saved.zarr")
    assert FullBatch.load(tmp_path / "saved.zarr").output_locs.tolist() == [[3], [7], [9], [4]]
    outputs, left, done = prepare_multitask_full_batch(
        (patches,), wrap(locs[rows]), wrap(locs), wrap(locs + 10), is_last=True
    )
    np.testing.assert_array_equal(outputs[0][rows], patches)
    assert left.shape == (0, 1)
    assert done.tolist() == [[13], [17], [19], [14], [3], [7], [9], [4]]
    with pytest.raises(LocationError, match="columns"):
        Stitcher(wrap(locs))


def test_refused_columns_change_nothing(where):
    """Four arrays of four that are in the list neither way are refused, and the next batch is taken."""
    locs = grid(8)
    with FullBatchAccumulator(locs, **where) as accumulator:
        with pytest.raises(UnknownLocationError):
            accumulator.push(distinct(4), as_columns(locs[:4] + 1))
        with pytest.raises(HeadError, match="batch_locs 5, head 0 4"):
            accumulator.push(distinct(4), as_columns(locs[:5]))
        assert not accumulator.written.any()
        accumulator.push(distinct(4), as_columns(locs[4:]))
    assert accumulator.written.tolist() == [False] * 4 + [True] * 4


def test_predictions_are_not_copied_on_the_way(monkeypatch):
    """The store is given the model's own memory: the one copy is the one into place."""
    seen = []
    monkeypatch.setattr(
        "accumulator._stores.memory.ram.RamRows.put", lambda _self, _rows, values, **_: seen.extend(values)
    )
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push((VALUES, Tensor(VALUES), Capsule(VALUES)), LOCS)
    assert len(seen) == 3
    assert all(np.shares_memory(values, VALUES) for values in seen)


@pytest.mark.parametrize("wrap", [Arrayish, Capsule, Tensor, list])
def test_repeats_are_named_whatever_the_locations_are(wrap):
    """A location pushed twice is named also when it came as another library's array."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(VALUES, wrap(LOCS))
        with pytest.raises(DuplicateLocationError) as caught:
            accumulator.push(VALUES[:1], wrap(LOCS[1:2]))
    np.testing.assert_array_equal(caught.value.locations, LOCS[1:2])


class Broken:
    """Something whose ``__array__`` fails in its own way."""

    def __array__(self, dtype=None, copy=None):
        raise AttributeError("no such thing")


def test_array_that_fails_is_named():
    """Whatever goes wrong inside a foreign array is a typed error that names the head."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(VALUES, LOCS)
        with pytest.raises(HeadDtypeError, match=r"head 0 is a test_validation.Broken .*no such thing"):
            accumulator.push(Broken(), LOCS)

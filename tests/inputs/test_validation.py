"""What may be passed as predictions: every array-like that NumPy can look at, by its values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatchAccumulator, prepare_multitask_full_batch
from accumulator.exceptions import DuplicateLocationError, HeadDtypeError

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

    def __init__(self, values, dtype="torch.float32", *, device="cpu", requires_grad=True):
        self.values, self.dtype, self.device, self.requires_grad = values, dtype, device, requires_grad

    def detach(self):
        return Tensor(self.values, self.dtype, device=self.device, requires_grad=False)

    def float(self):
        return Tensor(self.values.astype("f4"), "torch.float32", device=self.device, requires_grad=False)

    def __array__(self, dtype=None, copy=None):
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
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


def test_gpu_tensor_is_refused_with_the_remedy():
    """A tensor that is not in CPU memory is not fetched behind the user's back."""
    with FullBatchAccumulator(LOCS) as accumulator:
        with pytest.raises(HeadDtypeError, match=r"head 0 is a test_validation.Tensor .* tensor.cpu\(\)"):
            accumulator.push((Tensor(VALUES, device="cuda:0"),), LOCS)
        accumulator.push(Tensor(VALUES), LOCS)


def test_predictions_are_not_copied_on_the_way(monkeypatch):
    """The store is given the model's own memory: the one copy is the one into place."""
    seen = []
    monkeypatch.setattr(
        "accumulator._stores.memory.ram.RamRows.put", lambda _self, _rows, values: seen.extend(values)
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

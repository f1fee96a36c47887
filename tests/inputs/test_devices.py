"""What lies on a device comes over by value, in one copy, or is refused by its name and with the remedy."""

from __future__ import annotations

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatchAccumulator, Stitcher, prepare_multitask_full_batch
from accumulator._inputs.arrays import as_array
from accumulator.exceptions import HeadDtypeError, LocationError

CPU, CUDA, PINNED, METAL, ROCM_PINNED, MANAGED = 1, 2, 3, 8, 11, 13
LOCS = grid(5)


class OnDevice:
    """Values in memory that NumPy cannot read; what is brought over is noted in ``moved``, in bytes."""

    def __init__(self, values, kind=CUDA):
        self.values, self.kind, self.dtype, self.moved = values, kind, values.dtype, []

    def over(self):
        self.moved.append(self.values.nbytes)
        return self.values.copy()

    def __dlpack_device__(self):
        return self.kind, 0


class CuPy(OnDevice):
    """What CuPy does since it knows ``dl_device``."""

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        assert stream is None
        if dl_device != (CPU, 0):
            raise BufferError("unsupported device requested.")
        return self.over().__dlpack__(max_version=max_version)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def get(self):
        return self.over()


class OldCuPy(CuPy):
    """What it did before: NumPy then finds that the device is none of its own."""

    def __dlpack__(self, stream=None):
        raise AssertionError("NumPy asks for more than this takes")


class Jax(OnDevice):
    """What JAX does: NumPy may have it, by DLPack only where it lies on one device, and is no bfloat16."""

    def __dlpack__(self, **_):
        raise BufferError("__dlpack__ only supported for unsharded arrays.")

    def __array__(self, dtype=None, copy=None):
        return self.over()


class Sharded(Jax):
    """The same array on many devices."""

    def __dlpack_device__(self):
        raise BufferError("__dlpack__ only supported for unsharded arrays.")


class DLPackOnly(OnDevice):
    """What has no other word, such as SYCL's or a stranger's."""

    __dlpack__ = CuPy.__dlpack__


class Host(OnDevice):
    """Another's array in memory of the CPU, which it copies if it is asked for on another device."""

    def __dlpack__(self, *, dl_device=None, **asked):
        values = self.values if dl_device in {None, (self.kind, 0)} else self.over()
        return values.__dlpack__(**asked)


class Torch:
    """What torch does: each step is a tensor, and those that are not made yet are refused."""

    layout, is_quantized, is_meta = "torch.strided", False, False

    def __init__(self, values, *, kind=CUDA, grad=True, conj=False, neg=False, moved=None):
        self.values, self.kind, self.grad, self.conj, self.neg = values, kind, grad, conj, neg
        self.moved = [] if moved is None else moved
        self.dtype = f"torch.{values.dtype.name}"

    def but(self, **changed):
        now = {name: getattr(self, name) for name in ("values", "kind", "grad", "conj", "neg", "moved")}
        return type(self)(**now | changed)

    def detach(self):
        return self.but(grad=False)

    def resolve_conj(self):
        return self.but(values=self.values.conj(), conj=False) if self.conj else self

    def resolve_neg(self):
        return self.but(values=-self.values, neg=False) if self.neg else self

    def cpu(self):
        if self.kind in {CPU, PINNED}:
            return self
        self.moved.append(self.values.nbytes)
        return self.but(values=self.values.copy(), kind=CPU)

    def float(self):
        assert self.kind == CPU
        return self.but(values=self.values.astype("f4"))

    def __dlpack_device__(self):
        if self.kind == METAL:
            raise ValueError("Unknown device type mps for Dlpack")
        return self.kind, 0

    def __dlpack__(self, **_):
        if self.grad or self.conj:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        raise AssertionError("it would not tell that a number is negative")

    def __array__(self, dtype=None):
        if self.kind not in {CPU, PINNED}:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if self.grad or self.conj or self.neg:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad, or has a bit set.")
        if self.values.dtype.isbuiltin != 1:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values


DTYPES = ["?", "u1", "i8", "f2", "f4", "f8", "c8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
KINDS = {
    "CuPy": CuPy,
    "CuPy, managed": lambda values: CuPy(values, MANAGED),
    "old CuPy": OldCuPy,
    "JAX": Jax,
    "JAX, sharded": Sharded,
    "torch": Torch,
    "torch, MPS": lambda values: Torch(values, kind=METAL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_heads_come_from_their_device_in_one_copy(where, kind):
    """By value, once, in as many bytes as they have there; small floats are widened here."""
    values = {np.dtype(dtype).name: (distinct(3, (4, 4)) % 7).astype(dtype) for dtype in DTYPES}
    heads = {name: KINDS[kind](each) for name, each in values.items()}
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(heads, LOCS[[4, 0, 2]])
        assert {name: head.moved for name, head in heads.items()} == {
            name: [each.nbytes] for name, each in values.items()
        }
    for name, output in accumulator.finalize().outputs.items():
        assert output.dtype == ("f4" if "float8" in name or name == "bfloat16" else name)
        np.testing.assert_array_equal(output[:][[4, 0, 2]], values[name].astype(output.dtype))


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy cannot ask for a device before 2.1"
)
def test_array_that_only_knows_dlpack_comes_from_its_device():
    """And what it says is told where it does not let itself be moved."""
    head = DLPackOnly(distinct(5))
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(head, LOCS)
    assert head.moved == [head.values.nbytes]
    np.testing.assert_array_equal(accumulator.finalize().outputs[0], head.values)
    stubborn = DLPackOnly(distinct(5).astype(ml_dtypes.bfloat16))
    stubborn.over = lambda: SimpleNamespace(__dlpack__=None)
    with pytest.raises(
        HeadDtypeError, match=r"head 0 is a test_devices.DLPackOnly .*not callable.*tensor.cpu"
    ):
        as_array(stubborn, "head 0", HeadDtypeError)


def test_older_numpy_has_the_librarys_own_words(monkeypatch):
    """Before 2.1 it could not ask for a device."""
    from_dlpack = np.from_dlpack

    def older(raw, /):
        return from_dlpack(raw)

    monkeypatch.setattr(np, "from_dlpack", older)
    for kind in (CuPy, Jax):
        np.testing.assert_array_equal(as_array(kind(LOCS), "locs", LocationError), LOCS)
    with pytest.raises(LocationError, match=r"locs is a test_devices.DLPackOnly .*device"):
        as_array(DLPackOnly(LOCS), "locs", LocationError)


@pytest.mark.parametrize(("conj", "neg"), [(True, False), (False, True), (True, True)])
def test_bits_of_a_tensor_are_not_lost(conj, neg):
    """What only a bit says, that a number is negative or conjugate, is in the values that are stored."""
    values = (distinct(5, (2,)) * (1 + 2j)).astype("c8")
    expected = (-1 if neg else 1) * (values.conj() if conj else values)
    for kind in (CPU, CUDA):
        head = Torch(values, kind=kind, conj=conj, neg=neg)
        with FullBatchAccumulator(LOCS) as accumulator:
            accumulator.push(head, LOCS)
        np.testing.assert_array_equal(accumulator.finalize().outputs[0], expected)
        assert head.moved == [values.nbytes] * (kind == CUDA)


@pytest.mark.parametrize("kind", KINDS)
def test_locations_come_from_their_device(where, kind):
    """As list, as batch, as columns, in a look and in the function; in as many copies as there are arrays."""
    wrap, patches = KINDS[kind], distinct(5, (4, 4, 1))
    for collector in (FullBatchAccumulator, Stitcher):
        boxes, batch = wrap(LOCS), wrap(LOCS[:2])
        with collector(boxes, **where) as one, collector(LOCS, **where) as other:
            one.push(patches[:2], batch)
            other.push(patches[:2], LOCS[:2])
            columns = [wrap(np.ascontiguousarray(column)) for column in LOCS[2:].T]
            one.push(patches[2:], columns)
            other.push(patches[2:], LOCS[2:])
            if collector is FullBatchAccumulator:
                assert one.missing_rows(wrap(LOCS)).tolist() == []
        np.testing.assert_array_equal(one.finalize().outputs[0][:], other.finalize().outputs[0][:])
        assert [each.moved for each in (boxes, batch, *columns)] == [[160], [64], *[[24]] * 4]
    outputs, _, done = prepare_multitask_full_batch(
        (wrap(patches),), wrap(LOCS[::-1].copy()), wrap(LOCS), wrap(LOCS + 100), is_last=True
    )
    np.testing.assert_array_equal(outputs[0], patches[::-1])
    np.testing.assert_array_equal(done, [*(LOCS + 100), *LOCS])


@pytest.mark.parametrize("kind", [CPU, PINNED, ROCM_PINNED])
def test_what_is_in_cpu_memory_is_not_copied(kind):
    """Pinned memory is the CPU's: NumPy looks at it where it is."""
    values = distinct(5)
    head = Host(values, kind)
    assert np.shares_memory(as_array(head, "head 0", HeadDtypeError), values)
    if kind != ROCM_PINNED:
        assert np.shares_memory(as_array(Torch(values, kind=kind), "head 0", HeadDtypeError), values)


class Meta(Torch):
    """A tensor without data."""

    is_meta = True

    def cpu(self):
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")


class Sparse(Torch):
    """A tensor of those numbers that are not zero."""

    layout = "torch.sparse_coo"

    def __array__(self, dtype=None):
        raise TypeError("can't convert Sparse layout tensor to numpy.")


class Quantized(Torch):
    """A tensor of numbers that stand for others."""

    is_quantized = True

    def __array__(self, dtype=None):
        raise TypeError("Got unsupported ScalarType QInt8")


REFUSED = {Meta: "no data", Sparse: r"\.to_dense\(\)", Quantized: r"\.dequantize\(\)"}


@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_without_plain_numbers_are_refused_with_the_remedy(where, kind):
    """As heads and as locations, and nothing was taken."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        with pytest.raises(
            HeadDtypeError, match=f"head 0 is a test_devices.{kind.__name__} .*{REFUSED[kind]}"
        ):
            accumulator.push((kind(distinct(5)),), LOCS)
        with pytest.raises(LocationError, match=f"batch_locs is a .*{REFUSED[kind]}"):
            accumulator.push(distinct(5), kind(LOCS))
        assert accumulator.canvas == []
        accumulator.push(distinct(5), LOCS)
    with pytest.raises(LocationError, match=f"full_output_locs is a .*{REFUSED[kind]}"):
        FullBatchAccumulator(kind(LOCS))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of what it is about to give up
def test_torch_itself():
    """What the stand-ins above say of it, where it is installed."""
    torch = pytest.importorskip("torch")
    values = distinct(5)
    plain = torch.from_numpy(values)
    complex_ = torch.tensor(values[:, 0, 0] * (1 - 2j))
    for tensor, expected in {
        plain: values,
        plain.clone().requires_grad_(): values,
        torch.nn.Parameter(plain): values,
        plain.bfloat16(): plain.bfloat16().float().numpy(),
        plain.to(torch.float8_e4m3fn).requires_grad_(): plain.to(torch.float8_e4m3fn).float().numpy(),
        complex_.conj(): values[:, 0, 0] * (1 + 2j),
        complex_.conj().imag: values[:, 0, 0] * 2,
        plain.half().transpose(1, 2): values.astype("f2").transpose(0, 2, 1, 3),
    }.items():
        outputs, _, _ = prepare_multitask_full_batch(
            (tensor,), torch.from_numpy(LOCS), torch.from_numpy(LOCS), None, is_last=True
        )
        np.testing.assert_array_equal(outputs[0], expected, strict=True)
    assert np.shares_memory(as_array(plain, "head 0", HeadDtypeError), values)
    refused = {
        "no data": torch.empty(5, 2, device="meta"),
        r"to_dense": plain.reshape(5, -1).to_sparse(),
        r"dense.*to_dense": plain.reshape(5, -1).to_sparse_csr(),
        r"dequantize": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
    }
    for remedy, tensor in refused.items():
        with pytest.raises(HeadDtypeError, match=f"head 0 is a torch.Tensor .*{remedy}"):
            prepare_multitask_full_batch((tensor,), LOCS, LOCS, None, is_last=True)
    loader = torch.utils.data.DataLoader([tuple(map(int, row)) for row in grid(11)], batch_size=4)
    with FullBatchAccumulator(grid(11)) as accumulator:
        for batch in loader:  # of 4, 4 and 3 locations: lists of four tensors
            accumulator.push(batch[0], batch)
    np.testing.assert_array_equal(accumulator.finalize().outputs[0], grid(11)[:, 0])

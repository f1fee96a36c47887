"""Anything array-like becomes a NumPy array here: no mask is dropped, and no value is rounded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.ma  # np.unique imports it at its first call, when there may be no file to be opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.exceptions import AccumulatorError
    from accumulator.typing import ArrayLike

_MOST_NESTED: Final = 64  # lists in each other, which NumPy takes at most
_MOST_WRAPPED: Final = 8  # objects in each other, that may hold a masked array
_HOLDERS: Final = ("_meta", "data", "magnitude")  # what it is called in dask, xarray and pint
_NO_NUMBERS: Final = (str, bytes, bytearray)
_NUMBERS: Final = (int, float, complex, np.generic)
_REFUSALS: Final = (
    TypeError,
    ValueError,
    RuntimeError,
    BufferError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
)
_SMALL: Final = re.compile(r"bfloat16|float[468]_")  # of which each value is a float32
# DLPack's devices whose memory NumPy may read: the CPU, and what CUDA or ROCm pinned there.
_HOST: Final = (1, 3, 11)
# What is done to a tensor, in torch's words: none of them copies where it has nothing to do.
_STEPS: Final = ("detach", "resolve_conj", "resolve_neg", "cpu")
_WIDER: Final = {"b": np.complex64, "c": np.complex64, "f": np.float32, "i": np.int8, "u": np.uint8}
_FOREIGN: Final = re.compile(r"bfloat16|float[468]_\w+|b?complex32|u?int[124]")


class MaskedError(Exception):
    """An array has a mask, which would be lost."""


def as_array(raw: ArrayLike, label: str, error: type[AccumulatorError]) -> NDArray[Any]:
    """Look at anything array-like as NumPy, sharing its memory wherever that is possible.

    What is on another device is copied from there, once. Numbers of less than 8 bits, and floats that only
    other libraries know, become the next that NumPy has.
    """
    if type(raw) is np.ndarray:
        array: NDArray[Any] = raw
    else:
        try:
            array = _to_numpy(raw)
        except MaskedError:
            raise error(
                f"{label} is a masked array, or made of one: call .filled(value), as its mask would be lost"
            ) from None
        except _REFUSALS as cause:
            raise error(
                f"{label} is a {type(raw).__module__}.{type(raw).__qualname__} that NumPy cannot look "
                f"at ({cause}): {_remedy(raw)}"
            ) from cause
    return array if array.dtype.isbuiltin == 1 else _widened(array)


def is_foreign(dtype: np.dtype[Any]) -> bool:
    """Whether only NumPy on this machine, or another library, knows a dtype: no file can have it."""
    return dtype.char in "gG" or dtype.isbuiltin == 2


def _to_numpy(raw: Any) -> NDArray[Any]:
    """Return an array of what may have a mask; raise MaskedError where it has one."""
    if isinstance(raw, Sequence) and not isinstance(raw, _NO_NUMBERS) and not hasattr(raw, "__array__"):
        return np.asarray(_plain_list(raw, 0))
    _refuse_mask(raw)
    graph = getattr(raw, "__dask_graph__", None)
    if callable(graph) and graph() is not None:
        raw = raw.compute()  # for its __array__ drops the mask that may come out
        _refuse_mask(raw)
    if callable(getattr(raw, "detach", None)):
        raw = _from_tensor(raw)
    elif _is_elsewhere(raw):
        return _from_device(raw)
    if not hasattr(raw, "__array__") and hasattr(raw, "__dlpack__"):
        return np.from_dlpack(raw)
    array = np.asanyarray(raw)
    _refuse_mask(array)
    return np.asarray(array)


def _from_tensor(raw: Any) -> Any:
    """Return a tensor that NumPy can look at: without autograd, its signs and conjugates made, in CPU memory.

    In the words of its library, not by DLPack, which knows neither: torch exports -x as x where only a bit of
    the tensor says that it is negative. Small floats are widened when they are here.
    """
    for step in _STEPS:
        act = getattr(raw, step, None)
        if callable(act):
            raw = act()
    return raw.float() if _is_small(raw) else raw


def _is_small(raw: Any) -> bool:
    """Whether values are floats that DLPack does not bring to NumPy."""
    return _SMALL.search(str(getattr(raw, "dtype", ""))) is not None


def _is_elsewhere(raw: Any) -> bool:
    """Whether an array says that it is not in memory that NumPy may read.

    Memory that CUDA manages could be read, but its array may not be computed yet.
    """
    tell = getattr(raw, "__dlpack_device__", None)
    if not callable(tell):
        return False
    try:
        return int(tell()[0]) not in _HOST
    except _REFUSALS:  # as of an array in parts on several devices, which its __array__ knows how to gather
        return False


def _from_device(raw: Any) -> NDArray[Any]:
    """Return a copy in CPU memory: by DLPack where both sides can, otherwise as its own library makes one."""
    get = getattr(raw, "get", None)  # CuPy's, whose __array__ refuses
    has_words = callable(get) or hasattr(raw, "__array__")
    if not (has_words and _is_small(raw)):  # which would come over, and be refused here
        try:
            return np.from_dlpack(raw, device="cpu")
        except _REFUSALS:  # of an older NumPy or library
            if not has_words:
                raise
    return np.asarray(get() if callable(get) else raw)


def _remedy(raw: Any) -> str:
    """Return what to do with an array that NumPy cannot look at."""
    layout = str(getattr(raw, "layout", ""))
    if getattr(raw, "is_meta", False) is True:
        return "a meta tensor has no data: run the model on a device"
    if getattr(raw, "is_quantized", False) is True:
        return "call .dequantize()"
    if layout.startswith("torch.") and layout != "torch.strided":
        return "call .to_dense()"
    return "pass a NumPy array or a dense tensor, for example tensor.cpu()"


def is_array(raw: Any) -> bool:
    """Whether this is an array or a tensor, of whatever library."""
    return any(hasattr(raw, name) for name in ("__array__", "__array_interface__", "__dlpack__"))


def _plain_list(raw: Any, depth: int) -> Any:
    """Return nested lists of numbers and arrays alone."""
    if depth > _MOST_NESTED:
        raise ValueError(f"lists are nested deeper than {_MOST_NESTED}")
    kinds = set(map(type, raw))
    if all(issubclass(kind, _NUMBERS) or kind is np.ndarray for kind in kinds):
        return raw
    return [_plain_part(part, depth + 1) for part in raw]


def _plain_part(raw: Any, depth: int) -> Any:
    if isinstance(raw, (list, tuple)):
        return _plain_list(raw, depth)
    is_number = isinstance(raw, _NUMBERS) or type(raw) is np.ndarray
    if is_number or not (is_array(raw) or isinstance(raw, Sequence)) or isinstance(raw, _NO_NUMBERS):
        return raw
    if is_array(raw):
        return _widened(_to_numpy(raw))
    return _plain_list(raw, depth)


def _refuse_mask(raw: Any) -> None:
    """Raise MaskedError for a masked array, or what holds one."""
    for _ in range(_MOST_WRAPPED):
        kind = type(raw)
        if kind is np.ndarray:
            return
        if is_masked(raw):
            raise MaskedError
        # Not what an instance alone has: xarray finds coordinates so, and one may be called "mask".
        if hasattr(kind, "mask") and getattr(raw.mask, "dtype", None) == np.bool_:
            raise MaskedError
        interface = getattr(raw, "__array_interface__", None)
        if isinstance(interface, dict) and interface.get("mask") is not None:
            raise MaskedError
        own = getattr(raw, "__dict__", ())
        held = [getattr(raw, name, None) for name in _HOLDERS if name in own or hasattr(kind, name)]
        inner = [each for each in held if hasattr(type(each), "__array__") and type(each) is not kind]
        if not inner:
            return
        raw = inner[0]


def is_masked(raw: Any) -> bool:
    """Tell whether this is a masked array of NumPy's, or of torch's, which is not imported for it."""
    is_numpys = isinstance(raw, np.ma.MaskedArray)
    return is_numpys or any(base.__name__ == "MaskedTensor" for base in type(raw).__mro__)


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    """Return numbers that only another library knows in a dtype of NumPy's that has each of their values."""
    name = array.dtype.name
    if array.dtype.isbuiltin != 2 or not _FOREIGN.fullmatch(name):
        return array
    return array.astype(_WIDER["f" if name == "bfloat16" else name[0]])

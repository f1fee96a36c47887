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
_WIDER: Final = {"b": np.complex64, "c": np.complex64, "f": np.float32, "i": np.int8, "u": np.uint8}
_FOREIGN: Final = re.compile(r"bfloat16|float[468]_\w+|b?complex32|u?int[124]")


class MaskedError(Exception):
    """An array has a mask, which would be lost."""


def as_array(raw: ArrayLike, label: str, error: type[AccumulatorError]) -> NDArray[Any]:
    """Look at anything array-like as NumPy, sharing its memory wherever that is possible.

    Numbers of less than 8 bits, and floats that only other libraries know, become the next that NumPy has.
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
                f"at ({cause}): pass a NumPy array or a CPU tensor, for example tensor.cpu()"
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
    detach = getattr(raw, "detach", None)
    if callable(detach):  # a tensor, which may still belong to an autograd graph
        raw = detach()
        if _SMALL.search(str(getattr(raw, "dtype", ""))):
            raw = raw.float()
    graph = getattr(raw, "__dask_graph__", None)
    if callable(graph) and graph() is not None:
        raw = raw.compute()  # for its __array__ drops the mask that may come out
        _refuse_mask(raw)
    if not hasattr(raw, "__array__") and hasattr(raw, "__dlpack__"):
        return np.from_dlpack(raw)
    array = np.asanyarray(raw)
    _refuse_mask(array)
    return np.asarray(array)


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
    is_array = any(hasattr(raw, name) for name in ("__array__", "__array_interface__", "__dlpack__"))
    if is_number or not (is_array or isinstance(raw, Sequence)) or isinstance(raw, _NO_NUMBERS):
        return raw
    if is_array:
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

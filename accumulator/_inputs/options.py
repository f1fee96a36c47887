"""How heads are to be stored: the options under zarr's own names, for all heads or head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack

import attrs
import numpy as np

from accumulator._inputs.arrays import is_foreign, is_masked
from accumulator._inputs.heads import plain_key
from accumulator._inputs.text import listed
from accumulator.exceptions import HeadDtypeError, HeadValueError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator.typing import StorageOptions


_CODECS: Final = ("zstd", "gzip", "blosc")  # that are called by their name alone


@attrs.frozen
class Storage:
    """How one head is stored; what zarr's ``create_array`` says of each."""

    chunks: Any = None
    shards: Any = None
    compressors: Any = None
    fill_value: Any = 0
    dimension_names: tuple[str, ...] | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose how many rows are written at once."""
        return self.chunks is not None or self.shards is not None


class HeadOptions:
    """Options as the user gives them: one value for all heads, or a dict by head name or number.

    ``dimension_names`` are no option: whoever knows better than `as_specs` what axes are called says so.
    """

    def __init__(
        self,
        *,
        dimension_names: Mapping[Any, tuple[str, ...]] | None = None,
        **given: Unpack[StorageOptions],
    ) -> None:
        self._given = {name: by_plain_key(name, value) for name, value in given.items()}
        self._dimension_names = dimension_names or {}
        for raw in self._each("dtype"):  # before anything is pushed
            if raw is not None:
                _as_dtype(raw)
        for raw in self._each("compressors"):
            _as_codecs(raw)

    def for_head(self, key: int | str, pushed: np.dtype[Any]) -> tuple[Storage, np.dtype[Any] | None]:
        """Return how a head is stored, and in which dtype if that is not the one it comes in."""
        dtype = self._of("dtype", key)
        target = None if dtype is None else _as_dtype(dtype)
        fill = as_fill_value(self._of("fill_value", key, 0), target or pushed, key)
        names_of_rest = ("chunks", "shards", "compressors")
        chunks, shards, compressors = (self._of(name, key) for name in names_of_rest)
        names = self._dimension_names.get(key)
        return Storage(chunks, shards, _as_codecs(compressors), fill, names), target

    def of_some(
        self,
        keys: Sequence[int | str],
        numbers: Sequence[int],
        dimension_names: Mapping[Any, tuple[str, ...]],
    ) -> HeadOptions:
        """Return the options of some heads out of all, with what their axes are called.

        Heads without names are numbered anew.
        """
        given: dict[str, Any] = {name: of_some(each, keys, numbers) for name, each in self._given.items()}
        return HeadOptions(dimension_names=dimension_names, **given)

    def replaced(self, **given: Unpack[StorageOptions]) -> HeadOptions:
        """Return the options with others for some of them."""
        every: dict[str, Any] = {**self._given, **given}
        return HeadOptions(dimension_names=self._dimension_names, **every)

    def check_heads(self, heads: Sequence[int | str]) -> None:
        """Refuse options for heads that there are not."""
        check_heads(self._given, heads)

    def _each(self, name: str) -> list[Any]:
        value = self._given.get(name)
        return list(value.values()) if isinstance(value, Mapping) else [value]

    def _of(self, name: str, key: int | str, default: Any = None) -> Any:
        value = self._given.get(name, default)
        return value.get(key, default) if isinstance(value, Mapping) else value


def check_heads(options: Mapping[str, Any], heads: Sequence[int | str]) -> None:
    """Refuse options, by name, for heads that there are not."""
    for name, value in options.items():
        unknown = [key for key in value if key not in heads] if isinstance(value, Mapping) else []
        if unknown:
            names = listed(map(repr, heads))
            raise OptionError(
                f"{name} has an entry for head {unknown[0]!r}, but the heads are [{names}]"
                + ("; put a codec that is written as a dict in a list" * (name == "compressors"))
            )


def of_some(value: Any, keys: Sequence[int | str], numbers: Sequence[int]) -> Any:
    """Return an option of some heads out of all; those without names are numbered anew."""
    if not isinstance(value, Mapping):
        return value
    new = {keys[head]: i if isinstance(keys[head], int) else keys[head] for i, head in enumerate(numbers)}
    return {new[key]: each for key, each in value.items() if key in new}


def by_plain_key(name: str, value: Any) -> Any:
    """Return an option as it is, its heads called as `Heads` call them."""
    if not isinstance(value, Mapping):
        return value
    plain = {plain_key(key): each for key, each in value.items()}
    if len(plain) != len(value):
        raise OptionError(f"{name} has two entries for one head: {list(value)}")
    return plain


def as_fill_value(raw: Any, dtype: np.dtype[Any], head: int | str, name: str = "fill_value") -> Any:
    """Return a value as the head's dtype has it."""
    is_same = (dtype.kind == "c" or not np.iscomplexobj(raw)) and not is_masked(raw)
    try:
        with np.errstate(all="ignore"):
            given = np.asarray(raw)
            value = given.astype(dtype) if is_same else np.zeros((), dtype)
            if dtype.kind in "fc" and value.ndim == 0:
                is_same &= given.dtype.kind in "biufc" and not _became_infinite(value, given).any()
            else:
                is_same &= value.ndim == 0 and bool(value == raw or (value != value and raw != raw))  # noqa: PLR0124  NaN
    except (TypeError, ValueError, OverflowError):
        is_same = False
    if not is_same:
        raise OptionError(f"{name} of head {head!r} is {raw!r}, which {dtype} cannot hold")
    for part in (value.real, value.imag) if dtype.kind == "c" else (value,) * (dtype.kind == "f"):
        part[np.isnan(part)] = np.nan  # metadata has no other NaN, and files must have the same one
    return value[()]


def as_stored(head: NDArray[Any], dtype: np.dtype[Any], label: str) -> NDArray[Any]:
    """Return predictions in the dtype they are stored in; floats are rounded, nothing else is changed."""
    if head.dtype == dtype:
        return head
    if head.dtype.kind == "c" and dtype.kind != "c":
        raise HeadDtypeError(f"{label} is {head.dtype}, which dtype={dtype} cannot hold: take its parts")
    with np.errstate(all="ignore"):
        stored = head.astype(dtype)
        if head.dtype.kind in "fc" and dtype.kind in "fc":
            wrong = _became_infinite(stored, head)
        else:
            wrong = ~_is_equal(stored, head)
    if wrong.any():
        at = tuple(int(each[0]) for each in np.nonzero(wrong))
        value = str(head[at]) if is_foreign(head.dtype) else head[at]  # for format() rounds
        raise HeadValueError(
            f"{label} has the value {value} in row {at[0]} of the batch, at {list(at[1:])}, which "
            f"dtype={dtype} cannot hold: choose another dtype, or change the values"
        )
    return stored


def _as_codecs(raw: Any) -> Any:
    """Return compressors as zarr takes them, which knows no codec by its name alone; None for none."""
    if isinstance(raw, str) and raw != "auto":
        if raw not in _CODECS:
            raise OptionError(
                f"compressors is {raw!r}: give one of {listed(map(repr, _CODECS))}, 'auto', or a list of "
                "codecs with settings of their own, such as [zarr.codecs.ZstdCodec(level=3)]"
            )
        return ({"name": raw, "configuration": {}},)
    return None if isinstance(raw, (list, tuple)) and not raw else raw


def _became_infinite(stored: NDArray[Any], head: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a number is finite no more; of complex ones either part, whatever the other is."""
    if stored.dtype.kind == "c":
        return _became_infinite(stored.real, head.real) | _became_infinite(stored.imag, head.imag)
    wrong: NDArray[np.bool_] = ~np.isfinite(stored)
    return wrong & np.isfinite(head) if wrong.any() else wrong


def _is_equal(stored: NDArray[Any], head: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether values are exactly the same: equal there and back, and of one sign."""
    real = stored.real if stored.dtype.kind == "c" else stored
    back = real.astype(head.dtype)
    same: NDArray[np.bool_] = (back == head) & ((real < 0) == (head < 0)) & np.isfinite(real)
    return same


def _as_dtype(raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(raw)
    except (TypeError, ValueError, SyntaxError) as cause:
        raise OptionError(f"dtype is {raw!r}, which NumPy does not know") from cause
    if dtype.kind not in "biufc" or is_foreign(dtype):
        raise OptionError(
            f"dtype is {raw!r}: heads are stored as bool, integers, floats or complex numbers "
            "that every machine has, such as float16"
        )
    return dtype

"""Heads that are declared before the first batch: what ``heads=`` may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs.validation import as_heads
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator.typing import DeclaredHeads

_FORMS: Final = (
    'a head is declared by a pair of patch shape and dtype, such as ((256, 256, 1), "float32"), or by an '
    "example array of any number of rows, as push takes it"
)


def as_declared(raw: DeclaredHeads | None) -> Heads[NDArray[Any]] | None:
    """Return an array without rows for each head that is declared; None where none are.

    A HeadError or HeadDtypeError where a batch of such arrays would not be taken, an OptionError where it is
    not clear what is meant.
    """
    if raw is None:
        return None
    if isinstance(raw, (list, tuple)):
        given: Any = [_as_example(head, f"heads[{i}]") for i, head in enumerate(raw)]
    elif isinstance(raw, Mapping):
        given = {name: _as_example(head, f"heads[{name!r}]") for name, head in raw.items()}
    else:
        raise OptionError(
            f"heads is {type(raw).__name__}: give a list, or a dict by name, of (patch_shape, dtype) pairs "
            'or of example arrays, such as heads=[((256, 256, 1), "float32")]'
        )
    if not given:
        raise OptionError("heads is empty: declare at least one, or leave it out")
    declared = as_heads(given)
    return declared.like(head[:0] for head in declared)


def _as_example(raw: Any, label: str) -> Any:
    """Return an array of any number of rows: the one that was given, or one as a pair has it."""
    if not isinstance(raw, type) and (hasattr(raw, "__array__") or hasattr(raw, "__dlpack__")):
        return raw
    if not isinstance(raw, (tuple, list)) or len(raw) != 2:
        raise OptionError(f"{label} is {_short(raw)}: {_FORMS}")
    shape, dtype = raw
    if not isinstance(shape, (tuple, list)) or not all(_is_length(length) for length in shape):
        raise OptionError(f"{label} has the patch shape {_short(shape)}: {_FORMS}")
    what = f"{label} has the dtype {_short(dtype)}, which NumPy does not know: {_FORMS}"
    if dtype is None:  # which NumPy takes for float64
        raise OptionError(what)
    try:
        known = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as cause:
        raise OptionError(what) from cause
    try:
        return np.empty((0, *shape), known)
    except ValueError as cause:
        raise OptionError(f"{label} has the patch shape {_short(shape)}, too large for any array") from cause


def _is_length(raw: Any) -> bool:
    return isinstance(raw, (int, np.integer)) and not isinstance(raw, bool) and int(raw) >= 0


def _short(raw: Any) -> str:
    text = repr(raw)
    return text if len(text) <= 60 else f"{text[:59]}…"

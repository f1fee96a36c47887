"""What the user says that pixels of a batch count: masks and confidences, a number a pixel or a patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs.arrays import as_array
from accumulator._inputs.options import by_plain_key, check_heads
from accumulator.exceptions import HeadError, HeadValueError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping as MappingType

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.frame import Lay

_LEAST: Final = 1e-100  # of weights that are not 0: products with values keep all their digits
_MOST: Final = 1e100


def as_weights(raw: Any, n: int, lays: MappingType[int | str, Lay], heads: Heads[Any]) -> list[Any]:
    """Return for each head ``(n, h, ...)`` weights of the patches as they were pushed; None where all count.

    The heads are told by their keys, and how their patches lie.
    """
    given = by_plain_key("weights", raw)
    if isinstance(given, Mapping):
        check_heads({"weights": given}, heads.keys)
        return [
            None if given.get(key) is None else _laid(_as_numbers(given[key]), n, lays[key], heads.label(i))
            for i, key in enumerate(heads.keys)
        ]
    numbers = _as_numbers(given)
    return [_laid(numbers, n, lays[key], heads.label(i)) for i, key in enumerate(heads.keys)]


def _as_numbers(raw: Any) -> NDArray[Any]:
    weights = as_array(raw, "weights", OptionError)
    if weights.dtype.kind not in "biuf":
        raise OptionError(f"weights are {weights.dtype}: they are numbers of at least 0, or bools")
    weights = weights.astype(np.result_type(weights.dtype, np.float32), copy=False)
    with np.errstate(all="ignore"):
        is_right = (weights == 0) | ((weights >= _LEAST) & (weights <= _MOST))
    if not is_right.all():
        at = tuple(int(each[0]) for each in np.nonzero(~is_right))
        raise HeadValueError(
            f"weights have the value {weights[at]} at {list(at)}: a weight is 0, or from {_LEAST} to {_MOST}"
        )
    return weights


def _laid(weights: NDArray[Any], n: int, lay: Lay, label: str) -> NDArray[Any]:
    """Return weights with one number for each pixel of the patches of a head."""
    patch = lay.whole
    if weights.shape == (n,):
        return np.broadcast_to(weights.reshape(n, *(1 for _ in patch)), (n, *patch))
    if weights.shape != (n, *patch) or lay.is_spread:
        wanted = f"({n},)" if lay.is_spread else f"({n},) or {(n, *patch)}"
        raise HeadError(
            f"weights have shape {weights.shape}, and for {label} they are {wanted}, a number a patch or a "
            "pixel; a dict by head has others for others"
        )
    return weights

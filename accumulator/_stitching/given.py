"""What the user says that pixels of a batch count: masks and confidences, a number a pixel or a patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator._inputs import tuning
from accumulator._inputs.arrays import as_array
from accumulator._inputs.options import by_plain_key, check_heads
from accumulator._inputs.text import named
from accumulator.exceptions import HeadError, HeadValueError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._stitching.frame import Lay

_LEAST: Final = 1e-100  # of weights that are not 0: products with values keep all their digits
_MOST: Final = 1e100


def as_weights(raw: Any, rows: NDArray[np.intp] | None, n: int, heads: Heads[Lay]) -> list[Any]:
    """Return for each head what pixels of n patches count, as they were pushed; None where all are alike.

    It is ``(n, h, ...)``, or ``(n, 1, ...)`` for one number a patch. Of each head it is told how its patches
    lie. Where not all ``rows`` count, the others are not looked at.
    """
    given = by_plain_key("weights", raw)
    if not isinstance(given, Mapping):
        given = dict.fromkeys(heads.keys, given)
    check_heads({"weights": given}, heads.keys)
    return [
        None if given.get(key) is None else _laid(_as_numbers(given[key], rows), n, lay, heads.label(i))
        for i, (key, lay) in enumerate(zip(heads.keys, heads, strict=True))
    ]


def _as_numbers(raw: Any, rows: NDArray[np.intp] | None) -> NDArray[Any]:
    weights = as_array(raw, "weights", OptionError)
    if weights.dtype.kind not in "biuf":
        raise OptionError(f"weights are {weights.dtype}: they are numbers of at least 0, or bools")
    if rows is None:
        _check(weights, np.arange(len(weights) if weights.ndim else 0))
        return weights
    step = max(1, tuning.now.read_nbytes // max(1, weights[:1].nbytes))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        _check(weights[some], some)
    return weights


def _check(weights: NDArray[Any], rows: NDArray[np.intp]) -> None:
    with np.errstate(all="ignore"):
        is_wrong = ~((weights == 0) | ((weights >= _LEAST) & (weights <= _MOST)))
    if len(rows) and is_wrong.any():
        wrong = np.flatnonzero(is_wrong.reshape(len(rows), -1).any(axis=1))
        value = weights[wrong[0]][is_wrong[wrong[0]]].flat[0]
        raise HeadValueError(
            f"{named(rows[wrong], 'weights')} have the value {value} or others like it: a weight is 0, or "
            f"from {_LEAST} to {_MOST}"
        )


def _laid(weights: NDArray[Any], n: int, lay: Lay, label: str) -> NDArray[Any]:
    """Return weights with an axis for each of the patches of a head; one of a single channel is left out."""
    patch = lay.whole
    for at in (-1, 1):
        if weights.ndim in {2, len(patch) + 2} and weights.shape[at] == 1 and weights.shape != (n, *patch):
            weights = weights.squeeze(at)
    if weights.shape == (n,) or n == len(weights) == 0:
        return weights.reshape(n, *(1 for _ in patch))
    if weights.shape != (n, *patch) or lay.is_spread:
        wanted = f"({n},)" if lay.is_spread else f"({n},) or {(n, *patch)}"
        raise HeadError(
            f"weights have shape {weights.shape}, and for {label} they are {wanted}, a number a patch or a "
            "pixel of it, before crop; a dict by head has others for others"
        )
    return weights

"""What the classes that stand for another library's aggregator have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accumulator import StitchedMap

KNOWN: Final = ("axes", "channels_first", "crop", "heads", "origin", "output_shape", "scale", "spread")


def check_options(options: Mapping[str, Any], *also: str) -> None:
    """Refuse options that say what is known."""
    if taken := sorted(options.keys() & {*KNOWN, *also}):
        raise OptionError(f"{', '.join(taken)} cannot be given here: it is known how patches lie")


def as_tensors(maps: StitchedMap, n_axes: int) -> list[Any]:
    """Return maps as tensors (C, *spatial); those in RAM share their memory."""
    arrays = [np.asarray(array) for array in maps.values()]
    return [
        torch.from_numpy(array[None] if array.ndim == n_axes else np.moveaxis(array, -1, 0))
        for array in arrays
    ]

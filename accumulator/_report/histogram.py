"""How often the values of a head are met."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np

from accumulator._inputs import tuning
from accumulator._report.reading import Reading, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator.typing import RowArray

_MOST_NBYTES: Final = 2**28
_BINS: Final = 48
_COARSE: Final = 2.0**50  # beyond it a float64 has no halves


@attrs.frozen(eq=False)
class Histogram:
    """How often values are met."""

    counts: NDArray[np.int64]  # of each bin
    edges: NDArray[np.float64]  # where bins begin and end
    low: float  # of the values that are finite
    median: float
    high: float
    n_values: int  # that were looked at
    n_rows: int
    n_strange: int  # values that are NaN or infinite


def histogram(array: RowArray, written: NDArray[np.bool_]) -> Histogram | None:
    """Return the histogram of some rows, evenly chosen; None where there is nothing to count."""
    if array.dtype.kind not in "biufc" or 0 in array.shape[1:]:
        return None
    rows = np.flatnonzero(written)
    most_rows = tuning.now.histogram_rows
    if len(rows) > most_rows:
        rows = rows[np.linspace(0, len(rows) - 1, most_rows).round().astype(np.intp)]
    reading, parts = Reading(_MOST_NBYTES), [np.empty(0)]
    each = max(1, tuning.now.histogram_values // max(1, len(rows)))
    for _, values in read_rows(array, rows, reading):
        flat = values.reshape(len(values), -1)
        part = flat[:, :: -(-flat.shape[1] // each)].ravel()
        parts.append((np.abs(part) if part.dtype.kind == "c" else part).astype(np.float64))
    values = np.concatenate(parts)
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return None
    low, high = float(known.min()), float(known.max())
    median = float(np.partition(known, len(known) // 2)[len(known) // 2])  # the mean of two may be infinite
    counts, edges = np.histogram(known, _edges(low, high, is_whole=array.dtype.kind in "biu"))
    n_strange = len(values) - len(known)
    return Histogram(counts, edges, low, median, high, len(values), len(reading.rows), n_strange)


def _edges(low: float, high: float, *, is_whole: bool) -> NDArray[np.float64]:
    """Return where bins begin and end; each bin of whole numbers holds equally many of them."""
    if low == high and abs(low) >= _COARSE:
        return np.array(sorted((0.0, low)))
    if low == high and not is_whole:
        return np.array([low - 0.5, low + 0.5])
    if is_whole and high - low < _COARSE and max(-low, high) < _COARSE:
        width = max(1.0, math.ceil((high - low + 1) / _BINS))
        n_bins = math.ceil((high - low + 1) / width)
        return np.asarray(low - 0.5 + width * np.arange(n_bins + 1), np.float64)
    if not math.isfinite(high - low):
        return np.array([low, 0.0, high])
    return np.unique(np.linspace(low, high, _BINS + 1))  # neighbours in float64 have no bins between them

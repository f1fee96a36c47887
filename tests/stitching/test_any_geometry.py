"""Whatever way patches lie, and whatever is said of it: the map is right, or the call is refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
from helpers.geometry_cases import cases
from helpers.soak import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator.exceptions import LocationError, OptionError

EXAMPLES = examples(500, "ACCUMULATOR_GEOMETRY_EXAMPLES")
OUTCOMES: Counter[str] = Counter()


def made(locs, heads, options, order, *, is_streamed):
    """Return the maps, streamed in any order or at once."""
    if not is_streamed:
        with FullBatchAccumulator(locs) as accumulator:
            accumulator.push(heads, locs)
        return stitch(accumulator.finalize(), **options)
    with Stitcher(locs, **options) as stitcher:
        for rows in np.array_split(order, max(1, len(order) // 3)):
            stitcher.push([head[rows] for head in heads], locs[rows])
    return stitcher.finalize()


@given(case=cases(), seed=st.integers(0, 99), is_streamed=st.booleans())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
def test_map_is_right_or_refused(case, seed, is_streamed):
    """There is no third outcome, and what was said in full is refused only where a box may be cut."""
    locs, heads, options, expected = case
    order = np.random.default_rng(seed).permutation(len(locs))
    try:
        maps = made(locs, heads, options, order, is_streamed=is_streamed)
    except (LocationError, OptionError):
        OUTCOMES["refused"] += 1
        return
    OUTCOMES["right"] += 1
    for number, (values, counts, _) in enumerate(expected):
        np.testing.assert_allclose(maps.outputs[number], values, rtol=1e-9)
        np.testing.assert_array_equal(maps.coverage(head=number), counts)
    has_any = np.any([each for *_, each in expected], axis=0)
    assert maps.n_outside == np.count_nonzero(~has_any)


def test_both_outcomes_were_met():
    """What is drawn is neither refused nor accepted always."""
    assert min(OUTCOMES["right"], OUTCOMES["refused"]) > EXAMPLES / 20

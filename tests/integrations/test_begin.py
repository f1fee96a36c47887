"""What engines and frameworks share: what is missing, and the result, are those of the same run."""

from __future__ import annotations

import numpy as np
import pytest

from accumulator import FullBatchAccumulator
from accumulator.exceptions import ResumeError
from accumulator.integrations._begin import OneRun

LOCS = np.array([[x, 0, x + 1, 1] for x in range(4)])


def run(locs, **options):
    """Return what is told of the store by who gives these."""
    told = OneRun()
    told._take(locs, "run.zarr", options)
    return told


@pytest.mark.parametrize("ranks", [{}, {"rank": 0, "world_size": 1}])
def test_rows_of_another_model_are_not_taken_for_this_ones(ranks):
    """Neither as what needs no prediction, nor as the result: who has nothing to do would not see it."""
    store = {"store": "run.zarr", "mode": "a", "resume_token": "v1"}
    with FullBatchAccumulator(LOCS, **store, **ranks) as accumulator:
        accumulator.push(np.ones((2, 1)), LOCS[:2])
    assert run(LOCS, resume_token="v1").missing_rows().tolist() == [2, 3]
    for others in (run(LOCS, resume_token="v2"), run(LOCS)):
        with pytest.raises(ResumeError, match="resume_token is 'v1'"):
            others.missing_rows()
    if ranks:
        return
    assert run(LOCS, resume_token="v1").result.written.sum() == 2
    for others in (run(LOCS, resume_token="v2"), run(LOCS), run(LOCS[::-1], resume_token="v1")):
        with pytest.raises(ResumeError):
            _ = others.result

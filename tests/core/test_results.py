"""What comes out is a mapping of its heads, in RAM, on disk and as maps."""

from __future__ import annotations

import copy
import pickle
from enum import StrEnum

import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatchAccumulator, stitch
from accumulator.exceptions import UnknownHeadError

N = 6
LOCS = grid(N)
HEADS = {"map": distinct(N, (4, 4, 2)), "mask": distinct(N, (4, 4, 1), "u1")}


class Name(StrEnum):
    """Text that is no plain text."""

    MAP = "map"


def results(heads, where):
    """Yield a result, and its maps."""
    with FullBatchAccumulator(LOCS, memory_threshold=where["memory_threshold"]) as accumulator:
        accumulator.push(heads, LOCS)
    batch = accumulator.finalize()
    yield batch
    yield stitch(batch, blend="last", memory_threshold=where["memory_threshold"])


def test_named_heads_are_found_by_name(where):
    """As in the dict of outputs, in its order."""
    for result in results(HEADS, where):
        assert result.names == ("map", "mask")
        assert (list(result), list(result.keys()), len(result)) == (["map", "mask"], ["map", "mask"], 2)
        assert [(name, id(head)) for name, head in result.items()] == [(k, id(result[k])) for k in result]
        for name in result:
            assert result[name] is result.outputs[name] is result.get(name)
        assert [head.shape for head in result.values()] == [result["map"].shape, result["mask"].shape]
        assert result[Name.MAP] is result["map"]
        assert "map" in result
        assert all(key not in result for key in ("other", 0, None))


def test_heads_without_names_are_found_by_number(where):
    """As in the list of outputs."""
    for result in results(list(HEADS.values()), where):
        assert result.names == (0, 1)
        assert dict(result).keys() == {0, 1}
        assert result[0] is result.outputs[0]
        assert result[np.int64(1)] is result.outputs[1]
        assert 2 not in result
        assert -1 not in result


@pytest.mark.parametrize("key", ["other", 0, None, slice(0, 2), [0, 1], np.ones(N, bool)])
def test_what_is_no_head_is_told(where, key):
    """With the heads that there are, and how rows are taken."""
    for result in results(HEADS, where):
        with pytest.raises(
            UnknownHeadError, match=r"'map', 'mask'; rows .* result\['map'\]\[rows\]"
        ) as caught:
            result[key]
        assert isinstance(caught.value, KeyError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


def test_a_result_is_equal_to_itself_alone(where):
    """Comparing arrays would have no answer; it can be in a set, as before."""
    for result in results(HEADS, where):
        assert result == result  # noqa: PLR0124
        assert result != dict(result)
        assert len({result, result}) == 1
    first, second = (copy.copy(next(results(HEADS, {"memory_threshold": 80}))) for _ in range(2))
    assert first != second


def test_a_result_without_heads_is_one():
    """It is not false: whoever asks wants to know whether there is a result."""
    with FullBatchAccumulator(LOCS[:0]) as accumulator:
        pass
    batch = accumulator.finalize()
    assert batch
    assert (len(batch), list(batch), batch.names) == (0, [], ())
    with pytest.raises(UnknownHeadError, match="the heads are none"):
        batch[0]

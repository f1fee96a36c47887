"""Heads on disk take every index that NumPy takes, and make of it what NumPy makes."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from helpers.oracle import distinct, grid
from hypothesis import example, given
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator

N, PATCH = 11, (3, 4)
LOCS = grid(N)
WRITTEN = np.arange(N) % 3 > 0
STORAGE = {
    "raw": {"chunks": 4},
    "sharded": {"chunks": 1, "shards": 4, "compressors": "auto"},
    "cut": {"chunks": (2, 2, 3), "fill_value": 7},
}


@pytest.fixture(scope="module", params=STORAGE)
def pair(request, tmp_path_factory):
    """Return a head on disk, and what it holds."""
    store = tmp_path_factory.mktemp("heads") / "run.zarr"
    with FullBatchAccumulator(LOCS, store=store, **STORAGE[request.param]) as accumulator:
        accumulator.push(distinct(N, PATCH)[WRITTEN], LOCS[WRITTEN])
    array = np.full((N, *PATCH), STORAGE[request.param].get("fill_value", 0), np.float32)
    array[WRITTEN] = distinct(N, PATCH)[WRITTEN]
    return FullBatch.load(store).outputs[0], array


def some_numbers(length):
    """Return numbers for an axis, now and then one that it does not have."""
    return st.one_of(st.integers(-length, length - 1), st.integers(-length - 2, length + 1))


def some_part(length):
    """Return what may stand for an axis."""
    numbers = some_numbers(length)
    lists = st.lists(numbers, max_size=6)
    ends, steps = st.none() | st.integers(-15, 15), st.none() | st.integers(-4, 4).filter(bool)
    masks = st.lists(st.booleans(), min_size=length, max_size=length)
    return st.one_of(
        st.builds(slice, ends, ends, steps),
        numbers,
        numbers.map(np.int64),
        numbers.map(np.array),
        lists,
        st.permutations(range(length)).map(np.array),
        lists.map(sorted).map(np.array),
        st.lists(numbers, min_size=4, max_size=4).map(lambda some: np.reshape(some, (2, 2))),
        masks,
        masks.map(np.array),
        st.sampled_from([None, ..., True, np.False_, "x", 1.0, [1.5], range(2), np.ones(length + 1, bool)]),
    )


@st.composite
def some_index(draw):
    """Return an index of anything that NumPy knows, right or wrong."""
    shape = (N, *PATCH)
    axes = draw(st.integers(0, 3))
    parts = [draw(some_part(shape[axis])) for axis in range(axes)]
    for extra in draw(st.lists(st.sampled_from([None, ..., True, slice(None), 0]), max_size=2)):
        parts.insert(draw(st.integers(0, len(parts))), extra)
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


@given(some_index())
@example(slice(None, None, -1))
@example([])
@example(())
@example([3, 1, 1, -1])
@example(WRITTEN)
@example((WRITTEN, True))
@example((WRITTEN, None, 0))
@example((None, WRITTEN, None, 0))
@example((3, ..., -1, 2))
@example((0, slice(None), [1, 2]))
@example((0, [3], []))
@example((slice(None), 0, ..., []))
@example(np.ones((N, *PATCH), bool))
@example((..., np.ones(PATCH, bool)))
@example(slice(3, 3))
@example((3, -1, np.int64(2)))
@example(slice(0, 5, 0))
def test_every_index_gives_what_it_gives_in_ram(pair, index):
    """The same numbers, type, shape and dtype, or an error of the same kind."""
    head, array = pair
    try:
        wanted = array[index]
    except (IndexError, ValueError, TypeError) as refusal:
        with pytest.raises((IndexError, ValueError, TypeError)) as caught:
            head[index]
        assert isinstance(caught.value, type(refusal))  # noqa: PT017
        return
    try:
        found = head[index]
    except IndexError as refusal:  # of numbers that NumPy does not look at, where nothing is asked for
        assert "out of bounds" in str(refusal)  # noqa: PT017
        assert wanted.size == 0
        return
    assert type(found) is type(wanted)
    np.testing.assert_array_equal(found, wanted, strict=True)


def test_what_is_tried_first_on_an_array(pair):
    """Length, rows one after the other, from the end, in NumPy, and what it takes; it is never false."""
    head, array = pair
    assert len(head) == N
    assert head
    np.testing.assert_array_equal(list(head), array)
    np.testing.assert_array_equal(list(reversed(head)), array[::-1])
    np.testing.assert_array_equal(np.asarray(head), array)
    np.testing.assert_array_equal(np.from_dlpack(head), array)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(head))[[2, 1]], array[[2, 1]])  # noqa: S301
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(head, name) == getattr(array, name)


def test_an_array_without_rows(tmp_path):
    """It has a length and no rows, and is there."""
    with FullBatchAccumulator(LOCS[:0], store=tmp_path / "run.zarr", heads=[((2,), "f4")]):
        pass
    head = FullBatch.load(tmp_path / "run.zarr").outputs[0]
    assert head
    assert (len(head), list(head), head[[]].shape, head[::-1].shape) == (0, [], (0, 2), (0, 2))


@pytest.mark.parametrize("pair", ["raw", "cut"], indirect=True)  # a shard is read in parts
@pytest.mark.parametrize(
    "read", [lambda head: head[[9, 0, 1, 9, -11, 5]], lambda head: head[WRITTEN], list, np.asarray]
)
def test_each_chunk_is_read_once(pair, read, monkeypatch):
    """In whatever order its rows are asked for; what their first check reads does not count."""
    head, _ = pair
    np.asarray(head)
    reads = Counter()
    get = type(head.store).get

    async def counted(self, key, *args, **options):
        reads[key] += 1
        return await get(self, key, *args, **options)

    monkeypatch.setattr(type(head.store), "get", counted)
    read(head)
    assert set(reads.values()) == {1}


def test_loaders_of_torch_take_a_head(pair):
    """As a tensor, and as a data set, whose batches are read at once."""
    torch = pytest.importorskip("torch")
    head, array = pair
    np.testing.assert_array_equal(torch.as_tensor(head), array)
    batches = list(torch.utils.data.DataLoader(head, batch_size=4))
    np.testing.assert_array_equal(np.concatenate(batches), array)

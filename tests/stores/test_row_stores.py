"""Rows in RAM and on disk: both hold what was put, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import distinct
from helpers.row_stores import KINDS, ROW, N, put
from hypothesis import given
from hypothesis import strategies as st

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.memory import copying as _copying

ROWS = st.one_of(
    st.tuples(st.integers(0, N), st.integers(0, N)).map(lambda ab: slice(min(ab), max(ab))),
    st.lists(st.integers(0, N - 1), unique=True).map(lambda rows: np.array(rows, dtype=np.intp)),
)


ACTIONS = st.sampled_from(["put", "put", "put", "discard", "flush", "get"])


STEPS = st.lists(st.tuples(ACTIONS, ROWS), max_size=12)


SHAPES = st.sampled_from([(), (3,), (2, 2, 1), (5, 1), (0, 2)])


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", KINDS)
@given(
    steps=STEPS,
    shape=SHAPES,
    dtype=st.sampled_from(["?", "u1", "<i2", ">f4", "f8", "c16"]),
    block_nbytes=st.sampled_from([16, 48, 4096]),
)
def test_holds_what_was_put(backends, tuned, kind, steps, shape, dtype, block_nbytes):
    """Any sequence of put, discard, flush and get, over many chunks, is what a plain array would hold."""
    tuned(gap_nbytes=block_nbytes)
    fill = np.dtype(dtype).type(KINDS[kind].fill_value)
    storage = Storage(KINDS[kind].chunks, KINDS[kind].shards, KINDS[kind].compressors, fill)
    store = backends.make(kind, HeadSpec(shape, np.dtype(dtype)), storage=storage)
    model, held = np.full((N, *shape), fill, dtype), np.zeros(N, bool)
    values = iter(range(1, 10_000, 300))
    for action, rows in steps:
        new = distinct(len(model[rows]), shape, dtype, first=next(values))
        if action == "put":
            model[rows], held[rows] = new, True
            put(store, rows, new.copy())
        elif action == "discard":
            if kind != "ram":  # there, whoever puts has to put back
                fresh = np.setdiff1d(np.arange(N)[rows], np.flatnonzero(held))
                store.put(fresh, [distinct(len(fresh), shape, dtype, first=7)])
                store.discard()
        elif action == "flush":
            store.flush()
            np.testing.assert_array_equal(store.arrays[0][:], model)
        np.testing.assert_array_equal(store.get(rows)[0], model[rows])
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:], model)
    assert store.arrays[0].dtype == np.dtype(dtype)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["ram", "raw", "compressed"])
def test_late_rows_in_any_order_find_their_place(backends, kind):
    """Rows given backwards and mixed, to chunks that are on disk already, end where they belong."""
    store = backends.make(kind, ROW)
    put(store, slice(0, N), distinct(N, (4,)))
    store.flush()
    rows, late = np.array([6, 5, 4, 22, 0, 2, 1, 13, 12]), distinct(9, (4,), first=1000)
    put(store, rows, late)
    expected = distinct(N, (4,))
    expected[rows] = late
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:], expected)


def test_large_pushes_are_copied_by_several_threads(backends, monkeypatch, tuned):
    """However a large push is split between threads, every row gets its place, in order or not."""
    tuned(shared_copy_nbytes=1, copy_part_nbytes=6000)
    monkeypatch.setattr(_copying, "n_cores", lambda: 3)
    for kind in ("ram", "raw"):
        for shape in ((4,), (2048,)):
            store = backends.make(kind, HeadSpec(shape, np.dtype("f4")), n_rows=600)
            values = distinct(600, shape)
            order = np.random.default_rng(0).permutation(600)
            put(store, slice(0, 200), values[:200])
            put(store, order[order >= 200], values[order[order >= 200]])
            store.flush()
            np.testing.assert_array_equal(store.arrays[0][:], values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0.0, -0.0, 7.0, np.nan])
def test_rows_that_never_came_hold_the_fill_value(backends, kind, fill):
    """The first and the last too, to the byte: minus zero is something."""
    made = KINDS[kind]
    store = backends.make(kind, ROW, storage=Storage(made.chunks, made.shards, made.compressors, fill))
    put(store, slice(3, 5), distinct(2, (4,)))
    store.flush()
    blank = np.delete(store.arrays[0][:], [3, 4], axis=0)
    assert blank.tobytes() == np.full((N - 2, 4), fill, ROW.dtype).tobytes()

"""Pieces are copied row by row where rows are large, otherwise at once; by several threads where it pays."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.oracle import distinct
from hypothesis import given
from hypothesis import strategies as st

from accumulator._stores.memory import copying
from accumulator._stores.memory.copying import Copier, Piece

N = 12
PLACES = st.lists(st.integers(0, N - 1), unique=True)


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("width", [3, 1024, 1500])  # of float32: 1024 are as large as is copied row by row
@given(at=PLACES, order=st.permutations(range(N)), first=st.integers(0, N))
def test_every_row_comes_to_its_place(tuned, monkeypatch, is_shared, width, at, order, first):
    """Whether numbers rise or not, in the source and in the target, given as an array or a slice."""
    tuned(copy_part_nbytes=5 * 4 * width, shared_copy_nbytes=0 if is_shared else 2**40)
    monkeypatch.setattr(copying, "n_cores", lambda: 3)
    source = distinct(N, (width,))
    of, stop = np.array(order[: len(at)], dtype=np.intp), min(N, first + len(at))
    targets, expected = np.zeros((3, N, width), np.float32), np.zeros((3, N, width), np.float32)
    for to, row in zip(at, of.tolist(), strict=True):
        expected[0, to] = source[row]
    for to, row in zip(at, range(first, stop), strict=False):
        expected[1, to] = source[row]
    for to, row in zip(range(first, stop), of.tolist(), strict=False):
        expected[2, to] = source[row]
    numbers, n = np.array(at, dtype=np.intp), stop - first
    copier = Copier()
    copier.copy(
        [
            Piece(targets[0], numbers, source, of),
            Piece(targets[1], numbers[:n], source, slice(first, stop)),
            Piece(targets[2], slice(first, stop), source, of[:n]),
        ]
    )
    copier.close()
    np.testing.assert_array_equal(targets, expected)

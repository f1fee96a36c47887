"""Numbers of rows, as a slice or an array: cut at the edges of chunks, at gaps, and by their position."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accumulator._stores.memory.row_numbers import as_numbers, by_chunk, count, cut, ranked, spans

MOST = 40
SLICES = st.tuples(st.integers(0, MOST), st.integers(0, MOST)).map(lambda ab: slice(min(ab), max(ab)))
NUMBERS = st.lists(st.integers(0, MOST - 1), unique=True).map(lambda rows: np.array(rows, dtype=np.intp))


@given(SLICES | NUMBERS, st.integers(1, 9))
def test_rows_of_each_chunk_are_found(rows, chunk_rows):
    """Every row comes once, with its chunk, its place there, and its position among those given."""
    numbers = np.arange(MOST)[rows].tolist()
    chunks, found = [], {}
    for chunk, local, where in by_chunk(rows, chunk_rows):
        chunks.append(chunk)
        for at, position in zip(as_numbers(local).tolist(), as_numbers(where).tolist(), strict=True):
            assert 0 <= at < chunk_rows
            assert position not in found
            found[position] = chunk * chunk_rows + at
    assert chunks == sorted({number // chunk_rows for number in numbers})
    assert [found[position] for position in sorted(found)] == numbers


@given(st.lists(st.integers(0, MOST) | st.integers(0, 2**32), max_size=MOST))
def test_numbers_are_ranked_as_they_come(numbers):
    """They rise, and equal ones keep their order."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    assert ranked(np.array(numbers, dtype=np.intp)).tolist() == order


@given(st.sets(st.integers(0, MOST)), st.integers(0, 5))
def test_spans_run_over_gaps_that_are_small_enough(rows, gap):
    """Rows with as many others between them as allowed, or fewer, are in one span, from a row to a row."""
    expected = []
    for row in sorted(rows):
        if expected and row - expected[-1][1] <= gap:
            expected[-1][1] = row + 1
        else:
            expected.append([row, row + 1])
    assert [list(each) for each in spans(np.array(sorted(rows), dtype=np.intp), gap)] == expected


@given(SLICES | NUMBERS, st.integers(0, MOST), st.integers(0, MOST))
def test_rows_are_counted_and_cut_by_position(rows, start, n):
    """A slice is cut as the array of its numbers would be."""
    numbers = np.arange(MOST)[rows]
    assert count(rows) == len(numbers)
    np.testing.assert_array_equal(as_numbers(rows), numbers)
    start = min(start, len(numbers))
    np.testing.assert_array_equal(as_numbers(cut(rows, start, start + n)), numbers[start : start + n])

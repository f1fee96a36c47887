"""Memory of written blocks: the next gets what was touched where it writes, and no more is kept than said."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accumulator._stores.writing.spare import SpareMemory

ROWS, ROW_NBYTES = 8, 2**14
LARGE = st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1), max_size=30)


def filled(rows):
    """Return which rows of a chunk these are."""
    mask = np.zeros(ROWS, dtype=bool)
    mask[list(rows)] = True
    return mask


@given(LARGE, st.integers(0, 4 * ROWS))
def test_no_more_is_kept_than_was_said(blocks, limit):
    """What was touched of all that is kept is counted, also where the same memory is used again."""
    spare, touched = SpareMemory(ROWS, ROW_NBYTES, limit), {}
    for rows in blocks:
        pages = spare.take(min(rows), len(rows))
        assert id(pages) not in {id(each) for each in spare}
        touched.setdefault(id(pages), (pages, set()))[1].update(rows)
        spare.give(pages, filled(rows))
        assert sum(len(touched[id(each)][1]) for each in spare) <= limit
        assert all(each.n_touched == len(touched[id(each)][1]) for each in spare)


def test_a_row_alone_gets_memory_that_was_touched_there():
    """So none of its pages is new; a block of many rows gets memory of many, and what does not fit stays."""
    spare = SpareMemory(ROWS, ROW_NBYTES, 4 * ROWS)
    one, other, whole = (spare.take(0, 1) for _ in range(3))
    for pages, rows in ((one, [1]), (other, [2]), (whole, range(ROWS))):
        spare.give(pages, filled(rows))
    assert spare.take(0, ROWS) is whole
    assert spare.take(2, 1) is other
    assert spare.take(2, 1) not in (one, other, whole)
    assert list(spare) == [one]


def test_small_rows_touch_whole_memory():
    """A few of them lie in most of its pages."""
    spare = SpareMemory(ROWS, 8, 2 * ROWS)
    for _ in range(3):
        spare.give(SpareMemory(ROWS, 8, ROWS).take(0, 1), filled([3]))
    assert [each.n_touched for each in spare] == [ROWS, ROWS]

"""Matching: every answer is the brute-force one, for any list, order and spread of coordinates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.oracle import grid
from hypothesis import given
from hypothesis import strategies as st

from accumulator._core.locations import LocationIndex
from accumulator.exceptions import DuplicateLocationError, LocationError, UnknownLocationError

EDGES = [0, 1, -1, 2**31, 2**53 + 1, -(2**62), 2**63 - 1, -(2**63)]
COORDINATES = st.integers(-3, 3) | st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def lists(draw, coordinates=COORDINATES):
    """Draw distinct rows of 1 to 6 columns."""
    columns = draw(st.integers(1, 6))
    rows = draw(st.lists(st.tuples(*[coordinates] * columns), unique=True, max_size=12))
    return np.array(rows, dtype=np.int64).reshape(len(rows), columns)


def numbers(rows):
    """Return a match as row numbers."""
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


@given(lists(), st.data())
def test_finds_every_row(locs, data):
    """Any rows of the list in any order are found, whatever was asked before."""
    index = LocationIndex(locs)
    assert len(index) == len(locs)
    for _ in range(3):
        rows = data.draw(st.lists(st.integers(0, max(0, len(locs) - 1)), unique=True, max_size=len(locs)))
        found = index.match(locs[rows].reshape(-1, locs.shape[1]))
        np.testing.assert_array_equal(numbers(found), rows)


@st.composite
def uneven_lists(draw):
    """Draw lists long enough to be searched for many rows at once, spread evenly, in clusters, or both."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    starts = draw(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=4))
    widths = draw(st.lists(st.sampled_from([2, 300, 10**5, 10**12]), min_size=1, max_size=4))
    clusters = [start + chance.integers(0, width, 200) for start, width in itertools.product(starts, widths)]
    return chance.permutation(np.unique(np.concatenate(clusters)))[:, None]


@given(uneven_lists(), st.data())
def test_finds_every_row_of_many_however_they_are_spread(locs, data):
    """Many rows at once are those that a dict finds, and one that is not there is named."""
    index = LocationIndex(locs)
    known = {number: row for row, number in enumerate(locs[:, 0].tolist())}
    chance = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    wanted = chance.permutation(locs)[: data.draw(st.integers(1, len(locs)))]
    assert numbers(index.match(wanted)).tolist() == [known[number] for number in wanted[:, 0].tolist()]
    strangers = wanted + data.draw(st.sampled_from([1, -1, 2**40, -(2**40)]))
    missing = [place for place, number in enumerate(strangers[:, 0].tolist()) if number not in known]
    if missing:
        with pytest.raises(UnknownLocationError) as caught:
            index.match(strangers)
        assert caught.value.rows.tolist() == missing


@given(lists(), lists())
def test_refuses_every_row_that_is_not_there(locs, others):
    """A row of another list is found exactly when it is in this one: no key is taken on trust."""
    if locs.shape[1] != others.shape[1]:
        return
    index = LocationIndex(locs)
    known = {tuple(row): i for i, row in enumerate(locs.tolist())}
    for row in others.tolist():
        if tuple(row) in known:
            assert numbers(index.match([row])).tolist() == [known[tuple(row)]]
        else:
            with pytest.raises(UnknownLocationError):
                index.match([row])


@given(lists(st.integers(-2, 2)), st.data())
def test_refuses_repeats(locs, data):
    """A list or a batch with a row twice is refused, naming just the later ones."""
    if not len(locs):
        return
    again = data.draw(st.lists(st.integers(0, len(locs) - 1), min_size=1, max_size=3))
    order = data.draw(st.permutations([*range(len(locs)), *again]))
    rows = locs[order]
    expected = [i for i, row in enumerate(order) if row in order[:i]]
    with pytest.raises(DuplicateLocationError) as caught:
        LocationIndex(rows)
    np.testing.assert_array_equal(caught.value.rows, expected)
    with pytest.raises(DuplicateLocationError) as caught:
        LocationIndex(locs).match(rows)
    np.testing.assert_array_equal(caught.value.rows, expected)
    np.testing.assert_array_equal(caught.value.locations, rows[expected])


def test_rows_that_follow_each_other_are_a_slice():
    """In-order batches match as slices, after a gap and after a jump back too."""
    locs = grid(100)
    index = LocationIndex(locs)
    assert index.match(locs[:32]) == slice(0, 32)
    assert index.match(locs[32:64]) == slice(32, 64)
    assert index.match(locs[70:80]) == slice(70, 80)
    assert index.match(locs[3:5]) == slice(3, 5)
    np.testing.assert_array_equal(index.match(locs[[5, 4]]), [5, 4])
    assert index.match(locs[:0]) == slice(0, 0)


def test_raster_order_needs_no_sorting():
    """Boxes in raster order, ragged sizes at the edges included, give keys that already rise."""
    locs = grid(1000, columns=31)
    locs[30::31, 2] -= 1
    assert LocationIndex(locs)._order is None
    assert LocationIndex(locs[::-1])._order is not None


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "u4", "u8", "f2", "f4", "f8", ">i4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_locations_are_equal_by_value(dtype, order):
    """Integers and whole floats of any dtype and layout match, and the list keeps its own dtype."""
    locs = grid(10)
    for mine, theirs in ((locs, locs.astype(dtype, order=order)), (locs.astype(dtype, order=order), locs)):
        index = LocationIndex(mine)
        assert index.match(theirs) == slice(0, 10)
        np.testing.assert_array_equal(index.match(theirs[::-1]), np.arange(10)[::-1])
        assert index.locs.dtype == mine.dtype
    assert LocationIndex(locs.tolist()).match(locs.astype(dtype).tolist()) == slice(0, 10)


def test_list_is_copied():
    """Changing the array afterwards does not change the index."""
    locs = grid(4)
    index = LocationIndex(locs)
    locs[:] = 0
    np.testing.assert_array_equal(index.locs, grid(4))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([[0.5, 1]], "NaN, fractions or .* row 0 of"),
        ([[0, 1], [np.nan, 1]], "row 1 of"),
        ([[np.inf, 1]], "row 0"),
        ([[1e300, 1]], "row 0"),
        (np.array([[2**63, 1]], dtype=np.uint64), "row 0"),
        ([["a", "b"]], "dtype <U1"),
        ([[None, 1]], "dtype object"),
        ([[True, False]], "dtype bool"),
        ([[1j, 2]], "dtype complex128"),
        ([0, 1], "shape .2,.* pass \\[\\[x, y"),
        (5, r"shape \(\)"),
        (np.zeros((2, 0)), "shape"),
        ([], "for none np.empty"),
        (np.zeros((2, 2, 2)), "shape"),
        ([[1, 2], [3]], "NumPy cannot look at"),
        (np.ma.masked_array([[1, 2]]), "masked"),
        ("text", "dtype <U4"),
    ],
)
def test_refuses_what_is_no_location(bad, said):
    """A list or batch that is not whole numbers in two dimensions is refused, saying which rows."""
    with pytest.raises(LocationError, match=said):
        LocationIndex(bad)
    if not isinstance(bad, list) or bad not in ([0, 1], []):
        with pytest.raises(LocationError, match=said):
            LocationIndex([[0, 1]]).match(bad)


def test_refuses_other_columns():
    """A batch must describe a location in as many columns as the list."""
    with pytest.raises(LocationError, match="2 columns but full_output_locs has 4"):
        LocationIndex(grid(3)).match([[0, 0]])

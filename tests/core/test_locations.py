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
    if not isinstance(bad, list) or bad != []:
        with pytest.raises(LocationError, match=said):
            LocationIndex([[0, 1]]).match(bad)


def test_refuses_other_columns():
    """A batch must describe a location in as many columns as the list."""
    with pytest.raises(LocationError, match="2 columns but full_output_locs has 4"):
        LocationIndex(grid(3)).match([[0, 0]])


def test_transpose_is_named():
    """Columns in one array, or columns of several lengths, are refused with the word for it."""
    index = LocationIndex(grid(9))
    with pytest.raises(LocationError, match=r"9 columns but .* has 4.*the transpose"):
        index.match(grid(9).T)
    with pytest.raises(LocationError, match=r"arrays of 9, 9, 9, 8 numbers.*transpose"):
        index.match([*grid(9).T[:3], np.arange(8)])
    with pytest.raises(LocationError, match=r"row 8 of batch_locs\[1\]"):
        index.match([*grid(9).T[:1], np.append(grid(8)[:, 1], 0.5), *grid(9).T[2:]])
    for kind in (list, tuple):
        with pytest.raises(LocationError, match=r"full_output_locs is a list of 4 arrays of 9.*transpose"):
            LocationIndex(kind(grid(9).T))
    assert LocationIndex([*grid(3)]).locs.tolist() == grid(3).tolist()


@pytest.mark.parametrize("dtype", ["u1", "i4", "i8", "f4", ">i2"])
def test_whole_numbers_in_one_dimension_are_rows_of_one_column(dtype):
    """As list and as batch, whatever they are in; where a location is of two numbers they are none."""
    index = LocationIndex(np.array([3, 7, 9], dtype))
    assert index.locs.tolist() == [[3], [7], [9]]
    assert index.locs.dtype == dtype
    for again in (
        [9, 3],
        np.array([9, 3], dtype),
        [np.int64(9), np.int64(3)],
        [[9], [3]],
        [np.array([9, 3])],
    ):
        np.testing.assert_array_equal(index.match(again), [2, 0])
    assert index.match([7]) == slice(1, 2)
    assert index.match([]) == slice(0, 0)
    assert index.locs.tolist() == LocationIndex([3, 7, 9]).locs.tolist()
    with pytest.raises(LocationError, match="fractions"):
        LocationIndex([0.0, 0.5])
    with pytest.raises(LocationError, match=r"shape \(2,\).*\[\[x, y"):
        LocationIndex([[0, 1]]).match([0, 1])
    with pytest.raises(DuplicateLocationError):
        LocationIndex([3, 7, 3])


def test_no_locations_in_one_dimension_are_of_one_column_if_they_are_integers():
    """So that rows of a mask without tissue are a list; what `[]` has in a row nobody can tell."""
    assert LocationIndex(np.flatnonzero(np.zeros(3))).locs.shape == (0, 1)
    with pytest.raises(LocationError, match=r"for none np\.empty"):
        LocationIndex(np.zeros(0))


@given(lists(st.integers(0, 2)), st.booleans(), st.data())
def test_lists_of_arrays_are_read_as_they_were_meant_or_refused(locs, are_columns, data):
    """Whatever a loader makes of its batches, rows or columns, what is matched is what it meant, or nothing.

    It is refused only where both are in the list, and no batch before has told; and each batch that could be
    one thing alone tells.
    """
    index, known = LocationIndex(locs), {tuple(row) for row in locs.tolist()}
    n_columns, is_told = locs.shape[1], False
    kind = data.draw(st.sampled_from([list, tuple]))
    for _ in range(4):
        rows = data.draw(st.lists(st.integers(0, max(0, len(locs) - 1)), unique=True, max_size=len(locs)))
        batch = locs[rows].reshape(-1, n_columns)
        other = {tuple(row) for row in batch.T.tolist()} <= known and not np.array_equal(batch, batch.T)
        is_square = len(batch) == n_columns
        arrays = kind(batch.T if are_columns else batch)
        if is_square and other and not is_told:
            with pytest.raises(LocationError, match="transpose"):
                index.match(arrays)
            continue
        np.testing.assert_array_equal(numbers(index.match(arrays)), rows)
        np.testing.assert_array_equal(index.find(arrays), rows)
        if len(arrays) > 0 and not (is_square and (other or np.array_equal(batch, batch.T))):
            is_told = True


def test_looks_and_refused_batches_tell_nothing_of_later_ones():
    """What lists of arrays are is told by batches that were found alone."""
    points = np.array([[0, 1], [2, 3], [0, 2], [1, 3], [5, 6]])
    index = LocationIndex(points)
    both = [np.array([0, 1]), np.array([2, 3])]
    index.find([*points.T])
    with pytest.raises(UnknownLocationError):
        index.match([np.array([0, 2, 9]), np.array([1, 3, 9])])
    with pytest.raises(LocationError, match="transpose"):
        index.match(both)
    assert index.match(np.array(both)) == LocationIndex(points).match(np.array(both))  # an array is rows
    assert index.match([[0, 1], [2, 3]]) == slice(0, 2)  # and so are lists of numbers
    index.match([*points.T[:, 2:]])
    assert index.match(both) == slice(2, 4)
    index = LocationIndex(points)
    np.testing.assert_array_equal(
        index.match([np.array([5, 0]), np.array([6, 1])]), [4, 0]
    )  # columns alone are
    assert index.match(both) == slice(2, 4)
    np.testing.assert_array_equal(index.match([np.array([5, 6]), np.array([0, 1])]), [4, 0])  # rows alone are


def test_columns_are_exact():
    """Columns of several dtypes do not meet in floats, which would round."""
    locs = np.array([[2**53 + 1, 1], [2**53, 1], [0, 1]])
    index = LocationIndex(locs)
    columns = [locs[:, 0], locs[:, 1].astype("u8")]
    assert index.match(columns) == slice(0, 3)
    assert index.match([np.zeros(0, int), np.zeros(0)]) == slice(0, 0)

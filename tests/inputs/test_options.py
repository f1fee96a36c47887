"""How heads are stored: dtype, fill_value, chunks, shards and compressors, in RAM, on disk and saved."""

from __future__ import annotations

import itertools
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from helpers.files import tree
from helpers.oracle import distinct, grid
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator, Stitcher
from accumulator.exceptions import HeadDtypeError, HeadValueError, OptionError

N = 13
LOCS = grid(N)
A, B = distinct(N, (2, 2)), distinct(N, (3,), "i2", first=500)
ZSTD, BLOSC, GZIP = ZstdCodec(level=0), BloscCodec(cname="lz4"), GzipCodec(level=1)


def run(heads, rows, **options):
    """Push some rows of heads, two at a time, and return the result."""
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        for start in range(0, len(rows), 2):
            some = list(rows[start : start + 2])
            accumulator.push([head[some] for head in heads], LOCS[some])
    return accumulator.finalize()


def little(array):
    """Return the bytes of an array, least significant first: zarr keeps no byte order."""
    values = np.asarray(array[...])
    return values.astype(values.dtype.newbyteorder("<")).tobytes()


def native(dtype):
    """Return a dtype whatever its byte order."""
    return np.dtype(dtype).newbyteorder("=")


def codecs(array):
    """Return the names of an array's compressors."""
    return [codec.to_dict()["name"] for codec in array.compressors]


def saved_again(result, folder):
    """Return a result loaded after it was saved, and once more after the loaded one was saved elsewhere."""
    result.save(folder / "once.zarr")
    once = FullBatch.load(folder / "once.zarr")
    once.save(folder / "twice.zarr")
    return [once, FullBatch.load(folder / "twice.zarr")]


# dtype ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("f8", ["f8", "f8"]),
        (np.float64, ["f8", "f8"]),
        (np.dtype(">f4"), [">f4", ">f4"]),
        ({"a": "f2"}, ["f2", "i2"]),
        ({"b": "i4", "a": None}, ["f4", "i4"]),
        ({"a": "f2", "b": float}, ["f2", "f8"]),
        ({}, ["f4", "i2"]),
        (None, ["f4", "i2"]),
    ],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_dtype_is_for_all_heads_or_by_head(where, tmp_path, dtype, wanted, is_named):
    """One dtype for all heads, or a dict by name or number; a head left out keeps the dtype it comes in."""
    if isinstance(dtype, dict) and not is_named:
        dtype = {"ab".index(name): each for name, each in dtype.items()}
    with FullBatchAccumulator(LOCS, dtype=dtype, **where) as accumulator:
        accumulator.push({"a": A, "b": B} if is_named else (A, B), LOCS)
        assert accumulator.nbytes == N * (4 * np.dtype(wanted[0]).itemsize + 3 * np.dtype(wanted[1]).itemsize)
    result = accumulator.finalize()
    for each in (result, *saved_again(result, tmp_path)):
        outputs = list(each.outputs.values()) if is_named else each.outputs
        assert [native(output.dtype) for output in outputs] == [native(name) for name in wanted]
        for output, head in zip(outputs, (A, B), strict=True):
            np.testing.assert_array_equal(output[:], head)


@given(values=st.lists(st.floats(-65519, 65519, width=32), min_size=1, max_size=20))
def test_floats_are_rounded_to_the_nearest(where, values):
    """A float32 stored as float16 is the nearest float16, ties to even, as the standard's packing has it."""
    head = np.array(values, "f4")
    locs = grid(len(head))
    with FullBatchAccumulator(locs, dtype="f2", **where) as accumulator:
        accumulator.push(head, locs)
    stored = accumulator.finalize().outputs[0][:]
    assert stored.tobytes() == b"".join(struct.pack("<e", value) for value in head.tolist())


def test_infinity_and_nan_that_were_pushed_stay(where):
    """What is no number before is none after, and is no error."""
    head = np.array([np.inf, -np.inf, np.nan, 65504, -65504, 1e-30, -0.0], "f4")
    with FullBatchAccumulator(LOCS, dtype="f2", **where) as accumulator:
        accumulator.push(head, LOCS[:7])
    stored = accumulator.finalize().outputs[0][:7]
    np.testing.assert_array_equal(stored, [np.inf, -np.inf, np.nan, 65504, -65504, 0, 0])
    np.testing.assert_array_equal(np.signbit(stored[[3, 4, 5, 6]]), [False, True, False, True])


@pytest.mark.parametrize("value", [65520, -65520, 1e30, -3.4e38])
@pytest.mark.parametrize("is_first", [True, False])
def test_value_that_overflows_is_named(where, value, is_first):
    """A value that float16 cannot hold is an error with head, row and value; the push changes nothing."""
    options = {"dtype": {"mask": "f2"}, "save_path": "spill"} | where
    wrong = {"score": np.ones((3, 1), "f4"), "mask": np.ones((3, 2, 2), "f4")}
    good = {name: head.copy() for name, head in wrong.items()}
    wrong["mask"][1, 0, 1] = value
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        if not is_first:
            accumulator.push(good, LOCS[:3])
            accumulator.flush()
        files, before = tree(Path.cwd()), accumulator.written.copy()
        said = rf"head 'mask' has the value {np.float32(value)} in row 1 of the batch, at \[0, 1\]"
        said = said.replace("+", r"\+")
        with pytest.raises(HeadValueError, match=said) as caught:
            accumulator.push(wrong, LOCS[5:8])
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, OverflowError)
        assert tree(Path.cwd()) == files
        assert list(Path.cwd().iterdir()) == [] or not is_first
        np.testing.assert_array_equal(accumulator.written, before)
        accumulator.push(good, LOCS[5:8])
    result = accumulator.finalize()
    assert np.isfinite(result.outputs["mask"][:]).all()
    np.testing.assert_array_equal(np.flatnonzero(result.written), [*range(3 * (not is_first)), 5, 6, 7])


DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
EDGES = sorted(
    {
        sign * 2**power + step
        for sign in (1, -1)
        for power in (*range(5), *range(5, 65))
        for step in (-1, 0, 1)
    }
)


def _holds(dtype, value):
    """Whether a dtype has exactly this whole number."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return value in {0, 1}
    if dtype.kind in "iu":
        return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    info = np.finfo(dtype)
    odd = abs(value) // (value & -value) if value else 0
    return odd.bit_length() <= info.nmant + 1 and abs(value) <= int(info.max)


@settings(max_examples=examples(100))
@given(
    value=st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**64 - 1)),
    source=st.sampled_from(DTYPES),
    target=st.sampled_from(DTYPES),
)
def test_whole_numbers_are_exact_or_refused(value, source, target):
    """A whole number is stored as itself or refused, between any two dtypes; only floats are rounded."""
    source, target = np.dtype(source), np.dtype(target)
    if not _holds(source, value):
        value = int(_holds(source, value % 2))
    head = np.array([value, 1]).astype(source) if abs(value) < 2 else np.array([value], source)
    accumulator = FullBatchAccumulator(LOCS, dtype=target)
    is_rounded = source.kind in "fc" and target.kind in "fc"
    if source.kind == "c" and target.kind != "c":
        with pytest.raises(HeadDtypeError, match="take its parts"):
            accumulator.push(head, LOCS[: len(head)])
        accumulator.close()
    elif _holds(target, value) or (is_rounded and (target != np.float16 or abs(value) < 65520)):
        accumulator.push(head, LOCS[: len(head)])
        stored = accumulator.finalize().outputs[0][0]
        assert stored.dtype == target
        assert is_rounded or int(stored.real) == value
        assert np.isfinite(stored)
    else:
        with pytest.raises(HeadValueError, match="has the value"):
            accumulator.push(head, LOCS[: len(head)])
        accumulator.close()


@pytest.mark.parametrize(
    ("head", "dtype"),
    [
        (np.array([1.5], "f4"), "i4"),
        (np.array([np.nan], "f4"), "i4"),
        (np.array([np.inf], "f4"), "i8"),
        (np.array([-np.inf], "f8"), "i8"),
        (np.array([2.0**63], "f8"), "i8"),
        (np.array([2.0**64], "f8"), "u8"),
        (np.array([-1.0], "f4"), "u8"),
        (np.array([0.5], "f4"), "?"),
        (np.array([np.nan], "f4"), "?"),
        (np.array([2], "u1"), "?"),
        (np.array([-(2**31)], "i4"), "f2"),
        (np.array([-(2**63)], "i8"), "f2"),
        (np.array([2**64 - 1], "u8"), "f4"),
        (np.array([1e300 + 1j], "c16"), "c8"),
        (np.array([1e300], "f8"), "c8"),
    ],
)
def test_value_that_would_change_is_refused(head, dtype):
    """Fractions, NaN and infinity as integers, and numbers out of range, are refused."""
    accumulator = FullBatchAccumulator(LOCS, dtype=dtype)
    with pytest.raises(HeadValueError, match="head 0 has the value"):
        accumulator.push(head, LOCS[:1])
    assert accumulator.canvas == []
    accumulator.close()


def test_bool_and_complex(where):
    """Booleans as numbers, zeros and ones as booleans, and reals as complex numbers are themselves."""
    flags = np.arange(N) % 2 == 0
    heads = (flags, flags.astype("f4"), np.arange(N).astype("f4"), 1j * np.arange(N))
    dtype = {0: "u1", 1: "?", 2: "c8", 3: "c8"}
    with FullBatchAccumulator(LOCS, dtype=dtype, **where) as accumulator:
        accumulator.push(heads, LOCS)
    for number, (output, head) in enumerate(zip(accumulator.finalize().outputs, heads, strict=True)):
        assert output.dtype == np.dtype(dtype[number])
        np.testing.assert_array_equal(output[:], head)


def test_later_batches_may_have_any_dtype_that_fits(where):
    """With a dtype asked for, every batch is taken to it, whatever dtype it comes in."""
    with FullBatchAccumulator(LOCS, dtype="f4", **where) as accumulator:
        for row, dtype in enumerate(["f4", "f8", "f2", "i8", "?", ">u2"]):
            accumulator.push(np.ones((1, 2), dtype), LOCS[row : row + 1])
        with pytest.raises(HeadDtypeError):
            accumulator.push(np.ones((1, 2), "c8"), LOCS[7:8])
        with pytest.raises(HeadValueError):
            accumulator.push(np.full((1, 2), 2**24 + 1), LOCS[7:8])
    output = accumulator.finalize().outputs[0]
    assert output.dtype == np.float32
    assert (output[:6] == 1).all()


@pytest.mark.parametrize("dtype", ["no such", "U3", object, {"a": "M8[s]"}, 7])
def test_dtype_that_is_none_is_refused_at_once(dtype):
    """What is no dtype, or none of numbers, is refused at construction."""
    with pytest.raises(OptionError, match="dtype is"):
        FullBatchAccumulator(LOCS, dtype=dtype)


# fill_value -------------------------------------------------------------------------------------------

FILLS = [
    (0, "f4"),
    (0.0, "i2"),
    (2.5, "f4"),
    (0.1, "f4"),
    (float("nan"), "f8"),
    (float("-inf"), "f2"),
    (-1, "i2"),
    (255, "u1"),
    (True, "?"),
    (1 + 2j, "c8"),
    (np.float64(3), ">f4"),
    (np.array(7), "i8"),
]
STORAGES = [{}, {"chunks": 4}, {"compressors": ZSTD}, {"chunks": (3, 1, 2)}, {"shards": 4}]


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize(("fill", "dtype"), FILLS)
@pytest.mark.parametrize("storage", STORAGES)
def test_rows_that_never_came_hold_the_fill_value(where, tmp_path, fill, dtype, storage):
    """Rows missing alone, in part of a chunk or in whole chunks: the fill value, also when it is saved."""
    rows = [12, 1, 0, 2]
    head = distinct(N, (2, 2), first=0).astype(dtype)
    expected = np.full((N, 2, 2), np.asarray(fill).astype(dtype))
    expected[rows] = head[rows]
    with FullBatchAccumulator(LOCS, fill_value=fill, **storage, **where) as accumulator:
        accumulator.push(head[:0], LOCS[:0])
        for row in rows:
            accumulator.push(head[[row]], LOCS[[row]])
        assert little(accumulator.canvas[0]) == little(expected)
    result = accumulator.finalize()
    for each in (result, *saved_again(result, tmp_path)):
        assert little(each.outputs[0]) == little(expected)
        assert native(each.outputs[0].dtype) == native(dtype)
    plain = zarr.open_array(tmp_path / "once.zarr" / "outputs" / "0", mode="r")
    assert little(plain) == little(expected)
    assert np.asarray(plain.fill_value).astype(dtype).tobytes() == np.asarray(fill).astype(dtype).tobytes()


def test_minus_zero_is_a_fill_value_like_any_other(where):
    """The same bytes in RAM and on disk, also where the fill value is minus zero."""
    with FullBatchAccumulator(LOCS, fill_value=-0.0, **where) as accumulator:
        accumulator.push(np.zeros((1, 2), "f4"), LOCS[5:6])
    is_minus = np.signbit(accumulator.finalize().outputs[0][:]).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(~is_minus), [5])


def test_fill_value_by_head(where):
    """Each head may have its own; a head left out has 0."""
    with FullBatchAccumulator(LOCS, fill_value={"a": np.nan, "c": -1}, **where) as accumulator:
        accumulator.push({"a": A[:1], "b": B[:1], "c": B[:1]}, LOCS[:1])
    outputs = accumulator.finalize().outputs
    assert np.isnan(outputs["a"][1:]).all()
    assert not outputs["b"][1:].any()
    assert (outputs["c"][1:] == -1).all()


@pytest.mark.parametrize(
    ("fill", "head", "dtype"),
    [
        (-1, np.ones((1, 2), "u1"), None),
        (256, np.ones((1, 2), "u1"), None),
        (0.5, np.ones((1, 2), "i4"), None),
        (np.nan, np.ones((1, 2), "i4"), None),
        (2, np.ones((1, 2), "?"), None),
        (1e300, np.ones((1, 2), "f4"), None),
        (70000, np.ones((1, 2), "f4"), "f2"),
        (10**400, np.ones((1, 2), "f8"), None),
        (1j, np.ones((1, 2), "f4"), None),
        (1j, np.ones((1, 2), "i4"), None),
        ("3", np.ones((1, 2), "f4"), None),
        (None, np.ones((1, 2), "f4"), None),
        ([1, 2], np.ones((1, 2), "f4"), None),
        ([1], np.ones((1, 2), "f4"), None),
        ({"a": 1, "b": -1}, {"a": np.ones((1, 2), "i1"), "b": np.ones((1, 2), "u1")}, None),
    ],
)
def test_fill_value_that_the_head_cannot_hold_is_refused(where, fill, head, dtype):
    """It is named at the first push, which changes nothing."""
    with FullBatchAccumulator(LOCS, fill_value=fill, dtype=dtype, **where) as accumulator:
        with pytest.raises(OptionError, match=r"fill_value of head .* cannot hold"):
            accumulator.push(head, LOCS[:1])
        assert accumulator.canvas == []
        assert list(Path.cwd().iterdir()) == []
        accumulator.close()


# chunks, shards, compressors --------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize(
    ("options", "chunks", "shards", "names"),
    [
        ({}, [(4, 2, 2), (8, 3)], [None, None], [[], []]),
        ({"chunks": 5}, [(5, 2, 2), (5, 3)], [None, None], [[], []]),
        ({"chunks": np.int64(5)}, [(5, 2, 2), (5, 3)], [None, None], [[], []]),
        ({"chunks": 20}, [(20, 2, 2), (20, 3)], [None, None], [[], []]),
        ({"chunks": {0: (5, 1, 2)}}, [(5, 1, 2), (8, 3)], [None, None], [[], []]),
        ({"chunks": {0: [5, 2, 2], 1: 2}}, [(5, 2, 2), (2, 3)], [None, None], [[], []]),
        ({"shards": 6}, [(1, 2, 2), (1, 3)], [(6, 2, 2), (6, 3)], [[], []]),
        ({"shards": 6, "chunks": 3}, [(3, 2, 2), (3, 3)], [(6, 2, 2), (6, 3)], [[], []]),
        ({"shards": {1: (6, 3)}, "chunks": {1: (2, 1)}}, [(4, 2, 2), (2, 1)], [None, (6, 3)], [[], []]),
        ({"compressors": ZSTD}, [(4, 2, 2), (8, 3)], [None, None], [["zstd"], ["zstd"]]),
        ({"compressors": {0: BLOSC}}, [(4, 2, 2), (8, 3)], [None, None], [["blosc"], []]),
        ({"compressors": [GZIP]}, [(4, 2, 2), (8, 3)], [None, None], [["gzip"], ["gzip"]]),
        ({"compressors": {1: (BLOSC, GZIP)}}, [(4, 2, 2), (8, 3)], [None, None], [[], ["blosc", "gzip"]]),
        ({"compressors": ()}, [(4, 2, 2), (8, 3)], [None, None], [[], []]),
        ({"compressors": "zstd"}, [(4, 2, 2), (8, 3)], [None, None], [["zstd"], ["zstd"]]),
        ({"compressors": {0: "gzip", 1: "blosc"}}, [(4, 2, 2), (8, 3)], [None, None], [["gzip"], ["blosc"]]),
        (
            {"compressors": [{"name": "gzip", "configuration": {"level": 1}}], "shards": 4},
            [(1, 2, 2), (1, 3)],
            [(4, 2, 2), (4, 3)],
            [["gzip"], ["gzip"]],
        ),
    ],
)
def test_storage_is_as_asked_for(where, tmp_path, options, chunks, shards, names):
    """Zarr's own options, for all heads or by head, are what the arrays on disk have; saving keeps them."""
    rows = [7, 3, 12, 0, 1, 2]
    result = run((A, B), rows, **options, **where)
    kept = saved_again(result, tmp_path)
    for each in kept if where["memory_threshold"] else [result, *kept]:
        assert [output.chunks for output in each.outputs] == chunks
        assert [output.shards for output in each.outputs] == shards
        assert [codecs(output) for output in each.outputs] == names
    for each in (result, *kept):
        for output, head in zip(each.outputs, (A, B), strict=True):
            expected = np.zeros_like(head)
            expected[rows] = head[rows]
            np.testing.assert_array_equal(output[:], expected)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": {"c": 4}},
        {"chunks": {0: 4}},
        {"shards": {"a": 4, "c": 4}},
        {"compressors": {"c": ZSTD}},
        {"compressors": {"name": "zstd", "configuration": {"level": 0}}},
        {"fill_value": {"c": 1}},
        {"dtype": {"A": "f2"}},
    ],
)
def test_option_for_a_head_that_is_not_there_is_refused(where, options):
    """A dict that names another head is an error at the first push, which changes nothing."""
    with FullBatchAccumulator(LOCS, save_path="a/b", **options, **where) as accumulator:
        with pytest.raises(OptionError, match=r"has an entry for head .*, but the heads are \['a', 'b'\]"):
            accumulator.push({"a": A, "b": B}, LOCS)
        assert accumulator.canvas == []
        assert accumulator.nbytes == 0
        assert list(Path.cwd().iterdir()) == []
        accumulator.close()


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": 0},
        {"chunks": -4},
        {"chunks": 2.5},
        {"chunks": "4"},
        {"chunks": "auto"},
        {"chunks": "abc"},
        {"chunks": ()},
        {"chunks": (4, 2)},
        {"chunks": (4, 2, 2, 1)},
        {"chunks": (4, 0, 2)},
        {"chunks": (2.5, 2, 2)},
        {"chunks": (4, None, 2)},
        {"shards": 0},
        {"shards": (4, 2)},
        {"shards": object()},
        {"shards": 5, "chunks": 2},
        {"shards": (4, 2, 2), "chunks": (4, 2, 3)},
        {"shards": 2, "chunks": 4},
        {"compressors": 7},
        {"compressors": [ZSTD, None]},
        {"compressors": [{"name": "no such codec"}]},
    ],
)
def test_impossible_storage_is_refused_at_the_first_push(where, options):
    """What zarr would refuse is refused at once, even if the result is in RAM; nothing has changed then."""
    with FullBatchAccumulator(LOCS, save_path="a/b", **options, **where) as accumulator:
        with pytest.raises(OptionError, match="head 0"):
            accumulator.push(A, LOCS)
        assert accumulator.canvas == []
        assert accumulator.nbytes == 0
        assert not accumulator.written.any()
        assert list(Path.cwd().iterdir()) == []
        accumulator.close()


@pytest.mark.parametrize("raw", ["best", "", "ZSTD", {0: "zstd", 1: "best"}])
@pytest.mark.parametrize("kind", [FullBatchAccumulator, Stitcher])
def test_names_of_no_compressor_are_refused_at_once(kind, raw):
    """Before anything is pushed; the error has those that there are."""
    with pytest.raises(
        OptionError, match=r"compressors is '.*': give one of 'zstd', 'gzip', 'blosc', 'auto'"
    ):
        kind(LOCS, compressors=raw)


@pytest.mark.parametrize("name", ["zstd", "gzip", "blosc"])
def test_a_compressor_by_its_name_is_that_of_zarr(name):
    """It has zarr's settings, is resumed as such, and holds in maps too."""
    codec = {"zstd": ZstdCodec, "gzip": GzipCodec, "blosc": BloscCodec}[name]()
    boxes = np.array([[x, 0, x + 2, 2] for x in range(0, 8, 2)])
    with FullBatchAccumulator(boxes, store="named.zarr", compressors=name) as accumulator:
        accumulator.push(np.ones((2, 2, 2)), boxes[:2])
    for same in (name, codec):
        with FullBatchAccumulator(boxes, store="named.zarr", mode="a", compressors=same) as accumulator:
            assert accumulator.written.tolist() == [True, True, False, False]
    with FullBatchAccumulator(boxes, store="codec.zarr", compressors=codec) as other:
        other.push(np.ones((2, 2, 2)), boxes[:2])
    with Stitcher(boxes, store="map.zarr", compressors=name) as stitcher:
        stitcher.push(np.ones((4, 2, 2)), boxes)
    found = [zarr.open_array(f"{path}.zarr/outputs/0", mode="r") for path in ("named", "codec", "map")]
    assert found[0].compressors == found[1].compressors
    assert [codecs(array) for array in found] == [[name]] * 3


def test_chunks_that_the_memory_cannot_hold_are_refused():
    """On disk, chunks of all heads together beyond the buffers are an error that says so."""
    accumulator = FullBatchAccumulator(LOCS, chunks=8, memory_limit=100, memory_threshold=0)
    with pytest.raises(OptionError, match="choose smaller ones"):
        accumulator.push(A, LOCS)
    accumulator.close()


@pytest.mark.parametrize("options", [{}, {"compressors": ZSTD}, {"shards": 4, "compressors": [BLOSC]}])
def test_plain_zarr_reads_what_is_saved(where, tmp_path, options):
    """Plain zarr, knowing nothing of this library, finds groups, heads and values."""
    run((A, B), [3, 9, 2], fill_value=-1, **options, **where).save(tmp_path / "result.zarr")
    group = zarr.open(tmp_path / "result.zarr", mode="r")
    for number, head in enumerate((A, B)):
        expected = np.full_like(head, -1)
        expected[[3, 9, 2]] = head[[3, 9, 2]]
        np.testing.assert_array_equal(group[f"outputs/{number}"][:], expected)
    np.testing.assert_array_equal(group["output_locs"][:], LOCS)
    np.testing.assert_array_equal(np.flatnonzero(group["written"][:]), [2, 3, 9])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": 4, "fill_value": 7},
        {"compressors": ZSTD, "chunks": 4},
        {"compressors": BLOSC, "chunks": (4, 1, 2)},
        {"compressors": GZIP},
        {"compressors": ZSTD, "shards": 8, "chunks": 2},
    ],
)
def test_tensorstore_reads_it(tmp_path, options):
    """TensorStore opens raw, compressed and sharded heads, and reads the same values."""
    rows = [12, 1, 2, 3, 7]
    run((A,), rows, memory_threshold=0, **options).save(tmp_path / "result.zarr")
    folder = tmp_path / "result.zarr" / "outputs" / "0"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    expected = np.full_like(A, options.get("fill_value", 0))
    expected[rows] = A[rows]
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), expected, strict=True)


# all together -----------------------------------------------------------------------------------------


@st.composite
def heads_and_options(draw):
    """Return heads of N rows, the dtypes they are stored in, fill values, and options that fit them."""
    n_heads = draw(st.integers(1, 3))
    heads, stored, fills = [], [], []
    options = {"dtype": {}, "fill_value": {}, "chunks": {}, "shards": {}, "compressors": {}}
    for number in range(n_heads):
        shape = draw(st.sampled_from([(), (3,), (2, 3), (4, 1), (0, 2)]))
        pushed, dtype = draw(
            st.sampled_from(
                [
                    ("f4", "f2"),
                    ("f4", None),
                    ("f8", ">f4"),
                    ("i2", "i8"),
                    ("u1", None),
                    ("?", "f4"),
                    (">i4", None),
                ]
            )
        )
        fill = draw(st.sampled_from([0, 1, 0.0, 5] if pushed != "?" else [0, 1, True]))
        if np.dtype(dtype or pushed).kind == "f":
            fill = draw(st.sampled_from([fill, 0.1, float("nan"), -2.5]))
        whole = (1, *(max(1, length) for length in shape))
        inner = (draw(st.integers(1, 6)), *(draw(st.integers(1, length)) for length in whole[1:]))
        kind = draw(st.sampled_from(["default", "rows", "whole", "shards", "shards of chunks"]))
        if kind == "rows":
            options["chunks"][number] = inner[0]
        elif kind == "whole":
            options["chunks"][number] = inner
        elif kind == "shards":
            options["shards"][number] = inner[0]
        elif kind == "shards of chunks":
            options["chunks"][number] = inner
            options["shards"][number] = tuple(draw(st.integers(1, 3)) * length for length in inner)
        if draw(st.booleans()):
            options["compressors"][number] = draw(st.sampled_from([ZSTD, BLOSC, [GZIP], [BLOSC, ZSTD], ()]))
        if dtype is not None:
            options["dtype"][number] = dtype
        options["fill_value"][number] = fill
        heads.append(distinct(N, shape, first=7 * number).astype(pushed))
        stored.append(np.dtype(dtype or pushed))
        fills.append(fill)
    return heads, stored, fills, options


@pytest.mark.usefixtures("tiny_chunks")
@settings(max_examples=examples(60))
@given(
    given=heads_and_options(),
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(0, N), max_size=6).map(sorted),
    n_kept=st.integers(0, N),
    look_at=st.integers(0, 10),
    is_saved=st.booleans(),
)
def test_same_values_whatever_the_options(where, given, order, cuts, n_kept, look_at, is_saved):
    """Any options, any order, looked at in between, saved and loaded: each row's value or the fill value."""
    heads, stored, fills, options = given
    expected = [
        np.full(head.shape, np.asarray(fill).astype(dtype))
        for head, dtype, fill in zip(heads, stored, fills, strict=True)
    ]
    kept = order[:n_kept]
    with FullBatchAccumulator(LOCS, **options, **where) as accumulator:
        for number, (start, stop) in enumerate(itertools.pairwise([0, *cuts, N])):
            rows = list(kept[start:stop])
            accumulator.push([head[rows] for head in heads], LOCS[rows])
            for wanted, head in zip(expected, heads, strict=True):
                wanted[rows] = head[rows].astype(wanted.dtype)
            if number == look_at:
                assert [little(canvas) for canvas in accumulator.canvas] == [little(w) for w in expected]
    with accumulator.finalize() as result:
        results = [result]
        if is_saved:
            results += saved_again(result, Path(tempfile.mkdtemp(dir=".")))
        for each in results:
            assert [little(output) for output in each.outputs] == [little(wanted) for wanted in expected]
            assert [native(output.dtype) for output in each.outputs] == [native(dtype) for dtype in stored]
            np.testing.assert_array_equal(np.flatnonzero(each.written), sorted(kept))
            np.testing.assert_array_equal(each.output_locs, LOCS)
            for number, output in enumerate(each.outputs):
                if isinstance(output, zarr.Array):
                    assert output.shards == _shards(options, number, output)


def _shards(options, number, output):
    """Return the shards that were asked for."""
    shards = options["shards"].get(number)
    if isinstance(shards, int):
        return (shards, *(max(1, length) for length in output.shape[1:]))
    return shards

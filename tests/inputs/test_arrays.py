"""What arrays of other libraries may hide: a mask, numbers that no file can have, parts that overflow."""

from __future__ import annotations

import enum
import logging
from collections import deque

import dask.array as da
import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator, Stitcher, prepare_multitask_full_batch, stitch
from accumulator.exceptions import (
    HeadDtypeError,
    HeadError,
    HeadValueError,
    LocationError,
    OptionError,
    ResumeError,
)

LOCS = grid(3)
MASKED = np.ma.masked_array(np.arange(12).reshape(3, 4), np.eye(3, 4))
LAZY = da.from_array(np.arange(12).reshape(3, 4), 2)


class Wrapping:
    """Hands over what it wraps, as many libraries' arrays do."""

    def __init__(self, inner):
        self.inner = inner

    def __array__(self, dtype=None, copy=None):
        return self.inner


class Dropping:
    """What xarray is to dask: NumPy sees an array without its mask, which is where the array is kept."""

    def __init__(self, inner):
        self.data = inner

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.data)


class MaskedTensor(Wrapping):
    """What torch calls so."""


class Beside(Wrapping):
    """Keeps its mask beside its data, as astropy does."""

    @property
    def mask(self):
        return np.zeros(self.inner.shape, bool)


class Interface:
    """Tells of its mask by NumPy's array interface, which NumPy itself does not look at."""

    def __init__(self, values):
        self.__array_interface__ = values.data.__array_interface__ | {"mask": values.mask}
        self.values = values


HIDDEN = {
    "numpy.ma": MASKED,
    "numpy.ma without any masked value": np.ma.masked_array(MASKED.data),
    "__array__": Wrapping(MASKED),
    "nested": [list(MASKED.data[:2]), list(MASKED.data[2:]), MASKED],
    "nested deep": [[[[1, 2]]], [[[3, 4]]], [[[5, np.ma.masked]]]],
    "in a deque": deque([MASKED[0], MASKED[1], MASKED[2]]),
    "__array__ in a list": [Wrapping(MASKED[0]), MASKED.data[1], MASKED.data[2]],
    "dask": da.ma.masked_array(MASKED.data, MASKED.mask),
    "dask, which does not know it": LAZY.map_blocks(lambda x: np.ma.masked_less(x, 2), meta=np.array(0)),
    "dask in a list": [da.ma.masked_array(row.data, row.mask) for row in MASKED],
    "dask in an object that drops it": Dropping(da.ma.masked_array(MASKED.data, MASKED.mask)),
    "torch": MaskedTensor(MASKED.data),
    "astropy": Beside(MASKED.data),
    "array interface": Interface(MASKED),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_mask_is_never_dropped(kind):
    """Where an array has a mask, predictions and locations are refused, and nothing was taken."""
    with FullBatchAccumulator(LOCS) as accumulator:
        for heads in ((HIDDEN[kind],), {"a": HIDDEN[kind]}):
            with pytest.raises(HeadDtypeError, match=r"head (0|'a') is a masked array.*filled"):
                accumulator.push(heads, LOCS)
        assert accumulator.canvas == []
        with pytest.raises(LocationError, match=r"batch_locs is a masked array"):
            accumulator.push(distinct(3), HIDDEN[kind])
        with pytest.raises(LocationError, match="full_output_locs is a masked array"):
            FullBatchAccumulator(HIDDEN[kind])
        accumulator.push(distinct(3), LOCS)


def test_mask_of_weights_and_of_a_fill_value_is_not_dropped():
    """Whatever else may be an array."""
    with pytest.raises(OptionError, match="blend is a masked array"):
        Stitcher(LOCS, blend=np.ma.masked_array(np.ones((4, 4))))
    with FullBatchAccumulator(LOCS, fill_value=np.ma.masked) as accumulator:
        with pytest.raises(OptionError, match="fill_value"):
            accumulator.push(distinct(3), LOCS)
        accumulator.close()


def test_arrays_without_a_mask_are_taken_whatever_they_are():
    """Computing is what dask is for; a name such as `mask` alone says nothing."""
    named = Wrapping(MASKED.data)
    named.mask = MASKED.mask  # an instance's own, as xarray has coordinates
    for values in (
        LAZY,
        [Wrapping(row) for row in MASKED.data],
        named,
        Dropping(LAZY),
        [*map(list, MASKED.data)],
    ):
        with FullBatchAccumulator(LOCS) as accumulator:
            accumulator.push((values,), LOCS)
        np.testing.assert_array_equal(accumulator.finalize().outputs[0], np.arange(12).reshape(3, 4))


def test_lists_in_each_other_without_end_are_refused():
    """As NumPy refuses them."""
    endless = []
    endless += [endless, endless]
    with FullBatchAccumulator(LOCS) as accumulator:
        with pytest.raises(HeadDtypeError, match="nested deeper"):
            accumulator.push((endless,), LOCS)
        accumulator.close()


FOREIGN = {
    name: getattr(ml_dtypes, name)
    for name in dir(ml_dtypes)
    if isinstance(getattr(ml_dtypes, name), type) and name not in {"finfo", "iinfo"}
}


@pytest.mark.parametrize("name", FOREIGN)
def test_numbers_of_other_libraries_become_the_next_that_numpy_has(tmp_path, where, name):
    """Every value is what it was, in RAM, on disk and after saving: float8 and int4 as bfloat16."""
    dtype = np.dtype(FOREIGN[name])
    bits = np.arange(256, dtype=np.uint8).astype(f"u{dtype.itemsize}") * 2 ** (8 * (dtype.itemsize - 1))
    if "complex" in name:
        values = np.array([1 + 2j, -0.5, 3j, 0] * 64, np.complex64).astype(dtype)
    elif "int" in name:
        values = np.resize(np.arange(-8 if name == "int4" else 0, 2), 256).astype(dtype)
    else:
        values = bits.view(dtype)[: 256 if "8" in name or "16" in name else 16]
    kind = "c8" if "complex" in name else "f4" if "float" in name else "u1" if name[0] == "u" else "i1"
    with FullBatchAccumulator([[i] for i in range(len(values))], **where) as accumulator:
        accumulator.push(values, [[i] for i in range(len(values))])
    result = accumulator.finalize()
    result.save(tmp_path / "saved.zarr")
    for output in (result.outputs[0], FullBatch.load(tmp_path / "saved.zarr").outputs[0]):
        assert output.dtype == kind
        np.testing.assert_array_equal(output[:], values.astype(kind))


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_what_no_file_can_have_is_refused_by_the_first_push(where, dtype):
    """In RAM too, where it would be found out by `save` alone; the function's arrays are the caller's."""
    values = np.ones((3, 2), dtype)
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        with pytest.raises(HeadDtypeError, match=r"head 0 has dtype .*longdouble|float128|complex256"):
            accumulator.plan(values)
        with pytest.raises(HeadDtypeError, match=r"zarr cannot store.*float64"):
            accumulator.push(values, LOCS)
        assert accumulator.canvas == []
        accumulator.push(values.astype("c16"), LOCS)
    with FullBatchAccumulator(LOCS, dtype="c16", **where) as accumulator:
        accumulator.push(values, LOCS)
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:], np.ones((3, 2)))
    outputs, _, _ = prepare_multitask_full_batch((values,), LOCS, LOCS, None, is_last=True)
    assert outputs[0].dtype == dtype


@pytest.mark.parametrize(
    "dtype", [np.longdouble, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, ml_dtypes.int4, "M8[s]"]
)
def test_dtype_that_no_file_can_have_is_refused_at_once(dtype):
    """When it is asked for, for all heads or for one, by both classes."""
    for each in (dtype, {"a": dtype}):
        for kind in (FullBatchAccumulator, Stitcher):
            with pytest.raises(OptionError, match="dtype"):
                kind(LOCS, dtype=each)


NAN, LARGE = float("nan"), 1e300


@pytest.mark.parametrize(
    ("source", "target", "value", "is_right"),
    [
        ("c16", "c8", complex(NAN, LARGE), False),
        ("c16", "c8", complex(LARGE, NAN), False),
        ("c16", "c8", complex(1, -LARGE), False),
        ("c16", "c8", complex(float("inf"), LARGE), False),
        ("c16", "c8", complex(float("inf"), NAN), True),
        ("c16", "c8", complex(NAN, -1e-300), True),
        ("f8", "c8", LARGE, False),
        ("f8", "c8", NAN, True),
        ("g", "f8", "1e400", False),
        ("G", "c16", "1e400", False),
        ("G", "c8", "1e38", True),
        ("c16", "f8", 1, False),
    ],
)
def test_complex_and_extended_floats_are_checked_part_by_part(source, target, value, is_right):
    """NaN in one part hides no overflow of the other; where long double is double there is no 1e400."""
    values = np.zeros((3, 2), source)
    values[1, 1] = np.longdouble(value) if isinstance(value, str) else value
    if not np.isfinite(values[1, 1].real) and isinstance(value, str):
        pytest.skip("long double is double here")
    fill = None if isinstance(value, str) else value
    with FullBatchAccumulator(LOCS, dtype=target) as accumulator:
        if is_right:
            accumulator.push(values, LOCS)
            np.testing.assert_array_equal(accumulator.canvas[0], values.astype(target))
        else:
            with pytest.raises((HeadValueError, HeadDtypeError), match=f"head 0.*dtype={np.dtype(target)}"):
                accumulator.push(values, LOCS)
            assert accumulator.canvas == []
        accumulator.close()
    if fill is not None and target != "f8":
        with FullBatchAccumulator(LOCS, dtype=target, fill_value=fill) as accumulator:
            if is_right:
                accumulator.push(np.zeros((1, 2)), LOCS[:1])
                np.testing.assert_array_equal(accumulator.canvas[0][1], np.full(2, fill, target))
            else:
                with pytest.raises(OptionError, match="fill_value of head 0"):
                    accumulator.push(np.zeros((1, 2)), LOCS[:1])
            accumulator.close()


def test_fractions_of_extended_floats_are_seen_in_locations():
    """A long double is not rounded before it is looked at."""
    locs = np.array([[0], [2**52]], np.longdouble) + np.array([[0], [2**-8]], np.longdouble)
    if locs[1, 0] == 2**52:
        pytest.skip("long double is double here")
    with pytest.raises(LocationError, match="fractions"):
        FullBatchAccumulator(locs)


class Name(str, enum.Enum):  # noqa: UP042  StrEnum shows its text itself
    """As an application names its heads."""

    TUMOUR = "tumour"
    NECROSIS = "necrosis"


class Odd(str):
    """Text that is equal to no other, and shown as something else."""

    __slots__ = ()

    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)

    def __str__(self):
        return "odd"


@pytest.mark.parametrize("text", [Name, np.str_, Odd])
def test_head_names_are_plain_text_everywhere(tmp_path, where, text):
    """Whatever kind of text they are: in options, outputs, messages, stores, maps and exports, once."""
    a, b = text("tumour"), text("necrosis")
    patches = np.full((3, 4, 4, 1), 2, np.float32)
    options = {"dtype": {a: "f8"}, "fill_value": {b: 7}, "chunks": {a: 1}}
    with FullBatchAccumulator(LOCS, **options, **where) as accumulator:
        accumulator.push({a: patches[:1], b: patches[:1]}, LOCS[:1])
        accumulator.push({"necrosis": patches[1:2], "tumour": patches[1:2]}, LOCS[1:2])
        assert "'tumour'" in str(accumulator.plan())
        with pytest.raises(HeadError, match="'necrosis', 'other'"):
            accumulator.push({b: patches[2:], "other": patches[2:]}, LOCS[2:])
    result = accumulator.finalize()
    result.save(tmp_path / "saved.zarr")
    for each in (result, FullBatch.load(tmp_path / "saved.zarr")):
        assert [(type(name), name) for name in each.outputs] == [(str, "tumour"), (str, "necrosis")]
        assert each.outputs["tumour"].dtype == "f8"
        assert each.outputs["necrosis"][2].ravel()[0] == 7
        maps = stitch(each, heads=[a], chunks={a: 4})
        assert [(type(name), name) for name in maps.outputs] == [(str, "tumour")]
        maps.save_ome_tiff(tmp_path / f"{id(each)}.tif", head=a)
        maps.save_ome_zarr(tmp_path / f"{id(each)}.zarr", channel_names={a: ["x"]})
        maps.close()


def test_names_that_are_equal_as_text_are_refused():
    """Two heads of one name could not be told apart; two options for one head neither."""
    with FullBatchAccumulator(LOCS) as accumulator:
        with pytest.raises(HeadError, match="same name"):
            accumulator.push({Odd("a"): distinct(3), "a": distinct(3)}, LOCS)
        accumulator.close()
    with pytest.raises(OptionError, match="two entries"):
        FullBatchAccumulator(LOCS, dtype={Odd("a"): "f4", "a": "f8"})


@pytest.mark.parametrize("name", ["", "a/b", "..", "nul\0", "\ud800", "a\nb", "0", "é", "x" * 5000])
def test_any_name_of_a_head_can_be_stored_and_loaded(tmp_path, name):
    """A name is no path: whatever it is, it comes back, from a kept run too, which can be resumed."""
    store = tmp_path / "run.zarr"
    with FullBatchAccumulator(LOCS, store=store) as accumulator:
        accumulator.push({name: distinct(2)}, LOCS[:2])
        accumulator.close()
    with FullBatchAccumulator(LOCS, store=store, mode="a") as accumulator:
        with pytest.raises(ResumeError):
            accumulator.push({name + "x": distinct(1)}, LOCS[2:])
        accumulator.push({name: distinct(1)}, LOCS[2:])
        assert accumulator._repr_html_()
    accumulator.finalize().save(tmp_path / "copy.zarr")
    for path in (store, tmp_path / "copy.zarr"):
        assert list(FullBatch.load(path).outputs) == [name]
        assert sorted(each.name for each in (path / "outputs").iterdir()) == ["0", "zarr.json"]


def test_each_call_of_the_function_is_told_at_debug(caplog):
    """An application that calls it for every batch, and logs at INFO, is not told each time."""
    with caplog.at_level(logging.INFO, "accumulator"):
        prepare_multitask_full_batch((distinct(3),), LOCS, LOCS, None, is_last=True)
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, "accumulator"):
        prepare_multitask_full_batch((distinct(3),), LOCS, LOCS, None, is_last=True)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    with caplog.at_level(logging.INFO, "accumulator"), FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(distinct(3), LOCS)
    assert "go to RAM" in caplog.text

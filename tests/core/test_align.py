"""The documented function: its meaning against the oracle, and every settled case."""

from __future__ import annotations

import inspect
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.oracle import align, distinct, grid
from hypothesis import given
from hypothesis import strategies as st

from accumulator import prepare_multitask_full_batch
from accumulator.exceptions import (
    DuplicateLocationError,
    HeadDtypeError,
    HeadError,
    LocationError,
    OptionError,
    UnknownLocationError,
)

DTYPES = ["?", "u1", "i2", "<u4", ">i4", "i8", "f2", "<f4", ">f4", "f8", "c8", "c16"]


@pytest.fixture(autouse=True)
def _clean_up():
    """Remove the folders of zarr results, which are the caller's."""
    yield
    for folder in list(Path.cwd().rglob("full_batch_*")):
        shutil.rmtree(folder)


@st.composite
def calls(draw):
    """Draw locations, a batch of some of them in any order, and heads of any shape and dtype."""
    n = draw(st.integers(0, 12))
    locs = grid(n)[draw(st.permutations(range(n)))] if draw(st.booleans()) else grid(n)
    rows = draw(st.lists(st.sampled_from(range(n)), unique=True)) if n else []
    shapes = draw(st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=0, max_size=3))
    heads = tuple(
        distinct(len(rows), shape, draw(st.sampled_from(DTYPES)), first=1 + 100 * i)
        for i, shape in enumerate(shapes)
    )
    done = draw(st.none() | st.integers(0, 3).map(lambda m: grid(m, step=999)))
    return heads, locs[rows].reshape(-1, 4), locs, done


@given(call=calls(), is_last=st.booleans(), threshold=st.sampled_from([0, 100]))
def test_means_what_is_documented(call, is_last, threshold):
    """Outputs, dtypes, remaining and consumed locations are the oracle's, in RAM and in zarr."""
    heads, batch_locs, locs, done = call
    before = [array.copy() for array in (*heads, batch_locs, locs)]
    outputs, remaining, consumed = prepare_multitask_full_batch(
        heads, batch_locs, locs, done, memory_threshold=threshold, is_last=is_last
    )
    expected, expected_remaining, expected_consumed = align(heads, batch_locs, locs, done, is_last=is_last)
    assert isinstance(outputs, list)
    assert len(outputs) == len(expected)
    needed = sum(array.nbytes for array in expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert isinstance(output, zarr.Array if threshold == 0 and needed else np.ndarray)
        assert output.dtype == wanted.dtype
        np.testing.assert_array_equal(output[:], wanted, strict=True)
    np.testing.assert_array_equal(remaining, expected_remaining, strict=True)
    np.testing.assert_array_equal(consumed, expected_consumed, strict=True)
    for array, copy in zip((*heads, batch_locs, locs), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(st.permutations(range(9)), st.lists(st.integers(1, 4), min_size=9, max_size=9), st.booleans())
def test_plain_loop_gives_everything_in_order(order, sizes, keep_gap):
    """A loop over batches in order, with gaps, concatenates to the whole list with zeros in the gaps."""
    locs = grid(9)
    chosen = np.sort(order[: 6 if keep_gap else 9])
    values = distinct(9)
    canvas, remaining, done = None, locs, None
    batches, start = [], 0
    while start < len(chosen):
        batches.append(chosen[start : start + sizes[start]])
        start += sizes[start]
    for i, rows in enumerate(batches):
        (output,), remaining, done = prepare_multitask_full_batch(
            (values[rows],), locs[rows], remaining, done, [canvas], is_last=i == len(batches) - 1
        )
        canvas = output if canvas is None else np.concatenate([canvas, output])
    expected = np.zeros_like(values)
    expected[chosen] = values[chosen]
    np.testing.assert_array_equal(canvas, expected)
    np.testing.assert_array_equal(done, locs)
    assert remaining.shape == (0, 4)


def test_signature_is_the_documented_one():
    """Names, order, defaults and kinds of the documented parameters; extras are keyword-only."""
    parameters = list(inspect.signature(prepare_multitask_full_batch).parameters.values())
    documented = parameters[:8]
    assert [p.name for p in documented] == [
        "batch_output",
        "batch_locs",
        "full_output_locs",
        "output_locs",
        "canvas_np",
        "save_path",
        "memory_threshold",
        "is_last",
    ]
    assert [p.default for p in documented[4:7]] == [None, "temp_fullbatch", 80]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in documented[:7])
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[7:])
    assert parameters[7].default is inspect.Parameter.empty
    assert all(p.default is not inspect.Parameter.empty for p in parameters[8:])


@pytest.mark.parametrize("canvas", [None, [None, None], [None, np.zeros(3)], (np.zeros(2), None)])
def test_canvas_may_be_none(canvas):
    """Nothing accumulated yet, wholly or for one head, is the default and works."""
    locs = grid(3)
    outputs, _, _ = prepare_multitask_full_batch(
        (distinct(1), distinct(1, dtype="u1")), locs[1:2], locs, None, canvas, is_last=False
    )
    assert [len(output) for output in outputs] == [2, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_has_the_heads_own_dtype(where, dtype):
    """The last batch is padded to all locations, as passed, with zeros of the head's dtype."""
    locs = grid(7)
    head = distinct(2, dtype=dtype)
    (output,), remaining, done = prepare_multitask_full_batch(
        (head,), locs[[1, 3]], locs, None, is_last=True, **where
    )
    assert output.shape == (7, 2, 2, 1)
    assert output.dtype == head.dtype
    np.testing.assert_array_equal(output[:][[1, 3]], head)
    assert not output[:][[0, 2, 4, 5, 6]].any()
    assert remaining.shape == (0, 4)
    assert remaining.dtype == locs.dtype
    np.testing.assert_array_equal(done, locs)


def test_verdict_is_one_for_all_heads(monkeypatch):
    """A head that would fit alone goes to zarr with the one that does not."""
    monkeypatch.setattr("accumulator._core.memory.available_memory", lambda **_: 1000)
    locs = grid(4)
    small, large = distinct(4, (1,), "u1"), distinct(4, (100,), "f8")
    outputs, _, _ = prepare_multitask_full_batch((small, large), locs, locs, None, is_last=True)
    assert all(isinstance(output, zarr.Array) for output in outputs)


@pytest.mark.parametrize(("held", "kind"), [(0, np.ndarray), (56, np.ndarray), (57, zarr.Array)])
def test_verdict_counts_the_canvas(monkeypatch, held, kind):
    """Result and canvas_np together may take the threshold's share of the memory, to the byte."""
    monkeypatch.setattr("accumulator._core.memory.available_memory", lambda **_: 150)
    locs = grid(4)  # 4 rows of 16 bytes: 64, and 80 % of 150 is 120
    (output,), _, _ = prepare_multitask_full_batch(
        (distinct(4),), locs, locs, None, [np.zeros(held, "u1")], is_last=True
    )
    assert isinstance(output, kind)


def test_empty_batch_consumes_nothing():
    """No rows: nothing is consumed, or with is_last everything is padding."""
    locs, empty = grid(3), np.empty((0, 2, 2), "u1")
    (output,), remaining, done = prepare_multitask_full_batch((empty,), [], locs, None, is_last=False)
    assert (output.shape, remaining.shape, done.shape) == ((0, 2, 2), (3, 4), (0, 4))
    (output,), remaining, done = prepare_multitask_full_batch(
        (empty,), np.empty((0, 4)), locs, done, is_last=True
    )
    assert (output.shape, remaining.shape, done.shape) == ((3, 2, 2), (0, 4), (3, 4))
    assert output.dtype == np.uint8
    assert not output.any()


@pytest.mark.parametrize("is_last", [False, True])
def test_no_heads_give_an_empty_list(is_last):
    """Without heads the locations still advance."""
    locs = grid(3)
    outputs, remaining, done = prepare_multitask_full_batch((), locs[:2], locs, None, is_last=is_last)
    assert outputs == []
    assert len(done) == (3 if is_last else 2)
    assert len(remaining) == 3 - len(done)


@pytest.mark.parametrize(
    ("error", "builtin", "change"),
    [
        (UnknownLocationError, KeyError, {"batch_locs": [[0, 0, 4, 4], [1, 2, 3, 4]]}),
        (DuplicateLocationError, ValueError, {"batch_locs": [[0, 0, 4, 4], [0, 0, 4, 4]]}),
        (DuplicateLocationError, ValueError, {"full_output_locs": grid(3)[[0, 1, 1]]}),
        (HeadError, ValueError, {"batch_output": (distinct(2), distinct(3))}),
        (HeadError, ValueError, {"batch_output": (distinct(3),)}),
        (HeadError, ValueError, {"batch_output": (np.float32(3),)}),
        (HeadError, ValueError, {"canvas_np": [None]}),
        (HeadError, ValueError, {"canvas_np": [None, "x"]}),
        (HeadError, ValueError, {"canvas_np": np.zeros(2)}),
        (HeadDtypeError, TypeError, {"batch_output": (distinct(2), np.array(["a", "b"]))}),
        (OptionError, ValueError, {"memory_threshold": 101}),
        (OptionError, ValueError, {"save_path": 3}),
    ],
)
def test_refuses_and_leaves_nothing(error, builtin, change):
    """What is wrong raises its typed error, an instance of the builtin, and leaves no folder."""
    locs = grid(3)
    call = {
        "batch_output": (distinct(2), distinct(2)),
        "batch_locs": locs[:2],
        "full_output_locs": locs,
        "output_locs": None,
        "memory_threshold": 0,
        "is_last": True,
    }
    with pytest.raises(error) as caught:
        prepare_multitask_full_batch(**(call | change))
    assert isinstance(caught.value, builtin)
    assert list(Path.cwd().iterdir()) == []


def test_names_the_first_unknown_rows():
    """The message says which rows, how many more there are, and what the first one is."""
    locs = grid(9)
    with pytest.raises(UnknownLocationError) as caught:
        prepare_multitask_full_batch((distinct(9),), locs + 1000, locs, None, is_last=False)
    assert "rows 0, 1, 2, 3, 4 and 4 more of batch_locs" in str(caught.value)
    assert "[1000, 1000, 1004, 1004]" in str(caught.value)
    np.testing.assert_array_equal(caught.value.rows, range(9))
    np.testing.assert_array_equal(caught.value.locations, locs + 1000)


@pytest.mark.parametrize("start", [np.empty((0, 4)), [], np.array([[9, 9, 9, 9]], dtype=np.uint64)])
def test_consumed_locations_keep_their_dtype(start):
    """output_locs of another dtype, or an empty one, do not turn the consumed ones into floats."""
    locs = (grid(3) + 2**60).astype("i8")
    _, _, done = prepare_multitask_full_batch((distinct(3),), locs, locs, start, is_last=True)
    np.testing.assert_array_equal(done, [*np.asarray(start, "i8").reshape(-1, 4), *locs], strict=True)
    with pytest.raises(LocationError, match=r"output_locs has values that the dtype .* int16"):
        prepare_multitask_full_batch((), [], grid(3).astype("i2"), locs, is_last=True)


def test_shares_no_memory_with_its_arguments():
    """Writing into what is returned changes nothing that was passed."""
    locs, head, done = grid(4), distinct(4), grid(2, step=99)
    returned = prepare_multitask_full_batch((head,), locs, locs, done, is_last=False)
    outputs, remaining, consumed = returned
    for array in (*outputs, remaining, consumed):
        assert not any(np.shares_memory(array, given) for given in (locs, head, done))
        assert array.flags.writeable


def test_zarr_result_is_in_a_unique_private_folder():
    """Two calls use two sub-folders of save_path, readable by nobody else, that any zarr reader opens."""
    locs, head = grid(4), distinct(4)
    for _ in range(2):
        (output,), _, _ = prepare_multitask_full_batch(
            {"a": head}, locs, locs, None, None, "here/and/there", 0, is_last=True
        )
        reread = zarr.open_array(output.store_path.store.root / output.path, mode="r")
        np.testing.assert_array_equal(reread[:], head)
    folders = list(Path("here/and/there").iterdir())
    assert len(folders) == 2
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)


def test_failing_disk_leaves_no_folder(monkeypatch):
    """An error in the middle of writing removes the temporary folder and the parents made for it."""
    monkeypatch.setattr("accumulator._stores.format.chunk_files.ChunkFiles.write", _fail)
    locs = grid(4)
    with pytest.raises(OSError, match="the disk is gone"):
        prepare_multitask_full_batch((distinct(4),), locs, locs, None, None, "a/b", 0, is_last=True)
    assert list(Path.cwd().iterdir()) == []


def _fail(*_, **__):
    raise OSError(5, "the disk is gone")


def test_arrays_in_a_list_are_rows_where_they_could_be_columns():
    """As they have always been: the class refuses them, which remembers what came before."""
    full = np.array([[1, 2], [3, 4], [1, 3], [2, 4]])
    batch = [np.array([1, 2]), np.array([3, 4])]
    (canvas,), left, taken = prepare_multitask_full_batch(
        [np.array([[5.0], [6.0]])], batch, full, None, is_last=False
    )
    assert canvas.tolist() == [[5.0], [6.0]]
    assert (left.tolist(), taken.tolist()) == (full[2:].tolist(), full[:2].tolist())

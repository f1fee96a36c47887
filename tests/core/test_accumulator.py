"""The class: streaming, late and sparse batches, policies, refusals, lifecycle."""

from __future__ import annotations

import enum
import errno
import gc
import hashlib
import os
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.oracle import Oracle, distinct, grid
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import GzipCodec

import accumulator._core.accumulator as module
from accumulator import FullBatchAccumulator, Stitcher, prepare_multitask_full_batch
from accumulator._stores.memory import copying as _copying
from accumulator._stores.writing import head as _head
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadDtypeError,
    HeadError,
    LocationError,
    NothingPushedError,
    OptionError,
    ProcessError,
    StorageError,
    StorageWarning,
    UnknownLocationError,
)

N = 17
LOCS = grid(N)
HEADS = (distinct(N), distinct(N, (3,), "i2", first=500))


def batch(rows):
    """Return heads and locations of some rows."""
    return tuple(head[rows] for head in HEADS), LOCS[rows]


def state(accumulator):
    """Return all that a caller can see."""
    return (
        [array[:].tobytes() for array in accumulator.canvas],
        accumulator.written.tobytes(),
        accumulator.output_locs.tobytes(),
        accumulator.full_output_locs.tobytes(),
        accumulator.missing_locs.tobytes(),
        accumulator.nbytes,
    )


@given(
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(0, N), max_size=6).map(sorted),
    n_kept=st.integers(0, N),
)
@pytest.mark.usefixtures("tiny_chunks")
def test_any_batching_gives_what_the_oracle_says(where, order, cuts, n_kept):
    """Late, shuffled, sparse, empty, large and small batches all end in their rows, on both stores."""
    oracle = Oracle(LOCS)
    accumulator = FullBatchAccumulator(LOCS, **where)
    kept = order[:n_kept]
    for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
        heads, locs = batch(kept[start:stop])
        accumulator.push(heads, locs)
        oracle.push(heads, locs)
        np.testing.assert_array_equal(accumulator.written, oracle.written())
        np.testing.assert_array_equal(accumulator.output_locs, LOCS[: oracle.n_consumed])
        np.testing.assert_array_equal(accumulator.full_output_locs, LOCS[oracle.n_consumed :])
        np.testing.assert_array_equal(accumulator.missing_locs, LOCS[~oracle.written()])
    result = accumulator.finalize()
    expected = oracle.outputs([(2, 2, 1), (3,)], ["f4", "i2"])
    assert isinstance(result.outputs, list)
    for output, canvas, wanted in zip(result.outputs, accumulator.canvas, expected, strict=True):
        np.testing.assert_array_equal(output[:], wanted, strict=True)
        np.testing.assert_array_equal(canvas[:], wanted, strict=True)
    np.testing.assert_array_equal(result.output_locs, LOCS)
    np.testing.assert_array_equal(result.written, oracle.written())
    np.testing.assert_array_equal(result.missing_locs, LOCS[~oracle.written()])
    assert len(accumulator.full_output_locs) == 0


@given(kept=st.sets(st.integers(0, N - 1), min_size=1), size=st.integers(1, 5))
@pytest.mark.usefixtures("tiny_chunks")
def test_agrees_with_a_plain_loop_over_the_function(where, kept, size):
    """Class and documented function give the same bytes, batch by batch and at the end."""
    rows = sorted(kept)
    accumulator = FullBatchAccumulator(LOCS, **where)
    canvas, remaining, done = [None, None], LOCS, None
    for start in range(0, len(rows), size):
        heads, locs = batch(rows[start : start + size])
        accumulator.push(heads, locs)
        outputs, remaining, done = prepare_multitask_full_batch(
            heads, locs, remaining, done, canvas, is_last=start + size >= len(rows)
        )
        canvas = [
            new if old is None else np.concatenate([old, new])
            for old, new in zip(canvas, outputs, strict=True)
        ]
        if len(remaining):
            np.testing.assert_array_equal(accumulator.output_locs, done)
            np.testing.assert_array_equal(accumulator.full_output_locs, remaining)
            for mine, plain in zip(accumulator.canvas, canvas, strict=True):
                assert mine[: len(plain)].tobytes() == plain.tobytes()
    result = accumulator.finalize()
    assert [output[:].tobytes() for output in result.outputs] == [array.tobytes() for array in canvas]
    assert result.output_locs.tobytes() == done.tobytes()


def test_push_delegates_to_the_documented_function(monkeypatch):
    """Every push and the finalization go through the one place where alignment is defined."""
    calls = []

    def spy(*args, **kwargs):
        calls.append(kwargs["is_last"])
        return prepare_multitask_full_batch(*args, **kwargs)

    monkeypatch.setattr(module, "prepare_multitask_full_batch", spy)
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(*batch([0]))
        accumulator.push(*batch([3, 2]))
    assert calls == [False, False, True]


@pytest.mark.usefixtures("tiny_chunks")
def test_same_bytes_however_they_come():
    """RAM, zarr, in order, shuffled, one by one, all at once: one digest."""
    shuffled = np.random.default_rng(0).permutation(N)
    digests = set()
    for threshold in (0, 100):
        for rows in (np.arange(N), shuffled):
            for size in (1, 4, N):
                with FullBatchAccumulator(LOCS, memory_threshold=threshold) as accumulator:
                    for start in range(0, N, size):
                        accumulator.push(*batch(rows[start : start + size]))
                digest = hashlib.sha256()
                for output in accumulator.finalize().outputs:
                    digest.update(output[:].tobytes())
                digests.add(digest.hexdigest())
    assert len(digests) == 1


def test_buffers_may_be_reused_at_once(where):
    """What is pushed is copied: the caller may overwrite it."""
    head, locs = np.empty((1, 2), "f4"), np.empty((1, 4), "i8")
    accumulator = FullBatchAccumulator(LOCS, **where)
    for row in range(N):
        head[:], locs[:] = row + 1, LOCS[row]
        accumulator.push(head, locs)
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:, 0], np.arange(N) + 1)


def test_owns_its_locations():
    """The list is copied, and what is shown of it and of the rows cannot be written to."""
    locs = LOCS.copy()
    with FullBatchAccumulator(locs) as accumulator:
        locs[:] = -1
        accumulator.push(*batch([0, 2]))
        for array in (
            accumulator.full_output_locs,
            accumulator.output_locs,
            accumulator.written,
            *accumulator.canvas,
        ):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
    with FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator:
        accumulator.push(*batch([0, 2]))
        with pytest.raises(ValueError, match="read-only"):
            accumulator.canvas[0][:] = 0
    np.testing.assert_array_equal(accumulator.finalize().output_locs, LOCS)


def test_gap_of_a_million_rows_is_free():
    """A canvas that no machine could hold dense: rows at both ends, and hardly anything on disk."""
    n = 1_000_000
    locs = np.arange(2 * n, dtype=np.int64).reshape(n, 2)
    patch = np.ones((1, 256, 256, 8), "f4")  # 2 MiB a row: 2 TB if dense
    with FullBatchAccumulator(locs, save_path="spill") as accumulator:
        with pytest.warns(StorageWarning, match="may take 2.1 TB if all 1000000 rows come"):
            accumulator.push(patch, locs[:1])
        accumulator.push(patch, locs[-1:])
    result = accumulator.finalize()
    assert result.outputs[0].shape == (n, 256, 256, 8)
    assert sum(p.stat().st_blocks * 512 for p in Path("spill").rglob("*")) < 2 * 1.1 * patch.nbytes + 10 * n
    assert result.outputs[0][n - 1].all()
    assert not result.outputs[0][n // 2].any()


@pytest.mark.parametrize("policy", ["error", "first", "last"])
@given(batches=st.lists(st.sets(st.integers(0, N - 1)).map(list), max_size=6))
@pytest.mark.usefixtures("tiny_chunks")
def test_location_pushed_twice_follows_the_policy(where, policy, batches):
    """Repeats across pushes raise, keep the first or keep the last prediction."""
    oracle = Oracle(LOCS, policy)
    with FullBatchAccumulator(LOCS, on_duplicate=policy, **where) as accumulator:
        accumulator.push(*batch([]))
        for i, rows in enumerate(batches):
            heads = (distinct(len(rows), first=1000 * (i + 1)), distinct(len(rows), (3,), "i2", first=i))
            if oracle.accepts(LOCS[rows]):
                accumulator.push(heads, LOCS[rows])
                oracle.push(heads, LOCS[rows])
            else:
                before = state(accumulator)
                with pytest.raises(DuplicateLocationError, match="pushed before") as caught:
                    accumulator.push(heads, LOCS[rows])
                again = [j for j, row in enumerate(rows) if oracle.written()[row]]
                np.testing.assert_array_equal(caught.value.rows, again)
                np.testing.assert_array_equal(caught.value.locations, LOCS[rows][again])
                assert state(accumulator) == before
    for output, wanted in zip(
        accumulator.finalize().outputs, oracle.outputs([(2, 2, 1), (3,)], ["f4", "i2"]), strict=True
    ):
        np.testing.assert_array_equal(output[:], wanted)


@pytest.mark.parametrize("policy", ["first", "last"])
@given(batches=st.lists(st.lists(st.integers(0, N - 1), max_size=8), max_size=4))
@pytest.mark.usefixtures("tiny_chunks")
def test_same_location_twice_in_one_batch_follows_the_policy(where, policy, batches):
    """A sampler pads its last batch with rows it had: the first or the last counts, as across pushes."""
    oracle = Oracle(LOCS, policy)
    with FullBatchAccumulator(LOCS, on_duplicate=policy, **where) as accumulator:
        accumulator.push(*batch([]))
        for i, rows in enumerate(batches):
            heads = (distinct(len(rows), first=1000 * (i + 1)), distinct(len(rows), (3,), "i2", first=99 * i))
            accumulator.push(heads, LOCS[rows])
            oracle.push(heads, LOCS[rows])
            np.testing.assert_array_equal(accumulator.written, oracle.written())
    for output, wanted in zip(
        accumulator.finalize().outputs, oracle.outputs([(2, 2, 1), (3,)], ["f4", "i2"]), strict=True
    ):
        np.testing.assert_array_equal(output[:], wanted)


GOOD = {"batch_output": batch([3, 5])[0], "batch_locs": LOCS[[3, 5]]}
BAD = [
    (UnknownLocationError, {"batch_locs": [[0, 0, 4, 4], [9, 9, 9, 9]]}, "row 1 of batch_locs"),
    (DuplicateLocationError, {"batch_locs": LOCS[[3, 3]]}, "repeated in one batch: row 1 of"),
    (DuplicateLocationError, {"batch_locs": LOCS[[3, 0]]}, "pushed before: row 1 of batch_locs"),
    (HeadError, {"batch_output": (HEADS[0][:2], HEADS[1][:3])}, "rows differ: batch_locs 2, head 1 3"),
    (HeadError, {"batch_output": (HEADS[0][:2],)}, "number of heads: 1, but the first batch had 2"),
    (HeadError, {"batch_output": ()}, "no heads"),
    (HeadError, {"batch_output": {"a": HEADS[0][:2], "b": HEADS[1][:2]}}, "without names but this one has"),
    (HeadError, {"batch_output": {1: HEADS[0][:2]}}, "names must be strings, but 1"),
    (HeadError, {"batch_output": (HEADS[0][:2, :1], HEADS[1][:2])}, r"patch shape \(1, 2, 1\) .*\(2, 2, 1\)"),
    (HeadError, {"batch_output": (1.0, HEADS[1][:2])}, "single number"),
    (HeadDtypeError, {"batch_output": (HEADS[0][:2].astype("f8"), HEADS[1][:2])}, "float64 .* float32"),
    (
        HeadDtypeError,
        {"batch_output": (HEADS[0][:2], HEADS[1][:2].astype("u2"))},
        "uint16 .* such as int32",
    ),
    (HeadDtypeError, {"batch_output": (np.ones((2, 2, 2, 1), "i4"), HEADS[1][:2])}, "int32 .* float32"),
    (HeadDtypeError, {"batch_output": (np.ones((2, 2, 2, 1), "c8"), HEADS[1][:2])}, "complex64"),
    (HeadDtypeError, {"batch_output": (np.array([["a"], ["b"]]), HEADS[1][:2])}, "of dtype <U1"),
    (HeadDtypeError, {"batch_output": ([object(), object()], HEADS[1][:2])}, "dtype object"),
    (HeadDtypeError, {"batch_output": ([[1, 2], [3]], HEADS[1][:2])}, "NumPy cannot look at"),
    (HeadDtypeError, {"batch_output": np.ma.masked_array(HEADS[0][:2])}, "filled"),
    (HeadDtypeError, {"batch_output": None}, "head 0 is NoneType of dtype object"),
    (LocationError, {"batch_locs": LOCS[[3, 5], :2]}, "2 columns but full_output_locs has 4"),
    (LocationError, {"batch_locs": LOCS[[3, 5]] + 0.5}, "fractions"),
    (LocationError, {"batch_locs": [["a"] * 4] * 2}, "dtype <U1"),
    (LocationError, {"batch_locs": LOCS[3]}, "2-d"),
    (LocationError, {"batch_locs": HEADS[0][:2]}, "predictions come first"),
    (LocationError, {"batch_locs": [np.ma.masked_array(LOCS[3]), LOCS[5]]}, "masked"),
    (HeadDtypeError, {"batch_output": ([np.ma.masked_array([1.0]), [2.0]], HEADS[1][:2])}, "masked"),
]


@pytest.mark.parametrize(("error", "change", "said"), BAD)
def test_refused_push_changes_nothing(where, error, change, said):
    """A bad batch raises its typed error naming the culprit; state and disk are as before."""
    with FullBatchAccumulator(LOCS, save_path="spill", **where) as accumulator:
        accumulator.push(*batch([0, 1, 2]))
        before, files = state(accumulator), tree(Path.cwd())
        with pytest.raises(error, match=said):
            accumulator.push(**(GOOD | change))
        assert tree(Path.cwd()) == files
        assert state(accumulator) == before
        accumulator.push(**GOOD)
    np.testing.assert_array_equal(np.flatnonzero(accumulator.written), [0, 1, 2, 3, 5])


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (UnknownLocationError, {"batch_locs": [[0, 0, 4, 4], [9, 9, 9, 9]]}),
        (HeadError, {"batch_output": (HEADS[0][:2], HEADS[1][:3])}),
        (HeadDtypeError, {"batch_output": (HEADS[0][:2], ["a", "b"])}),
    ],
)
def test_refused_first_push_leaves_no_trace(where, error, change):
    """A bad first batch fixes nothing: heads of another kind may follow, and no folder was made."""
    with FullBatchAccumulator(LOCS, save_path="a/b", **where) as accumulator:
        with pytest.raises(error):
            accumulator.push(**(GOOD | change))
        assert list(Path.cwd().iterdir()) == []
        assert accumulator.canvas == []
        accumulator.push({"other": HEADS[1][:2]}, LOCS[:2])
    assert list(accumulator.finalize().outputs) == ["other"]


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("policy", ["error", "last"])
def test_disk_that_stays_full_loses_nothing(monkeypatch, policy):
    """What push took is kept while the disk is full; what it refused left no trace; then the run goes on."""
    accumulator = FullBatchAccumulator(LOCS, on_duplicate=policy, memory_threshold=0)
    accumulator.push(*batch(range(5)))
    oracle = Oracle(LOCS, policy)
    oracle.push(*batch(range(5)))
    refused = []
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.format.chunk_files.ChunkFiles.write", _raise_no_space)
        for row in [*range(5, N)] + [2, 9] * (policy == "last"):
            values = [distinct(1, first=900 + row), distinct(1, (3,), "i2", first=990 + row)]
            try:
                accumulator.push(values, LOCS[[row]])
            except StorageError as error:
                refused.append((values, LOCS[[row]]))
                assert error.errno == 28  # noqa: PT017  not every push is refused
                assert accumulator.written[error.rows].all()  # noqa: PT017
            else:
                oracle.push(values, LOCS[[row]])
            np.testing.assert_array_equal(accumulator.written, oracle.written())
        for method in ("flush", "finalize"):
            with pytest.raises(StorageError, match="No space"):
                getattr(accumulator, method)()
    assert refused
    for canvas, wanted in zip(
        accumulator.canvas, oracle.outputs([(2, 2, 1), (3,)], ["f4", "i2"]), strict=True
    ):
        np.testing.assert_array_equal(canvas[:], wanted)
    for values, locs in refused:
        accumulator.push(values, locs)
        oracle.push(values, locs)
    for output, wanted in zip(
        accumulator.finalize().outputs, oracle.outputs([(2, 2, 1), (3,)], ["f4", "i2"]), strict=True
    ):
        np.testing.assert_array_equal(output[:], wanted)


def test_threads_take_turns(where):
    """Eight threads push at once, the first push among them: every row is in its place."""
    accumulator = FullBatchAccumulator(LOCS, **where)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(accumulator.push, *batch([row])) for row in range(N)]:
            done.result()
    for output, head in zip(accumulator.finalize().outputs, HEADS, strict=True):
        np.testing.assert_array_equal(output[:], head)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("policy", ["error", "last"])
@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("fill_value", [0, -7])
def test_push_that_fails_half_way_is_undone(monkeypatch, where, policy, failure, fill_value):
    """When the second head fails after the first was placed, the first is put back; a retry works."""
    accumulator = FullBatchAccumulator(LOCS, on_duplicate=policy, fill_value=fill_value, **where)
    accumulator.push(*batch(range(8)))
    before = state(accumulator)
    rows = [*range(7, 12), 3] if policy == "last" else range(8, 13)
    again = (distinct(len(rows), first=900), distinct(len(rows), (3,), "i2", first=990))
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.memory.copying._copy", _fail_after(_copying._copy, 2, failure))
        with pytest.raises(failure):
            accumulator.push(again, LOCS[rows])
    assert state(accumulator) == before
    assert all((canvas[:][~accumulator.written] == fill_value).all() for canvas in accumulator.canvas)
    accumulator.push(again, LOCS[rows])
    for output, values in zip(accumulator.finalize().outputs, again, strict=True):
        np.testing.assert_array_equal(output[:][list(rows)], values)


def _fail_after(real, n, failure):
    calls = []

    def call(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == n:
            raise failure(28, "No space left on device")

    return call


def test_first_push_that_fails_on_disk_removes_its_folder(monkeypatch):
    """When the disk refuses the very first rows, nothing is left, and the next push may succeed."""
    with FullBatchAccumulator(LOCS, memory_threshold=0, save_path="a/b") as accumulator:
        with monkeypatch.context() as patched:
            patched.setattr("accumulator._stores.writing.zarr_rows.ZarrRows.put", _raise_no_space)
            with pytest.raises(OSError, match="No space"):
                accumulator.push(*batch([0]))
        assert list(Path.cwd().iterdir()) == []
        accumulator.push(*batch([0]))


def _raise_no_space(*_, **__):
    raise OSError(28, "No space left on device")


def test_last_rows_that_do_not_fit_are_not_lost(monkeypatch):
    """finalize() that finds the disk full keeps the rows, and works once there is room."""
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=0)
    accumulator.push(*batch(range(5)))
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.format.chunk_files.ChunkFiles.write", _raise_no_space)
        with pytest.raises(OSError, match="No space"):
            accumulator.finalize()
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:5], HEADS[0][:5])


def test_memory_that_is_refused_after_all_goes_to_disk(monkeypatch):
    """When the system refuses an array that should have fitted, the result goes to zarr."""
    monkeypatch.setattr("accumulator._core.ram_or_disk.RamRows.__init__", _refuse_memory)
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(*batch([0]))
    assert all(isinstance(output, zarr.Array) for output in accumulator.finalize().outputs)


def _refuse_memory(*_):
    raise MemoryError


@pytest.mark.parametrize(
    ("options", "available", "kind"),
    [
        ({}, 500, np.ndarray),  # 17 rows of 16 + 6 bytes are 374, and 80 % of 500 is 400
        ({}, 467, zarr.Array),
        ({"memory_threshold": 50}, 500, zarr.Array),
        ({"memory_limit": 373}, 10**9, zarr.Array),
        ({"memory_limit": 374}, 10**9, np.ndarray),
        ({"memory_limit": "1 kB"}, 10**9, np.ndarray),
        ({"memory_limit": "1 GiB"}, 100, zarr.Array),
    ],
)
def test_verdict_is_for_all_rows_of_all_heads(monkeypatch, options, available, kind):
    """The first push decides for the whole result, whatever part of it has come."""
    monkeypatch.setattr("accumulator._core.memory.available_memory", lambda **_: available)
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        assert accumulator.nbytes == 0
        accumulator.push(*batch([0]))
        assert accumulator.nbytes == 374
        assert [isinstance(array, kind) for array in accumulator.canvas] == [True, True]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"memory_threshold": -1}, OptionError, "memory_threshold is -1"),
        ({"memory_threshold": np.nan}, OptionError, "nan"),
        ({"memory_threshold": True}, OptionError, "True"),
        ({"memory_threshold": "80"}, OptionError, "'80'"),
        ({"memory_limit": "lots"}, OptionError, "memory_limit is 'lots'"),
        ({"on_duplicate": "ignore"}, OptionError, '"error", "first" or "last"'),
        ({"save_path": 7}, OptionError, "save_path is 7"),
        ({"save_path": "s3://bucket"}, OptionError, "local path"),
        ({"save_path": "~/spill"}, OptionError, "expanduser"),
        ({"save_path": ""}, OptionError, "save_path is ''"),
        ({"save_path": "a\0b"}, OptionError, "save_path is"),
        ({"save_path": "a\ud800"}, OptionError, "no file can be called"),
        ({"dtype": "f4,,"}, OptionError, "NumPy does not know"),
        ({"save_path": "x" * 300}, StorageError, "cannot be looked at"),
        ({"on_duplicate": np.array(["first", "last"])}, OptionError, "on_duplicate"),
    ],
)
def test_bad_options_are_refused_at_once(options, error, said):
    """An option out of range is an error at construction, not hours later."""
    with pytest.raises(error, match=said):
        FullBatchAccumulator(LOCS, **options)


def test_unusable_save_path():
    """A file in the way is refused at construction; one above it when the folder is needed."""
    Path("file").write_text("")
    with pytest.raises(StorageError, match="save_path is a file") as caught:
        FullBatchAccumulator(LOCS, save_path=Path("file"))
    assert isinstance(caught.value, OSError)
    with pytest.raises(StorageError, match="cannot be looked at"):
        FullBatchAccumulator(LOCS, save_path="file/below")
    accumulator = FullBatchAccumulator(LOCS, save_path="other/below", memory_threshold=0)
    Path("other").write_text("")
    with pytest.raises(StorageError, match=r"no folder can be made in .*other/below"):
        accumulator.push(*batch([0]))
    accumulator.close()


def test_bad_lists_are_refused():
    """A list with repeats or without whole numbers is refused at construction."""
    with pytest.raises(DuplicateLocationError, match="repeated in the list: row 2"):
        FullBatchAccumulator(LOCS[[0, 1, 1]])
    with pytest.raises(LocationError, match="NaN"):
        FullBatchAccumulator(np.full((2, 4), np.nan))


def test_wider_values_are_refused_and_narrower_ones_are_not():
    """A later batch may have a dtype that the first one's holds without loss, and no other."""
    first = {"f8": np.ones((1, 1), "f8"), "i8": np.ones((1, 1), "i8"), "c8": np.ones((1, 1), "c8")}
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(first, LOCS[:1])
        accumulator.push(first | {"f8": np.full((1, 1), 7, "i4")}, LOCS[1:2])
        accumulator.push(first | {"i8": np.full((1, 1), 7, "u4")}, LOCS[2:3])
        accumulator.push(first | {"c8": np.full((1, 1), 7, "i2")}, LOCS[3:4])
        for name, dtype in [("f8", "i8"), ("f8", "u8"), ("i8", "u8"), ("c8", "i4"), ("f8", "c16")]:
            with pytest.raises(HeadDtypeError, match=f"head '{name}'"):
                accumulator.push(first | {name: np.ones((1, 1), dtype)}, LOCS[4:5])
    outputs = accumulator.finalize().outputs
    assert [outputs["f8"][1, 0], outputs["i8"][2, 0], outputs["c8"][3, 0]] == [7, 7, 7]


def test_names_come_back_whatever_their_order(where):
    """A dict of heads gives a dict; a later batch may list its names in another order."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push({"a/b": HEADS[0][:1], "..": HEADS[1][:1]}, LOCS[:1])
        accumulator.push({"..": HEADS[1][1:2], "a/b": HEADS[0][1:2]}, LOCS[1:2])
        with pytest.raises(HeadError, match=r"heads \['a', 'b'\] but the first batch had \['..', 'a/b'\]"):
            accumulator.push({"a": HEADS[0][2:3], "b": HEADS[1][2:3]}, LOCS[2:3])
        with pytest.raises(HeadError, match="with names but this one has none"):
            accumulator.push(HEADS, LOCS)
        assert isinstance(accumulator.canvas, list)
    outputs = accumulator.finalize().outputs
    assert list(outputs) == ["a/b", ".."]
    np.testing.assert_array_equal(outputs["a/b"][:2], HEADS[0][:2])
    np.testing.assert_array_equal(outputs[".."][:2], HEADS[1][:2])


def test_finalize_is_idempotent_and_ends_pushing(where):
    """The same result again; a push afterwards is a ValueError and changes nothing."""
    accumulator = FullBatchAccumulator(LOCS, **where)
    accumulator.push(*batch([0]))
    result = accumulator.finalize()
    assert accumulator.finalize() is result
    with pytest.raises(ClosedError, match="cannot push: the accumulator was finalized"):
        accumulator.push(*batch([1]))
    assert issubclass(ClosedError, ValueError)
    accumulator.close()
    assert accumulator.finalize() is result
    np.testing.assert_array_equal(result.outputs[0][0], HEADS[0][0])


def test_nothing_pushed():
    """Without any push the heads are unknown: an error, also at the end of a block, which closes."""
    with (
        pytest.raises(NothingPushedError, match="17 locations"),
        FullBatchAccumulator(LOCS) as accumulator,
    ):
        pass
    with pytest.raises(ClosedError):
        accumulator.finalize()


def test_no_locations_need_no_push(where):
    """An empty list is complete from the start, with heads if an empty batch told them."""
    with FullBatchAccumulator(LOCS[:0], **where) as accumulator:
        pass
    result = accumulator.finalize()
    assert (result.outputs, len(result.output_locs), len(result.written)) == ([], 0, 0)
    with FullBatchAccumulator(LOCS[:0], **where) as accumulator:
        accumulator.push(*batch([]))
    assert [output.shape for output in accumulator.finalize().outputs] == [(0, 2, 2, 1), (0, 3)]


def test_empty_batches_only(where):
    """Batches without rows fix the heads; the result is all padding."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(*batch([]))
        assert len(accumulator.output_locs) == 0
    result = accumulator.finalize()
    assert [output.shape for output in result.outputs] == [(N, 2, 2, 1), (N, 3)]
    assert not result.written.any()
    assert not result.outputs[0][:].any()


def test_block_left_by_an_exception_keeps_nothing(where):
    """The exception goes on, the accumulator is closed, and its folder is gone."""
    with pytest.raises(RuntimeError, match="model"), FullBatchAccumulator(LOCS, **where) as accumulator:  # noqa: PT012
        accumulator.push(*batch([0]))
        raise RuntimeError("the model failed")
    assert list(Path.cwd().rglob("*")) == []
    assert accumulator.canvas == []
    for call in (accumulator.finalize, lambda: accumulator.push(*batch([1]))):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_block_may_finalize_or_close_itself(where):
    """finalize() or close() inside the block is respected at its end."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(*batch([0]))
        result = accumulator.finalize()
    assert accumulator.finalize() is result
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(*batch([0]))
        accumulator.close()
        accumulator.close()
    assert "closed" in repr(accumulator)


def test_closed_accumulator_holds_no_rows(where):
    """The memory that they took is free at once, whoever still has the accumulator."""
    accumulator = FullBatchAccumulator(LOCS, **where)
    accumulator.push(*batch([0]))
    rows = weakref.ref(accumulator._canvas.store)
    accumulator.close()
    assert rows() is None
    np.testing.assert_array_equal(accumulator.output_locs, LOCS[:1])
    np.testing.assert_array_equal(accumulator.full_output_locs, LOCS[1:])


def test_names_of_an_enum_are_names(where):
    """A head may be called by a member of a text enum, and by its text."""

    class Name(str, enum.Enum):  # noqa: UP042  whose str() is not its text
        MASK = "mask"

    with FullBatchAccumulator(LOCS[:2], **where) as accumulator:
        accumulator.push({Name.MASK: np.ones((1, 2))}, LOCS[:1])
        accumulator.push({"mask": np.ones((1, 2))}, LOCS[1:2])
    assert accumulator.finalize().outputs["mask"].shape == (2, 2)


def test_dropped_accumulator_warns_and_cleans_up(where):
    """One that was neither finalized nor closed raises ResourceWarning when it goes, with its folder."""
    accumulator = FullBatchAccumulator(LOCS, **where)
    accumulator.push(*batch([0]))
    with pytest.warns(ResourceWarning, match="written: 1 of 17.* context manager"):  # noqa: PT031
        del accumulator
        gc.collect()
    assert list(Path.cwd().rglob("*")) == []


def test_dropped_accumulator_warns_whatever_it_holds():
    """One that nothing was pushed to is as forgotten as any other."""
    with pytest.warns(ResourceWarning, match="nothing pushed.* without finalize"):  # noqa: PT031
        FullBatchAccumulator(LOCS)
        gc.collect()


def test_share_that_looks_like_a_fraction_warns():
    """0.8 is less than one per cent, and hardly meant; the warning names the line that says it."""
    for kind in (FullBatchAccumulator, Stitcher):
        with pytest.warns(UserWarning, match="memory_threshold=0.8 is 0.8 per cent: did you mean 80") as told:
            accumulator = kind(LOCS, memory_threshold=0.8)
        assert [each.filename for each in told] == [__file__]
        accumulator.close()


def test_other_processes_are_refused(monkeypatch, where):
    """What a forked worker pushes would be lost, so it is refused; so is sending an accumulator there."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        accumulator.push(*batch([0]))
        with pytest.raises(ProcessError, match="cannot be sent to another process"):
            pickle.dumps(accumulator)
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ProcessError, match=r"cannot push in process -1.* push them here"):
                accumulator.push(*batch([1]))
            with pytest.raises(RuntimeError):
                accumulator.finalize()
    assert accumulator.written.sum() == 1


def test_failed_construction_does_not_warn():
    """An accumulator that never came to be has nothing to close."""
    with pytest.raises(OptionError):
        FullBatchAccumulator(LOCS, on_duplicate="never")
    gc.collect()


def test_repr_tells_the_state(where):
    """One line says heads, coverage and place."""
    with FullBatchAccumulator(LOCS, **where) as accumulator:
        assert repr(accumulator) == "<FullBatchAccumulator heads: 0, written: 0 of 17, nothing pushed>"
        accumulator.push(*batch([0]))
        place = "zarr" if where["memory_threshold"] == 0 else "RAM"
        assert repr(accumulator) == f"<FullBatchAccumulator heads: 2, written: 1 of 17, {place}>"
    assert "finalized" in repr(accumulator)


def test_save_path_is_where_it_was_when_named(tmp_path, monkeypatch):
    """A relative save_path does not follow the process into another folder."""
    with FullBatchAccumulator(LOCS, save_path="spill", memory_threshold=0) as accumulator:
        monkeypatch.chdir(tmp_path)
        accumulator.push(*batch([0]))
        assert (tmp_path / "workplace" / "spill").is_dir()


def test_many_heads_share_the_buffers():
    """On disk, what waits in memory is bounded for all heads together, by memory_limit too."""
    locs = grid(64)
    heads = [np.ones((64, 2**14), "u1") for _ in range(8)]  # 16 KiB a row, 1 MiB a head
    with FullBatchAccumulator(locs, memory_limit="1 MiB") as accumulator:
        for row in np.random.default_rng(0).permutation(64):
            accumulator.push([head[:1] for head in heads], locs[[row]])
            stores = accumulator._canvas.store.heads
            with accumulator._canvas.store._writer.lock:
                held = sum(b.pages.nbytes for s in stores for b in s._open.values())
                held += sum(b.nbytes for s in stores for b in s._handed.values())
                held += sum(pages.n_touched for store in stores for pages in store._spare) * 2**14
            assert held <= 2**20
    assert all(output[:].all() for output in accumulator.finalize().outputs)


@pytest.fixture
def slow_disk(monkeypatch):
    """Let a moment pass before anything is written."""
    real = _head.Block.write
    monkeypatch.setattr(_head.Block, "write", lambda self: (time.sleep(0.01), real(self)))


@pytest.mark.usefixtures("tiny_chunks", "slow_disk")
@pytest.mark.parametrize("order", ["forwards", "backwards"])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("options", [{}, {"compressors": GzipCodec(level=1)}, {"shards": 2}])
def test_buffers_may_be_reused_while_they_are_written(order, size, options):
    """On a slow disk too: what the caller does to its buffers after push does not reach the result."""
    rows = np.arange(N) if order == "forwards" else np.arange(N)[::-1]
    buffers, locs = (
        [np.empty((size, *head.shape[1:]), head.dtype) for head in HEADS],
        np.empty((size, 4), "i8"),
    )
    with FullBatchAccumulator(LOCS, memory_threshold=0, **options) as accumulator:
        for start in range(0, N, size):
            some = rows[start : start + size]
            for buffer, head in zip(buffers, HEADS, strict=True):
                buffer[: len(some)] = head[some]
            locs[: len(some)] = LOCS[some]
            accumulator.push([buffer[: len(some)] for buffer in buffers], locs[: len(some)])
            for buffer in (*buffers, locs):
                buffer[:] = -1
    for output, head in zip(accumulator.finalize().outputs, HEADS, strict=True):
        np.testing.assert_array_equal(output[:], head)


@pytest.mark.usefixtures("tiny_chunks", "slow_disk")
@pytest.mark.parametrize(
    "options", [{}, {"compressors": GzipCodec(level=1)}, {"shards": 2}, {"fill_value": 5}]
)
def test_flush_puts_every_row_on_disk(options):
    """After flush() another reader of the files finds all rows that were pushed, and the run goes on."""
    fill = options.get("fill_value", 0)
    expected = [np.full_like(head, fill) for head in HEADS]
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=0, **options)
    accumulator.push(*batch([0]))
    paths = [array.store.root / array.path for array in accumulator.canvas]
    for rows in ([0], [1, 2, 3], [16, 4, 9], [], [5, 8, 7, 6, 15]):
        if rows != [0]:
            accumulator.push(*batch(rows))
        accumulator.flush()
        for path, wanted, head in zip(paths, expected, HEADS, strict=True):
            wanted[rows] = head[rows]
            np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], wanted)
    for output, wanted in zip(accumulator.finalize().outputs, expected, strict=True):
        np.testing.assert_array_equal(output[:], wanted)


def test_flush_of_an_accumulator_that_is_done(where):
    """flush() does nothing before the first push, and is refused after finalize() or close()."""
    accumulator = FullBatchAccumulator(LOCS, **where)
    accumulator.flush()
    assert list(Path.cwd().iterdir()) == []
    accumulator.push(*batch([0]))
    accumulator.flush()
    accumulator.finalize()
    with pytest.raises(ClosedError, match="cannot flush: the accumulator was finalized"):
        accumulator.flush()
    accumulator = FullBatchAccumulator(LOCS, **where)
    accumulator.close()
    with pytest.raises(ClosedError, match="cannot flush: the accumulator was closed"):
        accumulator.flush()


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("surface", ["push", "flush", "finalize", "canvas"])
@pytest.mark.parametrize(
    ("kind", "arguments", "number"),
    [(OSError, (28, "No space left on device"), 28), (ValueError, ("codec",), errno.EIO)],
)
def test_error_behind_the_callers_back_is_told(monkeypatch, surface, kind, arguments, number):
    """What fails while it is written comes typed with the next call, with exactly the rows not on disk.

    Nothing is lost by it: the same call succeeds once the cause is gone.
    """
    real = _head.Block.write

    def write(block):  # 4 rows of the first head are a chunk, 8 of the second
        if block.label == "head 0" and block.chunk == 1:
            raise kind(*arguments)
        real(block)

    calls = {
        "push": lambda: accumulator.push(*batch([16])),
        "flush": lambda: accumulator.flush() is None,
        "finalize": lambda: accumulator.finalize() is not None,
        "canvas": lambda: accumulator.canvas,
    }
    with FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator:
        with monkeypatch.context() as patched:
            patched.setattr(_head.Block, "write", write)
            accumulator.push(*batch([0, 1, 2, 3]))
            accumulator.push(*batch([4, 5, 6, 7]))
            _wait_until_written(accumulator)
            for _ in range(3):
                with pytest.raises(StorageError, match="rows 4 to 7 of head 0 cannot be written") as caught:
                    calls[surface]()
                np.testing.assert_array_equal(caught.value.rows, [4, 5, 6, 7])
                assert caught.value.errno == number
                assert type(caught.value.__cause__) is kind
                np.testing.assert_array_equal(np.flatnonzero(accumulator.written), np.arange(8))
        calls[surface]()
        if surface not in {"push", "finalize"}:
            accumulator.push(*batch([16]))
    n_written = 8 if surface == "finalize" else 9
    assert accumulator.written.sum() == n_written
    for output, head in zip(accumulator.finalize().outputs, HEADS, strict=True):
        np.testing.assert_array_equal(output[:8], head[:8])
        np.testing.assert_array_equal(output[16], head[16] * (n_written == 9))


def _wait_until_written(accumulator):
    """Wait until nothing is under way any more, whether it went well or not."""
    writer = accumulator._canvas.store._writer
    with writer.lock:
        assert writer._changed.wait_for(lambda: not writer._waiting and not writer._running, timeout=60)


@pytest.mark.usefixtures("tiny_chunks")
def test_error_tells_rows_of_all_heads_that_are_not_on_disk(monkeypatch):
    """Rows that wait and rows that failed, whole chunks or parts, are named; those on disk are not."""
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=0)
    accumulator.push(*batch(range(8)))
    accumulator.flush()
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.format.chunk_files.ChunkFiles.write", _raise_no_space)
        accumulator.push(*batch([16, 9]))
        with pytest.raises(StorageError) as caught:
            accumulator.flush()
        np.testing.assert_array_equal(caught.value.rows, [9, 16])
        with pytest.raises(StorageError):
            accumulator.push(*batch([10]))
    accumulator.push(*batch([10]))
    outputs = accumulator.finalize().outputs
    for output, head in zip(outputs, HEADS, strict=True):
        rows = [*range(8), 9, 10, 16]
        np.testing.assert_array_equal(output[:][rows], head[rows])
        assert not output[:][[8, *range(11, 16)]].any()

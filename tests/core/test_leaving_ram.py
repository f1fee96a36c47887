"""A run that starts in RAM and has to leave it: the same bytes, and the memory is given back."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.oracle import Oracle, distinct, grid
from hypothesis import given
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator
from accumulator._core import memory as _memory
from accumulator._stores.memory import pages as _pages
from accumulator._stores.writing import head as _head
from accumulator.exceptions import StorageError, StorageWarning

N = 40
LOCS = grid(N)
SHAPES, DTYPES = [(4,), (3, 1), ()], ["f4", ">i2", "?"]


def batch(rows, first=1):
    """Return three heads and the locations of some rows."""
    heads = tuple(distinct(len(rows), s, d, first=first) for s, d in zip(SHAPES, DTYPES, strict=True))
    return heads, LOCS[rows]


class Pressure:
    """Says when memory is tight, instead of the system."""

    def __init__(self, monkeypatch):
        self.is_on = self.has_been = False
        monkeypatch.setattr(_memory.Watch, "is_tight", lambda *_: self.look())

    def look(self):
        """Answer, and remember it."""
        self.has_been |= self.is_on
        return self.is_on


@pytest.fixture
def pressure(monkeypatch):
    """Return what makes memory tight when ``is_on`` is set."""
    return Pressure(monkeypatch)


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("policy", ["error", "first", "last"])
@given(
    batches=st.lists(st.lists(st.integers(0, N - 1), unique=True, min_size=1, max_size=12), min_size=1),
    spill_at=st.integers(0, 12),
    look_at=st.integers(0, 20),
)
def test_same_bytes_wherever_it_leaves(pressure, policy, batches, spill_at, look_at):
    """Any batches in any order, with repeats, moved out at any push, read in between: what the oracle has."""
    oracle = Oracle(LOCS, policy)
    pressure.is_on = pressure.has_been = False
    with FullBatchAccumulator(LOCS, on_duplicate=policy) as accumulator:
        for number, rows in enumerate(batches):
            pressure.is_on = number >= spill_at
            heads, locs = batch(rows, first=1 + 50 * number)
            if oracle.accepts(locs):
                accumulator.push(heads, locs)
                oracle.push(heads, locs)
            if number == look_at:
                for canvas, wanted in zip(accumulator.canvas, oracle.outputs(SHAPES, DTYPES), strict=True):
                    np.testing.assert_array_equal(canvas[:], wanted)
    with accumulator.finalize() as result:
        kind = zarr.Array if pressure.has_been else np.ndarray
        for output, wanted in zip(result.outputs, oracle.outputs(SHAPES, DTYPES), strict=True):
            assert isinstance(output, kind)
            np.testing.assert_array_equal(output[:], wanted)
        np.testing.assert_array_equal(result.written, oracle.written())


@pytest.mark.usefixtures("tiny_chunks")
def test_rows_are_put_while_others_move_out(pressure, monkeypatch):
    """Pushes go on while one block at a time moves out, and land where it has not been yet or has been."""
    started, real = threading.Event(), _head.Block.write

    def slow(self):
        started.set()
        time.sleep(0.01)
        real(self)

    monkeypatch.setattr(_head.Block, "write", slow)
    accumulator = FullBatchAccumulator(LOCS)
    even, odd = list(range(0, N, 2)), list(range(1, N, 2))
    accumulator.push(*batch(even))
    pressure.is_on = True
    accumulator.push(*batch([1], first=900))
    assert started.wait(5)
    assert accumulator.plan().place == "zarr"
    for row in reversed(odd[1:]):
        accumulator.push(*batch([row], first=900 + row))
    heads = [np.zeros((N, *s), d) for s, d in zip(SHAPES, DTYPES, strict=True)]
    for head, value in zip(heads, batch(even)[0], strict=True):
        head[even] = value
    for row in odd:
        for head, value in zip(heads, batch([row], first=900 + row * (row > 1))[0], strict=True):
            head[row] = value[0]
    for output, wanted in zip(accumulator.finalize().outputs, heads, strict=True):
        np.testing.assert_array_equal(output[:], wanted)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_rows_of_whole_pages_leave_in_the_byte_order_of_the_file(pressure, tuned, dtype):
    """Memory that could be written as it lies is, but not where its numbers have the other byte order."""
    tuned(chunk_nbytes=4 * 4096)
    memory = np.zeros(N * 4096 + 4096, "u1")
    memory = memory[-memory.ctypes.data % 4096 :][: N * 4096]  # from the start of a page
    values = memory.view(dtype).reshape(N, 1024)
    values[...] = distinct(N, (1024,))
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(values[: N - 1], LOCS[: N - 1])
        pressure.is_on = True
        accumulator.push(values[N - 1 :], LOCS[N - 1 :])
    with accumulator.finalize() as result:
        assert isinstance(result.outputs[0], zarr.Array)
        np.testing.assert_array_equal(result.outputs[0][:], values)


@pytest.mark.parametrize("is_held", [False, True])
def test_memory_is_given_back(pressure, monkeypatch, is_held):
    """What has moved out takes no memory any more, unless somebody looks at it: a view must stay right."""
    given = []
    real = _pages.Pages.give_back
    monkeypatch.setattr(
        _pages.Pages, "give_back", lambda self, *span: (given.append(span[1] - span[0]), real(self, *span))
    )
    locs = grid(64)
    values = np.ones((64, 2**18), "f4")  # 64 MiB
    with FullBatchAccumulator(locs) as accumulator:
        accumulator.push(values[:60], locs[:60])
        views = accumulator.canvas if is_held else []
        pressure.is_on = True
        accumulator.push(values[60:], locs[60:])
        accumulator.flush()
        assert sum(given) >= 60 * values[0].nbytes * (not is_held)
        assert all(view[:60].all() for view in views)
    assert accumulator.finalize().outputs[0][:].all()


@pytest.mark.usefixtures("tiny_chunks")
def test_disk_that_is_full_while_moving_out_loses_nothing(pressure, monkeypatch):
    """Rows that cannot move out stay where they are; when there is room again the run goes on."""
    accumulator = FullBatchAccumulator(LOCS)
    accumulator.push(*batch(range(30)))
    pressure.is_on = True
    with monkeypatch.context() as patched:
        patched.setattr("accumulator._stores.format.chunk_files.ChunkFiles.write", _no_space)
        with contextlib.suppress(StorageError):  # if that was so quick
            accumulator.push(*batch([30], first=900))
        for _ in range(2):
            with pytest.raises(StorageError, match="No space"):
                accumulator.flush()
    accumulator.push(*batch([31], first=950))
    assert set(accumulator.written.nonzero()[0]) - {30} == {*range(30), 31}
    result = accumulator.finalize()
    for output, head in zip(result.outputs, batch(range(30))[0], strict=True):
        np.testing.assert_array_equal(output[:30], head)


def _no_space(*_, **__):
    raise OSError(28, "No space left on device", "c.0")


def test_no_folder_to_go_to_leaves_it_in_ram(pressure):
    """When nothing can be made in save_path there is a warning, and RAM keeps all rows as long as it can."""
    Path("spill").mkdir()
    accumulator = FullBatchAccumulator(LOCS, save_path="spill/below")
    accumulator.push(*batch(range(5)))
    Path("spill").rmdir()
    Path("spill").write_text("in the way")
    pressure.is_on = True
    with pytest.warns(StorageWarning, match="has to stay there: .*no folder can be made"):
        accumulator.push(*batch([5]))
    assert accumulator.written.sum() == 6
    assert isinstance(accumulator.finalize().outputs[0], np.ndarray)

"""Small rows in any order: gathered and sorted into their chunks, at a cost that follows the rows."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sys

import numpy as np
import pytest
from helpers.files import quick_folder
from helpers.lines import is_leaving
from helpers.oracle import distinct, grid
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.files import system as _system
from accumulator._stores.format.names import LOG
from accumulator._stores.writing import block as _block
from accumulator._stores.writing import head as _head
from accumulator._stores.writing import loose as _loose
from accumulator._stores.writing.head import Head
from accumulator.exceptions import DamagedError, StorageError

N = 60
LOCS = grid(N)
SHAPES = {"raw": (3,), "zstd": (2,), "shards": (5,), "filled": (4,)}
STORED = {
    "chunks": {"raw": 4, "zstd": 6, "filled": 5},
    "shards": {"shards": 8},
    "fill_value": {"filled": 7},
    "compressors": {"zstd": ZstdCodec()},
}
EXAMPLES = examples(8, "ACCUMULATOR_LOOSE_EXAMPLES")
ORDERS = st.sampled_from(["in order", "shuffled", "strided", "repeated"])


def order_of(name, chance):
    """Return rows in the order in which they come."""
    rows = np.arange(N)
    if name == "shuffled":
        return chance.permutation(rows)
    if name == "strided":
        return np.concatenate([rows[start::7] for start in range(7)])
    if name == "repeated":
        return chance.integers(0, N, 2 * N)
    return rows


def values(rows, version):
    """Return predictions for rows, none like another one."""
    return {
        name: np.stack(
            [distinct(1, shape, first=1 + 50 * row + 10 * head + 10_000 * version)[0] for row in rows]
        )
        for head, (name, shape) in enumerate(SHAPES.items())
    }


def check(outputs, expected):
    """Compare outputs with a dict of which version each row has."""
    fill = {name: STORED["fill_value"].get(name, 0) for name in SHAPES}
    wanted = {name: np.full((N, *shape), fill[name], float) for name, shape in SHAPES.items()}
    for row, version in expected.items():
        for name, value in values([row], version).items():
            wanted[name][row] = value[0]
    for name in SHAPES:
        np.testing.assert_array_equal(outputs[name][:], wanted[name], err_msg=name)


@settings(max_examples=EXAMPLES)
@given(
    order=ORDERS,
    size=st.sampled_from([4, 13, 40]),
    is_kept=st.booleans(),
    events=st.lists(st.sampled_from(["", "", "flush", "look", "crash"]), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_any_order_gives_what_a_dict_holds(monkeypatch, order, size, is_kept, events, seed):
    """In order, shuffled, strided or repeated, raw or encoded, flushed and crashed: the last of each row."""
    folder, chance = quick_folder(), np.random.default_rng(seed)
    monkeypatch.setattr(_system, "sync", lambda _: None)
    options = STORED | {"on_duplicate": "last", "memory_threshold": 0, "save_path": str(folder)}
    if is_kept:
        options |= {"store": folder / "0.zarr", "mode": "a", "checkpoint_interval": np.inf}
    accumulator, pushed, recorded = FullBatchAccumulator(LOCS, **options), {}, {}
    rows = order_of(order, chance)
    parts = [chance.permutation(np.unique(rows[at : at + size])) for at in range(0, len(rows), size)]
    for version, (part, event) in enumerate(zip(parts, itertools.cycle(events))):
        accumulator.push(values(part, version), LOCS[part])
        pushed.update(dict.fromkeys(part.tolist(), version))
        if event == "flush":
            accumulator.flush()
            recorded = dict(pushed)
        elif event == "look":
            check(dict(zip(SHAPES, accumulator.canvas, strict=True)), pushed)
            recorded = dict(pushed)
        elif event == "crash" and is_kept and (recorded or version):
            accumulator.flush()
            recorded = dict(pushed)
            path = folder / f"{version + 1}.zarr"
            more = np.flatnonzero(~accumulator.written)[::5]  # which a crash takes away again
            if len(more):
                accumulator.push(values(more, 99), LOCS[more])
            shutil.copytree(options["store"], path)
            accumulator.close()
            options["store"] = path
            accumulator, pushed = FullBatchAccumulator(LOCS, **options), dict(recorded)
            assert np.flatnonzero(accumulator.written).tolist() == sorted(recorded)
    with accumulator.finalize() as result:
        check(result.outputs, pushed)
        assert not list(folder.rglob("part"))
    if is_kept:
        with FullBatch.load(options["store"]) as result:
            check(result.outputs, pushed)
    shutil.rmtree(folder)


class Counted:
    """How many bytes were written, and by how many calls."""

    def __init__(self, patch):
        self.n_calls = self.nbytes = 0
        real = _system.write_at

        def write_at(descriptor, left, offset):
            self.n_calls, self.nbytes = self.n_calls + 1, self.nbytes + len(left)
            real(descriptor, left, offset)

        patch.setattr(_system, "write_at", write_at)


@pytest.mark.parametrize("place", ["store", "spilled"])
@pytest.mark.parametrize("size", [1, 16, 500])
def test_shuffled_rows_are_written_at_most_three_times(monkeypatch, tuned, place, size):
    """Over many chunks, however many are pushed at a time: few calls, and bytes as many as rows have."""
    tuned(chunk_nbytes=2**14, direct_flag=0)
    n, n_pushed = 20_000, 20_000 if size > 1 else 3_000
    locs, order = np.arange(n)[:, None], np.random.default_rng(0).permutation(n)[:n_pushed]
    wanted = np.zeros((n, 16), np.float32)
    wanted[order] = distinct(n_pushed, (16,))
    counted, where = (
        Counted(monkeypatch),
        {"store": "x.zarr"} if place == "store" else {"memory_threshold": 0},
    )
    with FullBatchAccumulator(locs, **where) as accumulator:
        for start in range(0, n_pushed, size):
            part = order[start : start + size]
            accumulator.push(wanted[part], locs[part])
        accumulator.push(wanted[:0], locs[:0])
        n_chunks = n // 256
        in_pushes = counted.n_calls
        assert in_pushes < n_pushed / 8 + n_chunks
    with accumulator.finalize() as result:
        np.testing.assert_array_equal(result.outputs[0][:], wanted)
    if size > 1:
        assert counted.nbytes <= 3 * wanted.nbytes
        assert counted.n_calls - in_pushes <= 3 * n_chunks


def test_memory_for_loose_rows_is_bounded(tuned):
    """What is gathered takes no more than a chunk, with the numbers of its rows."""
    tuned(chunk_nbytes=2**14)
    n = 20_000
    locs, order = np.arange(n)[:, None], np.random.default_rng(0).permutation(n)
    with FullBatchAccumulator(locs, memory_threshold=0) as accumulator:
        for start in range(0, n, 100):
            part = order[start : start + 100]
            accumulator.push(np.ones((len(part), 16), np.float32), locs[part])
            head = accumulator._canvas.store.heads[0]
            held = head._loose
            assert held._values.nbytes + held._rows.nbytes <= 2**14
            assert len(head._open) <= 4


def test_full_disk_while_rows_are_sorted_changes_nothing(monkeypatch, tuned):
    """A log that cannot be written is a StorageError of the next push, which then can be made again."""
    tuned(chunk_nbytes=2**12)
    n = 4_000
    locs, order = np.arange(n)[:, None], np.random.default_rng(0).permutation(n)
    wanted = distinct(n, (16,))
    n_refused = 0
    with FullBatchAccumulator(locs, store="x.zarr") as accumulator:
        for number, start in enumerate(range(0, n, 50)):
            part = order[start : start + 50]
            if number % 3 == 2:
                with monkeypatch.context() as full:
                    full.setattr(_loose.LooseRows, "spill", _refuse)
                    with contextlib.suppress(StorageError):
                        accumulator.push(wanted[part], locs[part])
                        continue
                n_refused += 1
                assert accumulator.written.sum() == start
            accumulator.push(wanted[part], locs[part])
    assert n_refused > 3
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:], wanted)


def _refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


LINES = int(os.environ.get("ACCUMULATOR_INTERRUPTED_LINES", "8"))  # of thousands


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_an_interrupt_at_any_line_loses_no_row(kind):
    """Whichever line of gathering and sorting is interrupted, what is pushed again is what is there."""
    n_lines = _interrupted(kind, -1)
    for line in sorted(set(np.linspace(0, n_lines - 1, LINES).astype(int).tolist())):
        _interrupted(kind, line)


def _interrupted(kind, at):
    """Interrupt the line of that number, make the call again, and compare; return the number of lines."""
    n, chance = 60, np.random.default_rng(3)
    locs = grid(n)
    stored = {"chunks": 4, "compressors": ZstdCodec() if kind == "zstd" else None}
    expected, count = np.zeros((n, 3)), itertools.count()
    files = {_block.__file__, _head.__file__, _loose.__file__}

    def trace(frame, event, _):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and not is_leaving(frame) and next(count) == at:
            raise KeyboardInterrupt
        return trace

    def call(action, *given):
        for _ in range(2):
            sys.settrace(trace)
            try:
                action(*given)
            except KeyboardInterrupt:
                continue
            finally:
                sys.settrace(None)
            return
        raise AssertionError

    accumulator = FullBatchAccumulator(locs, memory_threshold=0, on_duplicate="last", **stored)
    with accumulator:
        for number in range(12):
            rows = chance.permutation(n)[: (1, 9, 14)[number % 3]]
            expected[rows] = distinct(len(rows), (3,), first=1 + 100 * number)
            call(accumulator.push, expected[rows], locs[rows])
            if number == 6:
                call(accumulator.flush)
        call(accumulator.finalize)
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:], expected)
    return next(count)


def test_more_rows_than_the_log_counts_are_sorted_in(monkeypatch, tuned):
    """A log that cannot grow is sorted into the chunks, and begun anew."""
    tuned(chunk_nbytes=2**10)
    monkeypatch.setattr(_loose, "_MOST_LOGGED", 60)
    sorted_in, real = [], Head.sort_in
    monkeypatch.setattr(Head, "sort_in", lambda self: (sorted_in.append(1), real(self)))
    n = 2_000
    locs, order = np.arange(n)[:, None], np.random.default_rng(0).permutation(n)
    wanted = distinct(n, (16,))
    with FullBatchAccumulator(locs, memory_threshold=0) as accumulator:
        for start in range(0, n, 10):
            part = order[start : start + 10]
            accumulator.push(wanted[part], locs[part])
        assert len(sorted_in) > 3
    np.testing.assert_array_equal(accumulator.finalize().outputs[0][:], wanted)


@contextlib.contextmanager
def half_of_a_run():
    """Yield an accumulator with half of its rows, which are loose."""
    n = 2_000
    locs, order = np.arange(n)[:, None], np.random.default_rng(0).permutation(n)
    with FullBatchAccumulator(locs, memory_threshold=0) as accumulator:
        for start in range(0, n // 2, 10):
            part = order[start : start + 10]
            accumulator.push(distinct(10, (16,)), locs[part])
        yield accumulator


def test_the_log_is_a_scratch_file_that_goes(tuned):
    """It is there while rows are loose, and no store that is flushed has it."""
    tuned(chunk_nbytes=2**10)
    with half_of_a_run() as accumulator:
        folder = accumulator._canvas.zarr_store.root
        assert [path.name for path in folder.rglob("part/*")] == [LOG]
        accumulator.flush()
        assert not list(folder.rglob("part"))


@pytest.mark.parametrize("deed", ["removed", "changed"])
def test_a_log_that_somebody_touches_is_damage_and_no_wrong_value(tuned, deed):
    """What waits in the log is not believed once the file is not as it was left."""
    tuned(chunk_nbytes=2**10)
    with half_of_a_run() as accumulator:
        (log,) = accumulator._canvas.zarr_store.root.rglob(f"part/{LOG}")
        if deed == "removed":
            log.unlink()
        else:
            log.write_bytes(bytes(log.stat().st_size))
        with pytest.raises(DamagedError, match="log") as caught:
            accumulator.flush()
        assert len(caught.value.rows)
        accumulator.close()

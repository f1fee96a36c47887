"""What a plan says of memory, disk and files, and what is refused before anything is stored."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct, grid
from zarr.codecs import ZstdCodec

from accumulator import FullBatchAccumulator
from accumulator._core import plan as _plan
from accumulator._stores.format import layout as _layout
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator.exceptions import (
    HeadDtypeError,
    NothingPushedError,
    OptionError,
    StorageError,
    StorageWarning,
)

N = 1000
LOCS = grid(N)
EXAMPLE = {"mask": np.empty((0, 64, 64, 1), "f4"), "grade": np.empty((0,), "u1")}
MASK_NBYTES, GRADE_NBYTES = N * 64 * 64 * 4, N
ROW_NBYTES = 64 * 64 * 4 + 1
NBYTES = N * ROW_NBYTES
Usage = namedtuple("Usage", "total used free")  # noqa: PYI024  as shutil has it


def batch(rows):
    """Return named heads and locations of some rows."""
    return {"mask": distinct(len(rows), (64, 64, 1)), "grade": np.ones(len(rows), "u1")}, LOCS[list(rows)]


class Machine:
    """Says how much memory and disk there is, instead of the system."""

    def __init__(self, monkeypatch):
        self.memory, self.free, self.asked = 10**9, 10**12, []
        monkeypatch.setattr("accumulator._core.memory.available_memory", lambda **_: self.memory)
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, path):
        """Answer for a folder that must be there."""
        self.asked.append(Path(path))
        assert Path(path).exists()
        return Usage(10**15, 10**15 - self.free, self.free)


@pytest.fixture
def machine(monkeypatch):
    """Return what decides how much there is."""
    return Machine(monkeypatch)


@pytest.mark.usefixtures("machine")
def test_plan_in_ram():
    """Before the first push, by example heads without rows, and after it: the same plain arithmetic."""
    accumulator = FullBatchAccumulator(LOCS, memory_threshold=50)
    before = accumulator.plan(EXAMPLE)
    assert accumulator.canvas == []
    assert list(Path.cwd().iterdir()) == []
    accumulator.push(*batch(range(7, 17)))
    after = accumulator.plan()
    for plan, n_written in ((before, 0), (after, 10)):
        assert plan.place == "RAM"
        assert (plan.n_rows, plan.n_written, plan.n_expected) == (N, n_written, n_written)
        assert plan.nbytes == plan.memory_nbytes == NBYTES
        assert plan.nbytes_expected == n_written * ROW_NBYTES
        assert plan.memory_available == 10**9 + n_written * ROW_NBYTES  # what is held counts as available
        assert plan.memory_allowed == (10**9 + n_written * ROW_NBYTES) // 2
        assert (plan.disk_nbytes, plan.n_files) == (0, 0)
        assert plan.disk_free == 10**12
    assert before.heads == after.heads
    assert isinstance(accumulator.finalize().outputs["mask"], np.ndarray)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("limit", [None, 30_000_000])
def test_plan_on_disk(limit):
    """On disk: files and bytes of all rows, and no more memory than the buffers may take."""
    accumulator = FullBatchAccumulator(
        LOCS, memory_threshold=0 if limit is None else 1.5, memory_limit=limit, n_expected=300, chunks=100
    )
    before = accumulator.plan(EXAMPLE)
    assert list(Path.cwd().iterdir()) == []
    accumulator.push(*batch(range(5)))
    accumulator.flush()
    after = accumulator.plan()
    for plan in (before, after):
        assert plan.place == "zarr"
        assert (plan.n_rows, plan.n_expected) == (N, 300)
        assert plan.nbytes == plan.disk_nbytes == NBYTES
        assert plan.nbytes_expected == 300 * ROW_NBYTES
        assert plan.memory_available == 10**9
        assert plan.memory_allowed == (0 if limit is None else 15_000_000)
        assert plan.memory_nbytes == (1 + _layout.HANDED_CHUNKS) * 100 * ROW_NBYTES  # one is open
        assert plan.memory_nbytes <= (limit or BUFFER_NBYTES)
        assert plan.n_files == 2 * 10
    assert (before.n_written, after.n_written) == (0, 5)
    accumulator.close()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("options", "n_files"),
    [
        ({"chunks": 300}, 4 + 4),
        ({"chunks": {"mask": (300, 32, 64, 1), "grade": 1000}}, 4 * 2 + 1),
        ({"chunks": {"mask": (300, 33, 20, 1), "grade": 1000}}, 4 * 2 * 4 + 1),
        ({"shards": 300}, 4 + 4),
        ({"shards": {"mask": (400, 32, 32, 1)}, "chunks": {"mask": (1, 32, 32, 1), "grade": 500}}, 3 * 4 + 2),
        ({"chunks": 300, "compressors": ZstdCodec(level=0)}, 4 + 4),
    ],
)
def test_number_of_files_is_what_comes_to_be(options, n_files):
    """The files that a plan names are those on disk when every row has come."""
    with FullBatchAccumulator(LOCS, memory_threshold=0, **options) as accumulator:
        assert accumulator.plan(EXAMPLE).n_files == n_files
        for start in range(0, N, 100):
            accumulator.push(*batch(range(start, start + 100)))
        assert accumulator.plan().n_files == n_files
    result = accumulator.finalize()
    assert len(list((result.path / "outputs").rglob("c.*"))) == n_files


@pytest.mark.usefixtures("machine")
def test_dtype_counts_as_it_is_stored():
    """Heads stored as float16 need half of what float32 would, in memory and on disk."""
    for threshold in (0, 100):
        accumulator = FullBatchAccumulator(LOCS, dtype={"mask": "f2"}, memory_threshold=threshold)
        plan = accumulator.plan(EXAMPLE)
        assert plan.nbytes == MASK_NBYTES // 2 + GRADE_NBYTES
        assert "float16" in plan.heads[0]
        accumulator.close()


def test_plan_as_text(machine):
    """Printed it says how many locations, which heads, how many bytes of how many, and where."""
    machine.memory, machine.free = 9_000_000, 20_000_000
    accumulator = FullBatchAccumulator(LOCS, save_path="deep/below")
    text = str(accumulator.plan(EXAMPLE))
    assert text.splitlines()[:4] == [
        "1000 locations, 0 written; the result goes to zarr",
        "  head 'mask': (1000, 64, 64, 1) float32, 16.4 MB",
        "  head 'grade': (1000,) uint8, 1 kB",
        "  all rows: 16.4 MB",
    ]
    memory, disk = text.splitlines()[4:]
    assert memory.startswith("memory: ")
    assert memory.startswith("memory: buffers of ")
    assert memory.endswith(" at most (9 MB available)")
    assert "disk: 16.4 MB in " in disk
    assert " files if every location comes, of 20 MB free at " in disk
    assert disk.endswith(str(Path.cwd() / "deep" / "below"))
    machine.memory = 10**9
    in_ram = str(accumulator.plan(list(EXAMPLE.values())))
    assert "the result goes to RAM" in in_ram
    assert "  head 0: (1000, 64, 64, 1) float32, 16.4 MB" in in_ram
    assert "memory: 16.4 MB of 800 MB allowed (1 GB available)" in in_ram
    assert "disk" not in in_ram
    accumulator.close()
    accumulator = FullBatchAccumulator(LOCS, compressors=ZstdCodec(), memory_threshold=0)
    assert "before compression" in str(accumulator.plan(EXAMPLE))
    accumulator.close()


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (16.4e6, "16.4 MB"),
        (2.1e12, "2.1 TB"),
        (999_999, "1 MB"),
        (3e15, "3 PB"),
    ],
)
def test_bytes_as_people_read_them(nbytes, text):
    """Three digits and a unit."""
    assert _plan.as_text(nbytes) == text


@pytest.mark.usefixtures("machine")
def test_what_cannot_be_planned_is_refused():
    """No heads known, heads that are none, and options that do not fit them are typed errors."""
    accumulator = FullBatchAccumulator(LOCS, chunks={"mask": 0}, memory_threshold=0)
    with pytest.raises(NothingPushedError, match="give a batch to plan for"):
        accumulator.plan()
    with pytest.raises(HeadDtypeError):
        accumulator.plan({"mask": ["a"]})
    with pytest.raises(OptionError, match="chunks of head 0 is 0"):
        accumulator.plan({"mask": EXAMPLE["mask"]})
    with pytest.raises(OptionError, match="has an entry for head 'mask'"):
        accumulator.plan(EXAMPLE["mask"])
    accumulator.close()


@pytest.mark.parametrize("save_path", ["spill", "deep/er/still"])
def test_rows_that_must_come_and_do_not_fit_are_refused(machine, save_path):
    """Too little disk for n_expected rows: ENOSPC at the first push, no folder, and a smaller run works."""
    machine.free = 300 * ROW_NBYTES
    accumulator = FullBatchAccumulator(LOCS, save_path=save_path, memory_threshold=0, n_expected=301)
    for _ in range(2):
        with pytest.raises(
            StorageError, match=r"4.93 MB have to go to disk, but there are 4.92 MB"
        ) as caught:
            accumulator.push(*batch([0]))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(Path.cwd() / save_path)
        assert len(caught.value.rows) == 0
        assert list(Path.cwd().iterdir()) == []
        assert accumulator.canvas == []
        assert not accumulator.written.any()
    accumulator.close()
    assert set(machine.asked) == {Path.cwd()}
    with (
        FullBatchAccumulator(LOCS, save_path=save_path, memory_threshold=0, n_expected=300) as accumulator,
        pytest.warns(StorageWarning, match="may take 16.4 MB if all 1000 rows come, but there are 4.92 MB"),
    ):
        accumulator.push(*batch([0]))
    assert isinstance(accumulator.finalize().outputs["mask"], zarr.Array)


def test_room_made_after_a_refusal_is_seen(machine):
    """The same push succeeds once there is room."""
    machine.free = NBYTES - 1
    with FullBatchAccumulator(LOCS, memory_threshold=0, n_expected=N) as accumulator:
        with pytest.raises(StorageError):
            accumulator.push(*batch([0]))
        machine.free = NBYTES
        accumulator.push(*batch([0]))
    assert accumulator.finalize().written.sum() == 1


def test_batch_that_does_not_fit_is_refused(machine):
    """Without n_expected the rows of the first batch are those that must come; fewer of them may."""
    machine.free = 9 * ROW_NBYTES
    with FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator:
        with pytest.raises(StorageError, match="have to go to disk"):
            accumulator.push(*batch(range(10)))
        assert list(Path.cwd().iterdir()) == []
        with pytest.warns(StorageWarning):
            accumulator.push(*batch(range(9)))
    assert accumulator.finalize().written.sum() == 9


def test_half_the_bytes_fit(machine):
    """What is stored as float16 is what has to fit."""
    machine.free = NBYTES // 2 + N
    with FullBatchAccumulator(LOCS, memory_threshold=0, dtype={"mask": "f2"}, n_expected=N) as accumulator:
        accumulator.push(*batch([0]))
    assert accumulator.finalize().outputs["mask"].dtype == np.float16


def test_result_in_ram_does_not_ask_the_disk(machine):
    """What goes to RAM is neither refused nor warned of, however full the disk is."""
    machine.free = 0
    with FullBatchAccumulator(LOCS, n_expected=N) as accumulator:
        accumulator.push(*batch([0]))
    assert machine.asked == []
    assert isinstance(accumulator.finalize().outputs["mask"], np.ndarray)


def test_compressed_rows_are_warned_of_only(machine):
    """How small a codec makes them is not known before: a warning, no refusal."""
    machine.free = 10 * ROW_NBYTES
    options = {"memory_threshold": 0, "compressors": ZstdCodec(), "n_expected": 500}
    with FullBatchAccumulator(LOCS, **options) as accumulator, pytest.warns(StorageWarning, match="may take"):
        accumulator.push(*batch([0]))


def test_leaving_ram_for_a_disk_that_is_full_has_to_wait(machine, monkeypatch):
    """When memory gets short and the disk cannot take the rows, RAM keeps them and warns, until it can."""
    tight = []
    monkeypatch.setattr("accumulator._core.memory.Watch.is_tight", lambda *_: bool(tight))
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push(*batch(range(10)))
        tight.append("from now on")
        machine.free = 11 * ROW_NBYTES - 1
        with pytest.warns(StorageWarning, match="has to stay there: .* have to go to disk") as told:
            accumulator.push(*batch([10]))
        assert told[0].filename == __file__
        assert accumulator.plan().place == "RAM"
        assert list(Path.cwd().iterdir()) == []
        machine.free = 12 * ROW_NBYTES
        with pytest.warns(StorageWarning, match="may take 16.4 MB") as told:
            accumulator.push(*batch([11]))
        assert told[0].filename == __file__
        assert accumulator.plan().place == "zarr"
    outputs = accumulator.finalize().outputs
    np.testing.assert_array_equal(outputs["mask"][:10], batch(range(10))[0]["mask"])
    np.testing.assert_array_equal(np.flatnonzero(accumulator.written), np.arange(12))


def test_a_run_that_is_kept_needs_another_store(machine):
    """Too little disk is told in terms of the option that decides where a kept run goes."""
    machine.free = 300 * ROW_NBYTES
    accumulator = FullBatchAccumulator(LOCS, store="deep/run.zarr", n_expected=301)
    with pytest.raises(StorageError, match="make room, give another store, or store less") as caught:
        accumulator.push(*batch([0]))
    assert caught.value.filename == str(Path.cwd() / "deep")
    accumulator.close()
    with (
        FullBatchAccumulator(LOCS, store="deep/run.zarr") as accumulator,
        pytest.warns(StorageWarning, match="make room, or give another store$"),
    ):
        accumulator.push(*batch([0]))


def test_rows_on_disk_have_their_room(machine):
    """A resumed run has to find room for what is still to come, and says so."""
    machine.free = 20_000_000
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        plan = accumulator.plan(EXAMPLE)
        assert (plan.is_kept, plan.n_on_disk, plan.nbytes_to_come) == (True, 0, NBYTES)
        assert "to come" not in str(plan)
        accumulator.push(*batch(range(600)))
        accumulator.flush()
        accumulator.push(*batch(range(600, 700)))
        plan = accumulator.plan()  # not all that is written is on disk
        assert (plan.n_written, plan.n_on_disk, plan.nbytes_to_come) == (700, 600, 400 * ROW_NBYTES)
    machine.free = 300 * ROW_NBYTES
    accumulator = FullBatchAccumulator(LOCS, store="run.zarr", mode="a", n_expected=N)
    plan = accumulator.plan()
    assert (plan.n_on_disk, plan.disk_nbytes, plan.nbytes_to_come) == (700, NBYTES, 300 * ROW_NBYTES)
    assert " files if every location comes, 4.92 MB of it to come, of 4.92 MB free at " in str(plan)
    plan.check_disk(1)
    machine.free -= 1
    with pytest.raises(StorageError, match=r"^\[Errno 28\] 4.92 MB have to go to disk, .* another store"):
        accumulator.plan().check_disk(1)
    accumulator.close()
    accumulator = FullBatchAccumulator(LOCS, store="run.zarr", mode="a")
    with pytest.warns(StorageWarning, match="may take 4.92 MB more if all 1000 rows come"):
        accumulator.plan().check_disk(1)
    accumulator.close()


@pytest.mark.parametrize("raw", [-1, 1.5, True, "9", np.float64(3)])
def test_n_expected_is_a_number_of_locations(raw):
    """Anything else is refused at construction."""
    with pytest.raises(OptionError, match="n_expected is"):
        FullBatchAccumulator(LOCS, n_expected=raw)


def test_warning_points_at_the_caller(machine):
    """The line that the warning names is the one that pushed."""
    machine.free = 10 * ROW_NBYTES
    with (
        FullBatchAccumulator(LOCS, memory_threshold=0) as accumulator,
        pytest.warns(StorageWarning) as told,
    ):
        accumulator.push(*batch([0]))
    assert [each.filename for each in told] == [__file__]

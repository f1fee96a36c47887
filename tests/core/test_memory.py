"""Memory: the verdict is integer arithmetic, and what is available counts every limit there is."""

from __future__ import annotations

import shutil
from unittest import mock

import numpy as np
import psutil
import pytest
import zarr

from accumulator import prepare_multitask_full_batch
from accumulator._core import memory as _memory
from accumulator._inputs.arguments import as_limit
from accumulator.exceptions import OptionError

GIB = 2**30
REAL = psutil.virtual_memory


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return a function that writes fake proc and sys files; the machine itself has 64 GiB free."""
    monkeypatch.setattr(psutil, "virtual_memory", _machine)
    monkeypatch.setattr(_memory, "_ASKED", _machine)
    monkeypatch.setattr(_memory, "_address_space_left", lambda: iter(()))
    root = tmp_path / "root"

    def write(contents):
        for name, text in contents.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


class _Machine:
    available = 64 * GIB
    total = 80 * GIB


def _machine():
    return _Machine


@pytest.mark.parametrize(
    ("needed", "held", "threshold", "limit", "fits"),
    [
        (80, 0, 80, None, True),
        (81, 0, 80, None, False),
        (73, 7, 80, None, True),
        (73, 8, 80, None, False),
        (1, 0, 0, None, False),
        (0, 0, 0, None, True),
        (101, 0, 100, None, False),
        (50, 0, 80, 50, True),
        (51, 0, 80, 50, False),
        (81, 0, 80, 1000, False),
    ],
)
def test_verdict_is_exact(monkeypatch, needed, held, threshold, limit, fits):
    """The share of 100 available bytes is kept to the byte, and an absolute limit only lowers it."""
    monkeypatch.setattr(_memory, "available_memory", lambda **_: 100)
    assert _memory.fits_in_memory(needed, held, threshold, limit) is fits


@pytest.mark.parametrize(("most", "limit", "expected"), [(10, None, 10), (99, None, 25), (99, 7, 7)])
def test_buffers_take_a_quarter_at_most(monkeypatch, most, limit, expected):
    """Buffers are bounded by a constant, by what is available, and by the limit."""
    monkeypatch.setattr(_memory, "available_memory", lambda **_: 100)
    assert _memory.buffer_nbytes(most, limit) == expected


def test_no_cgroups(files):
    """Without cgroup files the machine's own number counts."""
    assert _memory.available_memory(files({"proc/x": ""})) == 64 * GIB
    assert _memory.available_memory(files({"proc/self/cgroup": "3:cpu:/a\n0::/\n"})) == 64 * GIB


def test_machine_that_tells_by_itself(files):
    """On Linux the kernel's own estimate counts; where it gives none, psutil's."""
    text = "MemTotal:       123 kB\nMemFree:  5 kB\nMemAvailable:   77 kB\nBuffers: 9 kB\n"
    assert _memory.available_memory(files({"proc/meminfo": text})) == 77 * 1024
    assert _memory.available_memory(files({"proc/meminfo": "MemTotal: 1 kB\n"})) == 64 * GIB
    assert _memory.available_memory() == pytest.approx(REAL().available, rel=0.2)


def test_cgroup_v2(files):
    """In a v2 group: the limit, less what is used, plus file pages the kernel would give back."""
    root = files(
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/user/job/memory.high": "max\n",
            "sys/fs/cgroup/user/job/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/user/job/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 9\n",
            "sys/fs/cgroup/user/memory.max": "max\n",
            "sys/fs/cgroup/user/memory.current": f"{9 * GIB}\n",
        }
    )
    assert _memory.available_memory(root) == 5 * GIB


def test_cgroup_v2_parent_and_high(files):
    """The tightest group on the way up counts, and memory.high counts like memory.max."""
    root = files(
        {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/user/job/memory.current": f"{1 * GIB}\n",
            "sys/fs/cgroup/user/memory.high": f"{3 * GIB}\n",
            "sys/fs/cgroup/user/memory.current": f"{2 * GIB}\n",
        }
    )
    assert _memory.available_memory(root) == 1 * GIB


def test_cgroup_v2_inside_a_container(files):
    """Where the path is the host's and not there, the mount itself is the container's group."""
    root = files(
        {
            "proc/self/cgroup": "0::/../../docker/abc\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{1 * GIB}\n",
        }
    )
    assert _memory.available_memory(root) == 3 * GIB


def test_cgroup_v1(files):
    """In a v1 group the memory controller's files count, among other controllers' lines."""
    root = files(
        {
            "proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/job\n0::/\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{8 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{7 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"total_inactive_file {GIB}\ninactive_file 5\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{70 * GIB}\n",
        }
    )
    assert _memory.available_memory(root) == 2 * GIB


def test_over_the_limit_is_nothing_left(files):
    """A group above its limit has nothing left, not less than nothing."""
    root = files(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory.current": f"{5 * GIB}\n",
        }
    )
    assert _memory.available_memory(root) == 0


def test_without_rlimits(monkeypatch):
    """Where the system has no rlimits, as Windows, they do not limit."""
    monkeypatch.setattr(_memory, "resource", None)
    assert list(_memory._address_space_left()) == []


@pytest.mark.skipif(_memory.resource is None, reason="this system has no rlimits")
def test_address_space(monkeypatch):
    """RLIMIT_AS leaves what this process has not mapped yet; without a limit it does not count."""
    monkeypatch.setattr(_memory.resource, "getrlimit", lambda _: (2**50, 2**50))
    (left,) = _memory._address_space_left()
    assert left == pytest.approx(2**50 - psutil.Process().memory_info().vms, abs=2**30)
    monkeypatch.setattr(_memory.resource, "getrlimit", lambda _: (_memory.resource.RLIM_INFINITY,) * 2)
    assert list(_memory._address_space_left()) == []


@pytest.fixture
def asks(monkeypatch, tuned):
    """Make a clock by hand: asking takes 90 microseconds; return what is available, and each ask."""
    asked = {"available": 1000, "asks": 0, "time": 0.0}

    def available(**_):
        asked["asks"] += 1
        asked["time"] += 90e-6
        return asked["available"]

    monkeypatch.setattr(_memory, "available_memory", available)
    monkeypatch.setattr(_memory.time, "perf_counter", lambda: asked["time"])
    tuned(memory_pause_seconds=0)
    monkeypatch.setattr(_memory, "limited_groups", list)
    return asked


def test_asking_again_costs_20_microseconds_a_push_at_most(asks):
    """However many pushes there are, asking takes no more than 20 us of each, on average."""
    watch = _memory.Watch(80)
    for _ in range(10_000):
        assert not watch.is_tight(10)
    assert 1000 < asks["asks"] <= 10_000 * 20e-6 / 90e-6


def test_growing_fast_is_noticed_at_once(asks):
    """When pushes use up half of what was left, it is asked however little time has passed."""
    watch = _memory.Watch(80)
    assert not watch.is_tight(0)  # 800 may be held
    asks["available"] = 400
    assert not watch.is_tight(399)
    assert asks["asks"] == 2
    assert not watch.is_tight(400)  # of 400 + 400, 640 may be held
    assert asks["asks"] == 3
    asks["available"] = 100
    assert watch.is_tight(520)  # of 620, 496 may be held


@pytest.mark.parametrize(("held", "tight"), [(400, False), (401, True)])
def test_what_is_held_counts_as_available(asks, held, tight):
    """The share is of what there is and what is held, to the byte."""
    asks["available"] = 100
    assert _memory.Watch(80).is_tight(held) is tight


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (0, 0),
        (123, 123),
        (8e9, 8_000_000_000),
        ("123", 123),
        ("8 GiB", 8 * GIB),
        ("8GiB", 8 * GIB),
        ("500 MB", 500_000_000),
        ("1.5 kib", 1536),
        ("2g", 2_000_000_000),
        ("3 TiB", 3 * 2**40),
        ("9007199254740993", 9007199254740993),
        (" 7 B ", 7),
        (None, None),
    ],
)
def test_bytes_are_read(text, nbytes):
    """Bytes may be given as an int or as text with SI or binary units; None is no limit."""
    assert as_limit(text) == nbytes


@pytest.mark.parametrize("text", [-1, 1.5, True, [], "", "much", "8 XB", "5 ib", "-3 GB"])
def test_other_bytes_are_refused(text):
    """What is no number of bytes is refused, saying how to give one."""
    with pytest.raises(OptionError, match="8 GiB"):
        as_limit(text)


def test_quick_pushes_are_not_held_up_by_asking(asks, tuned):
    """Pushes of microseconds do not ask every time, however cheap that is."""
    tuned(memory_pause_seconds=3600)
    watch = _memory.Watch(80)
    for _ in range(10_000):
        assert not watch.is_tight(10)
    assert asks["asks"] == 2


def test_a_machine_that_a_test_makes_up_is_believed(monkeypatch):
    """What is put in the place of psutil.virtual_memory counts like the machine's; other limits go on to."""
    monkeypatch.setattr(_memory, "_address_space_left", lambda: iter(()))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: mock.Mock(available=12345))
    assert _memory.available_memory() == 12345
    monkeypatch.setattr(_memory, "_address_space_left", lambda: iter([77]))
    assert _memory.available_memory() == 77
    monkeypatch.undo()
    assert _memory.available_memory() > 12345


MIB = 2**20
HEAD = ((64, 64, 3), "f4")  # 48 KiB a patch


@pytest.mark.parametrize(
    ("available", "n", "n_locs", "n_held", "is_last", "n_rows", "is_on_disk"),
    [
        pytest.param(MIB // 4, 10, 50, 0, False, 10, True, id="low memory"),
        pytest.param(100 * GIB, 1, 50, 0, False, 1, False, id="enough"),
        pytest.param(105 * 48 * 1024, 5, 20, 100, False, 5, True, id="what is held counts"),
        pytest.param(10 * GIB, 5, 10, 0, True, 10, False, id="the last is padded in RAM"),
        pytest.param(MIB // 4, 5, 15, 0, True, 15, True, id="the last is padded on disk"),
        pytest.param(0, 5, 15, 0, True, 15, True, id="nothing left"),
        pytest.param(10 * GIB, 5, 5, 0, True, 5, False, id="the last, without a gap"),
    ],
)
@pytest.mark.parametrize("n_heads", [1, 2])
def test_whoever_mocks_psutil_decides_between_ram_and_disk(
    monkeypatch, tmp_path, available, n, n_locs, n_held, is_last, n_rows, is_on_disk, n_heads
):
    """What TIAToolbox promises of its function with a made-up machine, ours does too."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: mock.MagicMock(available=available))
    shape, dtype = HEAD
    rng = np.random.default_rng(0)
    locs = np.array([[100 * row, 0, 100 * row + 100, 100] for row in range(n_locs)])
    heads = [rng.random((n, *shape)).astype(dtype) for _ in range(n_heads)]
    outputs, remaining, done = prepare_multitask_full_batch(
        heads,
        locs[:n],
        locs,
        np.empty((0, 4), locs.dtype),
        [np.zeros((n_held, *shape), dtype) if n_held else None] * n_heads,
        tmp_path / "folder",
        is_last=is_last,
    )
    for output, head in zip(outputs, heads, strict=True):
        assert isinstance(output, zarr.Array if is_on_disk else np.ndarray)
        assert output.shape == (n_rows, *shape)
        np.testing.assert_array_equal(output[:n], head)
        assert not output[n:].any()
    np.testing.assert_array_equal(done, locs[: len(locs) if is_last else n])
    np.testing.assert_array_equal(remaining, locs[len(done) :])
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)

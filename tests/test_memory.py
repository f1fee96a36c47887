"""Memory: the verdict is integer arithmetic, and what is available counts every limit there is."""

from __future__ import annotations

import psutil
import pytest

from accumulator import _memory
from accumulator._validation import as_nbytes
from accumulator.exceptions import OptionError

GIB = 2**30


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return a function that writes fake proc and sys files; the machine itself has 64 GiB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: _Machine)
    monkeypatch.setattr(_memory, "_address_space_left", lambda: _Machine.total)
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
    monkeypatch.setattr(_memory, "available_memory", lambda: 100)
    assert _memory.fits_in_memory(needed, held, threshold, limit) is fits


@pytest.mark.parametrize(("most", "limit", "expected"), [(10, None, 10), (99, None, 25), (99, 7, 7)])
def test_buffers_take_a_quarter_at_most(monkeypatch, most, limit, expected):
    """Buffers are bounded by a constant, by what is available, and by the limit."""
    monkeypatch.setattr(_memory, "available_memory", lambda: 100)
    assert _memory.buffer_nbytes(most, limit) == expected


def test_no_cgroups(files):
    """Without cgroup files the machine's own number counts."""
    assert _memory.available_memory(files({"proc/x": ""})) == 64 * GIB
    assert _memory.available_memory(files({"proc/self/cgroup": "3:cpu:/a\n0::/\n"})) == 64 * GIB


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
    assert _memory._address_space_left() == psutil.virtual_memory().total


@pytest.mark.skipif(_memory.resource is None, reason="this system has no rlimits")
@pytest.mark.parametrize(("limit", "left"), [(-1, psutil.virtual_memory().total), (2**50, 2**50)])
def test_address_space(monkeypatch, limit, left):
    """RLIMIT_AS leaves what this process has not mapped yet; without a limit the machine's memory."""
    monkeypatch.setattr(_memory.resource, "getrlimit", lambda _: (limit, limit))
    used = 0 if limit < 0 else psutil.Process().memory_info().vms
    assert _memory._address_space_left() == pytest.approx(left - used, abs=2**30)


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
    ],
)
def test_bytes_are_read(text, nbytes):
    """Bytes may be given as an int or as text with SI or binary units."""
    assert as_nbytes(text, "memory_limit") == nbytes


@pytest.mark.parametrize("text", [-1, 1.5, True, None, "", "much", "8 XB", "5 ib", "-3 GB"])
def test_other_bytes_are_refused(text):
    """What is no number of bytes is refused, saying how to give one."""
    with pytest.raises(OptionError, match="8 GiB"):
        as_nbytes(text, "memory_limit")

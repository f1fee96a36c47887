"""A real memory cgroup, v1 or v2, as a container has one."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks._outcome import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path("/sys/fs/cgroup")
_LIMITS: Final = ((_ROOT / "memory", "memory.limit_in_bytes"), (_ROOT, "memory.max"))


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a group that may take so many bytes, page cache and all, and remove it afterwards."""
    for parent, limit_file in _LIMITS:
        group = parent / f"accumulator-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / limit_file).write_text(str(limit), encoding="ascii")
            except OSError:
                continue
            yield group
            return
        finally:
            _remove(group)
    raise UnavailableError("no memory cgroup can be made here: that needs root")


def join(group: Path) -> None:
    """Move this process into a group."""
    (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def facts(group: Path) -> dict[str, float]:
    """Return what the kernel counted: peak, how often the limit was met, and what it killed."""
    peak = _number(group / "memory.max_usage_in_bytes") or _number(group / "memory.peak")
    return {
        "group_peak_nbytes": peak,
        "limit_met": _number(group / "memory.failcnt") or _field(group / "memory.events", "max"),
        "oom_kills": _field(group / "memory.oom_control", "oom_kill")
        or _field(group / "memory.events", "oom_kill"),
    }


def _number(path: Path) -> float:
    return float(path.read_text(encoding="ascii")) if path.exists() else 0


def _field(path: Path, key: str) -> float:
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return next((float(line.split()[1]) for line in lines if line.split()[0] == key), 0)


def _remove(group: Path) -> None:
    for _ in range(50):  # a group of a process that just ended is busy for a moment
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return

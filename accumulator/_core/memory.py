"""How much memory there is, and whether a result fits.

The one place that asks: everything else takes its answer from `available_memory`, so that one patched
function tests it. Plain integer arithmetic; nothing is allocated here.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import psutil

from accumulator._inputs import tuning

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import resource
except ImportError:  # Windows has no rlimits
    resource = None  # type: ignore[assignment]

ROOT: Final = Path("/")
PUSH_SECONDS: Final = 18e-6  # what asking again may cost a push, on average
REST_SECONDS: Final = 10.0
ASKS: Final = 50  # as often as this, the cgroups are looked for anew
_AVAILABLE: Final = b"MemAvailable:"
_UNLIMITED: Final = 2**60  # cgroup v1 writes "no limit" as a huge number
_ASKED: Final = psutil.virtual_memory  # of psutil itself: what a test has put in its place is believed


class _Files(NamedTuple):
    """Where a version of cgroups tells limits, what is used, and what of that the kernel would give back."""

    limits: tuple[str, ...]
    used: str
    idle: str


_V1: Final = _Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2: Final = _Files(("memory.max", "memory.high"), "memory.current", "inactive_file")
Group: TypeAlias = tuple[Path, _Files]


def fits_in_memory(needed: int, held: int, threshold: float, limit: int | None = None) -> bool:
    """Whether ``needed`` and ``held`` bytes together are within their share of the available memory.

    That is ``threshold`` per cent of it, and ``limit`` bytes at most.
    """
    if needed == 0:
        return True
    allowed = int(available_memory() * threshold / 100)
    return needed + held <= (allowed if limit is None else min(allowed, limit))


class Watch:
    """Asks again, as a run goes, whether what is held in RAM may stay there.

    Asking takes a fraction of a millisecond, and pushes may take microseconds: so it is done as often as
    its own cost allows, not more than a hundred times a second, and besides whenever half of what was left
    has been used up.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._groups: list[Group] = []
        self._n_asked = 0
        self._credit = 0.0
        self._cost = math.inf  # of asking, in seconds
        self._ask_at = 0  # held bytes
        self._ask_after = 0.0

    def is_tight(self, held: int) -> bool:
        """Whether ``held`` bytes, which count as available, are too many; mostly without asking."""
        self._credit += PUSH_SECONDS
        now = time.monotonic()
        if held < self._ask_at and (self._credit < self._cost or now < self._ask_after):
            return False
        self._ask_after = now + tuning.now.memory_pause_seconds
        if self._n_asked % ASKS == 0:  # limits may be changed from outside
            self._groups = limited_groups()
            available_memory(groups=self._groups)  # the first time takes longer, and does not count
        start = time.perf_counter()
        left = int((available_memory(groups=self._groups) + held) * self._threshold / 100) - held
        self._cost = min(self._cost, time.perf_counter() - start)
        self._n_asked += 1
        self._credit = 0.0
        self._ask_at = held + max(left, 0) // 2
        return left < 0

    def rest(self) -> None:
        """Do not ask for a while: nothing can be done about the answer."""
        self._ask_at, self._ask_after = sys.maxsize, time.monotonic() + REST_SECONDS


def buffer_nbytes(most: int, limit: int | None = None, n_sharing: int = 1) -> int:
    """Return what buffers may take: ``most``, a quarter of what is available, and ``limit`` at most.

    So many processes of this machine share what is available.
    """
    return min(most, available_memory() // (4 * n_sharing), *([] if limit is None else [limit]))


def available_memory(root: Path = ROOT, *, groups: list[Group] | None = None) -> int:
    """Return the bytes this process can still use: of the machine, its containers and its own limits.

    ``groups`` are what `limited_groups` returned before.
    """
    left = [_machine_left(root), *_address_space_left()]
    for group, files in limited_groups(root) if groups is None else groups:
        in_group = _group_left(group, files)
        left += [] if in_group is None else [in_group]
    return max(0, min(left))


def _machine_left(root: Path) -> int:
    if psutil.virtual_memory is not _ASKED:
        return int(psutil.virtual_memory().available)
    # psutil reads all of the same file, and takes three times as long.
    try:
        file = os.open(f"{root}/proc/meminfo", os.O_RDONLY)
    except OSError:
        return int(psutil.virtual_memory().available)  # not Linux
    try:
        text = os.read(file, 4096)
    finally:
        os.close(file)
    start = text.find(_AVAILABLE)
    if start < 0:
        return int(psutil.virtual_memory().available)  # a kernel before 3.14
    return 1024 * int(text[start + len(_AVAILABLE) :].split(None, 1)[0])


def _address_space_left() -> Iterator[int]:
    if resource is not None:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            yield int(soft - psutil.Process().memory_info().vms)


def limited_groups(root: Path = ROOT) -> list[Group]:
    """Return the memory cgroups above this process that have a limit."""
    return [(group, files) for group, files in _groups(root) if _group_left(group, files) is not None]


def _groups(root: Path) -> Iterator[Group]:
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _along(root / mount, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _along(root / "sys/fs/cgroup/memory", path, _V1)


def _along(mount: Path, path: str, files: _Files) -> Iterator[Group]:
    """Yield a group and every one above it, up to the mount: in a container only that may be there."""
    group = mount / path.lstrip("/")
    while True:
        yield group, files
        if group == mount:
            return
        group = group.parent


def _group_left(group: Path, files: _Files) -> int | None:
    """Return what a group leaves; None where it has no limit."""
    limits = [_number(group / name) for name in files.limits]
    known = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
    used = _number(group / files.used) if known else None
    return None if used is None else min(known) - used + _stat(group, files.idle)


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no such file, or where it says "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(group: Path, key: str) -> int:
    """Return file pages that count as used, but that the kernel gives back."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key} ")), 0)

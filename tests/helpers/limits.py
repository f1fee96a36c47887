"""Real limits of memory, and what outlives an accumulator."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

MIB = 2**20
TIMEOUT = 300  # seconds; only what hangs takes them
CGROUP = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_group(limit):
    """Make a real memory cgroup, v1 or v2, and yield Python code by which a process joins it."""
    name = f"accumulator-test-{os.getpid()}"
    for parent, limit_file in ((CGROUP / "memory", "memory.limit_in_bytes"), (CGROUP, "memory.max")):
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / limit_file).write_text(str(limit))
            except OSError:
                continue
            yield f"__import__('pathlib').Path({str(group / 'cgroup.procs')!r}).write_text('0')\n"
            return
        finally:
            _remove(group)
    pytest.skip("needs root, and a mounted memory cgroup hierarchy")


def _remove(group):
    for _ in range(50):  # a group of a process that just ended is busy for a moment
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return


def threads():
    """Return the library's threads that are alive."""
    return [each.name for each in threading.enumerate() if each.name.startswith("accumulator")]


def run_script(script, *arguments, **process):
    """Run a script in a process of its own, where warnings are errors, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        **process,
    )
    assert ended.returncode == 0, f"exit {ended.returncode}\n{ended.stderr}"
    return ended.stdout.split()

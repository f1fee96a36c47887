"""Real limits on real processes: memory cgroups, RLIMIT_AS, and results larger than what they allow."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

MIB = 2**20
CGROUP = Path("/sys/fs/cgroup")

# Three rows in four come, in shuffled batches of 8; prints where the result lies and whether it is right.
RUN = """
import sys
import numpy as np
from accumulator import FullBatchAccumulator
n, options = int(sys.argv[1]), eval(sys.argv[2])
locs = np.arange(n * 4).reshape(n, 4)
rows = np.random.default_rng(0).permutation(n)[: n * 3 // 4]
patch = np.arange(2**18, dtype=np.float32)  # 1 MiB a row
with FullBatchAccumulator(locs, **options) as accumulator:
    for start in range(0, len(rows), 8):
        some = rows[start : start + 8]
        accumulator.push(patch + some[:, None].astype("f4"), locs[some])
result = accumulator.finalize()
output = result.outputs[0]
right = all((output[row] == (patch + row if result.written[row] else 0)).all() for row in range(0, n, 7))
print(type(output).__name__, right, result.written.sum() == len(rows))
"""


def run(n_rows, options, *, prefix="", **process):
    """Run the script above in a process of its own and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", prefix + RUN, str(n_rows), repr(options)],
        capture_output=True,
        text=True,
        check=False,
        **process,
    )
    assert ended.returncode == 0, f"exit {ended.returncode}\n{ended.stderr}"
    return ended.stdout.split()


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
            yield f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
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


@pytest.mark.slow
def test_result_larger_than_the_container_goes_to_disk():
    """In a container of 400 MiB a result of 600 MiB is spilled, and the kernel kills nothing."""
    with memory_group(400 * MIB) as join:
        assert run(600, {}, prefix=join) == ["Array", "True", "True"]
        assert run(40, {}, prefix=join) == ["ndarray", "True", "True"]


@pytest.mark.slow
def test_result_that_fits_the_machine_stays_in_ram():
    """The same result without a container is in RAM: the limit decided, nothing else."""
    assert run(600, {}) == ["ndarray", "True", "True"]


@pytest.mark.slow
def test_address_space_limit_is_respected():
    """Under RLIMIT_AS (ulimit -v) a result that would not be allocated is spilled instead."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))\n"
    assert run(1900, {}, prefix=limit) == ["Array", "True", "True"]
    assert run(40, {}, prefix=limit) == ["ndarray", "True", "True"]


@pytest.mark.slow
def test_one_patch_in_a_thousand():
    """100,000 locations of 2 MiB, 1 in 1000 present: within 2 GiB of memory and twice the bytes on disk."""
    script = """
import numpy as np
from pathlib import Path
from accumulator import FullBatchAccumulator
n, written = 100_000, 0
locs = np.stack([np.arange(n), np.zeros(n, int), np.arange(n) + 256, np.full(n, 256)], axis=1)
patch = np.random.default_rng(0).random((1, 256, 256, 8), dtype=np.float32)
with FullBatchAccumulator(locs) as accumulator:
    for row in range(500, n, 1000):
        accumulator.push(patch, locs[row : row + 1])
        written += patch.nbytes
result = accumulator.finalize()
on_disk = sum(p.stat().st_blocks * 512 for p in Path("temp_fullbatch").rglob("*"))
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
assert (result.outputs[0][99_500] == patch[0]).all() and not result.outputs[0][99_501].any()
print(result.written.sum(), on_disk / written, peak / 2**30)
"""
    with memory_group(2048 * MIB) as join:
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", join + script], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    n_written, disk_ratio, peak = map(float, ended.stdout.split())
    assert n_written == 100
    assert disk_ratio <= 2
    assert peak < 2

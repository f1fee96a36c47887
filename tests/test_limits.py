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
def test_many_heads_fit_a_small_container():
    """Eight heads, shuffled, on disk in a container of 400 MiB: their buffers share what there is."""
    script = """
import numpy as np
from accumulator import FullBatchAccumulator
n = 2000
locs = np.arange(n * 4).reshape(n, 4)
heads = [np.ones((4, 2**16), "u1") for _ in range(8)]  # 64 KiB a row, 1 GiB in all
with FullBatchAccumulator(locs) as accumulator:
    for rows in np.random.default_rng(0).permutation(n).reshape(-1, 4):
        accumulator.push(heads, locs[rows])
print(type(accumulator.finalize().outputs[7]).__name__, accumulator.finalize().outputs[7][n - 1].all())
"""
    with memory_group(400 * MIB) as join:
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", join + script], capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["Array", "True"]


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["error", "last"])
def test_disk_that_is_really_full(tmp_path, policy):
    """On a file system of 24 MiB a push that does not fit is refused, and what was there is there.

    After room is made the same push succeeds, in the same process.
    """
    script = """
import os, sys
import numpy as np
from accumulator import FullBatchAccumulator
from accumulator.exceptions import StorageError
disk, policy = sys.argv[1:]
open(disk + "/ballast", "wb").write(bytes(8 * 2**20))
n = 64
locs = np.arange(n * 4).reshape(n, 4)
def values(rows, first):
    return [(np.arange(2**16) + first + 1e6 * row)[None].astype("f4") for row in rows]  # 256 KiB a row
def push(rows, first):
    heads = [np.concatenate(values(rows, head)) for head in (first, first + 1)]
    accumulator.push(heads, locs[rows])
def state():
    return [c[:].tobytes() for c in accumulator.canvas], accumulator.written.tobytes()
accumulator = FullBatchAccumulator(locs, save_path=disk, memory_threshold=0, on_duplicate=policy)
push([0, 9, 18, 27], 5)
before = state()
late = [0, 9, 18, 27] * (policy == "last") + list(range(32, 64))
for _ in range(2):
    try:
        push(late, 77)
    except StorageError as error:
        assert error.errno == 28, error
    else:
        raise SystemExit("it fitted")
    assert state() == before
os.remove(disk + "/ballast")
push(late, 77)
result = accumulator.finalize()
for head, first in zip(result.outputs, (77, 78)):
    for row, wanted in zip(late, values(late, first)):
        assert (head[row] == wanted[0]).all()
result.close()
assert os.listdir(disk) == []
print("right")
"""
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "script.py").write_text(script)
    mount = f"mount -t tmpfs -o size=24m tmpfs {disk} || exit 99; exec {sys.executable} -W error"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} {tmp_path / 'script.py'} {disk} {policy}"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode in {1, 99} and "Traceback" not in ended.stderr and not ended.stdout:
        pytest.skip("needs root, to mount a small file system")
    assert (ended.returncode, ended.stdout) == (0, "right\n"), ended.stderr


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

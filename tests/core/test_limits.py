"""Real limits on real processes: memory cgroups, RLIMIT_AS, and results larger than what they allow."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from helpers.limits import MIB, TIMEOUT, memory_group, run_script, threads
from helpers.oracle import distinct, grid
from helpers.soak import soaked

from accumulator import FullBatchAccumulator
from accumulator._stores.memory import copying as _copying

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


def run(n_rows, options, *, prefix=""):
    """Run the script above and return what it printed."""
    return run_script(prefix + RUN, n_rows, repr(options))


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
        assert run_script(join + script) == ["Array", "True"]


FULL_DISK = """
import os, sys, warnings
from pathlib import Path
import numpy as np
from zarr.codecs import ZstdCodec
from accumulator import FullBatchAccumulator
from accumulator.exceptions import StorageError, StorageWarning
warnings.simplefilter("ignore", StorageWarning)  # that all rows may not fit: they do not
disk, policy, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
Path(disk, "ballast").write_bytes(bytes(8 * 2**20))
n, blank = 64, options.get("fill_value", 0)
locs = np.arange(n * 4).reshape(n, 4)
noise = np.random.default_rng(0).integers(2**31, size=2**16, dtype="u4")  # 256 KiB, and stays so
oracle = {}
def values(rows, first):
    return [np.stack([noise + (head + 3 * row) for row in rows]) for head in (first, first + 1)]
def push(rows, first):
    heads = values(rows, first)
    accumulator.push(heads, locs[rows])
    oracle.update({row: [head[i] for head in heads] for i, row in enumerate(rows)})
def check(heads, written):
    assert sorted(oracle) == np.flatnonzero(written).tolist()
    for number, head in enumerate(heads):
        for row in range(n):
            assert (head[row] == (oracle[row][number] if row in oracle else blank)).all(), (number, row)
def refused(call, *arguments):
    try:
        call(*arguments)
    except StorageError as error:
        assert error.errno == 28, error
        assert "cannot be written" in str(error)
        return set(error.rows.tolist())
    return None
accumulator = FullBatchAccumulator(
    locs, save_path=disk, memory_threshold=0, memory_limit="4 MiB", on_duplicate=policy, **options
)
push([0, 9, 18, 27], 5)
accumulator.flush()
check(accumulator.canvas, accumulator.written)
"""

REFUSED_PUSH = """
late = [0, 9, 18, 27] * (policy == "last") + list(range(32, 64))
for _ in range(2):  # more than there is room for, in memory and on disk together
    rows = refused(push, late, 77)
    assert rows, "it fitted"
    assert rows <= set(late)
    assert np.flatnonzero(accumulator.written).tolist() == [0, 9, 18, 27]
os.remove(disk + "/ballast")
check(accumulator.canvas, accumulator.written)
push(late, 77)
"""

LATER_PUSH = """
told, later = 0, [row for row in range(n) if row not in oracle]
for row in later + [0, 18] * (policy == "last"):
    before = accumulator.written.copy()
    rows = refused(push, [row], 100)
    if rows is None:
        assert accumulator.written[row]
        continue
    told += 1
    assert rows and before[sorted(rows)].all(), (row, rows)
    assert (accumulator.written == before).all()
assert told
for call in (accumulator.flush, accumulator.finalize, lambda: accumulator.canvas):
    rows = refused(call)
    assert rows and accumulator.written[sorted(rows)].all(), rows
os.remove(disk + "/ballast")
"""

END = """
with accumulator.finalize() as result:
    check(result.outputs, result.written)
assert os.listdir(disk) == []
print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [REFUSED_PUSH, LATER_PUSH], ids=["large", "small"])
@pytest.mark.parametrize("policy", ["error", "last"])
@pytest.mark.parametrize(
    "options",
    ["{}", "{'compressors': ZstdCodec(level=0)}", "{'shards': 2, 'chunks': 1}", "{'fill_value': 7}"],
)
def test_disk_that_is_really_full(tmp_path, script, policy, options):
    """On a file system of 24 MiB no row that push took is lost, and one that it refused leaves no trace.

    The error comes with a later call and names rows that were pushed; after room is made the same calls
    succeed, in the same process.
    """
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "script.py").write_text(FULL_DISK + script + END)
    mount = f"mount -t tmpfs -o size=24m tmpfs {disk} || exit 99; exec {sys.executable} -W error"
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} {tmp_path / "script.py"} {disk} {policy} "{options}"'],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
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
import warnings
import numpy as np
from pathlib import Path
from accumulator import FullBatchAccumulator
from accumulator.exceptions import StorageWarning
warnings.simplefilter("ignore", StorageWarning)  # 210 GB if all came
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
        n_written, disk_ratio, peak = map(float, run_script(join + script))
    assert n_written == 100
    assert disk_ratio <= 2
    assert peak < 2


# Three heads as a segmentation network has them, 3 GB in all, in batches of 32; prints the peak in MiB.
LARGE = """
import sys
from pathlib import Path
import numpy as np
from accumulator import FullBatchAccumulator
def status(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024
n = 2336
locs = np.arange(n * 4).reshape(n, 4)
order = np.arange(n) if sys.argv[1] == "order" else np.random.default_rng(0).permutation(n)
patch = np.random.default_rng(1).random((164, 164, 4), dtype="f4")
heads = [np.empty((32, *patch.shape), "f4") for _ in range(3)]
for head in heads:
    head[:] = patch
Path("/proc/self/clear_refs").write_text("5")
start = status("VmRSS")
with FullBatchAccumulator(locs, memory_threshold=0) as accumulator:
    for rows in order.reshape(-1, 32):
        for number, head in enumerate(heads):  # the same buffers for every batch
            for i, row in enumerate(rows):
                np.add(patch, number + 3 * row, out=head[i])
        accumulator.push(heads, locs[rows])
peak = status("VmHWM") - start
result = accumulator.finalize()
assert result.nbytes > 3e9 and result.written.all()
for number, output in enumerate(result.outputs):
    for row in [*range(0, n, 97), n - 1]:
        assert (output[row] == patch + np.float32(number + 3 * row)).all(), (number, row)
print(type(output).__name__, peak / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["order", *soaked("shuffled")])
def test_result_of_3_gb_in_a_container_of_1_gb(order):
    """On disk 3 GB of output take at most 512 MB of memory, whatever order they come in, and are right."""
    with memory_group(10**9) as join:
        kind, peak = run_script(join + LARGE, order)
    assert kind == "Array"
    assert float(peak) <= 512


@pytest.mark.slow
def test_container_that_somebody_else_fills_in_the_middle():
    """500 MiB start in RAM; when another process takes 400 of 900 MiB they move out, and nobody is killed."""
    script = """
import subprocess, sys
import numpy as np
from accumulator import FullBatchAccumulator
n = 500
locs = np.arange(n * 4).reshape(n, 4)
patch = np.arange(2**18, dtype="f4")  # 1 MiB a row
neighbour = "import sys; held = b'x' * (400 * 2**20); print(len(held), flush=True); sys.stdin.read()"
with FullBatchAccumulator(locs) as accumulator:
    for start in range(0, n, 4):
        if start == 200:
            assert accumulator.plan().place == "RAM"
            other = subprocess.Popen(
                [sys.executable, "-c", sys.argv[1] + neighbour], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert other.stdout.readline() == b"419430400\\n"
        rows = np.arange(start, start + 4)
        accumulator.push(patch + rows[:, None].astype("f4"), locs[rows])
assert other.poll() is None
other.communicate()
result = accumulator.finalize()
right = all((result.outputs[0][row] == patch + np.float32(row)).all() for row in range(n))
print(type(result.outputs[0]).__name__, right, result.written.all(), other.returncode)
"""
    with memory_group(900 * MIB) as join:
        assert run_script(join + script, join) == ["Array", "True", "True", "0"]


@pytest.fixture
def large_pushes(monkeypatch, tuned):
    """Have every push copied by several threads, whatever the machine has."""
    tuned(shared_copy_nbytes=1)
    monkeypatch.setattr(_copying, "n_cores", lambda: 3)


@pytest.mark.usefixtures("tiny_chunks", "large_pushes")
@pytest.mark.parametrize("end", ["finalize", "close", "drop", "error"])
def test_no_thread_outlives_the_accumulator(where, end):
    """However an accumulator ends, the threads that copied and wrote for it end with it."""
    locs = grid(40)
    accumulator = FullBatchAccumulator(locs, **where)
    for start in range(0, 40, 5):
        accumulator.push([distinct(5), distinct(5, (3,))], locs[start : start + 5])
    assert threads()
    if end == "drop":
        with pytest.warns(ResourceWarning, match="was dropped"):  # noqa: PT031
            del accumulator
            gc.collect()
    elif end == "error":
        with pytest.raises(RuntimeError, match="the model"), accumulator:
            raise RuntimeError("the model failed")
    else:
        getattr(accumulator, end)()
    assert threads() == []


@pytest.mark.parametrize("is_managed", [True, False])
@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("raise RuntimeError('model')", 1)])
def test_script_that_stops_in_the_loop_ends(tmp_path, is_managed, end, code):
    """A script that gives up while rows wait for a slow disk ends, and its temporary folder with it."""
    script = f"""
import contextlib, sys, time
import numpy as np
from accumulator import FullBatchAccumulator
from accumulator._stores.writing import head as _head
real = _head.Block.write
_head.Block.write = lambda self: (time.sleep(0.3), real(self))
locs = np.arange(400).reshape(100, 4)
accumulator = FullBatchAccumulator(locs, save_path={str(tmp_path / "spill")!r}, memory_threshold=0, chunks=2)
with accumulator if {is_managed} else contextlib.nullcontext():
    for row in range(0, 8, 2):
        accumulator.push(np.ones((2, 3)), locs[row : row + 2])
    print(len(list(__import__("pathlib").Path({str(tmp_path)!r}).rglob("full_batch_*"))), flush=True)
    {end}
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,  # seconds; only what hangs takes them
    )
    assert (ended.returncode, ended.stdout) == (code, "1\n"), ended.stderr
    assert list(tmp_path.rglob("full_batch_*")) == []
    assert not (tmp_path / "spill").exists()

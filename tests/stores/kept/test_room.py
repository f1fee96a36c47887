"""Disks that are too small, by bytes and by files: seen before, and what is in files is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.oracle import grid
from helpers.processes import ENVIRONMENT

from accumulator import FullBatchAccumulator
from accumulator.exceptions import StorageError, StorageWarning

N = 200
LOCS = grid(N)


@pytest.fixture
def inodes(monkeypatch):
    """Return what decides how many files may be made."""
    found = SimpleNamespace(f_favail=60, f_files=1000, f_flag=0, f_bavail=2**30, f_blocks=2**31)
    found.f_bfree, found.f_frsize = found.f_bavail, 4096
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    return found


@pytest.mark.parametrize("options", [{"store": "run.zarr"}, {"memory_threshold": 0}])
def test_files_that_have_to_come_are_refused_before_the_first(inodes, options):
    """60 free inodes, 200 files to come: refused before anything is written, with both numbers."""
    with FullBatchAccumulator(LOCS, chunks=1, n_expected=N, **options) as run:
        with pytest.raises(StorageError, match="200 files have to go to disk, but only 60 more can be made"):
            run.push([np.ones((1, 3))], LOCS[:1])
        assert not run.written.any()
        inodes.f_favail = N
        run.push([np.ones((1, 3))], LOCS[:1])
        assert run.plan().files_free == N


@pytest.mark.parametrize("options", [{"store": "run.zarr"}, {"memory_threshold": 0}])
@pytest.mark.usefixtures("inodes")
def test_files_that_may_come_are_warned_of(options):
    """Where it is not known how many rows come, they may fit."""
    run = FullBatchAccumulator(LOCS, chunks=1, **options)
    plan = run.plan([np.empty((0, 3))])
    assert (plan.n_files, plan.files_free) == (N, 60)
    assert "only 60 files more can be made there" in str(plan)
    with pytest.warns(StorageWarning, match="may take 200 files if all 200 rows come, but only 60 more"):
        run.push([np.ones((1, 3))], LOCS[:1])
    run.close()


def test_file_system_without_a_number_of_files_has_no_limit(inodes):
    """What btrfs says: no files at all, and none free."""
    inodes.f_files = inodes.f_favail = 0
    with FullBatchAccumulator(LOCS, chunks=1, n_expected=N, store="run.zarr") as run:
        run.push([np.ones((1, 3))], LOCS[:1])
        assert run.plan().files_free is None
        assert "inodes" not in str(run.plan())


@pytest.mark.usefixtures("inodes")
def test_files_that_a_resumed_run_has_are_not_counted_again(inodes):
    """Recorded rows have theirs."""
    with FullBatchAccumulator(LOCS, chunks=1, n_expected=150, store="run.zarr") as run:
        inodes.f_favail = N
        run.push([np.ones((150, 3))], LOCS[:150])
        run.flush()
        inodes.f_favail = 50
        run.plan().check_disk(N)
        inodes.f_favail = 49
        with pytest.raises(StorageError, match="50 files have to go to disk, but only 49"):
            run.plan().check_disk(N)


FULL = """
import errno, sys, warnings
from pathlib import Path
import numpy as np
from accumulator import FullBatch, FullBatchAccumulator
from accumulator.exceptions import StorageError
from helpers.oracle import grid
warnings.simplefilter("ignore")
from zarr.codecs import ZstdCodec
n, chunks, is_compressed, is_again = map(int, sys.argv[2:])
store, locs = Path(sys.argv[1]) / "run.zarr", grid(n)
values = np.random.default_rng(0).integers(0, 2**62, (n, 512))
options = {"compressors": ZstdCodec()} if is_compressed else {}
options |= {"chunks": chunks, "on_duplicate": "last", "checkpoint_interval": 1e9}
run = FullBatchAccumulator(locs, store=store, **options)
if is_again:
    run.push([-values[:20]], locs[:20])
    run.flush()
refused = None
try:
    for start in range(0, n, 4):
        run.push([values[start : start + 4]], locs[start : start + 4])
except StorageError as error:
    assert error.errno == errno.ENOSPC, error
    refused = error
assert refused is not None
pushed = run.written.copy()
try:
    run.close()
except StorageError as error:
    assert error.errno == errno.ENOSPC, error
else:
    raise AssertionError("it did not say that rows are lost")
with FullBatch.load(store, partial=True) as batch:
    written = batch.written
    found = batch.outputs[0].oindex[written] if written.any() else np.empty((0, 512))
files = [path for path in store.joinpath("outputs/0").iterdir() if path.name.startswith("c.")]
assert not (written & ~pushed).any()
right = (found == values[written]).all(axis=1)
assert right[~np.isin(np.flatnonzero(written), np.arange(20 * is_again))].all()
assert (right | (found == -values[written]).all(axis=1)).all()
print(int(pushed.sum()), int(written.sum()), len(files) * chunks)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_again", [0, 1])
@pytest.mark.parametrize("is_compressed", [0, 1])
@pytest.mark.parametrize(("mount", "n", "chunks"), [("size=2m", 800, 2), ("size=9m,nr_inodes=70", 300, 1)])
def test_full_disk_has_recorded_what_is_in_files(tmp_path, mount, n, chunks, is_compressed, is_again):
    """ENOSPC and then `close()`: each row in a file is recorded, and none else."""
    disk = tmp_path / "disk"
    disk.mkdir()
    inner = f'mount -t tmpfs -o {mount} tmpfs {disk} || exit 99; exec "$@"'
    prefix = ["sh", "-c", f"unshare -m true || exit 99; exec unshare -m sh -c '{inner}' - \"$@\"", "-"]
    arguments = [str(disk), str(n), str(chunks), str(is_compressed), str(is_again)]
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", FULL, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if ended.returncode == 99:
        pytest.skip("needs root, to mount a small file system")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    n_pushed, n_recorded, n_in_files = map(int, ended.stdout.split())
    assert n_recorded <= n_pushed
    assert n_recorded >= n_in_files - chunks - 2 > 10, (n_pushed, n_recorded, n_in_files)

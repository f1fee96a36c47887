"""What a kill in the middle of a checkpoint leaves, and what readers, commands and a resume make of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.files import tree
from helpers.oracle import distinct, grid
from helpers.processes import ENVIRONMENT
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator, stitch
from accumulator._cli.commands import main
from accumulator.exceptions import DamagedError, ResultExistsError, ResultFormatError

N = 10
LOCS = grid(N)
AGAIN = [0, 1, 2, 3, 8]  # rows that are pushed twice; of the last chunk, too
ZSTD = ZstdCodec()
KINDS = {
    "raw": {"chunks": 4},
    "raw, filled": {"chunks": 3, "fill_value": 7},
    "zstd": {"chunks": 4, "compressors": ZSTD},
    "shards": {"shards": 4, "chunks": 2},
    "shards, zstd, filled": {"shards": 6, "chunks": 2, "compressors": ZSTD, "fill_value": -1},
    "pieces": {"chunks": (4, 2, 2, 1)},
}
HEADS = (distinct(N, (4, 4, 1)), distinct(N, (4, 4, 1), "i2", first=500))
AFTER = tuple(-head for head in HEADS)  # what replaces it

# Kills itself in the middle of replacing rows, once for each kind and moment.
KILLED = """
import os, signal
import test_killed as t
from accumulator import FullBatchAccumulator
from accumulator._stores.files import system
from accumulator._stores.writing.redo import RedoChunks
os.fsync = lambda _: None
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
def later(real):
    def call(*arguments):
        real(*arguments)
        die()
    return call
MOMENTS = {
    "recorded": (RedoChunks, "apply", die),
    "one head in its place": (RedoChunks, "apply", later(RedoChunks.apply)),
    "one file removed": (system, "remove", later(system.remove)),
}
for kind, options in t.KINDS.items():
    for moment, where in MOMENTS.items():
        pid = os.fork()
        if pid == 0:
            store = f"{kind}, {moment}.zarr"
            a = FullBatchAccumulator(
                t.LOCS, store=store, on_duplicate="last", checkpoint_interval=float("inf"), **options
            )
            a.push(t.HEADS, t.LOCS)
            a.flush()
            a.push([head[t.AGAIN] for head in t.AFTER], t.LOCS[t.AGAIN])
            a._canvas._batches.show()
            setattr(*where)
            a.flush()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""
MOMENTS = ["recorded", "one head in its place", "one file removed"]


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """Wait for no disk: processes end here, and no machine does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return the stores of runs that were killed while they replaced rows."""
    folder = tmp_path_factory.mktemp("killed")
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{__file__.rsplit('/', 1)[0]}"}
    command = [sys.executable, "-W", "ignore", "-c", KILLED]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=300)
    return folder


@pytest.fixture
def store(killed, tmp_path):
    """Return a copy of one of them."""

    def copy(kind, moment):
        return shutil.copytree(killed / f"{kind}, {moment}.zarr", tmp_path / "run.zarr")

    return copy


def recorded():
    """Return what each head has recorded."""
    heads = [head.copy() for head in HEADS]
    for head, after in zip(heads, AFTER, strict=True):
        head[AGAIN] = after[AGAIN]
    return heads


def run_json(capsys, *argv):
    """Run a command with --json; return its exit code and what it printed."""
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replacement_that_was_killed_is_read_as_it_was_recorded(store, kind, moment):
    """Each row's recorded prediction is read, wherever it is; no reader changes a file."""
    path = store(kind, moment)
    before = tree(path)
    with FullBatch.load(path, partial=True) as batch:
        for array, right in zip(batch.outputs, recorded(), strict=True):
            np.testing.assert_array_equal(array[:], right)
            for row in range(N):
                np.testing.assert_array_equal(array[row], right[row])
        for _ in range(2):
            np.testing.assert_array_equal(batch.outputs[0][7:], recorded()[0][7:])
        batch.save("copy.zarr")
        maps = stitch(batch)
    assert tree(path) == before
    with FullBatch.load("copy.zarr") as copy:
        for array, right in zip(copy.outputs, recorded(), strict=True):
            np.testing.assert_array_equal(array[:], right)
    for image, right in zip(maps.outputs, recorded(), strict=True):
        for (x0, y0, x1, y1), row in zip(LOCS, right, strict=True):
            np.testing.assert_array_equal(image[y0:y1, x0:x1], row)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_replacement_that_was_killed_is_unfinished_and_not_damaged(store, capsys, kind, moment):
    """`verify` says so, exits with 0, and so does the report; resuming finishes it."""
    path = store(kind, moment)
    before = tree(path)
    code, found = run_json(capsys, "verify", path)
    assert (code, found["is_right"], found["verdict"], found["n_written"]) == (0, True, "unfinished", N)
    waiting = [head["replaced_rows"] for head in found["heads"]]
    assert waiting[1] == AGAIN
    assert waiting[0] == (AGAIN if moment == "recorded" else [])
    assert [head["damaged_rows"] for head in found["heads"]] == [[], []]
    assert main(["verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "head 1: 5 rows whose replacement is unfinished" in out
    assert "unfinished, right so far: 10 of 10 rows of 2 heads, running" in out
    assert tree(path) == before
    options = KINDS[kind]
    with FullBatchAccumulator(LOCS, store=path, mode="a", on_duplicate="last", **options) as run:
        assert run.written.all()
    assert run_json(capsys, "verify", path)[1]["verdict"] == "right"
    assert not list(path.rglob("redo"))
    for array, right in zip(run.finalize().outputs, recorded(), strict=True):
        np.testing.assert_array_equal(array[:], right)


@pytest.mark.parametrize("kind", KINDS)
def test_replacement_that_lost_both_its_files_is_damage(store, capsys, kind):
    """Where neither place has what was recorded, it is said, and just these rows are missing again."""
    path = store(kind, "recorded")
    for file in (path / "outputs/1/redo").iterdir():
        file.write_bytes(bytes(file.stat().st_size) if file.name != "0" else b"cut")
    code, found = run_json(capsys, "verify", path)
    assert (code, found["verdict"]) == (1, "damaged")
    assert found["heads"][0]["replaced_rows"] == AGAIN
    assert found["heads"][1]["damaged_rows"] == AGAIN
    with FullBatch.load(path, partial=True) as batch, pytest.raises(DamagedError):
        batch.outputs[1][0]
    with pytest.warns(match="damaged and are missing again"):
        run = FullBatchAccumulator(LOCS, store=path, mode="a", on_duplicate="last", **KINDS[kind])
    assert run.missing_rows().tolist() == AGAIN
    run.close()


CREATED = """
import os, signal, sys
import test_killed as t
from accumulator import FullBatchAccumulator
from accumulator._stores.files import system
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
a = FullBatchAccumulator(t.LOCS, store="run.zarr", chunks=1)
rows = [0, 1, 2, 3, 4, 6, 7, 8, 9]
a.push([head[rows] for head in t.HEADS], t.LOCS[rows])
a.flush()
system.write_at = die
a.push([head[5:6] for head in t.HEADS], t.LOCS[5:6])
a.flush()
"""


def check_row_5_is_missing(capsys, path):
    """Every reader, command and a resume see nine right rows, and one that has not come."""
    before = tree(path)
    for argv in (["verify"], ["info"], ["missing"]):
        assert main([*argv, str(path)]) == 0
    assert "unfinished, right so far: 9 of 10" in capsys.readouterr().out
    assert main(["stitch", str(path), "--output", "map.zarr", "--head", "0"]) == 0
    assert main(["report", str(path), "--output", "page.html"]) == 0
    with FullBatch.load(path, partial=True) as batch:
        assert np.flatnonzero(~batch.written).tolist() == [5]
        maps = stitch(batch)
        batch.save("copy.zarr")
        with FullBatch.load("copy.zarr") as copy:
            for arrays in (batch.outputs, copy.outputs):
                for array, head in zip(arrays, HEADS, strict=True):
                    right = head.copy()
                    right[5] = 0
                    np.testing.assert_array_equal(array[:], right)
                    np.testing.assert_array_equal(array.oindex[batch.written], head[batch.written])
    assert maps.outputs[0].shape[2] == 1
    assert tree(path) == before
    with FullBatchAccumulator(LOCS, store=path, mode="a", chunks=1) as run:
        assert run.missing_rows().tolist() == [5]
        run.push([head[5:6] for head in HEADS], LOCS[5:6])
    for array, head in zip(run.finalize().outputs, HEADS, strict=True):
        np.testing.assert_array_equal(array[:], head)


def test_chunk_that_was_made_and_not_written_is_not_looked_at(capsys):
    """A file that was made, and that nothing was written to when the process was killed, is no damage."""
    folder = __file__.rsplit("/", 1)[0]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}:{folder}"}
    ended = subprocess.run([sys.executable, "-c", CREATED], env=environment, check=False, timeout=300)
    assert ended.returncode == -signal.SIGKILL
    path = Path("run.zarr")
    made = [file.stat().st_size for file in path.glob("outputs/*/c.5.*")]  # of whichever head comes first
    assert made
    assert not any(made)
    check_row_5_is_missing(capsys, path)


STRAY = {  # what may lie in a store, and no record names it
    "half a file": lambda path: path.joinpath("outputs/0/c.5.0.0.0").write_bytes(b"12345"),
    "too long a file": lambda path: path.joinpath("outputs/0/c.5.0.0.0").write_bytes(bytes(5000)),
    "a folder for a file": lambda path: path.joinpath("outputs/0/c.5.0.0.0").mkdir(),
    "a folder with more": lambda path: path.joinpath("outputs/1/c.5.0.0.0/deeper/still").mkdir(parents=True),
    "a partial file": lambda path: path.joinpath(f"written/c.0.{'0' * 32}.partial").write_bytes(b"1"),
    "a partial folder": lambda path: path.joinpath(f"outputs/0/c.5.{'a' * 32}.partial").mkdir(),
    "a chunk that no row is in": lambda path: path.joinpath("outputs/0/c.77.0.0.0").write_bytes(b"1"),
    "scratch files": lambda path: path.joinpath("outputs/0/part/5").mkdir(parents=True),
    "a file for scratch files": lambda path: path.joinpath("outputs/0/part").write_bytes(b""),
    "a redo file": lambda path: (
        (path / "outputs/0/redo").mkdir() or (path / "outputs/0/redo/5").write_bytes(b"1")
    ),
    "a folder for a redo file": lambda path: path.joinpath("outputs/0/redo/0").mkdir(parents=True),
    "a file for redo files": lambda path: path.joinpath("outputs/0/redo").write_bytes(b"1"),
    "somebody's notes": lambda path: path.joinpath("notes.txt").write_text("mine", encoding="ascii"),
}


@pytest.mark.parametrize("stray", STRAY)
def test_what_no_record_names_is_not_looked_at(capsys, stray):
    """Stray files and folders are no damage for anybody, and a resumed run goes on."""
    path, rows = Path("run.zarr"), np.delete(np.arange(N), 5)
    run = FullBatchAccumulator(LOCS, store=path, chunks=1)
    run.push([head[rows] for head in HEADS], LOCS[rows])
    run.close()
    STRAY[stray](path)
    check_row_5_is_missing(capsys, path)


FOLDERS = {
    "raw": {"chunks": 2},
    "zstd": {"chunks": 2, "compressors": ZSTD},
    "shards": {"shards": 2, "chunks": 1},
}


@pytest.mark.parametrize(("state", "inside"), [("running", None), ("complete", "c.0")])
@pytest.mark.parametrize("kind", FOLDERS)
def test_folder_in_place_of_a_chunk_is_damage(capsys, kind, inside, state):
    """It is a DamagedError for readers, and for a resumed run its rows are missing again."""
    path = Path("run.zarr")
    run = FullBatchAccumulator(LOCS, store=path, **FOLDERS[kind])
    run.push(HEADS, LOCS)
    run.finalize().close() if state == "complete" else run.close()
    chunk = path / "outputs/1/c.1.0.0.0"
    chunk.unlink()
    chunk.mkdir()
    if inside:
        chunk.joinpath(inside).write_bytes(b"1")
    code, found = run_json(capsys, "verify", path)
    assert (code, [head["damaged_rows"] for head in found["heads"]]) == (1, [[], [2, 3]])
    with FullBatch.load(path, partial=True) as batch:
        np.testing.assert_array_equal(batch.outputs[0][:], HEADS[0])
        for read in (lambda: batch.outputs[1][2], lambda: batch.save("copy.zarr"), lambda: stitch(batch)):
            with pytest.raises(DamagedError):
                read()
    with pytest.warns(match="2 rows of .* were damaged"):
        run = FullBatchAccumulator(LOCS, store=path, mode="a", **FOLDERS[kind])
    with run:
        assert run.missing_rows().tolist() == [2, 3]
        run.push([head[2:4] for head in HEADS], LOCS[2:4])
    for array, head in zip(run.finalize().outputs, HEADS, strict=True):
        np.testing.assert_array_equal(array[:], head)


@pytest.mark.parametrize("n", [10, 4092])  # 4092 + 4 bytes of CRC are as long as many systems say a folder is
@pytest.mark.parametrize("state", ["running", "complete"])
@pytest.mark.parametrize(
    "file",
    [
        "zarr.json",
        "written/c.0",
        "checksums/c.0.0",
        "output_locs/c.0.0",
        "written/zarr.json",
        "outputs/0/zarr.json",
    ],
)
def test_folder_in_place_of_a_file_of_the_record_is_refused(capsys, file, state, n):
    """Readers, commands and a resume say that the store is damaged, with a typed error."""
    path, locs = Path("run.zarr"), grid(n)
    run = FullBatchAccumulator(locs, store=path)
    run.push([np.ones((n, 1))], locs)
    run.finalize().close() if state == "complete" else run.close()
    path.joinpath(file).unlink()
    path.joinpath(file).mkdir()
    with pytest.raises(ResultFormatError):
        FullBatch.load(path, partial=True)
    with pytest.raises((ResultFormatError, ResultExistsError)):
        FullBatchAccumulator(locs, store=path, mode="a")
    assert main(["verify", str(path)]) == 1
    assert capsys.readouterr().err.startswith("accumulator: error: ")


@pytest.mark.parametrize("folder", ["written", "checksums", "output_locs", "outputs", "outputs/0"])
def test_file_in_place_of_a_folder_is_refused(capsys, folder):
    """The same the other way round."""
    path = Path("run.zarr")
    run = FullBatchAccumulator(LOCS, store=path)
    run.push(HEADS, LOCS)
    run.close()
    shutil.rmtree(path / folder)
    path.joinpath(folder).write_bytes(b"{}")
    with pytest.raises(ResultFormatError):
        FullBatch.load(path, partial=True)
    with pytest.raises(ResultFormatError):
        FullBatchAccumulator(LOCS, store=path, mode="a")
    assert main(["verify", str(path)]) == 1
    assert capsys.readouterr().err.startswith("accumulator: error: ")


@pytest.mark.parametrize("name", ["outputs/0/c.5.0.0.0", "outputs/0/redo", "notes"])
def test_link_that_no_record_names_stays_refused(name):
    """A store holds no links, wherever they lie."""
    path = Path("run.zarr")
    run = FullBatchAccumulator(LOCS, store=path, chunks=1)
    run.push([head[:5] for head in HEADS], LOCS[:5])
    run.close()
    path.joinpath(name).symlink_to("/etc")
    for call in (
        lambda: FullBatch.load(path, partial=True),
        lambda: FullBatchAccumulator(LOCS, store=path, mode="a", chunks=1),
    ):
        with pytest.raises(ResultFormatError, match="symbolic link"):
            call()

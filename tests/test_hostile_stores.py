"""Stores that were corrupted, or made by somebody hostile: refused, found out, or harmless; never a crash.

How many are made is in the environment: ACCUMULATOR_HOSTILE_STORES. One that failed is made again by
``ACCUMULATOR_HOSTILE_SEED=<seed>``.
"""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import hostile
import numcodecs
import numpy as np
import pytest
import zarr
from conftest import tree
from hostile import LOCS, ROWS, batch, build, build_all, open_run, values
from oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._cli import main
from accumulator._stores import _bounded
from accumulator.exceptions import (
    DamagedError,
    ResultExistsError,
    ResultFormatError,
    StorageError,
    StorageWarning,
)

COUNT = int(os.environ.get("ACCUMULATOR_HOSTILE_STORES", "300"))
SEED = os.environ.get("ACCUMULATOR_HOSTILE_SEED")
SECONDS = 40  # that a store may take; it is a fraction of one
N_WORKERS = min(2, os.cpu_count() or 1)


class Worker:
    """Another process, which may crash, hang or run out of memory."""

    def __init__(self, templates, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, hostile.__file__, str(templates), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, seed):
        """Return the answer for a seed, and whether the worker can go on."""
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return json.loads(line), True
        error = "the process died" if ready else f"no answer in {SECONDS} s"
        self.process.kill()
        error += self.process.stderr.read()[-2000:]
        return {"seed": seed, "store": "?", "deeds": ["?"], "outcome": [], "error": error}, False

    def end(self):
        """End it, and remove what it has made."""
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        self.process.kill()
        self.process.wait()
        subprocess.run(["rm", "-rf", "--", str(self.folder)], check=True)  # noqa: S607  however deep it is


def ask_all(seeds, templates, folder):
    """Return the answers of several workers to all seeds."""
    waiting, answers = queue.SimpleQueue(), []
    for seed in seeds:
        waiting.put(seed)

    def serve(number):
        worker = Worker(templates, folder / str(number))
        try:
            while True:
                answer, is_alive = worker.ask(waiting.get_nowait())
                answers.append(answer)
                if not is_alive:
                    worker.end()
                    worker = Worker(templates, folder / str(number))
        except queue.Empty:
            pass
        finally:
            worker.end()

    threads = [threading.Thread(target=serve, args=[number]) for number in range(N_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.slow
def test_no_store_crashes_hangs_or_lies(tmp_path, capsys):
    """Each is loaded, verified, resumed and completed: typed errors, or the rows that were pushed."""
    (tmp_path / "templates").mkdir()
    build_all(tmp_path / "templates")
    seeds = range(COUNT) if SEED is None else [int(SEED)]
    answers = ask_all(seeds, tmp_path / "templates", tmp_path)
    shutil.rmtree(tmp_path / "templates")
    kinds, outcomes = Counter(), Counter()
    for answer in answers:
        kinds.update(answer["deeds"])
        outcomes.update(zip(("load", "resume"), answer["outcome"], strict=False))
    with capsys.disabled():
        print(f"\n{len(answers)} hostile stores: {dict(kinds.most_common())}")  # noqa: T201
        print({" ".join(outcome): count for outcome, count in outcomes.most_common()})  # noqa: T201
    failed = [
        f"seed {answer['seed']}, {answer['store']}, {answer['deeds']}: {answer['error']}"
        for answer in sorted(answers, key=lambda answer: answer["seed"])
        if answer["error"]
    ]
    assert len(answers) == len(seeds)
    assert not failed, f"{len(failed)} of {len(answers)} stores:\n" + "\n".join(failed[:20])
    assert SEED or set(kinds) == {deed.__name__ for deed in (*hostile.ACCIDENTS, *hostile.ATTACKS)}


def sign(path, change):
    """Change the mark of a store as an attacker would, who knows how its digest is made."""
    mark = json.loads((path / "zarr.json").read_text())["attributes"]["accumulator"]
    change(mark)
    hostile.set_mark(path, mark)


def test_copies_of_metadata_are_not_used():
    """Consolidated metadata, which no digest covers, says otherwise, and nobody listens."""
    build("run.zarr", "zstd complete")
    group = json.loads(Path("run.zarr/zarr.json").read_text())
    array = json.loads(Path("run.zarr/outputs/0/zarr.json").read_text())
    array["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    group["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"outputs/0": array},
    }
    Path("run.zarr/zarr.json").write_text(json.dumps(group))
    with FullBatch.load("run.zarr") as result:
        np.testing.assert_array_equal(result.outputs["map"][ROWS], values("map")[ROWS])
    open_run("run.zarr", "zstd complete", mode="a").close()


@pytest.mark.parametrize("n_heads", [10**9, 2**61, 0])
def test_mark_with_heads_that_are_not_there(n_heads):
    """A number that would fill the memory with names is no sense, whatever its digest."""
    build("run.zarr", "raw complete")
    sign(Path("run.zarr"), lambda mark: mark.update(n_heads=n_heads, names=None))
    with pytest.raises(ResultFormatError, match="makes no sense"):
        FullBatch.load("run.zarr")


@pytest.mark.parametrize(
    "codec",
    ["numcodecs.pickle", "numcodecs.delta", "vlen-utf8", "os.system", "transpose", {"name": 5}, 7, None],
)
def test_codec_that_no_result_has(codec):
    """It is refused by its name, before anything is looked up or imported."""
    build("run.zarr", "zstd complete")
    path = Path("run.zarr/outputs/0/zarr.json")
    document = json.loads(path.read_text())
    document["codecs"].append(codec)
    path.write_text(json.dumps(document))
    hostile.sign(Path("run.zarr"))
    with pytest.raises(ResultFormatError, match="codec"):
        FullBatch.load("run.zarr")


@pytest.mark.parametrize("name", ["saved zstd", "raw complete"])
def test_zeros_are_no_rows_where_the_checksums_are_lost(name):
    """A copy without the files of rows and of checksums does not read as rows of zeros."""
    build("run.zarr", name)
    for path in (*Path("run.zarr/checksums").glob("c.*"), *Path("run.zarr/outputs/0").glob("c.*")):
        path.unlink()
    with pytest.raises(ResultFormatError, match=r"checksums/c\.0\.0 is missing"):
        FullBatch.load("run.zarr")


def test_copy_that_was_made_while_rows_came():
    """Its old rows and checksums with the new list of what is written: those rows are damaged, not empty."""
    accumulator = open_run("run.zarr", "raw")
    accumulator.push(batch("raw", [0, 1]), LOCS[[0, 1]])
    accumulator.flush()
    shutil.copytree("run.zarr", "copy.zarr")
    accumulator.push(batch("raw", [4, 5]), LOCS[[4, 5]])
    accumulator.close()
    shutil.copytree("run.zarr/written", "copy.zarr/written", dirs_exist_ok=True)
    with FullBatch.load("copy.zarr", partial=True) as result:
        np.testing.assert_array_equal(result.outputs["map"][:2], values("map")[:2])
        with pytest.raises(DamagedError):
            result.outputs["map"][4]
    with pytest.warns(StorageWarning, match="2 rows of .* are missing again"):
        accumulator = open_run("copy.zarr", "raw", mode="a")
    assert np.flatnonzero(accumulator.written).tolist() == [0, 1]
    accumulator.close()


def test_hard_links_are_read_and_not_written():
    """A snapshot made of hard links loads, but resuming would write into the other one too."""
    build("run.zarr", "raw")
    shutil.copytree("run.zarr", "snapshot.zarr", copy_function=os.link)
    before = tree(Path("snapshot.zarr"))
    with pytest.raises(ResultFormatError, match="hard link"):
        open_run("run.zarr", "raw", mode="a")
    with FullBatch.load("run.zarr", partial=True) as result:
        np.testing.assert_array_equal(result.outputs["map"][ROWS], values("map")[ROWS])
    assert tree(Path("snapshot.zarr")) == before


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize("state", ["creating", "running"])
def test_what_is_no_file_is_not_followed_when_a_run_is_made_or_resumed(kind, state):
    """Not even in a store that says that it is not made yet, which is emptied first."""
    build("run.zarr", "raw")
    Path("outside").mkdir()
    Path("outside/canary").write_text("there")
    if state == "creating":
        sign(Path("run.zarr"), lambda mark: mark.update(state="creating"))
    shutil.rmtree("run.zarr/outputs")
    if kind == "link":
        Path("run.zarr/outputs").symlink_to("../outside")
    else:
        os.mkfifo("run.zarr/outputs")
    with pytest.raises(ResultFormatError, match="a store holds folders and files alone"):
        open_run("run.zarr", "raw", mode="a")
    assert tree(Path("outside")) == {"canary": b"there"}


@pytest.mark.parametrize("mode", ["w-", "a"])
@pytest.mark.parametrize("target", ["empty", "a store", "absent"])
def test_store_path_that_is_a_link_is_refused(mode, target):
    """Whoever could plant it would say where the run is written."""
    if target == "empty":
        Path(target).mkdir()
    elif target == "a store":
        build(target, "raw")
    Path("run.zarr").symlink_to(target)
    before = tree(Path.cwd())
    with pytest.raises(ResultExistsError, match="no link"):
        open_run("run.zarr", "raw", mode=mode)
    assert tree(Path.cwd()) == before


def test_spilled_result_is_private_and_follows_no_planted_link():
    """With a generous umask its folder is 0700 all the same, and links beside it stay what they are."""
    Path("outside").mkdir()
    Path("spill").mkdir()
    for name in ("full_batch_", "full_batch_aaaaaaaa", "result.zarr", "outputs"):
        Path("spill", name).symlink_to("../outside")
    mask = os.umask(0)
    try:
        with FullBatchAccumulator(LOCS, save_path="spill", memory_threshold=0) as accumulator:
            accumulator.push(distinct(11), LOCS)
        result = accumulator.finalize()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(result.path.parent.stat().st_mode) == 0o700
    result.close()
    assert tree(Path("outside")) == {}
    links = list(Path("spill").iterdir())
    assert len(links) == 4
    for link in links:
        assert link.is_symlink()
        link.unlink()


@pytest.mark.parametrize("name", ["raw", "zstd"])
def test_memory_that_is_short_is_no_damage(monkeypatch, name):
    """Rows that there is no room for are not taken as damaged, nor as missing when the run is resumed."""

    def refuse(*_):
        raise MemoryError

    build("run.zarr", name)
    before = tree(Path("run.zarr"))
    with monkeypatch.context() as patch:
        patch.setattr("accumulator._stores._check.RowChecker._values", refuse)
        patch.setattr("accumulator._stores._bounded._Bounded._decode_single", refuse)
        result = FullBatch.load("run.zarr", partial=True)
        with pytest.raises(StorageError, match="not enough memory"):
            result.outputs["map"][0]
        with pytest.raises(StorageError, match="not enough memory"):
            open_run("run.zarr", name, mode="a")
    with monkeypatch.context() as patch:
        patch.setattr("accumulator._stores._run.restore", refuse)
        with pytest.raises(StorageError, match="not enough memory"):
            open_run("run.zarr", name, mode="a")
    assert tree(Path("run.zarr")) == before
    open_run("run.zarr", name, mode="a").close()


COMPRESSORS = {
    "zstd": [numcodecs.Zstd(), numcodecs.Zstd(19, checksum=True)],
    "gzip": [numcodecs.GZip()],
    "zlib": [numcodecs.Zlib()],
    "bz2": [numcodecs.BZ2()],
    "lzma": [numcodecs.LZMA()],
    "lz4": [numcodecs.LZ4()],
    "blosc": [numcodecs.Blosc(name) for name in ("lz4", "zstd", "zlib")],
    "shuffle": [numcodecs.Shuffle(1)],
}


@pytest.mark.parametrize("name", list(COMPRESSORS))
@pytest.mark.parametrize("size", [1, 255, 256, 257, 65535, 65536, 70000, 2**20])
def test_what_a_chunk_becomes_is_known_before(name, size):
    """For each compressor, and every size that its header tells in another way."""
    for codec in COMPRESSORS[name]:
        data = bytes(codec.encode(bytes(size)))
        assert _bounded.decoded_nbytes(name, data, 2**21) == size
        assert _bounded.decoded_nbytes(name, data, size) == size
        if name != "shuffle":
            assert _bounded.decoded_nbytes(name, data, size - 1) > size - 1


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("zstd", hostile.zstd_bomb(2**40, is_known=True)[:100]),
        ("zstd", hostile.zstd_bomb(2**30, is_known=False)),
        ("gzip", hostile.gzip_bomb(2**33)),
    ],
    ids=["said", "not said", "gzip"],
)
def test_bombs_are_more_than_they_may_be(name, data):
    """They are not decompressed further than that."""
    assert _bounded.decoded_nbytes(name, data, 2**20) > 2**20


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xc0\x38", b"no zstd at all"])
def test_header_that_was_cut(data):
    """It is an error, which reading takes as damage."""
    with pytest.raises(ValueError, match="not compressed as it should be"):
        _bounded.decoded_nbytes("zstd", data, 100)


def test_hole_of_terabytes_is_damage(capsys):
    """A compressed chunk's file that is much longer than any such chunk is not read."""
    build("run.zarr", "zstd complete")
    os.truncate("run.zarr/outputs/0/c.0.0.0", 2**41)
    with FullBatch.load("run.zarr") as result, pytest.raises(DamagedError):
        result.outputs["map"][0]
    assert main(["verify", "run.zarr"]) == 1
    assert "4 damaged rows: 0, 1, 2, 3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "storage",
    [
        {"compressors": zarr.codecs.GzipCodec()},
        {"compressors": zarr.codecs.BloscCodec()},
        {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
        {"shards": 4, "compressors": zarr.codecs.BloscCodec()},
        {"chunks": (4, 1, 1)},
        {"chunks": (4, 1, 1), "shards": (8, 2, 2)},
    ],
    ids=["gzip", "blosc", "zstd and crc32c", "sharded blosc", "pieces", "sharded pieces"],
)
@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "?"])
def test_what_the_library_writes_it_reads(storage, dtype):
    """Whatever the codecs: what refuses hostile ones takes its own, rows that do not compress too."""
    rows = np.frombuffer(np.random.default_rng(3).bytes(11 * 12 * 16), np.uint8).reshape(11, 3, 4, 16)
    rows = (rows[..., 0] % 2 if dtype == "?" else rows[..., 0]).astype(dtype)
    with FullBatchAccumulator(grid(11), store="run.zarr", **storage) as accumulator:
        accumulator.push(rows[:5], grid(11)[:5])
    accumulator.finalize().close()
    accumulator = FullBatchAccumulator(grid(11), store="run.zarr", mode="a", **storage)
    accumulator.push(rows[5:], grid(11)[5:])
    accumulator.finalize().close()
    with FullBatch.load("run.zarr") as result:
        np.testing.assert_array_equal(result.outputs[0][:], rows, strict=True)
    assert main(["verify", "run.zarr"]) == 0


def test_numcodecs_compressors_are_read(recwarn):
    """They are stored and read, although zarr warns that its specification does not have them."""
    compressor = zarr.codecs.numcodecs.LZMA()
    with FullBatchAccumulator(LOCS, store="run.zarr", compressors=compressor) as accumulator:
        accumulator.push(distinct(11), LOCS)
    accumulator.finalize().close()
    with FullBatch.load("run.zarr") as result:
        np.testing.assert_array_equal(result.outputs[0][:], distinct(11))
    assert {warning.category.__name__ for warning in recwarn} <= {"ZarrUserWarning", "UserWarning"}

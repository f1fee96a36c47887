"""Stores that were corrupted, or made by somebody hostile: refused, found out, or harmless; never a crash.

How many are made is in the environment: ACCUMULATOR_HOSTILE_STORES. One that failed is made again by
``ACCUMULATOR_HOSTILE_SEED=<seed>``.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import os
import queue
import select
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.hostile import attacks, cases
from helpers.hostile.stores import LOCS, ROWS, batch, build, build_all, open_run, values
from helpers.oracle import distinct, grid
from helpers.processes import ENVIRONMENT

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._cli.commands import main
from accumulator._stores.format.mark import hash_locations
from accumulator._stores.reading import bounded as _bounded
from accumulator._stores.reading import saved as _saved
from accumulator._stores.reading import trust as _trust
from accumulator.exceptions import (
    DamagedError,
    ResultExistsError,
    ResultFormatError,
    StorageError,
    StorageWarning,
)

COUNT = int(os.environ.get("ACCUMULATOR_HOSTILE_STORES", "200"))
SEED = os.environ.get("ACCUMULATOR_HOSTILE_SEED")
SECONDS = 40  # that a store may take; it is a fraction of one
N_WORKERS = min(2, os.cpu_count() or 1)


class Worker:
    """Another process, which may crash, hang or run out of memory."""

    def __init__(self, templates, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.hostile", str(templates), str(folder)],
            env=ENVIRONMENT,
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
    assert SEED or set(kinds) == {deed.__name__ for deed in (*cases.ACCIDENTS, *cases.ATTACKS)}


def sign(path, change):
    """Change the mark of a store as an attacker would, who knows how its digest is made."""
    mark = json.loads((path / "zarr.json").read_text())["attributes"]["accumulator"]
    change(mark)
    attacks.set_mark(path, mark)


def test_copies_of_metadata_are_not_used():
    """Consolidated metadata, which no digest covers, says otherwise, and nobody listens."""
    build("run.zarr", "zstd complete")
    group = json.loads(Path("run.zarr/zarr.json").read_text())
    array = json.loads(Path("run.zarr/outputs/map/zarr.json").read_text())
    array["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    group["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"outputs/map": array},
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
    with pytest.raises(ResultFormatError, match="impossible values"):
        FullBatch.load("run.zarr")


@pytest.mark.parametrize(
    "codec",
    [
        "numcodecs.pickle",
        "numcodecs.delta",
        "numcodecs.fletcher32",
        "vlen-utf8",
        "os.system",
        "transpose",
        {"name": 5},
        7,
        None,
    ],
)
def test_codec_that_no_result_has(codec):
    """It is refused by its name, before anything is looked up or imported."""
    build("run.zarr", "zstd complete")
    path = Path("run.zarr/outputs/map/zarr.json")
    document = json.loads(path.read_text())
    document["codecs"].append(codec)
    path.write_text(json.dumps(document))
    attacks.sign(Path("run.zarr"))
    with pytest.raises(ResultFormatError, match=r"no result is stored with|codecs are not listed"):
        FullBatch.load("run.zarr")


@pytest.mark.parametrize("name", ["saved zstd", "raw complete"])
def test_zeros_are_no_rows_where_the_checksums_are_lost(name):
    """A copy without the files of rows and of checksums does not read as rows of zeros."""
    build("run.zarr", name)
    for path in (
        *Path("run.zarr/checksums").glob("c.*"),
        *next(Path("run.zarr/outputs").glob("*/")).glob("c.*"),
    ):
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
    with pytest.raises(ResultFormatError, match="a store holds only folders and files"):
        open_run("run.zarr", "raw", mode="a")
    assert tree(Path("outside")) == {"canary": b"there"}


@pytest.mark.parametrize("mode", ["w-", "a"])
@pytest.mark.parametrize("target", ["absent", "run.zarr"])
def test_store_path_that_is_a_link_to_nowhere_is_refused(mode, target):
    """Nobody said what should be there; a link to a folder is the user's own path, which is followed."""
    Path("run.zarr").symlink_to(target)
    before = tree(Path.cwd())
    with pytest.raises(ResultExistsError, match="leads nowhere"):
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
        patch.setattr("accumulator._stores.reading.check.RowChecker._values", refuse)
        patch.setattr("accumulator._stores.reading.bounded._Bounded._decode_single", refuse)
        result = FullBatch.load("run.zarr", partial=True)
        with pytest.raises(StorageError, match="not enough memory"):
            result.outputs["map"][0]
        with pytest.raises(StorageError, match="not enough memory"):
            open_run("run.zarr", name, mode="a")
    with monkeypatch.context() as patch:
        patch.setattr("accumulator._stores.kept.run.restore", refuse)
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
}


@pytest.mark.parametrize("name", list(COMPRESSORS))
@pytest.mark.parametrize("size", [1, 255, 256, 257, 65535, 65536, 70000, 2**20])
def test_chunk_becomes_no_more_than_it_may(name, size):
    """For each compressor, and every size that its header tells in another way."""
    rows = np.random.default_rng(5).bytes(size)
    for codec in COMPRESSORS[name]:
        data = memoryview(bytes(codec.encode(rows)))
        assert _bounded.decompressed(name, data, size).tobytes() == rows
        made = _bounded.decompressed(name, data, 2**21).tobytes()
        assert made == (rows if name in _bounded._STREAMS else rows + bytes(2**21 - size))
        with pytest.raises(ValueError, match=r"more than the|not compressed as it should be: destination"):
            _bounded.decompressed(name, data, size - 1)


@pytest.mark.parametrize(
    "data",
    [attacks.zstd_bomb(2**40, is_known=True)[:100], attacks.zstd_bomb(2**30, is_known=False)],
    ids=["said", "not said"],
)
def test_bombs_are_more_than_they_may_be(data):
    """They are not decompressed further than that."""
    with pytest.raises(ValueError, match="not compressed as it should be"):
        _bounded.decompressed("zstd", memoryview(data), 2**20)


def test_bomb_in_a_stream_is_not_decompressed_to_its_end():
    """Nor is one of gigabytes that takes no more than a chunk's file may."""
    with pytest.raises(ValueError, match="more than the 1048576 bytes"):
        _bounded.decompressed("gzip", memoryview(attacks.gzip_bomb(2**33)), 2**20)


def behind(name, data):
    """Yield what a decoder might go on with behind a chunk."""
    yield data
    yield bytes(1)
    if name == "zstd":
        yield attacks.zstd_bomb(2**20, is_known=True)
        yield attacks.zstd_bomb(2**20, is_known=False)


@pytest.mark.parametrize("name", ["zstd", "gzip", "zlib", "bz2", "lzma"])
@pytest.mark.parametrize("size", [1, 100, 2**18])
def test_nothing_is_before_or_behind_what_a_chunk_becomes(name, size):
    """Decoders would go on with it, and what follows the first part of a stream says nothing of itself."""

    def look(data):
        return _bounded.decompressed(name, memoryview(data), size)

    rows = np.random.default_rng(5).bytes(size)
    for codec in COMPRESSORS[name]:
        for data in (bytes(codec.encode(rows)), bytes(codec.encode(bytes(size)))):
            look(data)
            for more in behind(name, data):
                with pytest.raises(ValueError, match="not compressed as it should be"):
                    look(data + more)
            for cut in (len(data) - 1, len(data) // 2):
                with pytest.raises((ValueError, OSError)):
                    look(data[:cut])


@pytest.mark.parametrize("name", ["blosc", "lz4", "zstd"])
@pytest.mark.parametrize("nbytes", [0, 1, 255, 999, 1000, 1001, 2000, 2**31 - 1, 2**32 - 1])
def test_decoders_write_where_they_may(name, nbytes):
    """A chunk whose header was changed becomes what it was, or an error; it never takes more room."""
    real = np.random.default_rng(5).bytes(500) + bytes(500)
    for codec in COMPRESSORS[name]:
        data = bytearray(codec.encode(real))
        if name == "zstd":  # two bytes, as it has about a thousand
            data[5 + (not data[4] & 32) :][:2] = struct.pack("<H", max(0, min(nbytes, 2**16) - 256))
        else:
            at = {"blosc": 4, "lz4": 0}[name]
            data[at : at + 4] = struct.pack("<I", nbytes)
        with contextlib.suppress(ValueError):
            made = _bounded.decompressed(name, memoryview(data), 5000).tobytes()
            assert len(made) == 5000
            assert not any(made[max(nbytes, 1000) :])
        with pytest.raises(ValueError, match="not compressed as it should be"):
            _bounded.decompressed(name, memoryview(data), min(nbytes, 999))


@pytest.mark.parametrize("nbytes", [0, 15, 16, 17, 2**31 - 1, 2**32 - 1])
def test_blosc_that_says_another_length_of_itself(nbytes):
    """Its decoder would read beyond its bytes."""
    data = bytearray(numcodecs.Blosc("lz4").encode(bytes(1000)))
    data[12:16] = struct.pack("<I", nbytes)
    for some in (data, data[:15], data[:4], b""):
        with pytest.raises(ValueError, match="not compressed as it should be"):
            _bounded.decompressed("blosc", memoryview(some), 5000)


@pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\xc0\x38", b"no zstd at all"])
def test_header_that_was_cut(data):
    """It is an error, which reading takes as damage."""
    with pytest.raises(ValueError, match="not compressed as it should be"):
        _bounded.decompressed("zstd", memoryview(data), 100)


@pytest.mark.parametrize("more", [bytes(3 * 2**20), b""], ids=["empty blocks", "none"])
def test_what_becomes_nothing_takes_nothing(more):
    """Very many empty blocks, and a frame that is skipped, leave the chunk as it is, at once."""
    header = attacks.zstd_bomb(2**17, is_known=True)[:14]
    last = (2**17 << 3 | 3).to_bytes(3, "little") + b"\x07"
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 3) + b"abc"
    start = time.monotonic()
    for data in (header + more + last, header + more + last + skipped):
        assert _bounded.decompressed("zstd", memoryview(data), 2**17).tobytes() == b"\x07" * 2**17
    assert time.monotonic() - start < 5


def test_hole_of_terabytes_is_damage(capsys):
    """A compressed chunk's file that is much longer than any such chunk is not read."""
    build("run.zarr", "zstd complete")
    os.truncate("run.zarr/outputs/map/c.0.0.0", 2**41)
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
        {"compressors": zarr.codecs.Crc32cCodec()},
        {"compressors": [zarr.codecs.Crc32cCodec(), zarr.codecs.GzipCodec()]},
        {"shards": 4, "compressors": zarr.codecs.BloscCodec()},
        {"chunks": (4, 1, 1)},
        {"chunks": (4, 1, 1), "shards": (8, 2, 2)},
    ],
    ids=[
        "gzip",
        "blosc",
        "zstd and crc32c",
        "crc32c",
        "crc32c and gzip",
        "sharded blosc",
        "pieces",
        "sharded pieces",
    ],
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


@pytest.mark.parametrize(
    "names",
    [
        *(["Blosc"], ["BZ2"], ["CRC32"], ["CRC32C"], ["GZip"], ["LZ4"], ["LZMA"], ["Shuffle"], ["Zlib"]),
        *(["Zstd"], ["Shuffle", "Zstd", "CRC32"], ["CRC32C", "LZMA"], ["LZ4", "BZ2"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("n_values", [1, 5000])
def test_numcodecs_compressors_are_read(recwarn, names, n_values):
    """They are stored and read, although zarr warns that its specification does not have them."""
    compressors = [getattr(zarr.codecs.numcodecs, name)() for name in names]
    rows = np.random.default_rng(5).normal(size=(11, n_values))
    with FullBatchAccumulator(LOCS, store="run.zarr", compressors=compressors) as accumulator:
        accumulator.push(rows, LOCS)
    accumulator.finalize().close()
    with FullBatch.load("run.zarr") as result:
        np.testing.assert_array_equal(result.outputs[0][:], rows)
    assert {warning.category.__name__ for warning in recwarn} <= {"ZarrUserWarning", "UserWarning"}


PEAK = """
import sys
import warnings

warnings.simplefilter("ignore")
import zarr.codecs.numcodecs
from accumulator import FullBatch, FullBatchAccumulator
from accumulator._cli import main
from accumulator.exceptions import AccumulatorError

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
error = ""
try:
    if sys.argv[1] == "load":
        with FullBatch.load("run.zarr") as result:
            result.outputs[0][:]
    elif sys.argv[1] == "resume":
        FullBatchAccumulator([[0, 0, 4, 4]], store="run.zarr", mode="a").close()
    else:
        main([sys.argv[1], "run.zarr"])
except AccumulatorError as cause:
    error = repr(cause)
print(peak() - before, error)
"""
FEW = 64 * 2**20
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")


def peak_of(step):
    """Return what a step takes in memory at most, and the error that it ends with."""
    ran = subprocess.run([sys.executable, "-c", PEAK, step], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    nbytes, _, error = ran.stdout.splitlines()[-1].partition(" ")
    return int(nbytes), error + ran.stderr


def small_run(n=1, **storage):
    """Make a complete store of few rows; return the folder of its head."""
    locs = grid(n)
    with FullBatchAccumulator(locs, store="run.zarr", **storage) as accumulator:
        accumulator.push(np.ones((n, 6), "f4"), locs)
    accumulator.finalize().close()
    return Path("run.zarr/outputs/0")


MEMBERS = {
    "gzip": (zarr.codecs.GzipCodec, gzip.compress),
    "bz2": (zarr.codecs.numcodecs.BZ2, bz2.compress),
    "lzma": (zarr.codecs.numcodecs.LZMA, lzma.compress),
    "zlib": (zarr.codecs.numcodecs.Zlib, zlib.compress),
    "zstd": (zarr.codecs.ZstdCodec, numcodecs.Zstd().encode),
    "zstd, not said": (zarr.codecs.ZstdCodec, lambda data: attacks.zstd_bomb(len(data), is_known=False)),
}


@ON_LINUX
@pytest.mark.parametrize("name", list(MEMBERS))
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not")
def test_streams_behind_a_chunk_take_no_memory(name):
    """A quarter of a gigabyte, in many parts, follows a chunk of 24 bytes in its file."""
    codec, compress = MEMBERS[name]
    head = small_run(compressors=codec())
    with (head / "c.0.0").open("ab") as file:
        file.write(bytes(compress(bytes(2**24))) * 16)
    nbytes, error = peak_of("load")
    assert error.startswith("DamagedError")
    assert nbytes < FEW


@ON_LINUX
def test_pieces_of_a_shard_that_are_the_same_bytes_are_read_once():
    """An index that names a hole for each of 2000 pieces does not take 2000 times its bytes."""
    head = small_run(2000, shards=2048, compressors=zarr.codecs.ZstdCodec())
    hole = 2**18
    index = struct.pack("<QQ", 0, hole) * 2048
    (head / "c.0.0").write_bytes(bytes(hole) + attacks.with_crc(index))
    nbytes, error = peak_of("load")
    assert error.startswith("DamagedError")
    assert nbytes < FEW


@pytest.mark.parametrize("entry", [(0, 2**64 - 1), (2**64 - 1, 0), (2**64 - 1, 10), (10, 2**63)])
def test_index_of_a_shard_that_points_nowhere(entry):
    """What is neither a place nor none is damage; a length that is none would be all that is there."""
    head = small_run(3, shards=4, compressors=zarr.codecs.ZstdCodec())
    data = (head / "c.0.0").read_bytes()
    index = struct.pack("<QQ", *entry) * 4
    (head / "c.0.0").write_bytes(data[:-68] + attacks.with_crc(index))
    with FullBatch.load("run.zarr") as result, pytest.raises(DamagedError):
        result.outputs[0][:]


@ON_LINUX
@pytest.mark.parametrize("step", ["load", "info", "resume"])
@pytest.mark.parametrize(
    "file", ["zarr.json", "outputs/zarr.json", "outputs/0/zarr.json", "written/zarr.json"]
)
def test_hole_in_place_of_metadata_is_not_read(step, file):
    """Whichever group or array it belongs to."""
    small_run()
    os.truncate(Path("run.zarr", file), 2**28)
    nbytes, error = peak_of(step)
    assert f"{file} has 268435456 bytes" in error
    assert nbytes < FEW


def change_array(name, **changes):
    """Change an array's metadata, with all hashes right."""
    path = Path("run.zarr", name, "zarr.json")
    document = json.loads(path.read_text())
    shape = changes.pop("chunks", None)
    if shape is not None:
        document["chunk_grid"]["configuration"]["chunk_shape"] = shape
    path.write_text(json.dumps(document | changes))
    attacks.sign(Path("run.zarr"))


@ON_LINUX
@pytest.mark.parametrize("step", ["load", "info", "resume"])
def test_location_of_very_many_numbers_is_refused(step):
    """A hole of zeros with its CRC would be a row of millions of columns, and copies of it."""
    small_run()
    n = 2**24
    change_array("output_locs", shape=[1, n], chunks=[1, n], data_type="int8")
    change_array("output_locs", codecs=[{"name": "bytes"}, {"name": "crc32c"}])
    Path("run.zarr/output_locs/c.0.0").write_bytes(attacks.with_crc(bytes(n)))
    digest = hashlib.sha256(f"{n}:".encode() + bytes(8 * n)).hexdigest()
    if step != "resume":  # which refuses it before: the run has other locations
        sign(Path("run.zarr"), lambda mark: mark.update(locations=digest))
    nbytes, error = peak_of(step)
    assert "locations of 16777216 numbers each, and 1024 are the most" in error
    assert nbytes < FEW


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 0), (70000, 3), (2, 100_000)])
def test_hash_of_locations_is_that_of_their_rows(dtype, shape):
    """However many there are, and whatever their dtype and order in memory."""
    locs = np.random.default_rng(7).integers(0, 100, shape).astype(dtype)
    expected = hashlib.sha256(f"{shape[1]}:".encode() + locs.astype("<i8").tobytes()).hexdigest()
    assert hash_locations(locs) == hash_locations(np.asfortranarray(locs)) == expected


def test_record_is_refused_that_no_memory_has_room_for():
    """Its arrays count together, with what is made of them."""
    small_run(1000)
    numbers = 1000 * (1 + 1 + 4)
    _saved.open_result(Path("run.zarr"), most_nbytes=16 * numbers)
    with pytest.raises(ResultFormatError, match="a record of 1000 rows, which takes 96000 bytes, and 95999"):
        _saved.open_result(Path("run.zarr"), most_nbytes=16 * numbers - 1)


MIB = 2**20


@pytest.mark.parametrize(
    ("shape", "chunks", "compressors", "needed"),
    [
        ((100, 16 * MIB), (1, 16 * MIB), None, 16 * MIB),  # as the library writes it, whatever the machine
        ((100, 80 * MIB), (1, 80 * MIB), None, 80 * MIB),
        ((100, 80 * MIB), (1, 80 * MIB), "gzip", 240 * MIB),
        ((100, 100 * MIB), (1, 100 * MIB), None, 400 * MIB),
        ((100, 100 * MIB), (1, 100 * MIB), "gzip", 1200 * MIB),
        ((2, 100 * MIB), (1, 100 * MIB), "gzip", 600 * MIB),  # no more than there are
        ((1, 100 * MIB), (50, 100 * MIB), None, 5000 * MIB),
        ((0, 300 * MIB), (1, MIB), None, 900 * MIB),  # a row is made all the same
        ((100, 10, 10, MIB), (50, 1, 1, MIB), None, 2 * 3 * 5000 * MIB),  # rows of many pieces, all of them
    ],
)
def test_chunks_that_all_cores_read_at_once_fit_in_memory(monkeypatch, shape, chunks, compressors, needed):
    """Large ones count as often as they are there together, and with their copies."""
    monkeypatch.setattr("accumulator._stores.reading.trust.n_cores", lambda: 4)
    codec = None if compressors is None else zarr.codecs.GzipCodec()
    array = zarr.create_array({}, shape=shape, chunks=chunks, dtype="u1", compressors=codec)
    _trust.check_output(array, shape[0], needed, Path("0"))
    with pytest.raises(ResultFormatError, match=f"take {needed} bytes to check"):
        _trust.check_output(array, shape[0], needed - 1, Path("0"))

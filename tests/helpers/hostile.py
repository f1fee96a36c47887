"""Corrupted and hostile stores, made from good ones by a seed, and what the library must do with them.

As a command it is a worker: it reads seeds, one a line, and answers each with a line of JSON. It may use
little memory, and notes whatever is opened outside of the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import traceback
import warnings
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from google_crc32c import value as crc32c

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._cli.commands import main
from accumulator._stores.format.mark import MARK, digest
from accumulator.exceptions import AccumulatorError, DamagedError, StorageError, StorageWarning
from helpers.oracle import grid

N = 11
LOCS = grid(N)
ROWS = [0, 1, 2, 3, 7, 9]
MEMORY = 3 * 2**30
CANARY = b"canary" * 8
SIZES = {"map": ((2, 3), "f4"), "twin": ((2, 3), "f4"), "score": ((5,), "i2")}
ZSTD = zarr.codecs.ZstdCodec()
STORES = {  # heads, whether it is complete, options
    "raw": (["map", "score"], False, {"chunks": 2}),
    "raw complete": (["map", "twin"], True, {"chunks": 2}),
    "one chunk": (["map", "twin", "score"], True, {}),
    "fill": (["map", "score"], False, {"chunks": 3, "fill_value": 7}),
    "zstd": (["map", "twin"], False, {"chunks": 2, "compressors": ZSTD}),
    "zstd complete": (["map"], True, {"chunks": 4, "compressors": ZSTD, "fill_value": -1}),
    "gzip": (["map"], True, {"chunks": 4, "compressors": zarr.codecs.GzipCodec()}),
    "blosc": (["map"], False, {"chunks": 4, "compressors": zarr.codecs.BloscCodec()}),
    "sharded": (["map", "twin"], False, {"shards": 4}),
    "sharded zstd": (["map"], True, {"shards": 4, "compressors": ZSTD}),
    "pieces": (["map"], False, {"chunks": (2, 1, 2)}),
    "saved": (["map", "score"], None, {}),
    "saved zstd": (["map"], None, {"chunks": 4, "compressors": ZSTD}),
}


def values(name, version=0):
    """Return what is pushed to a head: never the fill value, and another one in every place."""
    shape, dtype = SIZES[name]
    first = 1 + 1000 * list(SIZES).index(name) + 500 * version
    size = N * int(np.prod(shape))
    return (np.arange(size) % 300 + first).astype(dtype).reshape(N, *shape)


def open_run(path, name, **options):
    """Open the run of a good store, or of what became of it."""
    return FullBatchAccumulator(
        LOCS, store=path, checkpoint_interval=float("inf"), **STORES[name][2], **options
    )


def batch(name, rows, version=0):
    """Return a batch of all heads of a store."""
    return {head: values(head, version)[rows] for head in STORES[name][0]}


def build(path, name, version=0):
    """Make a good store."""
    _, is_complete, options = STORES[name]
    if is_complete is None:
        with FullBatchAccumulator(LOCS, memory_threshold=100, **options) as accumulator:
            accumulator.push(batch(name, ROWS, version), LOCS[ROWS])
        accumulator.finalize().save(path)
        return
    accumulator = open_run(path, name)
    accumulator.push(batch(name, ROWS, version), LOCS[ROWS])
    if is_complete:
        accumulator.finalize().close()
    else:
        accumulator.close()


# What is done to a store. Each takes the dice, the store, a folder outside of it, and another store like it,
# whether it needs them or not.


def files_of(root, prefix=""):
    """Return the files of a store, in an order that does not depend on the file system."""
    return [p for p in below(root / prefix) if p.is_file() and not p.is_symlink()]


def below(folder):
    """Return whatever is below a folder, sorted, but nothing that is very deep."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found.append(path)
        if path.is_dir() and not path.is_symlink() and path.name != "d":
            found += below(path)
    return found


def pick(dice, things):
    """Return one of some things."""
    return things[int(dice.integers(len(things)))]


def some_file(dice, root):
    """Return a file: in half of all cases of rows."""
    chunks = [p for p in files_of(root, "outputs") if p.name != "zarr.json"]
    return pick(dice, chunks if chunks and dice.random() < 0.5 else files_of(root))


def flip(dice, root, outside, other):  # noqa: ARG001
    """Flip some bits of a file."""
    path = some_file(dice, root)
    data = bytearray(path.read_bytes())
    for _ in range(int(dice.integers(1, 4))):
        if data:
            data[int(dice.integers(len(data)))] ^= 1 << int(dice.integers(8))
    path.write_bytes(data)


def scramble(dice, root, outside, other):  # noqa: ARG001
    """Overwrite a stretch of a file with zeros or noise."""
    path = some_file(dice, root)
    data = bytearray(path.read_bytes())
    start = int(dice.integers(len(data) + 1))
    stop = min(len(data), start + int(dice.integers(1, 64)))
    data[start:stop] = bytes(stop - start) if dice.random() < 0.5 else dice.bytes(stop - start)
    path.write_bytes(data)


def cut(dice, root, outside, other):  # noqa: ARG001
    """Cut the end of a file."""
    path = some_file(dice, root)
    os.truncate(path, int(dice.integers(path.stat().st_size + 1)))


def extend(dice, root, outside, other):  # noqa: ARG001
    """Let a file be longer than it was, by a little or by a hole of gigabytes."""
    path = some_file(dice, root)
    if dice.random() < 0.3:
        os.truncate(path, int(dice.integers(2**32, 2**36)))
    else:
        path.write_bytes(path.read_bytes() + dice.bytes(int(dice.integers(1, 5000))))


def empty(dice, root, outside, other):  # noqa: ARG001
    """Leave nothing in a file."""
    some_file(dice, root).write_bytes(b"")


def remove(dice, root, outside, other):  # noqa: ARG001
    """Remove a file or a folder."""
    if dice.random() < 0.8:
        some_file(dice, root).unlink()
    else:
        shutil.rmtree(pick(dice, [p for p in below(root) if p.is_dir()]))


def remove_several(dice, root, outside, other):  # noqa: ARG001
    """Remove files of rows and of the record together, as a copy that was interrupted."""
    paths = files_of(root)
    for index in dice.permutation(len(paths))[: int(dice.integers(2, len(paths)))].tolist():
        paths[index].unlink()


def lose(dice, root, outside, other):  # noqa: ARG001
    """Lose checksums, and the rows too or their content."""
    for path in files_of(root, "checksums"):
        if path.name != "zarr.json":
            path.unlink()
    path = some_file(dice, root / "outputs")
    if dice.random() < 0.5:
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))


def swap(dice, root, outside, other):  # noqa: ARG001
    """Let two files change places, most often two that look alike."""
    first = some_file(dice, root)
    like = [p for p in files_of(root) if p != first and p.stat().st_size == first.stat().st_size]
    second = pick(dice, like if like and dice.random() < 0.8 else files_of(root))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])


def foreign(dice, root, outside, other):  # noqa: ARG001
    """Take a file of another run of the same locations."""
    path = some_file(dice, root)
    source = other / path.relative_to(root)
    if source.is_file():
        shutil.copyfile(source, path)


def as_folder(dice, root, outside, other):  # noqa: ARG001
    """Put a folder in place of a file, empty or not."""
    path = some_file(dice, root)
    path.unlink()
    path.mkdir()
    if dice.random() < 0.5:
        (path / pick(dice, ["zarr.json", "c.0", "x.partial"])).write_bytes(b"{}")


def as_file(dice, root, outside, other):  # noqa: ARG001
    """Put a file in place of a folder."""
    folder = pick(dice, [p for p in below(root) if p.is_dir()])
    shutil.rmtree(folder)
    folder.write_bytes(b"{}")


def clutter(dice, root, outside, other):  # noqa: ARG001
    """Add files and folders that nobody asked for, deep ones too."""
    folder = pick(dice, [root, *(p for p in below(root) if p.is_dir())])
    kind = int(dice.integers(6))
    if kind == 0:
        (
            folder / pick(dice, ["c.99.0.0", "c.x", "c.4", "zarr.json.1.partial", ".zarray", ".zgroup"])
        ).write_bytes(b"{}")
    elif kind == 1:
        (folder / pick(dice, ["c.5.0.0", "a.partial", "redo", "part", "c.5.0"])).mkdir(exist_ok=True)
    elif kind == 2:
        (folder / pick(dice, ["redo", "part"])).write_bytes(b"x")
    elif kind == 3:
        (folder / "redo").mkdir(exist_ok=True)
        for chunk in range(3):
            (folder / "redo" / str(chunk)).write_bytes(dice.bytes(48))
    elif kind == 4:
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text('{"accumulator": {}}')
    else:
        here = os.open(folder, os.O_RDONLY)
        try:
            for _ in range(1500):
                os.mkdir("d", dir_fd=here)  # deeper than most paths are
                deeper = os.open("d", os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = deeper
        finally:
            os.close(here)


def link(dice, root, outside, other):  # noqa: ARG001
    """Put a symbolic link in place of a file or a folder: out, within, to nowhere, to itself."""
    everything = [p for p in below(root) if not p.is_symlink()]
    path = pick(dice, everything)
    kind = int(dice.integers(5))
    if path.is_dir():
        target = outside / "folder"
        shutil.copytree(path, target, dirs_exist_ok=True)
        shutil.rmtree(path)
    else:
        target = outside / "canary" if kind < 2 else outside / "same"
        if kind >= 2:
            shutil.copyfile(path, target)
        path.unlink()
    if kind == 0:
        target = Path("/dev/zero")
    elif kind == 1:
        target = Path("nowhere")
    elif kind == 2:
        target = path
    elif kind == 3:
        target = Path(os.path.relpath(target, path.parent))
    path.symlink_to(target)


def plant_link(dice, root, outside, other):  # noqa: ARG001
    """Add a symbolic link where the library makes files and folders of its own."""
    head = root / "outputs" / "0"
    where = pick(
        dice,
        [head / "redo", head / "part", head / "c.2.0.0", head / "c.2.0", root / "x.partial", root / "redo"],
    )
    if not where.exists():
        target = pick(dice, [outside, outside / "canary", outside / "absent"])
        where.symlink_to(target if dice.random() < 0.5 else os.path.relpath(target, where.parent))


def device(dice, root, outside, other):  # noqa: ARG001
    """Put a FIFO, a socket or a device in place of a file, or beside it."""
    path = some_file(dice, root)
    if dice.random() < 0.7:
        path.unlink()
    else:
        path = path.with_name("c.5.0.0")
    if path.exists():
        return
    kind = int(dice.integers(3))
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)
    else:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            os.mkfifo(path)


def hard_link(dice, root, outside, other):  # noqa: ARG001
    """Let a file be one that has another name outside: its own content, or another."""
    path = some_file(dice, root)
    if dice.random() < 0.5:
        os.link(path, outside / "same")
    else:
        path.unlink()
        os.link(outside / "canary", path)


HOSTILE = [
    None, True, 0, -1, 1, 2, 3, 10**15, 2**62, 2**63, 2**64, 10**400, -(10**15), 0.5, 1e300, float("nan"),
    float("inf"), "", "x", "../../outside/canary", "\ud800", "a" * 5000, [], {}, [[]], [None], {"name": None},
    [10**15], [0], "float64", "int8", "bool", "complex128", "string", "bytes", "numpy.datetime64", "r16",
    {"name": "numpy.void"}, {"name": "structured", "configuration": {"fields": [["a", "int8"]]}}, "NaN",
    "0x00", "big", "little", "v2", "default", ".", "/", "creating", "running", "complete", 1.0, 2.0,
]  # fmt: skip
CODECS = [
    "bytes", "transpose", "gzip", "zstd", "blosc", "crc32c", "sharding_indexed", "vlen-utf8", "vlen-bytes",
    "numcodecs.pickle", "numcodecs.lzma", "numcodecs.delta", "numcodecs.packbits", "numcodecs.astype",
    "numcodecs.zfpy", "numcodecs.", "os.system", "../codec", "", "cast_value", "scale_offset",
]  # fmt: skip
SETTINGS = [
    {}, None, [], 7, {"endian": "big"}, {"endian": "little"}, {"order": [1, 0, 2]}, {"order": [2, 1, 0]},
    {"level": 5}, {"level": 10**9}, {"level": 1, "checksum": True}, {"codecs": 5},
    {"codecs": [{"name": "numcodecs.pickle"}]},
    {"chunk_shape": [1, 1, 1], "codecs": [{"name": "bytes"}], "index_codecs": [{"name": "bytes"}]},
    {"chunk_shape": [0, 0, 0], "codecs": [], "index_codecs": []}, {"dtype": "<i4"}, {"id": "pickle"},
]  # fmt: skip


def places(document, path=()):
    """Return the path of every value of a JSON document."""
    found = [path]
    if isinstance(document, dict):
        found += [each for key in document for each in places(document[key], (*path, key))]
    elif isinstance(document, list):
        found += [each for index in range(len(document)) for each in places(document[index], (*path, index))]
    return found


def change(dice, document):
    """Change one thing in a JSON document, which is not empty."""
    path = pick(dice, places(document)[1:])
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    key, kind = path[-1], int(dice.integers(8))
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[pick(dice, ["../x", "accumulator", "name", "0", "\x1b", "shape"])] = parent.pop(key)
    elif kind == 2 and isinstance(parent, dict):
        extra = pick(
            dice, ["must_understand", "storage_transformers", "consolidated_metadata", "dimension_names"]
        )
        parent[extra] = pick(dice, HOSTILE)
    elif kind == 3:
        deep = 0
        for _ in range(pick(dice, [30, 300, 480, 900])):
            deep = [deep] if dice.random() < 0.5 else {"configuration": deep}
        parent[key] = deep
    elif kind == 4 and isinstance(parent[key], list):
        parent[key] = parent[key] * 2 if dice.random() < 0.5 else parent[key][:-1]
    else:
        parent[key] = pick(dice, HOSTILE)


def write_json(path, document):
    """Write it if JSON can say it."""
    with contextlib.suppress(RecursionError):
        path.write_text(json.dumps(document))


def change_json(dice, root, outside, other):  # noqa: ARG001
    """Change metadata, and leave all hashes as they were."""
    path = pick(dice, [p for p in files_of(root) if p.name == "zarr.json"])
    document = json.loads(path.read_text())
    for _ in range(int(dice.integers(1, 3))):
        if document:
            change(dice, document)
    write_json(path, document)


def garble_json(dice, root, outside, other):  # noqa: ARG001
    """Put something else where metadata was: no JSON, or JSON that is deep, long, or of another kind."""
    path = pick(dice, [p for p in files_of(root) if p.name == "zarr.json"])
    texts = [
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "null",
        "[]",
        "7",
        '"x"',
        "{}",
        "\x00" * 100,
        "9" * 5000,
    ]
    path.write_bytes(
        [*map(str.encode, texts), b"\xff\xfe", b'{"a": 1} x'][int(dice.integers(len(texts) + 2))]
    )


def consolidate(dice, root, outside, other):  # noqa: ARG001
    """Add consolidated metadata that says otherwise than the arrays' own."""
    path = pick(dice, [root / "zarr.json", root / "outputs" / "zarr.json"])
    group = json.loads(path.read_text())
    arrays = {}
    for file in files_of(path.parent):
        if file.name == "zarr.json" and file != path:
            arrays[str(file.parent.relative_to(path.parent))] = json.loads(file.read_text())
    name = pick(dice, [name for name in arrays if name != "outputs"])
    if dice.random() < 0.5:
        change(dice, arrays[name])
    else:
        arrays[name]["codecs"].append({"name": pick(dice, CODECS), "configuration": pick(dice, SETTINGS)})
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    write_json(path, group)


# What an attacker does who knows the digests. Rows and their checksums are as they were.


def sign(root):
    """Make hashes and digest right again, as an attacker would."""
    mark = json.loads((root / "zarr.json").read_text())["attributes"][MARK]
    for name in mark["arrays"]:
        path = root / name / "zarr.json"
        mark["arrays"][name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    set_mark(root, mark)


def set_mark(root, mark):
    """Write a mark with a right digest."""
    path = root / "zarr.json"
    group = json.loads(path.read_text())
    with contextlib.suppress(RecursionError):
        group["attributes"][MARK] = mark | {
            "digest": digest({k: v for k, v in mark.items() if k != "digest"})
        }
        write_json(path, group)


def attack_mark(dice, root, outside, other):  # noqa: ARG001
    """Change what the mark says."""
    mark = json.loads((root / "zarr.json").read_text())["attributes"][MARK]
    kind = int(dice.integers(5))
    if kind == 0:
        mark["n_heads"] = pick(dice, [10**15, 0, 1, 2**61, 10**8])
        mark["names"] = None
    elif kind == 1:
        mark["n_rows"] = pick(dice, [10**15, 0, 1, 2**61, N - 1, N + 1])
    elif kind == 2 and mark["names"]:
        mark["names"][0] = pick(
            dice, ["../../outside/canary", "\x1b[2J", "\ud800", "", "a" * 10**6, "/etc/passwd"]
        )
    else:
        mark.pop("digest")
        change(dice, mark)
    set_mark(root, mark)


def some_array(dice, root):
    """Return the metadata file of an array."""
    return pick(
        dice,
        [
            p
            for p in files_of(root)
            if p.name == "zarr.json" and p.parent != root and p.parent.name != "outputs"
        ],
    )


def attack_array(dice, root, outside, other):  # noqa: ARG001
    """Change an array's metadata anyhow."""
    path = some_array(dice, root)
    document = json.loads(path.read_text())
    for _ in range(int(dice.integers(1, 3))):
        change(dice, document)
    write_json(path, document)
    sign(root)


def attack_layout(dice, root, outside, other):  # noqa: ARG001
    """Say huge or odd shapes, chunks, shards, dtypes, fill values and names of chunks."""
    path = pick(dice, [root / "outputs" / "0" / "zarr.json", some_array(dice, root)])
    document = json.loads(path.read_text())
    kind, axis = int(dice.integers(9)), int(dice.integers(len(document["shape"])))
    huge = pick(dice, [10**15, 10**9, 10**8, 10**7, 2**31, 0, 1, 2**62])
    if kind == 0:
        document["shape"][axis] = huge
    elif kind == 1:
        document["chunk_grid"]["configuration"]["chunk_shape"][axis] = huge
    elif kind == 2:
        document["shape"][axis] = document["chunk_grid"]["configuration"]["chunk_shape"][axis] = huge
    elif kind == 3:
        document["data_type"] = pick(
            dice, ["float64", "int8", "int32", "uint32", "float32", "bool", "string", "r8"]
        )
    elif kind == 4:
        document["fill_value"] = pick(dice, [0, 1, "NaN", "0x7fc00000", -1, 1e300, None, "x", [0, 0]])
    elif kind == 5:
        document["chunk_key_encoding"] = pick(
            dice,
            [
                {"name": "v2", "configuration": {"separator": "."}},
                {"name": "default", "configuration": {"separator": "/"}},
                {"name": "default", "configuration": {"separator": "../"}},
                {"name": "../default"},
            ],
        )
    elif kind == 6:
        inner = [{"name": "bytes", "configuration": {"endian": "little"}}]
        size = pick(
            dice, [[1] * len(document["shape"]), document["chunk_grid"]["configuration"]["chunk_shape"]]
        )
        document["codecs"] = [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": size,
                    "codecs": inner,
                    "index_codecs": [*inner, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ]
        if dice.random() < 0.7:
            document["chunk_grid"]["configuration"]["chunk_shape"][axis] = huge
    elif kind == 7:
        document["shape"] += [huge]
        document["chunk_grid"]["configuration"]["chunk_shape"] += [pick(dice, [1, huge])]
    else:
        document["shape"] = [1] * int(dice.integers(1, 70))
    write_json(path, document)
    sign(root)


def attack_codecs(dice, root, outside, other):  # noqa: ARG001
    """Ask for codecs that run code, that are not there, or that turn rows around."""
    path = some_array(dice, root)
    document = json.loads(path.read_text())
    codec = {"name": pick(dice, CODECS), "configuration": pick(dice, SETTINGS)}
    if dice.random() < 0.2:
        codec = codec["name"]
    codecs = document["codecs"]
    kind = int(dice.integers(4))
    if kind == 0:
        codecs.append(codec)
    elif kind == 1:
        codecs.insert(0, codec)
    elif kind == 2:
        codecs[int(dice.integers(len(codecs)))] = codec
    else:
        document["codecs"] = [codec]
    write_json(path, document)
    sign(root)


def attack_consolidated(dice, root, outside, other):
    """Add consolidated metadata that asks for what arrays must not."""
    consolidate(dice, root, outside, other)
    sign(root)


def with_crc(data):
    """Return bytes with their CRC."""
    return data + struct.pack("<I", crc32c(data))


def attack_record(dice, root, outside, other):  # noqa: ARG001
    """Write values into the record that nobody would."""
    name = pick(dice, ["written", "output_locs"])
    path = next(p for p in files_of(root, name) if p.name != "zarr.json")
    data = bytearray(path.read_bytes()[:-4])
    if name == "written":
        data[:] = bytes(int(b) * int(dice.integers(1, 256)) for b in data)
    else:
        meta = root / name / "zarr.json"
        document = json.loads(meta.read_text())
        document["data_type"], document["fill_value"] = "float64", 0.0
        write_json(meta, document)
        array = LOCS.astype("<f8")
        if dice.random() < 0.7:
            array[int(dice.integers(N)), 0] = pick(dice, [np.nan, np.inf, 0.5, 1e300])
        data = bytearray(array.tobytes())
    path.write_bytes(with_crc(bytes(data)))
    sign(root)


def zstd_bomb(nbytes, *, is_known):
    """Return a frame of zeros: blocks of 128 KiB that are one repeated byte."""
    header = b"\x28\xb5\x2f\xfd" + (b"\xc0\x38" + struct.pack("<Q", nbytes) if is_known else b"\x00\x38")
    n = nbytes // 2**17
    block = struct.pack("<I", (2**17 << 3) | 2)[:3] + b"\x00"
    last = struct.pack("<I", (2**17 << 3) | 3)[:3] + b"\x00"
    return header + block * (n - 1) + last


def gzip_bomb(nbytes):
    """Return zeros, compressed: one stretch again and again."""
    step = 2**24
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(step)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + block * (nbytes // step) + b"\x03\x00" + bytes(8)


def bomb(dice, root, outside, other):  # noqa: ARG001
    """Put a file that would take gigabytes in memory where a compressed chunk was, whatever compresses it."""
    head = json.loads((root / "outputs" / "0" / "zarr.json").read_text())
    names = [codec["name"] for codec in head["codecs"]]
    nbytes = pick(dice, [2**28, 2**33, 2**35])
    if dice.random() < 0.3 or names == ["bytes"]:
        name = pick(dice, ["zstd", "gzip", "blosc"])
        head["codecs"] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": name, "configuration": {}},
        ]
        if name == "blosc":
            head["codecs"][1]["configuration"] = {
                "cname": "lz4", "clevel": 1, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0,
            }  # fmt: skip
        write_json(root / "outputs" / "0" / "zarr.json", head)
        sign(root)
        names = ["bytes", name]
    chunks = [p for p in files_of(root, "outputs/0") if p.name != "zarr.json"]
    if not chunks:
        return
    data = zstd_bomb(nbytes, is_known=bool(dice.random() < 0.5))
    if "gzip" in names:
        data = gzip_bomb(min(nbytes, 2**33))
    elif "blosc" in names:
        data = bytearray(numcodecs.Blosc("lz4").encode(bytes(2**20)))
        data[4:8] = struct.pack("<I", pick(dice, [2**31 - 100, 2**28, 2**32 - 1]))
        data = bytes(data)
    elif "sharding_indexed" in names:
        n_inner = 4
        index = b"".join(struct.pack("<QQ", 0, len(data)) for _ in range(n_inner))
        data += with_crc(index)
    path = pick(dice, chunks)
    if dice.random() < 0.3:  # behind what was there: further parts of a stream, which decoders go on with
        data = path.read_bytes() + data
    path.write_bytes(data)


def attack_shard(dice, root, outside, other):  # noqa: ARG001
    """Write an index of a shard that points anywhere."""
    chunks = [p for p in files_of(root, "outputs/0") if p.name != "zarr.json"]
    path = pick(dice, chunks)
    data = path.read_bytes()
    if len(data) < 68:
        return
    index = bytearray(data[-68:-4])
    for _ in range(int(dice.integers(1, 4))):
        at = 8 * int(dice.integers(8))
        index[at : at + 8] = struct.pack(
            "<Q", pick(dice, [0, 1, 24, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, 2**64 - 2])
        )
    path.write_bytes(data[:-68] + with_crc(bytes(index)))


ACCIDENTS = [
    flip, scramble, cut, extend, empty, remove, remove_several, lose, swap, foreign, as_folder, as_file,
    clutter, link, plant_link, device, hard_link, change_json, garble_json, consolidate, attack_shard,
]  # fmt: skip
ATTACKS = [attack_mark, attack_array, attack_layout, attack_codecs, attack_consolidated, attack_record, bomb]
WHERE_FITTING = {attack_shard: ["sharded", "sharded zstd"]}


# What the library must do


class WrongError(AssertionError):
    """It did not."""


opened_outside: list[str] = []
guarded: list[str] = []


def watch(event, arguments):
    """Note whatever is opened outside of the store, and whatever would run code."""
    if not guarded:
        return
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if path.startswith(guarded[0]) or path == "/dev/zero":
            opened_outside.append(path)
    elif event in {
        "pickle.find_class",
        "os.system",
        "os.exec",
        "subprocess.Popen",
        "socket.connect",
        "marshal.loads",
    }:
        if event == "marshal.loads":  # a module that is imported late
            return
        opened_outside.append(event)


def same(row, expected, *, is_attacked):
    """Whether a row is what was pushed; an attacker may have changed how its bytes are called."""
    found = np.ascontiguousarray(row)
    found = found.astype(found.dtype.newbyteorder("<"), copy=False).tobytes()
    if is_attacked and len(found) != expected.nbytes:
        return True
    return found == expected.tobytes()


def check_result(result, name, *, is_attacked):
    """Read every row; return whether all could be read."""
    heads = STORES[name][0]
    outputs = list(result.outputs.values()) if isinstance(result.outputs, dict) else result.outputs
    if not is_attacked and not np.array_equal(result.output_locs, LOCS):
        raise WrongError("other locations")
    if not is_attacked and list(result.outputs) != heads:
        raise WrongError("other heads")
    is_whole = True
    for head, array in zip(heads, outputs, strict=not is_attacked):
        for row in range(min(len(result.written), 2 * N)):
            try:
                found = array[row]
            except (DamagedError, StorageError):  # the latter where a chunk is as large as the memory
                is_whole = False
                continue
            is_written = bool(result.written[row])
            if is_written and row < N and not same(found, values(head)[row], is_attacked=is_attacked):
                raise WrongError(f"row {row} of {head} is wrong: {found.tolist()}")
            if is_written and row not in ROWS and not is_attacked:
                raise WrongError(f"row {row} is said to be written")
        try:
            array[:]
        except (DamagedError, StorageError):
            is_whole = False
    return is_whole


def check_loading(root, name, *, is_attacked):
    """Load it both ways; return what came of it."""
    outcome = "refused"
    for partial in (False, True):
        with contextlib.suppress(AccumulatorError), FullBatch.load(root, partial=partial) as result:
            outcome = "loaded" if check_result(result, name, is_attacked=is_attacked) else "damaged"
            if not (partial or is_attacked) and np.flatnonzero(result.written).tolist() != sorted(ROWS):
                raise WrongError("other rows are said to be written")
    return outcome


def check_commands(root, outcome):
    """Run the commands: an exit code, one line where it fails, and the same verdict."""
    for command in ("info", "missing", "verify"):
        for option in ([], ["--json"]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([command, str(root), *option])
            if err.getvalue().count("\n") != bool(err.getvalue()) or "Traceback" in err.getvalue():
                raise WrongError(f"{command} says {err.getvalue()}")
            if option and out.getvalue():
                json.loads(out.getvalue())
            if "\x1b" in out.getvalue() + err.getvalue():
                raise WrongError(f"{command} prints control characters")
    if code not in {0, 1} or (code == 0) != (outcome == "loaded"):
        raise WrongError(
            f"verify ends with {code}, and the store is {outcome}: {out.getvalue()} {err.getvalue()}"
        )


def check_resuming(root, name, *, is_attacked):
    """Resume it, push all that is missing, and compare; return what came of it."""
    try:
        accumulator = open_run(root, name, mode="a")
    except AccumulatorError:
        return "refused"
    try:
        rows = accumulator.missing_rows()
        if not is_attacked and not set(range(N)) - set(ROWS) <= set(rows.tolist()):
            raise WrongError("rows are there that never came")
        accumulator.push(batch(name, rows), LOCS[rows])
        result = accumulator.finalize()
    except AccumulatorError:
        with contextlib.suppress(AccumulatorError):
            accumulator.close()
        return "refused when pushed"
    if is_attacked:
        return "resumed"
    with result, FullBatch.load(root) as again:
        for each in (result, again):
            if not each.written.all():
                raise WrongError("rows are missing after all were pushed")
            for head in STORES[name][0]:
                if not np.array_equal(each.outputs[head][:], values(head)):
                    raise WrongError(f"{head} is wrong after resuming")
    return "resumed"


def outside_state(folder):
    """Return what lies outside: names, bytes and times."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None
        for p in below(folder)
    }


def check_outside(folder, before):
    """Fail if anything outside was opened, run or changed."""
    guarded.clear()
    if opened_outside:
        raise WrongError(f"opened or run: {opened_outside}")
    if outside_state(folder) != before:
        raise WrongError("something outside was changed")


def make_case(seed, templates, folder):
    """Make the store of a seed; return its name, what was done, and whether by an attacker."""
    dice = np.random.default_rng(seed)
    is_attacked = bool(dice.random() < 0.35)
    deeds = [pick(dice, ATTACKS if is_attacked else ACCIDENTS) for _ in range(pick(dice, [1, 1, 1, 2]))]
    name = pick(dice, list(STORES))
    for deed in deeds:
        name = pick(dice, WHERE_FITTING.get(deed, [name]))
    shutil.copytree(templates / name, folder / "store")
    (folder / "outside").mkdir()
    (folder / "outside" / "canary").write_bytes(CANARY)
    for deed in deeds:
        with contextlib.suppress(
            LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError, StopIteration
        ):  # fmt: skip  the first deed left nothing to do for the second
            deed(dice, folder / "store", folder / "outside", templates / f"{name}, other")
    return name, [deed.__name__ for deed in deeds], is_attacked


def run_case(seed, templates, folder):
    """Make a store, try everything with it; return what was done and what came of it."""
    answer = {"seed": seed, "outcome": [], "error": None}
    warnings.simplefilter("error")
    warnings.simplefilter("always", StorageWarning)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("error")
        warnings.simplefilter("always", StorageWarning)
        for step in ("load", "resume"):
            subprocess.run(["rm", "-rf", "--", str(folder)], check=True)  # noqa: S607  however deep it is
            folder.mkdir()
            name, answer["deeds"], is_attacked = make_case(seed, templates, folder)
            answer["store"] = name
            before = outside_state(folder / "outside")
            opened_outside.clear()
            guarded[:] = [os.path.realpath(folder / "outside")]
            try:
                if step == "load":
                    outcome = check_loading(folder / "store", name, is_attacked=is_attacked)
                    check_commands(folder / "store", outcome)
                else:
                    outcome = check_resuming(folder / "store", name, is_attacked=is_attacked)
                answer["outcome"].append(outcome)
                check_outside(folder / "outside", before)
            except Exception:  # noqa: BLE001  whatever else comes is what is looked for
                answer["error"] = traceback.format_exc()
                break
            finally:
                guarded.clear()
    return answer


def work(templates, folder):
    """Answer each seed that is read with a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.addaudithook(watch)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(run_case(int(line), Path(templates), Path(folder))) + "\n")
        answers.flush()


def build_all(templates):
    """Make all good stores, each with another one like it."""
    for name in STORES:
        build(templates / name, name)
        build(templates / f"{name}, other", name, version=1)


if __name__ == "__main__":
    work(*sys.argv[1:])

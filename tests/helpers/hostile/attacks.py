"""What an attacker does who knows the digests. Rows and their checksums are as they were."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zlib

import numcodecs
import numpy as np
from google_crc32c import value as crc32c

from accumulator._stores.format.mark import MARK, digest
from helpers.hostile.accidents import CODECS, SETTINGS, change, consolidate, files_of, pick, write_json
from helpers.hostile.stores import LOCS, N


def sign(root):
    """Make hashes and digest right again, as an attacker would."""
    mark = json.loads((root / "zarr.json").read_text())["attributes"][MARK]
    for name in mark["arrays"]:
        path = root / name / "zarr.json"
        mark["arrays"][name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    set_mark(root, mark)


def head_of(root):
    """Return the folder of a head: the first by name, or where one without a name would lie."""
    folders = [path for path in sorted((root / "outputs").glob("*")) if path.is_dir()]
    return folders[0] if folders else root / "outputs" / "0"


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
    path = pick(dice, [head_of(root) / "zarr.json", some_array(dice, root)])
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
    head = json.loads((head_of(root) / "zarr.json").read_text())
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
        write_json(head_of(root) / "zarr.json", head)
        sign(root)
        names = ["bytes", name]
    chunks = [p for p in files_of(root, head_of(root).relative_to(root)) if p.name != "zarr.json"]
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
    chunks = [p for p in files_of(root, head_of(root).relative_to(root)) if p.name != "zarr.json"]
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


ALL = [attack_mark, attack_array, attack_layout, attack_codecs, attack_consolidated, attack_record, bomb]

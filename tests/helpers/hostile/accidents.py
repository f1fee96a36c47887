"""What happens to stores. Each takes the dice, the store, a folder outside of it, and another store like it.

It takes them whether it needs them or not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path


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
    head = next(iter(sorted(path for path in (root / "outputs").glob("*") if path.is_dir())), root / "0")
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


ALL = [
    flip, scramble, cut, extend, empty, remove, remove_several, lose, swap, foreign, as_folder, as_file,
    clutter, link, plant_link, device, hard_link, change_json, garble_json, consolidate,
]  # fmt: skip

"""A process of its own that removes, cuts and replaces files below a folder, as it is told."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from pathlib import Path


def remove(path, chance):
    """Remove a file, or a folder with all that is in it."""
    del chance
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path, chance):
    """Leave only the beginning of a file."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def lengthen(path, chance):
    """Add bytes to a file."""
    with path.open("ab") as file:
        file.write(chance.randbytes(1 + chance.randrange(100)))


def overwrite(path, chance):
    """Write other bytes over those of a file, in place, and set its time back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(chance.randbytes(before.st_size))
    if chance.random() < 0.5:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path, chance):
    """Put another file of the same size in a file's place, perhaps with its time."""
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(chance.randbytes(before.st_size))
    if chance.random() < 0.5:
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def blank(path, chance):
    """Let a file hold zeros."""
    del chance
    path.write_bytes(bytes(path.stat().st_size))


def swap(path, chance):
    """Give a file and one beside it each other's names."""
    other, aside = chance.choice(sorted(path.parent.iterdir())), path.with_name("aside")
    if other != path:
        path.rename(aside)
        other.rename(path)
        aside.rename(other)


def copy(path, chance):
    """Let a file beside it, which may not be there, hold what a file holds."""
    head, _, tail = path.name.partition(".")
    number, _, rest = tail.partition(".")
    twin = int(number) + chance.choice([-1, 1])
    shutil.copyfile(path, path.with_name(f"{head}.{twin}.{rest}"))


def obstruct(path, chance):
    """Put a folder, a link or a pipe in a file's place."""
    size = path.stat().st_size
    path.unlink()
    kind = chance.randrange(3)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        path.with_name("other").write_bytes(bytes(size))
        path.symlink_to("other")
    else:
        os.mkfifo(path)


def touch(path, chance):
    """Change what is no content: it harms nothing."""
    del chance
    path.chmod(path.stat().st_mode ^ 0o044)


ACTS = {
    act.__name__: act
    for act in (remove, cut, lengthen, overwrite, replace, blank, swap, copy, obstruct, touch)
}


def main():
    """For each line, ``[act, seed, path]`` in JSON, do it, and say so."""
    for line in sys.stdin:
        name, seed, path = json.loads(line)
        with contextlib.suppress(OSError, ValueError):  # it did something to it before
            act = remove if Path(path).is_fifo() else ACTS[name]  # to write would never end
            act(Path(path), random.Random(seed))  # noqa: S311  no secret
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A file system that crashes: what was asked of it is logged, and given back as a crash may leave it.

The model is the strictest that POSIX allows. The bytes of a file are safe once it was synced; of those
written since, any may be there, and one write may be there in part. A name is safe once its folder was
synced; of changes of names since, any may have happened. A renaming happens or it does not.
"""

from __future__ import annotations

import inspect
import os
import textwrap
import threading
from pathlib import Path

CREATE, WRITE, SIZE, SYNC_FILE, SYNC_FOLDER, RENAME, REMOVE, FOLDER, NOTE = range(9)


class Log:
    """Stands for the modules ``os`` and ``shutil``, below one folder, and remembers every change."""

    def __init__(self, base):
        self.base, self.entries = Path(base), []
        self._lock, self._names, self._open, self._next = threading.RLock(), {}, {}, 0

    def __getattr__(self, name):
        return getattr(os, name)

    def note(self, fact):
        """Remember something that is no change of a file."""
        with self._lock:
            self.entries.append((NOTE, fact))

    def _name(self, path):
        return str(Path(path).relative_to(self.base))

    def open(self, path, flags, mode=0o777):
        """Open a file or a folder."""
        with self._lock:
            there = os.path.lexists(path)
            descriptor = os.open(path, flags, mode)
            name = self._name(path)
            if os.path.isdir(path):
                self._open[descriptor] = name
                return descriptor
            if not there:
                self._next += 1
                self._names[name] = self._next
                self.entries.append((CREATE, name, self._next))
            elif flags & os.O_TRUNC:
                self.entries.append((SIZE, self._names[name], 0))
            self._open[descriptor] = self._names[name]
            return descriptor

    def write(self, descriptor, content):
        """Write to a file."""
        with self._lock:
            at = os.lseek(descriptor, 0, os.SEEK_CUR)
            n = os.write(descriptor, content)
            self.entries.append((WRITE, self._open[descriptor], at, bytes(content[:n])))
            return n

    def ftruncate(self, descriptor, size):
        """Set a file's size."""
        with self._lock:
            os.ftruncate(descriptor, size)
            self.entries.append((SIZE, self._open[descriptor], size))

    def posix_fallocate(self, descriptor, offset, size):
        """Give a file room, and so its size."""
        with self._lock:
            os.posix_fallocate(descriptor, offset, size)
            self.entries.append((SIZE, self._open[descriptor], offset + size))

    def fsync(self, descriptor):
        """Sync a file or a folder; there is no need to wait for a real disk."""
        with self._lock:
            what = self._open[descriptor]
            self.entries.append((SYNC_FOLDER if isinstance(what, str) else SYNC_FILE, what))

    def replace(self, source, target):
        """Rename a file."""
        with self._lock:
            os.replace(source, target)
            a, b = self._name(source), self._name(target)
            self._names[b] = self._names.pop(a)
            self.entries.append((RENAME, a, b, self._names[b]))

    def rename(self, source, target):
        """Rename a file or a folder."""
        with self._lock:
            a, b = self._name(source), self._name(target)
            os.rename(source, target)
            if a in self._names:
                self._names[b] = self._names.pop(a)
            for name in [name for name in self._names if name.startswith(f"{a}/")]:
                self._names[b + name[len(a) :]] = self._names.pop(name)
            self.entries.append((RENAME, a, b, self._names.get(b)))

    def start_from(self, folder):
        """Take note of files that are there already, and return them as a `crash` may start from."""
        start = {}
        for path in sorted(Path(folder).rglob("*")):
            if path.is_dir():
                start[self._name(path)] = None
            else:
                self._next += 1
                self._names[self._name(path)] = self._next
                start[self._name(path)] = self._next, path.read_bytes()
        return start

    def unlink(self, path):
        """Remove a file."""
        with self._lock:
            os.unlink(path)
            self._names.pop(self._name(path), None)
            self.entries.append((REMOVE, self._name(path)))

    def rmdir(self, path):
        """Remove a folder."""
        with self._lock:
            os.rmdir(path)
            self.entries.append((REMOVE, self._name(path)))

    def rmtree(self, path):
        """Remove a folder and all that is in it, one after the other."""
        with self._lock:
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                (self.rmtree if entry.is_dir(follow_symlinks=False) else self.unlink)(entry.path)
            self.rmdir(path)

    def mkdir(self, path, mode=0o777):
        """Make a folder."""
        with self._lock:
            os.mkdir(path, mode)
            self.entries.append((FOLDER, self._name(path)))


def everything(n=True):  # noqa: FBT002
    """Keep all bytes of a write, and a change of names: what `crash` has then is what is there."""
    return n


def crash(entries, keeps_bytes, keeps_name, start=()):
    """Return what a crash behind these entries leaves: names with bytes, None for a folder.

    Parameters
    ----------
    entries : list
        Of a log, up to the crash.
    keeps_bytes : callable
        From a write that was not synced to how many of its bytes are there; None for no sign of it.
    keeps_name : callable
        Whether a change of names that was not synced has happened.
    start : dict, optional
        What was on the disk before, of `Log.start_from`.
    """
    synced_files, synced_folders = {}, {}
    for number, (kind, what, *_) in enumerate(entries):
        if kind == SYNC_FILE:
            synced_files[what] = number
        elif kind == SYNC_FOLDER:
            synced_folders[what] = number
    start = dict(start)
    files = {there[0]: bytearray(there[1]) for there in start.values() if there is not None}
    names = {name: None if there is None else there[0] for name, there in start.items()}
    for number, (kind, what, *more) in enumerate(entries):
        if kind in {WRITE, SIZE}:
            _change(
                files.setdefault(what, bytearray()),
                kind,
                more,
                number < synced_files.get(what, -1),
                keeps_bytes,
            )
        elif kind in {CREATE, RENAME, REMOVE, FOLDER}:
            folders = {str(Path(name).parent) for name in (what, *more[:1]) if isinstance(name, str)}
            is_synced = any(number < synced_folders.get(folder, -1) for folder in folders)
            if is_synced or keeps_name():
                _change_name(names, kind, what, more)
    return {name: None if file is None else bytes(files.get(file, b"")) for name, file in names.items()}


def _change_name(names, kind, what, more):
    if kind in {REMOVE, RENAME}:
        there = names.pop(what, None)
    if kind == RENAME:
        names[more[0]] = more[1]
        if more[1] is None:  # a folder, with all that is in it
            names[more[0]] = there
            for name in [name for name in names if name.startswith(f"{what}/")]:
                names[more[0] + name[len(what) :]] = names.pop(name)
    elif kind != REMOVE:
        names[what] = more[0] if kind == CREATE else None


def _change(content, kind, more, is_synced, keeps_bytes):
    if kind == SIZE:
        size = more[0]
        if is_synced or keeps_bytes(1):
            del content[size:]
            content.extend(bytes(size - len(content)))
        return
    at, new = more
    n = len(new) if is_synced else keeps_bytes(len(new))
    if n:
        content.extend(bytes(max(0, at + n - len(content))))
        content[at : at + n] = new[:n]


def lay_out(tree, folder):
    """Make the files; what lies in a folder that is not there is lost."""
    for name in sorted(tree):
        path = folder / name
        if path.parent.is_dir():
            if tree[name] is None:
                path.mkdir()
            else:
                path.write_bytes(tree[name])


def policies(rng):
    """Return the ways in which a crash keeps what was not synced."""
    return {
        "nothing": (lambda _: 0, lambda: False),
        "names alone": (lambda _: 0, lambda: True),
        "bytes alone": (lambda n: n, lambda: False),
        "everything": (lambda n: n, lambda: True),
        "some": (
            lambda n: rng.choice([0, n, rng.randrange(n + 1)]),
            lambda: rng.random() < 0.5,
        ),
        "most": (lambda n: n if rng.random() < 0.9 else 0, lambda: rng.random() < 0.9),
    }


def mutate(monkeypatch, owner, name, old, new):
    """Change one line of a method."""
    method = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(method))
    assert source.count(old) == 1, (name, old)
    names = dict(vars(inspect.getmodule(method)))
    made = {}
    text = "from __future__ import annotations\n" + source.replace(old, new)
    exec(compile(text, name, "exec"), names, made)  # noqa: S102  our own method
    monkeypatch.setattr(owner, name, made[name])

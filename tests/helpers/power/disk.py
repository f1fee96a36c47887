"""Files and folders in memory, and what a power cut leaves of them.

The model is the strictest that POSIX allows, as `helpers.crashes` has it for a log of calls. Only what was
synced is safe: a file's bytes and size by a sync of the file, a name by a sync of its folder; syncing a file
does not keep its name. A page that was not synced is any of those it was since, or torn between them, each
sector whole. So is a size; what it shows of lost pages are zeros. Changes of names that were not synced
happen or not, each by itself; a renaming happens as a whole or not at all.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import PurePosixPath

PAGE, SECTOR = 4096, 512
_HOLE = bytes(PAGE)
ROOT = 1


class File:
    """A file's pages and size, each with all that it was since it was synced last, oldest first."""

    def __init__(self):
        self.pages, self.sizes = {}, [0]

    @property
    def size(self):
        """Return how many bytes it has."""
        return self.sizes[-1]

    def read(self, start, size):
        """Return bytes; fewer at its end."""
        stop = min(start + size, self.size)
        if stop <= start:
            return b""
        numbers = range(start // PAGE, -(-stop // PAGE))
        found = b"".join(self.pages.get(number, (_HOLE,))[-1] for number in numbers)
        return found[start % PAGE :][: stop - start]

    def write(self, content, start):
        """Write bytes, and let the file reach as far as they do."""
        stop = start + len(content)
        for number in range(start // PAGE, -(-stop // PAGE)):
            first = number * PAGE
            versions = self.pages.setdefault(number, [_HOLE])
            page = bytearray(versions[-1])
            begin, end = max(start, first), min(stop, first + PAGE)
            page[begin - first : end - first] = content[begin - start : end - start]
            versions.append(bytes(page))
        if stop > self.size:
            self.sizes.append(stop)

    def truncate(self, size):
        """Cut it, or let it end in a hole."""
        for number, versions in self.pages.items():
            left = max(0, size - number * PAGE)
            if left < PAGE and any(versions[-1][left:]):
                versions.append(versions[-1][:left].ljust(PAGE, b"\0"))
        self.sizes.append(size)

    def sync(self):
        """Make it safe as it is."""
        for versions in (self.sizes, *self.pages.values()):
            del versions[:-1]

    def cut(self, chance, keeps):
        """Let the power be cut."""
        for number, versions in self.pages.items():
            page = _kept(versions, chance, keeps)
            if 0 < keeps < 1 and len(versions) > 1 and chance.random() < 0.3:
                sectors = range(0, PAGE, SECTOR)
                page = b"".join(_kept(versions, chance, keeps)[at : at + SECTOR] for at in sectors)
            self.pages[number] = [page]
        size = _kept(self.sizes, chance, keeps)
        self.truncate(size)
        self.sync()


def _kept(versions, chance, keeps):
    """Return the newest of what something was, or an older one."""
    if len(versions) == 1 or chance.random() < keeps:
        return versions[-1]
    return versions[0] if keeps == 0 or chance.random() < 0.5 else chance.choice(versions)


class Folder:
    """A folder's names as they are, and as they are safe."""

    def __init__(self):
        self.names, self.safe = {}, {}


class Disk:
    """A file system; its methods raise the system's errors."""

    def __init__(self):
        self.nodes = {ROOT: Folder()}
        self._last = ROOT
        self._pending = []  # (folder, names that came or went), in order

    def find(self, path):
        """Return the number of what has a path."""
        number = ROOT
        for name in PurePosixPath(path).parts[1:]:
            folder = self.nodes[number]
            if not isinstance(folder, Folder):
                raise _error(errno.ENOTDIR)
            if name not in folder.names:
                raise _error(errno.ENOENT)
            number = folder.names[name]
        return number

    def status(self, number):
        """Return what stat() tells."""
        node = self.nodes[number]
        if isinstance(node, Folder):
            n_folders = sum(isinstance(self.nodes[each], Folder) for each in node.names.values())
            return {
                "st_ino": number,
                "st_mode": stat.S_IFDIR | 0o755,
                "st_nlink": 2 + n_folders,
                "st_size": PAGE,
            }
        blocks = len(node.pages) * (PAGE // 512)
        kind = {"st_ino": number, "st_mode": stat.S_IFREG | 0o644, "st_nlink": 1}
        return kind | {"st_size": node.size, "st_blocks": blocks, "st_blksize": PAGE}

    def names(self, path):
        """Return the names in a folder, and the number of what has each."""
        return self._folder(path).names

    def create(self, path):
        """Make a file, and return its number."""
        return self._add(path, File())

    def make_folder(self, path):
        """Make a folder."""
        self._add(path, Folder())

    def remove(self, path):
        """Remove a file."""
        if isinstance(self.nodes[self.find(path)], Folder):
            raise _error(errno.EISDIR)
        self._change(path, {PurePosixPath(path).name: None})

    def remove_folder(self, path):
        """Remove a folder that nothing is in."""
        if self._folder(path).names:
            raise _error(errno.ENOTEMPTY)
        self._change(path, {PurePosixPath(path).name: None})

    def rename(self, source, target):
        """Give another name in the same folder; what has it loses it in the same step."""
        number = self.find(source)
        if PurePosixPath(source).parent != PurePosixPath(target).parent:
            raise _error(errno.EXDEV)  # nobody here does, and what a cut leaves of it differs much
        there = self._folder(str(PurePosixPath(target).parent)).names.get(PurePosixPath(target).name)
        if there is not None and there != number:
            old, new = self.nodes[there], self.nodes[number]
            if isinstance(old, Folder) != isinstance(new, Folder):
                raise _error(errno.EISDIR if isinstance(old, Folder) else errno.ENOTDIR)
            if isinstance(old, Folder) and old.names:
                raise _error(errno.ENOTEMPTY)
        if there != number:
            self._change(target, {PurePosixPath(source).name: None, PurePosixPath(target).name: number})

    def sync_folder(self, path):
        """Make the names in a folder safe."""
        folder = self.find(path)
        for at, names in self._pending:
            if at == folder:
                _apply(self.nodes[at].safe, names)
        self._pending = [change for change in self._pending if change[0] != folder]

    def cut(self, seed):
        """Let the power be cut: what was not synced is kept or lost, by coins of this seed."""
        chance = random.Random(seed)  # noqa: S311  no secret
        # Coins alone would hardly ever lose everything, or all bytes and no name: that too has to be stood.
        keeps_bytes, keeps_names = chance.choice([(0, 0), (0, 1), (1, 0), (0.5, 0.5), (0.5, 0.5), (0.9, 0.9)])
        for at, names in self._pending:
            if chance.random() < keeps_names:
                _apply(self.nodes[at].safe, names)
        self._pending = []
        nodes, left = {}, [ROOT]
        while left:
            number = left.pop()
            node = nodes[number] = self.nodes[number]
            if isinstance(node, Folder):
                node.names = dict(node.safe)
                left += node.names.values()
            else:
                node.cut(chance, keeps_bytes)
        self.nodes = nodes

    def _folder(self, path):
        folder = self.nodes[self.find(path)]
        if not isinstance(folder, Folder):
            raise _error(errno.ENOTDIR)
        return folder

    def _add(self, path, node):
        place = PurePosixPath(path)
        if place.name in self._folder(str(place.parent)).names:
            raise _error(errno.EEXIST)
        self._last += 1
        self.nodes[self._last] = node
        self._change(path, {place.name: self._last})
        return self._last

    def _change(self, path, names):
        """Change names in the folder that a path is in."""
        number = self.find(str(PurePosixPath(path).parent))
        _apply(self.nodes[number].names, names)
        self._pending.append((number, names))


def _apply(there, names):
    for name, number in names.items():
        there.pop(name, None)
        if number is not None:
            there[name] = number


def _error(code):
    return OSError(code, os.strerror(code))

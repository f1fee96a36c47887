"""A process that serves a `Disk` at a folder, by libfuse: orders come line by line.

``mount {"dies_at": 40, "ignores": "..."}`` mounts it, until somebody unmounts it, which syncs nothing. At the
change of that number the process that asks for it is killed, and nothing is changed any more; null for never.
A sync of a path that a pattern matches is acknowledged and not done; null for none. ``cut 17`` cuts the power
of what is not mounted, with a seed for what is kept. The process unmounts and ends when nobody gives orders.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import queue
import re
import signal
import sys
import threading

import mfusepy

from helpers.power.disk import PAGE, ROOT, Disk
from helpers.power.mount import unmount

_N_PAGES = 2**18


class Mounted(mfusepy.Operations):
    """What the kernel asks of a disk."""

    use_ns = True
    flag_nullpath_ok = True  # of a file that is open, and has no name any more

    def __init__(self, disk, dies_at, ignores):
        self.disk, self._dies_at = disk, dies_at
        self._ignores = None if ignores is None else re.compile(ignores)
        self.n_changes, self._is_off = 0, False
        self._handles, self._numbers = {}, itertools.count(1)

    def init(self, path):
        del path
        say("mounted")

    def getattr(self, path, fh=None):
        return {"st_uid": os.getuid(), "st_gid": os.getgid()} | self.disk.status(self._number(path, fh))

    def readdir(self, path, fh):
        del fh
        nodes = {".": ROOT, "..": ROOT} | self.disk.names(
            path
        )  # what is there besides is known to the kernel
        return [(name, self.disk.status(number), 0) for name, number in nodes.items()]

    def statfs(self, path):
        del path
        used = sum(len(getattr(node, "pages", ())) for node in self.disk.nodes.values())
        blocks = {"f_blocks": _N_PAGES, "f_bfree": _N_PAGES - used, "f_bavail": _N_PAGES - used}
        files = {"f_files": _N_PAGES, "f_ffree": _N_PAGES // 2, "f_favail": _N_PAGES // 2}
        return blocks | files | {"f_bsize": PAGE, "f_frsize": PAGE, "f_namemax": 255}

    def open(self, path, flags):
        number = self.disk.find(path)
        if flags & os.O_TRUNC:
            self.truncate(path, 0)
        return self._opened(number, path)

    def create(self, path, mode, flags):
        del mode, flags
        self._change()
        return self._opened(self.disk.create(path), path)

    def read(self, path, size, offset, fh):
        return self.disk.nodes[self._number(path, fh)].read(offset, size)

    def write(self, path, data, offset, fh):
        self._change()
        self.disk.nodes[self._number(path, fh)].write(data, offset)
        return len(data)

    def truncate(self, path, length, fh=None):
        self._change()
        self.disk.nodes[self._number(path, fh)].truncate(length)

    def release(self, path, fh):
        del path
        self._handles.pop(fh, None)

    def fsync(self, path, datasync, fh):
        del datasync
        self._change()
        if not self._is_ignored(self._handles[fh][1] if path is None else path):
            self.disk.nodes[self._number(path, fh)].sync()

    def fsyncdir(self, path, datasync, fh):
        del datasync, fh
        self._change()
        if not self._is_ignored(path):
            self.disk.sync_folder(path)

    def unlink(self, path):
        self._change()
        self.disk.remove(path)

    def mkdir(self, path, mode):
        del mode
        self._change()
        self.disk.make_folder(path)

    def rmdir(self, path):
        self._change()
        self.disk.remove_folder(path)

    def rename(self, old, new):
        self._change()
        self.disk.rename(old, new)

    def chmod(self, path, mode):
        """Let everybody do everything."""

    def chown(self, path, uid, gid):
        """Let it be whose it was."""

    def utimens(self, path, times=None):
        """Have no times."""

    def _opened(self, number, path):
        handle = next(self._numbers)
        self._handles[handle] = number, path
        return handle

    def _number(self, path, handle):
        return self._handles[handle][0] if handle in self._handles else self.disk.find(path)

    def _is_ignored(self, path):
        return self._ignores is not None and self._ignores.fullmatch(path) is not None

    def _change(self):
        """Count a change; at the last one the power goes, and who asks goes with it."""
        self.n_changes += 1
        if self.n_changes == self._dies_at:
            self._is_off = True
            _, _, asker = mfusepy.fuse_get_context()
            if asker > 0:
                os.kill(asker, signal.SIGKILL)
        if self._is_off:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def say(line):
    """Write a line."""
    os.write(1, f"{line}\n".encode())


def serve(folder):
    """Do what each line says."""
    orders, disk = queue.SimpleQueue(), Disk()

    def read():
        for line in sys.stdin:
            orders.put(line)
        with contextlib.suppress(OSError):
            unmount(folder, is_lazy=True)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        what, content = orders.get().split(maxsplit=1)
        if what == "cut":
            disk.cut(content.strip())
            say("cut")
            continue
        mounted = Mounted(disk, **json.loads(content))
        # Numbers of files are ours, and a file that is open is removed at once.
        options = {"use_ino": True, "hard_remove": True, "default_permissions": True}
        mfusepy.FUSE(mounted, folder, foreground=True, nothreads=True, **options)
        say(f"unmounted {mounted.n_changes}")


if __name__ == "__main__":
    serve(sys.argv[1])

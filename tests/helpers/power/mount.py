"""The disk as a test has it: mounted, unmounted, its power cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest

from helpers.processes import Process

_ATTEMPTS, _PAUSE_SECONDS = 200, 0.02


def why_not():
    """Return why nothing can be mounted here; nothing where it can."""
    try:
        import mfusepy  # noqa: F401, PLC0415  without libfuse it cannot be imported
    except (ImportError, OSError, AttributeError) as refusal:
        return f"no file system of the tests' own: {refusal}"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no file system of the tests' own: /dev/fuse may not be opened"
    return ""


def unmount(folder, *, is_lazy=False):
    """Unmount a folder, at once or when nobody uses it any more; OSError says that it was refused."""
    command = next((path for name in ("fusermount3", "fusermount") if (path := shutil.which(name))), None)
    call = ["umount"] if command is None else [command, "-u"]
    options = [] if not is_lazy else ["-l"] if command is None else ["-z"]
    done = subprocess.run([*call, *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


class Machine:
    """A disk at a folder, and the power that it needs."""

    def __init__(self, folder, errors):
        self.folder, self._is_mounted = folder, False
        folder.mkdir()
        self._server = Process(errors, "helpers.power", str(folder))

    def mount(self, dies_at=None, ignores=None):
        """Let processes use the disk; the power goes at the change of this number."""
        self._server.tell("mount " + json.dumps({"dies_at": dies_at, "ignores": ignores}))
        if self._server.line() != "mounted":
            said = self._server.errors.read_text()
            if "not permitted" in said or "denied" in said:
                pytest.skip(f"no file system of the tests' own: {said.splitlines()[0]}")
            raise AssertionError(said)
        self._is_mounted = True

    def unmount(self):
        """Have nobody use it any more, and return how many changes there were."""
        for attempt in range(_ATTEMPTS):
            try:
                unmount(self.folder)
            except OSError:  # a process that was killed holds it for a moment
                assert attempt < _ATTEMPTS - 1, "somebody holds it"
                time.sleep(_PAUSE_SECONDS)
            else:
                break
        self._is_mounted = False
        line = self._server.line()
        assert line.startswith("unmounted "), self._server.errors.read_text()
        return int(line.removeprefix("unmounted "))

    def cut(self, seed):
        """Unmount it, and let it lose what was not synced, by coins; return how many changes there were."""
        n_changes = self.unmount()
        self._server.tell(f"cut {seed}")
        assert self._server.line() == "cut", self._server.errors.read_text()
        return n_changes

    def close(self):
        """Leave nothing mounted, and no process."""
        try:
            if self._is_mounted:
                unmount(self.folder, is_lazy=True)
        finally:
            self._server.end(0)

"""Processes that tests start: they find the helpers as the tests do."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH}
TIMEOUT = 300  # seconds; only what hangs takes them


class Process:
    """A module of the helpers that runs; its lines are read as they come."""

    def __init__(self, errors, module, *arguments):
        environment = ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}  # a thread of it would be there at a fork
        with errors.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                bufsize=0,
            )
        self.errors, self._left = errors, b""

    def tell(self, line):
        """Write a line to it."""
        self.process.stdin.write(line.encode() + b"\n")

    def line(self):
        """Return its next line, "" once it has ended."""
        while b"\n" not in self._left:
            ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
            assert ready, "it hangs"
            read = os.read(self.process.stdout.fileno(), 2**16)
            if not read:
                return ""
            self._left += read
        line, self._left = self._left.split(b"\n", 1)
        return line.decode()

    def end(self, patience):
        """Wait for its end, kill it if that does not come, and return how it ended."""
        try:
            status = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        return status

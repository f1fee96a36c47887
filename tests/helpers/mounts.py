"""One folder through several mounts of a network file system, as the machines of a cluster have it.

Each mount has a server of its own, over the loopback address. What is locked through one is not locked
through another, and each keeps for a while what it has seen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

from helpers.power.mount import unmount

CACHES = {
    "cached": ["dcache_timeout=1"],  # names and sizes: for 20 seconds where nothing is said
    "no cache": ["dir_cache=no", "entry_timeout=0", "attr_timeout=0", "negative_timeout=0"],
}
_SERVERS = [
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
]
CACHED_SECONDS = 2.5  # with what the system itself keeps
_ATTEMPTS, _PAUSE_SECONDS, _PATIENCE_SECONDS = 500, 0.02, 10


def why_not():
    """Return why nothing can be mounted over a network here; nothing where it can."""
    missing = [name for name in ("sshfs", "fusermount3") if shutil.which(name) is None]
    missing += [] if _server() else ["sftp-server"]
    if missing:
        return f"no network file system of the tests' own: {', '.join(missing)} is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no network file system of the tests' own: /dev/fuse may not be opened"
    return ""


def _server():
    return next((path for path in _SERVERS if Path(path).exists()), shutil.which("sftp-server"))


@contextlib.contextmanager
def mounted(folder, place, cache="cached"):
    """Mount a folder at a place, which is made; afterwards it is unmounted, and no process is left."""
    place.mkdir()
    with contextlib.ExitStack() as ending:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(_PATIENCE_SECONDS)
            port = listening.getsockname()[1]
            options = ["-o", ",".join([f"directport={port}", *CACHES[cache]])]
            command = [shutil.which("sshfs"), "-f", f"127.0.0.1:{folder}", str(place), *options]
            client = subprocess.Popen(command)
            ending.callback(_end, client)
            connection, peer = listening.accept()
        with connection:
            mine = [each.laddr for each in psutil.Process(client.pid).net_connections("tcp")]
            assert peer in mine, "somebody else has connected"
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server = subprocess.Popen([_server(), "-e"], stdin=connection, stdout=connection)
        ending.callback(_end, server)
        ending.callback(_unmount, place)
        _wait_until(lambda: os.path.ismount(place) or client.poll() is not None)
        assert os.path.ismount(place), "it could not be mounted"
        yield place


def _wait_until(is_so):
    for _ in range(_ATTEMPTS):
        if is_so():
            return
        time.sleep(_PAUSE_SECONDS)


def _unmount(place):
    """Unmount at once, or when who still holds it has ended."""
    if os.path.ismount(place):
        try:
            unmount(place)
        except OSError:
            unmount(place, is_lazy=True)


def _end(process):
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

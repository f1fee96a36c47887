"""A rank on a machine of another name: NAME, and then the arguments of `helpers.ranks_at_work`.

It says that it is ready, and begins when it is told a line.
"""

from __future__ import annotations

import socket
import sys

from helpers.ranks_at_work import main

if __name__ == "__main__":
    socket.gethostname = lambda: sys.argv[1]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    main(*sys.argv[2:])

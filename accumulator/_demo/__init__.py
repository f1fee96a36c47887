"""The demo behind ``accumulator demo``: a trained network over a real slide, tile by tile.

Needs the extra ``demo``. It uses the library by its public names, the report's one function and what
tells of a missing extra, and the library never uses it.
"""

from __future__ import annotations

from accumulator._demo.run import Options, run_demo

__all__ = ["Options", "run_demo"]

"""Processes that tests start: they find the helpers as the tests do."""

from __future__ import annotations

import os
from pathlib import Path

PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PYTHONPATH}

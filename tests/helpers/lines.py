"""Lines that a trace function is told of, and where Python looks for a signal."""

from __future__ import annotations

import dis
from functools import lru_cache
from pathlib import Path


def is_leaving(frame):
    """Whether a line is met again as its `with` ends: Python looks for no signal there."""
    name = _names(frame.f_code)[frame.f_lasti]
    line = _source(frame.f_code.co_filename)[frame.f_lineno - 1].strip()
    return name == "PUSH_EXC_INFO" or (name == "LOAD_CONST" and line.startswith("with "))


@lru_cache(None)
def _names(code):
    return {each.offset: each.opname for each in dis.get_instructions(code)}


@lru_cache(None)
def _source(name):
    return Path(name).read_text(encoding="utf-8").splitlines()

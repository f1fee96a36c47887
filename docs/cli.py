#!/usr/bin/env python3
"""Puts the help of each command into ``docs/cli.md``: ``python docs/cli.py``. Tests compare them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from unittest import mock

from accumulator.__main__ import main

PAGE = Path(__file__).with_name("cli.md")
_BLOCK = re.compile(r"(?<=^```text\n)\$ accumulator(.*?) --help\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)


def help_of(command: str) -> str:
    """Return what ``accumulator COMMAND --help`` prints, in 80 columns and without colours."""
    printed = io.StringIO()
    plain = {"COLUMNS": "80", "NO_COLOR": "1"}
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*command.split(), "--help"])
    return printed.getvalue()


def renewed(page: str) -> str:
    """Return the page with the help of today."""
    return _BLOCK.sub(lambda block: f"$ accumulator{block[1]} --help\n{help_of(block[1])}", page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))

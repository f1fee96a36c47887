"""Libraries that this one is compared with, which few have installed."""

from __future__ import annotations

from typing import NoReturn

import pytest


def leave_out() -> NoReturn:
    """Skip a test of a peer that is not installed: here, so that all of them are one line of the summary."""
    pytest.skip("needs a library to compare with: pip install --group bench")

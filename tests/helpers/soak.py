"""Cases that only `pytest -m soak` tries, as every run tries others like them."""

from __future__ import annotations

from typing import Any

import pytest


def soaked(*cases: Any) -> list[Any]:
    """Return cases of a parameter that only a soak tries."""
    return [pytest.param(case, marks=[pytest.mark.slow, pytest.mark.soak]) for case in cases]

"""How much of what is tried: by every run, by those on other Pythons, and by a soak."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

_FULL = 50  # examples of the profile that is the default


def soaked(*cases: Any) -> list[Any]:
    """Return cases of a parameter that only `pytest -m soak` tries, as every run tries others like them."""
    return [pytest.param(case, marks=[pytest.mark.slow, pytest.mark.soak]) for case in cases]


def examples(n: int, variable: str = "") -> int:
    """Return how many examples a test tries: what a variable says, or n, fewer where a profile has fewer."""
    return int(os.environ.get(variable, n * settings.default.max_examples // _FULL))

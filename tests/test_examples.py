"""The examples of docstrings, README and tutorial run as they stand."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import mutations
import numpy as np
import pytest

import accumulator
from accumulator._core.locations import LocationIndex

ROOT = Path(__file__).parent.parent
MODULES = [
    "accumulator._core.accumulator",
    "accumulator._core.align",
    "accumulator._core.grid_locations",
    "accumulator._core.locations",
    "accumulator._core.full_batch",
]
NAMES = {name: getattr(accumulator, name) for name in accumulator.__all__} | {
    "np": np,
    "LocationIndex": LocationIndex,
}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    """Every example of a module prints what it says."""
    result = doctest.testmod(importlib.import_module(name), extraglobs=NAMES)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_pages(page):
    """The Python blocks of a page run one after the other, as a reader would run them."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)  # noqa: S102  our own page


def test_mutations_still_fit():
    """Every mutation of ``tests/mutations.py`` names a line that is there, and only once."""
    for file, old, _ in mutations.MUTATIONS:
        assert (ROOT / file).read_text().count(old) == 1, (file, old)

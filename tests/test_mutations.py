"""Mutations are of lines that are there; whether tests notice them, `python tests/mutations.py` tells."""

from __future__ import annotations

import mutations
import pytest


@pytest.mark.parametrize("module", sorted({module for module, *_ in mutations.MUTATIONS}))
def test_mutations_change_one_line_that_is_there(module):
    """A line that was changed since is changed in the mutation, too."""
    text = (mutations.ROOT / module).read_text()
    changes = [(old, new) for path, old, new in mutations.MUTATIONS if path == module]
    assert [old for old, new in changes if text.count(old) != 1 or old == new] == []
    assert all((mutations.ROOT / test).exists() for test in mutations.tests_of(module))

"""What tests of stores get."""

from __future__ import annotations

import pytest
from helpers.row_stores import Backends


@pytest.fixture
def backends(tmp_path):
    """Return a maker of stores."""
    backends = Backends(tmp_path)
    yield backends
    for store in backends.made:
        store.close()

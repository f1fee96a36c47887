"""Other numbers of speed and memory than the library's own."""

from __future__ import annotations

import attrs

from accumulator._inputs import tuning


def tune(patch, **numbers):
    """Change some numbers until a `pytest.MonkeyPatch` is undone."""
    patch.setattr(tuning, "now", attrs.evolve(tuning.now, **numbers))

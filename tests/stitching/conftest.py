"""What tests of maps get."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["one band", "many bands"])
def bands(request, tuned):
    """Blend in one band and thread, or in bands of a few rows shared by threads."""
    if request.param == "many bands":
        tuned(
            band_nbytes=600,
            least_band_nbytes=600,
            shared_push_nbytes=0,
            shared_patch_nbytes=0,
            patch_part_nbytes=300,
            divided_nbytes=64,
            read_nbytes=700,
        )

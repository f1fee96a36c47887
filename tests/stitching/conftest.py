"""What tests of maps get."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["one band", "many bands", "behind"])
def bands(request, tuned):
    """Blend in one band and thread, in bands of a few rows shared by threads, or these behind the caller."""
    if request.param == "behind":
        tuned(behind_nbytes=0, copied_nbytes_s=1e18, waiting_nbytes=2**12)
    if request.param != "one band":
        tuned(
            band_nbytes=600,
            least_band_nbytes=600,
            shared_push_nbytes=0,
            shared_patch_nbytes=0,
            patch_part_nbytes=300,
            divided_nbytes=64,
            read_nbytes=700,
        )

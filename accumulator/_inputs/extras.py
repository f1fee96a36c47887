"""Libraries that only an extra installs, imported when they are needed first."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from accumulator.exceptions import MissingExtraError


def need(module: str, extra: str) -> Any:
    """Return a module."""
    try:
        with warnings.catch_warnings():
            # ome_zarr.writer makes an object of its own deprecated class for the default of a parameter.
            warnings.filterwarnings("ignore", "Call to deprecated class Scaler", DeprecationWarning)
            return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtraError(
            f"{module} cannot be imported ({cause}): pip install 'full-batch-accumulator[{extra}]'",
            name=cause.name,
        ) from cause

"""Libraries that only an extra installs, imported when they are needed first."""

from __future__ import annotations

import importlib
from typing import Any

from accumulator.exceptions import MissingExtraError


def need(module: str, extra: str) -> Any:
    """Return a module."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise MissingExtraError(
            f"{module} cannot be imported ({cause}): pip install 'full-batch-accumulator[{extra}]'",
            name=cause.name,
        ) from cause

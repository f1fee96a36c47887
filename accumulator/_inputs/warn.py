"""Warnings that name the caller's line, however deep in the library their reason is found."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from typing import Any, Final

# Python 3.12 has skip_file_prefixes for this.
_OWN: Final = (str(Path(__file__).parents[1]) + os.sep, "<attrs generated")


def warn(message: str, category: type[Warning] = UserWarning, source: Any = None) -> None:
    """Warn at the first line outside of the library, on the way that led here."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level, source=source)

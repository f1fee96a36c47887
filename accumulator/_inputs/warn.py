"""Warnings that name the caller's line, however deep in the library their reason is found; and logs."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Python 3.12 has skip_file_prefixes for this.
_OWN: Final = (str(Path(__file__).parents[1]) + os.sep, "<attrs generated")
_log: Final = logging.getLogger("accumulator")
_here: Final = threading.local()  # `kept`: the warnings of a thread that has no caller


def warn(message: str, category: type[Warning] = UserWarning, source: Any = None) -> None:
    """Warn at the first line outside of the library, on the way that led here, or leave it to `Kept.tell`."""
    kept: Kept | None = getattr(_here, "kept", None)
    if kept is not None:
        kept.told.append(partial(warn, message, category))
        return
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level, source=source)


def log(level: int, message: str, *arguments: Any) -> None:
    """Log something, or leave it to `Kept.tell`: a handler may look at what our thread is at work on."""
    kept: Kept | None = getattr(_here, "kept", None)
    if kept is not None:
        kept.told.append(partial(log, level, message, *arguments))
    else:
        _log.log(level, message, *arguments)


class Kept:
    """What a thread of ours warns of, and logs, until a caller comes who can be told."""

    def __init__(self) -> None:
        self.told = deque[Callable[[], None]]()

    @contextlib.contextmanager
    def keep(self) -> Iterator[None]:
        """Keep in here what this thread would tell."""
        _here.kept = self
        try:
            yield
        finally:
            _here.kept = None

    def tell(self) -> None:
        """Tell it in the caller's thread; a warning that is an error there is told once, the rest later."""
        while self.told:
            self.told.popleft()()

"""What `FullBatchAccumulator` and `Stitcher` are made with: each raw argument becomes a checked one."""

from __future__ import annotations

import errno
import math
import operator
import re
import stat
import sys
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from accumulator._inputs.validation import as_place
from accumulator._inputs.warn import warn
from accumulator.exceptions import OptionError, StorageError
from accumulator.typing import Mode, OnDuplicate, Passes

if TYPE_CHECKING:
    from accumulator.typing import StrPath


FAR: Final = 2**61  # beyond it sums of coordinates could overflow
_BYTES: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?))?b?\s*", re.IGNORECASE)


def as_folder(raw: StrPath) -> str:
    """Return a folder, there or not yet, as an absolute path."""
    path = as_place(raw, "save_path")  # wherever the process goes until it is needed
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        is_folder = True  # or will be
    except OSError as cause:
        what = f"save_path cannot be looked at ({cause.strerror})"
        raise StorageError(cause.errno, what, cause.filename) from cause
    if not is_folder:
        raise StorageError(errno.ENOTDIR, "save_path is a file: give a folder, there or not", str(path))
    return str(path)


def as_percent(raw: float) -> float:
    """Return a percentage from 0 to 100."""
    if isinstance(raw, bool) or not isinstance(raw, Real) or not 0 <= raw <= 100:
        raise OptionError(f"memory_threshold is {raw!r}: it is a percentage from 0 to 100")
    return float(raw)


def as_threshold(raw: float) -> float:
    """Return a percentage, warning of one that looks like a fraction."""
    percent = as_percent(raw)
    if 0 < percent < 1:
        warn(f"memory_threshold={raw} is {raw} per cent: did you mean {100 * percent:g}?")
    return percent


def as_limit(raw: float | str | None) -> int | None:
    """Return a number of bytes, from text such as "8 GiB" or "500 MB" too."""
    if raw is None:
        return None
    if isinstance(raw, str) and (match := _BYTES.fullmatch(raw)):
        number, prefix, binary = match.groups()
        power = " kmgtp".index((prefix or " ").lower())
        return int(Fraction(number) * (1024 if binary else 1000) ** power)
    if isinstance(raw, Real) and not isinstance(raw, bool) and raw >= 0 and raw == raw // 1:
        return int(raw)
    raise OptionError(f'memory_limit is {raw!r}: give bytes as an int, or text such as "8 GiB" or "500 MB"')


def as_ints(raw: Any, n_spatial: int, name: str, example: str) -> list[int]:
    """Return one whole number a spatial axis."""
    try:
        numbers = [operator.index(number) for number in raw if not isinstance(number, bool)]
    except TypeError:
        numbers = []
    if len(numbers) != n_spatial or any(abs(number) > FAR for number in numbers):
        raise OptionError(
            f"{name} is {raw!r}: give {n_spatial} whole numbers, one a spatial axis, such as {example}"
        )
    return numbers


def each_axis(raw: Any, n_axes: int) -> list[Any]:
    """Return what was said of each axis, from one thing for all of them too."""
    plain = raw.tolist() if isinstance(raw, np.ndarray) else raw  # an array without axes is a number
    return list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain] * n_axes


def per_axis(raw: Any, n_axes: int) -> list[float] | None:
    """Return a positive number for each axis, from one for all of them too; None if it is not that."""
    numbers = each_axis(raw, n_axes)
    return (
        [float(each) for each in numbers]
        if len(numbers) == n_axes and all(map(_is_positive, numbers))
        else None
    )


def _is_positive(raw: Any) -> bool:
    try:
        return isinstance(raw, Real) and not isinstance(raw, bool) and 0 < float(raw) < math.inf
    except OverflowError:
        return False


def as_expected(raw: int | None) -> int | None:
    """Return how many rows are to come, None where that is unknown."""
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, (int, np.integer)) or raw < 0:
        raise OptionError(f"n_expected is {raw!r}: it is a number of locations")
    return int(raw)


def check_expected(n_expected: int | None, n: int) -> None:
    """Refuse more rows to come than there are locations."""
    if n_expected is not None and n_expected > n:
        raise OptionError(f"n_expected is {n_expected}, but full_output_locs has {n} locations")


def as_processes(raw: int) -> int:
    """Return how many processes do something."""
    if isinstance(raw, bool) or not isinstance(raw, (int, np.integer)) or raw < 1:
        raise OptionError(f"processes is {raw!r}: it is a number of at least 1")
    return int(raw)


def as_on_duplicate(raw: OnDuplicate) -> OnDuplicate:
    """Return a policy for repeats."""
    if not isinstance(raw, str) or raw not in get_args(OnDuplicate):
        of_maps = '; Stitcher(on_duplicate="average") averages, or average predictions before they are pushed'
        remedy = of_maps if isinstance(raw, str) and raw in get_args(Passes) else ""
        raise OptionError(f'on_duplicate is {raw!r}: it is "error", "first" or "last"{remedy}')
    return raw


def as_passes(raw: Passes) -> Passes:
    """Return a policy for patches of one box."""
    if not isinstance(raw, str) or raw not in get_args(Passes):
        raise OptionError(
            f'on_duplicate is {raw!r}: it is "error", "first" or "average" here, as a patch that was blended '
            "cannot be taken out again"
        )
    return raw


def as_store(raw: StrPath | None) -> str | None:
    """Return the path of a store, absolute; None where the run is not kept."""
    return None if raw is None else str(as_place(raw, "store"))


def as_mode(raw: Mode) -> Mode:
    """Return how a store is opened."""
    if not isinstance(raw, str) or raw not in get_args(Mode):
        raise OptionError(f'mode is {raw!r}: it is "w-", which never overwrites, or "a", which resumes')
    return raw


def as_token(raw: str | None) -> str | None:
    """Return what a resumed run has to have in common with the first."""
    if raw is not None and not isinstance(raw, str):
        raise OptionError(f"resume_token is {raw!r}: it is a text, such as the version of the model")
    return raw


def as_seconds(raw: float | None) -> float | None:
    """Return a number of seconds, or None where none is given."""
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, Real) or not raw >= 0:
        raise OptionError(f"checkpoint_interval is {raw!r}: it is a number of seconds")
    return float(raw) if raw <= sys.float_info.max else math.inf

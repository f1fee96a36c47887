"""Which of several processes this one is: as it is told, or as torchrun and SLURM say it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accumulator.typing import Auto

_AUTO: Final = "auto"
_MOST: Final = 2**31
_ON_NODE: Final = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE")
_ARRAY: Final = "SLURM_ARRAY_TASK_"
_REMEDY: Final = "give rank= and world_size= as ints"


@attrs.frozen
class Rank:
    """One of several processes that work on one run."""

    rank: int
    world_size: int
    n_on_node: int = 1  # that share this machine's memory
    is_of_pool: bool = False  # an engine tells each what to do: there are no shares


def as_rank(rank: int | Auto | Rank | None, world_size: int | Auto | None) -> Rank | None:
    """Return which process this is; None where there is one alone.

    An engine gives a `Rank`: it knows, whatever the environment says of the job that it runs in. OptionError
    tells that the two do not go together, or are not what the environment says.
    """
    if isinstance(rank, Rank):
        return rank
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise OptionError('rank and world_size go together: give both, as ints or "auto"')
    given_rank, given_size = _as_given(rank, "rank", 0), _as_given(world_size, "world_size", 1)
    is_given = given_rank is not None and given_size is not None
    told = _told(os.environ, is_needed=not is_given)
    source, told_rank, told_size = told or ("the environment, which names no other process", 0, 1)
    # A task of an array may have several ranks: who gives ints knows how many all tasks have together.
    is_all = told is not None and (source.startswith("RANK") or f"{_ARRAY}ID" not in os.environ)
    if given_size is not None and is_all and told_size != given_size:
        raise OptionError(
            f"world_size is {given_size}, and {source} say {told_size}: leave it to the environment with "
            '"auto", or unset what is not meant for this run'
        )
    if given_rank is not None and is_all and told_rank != given_rank:
        raise OptionError(
            f"rank is {given_rank}, and {source} say {told_rank}: leave it to the environment with "
            '"auto", or unset what is not meant for this run'
        )
    if given_rank is None and given_size is not None and given_size != told_size:
        raise OptionError(f'rank="auto" is {told_rank} of {told_size} by {source}, not of {given_size}')
    own = told_rank if given_rank is None else given_rank
    size = told_size if given_size is None else given_size
    if own >= size:
        raise OptionError(f"rank is {own}, and world_size {size}: ranks are numbered from 0 to {size - 1}")
    is_spread = told is not None and _is_array(source)  # each task may be on a machine of its own
    return Rank(own, size, 1 if is_spread else min(size, _on_node(os.environ) or size))


def _as_given(raw: Any, name: str, least: int) -> int | None:
    """Return a number; None where the environment tells."""
    if isinstance(raw, str) and raw == _AUTO:
        return None
    if isinstance(raw, bool) or not isinstance(raw, (int, np.integer)) or not least <= raw < _MOST:
        raise OptionError(f'{name} is {raw!r}: it is a whole number of at least {least}, or "auto"')
    return int(raw)


def _told(environment: Mapping[str, str], *, is_needed: bool) -> tuple[str, int, int] | None:
    """Return who says which rank this is, the rank, and of how many; None where nobody does.

    What makes no sense, or is said by halves, is refused only where it is needed.

    A batch script of SLURM is itself a task, 0 of 1, which says nothing.
    """
    for own, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        there = [name for name in (own, size) if name in environment]
        if len(there) == 1 and own == "RANK" and is_needed:
            missing = size if there == [own] else own
            raise OptionError(f"{there[0]} is in the environment, and {missing} is not: set both, or neither")
        if len(there) == 2 and (is_needed or all(environment[name].isdecimal() for name in there)):
            told = f"{own} and {size}", _number(environment, own), _number(environment, size)
            if own == "RANK" or told[2] > 1:
                return told
    if f"{_ARRAY}ID" not in environment or not is_needed:
        return None
    first, last, step, number, count = (
        _number(environment, f"{_ARRAY}{name}", default)
        for name, default in (("MIN", 0), ("MAX", None), ("STEP", 1), ("ID", None), ("COUNT", None))
    )
    if step < 1 or count != (last - first) // step + 1 or number not in range(first, last + 1, step):
        raise OptionError(
            f"the numbers of this SLURM array, {count} from {first} to {last}, have gaps: {_REMEDY}"
        )
    return f"{_ARRAY}ID and {_ARRAY}COUNT", (number - first) // step, count


def _is_array(source: str) -> bool:
    return source.startswith(_ARRAY)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    raw = environment.get(name)
    if raw is None and default is not None:
        return default
    if raw is None or not raw.isdecimal():
        raise OptionError(f"{name} is {raw!r} in the environment: {_REMEDY}")
    return int(raw)


def _on_node(environment: Mapping[str, str]) -> int | None:
    """Return how many ranks share this machine; None where nobody says it."""
    for name in _ON_NODE:
        first = environment.get(name, "").split("(")[0].split(",")[0]  # SLURM: "4(x2),3"
        if first.isdecimal() and int(first):
            return int(first)
    return None

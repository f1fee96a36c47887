"""The command ``accumulator publish``: what several ranks have recorded becomes one result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs

from accumulator import publish
from accumulator._cli.shared import add_command, as_count, show
from accumulator._inputs.text import printable
from accumulator._report.facts import state_of
from accumulator._report.parts import IN_PARTS
from accumulator.typing import OnDuplicate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

_DESCRIPTION: Final = """\
Makes one ordinary store of what all ranks of a run have recorded, where their parts are.

Ranks are processes that were given FullBatchAccumulator(locations, store=PATH, mode="a", rank=, world_size=).
Whether they have come to their end or were killed, what they recorded counts. Parts are removed once all of
their rows are in the result. A publishing that was killed is simply made again. A result that is published
already, or comes from one process, is left as it is.

While a rank is still at work nothing is published, unless --partial is given: then what is recorded by now
is, the rest joins the next publishing, and the store stays "in parts". accumulator info says who is at work.
"""
_EXAMPLES: Final = """\
examples:
  accumulator publish run.zarr                              once all ranks have ended
  accumulator publish run.zarr --partial                    while they are at work, to look at it
  accumulator publish run.zarr --processes 8                if many chunks have rows of several ranks
  accumulator publish run.zarr --on-duplicate last          where ranks have different predictions
  accumulator publish run.zarr --json | jq .n_missing       for programs

exit codes: 0 published, whether locations are missing or not, 1 ranks are at work, a part is damaged,
predictions differ, no store, or one that cannot be written, 2 wrong arguments
"""


def add_publish(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the others."""
    short = "make one result of what several ranks have recorded"
    parser = add_command(add, "publish", _publish, short, _DESCRIPTION, _EXAMPLES)
    parser.usage = "accumulator publish PATH [options]"
    parser.add_argument("path", type=Path, metavar="PATH", help="the store's folder")
    parser.add_argument(
        "--partial", action="store_true", help="publish what is recorded by now, also while ranks are at work"
    )
    parser.add_argument(
        "--processes",
        type=as_count,
        default=1,
        metavar="N",
        help="so many put chunks together that several ranks have rows of (default: 1)",
    )
    parser.add_argument(
        "--on-duplicate",
        choices=get_args(OnDuplicate),
        help="what counts where ranks have different predictions of a location, by when they were recorded "
        "(default: what the run was given)",
    )
    parser.add_argument(
        "--leave-out",
        action="append",
        default=[],
        metavar="NAME",
        help="a damaged part to publish without, as the error about it names it; it stays where it is; "
        "repeatable",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


@attrs.frozen
class _Published:
    """What the result is now."""

    path: str
    state: str
    n: int
    n_written: int
    n_missing: int
    n_left_out: int

    def as_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    def lines(self) -> Iterator[str]:
        n, left = self.n - self.n_left_out, f", {self.n_left_out} left out" * bool(self.n_left_out)
        rows = f"{self.n_written} of {n} rows published, {self.n_missing} missing{left}"
        yield f"{printable(self.path)}: {self.state}: {rows}"
        if self.state == IN_PARTS:
            yield "it is not complete: publish again, without --partial, once all ranks have ended"


def _publish(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path
    with publish(
        path,
        arguments.partial,
        arguments.processes,
        on_duplicate=arguments.on_duplicate,
        leave_out=arguments.leave_out,
    ) as batch:
        n, n_written, n_left_out = len(batch.written), int(batch.written.sum()), batch._n_left_out  # noqa: SLF001
    root, state, n_missing = str(path.absolute()), state_of(path), n - n_written - n_left_out
    show(_Published(root, state, n, n_written, n_missing, n_left_out), is_json=arguments.json)
    return 0

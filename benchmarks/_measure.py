"""One run in a fresh process: seconds, peak memory, and what lies on disk afterwards.

The peak is VmHWM of ``/proc/self/status``, set back to the present by writing 5 to
``/proc/self/clear_refs``, less the VmRSS of that moment. ``ru_maxrss`` will not do on Linux: a process
starts with the peak of the one that started it, and it cannot be set back. It serves elsewhere.

The host of a virtual machine may take free memory back, and the first touch of a page is then many times
as slow as any later one. So as much memory as the run may need is touched and freed before the clock runs.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks._cases import CaseSpec, make_case
from benchmarks._contestants import CONTESTANTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks._contestants import Outcome

_STATUS: Final = Path("/proc/self/status")
_SPARE_NBYTES: Final = 2**28
_BLOCK: Final = 512  # what st_blocks counts, whatever the file system


@dataclass(frozen=True)
class Run:
    """Who runs what."""

    contestant: str  # of CONTESTANTS
    case: CaseSpec
    options: Mapping[str, Any] = field(default_factory=dict)


def measure(run: Run) -> dict[str, float]:
    """Run in a fresh process and an empty temporary folder; return all metrics."""
    os.sync()  # what the run before left to be written is not this one's
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(  # noqa: S603  this very module
            [sys.executable, "-m", "benchmarks._measure", json.dumps(asdict(run)), folder],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    metrics: dict[str, float] = json.loads(done.stdout)
    return metrics


def measure_here(run: Run, folder: Path) -> tuple[dict[str, float], Outcome]:
    """Run in this process; return all metrics, and what was made."""
    case = make_case(run.case)
    work = CONTESTANTS[run.contestant](case, folder, **run.options)
    gc.collect()
    touch_memory(_SPARE_NBYTES + 2 * case.row_nbytes * case.n_rows)
    before = reset_peak()
    start = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - start
    peak = peak_nbytes() - before
    metrics = {
        "seconds": seconds,
        "peak_nbytes": peak,
        "disk_nbytes": disk_nbytes(folder),
        "output_nbytes": case.row_nbytes * len(case.locs),
        "pushed_nbytes": case.row_nbytes * case.n_rows,
    }
    return metrics | outcome.facts, outcome


def touch_memory(nbytes: int) -> None:
    """Make sure that free memory is really there: pages freed last are given out first."""
    for _ in range(4):
        np.ones(nbytes, np.uint8)


def reset_peak() -> int:
    """Forget the peak so far, where that can be done, and return what is in memory now."""
    if not _STATUS.exists():
        return peak_nbytes()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_nbytes() -> int:
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _status("VmHWM")


def disk_nbytes(folder: Path) -> int:
    """Return what a folder takes on disk, holes left out, as ``du`` counts it."""
    return sum(path.lstat().st_blocks * _BLOCK for path in folder.rglob("*"))


def _status(key: str) -> int:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    return int(fields[key].split()[0]) * 1024


def _main() -> None:
    raw = json.loads(sys.argv[1])
    run = Run(raw["contestant"], CaseSpec(**raw["case"]), raw["options"])
    metrics, _outcome = measure_here(run, Path(sys.argv[2]))
    print(json.dumps(metrics))


if __name__ == "__main__":
    _main()

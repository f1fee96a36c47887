"""One run in a fresh process: time, CPU time, peak memory, and what lies on disk afterwards.

The peak is VmHWM of ``/proc/self/status``, set back to the present by writing 5 to
``/proc/self/clear_refs``, less the VmRSS of that moment. ``ru_maxrss`` will not do on Linux: a process
starts with the peak of the one that started it, and it cannot be set back. It serves elsewhere.

The host of a virtual machine may take free memory back, and the first touch of a page is then many times
as slow as any later one. So as much memory as the run may need is touched and freed before the clock runs.

CPU time is that of all threads of the process, user and system; what the kernel's own threads do to bring
written pages to the disk is not in it.
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

from benchmarks._cases import CaseSpec
from benchmarks._cgroup import facts, join, memory_group
from benchmarks._contestants import CONTESTANTS
from benchmarks._outcome import UnavailableError
from benchmarks._stitch_cases import StitchSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks._outcome import Outcome

_STATUS: Final = Path("/proc/self/status")
_SPARE_NBYTES: Final = 2**28
_ONE_BLAS_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_BLOCK: Final = 512  # what st_blocks counts, whatever the file system
_SPECS: Final = {each.__name__: each for each in (CaseSpec, StitchSpec)}


@dataclass(frozen=True)
class Run:
    """Who runs what."""

    contestant: str  # of CONTESTANTS
    case: CaseSpec | StitchSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    is_synced: bool = False  # whether os.sync at the end is timed too
    spare: float = 2  # how many times what is pushed is touched beforehand; 0 for nothing at all
    memory_limit: int | None = None  # of a memory cgroup; nothing is touched beforehand in there either


def measure(run: Run) -> dict[str, float]:
    """Run in a fresh process and an empty temporary folder; return all metrics."""
    os.sync()  # what the run before left to be written is not this one's
    with tempfile.TemporaryDirectory() as folder:
        if run.memory_limit is None:
            return _metrics(_spawn(run, folder))
        with memory_group(run.memory_limit) as group:
            done = _spawn(run, folder, str(group))
            ended = {"finished": 1.0} | _metrics(done) if done.returncode == 0 else {"finished": 0.0}
            return ended | facts(group)


def calibrated(seconds: float) -> float:
    """Return how much work a model has to do to take about so many seconds."""
    return measure(Run("model_amount", CaseSpec(1, "small"), {"seconds": seconds}))["amount"]


def measure_here(run: Run, folder: Path) -> tuple[dict[str, float], Outcome]:
    """Run in this process; return all metrics, and what was made."""
    case = run.case.make()
    work = CONTESTANTS[run.contestant](case, folder, **run.options)
    pushed = case.row_nbytes * case.n_rows
    gc.collect()
    if run.spare and run.memory_limit is None:
        touch_memory(_SPARE_NBYTES + int(run.spare * pushed))
    before = reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    outcome = work()
    if run.is_synced:
        os.sync()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = max(0, peak_nbytes() - before)  # threads that end at the start may give some pages back
    metrics = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "gb_cpu_seconds": cpu_seconds / max(pushed / 1e9, 1e-9),
        "peak_nbytes": peak,
        "disk_nbytes": disk_nbytes(folder),
        "output_nbytes": case.output_nbytes,
        "output_gb_s": case.output_nbytes / 1e9 / seconds,
        "least_nbytes": case.output_nbytes + case.batch_nbytes,
        "pushed_nbytes": pushed,
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


def _spawn(run: Run, folder: str, *group: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  this very module
        [
            sys.executable,
            "-m",
            "benchmarks._measure",
            type(run.case).__name__,
            json.dumps(asdict(run)),
            folder,
            *group,
        ],
        cwd=Path(__file__).parents[1],
        env=os.environ | _ONE_BLAS_THREAD,
        stdout=subprocess.PIPE,
        text=True,
        check=not group,  # in a group it may be killed, and that is a result
    )


def _metrics(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    metrics: dict[str, Any] = json.loads(
        done.stdout.splitlines()[-1]
    )  # others may print as they are imported
    if "unavailable" in metrics:
        raise UnavailableError(metrics["unavailable"])
    return metrics


def _main() -> None:
    kind, text, folder, *groups = sys.argv[1:]
    raw = json.loads(text)
    run = Run(**(raw | {"case": _SPECS[kind](**raw["case"])}))
    for group in groups:
        join(Path(group))
    try:
        metrics, _outcome = measure_here(run, Path(folder))
    except UnavailableError as reason:
        print(json.dumps({"unavailable": str(reason)}))
    else:
        print(json.dumps(metrics))


if __name__ == "__main__":
    _main()

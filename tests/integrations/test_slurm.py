"""The scripts of the documentation as SLURM runs them, without it: by the variables that it sets.

``sbatch`` of these tests is this file, run by itself: it starts the tasks of an array one after the other,
and a job that depends on others when those have ended well.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ENVIRONMENT, TIMEOUT
from helpers.soak import soaked

from accumulator import FullBatch, publish
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.shared import SharedRun

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs"
ARRAY = Path("docs/scripts/slurm_array.sbatch")
STORE = Path("run.zarr")
COLUMNS, ROWS = 7, 13
N = COLUMNS * ROWS
GRID = ["--grid", str(COLUMNS), str(ROWS)]
SLOW = ["--seconds", "0.2", "--batch-size", "1", "--checkpoint-interval", "0"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_")


def numbers_of(text):
    """Return the numbers of an array, such as 0-3 or 0-12:4."""
    first, last, by = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", text).groups()
    return range(int(first), int(last or first) + 1, int(by or 1))


def of_task(number, numbers):
    """Return what SLURM sets for a task of an array, in its batch script."""
    array = {"TASK_ID": number, "TASK_COUNT": len(numbers), "TASK_MIN": numbers[0], "TASK_MAX": numbers[-1]}
    array |= {"JOB_ID": 7, "TASK_STEP": numbers.step}
    told = {f"SLURM_ARRAY_{name}": str(value) for name, value in array.items()}
    return told | {"SLURM_JOB_ID": str(8 + number), "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


def sbatch(words):
    """Do what ``sbatch`` does, and wait until it is done; what SLURM would say goes to files."""
    parser = argparse.ArgumentParser()
    for name in ("--array", "--dependency", "--job-name", "--kill-on-invalid-dep", "--wrap"):
        parser.add_argument(name)
    parser.add_argument("--parsable", action="store_true")
    options, rest = parser.parse_known_args(words)
    jobs = Path("jobs")
    jobs.mkdir(exist_ok=True)
    job = len(list(jobs.iterdir())) + 7
    if options.dependency:
        kind, before = options.dependency.split(":")
        assert kind == "afterok"
        if (jobs / before).read_text() != "0":
            (jobs / str(job)).write_text("DependencyNeverSatisfied")
            return
    spool = Path("spool") / str(job)
    spool.mkdir(parents=True)
    if options.wrap:
        (spool / "script").write_text(f"#!/bin/sh\n{options.wrap}\n")
        tasks = [{}]
    else:
        shutil.copy(rest.pop(0), spool / "script")  # so a script does not find what lies beside it
        head = (spool / "script").read_text().split("set -euo")[0]
        text = options.array or re.search(r"^#SBATCH --array=(\S+)$", head, re.MULTILINE)[1]
        tasks = [of_task(number, numbers_of(text)) for number in numbers_of(text)]
    processes = []
    for told in tasks:
        with (spool / f"output-{len(processes)}").open("w") as file:
            command = ["/bin/bash", str(spool / "script"), *rest]
            processes.append(subprocess.Popen(command, env=os.environ | told, stdout=file, stderr=file))
        if len(processes) < len(tasks):
            time.sleep(float(os.environ["DELAY"]))
    status = max(abs(process.wait()) for process in processes)
    (jobs / str(job)).write_text(str(status))
    print(job if options.parsable else f"Submitted batch job {job}")  # noqa: T201  what it says


if __name__ == "__main__":
    sbatch(sys.argv[1:])


@pytest.fixture(autouse=True)
def _cluster():
    """Have ``docs``, and an ``sbatch``, in the working folder."""
    Path("docs").symlink_to(DOCS)
    Path("bin").mkdir()
    Path("bin/sbatch").write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} "$@"\n')
    Path("bin/sbatch").chmod(0o755)


def environment(told):
    """Return this one with what SLURM sets; commands are those of this Python."""
    kept = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(LAUNCHERS)}
    path = [str(Path("bin").absolute()), str(Path(sys.executable).parent), kept["PATH"]]
    return kept | {"PATH": os.pathsep.join(path), "DELAY": "0.3"} | told


class Task:
    """A batch script that runs as a task."""

    def __init__(self, told, *arguments, command=("/bin/bash", ARRAY)):
        self.process = subprocess.Popen(
            [*command, *GRID, *arguments],
            env=environment(told),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def share(self):
        """Return how many rows it was given, once it says so."""
        line = self.process.stdout.readline()
        assert re.fullmatch(rf"\d+ of {N} rows\n", line), line + self.process.stdout.read()
        return int(line.split()[0])

    def end(self):
        """Wait for its end, and return how it ended."""
        try:
            self.said = self.process.communicate(timeout=TIMEOUT)[0]
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode


def n_recorded():
    """Return how many rows anybody has recorded."""
    return int(recorded_rows(SharedRun.find(STORE)).sum())


def wait_for_rows(n):
    """Wait until so many rows are recorded."""
    deadline = time.monotonic() + TIMEOUT
    while n_recorded() < n:
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.05)


def check(columns=COLUMNS, rows=ROWS, store=STORE):
    """Check that all is there, in canonical order, and each row what one patch gives, pixel by pixel."""
    assert not (store / "parts").exists()
    with FullBatch.load(store) as batch:
        assert batch.written.all()
        assert len(batch.written) == columns * rows
        for row in range(columns * rows):
            x, y = 16 * (row % columns), 16 * (row // columns)
            assert batch.output_locs[row].tolist() == [x, y, x + 16, y + 16]
            image = np.array([[(7 * (x + j) + 13 * (y + i)) % 251 for j in range(16)] for i in range(16)])
            mean = sum(image[i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
            assert np.array_equal(batch.outputs["mean"][row], mean)
            assert batch.outputs["brightest"][row].tolist() == [image.max()]


def submit(*arguments, **told):
    """Submit both jobs by the script, and return what each task said."""
    ended = subprocess.run(
        ["/bin/bash", "docs/scripts/slurm_submit.sh", *arguments],
        env=environment(told),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [path.read_text() for path in sorted(Path("spool").glob("*/output-*"))]


def test_as_they_stand():
    """An array of four and a job that publishes: late tasks leave nothing, and do nothing twice."""
    *tasks, published = submit()
    assert len(tasks) == 4
    assert sum(int(said.split()[0]) for said in tasks) == 713
    assert "complete: 713 of 713 rows published, 0 missing" in published
    check(23, 31)


@pytest.mark.soak
def test_a_store_with_a_name_that_shells_read():
    """It is the same for all, and a job that failed is not published."""
    store = "a b;c.zarr"
    submit("--grid", "0", "x", STORE=store)
    assert not Path(store).exists()
    assert [path.read_text() for path in sorted(Path("jobs").iterdir())][1] == "DependencyNeverSatisfied"
    submit(*GRID, STORE=store)
    check(store=Path(store))


@pytest.mark.parametrize("again", ["requeued", *soaked("submitted alone")])
def test_a_task_is_killed(again):
    """Started again it does what is left: by its number, or as an array of one, which takes all there is."""
    numbers = range(4)
    tasks = {}
    for number in (2, 1, 0):  # the last one has to wait for a machine
        tasks[number] = Task(of_task(number, numbers), *(SLOW if number == 1 else []))
        time.sleep(0.3)
    shares = [task.share() for task in tasks.values()]
    before = n_recorded()
    wait_for_rows(before + 2)
    tasks[1].process.kill()
    assert [tasks[number].end() for number in (0, 1, 2)] == [0, -signal.SIGKILL, 0]
    late = Task(of_task(3, numbers))
    shares.append(late.share())
    assert late.end() == 0, late.said
    assert sum(shares) == N
    done = n_recorded()
    assert N - 23 <= done < N
    task = Task(of_task(1, numbers if again == "requeued" else range(1, 2)))
    assert task.share() == N - done
    assert task.end() == 0, task.said
    publish(STORE).close()
    check()


def test_time_is_up():
    """SIGTERM goes to Python itself, which records all it has, though no checkpoint was due."""
    task = Task(of_task(1, range(2)), "--seconds", "0.2", "--batch-size", "1", "--checkpoint-interval", "inf")
    share = task.share()
    time.sleep(2)
    task.process.terminate()
    assert task.end() == 143, task.said
    done = n_recorded()
    assert 0 < done < share
    rest = [Task(of_task(number, range(2))) for number in range(2)]
    assert sum(task.share() for task in rest) == N - done
    assert [task.end() for task in rest] == [0, 0]
    publish(STORE).close()
    check()


def test_a_step_of_srun_and_no_slurm():
    """The same Python script runs under srun, and in one process."""
    command = [sys.executable, "docs/scripts/slurm_predict.py"]
    step = {"SLURM_NTASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}
    tasks = [Task(step | {"SLURM_PROCID": str(rank)}, command=command) for rank in range(3)]
    assert sum(task.share() for task in tasks) == N
    assert [task.end() for task in tasks] == [0, 0, 0]
    publish(STORE).close()
    check()
    alone = Task({}, "--store", "alone.zarr", command=command)
    assert alone.share() == N
    assert alone.end() == 0
    publish("alone.zarr").close()
    check(store=Path("alone.zarr"))

"""Which rank a process is, against a table of what launchers set, which was written by hand."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accumulator._inputs.ranks import Rank, as_rank
from accumulator.exceptions import OptionError

ARRAY = "SLURM_ARRAY_TASK_"


def torchrun(rank, size, local=None):
    """Return what torchrun sets."""
    local = size if local is None else local
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % local, "LOCAL_WORLD_SIZE": local}


def step(rank, size, on_nodes):
    """Return what srun sets for a task."""
    return {
        "SLURM_JOB_ID": 7,
        "SLURM_PROCID": rank,
        "SLURM_NTASKS": size,
        "SLURM_STEP_NUM_TASKS": size,
        "SLURM_STEP_TASKS_PER_NODE": on_nodes,
    }


def batch_script(n_tasks=None):
    """Return what SLURM sets for a batch script, which is itself a task."""
    return {"SLURM_JOB_ID": 7, "SLURM_PROCID": 0} | ({} if n_tasks is None else {"SLURM_NTASKS": n_tasks})


def array(number, count, first=0, last=None, by=1):
    """Return what SLURM sets for the batch script of a task of an array."""
    last = first + (count - 1) * by if last is None else last
    told = {"JOB_ID": 7, "TASK_ID": number, "TASK_COUNT": count, "TASK_MIN": first, "TASK_MAX": last}
    return (
        batch_script() | {f"SLURM_ARRAY_{name}": value for name, value in told.items()} | {f"{ARRAY}STEP": by}
    )


def without(environment, *names):
    """Return an environment without some variables."""
    return {name: value for name, value in environment.items() if name not in names}


@pytest.fixture
def environment(monkeypatch):
    """Return what makes this process's environment one of a table."""

    def put(told):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name in list(os.environ):
            if name.startswith("SLURM_"):
                monkeypatch.delenv(name)
        for name, value in told.items():
            monkeypatch.setenv(name, str(value))

    put({})
    return put


@pytest.mark.parametrize(
    ("told", "rank", "size", "n_on_node"),
    [
        pytest.param({}, 0, 1, 1, id="nobody"),
        pytest.param(torchrun(0, 1), 0, 1, 1, id="torchrun, alone"),
        pytest.param(torchrun(3, 4), 3, 4, 4, id="torchrun, one machine"),
        pytest.param(torchrun(9, 16, 8), 9, 16, 8, id="torchrun, two machines"),
        pytest.param({"RANK": 1, "WORLD_SIZE": 3}, 1, 3, 3, id="set by hand"),
        pytest.param(step(5, 8, "4(x2)"), 5, 8, 4, id="srun, two machines"),
        pytest.param(step(2, 3, "3"), 2, 3, 3, id="srun, one machine"),
        pytest.param(step(6, 7, "4,3"), 6, 7, 4, id="srun, machines that differ"),
        pytest.param(step(0, 2, "9") | {"SLURM_NTASKS_PER_NODE": 1}, 0, 2, 1, id="srun, --ntasks-per-node"),
        pytest.param(step(1, 2, ""), 1, 2, 2, id="srun, machines unknown"),
        pytest.param(step(0, 1, "1"), 0, 1, 1, id="srun, alone"),
        pytest.param(batch_script(), 0, 1, 1, id="batch script"),
        pytest.param(batch_script(1), 0, 1, 1, id="batch script of one task"),
        pytest.param(array(0, 4), 0, 4, 1, id="array, first"),
        pytest.param(array(3, 4), 3, 4, 1, id="array, last"),
        pytest.param(array(5, 4, first=3), 2, 4, 1, id="array from 3"),
        pytest.param(array(14, 4, first=2, by=4), 3, 4, 1, id="array by 4"),
        pytest.param(array(8, 3, first=2, last=10, by=4) | {ARRAY + "ID": 10}, 2, 3, 1, id="array, 2-13:4"),
        pytest.param(array(2, 1, first=2), 0, 1, 1, id="array, one task again"),
        pytest.param(array(3, 4) | batch_script(1), 3, 4, 1, id="array of scripts of one task"),
        pytest.param(array(3, 4) | step(0, 1, "1"), 3, 4, 1, id="array, srun of one task"),
        pytest.param(without(array(1, 4), ARRAY + "MIN", ARRAY + "STEP"), 1, 4, 1, id="array, the least"),
        pytest.param(array(3, 4) | torchrun(1, 2), 1, 2, 2, id="torchrun in an array"),
        pytest.param(batch_script(8) | torchrun(1, 2), 1, 2, 2, id="torchrun in a job"),
        pytest.param(array(1, 2) | step(2, 3, "3"), 2, 3, 3, id="srun in an array"),
        pytest.param({"SLURM_NTASKS": 8}, 0, 1, 1, id="tasks without a number"),
        pytest.param({"SLURM_PROCID": 3}, 0, 1, 1, id="a number without tasks"),
    ],
)
def test_auto(environment, told, rank, size, n_on_node):
    """The environment says it: torchrun before srun before an array."""
    environment(told)
    assert as_rank("auto", "auto") == Rank(rank, size, n_on_node)
    assert as_rank("auto", size) == Rank(rank, size, n_on_node)
    assert as_rank(rank, "auto") == Rank(rank, size, n_on_node)
    given = as_rank(np.int64(rank), np.int32(size))
    assert (given.rank, given.world_size) == (rank, size)
    assert as_rank(None, None) is None


@pytest.mark.parametrize(
    ("told", "named"),
    [
        pytest.param({"RANK": 0}, "WORLD_SIZE", id="RANK alone"),
        pytest.param({"WORLD_SIZE": 2}, "RANK", id="WORLD_SIZE alone"),
        pytest.param({"RANK": "one", "WORLD_SIZE": 2}, "RANK is 'one'", id="RANK is a word"),
        pytest.param({"RANK": -1, "WORLD_SIZE": 2}, "RANK is '-1'", id="RANK is negative"),
        pytest.param({"RANK": "", "WORLD_SIZE": 2}, "RANK is ''", id="RANK is empty"),
        pytest.param(
            {"RANK": 0, "WORLD_SIZE": "2.0"}, "WORLD_SIZE is '2.0'", id="WORLD_SIZE is no whole number"
        ),
        pytest.param({"RANK": 2, "WORLD_SIZE": 2}, "from 0 to 1", id="RANK is too large"),
        pytest.param({"RANK": 0, "WORLD_SIZE": 0}, "world_size 0", id="WORLD_SIZE is 0"),
        pytest.param(step("x", 2, "2"), "SLURM_PROCID is 'x'", id="srun: a word"),
        pytest.param(step(4, 4, "4"), "from 0 to 3", id="srun: too large"),
        pytest.param(array(3, 3, last=9), "gaps", id="array 0,3,9"),
        pytest.param(array(3, 2, first=1, last=3), "gaps", id="array 1,3 that says step 1"),
        pytest.param(array(4, 3, by=3) | {ARRAY + "MAX": 6}, "gaps", id="array: a number between steps"),
        pytest.param(array(4, 4), "from 0 to 3", id="array: too large"),
        pytest.param(array(1, 4) | {ARRAY + "STEP": 0}, "gaps", id="array: step 0"),
        pytest.param(without(array(1, 4), ARRAY + "COUNT"), "COUNT is None", id="array without a count"),
        pytest.param(without(array(1, 4), ARRAY + "MAX"), "MAX is None", id="array without its last"),
        pytest.param(array("1_0", 11), "ID is '1_0'", id="array: a word"),
    ],
)
def test_what_cannot_be_meant(environment, told, named):
    """Half of the variables, numbers that are none, and arrays with gaps are refused, and named."""
    environment(told)
    with pytest.raises(OptionError, match=named):
        as_rank("auto", "auto")


@pytest.mark.parametrize(
    ("told", "rank", "size"),
    [
        pytest.param(torchrun(1, 4), 1, 2, id="torchrun: another size"),
        pytest.param(torchrun(1, 4), 0, 1, id="torchrun: alone"),
        pytest.param(torchrun(1, 4), "auto", 8, id="torchrun: its rank of another size"),
        pytest.param(torchrun(1, 4), 4, "auto", id="torchrun: a rank that it has not"),
        pytest.param(step(1, 4, "4"), 1, 5, id="srun: another size"),
        pytest.param(array(1, 4), "auto", 8, id="array: its rank of another size"),
        pytest.param({}, "auto", 2, id="nobody: a rank of 2"),
        pytest.param({}, 1, "auto", id="nobody: rank 1"),
    ],
)
def test_contradictions(environment, told, rank, size):
    """What is given is not what the environment says."""
    environment(told)
    with pytest.raises(OptionError):
        as_rank(rank, size)


@pytest.mark.parametrize(
    ("told", "rank", "size", "n_on_node"),
    [
        pytest.param({}, 2, 3, 3, id="nobody else knows"),
        pytest.param(array(1, 4), 5, 16, 16, id="an array of which each task has several"),
        pytest.param(array(1, 4) | step(1, 4, "4"), 5, 16, 4, id="an array whose tasks have several by srun"),
        pytest.param(array(2, 1, first=2), 2, 4, 4, id="a task of an array again, for its own share"),
        pytest.param(array(3, 3, last=9), 1, 3, 3, id="an array with gaps"),
        pytest.param({"WORLD_SIZE": 2}, 2, 3, 3, id="half of what torchrun says"),
        pytest.param({"RANK": 0}, 2, 3, 3, id="the other half"),
        pytest.param(batch_script(1), 3, 4, 4, id="processes that a batch script starts"),
    ],
)
def test_ints_are_taken_as_given(environment, told, rank, size, n_on_node):
    """Where they say more than the environment knows."""
    environment(told)
    assert as_rank(rank, size) == Rank(rank, size, n_on_node)


def test_another_rank_than_the_environment_says(environment):
    """Each of them would do the same share, and nobody the others."""
    environment(torchrun(1, 4))
    with pytest.raises(OptionError, match="rank is 3, and RANK and WORLD_SIZE say 1"):
        as_rank(3, 4)


@pytest.mark.parametrize("told", [{"RANK": "x", "WORLD_SIZE": "y"}, step("x", 3, "3")])
def test_the_remedy_helps(environment, told):
    """Ints do not need an environment that makes no sense."""
    environment(told)
    with pytest.raises(OptionError, match="give rank= and world_size= as ints"):
        as_rank("auto", "auto")
    assert as_rank(1, 3).rank == 1


def test_an_engine_knows(environment):
    """Whatever the environment says of the job that it runs in."""
    environment(step(3, 4, "4") | {"WORLD_SIZE": 9})
    assert as_rank(Rank(1, 2, 2), None) == Rank(1, 2, 2)


def test_a_number_below_the_first(environment):
    """An array has no such task."""
    environment(array(0, 4, first=1))
    with pytest.raises(OptionError):
        as_rank("auto", "auto")


@pytest.mark.parametrize(
    "wrong", [-1, 1.0, True, False, np.True_, "1", "AUTO", "", b"auto", (0,), 1j, np.float64(1)]
)
def test_values_that_are_no_rank(environment, wrong):
    """They are whole numbers, or the word "auto" as it is written."""
    environment(torchrun(0, 4))
    with pytest.raises(OptionError, match=r"^rank is"):
        as_rank(wrong, 4)
    with pytest.raises(OptionError, match=r"^world_size is"):
        as_rank(0, wrong)


def test_none_of_nobody(environment):
    """A world of no process is none, and nobody is beyond its end."""
    del environment
    with pytest.raises(OptionError, match="world_size is 0"):
        as_rank(0, 0)
    with pytest.raises(OptionError, match="rank is 3, and world_size 3: ranks are numbered from 0 to 2"):
        as_rank(3, 3)


@pytest.mark.parametrize("one", [0, "auto"])
def test_both_or_neither(environment, one):
    """One of the two says nothing, whatever the environment is."""
    for told in ({}, torchrun(0, 2)):
        environment(told)
        with pytest.raises(OptionError, match="go together"):
            as_rank(one, None)
        with pytest.raises(OptionError, match="go together"):
            as_rank(None, one)


@given(
    first=st.integers(0, 50),
    count=st.integers(1, 40),
    by=st.integers(1, 9),
    rest=st.integers(0, 8),
    data=st.data(),
)
def test_any_array_is_numbered_in_turn(first, count, by, rest, data):
    """``--array=first-last:by`` has each rank once, wherever between two steps its range ends."""
    last = first + (count - 1) * by + rest % by
    numbers = list(range(first, last + 1, by))
    assert len(numbers) == count
    position = data.draw(st.integers(0, count - 1))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"):
            patch.delenv(name, raising=False)
        for name, value in array(numbers[position], count, first, last, by).items():
            patch.setenv(name, str(value))
        assert as_rank("auto", "auto") == Rank(position, count, 1)

"""``accumulator publish``: parts become one store, and what it says where they cannot."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
from helpers.files import tree
from helpers.ranked import LOCS, N, alone, check_same, open_rank, push, values

from accumulator import FullBatch, FullBatchAccumulator, publish
from accumulator._cli.commands import main
from accumulator._stores.files.ownership import ClaimedFolder
from accumulator.exceptions import StorageWarning

STORE = Path("run.zarr")


def run(capsys, *argv):
    """Run the command on the store; return its exit code and what it printed."""
    code = main(["publish", str(STORE), *argv])
    captured = capsys.readouterr()
    assert captured.err.count("\n") == bool(captured.err)
    return code, captured.out, captured.err


def end(rank, world_size, rows, version=0, **options):
    """Let a rank come to its end."""
    with open_rank(STORE, rank, world_size, chunks=7, **options) as accumulator:
        push(accumulator, rows, version)
    accumulator.finalize().close()


def rank_folders():
    """Return the folders of all parts by their ranks."""
    files = STORE.glob("parts/*/part.json")
    return {json.loads(path.read_text("utf-8"))["rank"]: path.parent for path in files}


def test_all_ranks_have_ended(capsys):
    """The result is that of one process, to the byte; a line says what it has."""
    rows = np.arange(80)
    alone("alone.zarr", rows, chunks=7)
    end(0, 2, rows[::2])
    end(1, 2, rows[1::2])
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    assert out == f"{STORE.absolute()}: complete: 80 of 101 rows published, 21 missing\n"
    check_same(STORE, "alone.zarr")


def test_json_and_a_second_time(capsys):
    """It says the same in fields; what is published already is left as it is."""
    end(0, 2, np.arange(7))
    end(1, 2, np.arange(50, 60))
    found = {"path": str(STORE.absolute()), "state": "complete", "n": N, "n_written": 17, "n_missing": 84}
    found["n_left_out"] = 0
    assert json.loads(run(capsys, "--json")[1]) == found
    before = tree(STORE)
    code, out, _ = run(capsys, "--json")
    assert (code, json.loads(out)) == (0, found)
    assert tree(STORE) == before


def test_several_processes(capsys):
    """Chunks that ranks share are put together by others; their main module is the command itself."""
    alone("alone.zarr", np.arange(N), chunks=2)
    for rank in range(3):
        with open_rank(STORE, rank, 3, chunks=2) as accumulator:
            push(accumulator, np.arange(rank, N, 3))
        accumulator.finalize().close()
    command = [sys.executable, "-W", "error", "-m", "accumulator", "publish", str(STORE), "--processes", "2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert "101 of 101 rows published, 0 missing" in found.stdout
    check_same(STORE, "alone.zarr")
    resource_tracker._resource_tracker._stop()  # Python's own, if a test has started it
    assert run(capsys, "--processes", "2")[0] == 0


def test_options_are_given_on(monkeypatch, capsys):
    """What the library is called with is what the shell said, and what it has by default otherwise."""
    end(0, 1, np.arange(3))
    calls = []

    def note(*given, **named):
        calls.append((given, named))
        return publish(*given[:2])

    monkeypatch.setattr("accumulator._cli.publish.publish", note)
    assert run(capsys, "--partial", "--processes", "3", "--on-duplicate", "first")[0] == 0
    assert run(capsys)[0] == 0
    assert calls == [
        ((STORE, True, 3), {"on_duplicate": "first", "leave_out": []}),
        ((STORE, False, 1), {"on_duplicate": None, "leave_out": []}),
    ]


def test_a_rank_that_was_killed_is_told_of(start_rank, capsys):
    """What it recorded is published, and a warning names it."""
    end(0, 2, np.arange(7))
    dead = start_rank(1, 2, np.arange(40, 49))
    dead.tell("die")
    with pytest.warns(StorageWarning, match=rf"85 locations of .* are missing.*process {dead.pid} on"):
        code, out, _ = run(capsys)
    assert (code, out) == (0, f"{STORE.absolute()}: complete: 16 of 101 rows published, 85 missing\n")
    with FullBatch.load(STORE) as batch:
        np.testing.assert_array_equal(batch.outputs["map"][40:49], values(np.arange(40, 49))["map"])


def test_warnings_are_a_line_each(start_rank):
    """In a shell there is no line of code above them."""
    start_rank(0, 1, np.arange(9)).tell("die")
    command = [sys.executable, "-m", "accumulator", "publish", str(STORE)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.count("\n"), found.stderr.count("\n")) == (0, 1, 1)
    assert found.stderr.startswith("accumulator: warning: 92 locations of ")


def test_a_rank_at_work_is_waited_for_or_published_by_now(start_rank, capsys):
    """Without --partial nothing changes; with it the rank goes on, and its rest joins later."""
    end(0, 2, np.arange(20))
    living = start_rank(1, 2, np.arange(30, 35))
    before = tree(STORE)
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert f"ranks are still writing parts of this store (rank 1 of 2, process {living.pid} on" in err
    assert "publish what they have recorded by now with --partial" in err
    assert tree(STORE) == before
    code, out, err = run(capsys, "--partial")
    assert (code, err) == (0, "")
    assert out == (
        f"{STORE.absolute()}: in parts: 25 of 101 rows published, 76 missing\n"
        "it is not complete: publish again, without --partial, once all ranks have ended\n"
    )
    living.tell("push", np.arange(35, 50))
    code, out, _ = run(capsys, "--partial", "--json")
    assert (code, json.loads(out)["state"], json.loads(out)["n_written"]) == (0, "in parts", 40)
    living.tell("push", np.arange(50, N))
    living.tell("push", np.arange(20, 30))
    living.tell("end")
    alone("alone.zarr", np.arange(N), chunks=7)
    assert run(capsys)[:2] == (0, f"{STORE.absolute()}: complete: 101 of 101 rows published, 0 missing\n")
    check_same(STORE, "alone.zarr")


@pytest.mark.parametrize(("policy", "version"), [("first", 1), ("last", 2)])
def test_predictions_that_differ(capsys, policy, version):
    """They are refused, in the words of the shell; then who was first, or last, counts."""
    with open_rank(STORE, 0, 2, chunks=7) as late, open_rank(STORE, 1, 2, chunks=7) as early:
        push(early, np.arange(10), 1)
        early.flush()
        push(late, np.arange(5, 20), 2)
        late.flush()
    for rank in (late, early):
        rank.finalize().close()
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert "5 locations have several predictions that differ" in err
    assert "publish with --on-duplicate first or --on-duplicate last, by when they were recorded" in err
    with pytest.warns(StorageWarning, match="5 locations of"):
        code, out, _ = run(capsys, "--on-duplicate", policy)
    assert (code, out) == (0, f"{STORE.absolute()}: complete: 20 of 101 rows published, 81 missing\n")
    with FullBatch.load(STORE) as batch:
        np.testing.assert_array_equal(
            batch.outputs["score"][5:10], values(np.arange(5, 10), version)["score"]
        )
        np.testing.assert_array_equal(batch.outputs["score"][:5], values(np.arange(5), 1)["score"])


def test_damaged_parts_are_left_out_by_name(capsys):
    """The error has the option to copy; several are named one after the other, or each with the option."""
    for rank in range(4):
        end(rank, 4, np.arange(10 * rank, 10 * rank + 10))
    folders = rank_folders()
    for rank in (1, 2, 3):
        (folders[rank] / "part.json").write_text("{", "utf-8")
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    option = re.search(r"--leave-out '[0-9a-f]{32}'", err)
    assert option is not None
    words = shlex.split(option[0])
    assert words[1] in {folders[rank].name for rank in (1, 2, 3)}
    assert run(capsys, *words)[0] == 1  # there are others
    code, _, err = run(capsys, "--leave-out", "nobody")
    assert (code, "--leave-out names parts that are not there: nobody" in err) == (1, True)
    names = [folders[rank].name for rank in (1, 2, 3)]
    code, out, err = run(capsys, *(word for name in names for word in ("--leave-out", name)))
    assert (code, err) == (0, "")
    assert out == f"{STORE.absolute()}: complete: 10 of 101 rows published, 91 missing\n"
    assert sorted(path.name for path in (STORE / "parts").glob("?" * 32)) == sorted(names)


def test_somebody_else_is_publishing(capsys):
    """The lock of the store is respected, and nothing changes."""
    end(0, 1, np.arange(9))
    before = tree(STORE)
    claimed = ClaimedFolder.claim(STORE, "a")
    try:
        code, out, err = run(capsys)
    finally:
        claimed.release(is_unused=False)
    assert (code, out) == (1, "")
    assert "is writing this store" in err
    assert tree(STORE) == before
    assert run(capsys)[0] == 0


def test_a_store_of_one_process(capsys):
    """One that is not complete is refused, or looked at; a complete one is left as it is."""
    accumulator = FullBatchAccumulator(LOCS, store=STORE, chunks=7)
    push(accumulator, np.arange(40))
    accumulator.close()
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert "resume it" in err
    before = tree(STORE)
    line = f"{STORE.absolute()}: running: 40 of 101 rows published, 61 missing\n"
    assert run(capsys, "--partial") == (0, line, "")
    assert tree(STORE) == before
    FullBatchAccumulator(LOCS, store=STORE, mode="a", chunks=7).finalize().close()
    before = tree(STORE)
    assert run(capsys) == (0, line.replace("running", "complete"), "")
    assert tree(STORE) == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "there is no saved result"),
        (lambda: STORE.write_bytes(b"x"), "a saved result is a folder"),
        (STORE.mkdir, "there is no zarr.json"),
        (lambda: open_rank(STORE, 0, 1).close(), "nothing was pushed"),
    ],
)
def test_nothing_to_publish(capsys, make, said):
    """One line says what is there, and nothing is made of it."""
    make()
    code, out, err = run(capsys)
    assert (code, out) == (1, "")
    assert said in err
    assert not (STORE / "zarr.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["run.zarr", "--processes", "0"],
        ["run.zarr", "--processes", "two"],
        ["run.zarr", "--on-duplicate", "average"],
        ["run.zarr", "--leave-out"],
    ],
)
def test_wrong_arguments(capsys, wrong):
    """They are refused with exit code 2, before anything is looked at."""
    with pytest.raises(SystemExit) as ended:
        main(["publish", *wrong])
    assert ended.value.code == 2
    assert "usage: accumulator publish PATH [options]" in capsys.readouterr().err


def test_help(capsys):
    """The command is in the list, and has examples that its parser takes."""
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "accumulator publish PATH " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["publish", "--help"])
    said = capsys.readouterr().out
    assert "exit codes: 0 published" in said
    examples = re.findall(r"^  accumulator publish (run\.zarr(?: --?[\w-]+(?: \w+)?)*)", said, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        assert main(["publish", *example.split()]) == 1
        assert "there is no saved result" in capsys.readouterr().err


def test_locations_are_those_of_the_run(capsys):
    """What was published says where its rows lie."""
    end(0, 1, np.arange(3))
    assert run(capsys)[0] == 0
    with FullBatch.load(STORE) as batch:
        np.testing.assert_array_equal(batch.output_locs, LOCS)
        assert np.flatnonzero(batch.written).tolist() == [0, 1, 2]

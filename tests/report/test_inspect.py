"""The commands that look at a store: what they say of good, running, damaged and wrong ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.oracle import distinct, grid

from accumulator import FullBatch, FullBatchAccumulator, exceptions
from accumulator._cli.commands import main
from accumulator._stores.files.ownership import is_locked
from accumulator.exceptions import AccumulatorError, LockedError, UnfinishedError

N = 11
LOCS = grid(N)
ROWS = [0, 1, 2, 3, 7, 9]
NAMES = ("Gewebe \u2014 \u7d44\u7e54", "bad\x1b[2J\nname")


def push(accumulator, rows=ROWS):
    """Push two heads with awkward names."""
    heads = {NAMES[0]: distinct(N)[rows], NAMES[1]: distinct(N, (3,), "i2")[rows]}
    accumulator.push(heads, LOCS[rows])


@pytest.fixture
def complete():
    """Make a complete store."""
    with FullBatchAccumulator(LOCS, store="run.zarr", chunks=2, resume_token="model 7") as accumulator:
        push(accumulator)
    accumulator.finalize().close()
    return Path("run.zarr")


@pytest.fixture
def running():
    """Make a running store that nobody writes any more."""
    accumulator = FullBatchAccumulator(LOCS, store="run.zarr", chunks=2)
    push(accumulator)
    accumulator.close()
    return Path("run.zarr")


def run(capsys, *argv):
    """Run the command; return its exit code and what it printed."""
    code = main([str(each) for each in argv])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == bool(captured.err)
    return code, captured.out, captured.err


def run_json(capsys, *argv):
    """Run the command with ``--json``; return its exit code and the object."""
    code, out, err = run(capsys, *argv, "--json")
    assert err == ""
    return code, json.loads(out)


def flip(path):
    """Flip a bit in a file's middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_info_of_a_complete_store(complete, capsys):
    """State, heads, coverage, token and size are there, in JSON and in text without control characters."""
    code, found = run_json(capsys, "info", complete)
    assert code == 0
    assert (found["state"], found["is_locked"], found["resume_token"]) == ("complete", False, "model 7")
    assert (found["n"], found["n_written"], found["n_missing"], found["n_columns"]) == (N, 6, 5, 4)
    assert found["path"] == str(complete.absolute())
    assert found["disk_nbytes"] > 4096
    assert [head["name"] for head in found["heads"]] == list(NAMES)
    assert found["heads"][0] == {
        "name": NAMES[0],
        "shape": [N, 2, 2, 1],
        "dtype": "float32",
        "fill_value": "0.0",
        "chunks": [2, 2, 2, 1],
        "shards": None,
        "codecs": ["bytes"],
        "nbytes": N * 16,
        "files": 6,
    }
    code, out, _ = run(capsys, "info", complete)
    assert code == 0
    assert "\x1b" not in out
    assert f"head {NAMES[0]}: 11 x 2 x 2 x 1 float32, 176 bytes, fill value 0.0" in out
    assert "head bad\\x1b[2J\\nname: 11 x 3 int16" in out
    assert "written             6 (54.5%)" in out
    assert "being written       no" in out


def test_info_of_encoded_heads(capsys):
    """Shards and codecs are named, and so is a fill value that is no zero."""
    with FullBatchAccumulator(
        LOCS, store="run.zarr", chunks=1, shards=4, compressors=zarr.codecs.ZstdCodec(), fill_value=-1
    ) as accumulator:
        accumulator.push([distinct(N, (3,), "i2")], LOCS)
    accumulator.finalize().close()
    (head,) = run_json(capsys, "info", "run.zarr")[1]["heads"]
    assert (head["name"], head["fill_value"], head["chunks"], head["shards"]) == ("0", -1, [1, 3], [4, 3])
    assert head["codecs"] == ["bytes", "zstd"]
    out = run(capsys, "info", "run.zarr")[1]
    assert "chunks 1 x 3, shards 4 x 3, codecs bytes zstd" in out
    assert "written             11 (100.0%)" in out


def test_running_store_is_looked_at_without_being_changed(running, capsys):
    """It is running and nobody writes it; the commands leave every byte as it is."""
    before = tree(running)
    code, found = run_json(capsys, "info", running)
    assert (code, found["state"], found["is_locked"]) == (0, "running", False)
    found = run_json(capsys, "verify", running)[1]
    assert (found["is_right"], found["verdict"]) == (True, "unfinished")
    code, out, _ = run(capsys, "verify", running)
    assert (code, out) == (
        0,
        f"{running.absolute()}: unfinished, right so far: 6 of 11 rows of 2 heads, running\n",
    )
    assert tree(running) == before


def test_store_that_is_being_written_is_said_to_be(capsys):
    """The lock is seen, the writer goes on, and what it had recorded is checked."""
    with FullBatchAccumulator(LOCS, store="run.zarr", checkpoint_interval=float("inf")) as accumulator:
        code, out, err = run(capsys, "info", "run.zarr")
        assert (code, out) == (1, "")
        assert "its first push has not come" in err
        push(accumulator)
        accumulator.flush()
        push(accumulator, [4, 5])
        code, found = run_json(capsys, "info", "run.zarr")
        assert (code, found["is_locked"], found["n_written"]) == (0, True, 6)
        assert "being written       yes" in run(capsys, "info", "run.zarr")[1]
        code, found = run_json(capsys, "verify", "run.zarr")
        assert (code, found["is_right"], found["is_locked"], found["n_written"]) == (0, True, True, 6)
        assert "somebody is writing this store" in run(capsys, "verify", "run.zarr")[1]
        with pytest.raises(LockedError):
            FullBatchAccumulator(LOCS, store="run.zarr", mode="a")
        push(accumulator, [6])
    np.testing.assert_array_equal(np.flatnonzero(FullBatch.load("run.zarr").written), [*range(8), 9])


def test_damage_is_found_in_a_store_that_is_being_written(capsys):
    """A second look, for rows that are being replaced, does not hide what is really damaged."""
    with FullBatchAccumulator(LOCS, store="run.zarr", chunks=2) as accumulator:
        push(accumulator)
        accumulator.flush()
        flip(Path("run.zarr/outputs/1/c.3.0"))
        code, found = run_json(capsys, "verify", "run.zarr")
        assert code == 1
        assert [head["damaged_rows"] for head in found["heads"]] == [[], [7]]


def test_looking_whether_it_is_locked_disturbs_nobody(running):
    """While another process looks again and again, taking the lock succeeds."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom accumulator._stores.files.ownership import is_locked\n"
        "print('looking', flush=True)\nwhile True: is_locked(Path(sys.argv[1]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(running)], stdout=subprocess.PIPE, text=True
    ) as looker:
        try:
            assert looker.stdout.readline() == "looking\n"
            for _ in range(20):
                FullBatchAccumulator(LOCS, store=running, mode="a").close()
        finally:
            looker.kill()


def test_lock_of_what_is_no_folder_is_unknown():
    """Where the system does not tell, neither does it."""
    assert is_locked(Path("absent")) is None


@pytest.mark.parametrize("head", [0, 1])
def test_damaged_rows_are_listed(complete, capsys, head):
    """Each head's damaged rows, all in JSON and in text; the exit code is 1."""
    key = ("c.1.0.0.0", "c.1.0")[head]
    (complete / "outputs" / str(head) / key).unlink()
    code, found = run_json(capsys, "verify", complete)
    assert (code, found["is_right"]) == (1, False)
    expected = [[], []]
    expected[head] = [2, 3]
    assert [each["damaged_rows"] for each in found["heads"]] == expected
    assert [each["name"] for each in found["heads"]] == list(NAMES)
    code, out, _ = run(capsys, "verify", complete)
    assert code == 1
    assert "2 damaged rows: 2, 3\n" in out
    assert "DAMAGED: 6 of 11 rows of 2 heads, complete" in out
    assert "\x1b" not in out


def test_text_lists_the_first_few_rows_and_json_all(capsys):
    """A store with much damage does not fill the screen."""
    n = 40
    with FullBatchAccumulator(grid(n), store="run.zarr") as accumulator:
        accumulator.push([distinct(n)], grid(n))
    accumulator.finalize().close()
    os.truncate("run.zarr/outputs/0/c.0.0.0.0", 5)
    assert (
        "40 damaged rows: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 30 more\n" in run(capsys, "verify", "run.zarr")[1]
    )
    assert run_json(capsys, "verify", "run.zarr")[1]["heads"][0]["damaged_rows"] == list(range(n))


@pytest.mark.parametrize(("row", "chunk"), [(8, 4), (4, 2)])
@pytest.mark.parametrize("state", ["complete", "running"])
def test_rows_that_never_came_must_be_empty(request, capsys, state, row, chunk):
    """In a complete store it is damage, in a running one what a crash left."""
    store = request.getfixturevalue(state)
    file = store / "outputs" / "1" / f"c.{chunk}.0"
    data = bytearray(file.read_bytes() if file.exists() else bytes(12))
    data[6 * (row % 2)] = 1
    file.write_bytes(data)
    code, found = run_json(capsys, "verify", store)
    is_seen = state == "complete" or chunk == 4  # resuming removes the other file as a whole
    assert code == (state == "complete")
    assert [head["dirty_rows"] for head in found["heads"]] == [[], [row] if is_seen else []]
    out = run(capsys, "verify", store)[1]
    assert (f"1 rows that never came do not hold the fill value: {row}" in out) == is_seen
    assert ("resuming removes them" in out) == (is_seen and state == "running")


def test_missing_locations_can_be_piped(running, capsys):
    """One line a location, nothing else; the same in JSON with rows."""
    expected = np.delete(LOCS, ROWS, axis=0).tolist()
    code, out, _ = run(capsys, "missing", running)
    assert code == 0
    assert [list(map(int, line.split(" "))) for line in out.splitlines()] == expected
    code, found = run_json(capsys, "missing", running)
    assert (code, found) == (0, {"n": 5, "rows": [4, 5, 6, 8, 10], "locations": expected})


def test_missing_of_locations_given_as_floats(capsys):
    """They are whole numbers, and are printed as such."""
    with FullBatchAccumulator(LOCS.astype(float), store="run.zarr") as accumulator:
        push(accumulator)
    accumulator.finalize().close()
    assert run(capsys, "missing", "run.zarr")[1].splitlines()[0] == "16 0 20 4"


def test_nothing_missing_prints_nothing(capsys):
    """A store that has all of them, saved from RAM."""
    with FullBatchAccumulator(LOCS) as accumulator:
        accumulator.push([distinct(N)], LOCS)
    accumulator.finalize().save("kept")
    assert run(capsys, "missing", "kept") == (0, "", "")
    assert run_json(capsys, "missing", "kept")[1] == {"n": 0, "rows": [], "locations": []}
    assert run_json(capsys, "verify", "kept")[1]["is_right"]
    assert run_json(capsys, "info", "kept")[1]["state"] == "complete"


def test_store_without_locations(capsys):
    """N = 0 is a store like any other."""
    with FullBatchAccumulator(LOCS[:0]) as accumulator:
        accumulator.push([distinct(0)], LOCS[:0])
    accumulator.finalize().save("kept")
    assert "written             0\n" in run(capsys, "info", "kept")[1]
    assert run(capsys, "verify", "kept")[0] == 0


@pytest.mark.parametrize("command", ["info", "verify", "missing"])
@pytest.mark.parametrize("kind", ["absent", "file", "folder", "group", "cut", "below a file"])
def test_what_is_no_store_is_one_line_and_exit_code_one(command, kind, capsys):
    """Whatever is there or not there: no traceback, nothing on stdout, with ``--json`` neither."""
    path = Path("thing")
    if kind == "file":
        path.write_text("text")
    elif kind == "folder":
        path.mkdir()
    elif kind == "group":
        zarr.create_group(path)
    elif kind == "cut":
        path.mkdir()
        (path / "zarr.json").write_text('{"zarr_format": 3,')
    elif kind == "below a file":
        path.write_text("text")
        path /= "below"
    for option in ([], ["--json"]):
        code, out, err = run(capsys, command, path, *option)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "thing" in err
        assert "Errno" not in err
        assert not re.search(r"\bmark\b", err)
        if not option:
            assert err.startswith("accumulator: error: ")
            continue
        found = json.loads(err)
        assert issubclass(getattr(exceptions, found["type"]), AccumulatorError)
        assert found["path"] == str(path.absolute())
        assert "thing" in found["error"]


def test_a_folder_of_stores_names_some(complete, capsys):
    """Whoever gave the folder that stores are in sees what may be meant; a broken store names no part."""
    Path("slides").mkdir()
    for number in range(2):
        shutil.copytree(complete, f"slides/{number}.zarr")
    assert "in it there is '0.zarr', or '1.zarr'" in run(capsys, "info", "slides")[2]
    (complete / "zarr.json").unlink()
    assert "in it there is" not in run(capsys, "info", complete)[2]


@pytest.mark.parametrize("is_killed", [True, False])
def test_store_that_is_being_created(is_killed, capsys):
    """It has no rows yet: `info` and `verify` say so, and what needs rows says how to go on."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        push(accumulator)
    accumulator.finalize().close()
    group = zarr.open_group("run.zarr")
    mark = accumulator._canvas.run._mark
    group.attrs["accumulator"] = type(mark)("creating", None, 0, N, mark.locations).to_json()
    if is_killed:  # before the arrays were made
        for folder in ("outputs", "written", "checksums", "output_locs"):
            shutil.rmtree(f"run.zarr/{folder}")
    code, found = run_json(capsys, "info", "run.zarr")
    assert (code, found["state"], found["n"], found["heads"]) == (0, "creating", N, [])
    code, out, _ = run(capsys, "info", "run.zarr")
    assert "state               creating" in out
    code, out, err = run(capsys, "verify", "run.zarr")
    assert (code, err) == (0, "")
    assert out.endswith(f"run.zarr: unfinished, right so far: 0 of {N} rows of 0 heads, creating\n")
    code, found = run_json(capsys, "verify", "run.zarr")
    assert (code, found["verdict"], found["n"], found["n_written"]) == (0, "unfinished", N, 0)
    for arguments in (
        ["missing", "run.zarr"],
        ["stitch", "run.zarr", "-o", "m.zarr"],
        ["report", "run.zarr"],
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "nothing was recorded yet" in err
        assert 'mode="a"' in err
        assert "partial" not in err
    with pytest.raises(UnfinishedError, match="nothing was recorded yet") as error:
        FullBatch.load("run.zarr", partial=True)
    assert "partial" not in str(error.value)
    with FullBatchAccumulator(LOCS, store="run.zarr", mode="a") as accumulator:  # as it says
        push(accumulator)
    assert run(capsys, "verify", "run.zarr")[0] == 0


@pytest.mark.parametrize("argv", [["info"], ["missing", "a", "b"], ["missing", "--yaml", "a"]])
def test_wrong_arguments_are_exit_code_two(argv, capsys):
    """The usage is shown."""
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert "usage: accumulator" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "verify", "missing"])
def test_help_teaches(command, capsys):
    """Examples and exit codes are in it."""
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    out = capsys.readouterr().out
    assert f"accumulator {command} run.zarr" in out
    assert "exit codes: 0" in out


def run_in_shell(argv, **environment):
    """Run the command as another process."""
    return subprocess.run(
        [sys.executable, "-m", "accumulator", *argv],
        capture_output=True,
        check=False,
        env=os.environ | environment,
        timeout=60,
    )


def test_terminal_that_cannot_show_the_names(complete):
    """They are escaped, and nothing fails."""
    done = run_in_shell(["info", str(complete)], PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert rb"head Gewebe \u2014 \u7d44\u7e54: " in done.stdout


def test_reader_that_has_seen_enough(tmp_path):
    """A pipe that is closed early is no error to complain of."""
    n = 20000
    with FullBatchAccumulator(grid(n)) as accumulator:
        accumulator.push([np.ones((1, 1), "u1")], grid(n)[:1])
    accumulator.finalize().save(tmp_path / "kept")
    with subprocess.Popen(
        [sys.executable, "-m", "accumulator", "missing", str(tmp_path / "kept")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"4 0 8 4\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_verdicts_count_though_nobody_reads_them(complete):
    """A damaged store is found behind a pipe that was closed, and help is no error there."""
    flip(complete / "outputs/0/c.0.0.0.0")
    shutil.copytree(complete, "again.zarr")
    for argv, code in ((["verify", complete, "again.zarr"], 1), (["--help"], 0)):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "accumulator", *map(str, argv)]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60)
        os.close(writing)
        assert (done.returncode, done.stderr) == (code, b"")


def test_bare_command_shows_its_help(capsys):
    """Whoever types no more than its name learns what there is."""
    with pytest.raises(SystemExit, match="0"):
        main([])
    assert "accumulator missing PATH" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["missing", "a", "b"], ["missing", "--yaml", "a"], ["stitch", "a"]])
def test_wrong_arguments_as_json(argv, capsys):
    """One object, and no usage beside it."""
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--json"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert json.loads(printed.err)["type"] == "UsageError"


def test_several_stores_are_looked_at_one_after_the_other(complete, capsys):
    """One that is damaged and one that is not there are told, and do not hide the others."""
    for number in range(4):
        shutil.copytree(complete, f"run-{number}.zarr")
    flip(Path("run-1.zarr/outputs/0/c.0.0.0.0"))
    shutil.rmtree("run-2.zarr")
    paths = [f"run-{number}.zarr" for number in range(4)]
    code = main(["verify", *paths, "--json"])
    printed = capsys.readouterr()
    found = [json.loads(line) for line in printed.out.splitlines()]
    assert [Path(each["path"]).name for each in found] == ["run-0.zarr", "run-1.zarr", "run-3.zarr"]
    assert [each["verdict"] for each in found] == ["right", "damaged", "right"]
    assert code == 1
    assert Path(json.loads(printed.err)["path"]).name == "run-2.zarr"
    assert main(["info", paths[0], paths[3]]) == 0
    assert capsys.readouterr().out.count("state               complete") == 2

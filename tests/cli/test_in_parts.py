"""``info``, ``missing``, ``verify`` and ``report`` of a run of several ranks, living, ended and dead."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.files import tree
from helpers.ranked import LOCS, N, open_rank, push, values

from accumulator import FullBatch, FullBatchAccumulator, publish
from accumulator._cli.commands import main
from accumulator._report import parts
from accumulator._report.parts import InParts
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.format.mark import CREATING, digest, read_mark
from accumulator._stores.kept.record import Record
from accumulator._stores.kept.run import KeptRun
from accumulator.exceptions import ResultFormatError, StorageError, UnfinishedError

STORE = Path("run.zarr")
ENDED, DEAD, ALIVE = np.arange(21), np.arange(30, 52), np.arange(60, 65)
NOBODY = np.setdiff1d(np.arange(N), np.concatenate([ENDED, DEAD, ALIVE]))
EVERY = pytest.mark.parametrize("command", ["info", "verify", "missing", "report"])


def run(capsys, *argv):
    """Run the command; return its exit code and what it printed."""
    code = main([str(each) for each in argv])
    captured = capsys.readouterr()
    assert captured.err.count("\n") == bool(captured.err)
    return code, captured.out, captured.err


def run_json(capsys, *argv):
    """Run the command with ``--json``; return its exit code and the object."""
    code, out, err = run(capsys, *argv, "--json")
    assert err == ""
    return code, json.loads(out)


def end(rank, world_size, rows):
    """Let a rank come to its end, in this process."""
    with open_rank(STORE, rank, world_size, chunks=7) as accumulator:
        push(accumulator, rows)
    accumulator.finalize().close()


@pytest.fixture
def spent(start_rank):
    """Make a run of which one rank has ended, and another one was killed; return the second's process."""
    end(0, 3, ENDED)
    dead = start_rank(1, 3, DEAD)
    dead.tell("die")
    return dead


def folder_of(rank):
    """Return the folder of a rank's part."""
    for path in STORE.glob("parts/*/part.json"):
        if json.loads(path.read_text("utf-8"))["rank"] == rank:
            return path.parent
    raise AssertionError(rank)


def flip(path, place=None):
    """Flip a bit of a file, in its middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def tell_others(path, **changed):
    """Change what a part says of itself, as a stranger would: its digest is right."""
    plain = json.loads(path.read_text("utf-8"))
    plain = {name: value for name, value in (plain | changed).items() if name != "digest"}
    path.write_text(json.dumps(plain | {"digest": digest(plain)}), "utf-8")


def test_info_tells_the_living_the_ended_and_the_dead(spent, start_rank, capsys):
    """Each has its process, its rows, its rate and its time; and nothing is changed by looking."""
    living = start_rank(2, 3, ALIVE)
    before = tree(STORE)
    code, found = run_json(capsys, "info", STORE)
    assert (code, found["state"], found["is_locked"]) == (0, "in parts", True)
    assert (found["n"], found["n_columns"], found["n_published"]) == (N, 4, 0)
    assert (found["n_written"], found["n_missing"]) == (48, N - 48)
    assert [(head["name"], head["shape"]) for head in found["heads"]] == [
        ("map", [N, 4, 3]),
        ("score", [N, 2]),
    ]
    assert found["damaged_parts"] == []
    told = {
        part["rank"]: (part["state"], part["pid"], part["n_recorded"], part["world_size"])
        for part in found["parts"]
    }
    assert told == {
        0: ("ended", os.getpid(), 21, 3),
        1: ("dead", spent.pid, 22, 3),
        2: ("alive", living.pid, 5, 3),
    }
    for part in found["parts"]:
        assert part["host"] == socket.gethostname()
        assert part["name"] == folder_of(part["rank"]).name
        assert time.time() - 120 < part["began"] < part["recorded"] < time.time()
        rate = part["n_recorded"] / max(1e-3, part["recorded"] - part["began"])
        assert part["rows_per_second"] == pytest.approx(rate)
    code, out, _ = run(capsys, "info", STORE)
    assert re.search(r"^state +in parts$", out, re.MULTILINE)
    assert re.search(r"^written +48 \(47.5%\)\npublished +0\nmissing +53$", out, re.MULTILINE)
    last = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found["parts"][1]["recorded"]))
    rate = f"{found['parts'][1]['rows_per_second']:,.1f}"
    assert (
        f"rank 1 of 3, process {spent.pid} on {socket.gethostname()}: dead (killed, or closed too early), "
        f"22 rows recorded, {rate} rows/s, last {last}\n"
    ) in out
    assert f"process {living.pid} on {socket.gethostname()}: alive, 5 rows recorded" in out
    assert f"process {os.getpid()} on {socket.gethostname()}: ended, 21 rows recorded" in out
    for command in ("verify", "missing"):
        assert run(capsys, command, STORE)[0] == 0
    assert tree(STORE) == before


def test_info_of_ranks_that_have_pushed_nothing(start_rank, capsys):
    """There are no heads yet, and a living rank with nothing."""
    start_rank(0, 1).tell("push")
    code, found = run_json(capsys, "info", STORE)
    (part,) = found["parts"]
    assert (code, found["heads"], found["n_written"], found["n_missing"]) == (0, [], 0, N)
    assert (part["state"], part["n_recorded"], part["recorded"], part["rows_per_second"]) == (
        "alive",
        0,
        None,
        0,
    )
    assert "alive, 0 rows recorded, 0.0 rows/s, last never\n" in run(capsys, "info", STORE)[1]
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "unfinished"


@pytest.mark.usefixtures("spent")
def test_looks_after_a_partial_publishing(start_rank, capsys):
    """What was published and what is recorded are told apart, and add up; the living goes on undisturbed."""
    living = start_rank(2, 3, ALIVE)
    publish(STORE, partial=True).close()
    found = run_json(capsys, "info", STORE)[1]
    assert (found["state"], found["n_published"], found["n_written"]) == ("in parts", 48, 48)
    assert [(part["rank"], part["n_recorded"]) for part in found["parts"]] == [(2, 5)]
    living.tell("push", [70, 71])
    found = run_json(capsys, "info", STORE)[1]
    assert (found["n_published"], found["n_written"], found["n_missing"]) == (48, 50, N - 50)
    code, verdict = run_json(capsys, "verify", STORE)
    assert (code, verdict["verdict"], verdict["state"]) == (0, "unfinished", "in parts")
    assert (verdict["n_written"], [part["n_recorded"] for part in verdict["parts"]]) == (50, [7])
    for _ in range(2):  # rows that were published, and rows that a part alone has
        assert run_json(capsys, "missing", STORE)[1]["rows"] == np.setdiff1d(NOBODY, [70, 71]).tolist()
    living.tell("push", NOBODY[~np.isin(NOBODY, [70, 71])])
    living.tell("end")
    assert run_json(capsys, "missing", STORE)[1]["n"] == 0
    publish(STORE).close()
    found = run_json(capsys, "info", STORE)[1]
    assert (found["state"], found["n_published"], found["n_written"]) == ("complete", N, N)
    assert (found["parts"], found["damaged_parts"]) == ([], [])
    assert "published" not in run(capsys, "info", STORE)[1]
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "right"


@pytest.mark.usefixtures("spent")
def test_missing_is_what_nobody_has_recorded(capsys):
    """It is in canonical order, as JSON and as text."""
    nobody = np.setdiff1d(np.arange(N), np.concatenate([ENDED, DEAD]))
    code, found = run_json(capsys, "missing", STORE)
    assert (code, found["n"], found["rows"]) == (0, len(nobody), nobody.tolist())
    assert found["locations"] == LOCS[nobody].tolist()
    lines = run(capsys, "missing", STORE)[1].splitlines()
    assert lines == [" ".join(map(str, location)) for location in LOCS[nobody].tolist()]


@pytest.mark.usefixtures("spent")
def test_verify_reads_every_recorded_row_of_every_part(capsys):
    """What is right is unfinished; each flipped row is named, with its rank and head, and no other."""
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"], found["is_right"], found["state"]) == (0, "unfinished", True, "in parts")
    assert [(part["n_recorded"], part["heads"]) for part in found["parts"]] == [
        (n, [{"name": name, "damaged_rows": []} for name in ("map", "score")]) for n in (21, 22)
    ]
    line = f"{STORE.absolute()}: unfinished, right so far: 43 of {N} rows of 2 heads, in parts\n"
    assert run(capsys, "verify", STORE)[1] == line
    for row in np.concatenate([ENDED, DEAD]).tolist():
        rank, head = int(row in DEAD), row % 2
        part = folder_of(rank)
        (chunk,) = part.glob(f"outputs/{head}/c.{row // 7}.*")
        row_nbytes = (48, 8)[head]
        flip(chunk, row % 7 * row_nbytes + row % row_nbytes)
        code, found = run_json(capsys, "verify", STORE)
        assert (code, found["verdict"]) == (1, "damaged")
        damaged = {
            (part["name"], head["name"]): head["damaged_rows"]
            for part in found["parts"]
            for head in part["heads"]
            if head["damaged_rows"]
        }
        name = ("map", "score")[head]
        assert damaged == {(part.name, name): [row]}
        flip(chunk, row % 7 * row_nbytes + row % row_nbytes)
        if row % 20 == 0:
            flip(chunk, row % 7 * row_nbytes)
            out = run(capsys, "verify", STORE)[1]
            assert f"head {name}: 1 damaged rows: {row} (part {part.name})\n" in out
            assert f"rank {rank} of 3, process " in out
            assert "DAMAGED: 43 of" in out
            flip(chunk, row % 7 * row_nbytes)
    assert run(capsys, "verify", STORE)[:2] == (0, line)


@pytest.mark.usefixtures("spent")
def test_verify_finds_damage_of_the_living_and_of_what_was_published(start_rank, capsys):
    """Work that goes on is no excuse; damaged rows are found wherever they are."""
    start_rank(2, 3, ALIVE)
    (chunk,) = folder_of(2).glob("outputs/1/c.8.0")
    flip(chunk, (60 - 56) * 8)
    publish(STORE, partial=True).close()
    flip(STORE / "outputs" / "map" / "c.0.0.0", 3 * 48)
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"]) == (1, "damaged")
    assert [head["damaged_rows"] for head in found["heads"]] == [[3], []]
    ((_, score),) = [part["heads"] for part in found["parts"]]
    assert score["damaged_rows"] == [60]
    assert "somebody is writing this store" in run(capsys, "verify", STORE)[1]


@pytest.mark.usefixtures("spent")
def test_a_damaged_part_is_named_with_the_reason(capsys):
    """The rest is told all the same; what only it had counts as missing."""
    part = folder_of(1)
    flip(part / "part.json")
    code, found = run_json(capsys, "info", STORE)
    assert (code, found["n_written"], [each["rank"] for each in found["parts"]]) == (0, 21, [0])
    (damaged,) = found["damaged_parts"]
    assert damaged["name"] == part.name
    assert "part.json is damaged" in damaged["reason"] or "part.json is not JSON" in damaged["reason"]
    code, out, _ = run(capsys, "info", STORE)
    assert f"part {part.name}: DAMAGED: {damaged['reason']}\n" in out
    assert run_json(capsys, "missing", STORE)[1]["rows"] == list(range(21, N))
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"], found["damaged_parts"]) == (1, "damaged", [damaged])
    out = run(capsys, "verify", STORE)[1]
    assert f"part {part.name}: DAMAGED: {damaged['reason']}\n" in out
    assert f"DAMAGED: 21 of {N} rows" in out
    publish(STORE, leave_out=[part.name]).close()
    found = run_json(capsys, "info", STORE)[1]
    assert (found["state"], found["n_published"], found["damaged_parts"]) == ("complete", 21, [damaged])
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "damaged"
    shutil.rmtree(part)
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "right"


@pytest.mark.usefixtures("spent")
def test_a_cut_record_is_damage(capsys):
    """A part whose record is not what was written is not believed."""
    part = folder_of(0)
    segment = max((part / "record").iterdir(), key=lambda path: int(path.name))
    segment.write_bytes(segment.read_bytes()[:-1])
    (damaged,) = run_json(capsys, "info", STORE)[1]["damaged_parts"]
    assert damaged["name"] == part.name
    assert f"record/{segment.name} is damaged" in damaged["reason"]


@pytest.mark.usefixtures("spent")
def test_a_link_in_a_part_is_damage(capsys):
    """A chunk that lies elsewhere is not read; publishing refuses it, too."""
    part = folder_of(0)
    chunk = part / "outputs" / "0" / "c.0.0.0"
    chunk.rename("elsewhere")
    chunk.symlink_to(Path("elsewhere").absolute())
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"]) == (1, "damaged")
    (damaged,) = found["damaged_parts"]
    assert damaged["name"] == part.name
    assert "symbolic link" in damaged["reason"]


def publish_and_fail(monkeypatch):
    """Let a publishing end before it records anything."""

    def refuse(*_):
        raise StorageError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "put", refuse)
        with pytest.raises(StorageError, match="no space"):
            publish(STORE)


@pytest.mark.usefixtures("spent")
def test_rows_on_their_way_are_not_what_a_crash_left(monkeypatch, capsys):
    """They lie beside published ones, and the record of a part has them; others are told of."""
    publish(STORE, partial=True).close()
    end(2, 3, [28, 29])  # of a chunk of which 30 to 34 are published
    publish_and_fail(monkeypatch)
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"], found["n_written"]) == (0, "unfinished", 45)
    assert [head["dirty_rows"] for head in found["heads"]] == [[], []]
    flip(STORE / "outputs" / "score" / "c.7.0", 6 * 8)  # row 55: 49 to 51 are published there
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"], found["heads"][1]["dirty_rows"]) == (0, "unfinished", [55])
    out = run(capsys, "verify", STORE)[1]
    assert "do not hold the fill value: 55 (a crash left them)\n" in out


@pytest.mark.usefixtures("spent")
def test_verify_after_a_publishing_was_killed(monkeypatch, capsys):
    """Chunks that were moved already, and that no record names yet, are found where they are."""
    publish_and_fail(monkeypatch)
    part = folder_of(0)
    assert part.name.endswith(".retired")
    assert list(part.glob("outputs/0/c.*")) == []  # all of them were moved
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["verdict"], found["n_written"]) == (0, "unfinished", 43)
    assert [head["dirty_rows"] for head in found["heads"]] == [[], []]
    info = run_json(capsys, "info", STORE)[1]
    assert (info["n_published"], info["n_written"]) == (0, 43)
    assert [each["state"] for each in info["parts"]] == ["ended", "dead"]
    assert info["parts"][0]["name"] == part.name.removesuffix(".retired")
    flip(STORE / "outputs" / "map" / "c.0.0.0", 48)
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["parts"][0]["heads"][0]["damaged_rows"]) == (1, [1])


@pytest.mark.usefixtures("spent")
def test_parts_that_are_published_meanwhile_are_no_damage():
    """A part that has gone, or got its other name, since it was looked at says nothing."""
    run = InParts.find(STORE)
    part = folder_of(0)
    part.rename(part.with_name(part.name + ".retired"))
    found = {verdict.name: verdict for verdict in run.check()}
    assert all(verdict.is_right for verdict in found.values())
    assert folder_of(1).name in found
    run = InParts.find(STORE)
    shutil.rmtree(folder_of(0) / "outputs")  # it is being removed
    before = InParts._check

    def check_then_remove(self, look):
        try:
            return before(self, look)
        finally:
            shutil.rmtree(look.path, ignore_errors=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InParts, "_check", check_then_remove)
        assert [verdict for verdict in run.check() if not verdict.is_right] == []
    assert InParts.find(STORE).parts() == []


def test_rows_that_are_pushed_again_meanwhile_are_no_damage():
    """The record that was looked at is older than the rows: it is looked at again."""
    with open_rank(STORE, 0, 1, chunks=7, on_duplicate="last", checkpoint_interval=np.inf) as accumulator:
        push(accumulator, np.arange(14))
        accumulator.flush()
        run = InParts.find(STORE)
        push(accumulator, np.arange(14), version=1)
        accumulator.flush()
        (verdict,) = run.check()
        assert verdict.is_right
        (chunk,) = folder_of(0).glob("outputs/0/c.1.*")
        flip(chunk, 0)
        (verdict,) = run.check()
        assert [rows.tolist() for rows in verdict.damaged] == [[7], []]
        flip(chunk, 0)
    accumulator.finalize().close()


@pytest.mark.usefixtures("spent")
def test_a_part_that_is_half_removed_is_no_damage(capsys):
    """All of its rows are published, so that nothing is lost with its files."""
    part = folder_of(0)
    kept = Path(f"{part}.retired")
    shutil.copytree(part, "kept")
    publish(STORE, partial=True).close()
    shutil.move("kept", kept)
    (kept / "outputs" / "0" / "c.0.0.0").unlink()
    flip(kept / "outputs" / "1" / "c.1.0")
    flip(STORE / "outputs" / "score" / "c.1.0")  # else the result's own place would do
    code, found = run_json(capsys, "verify", STORE)
    assert (code, [len(head["damaged_rows"]) for head in found["heads"]]) == (1, [0, 1])
    assert [head["damaged_rows"] for head in found["parts"][0]["heads"]] == [[], []]


@pytest.mark.usefixtures("spent")
def test_a_part_that_gets_its_other_name_is_looked_at_again(monkeypatch):
    """Its rows do not seem to be missing because it was renamed while it was looked at."""
    before, calls = parts.look_at_parts, []

    def look(shared):
        calls.append(shared)
        found = before(shared)
        if len(calls) == 1:
            found.parts.clear()
            part = folder_of(0)
            part.rename(part.with_name(part.name + ".retired"))
        return found

    monkeypatch.setattr(parts, "look_at_parts", look)
    assert int(InParts.find(STORE).recorded().sum()) == 43
    assert len(calls) == 2


@pytest.mark.usefixtures("spent")
def test_strangers_text_and_numbers(capsys):
    """A host is escaped, and a time that no calendar has is unknown."""
    hostile = "\x1b[2J</td><script>alert(1)</script>\n"
    tell_others(folder_of(0) / "part.json", host=hostile)
    for command in ("info", "verify"):
        out = run(capsys, command, STORE)[1]
        assert "\x1b" not in out
    out = run(capsys, "info", STORE)[1]
    assert "on \\x1b[2J</td><script>alert(1)</script>\\n: ended" in out
    (chunk,) = folder_of(0).glob("outputs/0/c.0.*")
    flip(chunk)
    assert "on \\x1b[2J</td>" in run(capsys, "verify", STORE)[1]
    part = parts.Part.of(InParts.find(STORE).looks.parts[0])
    assert parts.attrs.evolve(part, recorded=1e300).line().endswith("last unknown")
    assert parts.attrs.evolve(part, recorded=float("nan")).line().endswith("last unknown")


def text_of(page):
    """Return a page's text."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


@pytest.mark.usefixtures("spent")
def test_report_says_to_publish_first_and_then_has_a_table(start_rank, capsys):
    """Of nothing there is no page; later it has what is published, each rank, and what is not there yet."""
    code, out, err = run(capsys, "report", STORE)
    assert (code, out) == (1, "")
    assert "nothing was published yet" in err
    assert "`accumulator publish`" in err
    assert not Path("report.html").exists()
    publish(STORE, partial=True).close()
    living = start_rank(2, 3, ALIVE)
    tell_others(folder_of(2) / "part.json", host="</td><script>alert(1)</script>")
    assert run(capsys, "report", STORE)[0] == 0
    page = Path("report.html").read_text("utf-8")
    text = text_of(page)
    assert "in parts, being written" in text
    assert "48 rows are recorded by anybody. This page shows the 43 that are published: the others" in text
    assert f"2 of 3 {living.pid} &lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; alive 5 " in text
    assert "<script>alert" not in page
    flip(folder_of(2) / "part.json")
    name = folder_of_damaged()
    assert run(capsys, "report", STORE, "-o", "again.html")[0] == 0
    text = text_of(Path("again.html").read_text("utf-8"))
    assert "43 rows are recorded by anybody. This page shows the 43 that are published: all of them." in text
    assert f"Part {name} is damaged, and none of its rows is counted: " in text


def folder_of_damaged():
    """Return the name of the only part there is."""
    (path,) = STORE.glob("parts/*/part.json")
    return path.parent.name


def test_report_of_other_stores_has_no_ranks(capsys):
    """A result of ranks that is whole is like any other."""
    end(0, 1, np.arange(N))
    publish(STORE).close()
    assert run(capsys, "report", STORE)[0] == 0
    assert "Ranks" not in text_of(Path("report.html").read_text("utf-8"))


@EVERY
@pytest.mark.usefixtures("spent")
def test_damage_of_what_ranks_agree_on_is_a_clean_error(capsys, command):
    """One line says which file it is."""
    publish(STORE, partial=True).close()  # else a report has nothing to show
    folder = STORE / "parts"
    for name, what in (("run.json", "run.json"), ("locations", "locations")):
        flip(folder / name)
        code, out, err = run(capsys, command, STORE)
        assert (code, out) == (1, "")
        assert "damaged" in err
        assert what in err
        flip(folder / name)


@EVERY
def test_parts_beside_the_result_of_another_run(capsys, command):
    """They are not taken together."""
    end(0, 1, np.arange(N))
    publish(STORE).close()
    STORE.rename("other.zarr")
    with FullBatchAccumulator(LOCS[::-1], store="mine.zarr") as accumulator:
        accumulator.push(values(np.arange(3)), LOCS[:3])
    accumulator.finalize().close()
    end(0, 2, ENDED)
    shutil.move(STORE / "parts", "mine.zarr/parts")
    code, out, err = run(capsys, command, "mine.zarr")
    assert (code, out) == (1, "")
    assert "its parts have other locations than the result" in err


def test_what_was_published_and_is_being_removed_is_an_ordinary_store(capsys):
    """A publishing that was killed at its very end has left names that say nothing more."""
    end(0, 1, np.arange(5))
    folder = STORE / "parts"
    kept = Path("kept")
    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("?" * 32))
    publish(STORE).close()
    kept.rename(folder)
    (folder / "run.json").rename(folder / "run.json.leaving")
    (folder / "locations").unlink()
    assert run_json(capsys, "info", STORE)[1]["state"] == "complete"
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "right"


def test_loading_says_to_publish(start_rank):
    """Whatever was published, the remedy is to publish; looking at a part of it is possible after that."""
    end(0, 2, ENDED)
    for partial in (False, True):
        with pytest.raises(UnfinishedError, match=r"nothing was published yet: accumulator\.publish"):
            FullBatch.load(STORE, partial=partial)
    living = start_rank(1, 2, DEAD)
    publish(STORE, partial=True).close()
    with pytest.raises(UnfinishedError, match=r"several ranks that is not complete: accumulator\.publish"):
        FullBatch.load(STORE)
    with FullBatch.load(STORE, partial=True) as batch:
        assert np.flatnonzero(batch.written).tolist() == [*ENDED, *DEAD]
        np.testing.assert_array_equal(batch.outputs["score"][30:52], values(DEAD)["score"])
    living.tell("end")
    publish(STORE).close()
    FullBatch.load(STORE).close()


def test_loading_what_a_killed_publishing_has_begun_says_to_publish(monkeypatch):
    """The result is there, and nothing is in it."""
    end(0, 2, ENDED)

    before = KeptRun._set_state

    def refuse(self, state, *more):
        if state != CREATING:
            raise StorageError(28, "no space")
        before(self, state, *more)

    with monkeypatch.context() as patch:
        patch.setattr(KeptRun, "_set_state", refuse)
        patch.setattr(KeptRun, "_empty", lambda _: None)  # as if it was killed
        with pytest.raises(StorageError, match="no space"):
            publish(STORE)
    assert not is_locked(STORE)
    assert read_mark(STORE).state == CREATING
    with pytest.raises(UnfinishedError, match=r"of which nothing was published yet: accumulator\.publish"):
        FullBatch.load(STORE)


def test_a_folder_that_is_no_run_is_no_run():
    """Something else that is called parts is not taken for one."""
    Path("run.zarr/parts").mkdir(parents=True)
    assert InParts.find(STORE) is None
    with pytest.raises(ResultFormatError, match=r"there is no zarr\.json"):
        FullBatch.load(STORE)


def test_ranks_that_go_on_with_a_run_of_one_process(capsys):
    """What that one had recorded counts as published; a complete store is in parts again."""
    with FullBatchAccumulator(LOCS, store=STORE, chunks=7) as accumulator:
        push(accumulator, np.arange(40))
    accumulator.finalize().close()
    assert run_json(capsys, "info", STORE)[1]["state"] == "complete"
    with open_rank(STORE, 0, 1, chunks=7) as accumulator:
        push(accumulator, np.arange(40, 50))
    accumulator.finalize().close()
    found = run_json(capsys, "info", STORE)[1]
    assert (found["state"], found["n_published"], found["n_written"]) == ("in parts", 40, 50)
    assert run_json(capsys, "verify", STORE)[1]["verdict"] == "unfinished"
    assert run_json(capsys, "missing", STORE)[1]["rows"] == list(range(50, N))
    flip(STORE / "outputs" / "score" / "c.5.0", 5 * 8)  # in a complete result what never came must be empty
    code, found = run_json(capsys, "verify", STORE)
    assert (code, found["heads"][1]["dirty_rows"]) == (1, [40])

"""What several ranks recorded becomes one result, with the same bytes as from one process."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import multiprocessing
import os
import re
import shutil
import warnings
from multiprocessing import resource_tracker
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import zarr
from helpers import ranked
from helpers.ranked import (
    LOCS,
    OPTIONS,
    UNITS,
    N,
    alone,
    check_same,
    open_rank,
    orders,
    push,
    run_and_die,
    values,
)
from helpers.soak import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, publish
from accumulator._core import ranks as _ranks
from accumulator._report.facts import verify
from accumulator._stores.files import system
from accumulator._stores.format import mark as _mark
from accumulator._stores.kept import run as _run
from accumulator._stores.ranks import facts
from accumulator._stores.ranks import publish as _publish
from accumulator._stores.ranks import published as _published
from accumulator._stores.ranks.recorded import Looks, look_at_parts
from accumulator._stores.ranks.shared import SharedRun
from accumulator._stores.writing import record as _record
from accumulator.exceptions import (
    DamagedError,
    DuplicateLocationError,
    LockedError,
    NothingPushedError,
    OptionError,
    ResultFormatError,
    ResultNotFoundError,
    ResumeError,
    StorageError,
    StorageWarning,
    UnfinishedError,
)

ORDERS = ["share", "blocks", "strided", "padded", "contiguous", "shuffled"]


@pytest.fixture
def store(tmp_path):
    """Return where a run is to be."""
    return tmp_path / "run.zarr"


def run_ranks(store, world_size, order, unit=7, **options):
    """Let all ranks run to their end, side by side."""
    ranks = [open_rank(store, rank, world_size, **options) for rank in range(world_size)]
    rows = orders(order, world_size, unit=unit) or [rank.missing_rows() for rank in ranks]
    for rank, own in zip(ranks, rows, strict=True):
        push(rank, own)
    for rank in ranks:
        rank.finalize()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_bytes_as_one_process(tmp_path, store, name, order):
    """Every file is the same, whatever the storage, and whoever had which rows."""
    alone(tmp_path / "alone.zarr", np.arange(N), **OPTIONS[name])
    run_ranks(store, 3, order, UNITS[name], **OPTIONS[name])
    batch = publish(store)
    check_same(store, tmp_path / "alone.zarr")
    for head, wanted in values(np.arange(N)).items():
        np.testing.assert_array_equal(batch.outputs[head][:], wanted)
    assert verify(store).verdict == "right"


@pytest.mark.parametrize("name", OPTIONS)
def test_whole_chunks_are_moved(store, name):
    """A chunk that one rank has all of is the same file afterwards: nothing is read or written."""
    run_ranks(store, 3, "blocks", UNITS[name], **OPTIONS[name])
    before = {path.stat().st_ino for path in (store / "parts").glob("*/outputs/0/c.*")}
    publish(store)
    after = [path.stat().st_ino in before for path in (store / "outputs" / "map").glob("c.*")]
    assert all(after)
    assert len(after) > 10


@pytest.mark.parametrize("name", OPTIONS)
def test_gaps_are_the_same_too(tmp_path, store, name):
    """Rows that nobody had hold the fill value, whole chunks of them included."""
    rows = np.delete(np.arange(N), np.r_[3, 20:45, 100])
    alone(tmp_path / "alone.zarr", rows, **OPTIONS[name])
    ranks = [open_rank(store, rank, 2, **OPTIONS[name]) for rank in range(2)]
    for number, rank in enumerate(ranks):
        push(rank, rows[number::2])
        rank.finalize()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all ranks came to their end: the gaps were meant
        publish(store)
    check_same(store, tmp_path / "alone.zarr")


@pytest.mark.parametrize("name", OPTIONS)
def test_killed_ranks_and_another_number_of_them(tmp_path, store, name):
    """What was recorded before a kill is there, and who goes on has the rest, with another world size."""
    for rank, size in ((0, 3), (2, 3), (1, 4)):
        probe = open_rank(store, rank, size, **OPTIONS[name])
        rows = probe.missing_rows()
        probe.close()
        run_and_die(store, rank, size, rows, OPTIONS[name])
    publish(store, partial=True).close()
    seen = FullBatch.load(store, partial=True).written.copy()
    ranks = [open_rank(store, rank, 2, **OPTIONS[name]) for rank in range(2)]
    shares = [rank.missing_rows() for rank in ranks]
    together = np.concatenate(shares)
    assert sorted(together.tolist()) == np.flatnonzero(~seen).tolist()
    for rank, share in zip(ranks, shares, strict=True):
        push(rank, share)
        rank.finalize()
    publish(store)
    alone(tmp_path / "alone.zarr", np.arange(N), **OPTIONS[name])
    check_same(store, tmp_path / "alone.zarr")


def test_several_processes_put_chunks_together(tmp_path, store):
    """With processes= it is the same."""
    alone(tmp_path / "alone.zarr", np.arange(N), chunks=2)
    run_ranks(store, 3, "strided", chunks=2)
    publish(store, processes=2)
    check_same(store, tmp_path / "alone.zarr")
    resource_tracker._resource_tracker._stop()  # Python's own, which has a pipe


def test_partial_while_a_rank_lives(tmp_path, store):
    """What a living rank has recorded is published by a copy; it goes on, and the rest joins the next."""
    options = OPTIONS["raw"]
    first, second = (open_rank(store, rank, 2, **options) for rank in range(2))
    mine, other = first.missing_rows(), second.missing_rows()
    push(first, mine[:20])
    first.flush()
    push(second, other)
    second.finalize()
    with pytest.raises(LockedError, match=f"rank 0 of 2, process {os.getpid()} on "):
        publish(store)
    batch = publish(store, partial=True)
    assert np.flatnonzero(batch.written).tolist() == sorted([*mine[:20], *other])
    with pytest.raises(UnfinishedError):
        FullBatch.load(store)
    push(first, mine[20:])
    result = first.finalize()
    for head, wanted in values(mine).items():
        np.testing.assert_array_equal(result.outputs[head][mine], wanted)
    publish(store)
    alone(tmp_path / "alone.zarr", np.arange(N), **options)
    check_same(store, tmp_path / "alone.zarr")


def test_again_and_again(store):
    """A published result is only opened, and a late rank joins the next publishing."""
    run_ranks(store, 2, "share", chunks=7)
    publish(store)
    before = ranked.files(store)
    publish(store)
    assert ranked.files(store) == before
    late = open_rank(store, 1, 2, chunks=7)
    assert len(late.missing_rows()) == 0
    late.finalize()
    publish(store)
    assert ranked.files(store) == before


def test_a_run_of_one_process_goes_on_with_several(tmp_path, store):
    """And after that one process goes on with what was published."""
    first = FullBatchAccumulator(LOCS, store=store, chunks=7)
    push(first, np.arange(30))
    first.close()
    ranks = [open_rank(store, rank, 2, chunks=7) for rank in range(2)]
    assert sorted(np.concatenate([rank.missing_rows() for rank in ranks]).tolist()) == list(range(30, N))
    for rank in ranks:
        push(rank, rank.missing_rows()[:20])
        rank.finalize()
    with pytest.raises(ResumeError, match="publish"):
        FullBatchAccumulator(LOCS, store=store, mode="a", chunks=7)
    publish(store)
    with FullBatchAccumulator(LOCS, store=store, mode="a", chunks=7) as last:
        push(last, last.missing_rows())
    alone(tmp_path / "alone.zarr", np.arange(N), chunks=7)
    check_same(store, tmp_path / "alone.zarr")


@pytest.mark.parametrize("begun_by", ["one process", "ranks", "ranks, killed as they published"])
def test_a_store_whose_heads_have_numbers_is_published_to(store, monkeypatch, begun_by):
    """As versions before 3 made them: it is found right, and goes on under the names it has."""
    with monkeypatch.context() as earlier:
        for module in (_mark, _run, _record):
            earlier.setattr(module, "head_keys", lambda _, n: [str(number) for number in range(n)])
        if begun_by == "one process":
            with FullBatchAccumulator(LOCS, store=store, chunks=7) as first:
                push(first, np.arange(30))
                first.close()
        else:
            with open_rank(store, 0, 2, chunks=7) as first:
                push(first, np.arange(30))
            publish(store, partial=True).close()
    with open_rank(store, 0, 1, chunks=7) as rank:
        push(rank, rank.missing_rows())
    if begun_by.endswith("published"):
        with monkeypatch.context() as killed:
            killed.setattr(_published.PublishedRun, "record_rows", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                publish(store)
        assert verify(store).is_right
    publish(store)
    assert sorted(each.name for each in Path(store, "outputs").iterdir()) == ["0", "1", "zarr.json"]
    batch = FullBatch.load(store)
    for name, expected in values(np.arange(N)).items():
        assert (batch[name][:] == expected).all()
    assert verify(store).is_right


def test_what_a_killed_process_left_is_cleaned_up(tmp_path, store):
    """Rows that a run of one process wrote and did not record are none, in chunks that ranks add to, too."""
    process = multiprocessing.get_context("fork").Process(target=_alone_and_die, args=(store,))
    process.start()
    process.join()
    ranks = [open_rank(store, rank, 2, **OPTIONS["raw"]) for rank in range(2)]
    for rank in ranks:
        push(rank, [row for row in rank.missing_rows() if row >= 60 or row < 10])
        rank.finalize()
    publish(store)
    alone(tmp_path / "alone.zarr", [*range(25), *range(60, N)], **OPTIONS["raw"])
    check_same(store, tmp_path / "alone.zarr")


def _alone_and_die(store):
    accumulator = FullBatchAccumulator(LOCS, store=store, checkpoint_interval=np.inf, **OPTIONS["raw"])
    push(accumulator, np.arange(25))
    accumulator.flush()
    push(accumulator, np.arange(25, 50))
    accumulator._canvas._batches.show()
    os._exit(7)


@pytest.mark.parametrize("policy", ["error", "first", "last"])
def test_predictions_that_differ(store, policy):
    """Equal ones pass; others follow on_duplicate, and are told."""
    for rank, version in ((0, 0), (1, 1)):
        accumulator = open_rank(store, rank, 2, chunks=7)
        push(accumulator, range(40) if rank == 0 else range(40, N))
        push(accumulator, [50] if rank == 0 else [3, 4], 0 if rank == 0 else version)
        accumulator.finalize()
    if policy == "error":
        with pytest.raises(DuplicateLocationError, match=r"2 locations .* the first being") as refused:
            publish(store)
        assert refused.value.rows.tolist() == [3, 4]
        return
    with pytest.warns(StorageWarning, match="2 locations"):
        batch = publish(store, on_duplicate=policy)
    wanted = values(np.arange(N))
    again = values([3, 4], 1)
    for head, array in batch.outputs.items():
        if policy == "last":
            wanted[head][[3, 4]] = again[head]
        np.testing.assert_array_equal(array[:], wanted[head])


def test_a_damaged_part_is_named(store):
    """And left out by an explicit word alone."""
    run_ranks(store, 2, "share", chunks=7)
    parts = sorted(path for path in (store / "parts").iterdir() if (path / "part.json").exists())
    record = parts[0] / "record" / "0"
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    with pytest.raises(ResultFormatError, match=parts[0].name):
        publish(store)
    with pytest.raises(OptionError, match="leave_out names parts that are not there"):
        publish(store, leave_out=["nobody"])
    batch = publish(store, leave_out=[parts[0].name])
    assert 0 < batch.written.sum() < N
    assert record.exists()


def test_damaged_rows_are_missing_with_a_word(store):
    """A row whose bytes changed is nobody's, in all heads, and the others of its chunk are there."""
    run_ranks(store, 2, "strided", chunks=7)
    part = min(path for path in (store / "parts").iterdir() if (path / "part.json").exists())
    chunk = part / "outputs" / "0" / "c.1.0.0"
    content = bytearray(chunk.read_bytes())
    content[:] = bytes(byte ^ 1 for byte in content)
    chunk.write_bytes(content)
    with pytest.warns(StorageWarning, match="damaged, and missing"):
        batch = publish(store)
    gone = np.flatnonzero(~batch.written)
    assert 3 <= len(gone) <= 4
    assert set(gone.tolist()) < set(range(7, 14))
    wanted = values(np.arange(N))
    for head, array in batch.outputs.items():
        wanted[head][gone] = 0
        np.testing.assert_array_equal(array[:], wanted[head])
    assert verify(store).verdict == "right"


def test_missing_rows_of_a_killed_rank_are_told(store):
    """A result with rows of a rank that was killed is complete, and warns."""
    run_and_die(store, 0, 2, np.arange(40), OPTIONS["raw"])
    with pytest.warns(StorageWarning, match=r"missing, and not every rank has come to its end"):
        batch = publish(store)
    assert np.flatnonzero(batch.written).tolist() == list(range(37))


def test_a_part_that_is_published_while_it_lives_records_no_more(store, monkeypatch):
    """Where locks do not reach, a living part may be taken for a dead one: nothing it recorded is lost."""
    rank = open_rank(store, 0, 1, chunks=7)
    push(rank, np.arange(30))
    rank.flush()
    with monkeypatch.context() as blind:
        blind.setattr("accumulator._stores.ranks.facts.is_locked", lambda _: None)
        with pytest.warns(StorageWarning, match="missing"):
            batch = publish(store)
    assert np.flatnonzero(batch.written).tolist() == list(range(30))
    with pytest.raises(StorageError, match="removed, moved or replaced"):
        push(rank, np.arange(30, 40))
    with pytest.raises(StorageError):
        rank.close()
    assert verify(store).verdict == "right"


def test_ranks_that_do_not_fit(store):
    """Another world size at once, other terms, or no such rank: refused before a row is written."""
    first = open_rank(store, 0, 2, chunks=7, heads=dict(ranked.HEADS), resume_token="v1")
    with first:
        push(first, first.missing_rows())
        first.flush()
        refused = {
            "is being written by rank 0 of 2, process": {"world_size": 3},
            "its resume_token is 'v1', and 'v2' is given": {"resume_token": "v2"},
            "its on_duplicate is 'error', and 'last' is given": {"on_duplicate": "last"},
            "head 'map' has chunks": {"chunks": 9},
            "head 'score' has fill_value 0, not 5": {"fill_value": {"score": 5}},
            "head 'map' has dtype float32, which cannot hold float64": {
                "heads": {"map": ((4, 3), "f8"), "score": ((2,), "i4")}
            },
        }
        for message, given in refused.items():
            options = {"world_size": 2, "chunks": 7, "resume_token": "v1", **given}
            before = ranked.files(store)
            with pytest.raises(ResumeError, match=re.escape(message)):
                open_rank(store, 1, **options)
            assert ranked.files(store) == before
        with pytest.raises(ResumeError, match="its locations are others"):
            FullBatchAccumulator(LOCS[::-1], store=store, mode="a", rank=1, world_size=2, resume_token="v1")
        with pytest.raises(OptionError, match="ranks are numbered from 0 to 1"):
            open_rank(store, 2, 2)
        with pytest.raises(OptionError, match="rank and world_size go together"):
            FullBatchAccumulator(LOCS, store=store, mode="a", rank=1)
        with pytest.raises(OptionError, match='give store= and mode="a"'):
            FullBatchAccumulator(LOCS, store=store, rank=1, world_size=2)
        with pytest.warns(StorageWarning, match="rank 0 of 2, process .*done twice"):
            open_rank(store, 0, 2, chunks=7, resume_token="v1").close()
    assert 0 < publish(store).written.sum() < N


def test_a_process_that_works_alone_keeps_ranks_out(store):
    """Also before its first push, when there is nothing but its lock."""
    with FullBatchAccumulator(LOCS, store=store, mode="a", chunks=7) as alone_here:
        with pytest.raises(LockedError, match="works alone"):
            open_rank(store, 0, 2)
        push(alone_here, np.arange(N))
    assert verify(store).verdict == "right"


def test_parts_with_other_heads_than_the_result(tmp_path, store):
    """They are not published into it, whoever brought them there."""
    alone(store, np.arange(30), chunks=7)
    other = tmp_path / "other.zarr"
    run_ranks(other, 2, "share", chunks=9)
    shutil.move(other / "parts", store / "parts")
    before = ranked.files(store / "outputs")
    with pytest.raises(ResultFormatError, match="its parts have other heads than the result"):
        publish(store)
    assert ranked.files(store / "outputs") == before


def test_a_published_row_that_is_damaged_stays_so(store):
    """It is not taken out of the other heads, nor blanked: whoever reads it is told."""
    with open_rank(store, 0, 2, chunks=7) as first:
        push(first, np.arange(0, N, 2))
    publish(store, partial=True).close()
    chunk = store / "outputs" / "map" / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1  # of row 0
    chunk.write_bytes(content)
    with open_rank(store, 1, 2, chunks=7) as second:
        push(second, np.arange(1, N, 2))
    batch = publish(store)
    assert batch.written.all()
    np.testing.assert_array_equal(batch.outputs["score"][:], values(np.arange(N))["score"])
    found = verify(store)
    assert [rows.tolist() for rows in found.damaged] == [[0], []]


@pytest.mark.parametrize("name", ["raw", "filled", "zstd"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_memory_of_another_chunk_is_never_written(store, name, damage):
    """Published rows that cannot be read any more become fill values, and are told, not another chunk's."""
    options, unit = OPTIONS[name], UNITS[name]
    with open_rank(store, 0, 2, **options) as rank:
        push(rank, np.flatnonzero(np.arange(N) % unit < unit // 2))
    publish(store, partial=True).close()
    with open_rank(store, 1, 2, **options) as rank:
        push(rank, np.flatnonzero(np.arange(N) % unit >= unit // 2))
    for path in [store / "outputs" / "map" / "c.6.0.0", *store.glob("parts/*/outputs/0/c.6.0.0")]:
        if damage == "gone":
            path.unlink()
        else:
            os.truncate(path, 5)
    with pytest.warns(StorageWarning, match="are damaged, and missing"):
        publish(store).close()
    fill = options.get("fill_value", 0)
    whole = zarr.open_group(store, mode="r")["outputs/map"][:]
    assert (whole[6 * unit : 7 * unit] == fill).all()
    batch = FullBatch.load(store)
    with pytest.raises(DamagedError):
        batch.outputs["map"][6 * unit : 7 * unit]
    written = np.flatnonzero(batch.written)
    others = written[written // unit != 6]
    np.testing.assert_array_equal(whole[others], values(others)["map"])


def test_a_damaged_published_row_keeps_its_bytes(store):
    """What could still be saved of it is not lost when more rows come to its chunk."""
    with open_rank(store, 0, 2, **OPTIONS["raw"]) as rank:
        push(rank, np.arange(0, N, 2))
    publish(store, partial=True).close()
    chunk = store / "outputs" / "map" / "c.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    with open_rank(store, 1, 2, **OPTIONS["raw"]) as rank:
        push(rank, np.arange(1, N, 2))
    publish(store).close()
    assert chunk.read_bytes()[:48] == bytes(content[:48])
    batch = FullBatch.load(store)
    with pytest.raises(DamagedError):
        batch.outputs["map"][0]


def test_a_rank_that_was_killed_as_it_began_is_in_nobodys_way(store):
    """Its folder, which tells nothing, is removed; and a healthy part cannot be left out."""
    run_ranks(store, 2, "share", chunks=7)
    (store / "parts" / ("ab" * 16)).mkdir()
    healthy = min(path.name for path in (store / "parts").iterdir() if (path / "part.json").exists())
    with pytest.raises(OptionError, match="not damaged"):
        publish(store, leave_out=[healthy])
    with pytest.raises(OptionError, match="leave_out is 5"):
        publish(store, leave_out=5)
    publish(store)
    assert not (store / "parts").exists()


def test_heads_without_elements(tmp_path, store):
    """They have no files, as in one process."""
    heads = [((0,), "f4"), ((2,), "f4")]
    for name, options in (("run", {"rank": 0, "world_size": 1}), ("alone", {})):
        path = tmp_path / f"{name}.zarr"
        with FullBatchAccumulator(LOCS, store=path, mode="a", heads=heads, **options) as accumulator:
            accumulator.push([np.empty((N, 0), "f4"), np.ones((N, 2), "f4")], LOCS)
    publish(store)
    check_same(store, tmp_path / "alone.zarr")


def test_a_part_that_is_damaged_between_two_looks(store, monkeypatch):
    """It is told as one that was damaged before, and nothing is published without it."""
    run_ranks(store, 2, "share", chunks=7)
    n_looks = itertools.count()

    def look(shared):
        found = look_at_parts(shared)
        if next(n_looks) == 0:
            return found
        return Looks([], {part.path: ResultFormatError("somebody changed it") for part in found.parts})

    with monkeypatch.context() as patched:
        patched.setattr(_publish, "look_at_parts", look)
        with pytest.raises(ResultFormatError, match="somebody changed it"):
            publish(store)
    assert publish(store).written.all()


@pytest.mark.parametrize("is_there", [False, True])
def test_another_rank_is_faster(store, monkeypatch, is_there):
    """Between two looks, or when a name is given: some network file systems do not say why they refuse it."""
    rename, find, n_looks = system.rename, SharedRun.find, itertools.count()

    def refuse(source, target):
        if Path(target).is_dir():
            raise PermissionError(errno.EPERM, "Operation not permitted", str(source))
        rename(source, target)

    with open_rank(store, 0, 2, chunks=7) as first, monkeypatch.context() as patched:
        push(first, first.missing_rows())
        patched.setattr(system, "rename", refuse)
        patched.setattr(SharedRun, "find", lambda root: find(root) if next(n_looks) else None)
        if is_there:
            patched.setattr(_ranks, "_heads_of_other_run", lambda *_: None)
        with open_rank(store, 1, 2, chunks=7) as second:
            push(second, second.missing_rows())
    assert publish(store).written.all()


def test_files_that_are_open_do_not_stop_publishing(store, monkeypatch):
    """Network file systems keep them, and their folder; this process itself has none of them open by then."""
    clear, mapped = system.clear, Path("/proc/self/maps")

    def refuse(path):
        if path.name.startswith("left."):
            gc.collect()
            assert not (mapped.exists() and "/parts" in mapped.read_text())
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        clear(path)

    run_ranks(store, 2, "share", chunks=7)
    with monkeypatch.context() as patched:
        patched.setattr(system, "clear", refuse)
        assert publish(store).written.all()
    assert not (store / "parts").exists()
    assert verify(store).verdict == "right"


def test_a_refusal_to_remove_what_was_published(store, monkeypatch):
    """It is told, and what is published stays so."""
    clear = system.clear

    def refuse(path):
        if path.name.startswith("left."):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        clear(path)

    run_ranks(store, 2, "share", chunks=7)
    with monkeypatch.context() as patched:
        patched.setattr(system, "clear", refuse)
        with pytest.raises(StorageError, match="cannot be removed"):
            publish(store)
    assert publish(store).written.all()


def test_last_checkpoints_that_cannot_be_seen(store):
    """A part that has ended says how many there are: without them its last rows would go unmissed."""
    with open_rank(store, 0, 2, chunks=7) as rank:
        for rows in np.array_split(np.arange(0, N, 2), 3):
            push(rank, rows)
            rank.flush()
    run_and_die(store, 1, 2, np.arange(1, N, 2), {"chunks": 7})
    (last,) = store.glob("parts/*/record/2")
    last.rename(store.with_name("away"))
    with pytest.raises(ResultFormatError, match="1 of its last checkpoints are gone; or they cannot be seen"):
        publish(store)
    store.with_name("away").rename(last)
    with pytest.warns(StorageWarning, match="not every rank has come to its end"):
        batch = publish(store)
    assert batch.written[::2].all()


def test_a_part_that_looks_unborn_is_not_lost(store, monkeypatch):
    """What a network file system tells of a folder may be old: only what is empty now is removed."""
    run_ranks(store, 2, "share", chunks=7)
    with monkeypatch.context() as patched:
        patched.setattr(_publish, "names_in", lambda _: [])
        batch = publish(store)
    assert batch.written.all()


def test_a_part_that_is_seen_late(store, monkeypatch):
    """It joins this publishing, and is removed with the others."""
    run_ranks(store, 3, "share", chunks=7)
    n_looks = itertools.count()

    def look(shared):
        found = look_at_parts(shared)
        return found if next(n_looks) else Looks(found.parts[1:], {})

    with monkeypatch.context() as patched:
        patched.setattr(_publish, "look_at_parts", look)
        assert publish(store).written.all()
    assert not (store / "parts").exists()
    assert verify(store).verdict == "right"


def test_a_part_that_cannot_be_read(store, monkeypatch):
    """That the system refuses is an error of the disk, and says nothing of the part."""
    run_ranks(store, 2, "share", chunks=7)

    def refuse(*_):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with monkeypatch.context() as patched:
        patched.setattr(facts, "_read_segments", refuse)
        with pytest.raises(StorageError, match="cannot be read"):
            publish(store)
    assert publish(store).written.all()


def test_another_publishes_all_while_this_one_begins(store, monkeypatch):
    """Then there is nothing left to do, and no error."""
    run_ranks(store, 2, "share", chunks=7)
    read = SharedRun.true_locations

    def read_late(shared):
        locs = read(shared)
        monkeypatch.setattr(SharedRun, "true_locations", read)
        publish(store).close()
        return locs

    monkeypatch.setattr(SharedRun, "true_locations", read_late)
    assert publish(store).written.all()


def test_nothing_to_publish(tmp_path, store):
    """Each case has its own error."""
    with pytest.raises(ResultNotFoundError):
        publish(store)
    rank = open_rank(store, 0, 1)
    rank.close()
    with pytest.raises(NothingPushedError):
        publish(store)
    with pytest.raises(OptionError, match="processes is 0"):
        publish(store, processes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultFormatError):
        publish(tmp_path / "file")


def test_declared_heads_and_no_rows(tmp_path, store):
    """Ranks that find nothing to do end with a result of fill values."""
    heads = dict(ranked.HEADS)
    for rank in range(3):
        open_rank(store, rank, 3, heads=heads, chunks=7).finalize()
    publish(store)
    with FullBatchAccumulator(LOCS, store=tmp_path / "alone.zarr", heads=heads, chunks=7):
        pass
    check_same(store, tmp_path / "alone.zarr")


@given(data=st.data())
@settings(max_examples=examples(15), deadline=None)
def test_any_history(tmp_path_factory, data):
    """Any ranks with any rows, some of which end and others are closed, published at any time."""
    folder = tmp_path_factory.mktemp("run")
    store, options = folder / "run.zarr", OPTIONS[data.draw(st.sampled_from(sorted(OPTIONS)))]
    recorded, living, size = set(), [], data.draw(st.integers(1, 5))
    with contextlib.ExitStack() as ending, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*done twice")  # of a rank that is there twice
        for _ in range(data.draw(st.integers(1, 6))):
            step = data.draw(st.sampled_from(["begin", "begin", "push", "end", "publish"]))
            if step == "begin" or not living:
                rank = open_rank(store, data.draw(st.integers(0, size - 1)), size, **options)
                living.append((ending.enter_context(rank), set()))
            accumulator, own = living[data.draw(st.integers(0, len(living) - 1))]
            if step == "publish" and recorded:
                found = publish(store, partial=True)
                assert recorded <= set(np.flatnonzero(found.written).tolist())
            if step == "end":
                living.remove((accumulator, own))
                (accumulator.finalize if data.draw(st.booleans()) else accumulator.close)()
                continue
            rows = data.draw(st.sets(st.integers(0, N - 1), max_size=40)) - own
            push(accumulator, sorted(rows, key=lambda row: (row * 7919) % N), batch=9)
            accumulator.flush()
            own |= rows
            recorded |= rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StorageWarning)  # of missing rows, and ranks that were closed
        if recorded:
            publish(store)
            alone(folder / "alone.zarr", sorted(recorded), **options)
            check_same(store, folder / "alone.zarr")
    shutil.rmtree(folder)

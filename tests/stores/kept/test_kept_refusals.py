"""Kept runs when the system or somebody else is in the way: nothing that was promised is given up."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.files import tree
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import GzipCodec, ZstdCodec
from zarr.registry import register_codec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores.files import ownership as _ownership
from accumulator._stores.files import system as _system
from accumulator._stores.memory import threads as _threads
from accumulator._stores.writing import redo as _redo
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import (
    DamagedError,
    LockedError,
    OptionError,
    ResultExistsError,
    ResumeError,
    StorageError,
    StorageWarning,
    UnfinishedError,
)

N = 8
LOCS = np.arange(N * 2).reshape(N, 2)
STORE = Path("run.zarr")
LAST = {"on_duplicate": "last"}


def start(mode="a", **options):
    """Open the store; it records what flush() records, and no more."""
    return FullBatchAccumulator(
        LOCS, **{"store": STORE, "mode": mode, "chunks": 4, "checkpoint_interval": np.inf} | options
    )


def values(rows, first=1):
    """Return what rows hold."""
    return np.asarray(rows)[:, None] * 10.0 + np.arange(3) + first


def push(accumulator, rows, **how):
    """Push rows."""
    accumulator.push(values(rows, **how), LOCS[rows])


def complete(**options):
    """Make a complete store."""
    with start(**options) as accumulator:
        push(accumulator, range(N))


def check(rows, **options):
    """Resume the run, and compare all that it has."""
    with start(**options) as accumulator:
        assert np.flatnonzero(accumulator.written).tolist() == list(rows)
        np.testing.assert_array_equal(accumulator.canvas[0][:][list(rows)], values(list(rows)))


def flip(path=STORE / "outputs/0/c.0.0"):
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[1] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize("compressors", [None, GzipCodec()])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOBUFS, errno.EAGAIN])
def test_rows_that_cannot_be_read_now_are_not_lost(monkeypatch, code, compressors):
    """A resume that the system refuses to read for is refused, and changes nothing."""
    options = {"compressors": compressors}
    complete(**options)
    before = tree(STORE)

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(_system, "read_at", refuse)
        with pytest.raises(StorageError) as refusal:
            start(**options)
        assert refusal.value.errno == code
    assert tree(STORE) == before
    check(range(N), **options)


def crash_before_redo(monkeypatch):
    """Leave a store whose record is of rows that still wait in redo files."""
    pid = os.fork()
    if pid == 0:
        try:
            accumulator = start(**LAST)
            push(accumulator, range(N), first=500)
            accumulator.flush()
            push(accumulator, range(N))
            monkeypatch.setattr(_redo.RedoChunks, "apply", lambda _: os._exit(0))
            accumulator.flush()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_redo_files_that_cannot_be_opened_now_are_not_lost(monkeypatch):
    """They are the only ones that hold what was recorded."""
    crash_before_redo(monkeypatch)
    real = os.open

    def refuse(path, *arguments, **how):
        if "/redo/" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageError):
            start(**LAST)
    check(range(N), **LAST)


def failing_once(monkeypatch, drops):
    """Have the first sync of a chunk fail, as for a page that the disk does not take; the system drops it."""
    real, failed = _system.sync, []

    def sync(path):
        if path.name == "c.0.0" and not failed:
            failed.append(path)
            if drops:
                path.write_bytes(bytes(path.stat().st_size))
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    monkeypatch.setattr(_system, "sync", sync)


@pytest.mark.parametrize("redone", [False, True])
def test_sync_that_failed_is_made_good(monkeypatch, redone):
    """The file is written once more, so that the next sync has something to do, and the run goes on."""
    written, real = [], _system.rewrite
    monkeypatch.setattr(_system, "rewrite", lambda path: (written.append(path.name), real(path)))
    accumulator = start(**LAST)
    if redone:
        push(accumulator, range(4), first=77)
        accumulator.flush()
    push(accumulator, range(4))
    failing_once(monkeypatch, drops=False)
    with pytest.raises(StorageError):
        accumulator.flush()
    accumulator.flush()
    assert written == ["c.0.0"]
    accumulator.close()
    check(range(4), **LAST)


def test_rows_that_a_failed_sync_has_dropped_are_not_recorded(monkeypatch):
    """No later call says that they are on the disk."""
    accumulator = start()
    push(accumulator, [5])
    accumulator.flush()
    push(accumulator, [1, 2])
    failing_once(monkeypatch, drops=True)
    with pytest.raises(StorageError):
        accumulator.flush()
    for call in (accumulator.flush, lambda: push(accumulator, [6]), accumulator.finalize, accumulator.close):
        with pytest.raises(StorageError, match="the disk has lost 2 rows of head 0") as refusal:
            call()
        assert refusal.value.rows.tolist() == [1, 2]
    check([5])


def test_file_that_somebody_removes_is_missed():
    """Its rows are not recorded."""
    accumulator = start()
    push(accumulator, range(4))
    accumulator._canvas.store.flush()
    (STORE / "outputs/0/c.0.0").unlink()
    for call in (accumulator.flush, accumulator.finalize, accumulator.close):
        with pytest.raises(StorageError, match="No such file"):
            call()
    check([])


def test_lock_of_a_folder_that_was_removed_is_none(monkeypatch):
    """Who opened the folder before it was removed and made anew gets the new one's lock, or is refused."""
    first, real, others = start("w-"), _ownership._take, []

    def take(descriptor):
        monkeypatch.setattr(_ownership, "_take", real)
        first.close()
        others.append(start("w-"))
        real(descriptor)

    monkeypatch.setattr(_ownership, "_take", take)
    with pytest.raises(LockedError):
        start()
    push(others[0], [1])
    others[0].close()
    check([1])


def test_store_that_is_moved_is_not_written_any_more():
    """Neither is another one that is made at its path."""
    old = start()
    push(old, [1])
    old.flush()
    STORE.rename("moved.zarr")
    with start("w-") as new:
        push(new, [2])
        push_and_calls = (lambda: push(old, [3]), old.flush, old.finalize, old.close)
        for call in push_and_calls:
            with pytest.raises(StorageError, match="moved or replaced"):
                call()
    check([2])
    with start(store="moved.zarr") as moved:
        assert np.flatnonzero(moved.written).tolist() == [1]


@pytest.mark.parametrize("partial", [False, True])
def test_copy_for_another_process_checks_too(partial):
    """An array that was pickled raises where this one does."""
    complete(chunks=2)
    flip()
    array = FullBatch.load(STORE, partial=partial).outputs[0]
    for each in (array, pickle.loads(pickle.dumps(array))):  # noqa: S301  our own
        with pytest.raises(DamagedError):
            each[0]
        np.testing.assert_array_equal(each[2:], values(range(2, N)))


def test_mark_whose_sync_failed_is_not_believed(monkeypatch):
    """A store that says it is complete, and may not be, is running before rows come."""
    accumulator, real = start(), _system.sync
    push(accumulator, [1])
    accumulator.flush()

    def sync(path):
        if '"complete"' in (STORE / "zarr.json").read_text():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(_system, "sync", sync)
        with pytest.raises(StorageError):
            accumulator.finalize()
    push(accumulator, [2])
    with pytest.raises(UnfinishedError):
        FullBatch.load(STORE)
    accumulator.finalize()
    assert np.flatnonzero(FullBatch.load(STORE).written).tolist() == [1, 2]


@dataclass(frozen=True)
class Mine(BytesBytesCodec):
    """A codec that somebody wrote."""

    is_fixed_size = True

    def to_dict(self):
        """Return what zarr writes."""
        return {"name": "mine", "configuration": {}}

    async def _encode_single(self, chunk_bytes, _):
        return chunk_bytes

    async def _decode_single(self, chunk_bytes, _):
        return chunk_bytes

    def compute_encoded_size(self, nbytes, _):
        """Return the same."""
        return nbytes


def test_codec_that_could_not_be_loaded_is_refused():
    """At the first push, and not when all is done."""
    register_codec("mine", Mine)
    accumulator = start(compressors=Mine())
    with pytest.raises(OptionError, match="could not be loaded again"):
        push(accumulator, [1])
    accumulator.close()
    assert not STORE.exists()


def test_files_of_others_are_left_alone():
    """A name that looks unfinished is not ours by that."""
    STORE.mkdir()
    (STORE / "movie.partial").write_text("precious")
    for mode in ("a", "w-"):
        with pytest.raises(ResultExistsError):
            start(mode)
    assert (STORE / "movie.partial").read_text() == "precious"


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_fill_value_of_any_nan(dtype):
    """What inf - inf is has another sign than what metadata says."""
    with np.errstate(invalid="ignore"):
        fill = np.float64(np.inf) - np.float64(np.inf)
    with start(fill_value=-np.abs(fill), dtype=dtype) as accumulator:
        push(accumulator, [1])
    output = FullBatch.load(STORE).outputs[0][:]
    assert np.isnan(output[[0, 2, 7]]).all()
    check([1], fill_value=np.nan, dtype=dtype)


def test_push_that_was_taken_does_not_raise_for_its_checkpoint():
    """It is the next call that tells, whatever zarr raises."""
    accumulator = start(checkpoint_interval=0)
    push(accumulator, [1])
    (STORE / "written").rename(STORE / "elsewhere")
    accumulator._canvas._next_checkpoint = 0
    push(accumulator, [2])
    for call in (lambda: push(accumulator, [3]), accumulator.flush):
        with pytest.raises(StorageError, match="cannot be recorded"):
            call()
    assert np.flatnonzero(accumulator.written).tolist() == [1, 2]
    (STORE / "elsewhere").rename(STORE / "written")
    push(accumulator, [3])
    accumulator.close()
    check([1, 2, 3])


def test_row_whose_successor_is_refused_stays_recorded_beside_new_ones(monkeypatch, tmp_path):
    """A record that is written for other rows says of it what its file has."""
    real, is_pushed = _redo.RedoChunks.write, threading.Event()

    def refuse(redo, part, **options):
        if part.chunk == 0:
            assert is_pushed.wait(60)  # else the push itself may be told of it, and take no row
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(redo, part, **options)

    accumulator = start(**LAST)
    push(accumulator, range(4))
    accumulator.flush()
    with monkeypatch.context() as full:
        full.setattr(_redo.RedoChunks, "write", refuse)
        push(accumulator, range(8), first=100)
        is_pushed.set()
        with pytest.raises(StorageError):
            accumulator.flush()
    shutil.copytree(STORE, tmp_path / "killed.zarr")
    accumulator.close()
    with FullBatch.load(tmp_path / "killed.zarr", partial=True) as batch:
        assert batch.written.all()
        expected = np.concatenate([values(range(4)), values(range(4, 8), first=100)])
        np.testing.assert_array_equal(batch.outputs[0][:], expected)


def test_what_ends_the_block_matters_more():
    """The user's own exception comes out, with a note."""

    def block():
        with start() as accumulator:
            push(accumulator, [1])
            shutil.rmtree(STORE)
            raise KeyError("mine")

    with pytest.raises(KeyError) as mine:
        block()
    assert "rows were not recorded" in mine.value.__notes__[0]


def test_complete_store_that_lost_rows_is_complete_no_more():
    """Otherwise damage would become silence."""
    complete()
    flip()
    with pytest.warns(StorageWarning, match="were damaged"):
        start().close()
    with pytest.raises(UnfinishedError):
        FullBatch.load(STORE)
    with start() as accumulator:
        push(accumulator, accumulator.missing_rows())
    np.testing.assert_array_equal(FullBatch.load(STORE).outputs[0][:], values(range(N)))


@pytest.mark.parametrize("compressors", [None, ZstdCodec()])
def test_copy_of_a_partial_result_has_recorded_rows_alone(compressors):
    """What else was in the files is not in it, and every byte of it is right."""
    accumulator = start(compressors=compressors, fill_value=5)
    push(accumulator, [1])
    accumulator.flush()
    push(accumulator, [2, 7])
    accumulator._canvas.store.flush()
    FullBatch.load(STORE, partial=True).save("copy.zarr")
    accumulator.close()
    copy = FullBatch.load("copy.zarr")
    assert np.flatnonzero(copy.written).tolist() == [1]
    expected = np.full((N, 3), 5.0)
    expected[1] = values([1])
    np.testing.assert_array_equal(copy.outputs[0][:], expected)


def test_first_push_that_fails_leaves_an_empty_folder(monkeypatch):
    """Nothing was taken: the next first push may have other heads, the next run another mode."""
    accumulator = start("w-")

    def refuse(*_, **__):
        raise StorageError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(ZarrRows, "put", refuse)
        with pytest.raises(StorageError):
            push(accumulator, [1])
    assert list(STORE.iterdir()) == []
    accumulator.push({"other": np.ones((1, 2), "u1")}, LOCS[:1])
    accumulator.close()
    with start() as accumulator:
        assert list(accumulator.finalize().outputs) == ["other"]


def test_resume_without_threads(monkeypatch):
    """Where the system has no thread left, rows are checked by this one."""
    complete()
    monkeypatch.setattr(_threads, "start_threads", lambda *_: None)
    flip()
    with pytest.warns(StorageWarning, match="4 rows|1 rows"), start() as accumulator:
        push(accumulator, accumulator.missing_rows())


def test_looking_while_the_writer_removes_a_folder(monkeypatch):
    """Whatever goes while it is looked at is not missed."""
    accumulator, real = start(**LAST), os.scandir
    push(accumulator, range(4), first=50)
    accumulator.flush()
    push(accumulator, range(4))
    accumulator._canvas.store.flush()

    def scandir(path):
        if str(path).endswith("redo") and Path(path).is_dir():
            accumulator.flush()
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert FullBatch.load(STORE, partial=True).written.sum() == 4
    accumulator.close()


def test_claim_that_fails_leaves_nothing(monkeypatch):
    """Neither the folder nor those above it."""

    def refuse(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_ownership.system, "sync", refuse)
    with pytest.raises(StorageError):
        start(store="new/folder/run.zarr")
    assert not Path("new").exists()


@pytest.mark.parametrize("written", [True, False])
def test_loaded_store_that_is_written_to_says_so(written):
    """Rows that came or were replaced since are no damage."""
    accumulator = start(**LAST)
    push(accumulator, range(4) if written else [0], first=99)
    accumulator.flush()
    loaded = FullBatch.load(STORE, partial=True)
    push(accumulator, range(4))
    accumulator.close()
    if written:
        with pytest.raises(StorageError, match="load it again") as changed:
            loaded.outputs[0][:]
        assert changed.value.errno == errno.ESTALE
    else:
        flip()  # and what is damaged is found when it is loaded again
        with pytest.raises(DamagedError):
            FullBatch.load(STORE, partial=True).outputs[0][:]


def test_long_double_locations():
    """Whole numbers are whole numbers, in whatever dtype."""
    with FullBatchAccumulator(LOCS.astype(np.longdouble), store=STORE) as accumulator:
        push(accumulator, [1])
    check([1], chunks=None)


def test_no_locations():
    """There is nothing to push, and a complete store all the same."""
    for mode in ("w-", "a"):
        with FullBatchAccumulator(LOCS[:0], store=STORE, mode=mode):
            pass
        assert FullBatch.load(STORE).outputs == []


def test_interpreter_that_ends_before_it_is_closed_says_what_is_lost():
    """And nothing if all was recorded."""
    script = (
        "import sys, numpy as np\nfrom accumulator import FullBatchAccumulator\n"
        "accumulator = FullBatchAccumulator(np.arange(8).reshape(4, 2), store=sys.argv[1])\n"
        "accumulator.push(np.ones((2, 3)), [[0, 1], [2, 3]])\n"
    )
    for more, said in (("", "2 rows were not recorded"), ("accumulator.flush()", "")):
        ended = subprocess.run(
            [sys.executable, "-c", script + more, f"{len(more)}.zarr"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (said in ended.stderr) if said else ended.stderr == ""


def test_checkpoint_interval_is_for_kept_runs():
    """It would do nothing otherwise."""
    with pytest.raises(OptionError, match="store="):
        FullBatchAccumulator(LOCS, checkpoint_interval=3)
    start(checkpoint_interval=10**400).close()


def test_refusal_of_many_heads_names_ten():
    """Seventy differences are no message that anybody reads."""
    heads = {f"head {number}": ((2,), "f4") for number in range(70)}
    start(heads=heads, chunks=None).close()
    others = dict.fromkeys(heads, ((3,), "f4"))
    with pytest.raises(ResumeError, match=r"'head 9'.* and 60 more") as refusal:
        start(heads=others, chunks=None)
    assert len(str(refusal.value)) < 1500

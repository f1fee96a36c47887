"""Rows on disk: chunks are written once and whole, behind the caller, and what fails is held."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from helpers.oracle import distinct
from helpers.row_stores import ROW, N, put

from accumulator._inputs.validation import HeadSpec
from accumulator._stores.files import system as _system
from accumulator._stores.format import layout as _layout
from accumulator._stores.format.store import FolderStore
from accumulator._stores.writing import head as _head
from accumulator._stores.writing.encoded import EncodedChunks
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import StorageError


@pytest.fixture
def writes(monkeypatch):
    """Record every write of a block: which chunk, and how many rows."""
    seen = []
    real = _head.Block.write

    def spy(self):
        seen.append((self.chunk, int(self.filled.sum())))
        real(self)

    monkeypatch.setattr(_head.Block, "write", spy)
    return seen


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["raw", "compressed"])
@pytest.mark.parametrize("batch", [1, 3, 4, 7, 23])
def test_in_order_every_chunk_is_written_once_and_whole(backends, writes, kind, batch):
    """Batches in order, on chunk edges or not: one write a chunk, of all its rows."""
    store = backends.make(kind, ROW)
    values = distinct(N, (4,))
    for start in range(0, N, batch):
        put(store, slice(start, min(N, start + batch)), values[start : start + batch])
    store.flush()
    assert sorted(writes) == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 3)]


@pytest.mark.usefixtures("tiny_chunks")
def test_slightly_shuffled_batches_still_write_whole_chunks(backends, writes):
    """Batches that several loaders deliver out of order by a few still fill whole chunks."""
    store = backends.make("raw", ROW)
    values = distinct(N, (4,))
    for row in (0, 4, 1, 8, 5, 2, 12, 9, 6, 3, 13, 10, 7, 11, 14, 15):
        put(store, slice(row, row + 1), values[row : row + 1])
    store.flush()
    assert sorted(writes) == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_late_rows_that_complete_a_chunk_are_written_at_once(backends, writes, kind):
    """A chunk that has the rest of its rows on disk waits for no more, and takes no memory."""
    store = backends.make(kind, ROW)
    values = distinct(N, (4,))
    put(store, slice(0, 2), values[:2])
    store.flush()
    put(store, slice(2, 3), values[2:3])
    store.flush()
    assert writes == [(0, 2), (0, 1)]
    put(store, slice(3, 4), values[3:4])
    store._writer.drain()
    assert writes == [(0, 2), (0, 1), (0, 1)]
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:4], values[:4])


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_few_chunks_are_in_memory(backends, writes, kind):
    """However rows arrive, no more than OPEN_CHUNKS chunks are open, and each row is written once."""
    store = backends.make(kind, ROW, n_rows=400)
    order = np.random.default_rng(1).permutation(400)
    for row in order:
        put(store, np.array([row]), distinct(1, (4,), first=row))
        assert len(store.heads[0]._open) <= _layout.OPEN_CHUNKS
    store.flush()
    assert sum(rows for _, rows in writes) == 400
    np.testing.assert_array_equal(store.arrays[0][:][:, 0], np.arange(400))


@pytest.mark.usefixtures("tiny_chunks")
def test_chunk_that_is_encoded_late_is_encoded_once(backends, monkeypatch):
    """Compressed chunks whose rows come in any order wait in scratch files, and are encoded when complete."""
    encoded = []
    real = EncodedChunks._encode
    monkeypatch.setattr(
        EncodedChunks,
        "_encode",
        lambda self, chunk, *rest: (encoded.append(chunk), real(self, chunk, *rest)),
    )
    store = backends.make("compressed", ROW, n_rows=80)
    order = np.random.default_rng(1).permutation(80)
    for row in order[:-1]:
        put(store, np.array([row]), distinct(1, (4,), first=row))
    store.flush()
    assert sorted(encoded) == list(range(20))
    assert not list(backends.folder.rglob("part"))


@pytest.mark.parametrize("late", [False, True])
def test_close_rows_are_written_together(backends, monkeypatch, late):
    """A checkerboard of small rows is a few writes, not one a row; what lies between is as it was."""
    pieces = []
    real = _system.write_at

    def spy(descriptor, left, offset):
        pieces.append(offset)
        real(descriptor, left, offset)

    store = backends.make("raw", ROW, n_rows=4000)
    values = distinct(4000, (4,))
    expected = np.zeros_like(values)
    rows = np.arange(0, 4000, 2)
    if late:
        put(store, rows + 1, values[rows + 1])
        store.flush()
        expected[rows + 1] = values[rows + 1]
    monkeypatch.setattr(_system, "write_at", spy)
    put(store, rows[::-1], values[rows[::-1]])
    store.flush()
    expected[rows] = values[rows]
    np.testing.assert_array_equal(store.get(np.arange(4000))[0], expected)
    np.testing.assert_array_equal(store.arrays[0][:], expected)
    assert len(pieces) == 1


def test_file_that_was_cut_is_found(backends):
    """A chunk file shorter than it must be is an error when its rows are read back."""
    store = backends.make("raw", ROW)
    put(store, slice(0, 3), distinct(3, (4,)))
    store.flush()
    (file,) = backends.folder.rglob("c.*")
    os.truncate(file, 20)
    with pytest.raises(StorageError, match=r"cannot be read .*was cut"):
        store.get(slice(0, 3))
    file.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        store.get(slice(0, 3))


def test_sparse_rows_take_their_own_space_only(backends):
    """Rows far apart in big chunks: the files have holes, and du is about the written bytes."""
    store = backends.make("raw", HeadSpec((2**18,), np.dtype("f4")), n_rows=3000)  # 1 MiB a row
    for row in range(0, 3000, 100):
        put(store, slice(row, row + 1), np.ones((1, 2**18), "f4"))
    store.flush()
    files = list(backends.folder.rglob("c.*"))
    assert sum(p.stat().st_blocks * 512 for p in files) <= 1.1 * 30 * 2**20
    assert {p.stat().st_size for p in files} == {16 * 2**20}


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["whole", "part", "late"])
@pytest.mark.parametrize("storage", ["raw", "compressed"])
def test_failed_write_leaves_no_half_chunk(backends, monkeypatch, kind, storage):
    """When the disk fills up in a write, a new file is removed, and what was held still is, and is told."""
    store = backends.make(storage, ROW)
    values = distinct(N, (4,))
    put(store, slice(0, 3), values[:3])
    if kind == "late":
        store.flush()
    rows = slice(4, 8) if kind == "whole" else slice(3, 4)
    with monkeypatch.context() as patched:
        patched.setattr(_system, "write_at", _no_space)
        patched.setattr(EncodedChunks, "_encode", _no_space)
        put(store, rows, values[rows])
        for _ in range(2):
            with pytest.raises(
                StorageError, match=r"rows .* of head 0 cannot be written .*held in memory"
            ) as caught:
                store.flush()
        assert set(np.arange(N)[rows]) <= set(caught.value.rows.tolist())
        with pytest.raises(StorageError):
            store.make_room(1)
    assert caught.value.errno == 28
    assert caught.value.filename == "c.0"
    assert not list(backends.folder.rglob("c.*")) or kind == "late"
    np.testing.assert_array_equal(store.get(slice(0, 3))[0], values[:3])
    np.testing.assert_array_equal(store.get(rows)[0], values[rows])
    put(store, slice(3, 8), values[3:8])
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:8], values[:8])


def _no_space(*_):
    raise OSError(28, "No space left on device", "c.0")


@pytest.mark.usefixtures("tiny_chunks")
def test_slow_disk_holds_the_caller_up(backends, monkeypatch):
    """When the disk is slower than the model, no more than the limit waits, and the caller waits."""
    gate, real = threading.Event(), _head.Block.write
    monkeypatch.setattr(_head.Block, "write", lambda self: (gate.wait(20), real(self)))
    store = backends.make("raw", ROW, n_rows=400)
    taken = []

    def push():
        for row in range(0, 400, 4):
            put(store, slice(row, row + 4), distinct(4, (4,), first=row))
            taken.append(row)

    pusher = threading.Thread(target=push)
    pusher.start()
    pusher.join(0.5)
    assert len(taken) == 2  # two chunks a head are under way
    gate.set()
    pusher.join()
    store.flush()
    expected = np.concatenate([distinct(4, (4,), first=row) for row in range(0, 400, 4)])
    np.testing.assert_array_equal(store.arrays[0][:], expected)


@pytest.mark.usefixtures("tiny_chunks")
def test_rows_for_a_chunk_that_waits_to_be_written(backends, monkeypatch):
    """A chunk whose rows are put again while it waits for the disk or is written has the last ones."""
    started, gate, real = threading.Event(), threading.Event(), _head.Block.write

    def slow(self):
        started.set()
        gate.wait(20)
        real(self)

    monkeypatch.setattr(_head.Block, "write", slow)
    store = backends.make("raw", ROW)
    put(store, slice(0, 8), distinct(8, (4,)))
    started.wait()
    later = threading.Timer(0.2, gate.set)
    later.start()
    put(store, np.array([1, 6]), distinct(2, (4,), first=500))
    later.join()
    store.flush()
    expected = distinct(8, (4,))
    expected[[1, 6]] = distinct(2, (4,), first=500)
    np.testing.assert_array_equal(store.arrays[0][:8], expected)


def test_no_direct_io_is_no_error(backends, monkeypatch, tuned):
    """A file system that refuses direct I/O is written in the ordinary way."""
    tuned(direct_flag=os.O_DIRECTORY)  # refused for any file
    real = os.open

    def refuse(path, flags, *mode):
        if flags & os.O_DIRECTORY and flags & os.O_CREAT:
            raise OSError(22, "Invalid argument", str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(_system.os, "open", refuse)
    store = backends.make("raw", ROW)
    put(store, slice(0, N), distinct(N, (4,)))
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:], distinct(N, (4,)))


def test_unwritable_folder_is_a_storage_error(tmp_path):
    """A zarr group cannot be made where a file is in the way."""
    (tmp_path / "outputs").write_text("")
    with pytest.raises(StorageError, match="no zarr group"):
        ZarrRows(FolderStore(tmp_path), 3, [])

"""One contract over both row stores, and what the one on disk promises of its files."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from oracle import distinct

from accumulator import _stores
from accumulator._stores import _disk
from accumulator._validation import HeadSpec
from accumulator.exceptions import ClosedError, HeadDtypeError, StorageError

N = 23


class Backends:
    """Both stores for one head, made on demand."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def make(self, kind, spec, n_rows=N):
        """Return an empty store."""
        if kind == "ram":
            return _stores.RamRows(n_rows, spec)
        self.count += 1
        root = self.folder / str(self.count)
        root.mkdir()
        store = _stores.FolderStore(root)
        return _stores.create_zarr_rows(store, n_rows, [spec])[0]


@pytest.fixture
def backends(tmp_path):
    """Return a maker of stores."""
    return Backends(tmp_path)


ROWS = st.one_of(
    st.tuples(st.integers(0, N), st.integers(0, N)).map(lambda ab: slice(min(ab), max(ab))),
    st.lists(st.integers(0, N - 1), unique=True).map(lambda rows: np.array(rows, dtype=np.intp)),
)
ACTIONS = st.sampled_from(["put", "put", "put", "erase", "flush", "get"])
STEPS = st.lists(st.tuples(ACTIONS, ROWS), max_size=12)
SHAPES = st.sampled_from([(), (3,), (2, 2, 1), (5, 1), (0, 2)])


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["ram", "zarr"])
@given(
    steps=STEPS,
    shape=SHAPES,
    dtype=st.sampled_from(["?", "u1", "<i2", ">f4", "f8", "c16"]),
    block_nbytes=st.sampled_from([16, 48, 4096]),
)
def test_holds_what_was_put(backends, monkeypatch, kind, steps, shape, dtype, block_nbytes):
    """Any sequence of put, erase, flush and get, over many chunks, is what a plain array would hold."""
    monkeypatch.setattr(_disk, "BLOCK_NBYTES", block_nbytes)
    store = backends.make(kind, HeadSpec(shape, np.dtype(dtype)))
    model = np.zeros((N, *shape), dtype)
    values = iter(range(1, 10_000, 300))
    for action, rows in steps:
        if action == "put":
            model[rows] = distinct(len(model[rows]), shape, dtype, first=next(values))
            store.put(rows, model[rows].copy())
        elif action == "erase":
            model[rows] = 0
            store.erase(rows)
        elif action == "flush":
            store.flush()
            np.testing.assert_array_equal(store.array[:], model)
        np.testing.assert_array_equal(store.get(rows), model[rows])
    store.flush()
    np.testing.assert_array_equal(store.array[:], model)
    assert store.array.dtype == np.dtype(dtype)


@pytest.fixture
def writes(monkeypatch):
    """Record every write to a chunk file: which chunk, and the rows it has."""
    seen = []
    real = _disk.ZarrRows._write

    def spy(self, chunk, runs):
        runs = list(runs)
        seen.append((chunk, sum(len(values) for _, values in runs)))
        real(self, chunk, runs)

    monkeypatch.setattr(_disk.ZarrRows, "_write", spy)
    return seen


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("batch", [1, 3, 4, 7, 23])
def test_in_order_every_chunk_is_written_once_and_whole(backends, writes, batch):
    """Batches in order, on chunk edges or not: one write a chunk, of all its rows."""
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")))  # 16 bytes a row, 4 rows a chunk
    values = distinct(N, (4,))
    for start in range(0, N, batch):
        store.put(slice(start, min(N, start + batch)), values[start : start + batch])
    store.flush()
    assert writes == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 3)]


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["ram", "zarr"])
def test_late_rows_in_any_order_find_their_place(backends, kind):
    """Rows given backwards and mixed, to chunks that are on disk already, end where they belong."""
    store = backends.make(kind, HeadSpec((4,), np.dtype("f4")))
    store.put(slice(0, N), distinct(N, (4,)))
    store.flush()
    rows, late = np.array([6, 5, 4, 22, 0, 2, 1, 13, 12]), distinct(9, (4,), first=1000)
    store.put(rows, late)
    expected = distinct(N, (4,))
    expected[rows] = late
    np.testing.assert_array_equal(store.array[:], expected)


@pytest.mark.usefixtures("tiny_chunks")
def test_slightly_shuffled_batches_still_write_whole_chunks(backends, writes):
    """Batches that several loaders deliver out of order by a few still fill whole chunks."""
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")))
    values = distinct(N, (4,))
    for row in (0, 4, 1, 8, 5, 2, 12, 9, 6, 3, 13, 10, 7, 11, 14, 15):
        store.put(slice(row, row + 1), values[row : row + 1])
    assert sorted(writes) == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.usefixtures("tiny_chunks")
def test_few_chunks_are_in_memory(backends, writes, monkeypatch):
    """However rows arrive, no more than OPEN_CHUNKS chunks are held, and each row is written once."""
    monkeypatch.setattr(_disk, "BLOCK_NBYTES", 1)  # gaps are not written along
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")), n_rows=400)
    order = np.random.default_rng(1).permutation(400)
    for row in order:
        store.put(np.array([row]), distinct(1, (4,), first=row))
        assert len(store._open) <= _disk.OPEN_CHUNKS
    store.flush()
    assert sum(rows for _, rows in writes) == 400


@pytest.mark.parametrize("late", [False, True])
def test_close_rows_are_written_together(backends, monkeypatch, late):
    """A checkerboard of small rows is a few writes, not one a row; what lies between is as it was."""
    pieces = []
    real = _disk.ZarrRows._write

    def spy(self, chunk, given):
        given = list(given)
        pieces.append(len(given))
        real(self, chunk, given)

    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")), n_rows=4000)
    values = distinct(4000, (4,))
    expected = np.zeros_like(values)
    rows = np.arange(0, 4000, 2)
    if late:
        store.put(rows + 1, values[rows + 1])
        store.flush()
        expected[rows + 1] = values[rows + 1]
    monkeypatch.setattr(_disk.ZarrRows, "_write", spy)
    store.put(rows[::-1], values[rows[::-1]])
    store.flush()
    expected[rows] = values[rows]
    np.testing.assert_array_equal(store.get(np.arange(4000)), expected)
    np.testing.assert_array_equal(store.array[:], expected)
    assert pieces == [1]


def test_erasing_needs_no_space(backends):
    """Only blocks that hold something are written when rows are erased: holes stay holes."""
    store = backends.make("zarr", HeadSpec((2**18,), np.dtype("f4")), n_rows=16)  # 1 MiB a row
    values = np.zeros((2, 2**18), "f4")
    values[1, 5000:5003] = 1
    store.put(np.array([2, 9]), values)
    store.flush()
    (file,) = backends.folder.rglob("c.*")
    before = file.stat().st_blocks
    store.erase(slice(0, 16))
    assert file.stat().st_blocks == before
    assert not store.array[:].any()


def test_file_that_was_cut_is_found(backends):
    """A chunk file shorter than it must be is an error when its rows are read back."""
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")))
    store.put(slice(0, 3), distinct(3, (4,)))
    store.flush()
    (file,) = backends.folder.rglob("c.*")
    os.truncate(file, 20)
    with pytest.raises(StorageError, match=r"cannot be read .*was cut"):
        store.get(slice(0, 3))
    file.unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        store.get(slice(0, 3))


@pytest.mark.parametrize(
    ("buffer_nbytes", "n_heads", "open_chunks", "chunk_nbytes"),
    [
        (256 * 2**20, 3, 4, 16 * 2**20),
        (256 * 2**20, 8, 2, 16 * 2**20),
        (256 * 2**20, 32, 1, 8 * 2**20),
        (2**20, 4, 1, 2**18),
        (0, 2, 1, 2**10),
    ],
)
def test_buffers_keep_to_their_share(backends, buffer_nbytes, n_heads, open_chunks, chunk_nbytes):
    """With little memory or many heads fewer chunks are open, then smaller ones, one row at least."""
    (backends.folder / "x").mkdir()
    specs = [HeadSpec((2**10,), np.dtype("u1"))] * n_heads
    stores = _stores.create_zarr_rows(_stores.FolderStore(backends.folder / "x"), 10**6, specs, buffer_nbytes)
    assert {store._open_chunks for store in stores} == {open_chunks}
    assert {store.array.chunks[0] * 2**10 for store in stores} == {chunk_nbytes}


def test_chunks_are_8_to_32_mib_of_whole_rows(backends):
    """Chunks hold whole rows, about 16 MiB of them, at least one and never more than there are."""
    for row_nbytes, n_rows, expected in [(64, 10**7, 262_144), (2**20, 500, 16), (2**26, 9, 1), (64, 7, 7)]:
        store = backends.make("zarr", HeadSpec((row_nbytes,), np.dtype("u1")), n_rows=n_rows)
        assert store.array.chunks == (expected, row_nbytes)


def test_sparse_rows_take_their_own_space_only(backends):
    """Rows far apart in big chunks: the files have holes, and du is about the written bytes."""
    store = backends.make("zarr", HeadSpec((2**18,), np.dtype("f4")), n_rows=3000)  # 1 MiB a row
    for row in range(0, 3000, 100):
        store.put(slice(row, row + 1), np.ones((1, 2**18), "f4"))
    store.flush()
    files = list(backends.folder.rglob("c.*"))
    assert sum(p.stat().st_blocks * 512 for p in files) <= 1.1 * 30 * 2**20
    assert {p.stat().st_size for p in files} == {16 * 2**20}


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", ["whole", "part", "late"])
def test_failed_write_leaves_no_half_chunk(backends, monkeypatch, kind):
    """When the disk fills up in a write, a new chunk file is removed, and what was held still is."""
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")))
    values = distinct(N, (4,))
    store.put(slice(0, 3), values[:3])
    if kind == "late":
        store.flush()
    rows = slice(4, 8) if kind == "whole" else slice(3, 4)
    with monkeypatch.context() as patched:
        patched.setattr(_disk.np, "ascontiguousarray", _no_space)
        with pytest.raises(StorageError, match=r"rows .* cannot be written") as caught:
            store.put(rows, values[rows])
    assert caught.value.errno == 28
    assert caught.value.filename
    store.erase(rows)
    np.testing.assert_array_equal(store.get(slice(0, 8)), np.vstack([values[:3], np.zeros((5, 4))]))
    store.put(slice(3, 8), values[3:8])
    store.flush()
    np.testing.assert_array_equal(store.array[:8], values[:8])


def _no_space(*_):
    raise OSError(28, "No space left on device", "c.0")


@pytest.mark.usefixtures("tiny_chunks")
def test_interrupted_write_leaves_no_half_chunk(backends, monkeypatch):
    """Ctrl-C in the middle of a chunk removes its file, so that the chunk can be written again."""
    store = backends.make("zarr", HeadSpec((4,), np.dtype("f4")))
    with monkeypatch.context() as patched:
        patched.setattr(_disk.np, "ascontiguousarray", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put(slice(0, 4), distinct(4, (4,)))
    assert not list(backends.folder.rglob("c.*"))
    store.put(slice(0, 4), distinct(4, (4,)))
    np.testing.assert_array_equal(store.array[:4], distinct(4, (4,)))


def _interrupt(*_):
    raise KeyboardInterrupt


def test_unwritable_folder_is_a_storage_error(tmp_path):
    """A zarr group cannot be made where a file is in the way."""
    (tmp_path / "outputs").write_text("")
    with pytest.raises(StorageError, match="no zarr group"):
        _stores.create_zarr_rows(_stores.FolderStore(tmp_path), 3, [])


def test_dtype_that_zarr_lacks_is_named(backends):
    """A dtype that only NumPy knows cannot go to disk, and the error says so."""
    if np.dtype(np.longdouble) == np.dtype(np.float64):
        return  # this platform has no longer one
    with pytest.raises(HeadDtypeError, match=r"head 0 has dtype .*128, which zarr cannot store"):
        backends.make("zarr", HeadSpec((2,), np.dtype(np.longdouble)))


def test_closed_store_refuses_to_be_read(backends):
    """After its files are gone a store must not read as zeros."""
    store = backends.make("zarr", HeadSpec((2,), np.dtype("f4")))
    store.array.store.shut()
    with pytest.raises(ClosedError, match="was closed"):
        store.array[:]
    assert "file://" in str(store.array.store)


def test_array_goes_to_another_process(backends):
    """A pickled array opens the same files, without taking over the folder they lie in."""
    folder = _stores.TemporaryFolder(str(backends.folder))
    store = _stores.FolderStore(folder.path, folder=folder)
    rows = _stores.create_zarr_rows(store, 4, [HeadSpec((2,), np.dtype("f4"))])[0]
    rows.put(slice(0, 4), distinct(4, (2,)))
    copy = pickle.loads(pickle.dumps(rows.array))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(copy[:], distinct(4, (2,)))
    assert copy.store.folder is None
    twin = rows.array.store.with_read_only(read_only=True)
    assert twin.folder is folder
    store.shut()
    assert not folder.path.exists()
    with pytest.raises(ClosedError, match="is gone"):
        copy[:]
    with pytest.raises(ClosedError, match="was closed"):
        zarr.open_array(twin, path="outputs/0", mode="r")


def test_forked_child_removes_nothing(tmp_path):
    """A child that inherits a folder by fork leaves it to the parent."""
    folder = _stores.TemporaryFolder(str(tmp_path))
    assert folder.path.parent == tmp_path
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        folder.remove()
    assert folder.path.exists()
    folder.path.rmdir()


def test_folder_survives_a_parent_that_vanishes(tmp_path, monkeypatch):
    """When another process removes save_path between two steps, it is made again."""
    real, calls = _stores._folder.tempfile.mkdtemp, []

    def vanish_once(**kwargs):
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / "parent").rmdir()
        return real(**kwargs)

    monkeypatch.setattr(_stores._folder.tempfile, "mkdtemp", vanish_once)
    folder = _stores.TemporaryFolder(str(tmp_path / "parent"))
    assert folder.path.is_dir()
    folder.remove()
    assert not (tmp_path / "parent").exists()


def test_shared_parent_stays_while_others_use_it(tmp_path):
    """The parent that one folder made is removed only when it is empty."""
    first = _stores.TemporaryFolder(str(tmp_path / "parent"))
    second = _stores.TemporaryFolder(str(tmp_path / "parent"))
    first.remove()
    assert second.path.is_dir()
    second.remove()
    second.remove()
    assert not (tmp_path / "parent").exists()


def test_parent_made_anew_by_others_stays(tmp_path):
    """A folder that took the place of one made here is not ours to remove."""
    folder = _stores.TemporaryFolder(str(tmp_path / "parent"))
    (tmp_path / "parent").rename(tmp_path / "moved")
    (tmp_path / "parent").mkdir()
    folder.remove()
    assert (tmp_path / "parent").is_dir()
    (tmp_path / "moved" / folder.path.name).rmdir()


def test_parent_that_never_stays_is_an_error(tmp_path, monkeypatch):
    """When others keep removing save_path the attempts end, with a typed error."""

    def vanish(**_):
        (tmp_path / "parent").rmdir()
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(_stores._folder.tempfile, "mkdtemp", vanish)
    with pytest.raises(StorageError, match="no folder can be made"):
        _stores.TemporaryFolder(str(tmp_path / "parent"))


def test_parent_removed_by_others_is_forgotten(tmp_path):
    """When somebody removed save_path and all in it, there is nothing to do."""
    folder = _stores.TemporaryFolder(str(tmp_path / "parent" / "below"))
    shutil.rmtree(tmp_path / "parent")
    folder.remove()
    assert not (tmp_path / "parent").exists()


def test_folder_that_cannot_be_removed_is_tried_again(tmp_path, monkeypatch):
    """A refusal of the system is a typed error, and the folder is still looked after."""
    folder = _stores.TemporaryFolder(str(tmp_path / "parent"))
    with monkeypatch.context() as patched:
        patched.setattr(_stores._folder.shutil, "rmtree", _not_permitted)
        with pytest.raises(StorageError, match="cannot be removed"):
            folder.remove()
    folder.remove()
    assert not (tmp_path / "parent").exists()


def _not_permitted(*_):
    raise PermissionError(13, "Permission denied")


def test_layout_is_plain_zarr(backends):
    """What is on disk is an ordinary uncompressed zarr v3 array that zarr itself can also write."""
    store = backends.make("zarr", HeadSpec((2, 3), np.dtype(">f4")))
    store.put(slice(0, N), distinct(N, (2, 3), ">f4"))
    store.flush()
    path = store.array.store.root / store.array.path
    again = zarr.open_array(path, mode="r+")
    assert again.metadata.zarr_format == 3
    np.testing.assert_array_equal(again[:], distinct(N, (2, 3)))
    again[5] = 7
    assert (store.array[5] == 7).all()

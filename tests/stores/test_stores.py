"""One contract over both row stores, and what the one on disk promises of its files."""

from __future__ import annotations

import os
import pickle
import threading

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, ZstdCodec

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.files import system as _system
from accumulator._stores.files.temporary import TemporaryFolder
from accumulator._stores.format import layout as _layout
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory import copying as _copying
from accumulator._stores.memory.ram import RamRows
from accumulator._stores.writing import head as _head
from accumulator._stores.writing.encoded import EncodedChunks
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import ClosedError, HeadDtypeError, OptionError, StorageError

N = 23
KINDS = {
    "ram": Storage(),
    "raw": Storage(),
    "raw, filled": Storage(fill_value=3),
    "compressed": Storage(compressors=ZstdCodec(level=0)),
    "sharded": Storage(shards=4, compressors=BloscCodec(), fill_value=1),
    "cut": Storage(chunks=5, fill_value=2, shards=None),
}


class Backends:
    """Both stores for one head, made on demand, and closed at the end."""

    def __init__(self, folder):
        self.folder, self.count, self.made = folder, 0, []

    def make(self, kind, spec, n_rows=N, storage=None, buffer_nbytes=BUFFER_NBYTES):
        """Return an empty store."""
        spec = HeadSpec(spec.patch_shape, spec.dtype, storage or KINDS[kind])
        if kind == "ram":
            store = RamRows(n_rows, [spec], [np.empty(1)])
        else:
            self.count += 1
            root = self.folder / str(self.count)
            root.mkdir()
            store = ZarrRows(FolderStore(root), n_rows, [spec], buffer_nbytes)
        self.made.append(store)
        return store


@pytest.fixture
def backends(tmp_path):
    """Return a maker of stores."""
    backends = Backends(tmp_path)
    yield backends
    for store in backends.made:
        store.close()


def put(store, rows, values):
    """Put rows of the only head, and let them count."""
    store.make_room(values.nbytes)
    store.put(rows, [values])
    store.commit()


ROWS = st.one_of(
    st.tuples(st.integers(0, N), st.integers(0, N)).map(lambda ab: slice(min(ab), max(ab))),
    st.lists(st.integers(0, N - 1), unique=True).map(lambda rows: np.array(rows, dtype=np.intp)),
)
ACTIONS = st.sampled_from(["put", "put", "put", "discard", "flush", "get"])
STEPS = st.lists(st.tuples(ACTIONS, ROWS), max_size=12)
SHAPES = st.sampled_from([(), (3,), (2, 2, 1), (5, 1), (0, 2)])


@pytest.mark.usefixtures("tiny_chunks")
@pytest.mark.parametrize("kind", KINDS)
@given(
    steps=STEPS,
    shape=SHAPES,
    dtype=st.sampled_from(["?", "u1", "<i2", ">f4", "f8", "c16"]),
    block_nbytes=st.sampled_from([16, 48, 4096]),
)
def test_holds_what_was_put(backends, tuned, kind, steps, shape, dtype, block_nbytes):
    """Any sequence of put, discard, flush and get, over many chunks, is what a plain array would hold."""
    tuned(gap_nbytes=block_nbytes)
    fill = np.dtype(dtype).type(KINDS[kind].fill_value)
    storage = Storage(KINDS[kind].chunks, KINDS[kind].shards, KINDS[kind].compressors, fill)
    store = backends.make(kind, HeadSpec(shape, np.dtype(dtype)), storage=storage)
    model, held = np.full((N, *shape), fill, dtype), np.zeros(N, bool)
    values = iter(range(1, 10_000, 300))
    for action, rows in steps:
        new = distinct(len(model[rows]), shape, dtype, first=next(values))
        if action == "put":
            model[rows], held[rows] = new, True
            put(store, rows, new.copy())
        elif action == "discard":
            if kind != "ram":  # there, whoever puts has to put back
                fresh = np.setdiff1d(np.arange(N)[rows], np.flatnonzero(held))
                store.put(fresh, [distinct(len(fresh), shape, dtype, first=7)])
                store.discard()
        elif action == "flush":
            store.flush()
            np.testing.assert_array_equal(store.arrays[0][:], model)
        np.testing.assert_array_equal(store.get(rows)[0], model[rows])
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:], model)
    assert store.arrays[0].dtype == np.dtype(dtype)


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


ROW = HeadSpec((4,), np.dtype("f4"))  # 16 bytes; with tiny chunks 4 rows a chunk


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
@pytest.mark.parametrize("kind", ["ram", "raw", "compressed"])
def test_late_rows_in_any_order_find_their_place(backends, kind):
    """Rows given backwards and mixed, to chunks that are on disk already, end where they belong."""
    store = backends.make(kind, ROW)
    put(store, slice(0, N), distinct(N, (4,)))
    store.flush()
    rows, late = np.array([6, 5, 4, 22, 0, 2, 1, 13, 12]), distinct(9, (4,), first=1000)
    put(store, rows, late)
    expected = distinct(N, (4,))
    expected[rows] = late
    store.flush()
    np.testing.assert_array_equal(store.arrays[0][:], expected)


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


@pytest.mark.parametrize(
    ("buffer_nbytes", "n_heads", "open_chunks", "chunk_nbytes"),
    [
        (256 * 2**20, 1, 4, 16 * 2**20),
        (320 * 2**20, 3, 3, 16 * 2**20),
        (256 * 2**20, 8, 1, 8 * 2**20),
        (2**20, 4, 1, 2**16),
        (0, 2, 1, 2**10),
    ],
)
def test_buffers_keep_to_their_share(buffer_nbytes, n_heads, open_chunks, chunk_nbytes):
    """With little memory or many heads fewer chunks are open, then smaller ones, one row at least."""
    specs = [HeadSpec((2**10,), np.dtype("u1"))] * n_heads
    layouts, n_open = _layout.layout(10**6, specs, buffer_nbytes)
    assert n_open == open_chunks
    assert {each.unit_nbytes for each in layouts} == {chunk_nbytes}
    if buffer_nbytes:
        assert sum(each.buffer_nbytes(n_open) for each in layouts) <= buffer_nbytes


def test_chunks_are_8_to_16_mib_of_whole_rows():
    """Chunks hold a power of two of rows, up to 16 MiB, at least one and never more than there are."""
    for row_nbytes, n_rows, expected in [
        (64, 10**7, 262_144),
        (164 * 164 * 16, 500, 32),
        (2**26, 9, 1),
        (64, 7, 7),
    ]:
        (made,), _ = _layout.layout(n_rows, [HeadSpec((row_nbytes,), np.dtype("u1"))], 2**30)
        assert made.chunks == (expected, row_nbytes)
        assert made.n_files == -(-n_rows // expected)


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
    monkeypatch.setattr(_head.Block, "write", lambda self: (gate.wait(), real(self)))
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
        gate.wait()
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


def test_large_pushes_are_copied_by_several_threads(backends, monkeypatch, tuned):
    """However a large push is split between threads, every row gets its place, in order or not."""
    tuned(shared_copy_nbytes=1, copy_part_nbytes=6000)
    monkeypatch.setattr(_copying, "n_cores", lambda: 3)
    for kind in ("ram", "raw"):
        for shape in ((4,), (2048,)):
            store = backends.make(kind, HeadSpec(shape, np.dtype("f4")), n_rows=600)
            values = distinct(600, shape)
            order = np.random.default_rng(0).permutation(600)
            put(store, slice(0, 200), values[:200])
            put(store, order[order >= 200], values[order[order >= 200]])
            store.flush()
            np.testing.assert_array_equal(store.arrays[0][:], values)


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


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        (Storage(chunks=0), "chunks of head 0 is 0"),
        (Storage(chunks=(2, 3, 4)), "a length for each of its 2 axes"),
        (Storage(shards=5, chunks=2), "zarr refuses the storage options of head 0"),
        (Storage(compressors="best"), "zarr refuses the storage options of head 0"),
        (Storage(chunks=10**9), "choose less"),
    ],
)
def test_impossible_storage_is_refused(backends, storage, said):
    """Options that zarr or the memory cannot serve are named before anything is stored."""
    with pytest.raises(OptionError, match=said):
        backends.make("raw", ROW, n_rows=10**9, storage=storage)


def test_unwritable_folder_is_a_storage_error(tmp_path):
    """A zarr group cannot be made where a file is in the way."""
    (tmp_path / "outputs").write_text("")
    with pytest.raises(StorageError, match="no zarr group"):
        ZarrRows(FolderStore(tmp_path), 3, [])


def test_dtype_that_zarr_lacks_is_named(backends):
    """A dtype that only NumPy knows cannot go to disk, and the error says so."""
    if np.dtype(np.longdouble) == np.dtype(np.float64):
        return  # this platform has no longer one
    with pytest.raises(HeadDtypeError, match=r"head 0 has dtype .*128, which zarr cannot store"):
        backends.make("raw", HeadSpec((2,), np.dtype(np.longdouble)))


def test_closed_store_refuses_to_be_read(backends):
    """After its files are gone a store must not read as zeros."""
    array = backends.make("raw", HeadSpec((2,), np.dtype("f4"))).arrays[0]
    array.store.shut()
    with pytest.raises(ClosedError, match="was closed"):
        array[:]
    assert "file://" in str(array.store)


def test_array_goes_to_another_process(backends):
    """A pickled array opens the same files, without taking over the folder they lie in."""
    folder = TemporaryFolder(str(backends.folder))
    store = FolderStore(folder.path, folder=folder)
    rows = ZarrRows(store, 4, [HeadSpec((2,), np.dtype("f4"))])
    put(rows, slice(0, 4), distinct(4, (2,)))
    rows.flush()
    rows.close()
    copy = pickle.loads(pickle.dumps(rows.arrays[0]))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(copy[:], distinct(4, (2,)))
    assert copy.store.folder is None
    twin = rows.arrays[0].store.with_read_only(read_only=True)
    assert twin.folder is folder
    store.shut()
    assert not folder.path.exists()
    with pytest.raises(ClosedError, match="is gone"):
        copy[:]
    with pytest.raises(ClosedError, match="was closed"):
        zarr.open_array(twin, path="outputs/0", mode="r")


def test_layout_is_plain_zarr(backends):
    """What is on disk is an ordinary uncompressed zarr v3 array that zarr itself can also write."""
    store = backends.make("raw", HeadSpec((2, 3), np.dtype(">f4")))
    put(store, slice(0, N), distinct(N, (2, 3), ">f4"))
    store.flush()
    (array,) = store.arrays
    again = zarr.open_array(array.store.root / array.path, mode="r+")
    assert again.metadata.zarr_format == 3
    np.testing.assert_array_equal(again[:], distinct(N, (2, 3)))
    again[5] = 7
    assert (array[5] == 7).all()

"""Kept runs, example by example: modes, resuming, identity, and what can be loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from helpers.files import tree
from helpers.oracle import distinct, grid
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import GzipCodec, ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._inputs.arguments import as_limit
from accumulator._stores.format import mark as _mark
from accumulator._stores.format.checksums import _multipliers, row_checksums
from accumulator._stores.format.store import FolderStore
from accumulator._stores.reading import trust as _trust
from accumulator.exceptions import (
    DamagedError,
    HeadDtypeError,
    HeadError,
    HeadValueError,
    LockedError,
    OptionError,
    ResultExistsError,
    ResultFormatError,
    ResumeError,
    StorageWarning,
    UnfinishedError,
)

N = 20
LOCS = grid(N)
STORE = Path("run.zarr")


def heads(rows, first=1):
    """Return two named heads of distinct values."""
    rows = np.asarray(rows)
    return {
        "map": np.stack([distinct(1, (3, 5), "f4", first=first + 15 * row)[0] for row in rows.tolist()]),
        "label": (rows[:, None] + first).astype("u1"),
    }


def start(mode="a", **options):
    """Open the store."""
    return FullBatchAccumulator(LOCS, **{"store": STORE, "mode": mode} | options)


def push(accumulator, rows, **how):
    """Push rows."""
    accumulator.push(heads(rows, **how), LOCS[rows])


def test_w_minus_never_overwrites():
    """What is at the path stays as it is, whatever it is; an empty folder may be used."""
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/file").write_text("mine")
    Path("link").symlink_to("nowhere")
    with start("w-") as accumulator:
        push(accumulator, range(3))
    accumulator.finalize()
    before = tree(Path())
    for path in ("file", "folder", "link", STORE):
        with pytest.raises(ResultExistsError):
            start("w-", store=path)
    for path in ("file", "folder", "link"):
        with pytest.raises(ResultExistsError):
            start("a", store=path)
    assert tree(Path()) == before
    Path("empty").mkdir()
    with start("w-", store="empty") as accumulator:
        push(accumulator, range(3))
    assert FullBatch.load("empty").written.sum() == 3


def test_nothing_pushed_leaves_nothing():
    """A run that ends before its first push leaves no folder, and can be made again."""
    start("w-", store="new/run.zarr").close()
    assert not Path("new").exists()
    start("w-").close()
    start("a").close()
    assert not STORE.exists()


def counted(monkeypatch, owner, name):
    """Have the calls of a function listed by their arguments."""
    calls, real = [], getattr(owner, name)

    def count(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, count)
    return calls


def test_resume_looks_once(monkeypatch):
    """The mark is parsed once, and the tree is walked once, however many rows there are to check."""
    with start() as accumulator:
        push(accumulator, range(18))
    parsed = counted(monkeypatch, _mark, "digest")
    walked = counted(monkeypatch, _trust, "walk")
    start().close()
    assert len(parsed) == len(walked) == 1


def test_checkpoint_opens_nothing(monkeypatch):
    """Stores and arrays are opened when a run begins: not for every record, nor for the mark."""
    with start() as accumulator:
        push(accumulator, [1])
        accumulator.flush()
        opened = counted(monkeypatch, FolderStore, "__init__")
        read = counted(monkeypatch, FolderStore, "get")
        for row in (2, 3):
            push(accumulator, [row])
            accumulator.flush()
        assert opened == []
        assert [key for _, key, *_ in read if "zarr.json" in key] == []
        accumulator.finalize()
        assert [key for _, key, *_ in read if "zarr.json" in key] == []


def test_resumed_ten_times_gives_the_same_bytes():
    """However often a run ends in between, the store's chunks and arrays are those of a run in one go."""
    options = {"chunks": 4, "compressors": {"label": ZstdCodec()}}
    with start(store="once.zarr", **options) as accumulator:
        push(accumulator, range(18))
    for number in range(9):
        accumulator = start(**options)
        assert accumulator.missing_rows()[0] == 2 * number
        push(accumulator, [2 * number, 2 * number + 1])
        accumulator.close()
    with start(**options):
        pass
    once, often = tree(Path("once.zarr")), tree(STORE)
    assert once.keys() == often.keys()
    assert {name for name in once if once[name] != often[name]} == set()
    digests = {
        hashlib.sha256(FullBatch.load(path).outputs["map"][:].tobytes()).hexdigest()
        for path in ("once.zarr", STORE)
    }
    assert len(digests) == 1


def test_missing_rows_are_positions_in_any_list():
    """They index arrays and lists, in the order given; unknown locations are refused."""
    with start() as accumulator:
        push(accumulator, [3, 4, 7])
        some = LOCS[[7, 9, 4, 0]]
        assert accumulator.missing_rows(some).tolist() == [1, 3]
        assert accumulator.missing_rows(some.tolist()).tolist() == [1, 3]
        assert accumulator.missing_rows([]).tolist() == []
        assert set(accumulator.missing_rows().tolist()) == set(range(N)) - {3, 4, 7}
        with pytest.raises(KeyError):
            accumulator.missing_rows([[1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume_token": "2"}, "resume_token is '1', and '2'"),
        ({"full_output_locs": LOCS[:-1]}, "20 locations, and 19"),
        ({"full_output_locs": LOCS[::-1]}, "in another order"),
        ({"fill_value": {"label": 3, "map": 7}}, "head 'label' has fill_value 255, not 3"),
        ({"fill_value": 0}, "head 'map' has fill_value 7.0, not 0.0; head 'label' has fill_value 255, not 0"),
        (
            {"fill_value": {"map": 7, "label": -1}},
            "fill_value of head 'label' is -1, which uint8 cannot hold",
        ),
        (
            {"fill_value": {"map": 7, "label": 255, "age": 0}},
            "has an entry for head 'age', but the heads are",
        ),
        ({"chunks": {"map": 7}}, r"head 'map' has chunks \(4, 3, 5\), not \(7, 3, 5\)\. Give"),
        (
            {"shards": 4, "chunks": 4},
            r"has shards none, not \(4, 3, 5\); head 'label' has shards none, not \(4,",
        ),
        (
            {"compressors": {}},
            r"head 'label' has compressors zstd \(level 0, checksum False\), not none\. Give",
        ),
        (
            {"compressors": {"label": [ZstdCodec(level=0), GzipCodec(level=2)]}},
            r"label' has compressors zstd \(.*\), not zstd \(.*\) and gzip \(level 2\)",
        ),
        ({"dtype": {"map": "f2"}}, "head 'map' has dtype float32, not float16"),
        (
            {"dtype": "f8", "fill_value": 0},
            "'map' has dtype float32, not float64; head 'label' has dtype uint8",
        ),
    ],
)
def test_another_run_is_refused_at_once(options, message):
    """Locations, token and options have to be the same; the error names the store and what differs.

    The store is as it was, what a crash has left there included, and free for the next one.
    """
    same = {
        "resume_token": "1",
        "fill_value": {"map": 7, "label": 255},
        "compressors": {"label": ZstdCodec()},
    }
    start(chunks=4, **same).close()
    with start(chunks=4, **same) as accumulator:
        push(accumulator, range(3))
    (STORE / "outputs/map/c.4.0.0").write_bytes(b"rows that were not recorded")
    (STORE / "outputs/map/part").mkdir()
    before = tree(STORE)
    for _ in range(2):
        with pytest.raises(ResumeError, match=message) as caught:
            FullBatchAccumulator(**{"full_output_locs": LOCS, "store": STORE, "mode": "a"} | same | options)
        assert str(STORE.absolute()) in str(caught.value)
    assert tree(STORE) == before
    with start(**same) as accumulator:
        push(accumulator, [3])
    assert accumulator.finalize().written.sum() == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"map": np.ones((1, 3, 5), "f4")}, "heads are 'map', 'label', and 'map' are pushed"),
        (list(heads([9]).values()), "heads are 'map', 'label', and without names are pushed"),
        (heads([9]) | {"map": np.ones((1, 3, 4), "f4")}, r"'map' has patch shape \(3, 5\), not \(3, 4\)"),
        (heads([9]) | {"map": np.ones((1, 3, 5), "f8")}, "'map' has dtype float32, which .* hold float64"),
        (heads([9]) | {"map": np.ones((1, 3, 5), "i4")}, "'map' has dtype float32, which .* hold int32"),
        (
            {"label": np.ones((1, 1), "i1"), "map": np.ones((1, 3), "f4")},
            "'map' has patch shape .*; head 'label' has dtype uint8, which .* hold int8",
        ),
    ],
)
def test_heads_of_another_run_are_refused(batch, message):
    """The first push after a resume is refused if it does not fit the store; one that fits is taken then."""
    with start() as accumulator:
        push(accumulator, range(3))
    before = tree(STORE)
    accumulator = start()
    for _ in range(2):
        with pytest.raises(ResumeError, match=message) as caught:
            accumulator.push(batch, LOCS[9:10])
        assert str(STORE.absolute()) in str(caught.value)
    assert tree(STORE) == before
    push(accumulator, [9])
    with pytest.raises(HeadError if isinstance(batch, list) else (HeadError, HeadDtypeError)):
        accumulator.push(batch, LOCS[10:11])  # from then on it is a push like any other
    assert accumulator.finalize().written.sum() == 4


@pytest.mark.parametrize(
    ("first", "later", "options"),
    [
        ("f8", "f4", {}),
        ("f8", "i4", {}),
        ("f4", "u1", {}),
        ("f4", "bool", {}),
        ("i8", ">i2", {}),
        ("c8", "f4", {}),
        (">f8", ">f4", {}),
        ("f4", ml_dtypes.bfloat16, {}),
        (ml_dtypes.bfloat16, ml_dtypes.bfloat16, {}),
        ("f8", "f8", {"dtype": "f2"}),
        ("f8", "i8", {"dtype": {0: ">f4"}}),
        ("f4", "f8", {"dtype": "f4"}),
    ],
)
def test_a_resumed_run_takes_what_the_uninterrupted_takes(first, later, options):
    """The first push after a resume may have any dtype that a later push of the run may have."""
    outputs = []
    for store, is_resumed in (("once.zarr", False), (STORE, True)):
        accumulator = start(store=store, **options)
        accumulator.push(np.ones((2, 3), first), LOCS[:2])
        if is_resumed:
            accumulator.close()
            accumulator = start(store=store, **options)
        accumulator.push(np.ones((2, 3), later), LOCS[2:4])
        outputs.append(accumulator.finalize().outputs[0])
    assert outputs[0].dtype.newbyteorder("<") == outputs[1].dtype  # zarr keeps no other order
    np.testing.assert_array_equal(outputs[0][:], outputs[1][:])
    np.testing.assert_array_equal(outputs[1][:4], np.ones((4, 3)))


def test_a_store_of_converted_heads_takes_what_it_holds():
    """Without the dtype that it was made with, only what needs no conversion; values are checked with it."""
    with start(dtype="f2") as accumulator:
        accumulator.push(np.ones((2, 3), "f4"), LOCS[:2])
    accumulator = start()
    with pytest.raises(ResumeError, match=r"head 0 has dtype float16, which .* float32 .* with its dtype="):
        accumulator.push(np.ones((1, 3), "f4"), LOCS[2:3])
    accumulator.push(np.ones((1, 3), "f2"), LOCS[2:3])
    accumulator.close()
    with start(dtype="f2") as accumulator:
        with pytest.raises(HeadValueError):
            accumulator.push(np.full((1, 3), 1e9), LOCS[3:4])
        accumulator.push(np.ones((1, 3)), LOCS[3:4])
    assert accumulator.finalize().written.sum() == 4


@pytest.mark.parametrize("fill", [-np.nan, np.float32(np.nan), complex(1, -np.nan), -0.0])
def test_the_same_fill_value_is_the_same(fill):
    """A run goes on with the very options it was made with: zarr keeps no sign of a NaN."""
    dtype = "c8" if isinstance(fill, complex) else "f4"
    for row in range(3):
        accumulator = start(fill_value=fill)
        accumulator.push(np.ones((1, 3), dtype), LOCS[row : row + 1])
        accumulator.close()
    for other in (0.0, 1, np.inf):
        with pytest.raises(ResumeError, match="fill_value"):
            start(fill_value=other)


def test_options_by_number_are_those_of_the_stored_heads():
    """Heads without names have numbers, also before any of them is pushed."""
    options = {"fill_value": {1: 7}, "chunks": {0: 4}, "dtype": {0: "f2"}, "compressors": {1: ZstdCodec()}}
    with start(**options) as accumulator:
        accumulator.push([np.ones((2, 3)), np.ones(2, "u1")], LOCS[:2])
    with start(**options):
        pass
    for name, value in (
        ("fill_value", {0: 7}),
        ("chunks", {1: 4}),
        ("dtype", {1: "f2"}),
        ("compressors", {}),
    ):
        with pytest.raises(ResumeError, match=f"head [01] has {name}"):
            start(**options | {name: value})
    with pytest.raises(ResumeError, match=r"fill_value has an entry for head 2, but the heads are \[0, 1\]"):
        start(**options | {"fill_value": {2: 7}})
    with pytest.raises(OptionError, match="chunks of head 0 is 'auto'"):
        start(**options | {"chunks": "auto"})
    with start(**options) as accumulator:
        assert accumulator.written.sum() == 2


@pytest.mark.parametrize(
    "options", [{}, {"compressors": ZstdCodec()}, {"shards": N}, {"fill_value": 5}], ids=str
)
@pytest.mark.parametrize("policy", ["error", "last"])
def test_a_resumed_run_keeps_to_the_memory_limit(options, policy):
    """What is in memory is as little as in a run made with the limit, though its chunks are larger."""
    row_nbytes = 2**18 + 1
    rng = np.random.default_rng(0)
    patches, grades = rng.random((N, 2**15)), rng.integers(1, 200, N).astype("u1")
    options = options | {"on_duplicate": policy}
    order = rng.permutation(N)
    with start(store="once.zarr", **options) as accumulator:
        accumulator.push([patches, grades], LOCS)
        assert accumulator._canvas.store.part_nbytes == N * row_nbytes
    with start(**options) as accumulator:
        accumulator.push([patches[:1], grades[:1]], LOCS[:1])
    accumulator = start(memory_limit="1 MiB", **options)
    rows = accumulator._canvas.store
    assert rows.part_nbytes == row_nbytes  # of all heads, which is more than a quarter
    assert rows._writer.limit_nbytes == 2 * row_nbytes
    held, room = [], rows.make_room

    def make_room(nbytes):
        room(nbytes)
        with rows._writer.lock:
            blocks = [block for head in rows.heads for block in head._open.values()]
            held.append(sum(job.nbytes for job in (*blocks, *rows._writer._waiting, *rows._writer._running)))
        assert not any(head._spare for head in rows.heads)

    rows.make_room = make_room
    for part in (order, *order.reshape(4, -1) * (policy == "last")):
        part = part if policy == "last" else part[part != 0]  # noqa: PLW2901  as they are missing
        if policy == "last" or not accumulator.written[part].any():
            accumulator.push([patches[part], grades[part]], LOCS[part])
    assert len(held) >= N - 1
    assert max(held) <= 3 * row_nbytes
    assert accumulator.plan().memory_nbytes == 3 * row_nbytes + N * row_nbytes
    result = accumulator.finalize()
    np.testing.assert_array_equal(result.outputs[0][:], patches)
    np.testing.assert_array_equal(result.outputs[1][:], grades)
    once, again = tree(Path("once.zarr")), tree(STORE)
    assert once.keys() == again.keys()
    assert {name for name in once if once[name] != again[name]} == set()


@pytest.mark.parametrize("limit", ["1 MiB", "3 MiB", None])
def test_a_limit_with_room_for_the_chunks_holds_them(limit):
    """The run that made the store may have had the same limit: its chunks are held as it held them."""
    found = []
    for row in (0, 10):
        accumulator = start(memory_limit=limit)
        accumulator.push(np.ones((1, 2**15)), LOCS[row : row + 1])
        rows = accumulator._canvas.store
        found.append((rows.part_nbytes, rows._writer.limit_nbytes, len(rows.heads[0]._open)))
        assert rows.open_chunks >= 1
        assert limit is None or rows.buffer_nbytes <= as_limit(limit)
        accumulator.close()
    assert found[0] == found[1]


def test_unfinished_is_not_loaded_by_accident():
    """A running store is loaded by partial=True alone, and other readers open it as it is."""
    accumulator = start()
    push(accumulator, range(5))
    accumulator.flush()
    with pytest.raises(UnfinishedError, match="partial=True"):
        FullBatch.load(STORE)
    partial = FullBatch.load(STORE, partial=True)
    assert partial.written.sum() == 5
    assert (partial.outputs["map"][:5] == heads(range(5))["map"]).all()
    group = zarr.open_group(STORE, mode="r")
    assert group["written"][:].sum() == 5
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(STORE / "outputs/map")}}
    assert (tensorstore.open(spec).result()[:5].read().result() == heads(range(5))["map"]).all()
    accumulator.finalize()
    assert (FullBatch.load(STORE).outputs["label"][:5] == heads(range(5))["label"]).all()


def test_an_exception_keeps_what_was_pushed():
    """Leaving the block by an exception records everything first."""

    def fail():
        with start() as accumulator:
            push(accumulator, range(6))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with start() as accumulator:
        assert accumulator.written.sum() == 6
        with pytest.raises(LockedError):
            start()


def test_checkpoints_come_by_themselves():
    """With an interval of 0 every push is recorded when it returns, as long as that is cheap."""
    accumulator = start(checkpoint_interval=0)
    push(accumulator, range(4))
    assert FullBatch.load(STORE, partial=True).written.sum() == 4
    accumulator.close()


@pytest.mark.parametrize("how", ["kept", "ram", "spilled", "loaded"])
def test_every_result_on_disk_finds_damage(how):
    """A flipped bit is an error when its chunk is read, however the result came to disk."""
    options = {"kept": {"store": "result"}, "ram": {"memory_threshold": 100}}.get(
        how, {"memory_threshold": 0}
    )
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        push(accumulator, range(9))
    result = accumulator.finalize()
    if how != "kept":
        result.save("first" if how == "loaded" else "result")
    if how == "loaded":
        FullBatch.load("first").save("result")
    result.close()
    assert (FullBatch.load("result").outputs["map"][:9] == heads(range(9))["map"]).all()
    (file,) = Path("result/outputs/map").glob("c.0*")
    content = bytearray(file.read_bytes())
    content[70] ^= 4  # row 1 has bytes 60 to 119
    file.write_bytes(content)
    loaded = FullBatch.load("result")
    with pytest.raises(DamagedError, match="row 1") as caught:
        loaded.outputs["map"][0]
    assert caught.value.rows.tolist() == [1]
    assert (loaded.outputs["label"][:9] == heads(range(9))["label"]).all()


def test_damaged_rows_are_missing_again():
    """A resumed run takes rows with flipped bits as missing in all heads, says so, and gets them again."""
    with start() as accumulator:
        push(accumulator, range(9))
    accumulator.finalize()
    (file,) = (STORE / "outputs/map").glob("c.0*")
    content = bytearray(file.read_bytes())
    content[70] ^= 4
    file.write_bytes(content)
    with pytest.warns(StorageWarning, match=r"1 rows .* row 1, in head 'map'"):
        accumulator = start()
    assert accumulator.missing_rows()[0] == 1
    assert accumulator.canvas[1][1] == 0
    push(accumulator, [1])
    result = accumulator.finalize()
    assert (result.outputs["map"][:9] == heads(range(9))["map"]).all()


def test_options_that_make_no_sense_are_refused():
    """A mode or token without a store, and other values than there are."""
    for options in (
        {"mode": "a"},
        {"resume_token": "1"},
        {"store": STORE, "mode": "w"},
        {"store": STORE, "resume_token": 1},
        {"store": STORE, "checkpoint_interval": -1},
        {"store": "s3://bucket"},
    ):
        with pytest.raises(OptionError):
            FullBatchAccumulator(LOCS, **options)
    assert not STORE.exists()


def test_earlier_layouts_are_refused():
    """A group without checksums cannot be trusted, and says so."""
    with start() as accumulator:
        push(accumulator, range(3))
    accumulator.finalize()
    zarr.open_group(STORE, mode="r+").attrs["accumulator"] = {"version": 1, "names": None, "n_heads": 2}
    with pytest.raises(ResultFormatError, match="version 1"):
        FullBatch.load(STORE)


@given(st.binary(min_size=1, max_size=300), st.integers(0, 2**31))
def test_row_checksums_are_what_they_say(content, where):
    """They are the sum that their module describes, and every single flipped bit changes them."""
    padded = content + bytes(-len(content) % 8)
    whole, total = len(content) // 8, 0
    for number in range(len(padded) // 8):
        word = int.from_bytes(padded[8 * number : 8 * number + 8], "little")
        mixed = word ^ (word >> 33)
        if number < whole:
            total += mixed * int(_multipliers(1)[number]) * int(_multipliers(2)[0])
        else:
            total += mixed * int(_multipliers(1)[0]) * int(_multipliers(2)[-1])
    rows = np.frombuffer(content, "u1")[None]
    assert int(row_checksums(rows)[0]) == total % 2**64
    flipped = rows.copy()
    flipped[0, where % len(content)] ^= 1 << where % 8
    assert row_checksums(flipped) != row_checksums(rows)


@pytest.mark.parametrize("policy", ["first", "last"])
def test_same_location_twice_in_one_batch_follows_the_policy(policy):
    """In a kept run too, and over rows that an earlier run has recorded."""
    with start(on_duplicate=policy) as accumulator:
        accumulator.push({name: head[[0, 1, 0]] for name, head in heads(range(2)).items()}, LOCS[[3, 7, 3]])
        accumulator.flush()
        accumulator.push(heads([11, 12, 13]), LOCS[[7, 5, 5]])
    came = {
        "first": {3: heads([0]), 7: heads([1]), 5: heads([12])},
        "last": {3: heads([0]), 7: heads([11]), 5: heads([13])},
    }
    with FullBatch.load(STORE) as batch:
        assert np.flatnonzero(batch.written).tolist() == [3, 5, 7]
        for row, wanted in came[policy].items():
            for name, head in wanted.items():
                np.testing.assert_array_equal(batch.outputs[name][row], head[0])
    with start(on_duplicate=policy) as accumulator:
        accumulator.push(heads([14, 15]), LOCS[[3, 3]])
    with FullBatch.load(STORE) as batch:
        wanted = heads([0 if policy == "first" else 15])["map"][0]
        np.testing.assert_array_equal(batch.outputs["map"][3], wanted)

"""Kept runs, example by example: modes, resuming, identity, and what can be loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from conftest import tree
from hypothesis import given
from hypothesis import strategies as st
from oracle import distinct, grid
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._stores._checksums import _multipliers, row_checksums
from accumulator.exceptions import (
    DamagedError,
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
    ("options", "batch", "message"),
    [
        ({"resume_token": "2"}, None, "resume_token is '1', and '2'"),
        ({"full_output_locs": LOCS[:-1]}, None, "20 locations, and 19"),
        ({"full_output_locs": LOCS[::-1]}, None, "in another order"),
        ({}, {"map": np.ones((1, 3, 5), "f4")}, "heads are 'map', 'label', and 'map'"),
        ({}, {"map": np.ones((1, 3, 4), "f4"), "label": np.ones((1, 1), "u1")}, r"patch shape \(3, 5\)"),
        ({}, {"map": np.ones((1, 3, 5), "f8"), "label": np.ones((1, 1), "u1")}, "dtype 'float32'"),
        ({"fill_value": {"label": 3}}, heads([9]), "'label' has fill_value"),
        ({"chunks": 7}, heads([9]), "chunks and shards"),
        ({"compressors": ZstdCodec()}, heads([9]), "compressors"),
        ({"dtype": {"map": "f2"}}, heads([9]), "dtype 'float32', and 'float16'"),
    ],
)
def test_another_run_is_refused(options, batch, message):
    """Locations, heads, options and token have to be the same; the error says what differs."""
    with start(resume_token="1", chunks=4) as accumulator:
        push(accumulator, range(3))
    accumulator.finalize()
    before = tree(STORE)
    options = {"full_output_locs": LOCS, "store": STORE, "mode": "a", "resume_token": "1"} | options
    with pytest.raises(ResumeError, match=message):  # noqa: PT012  the constructor or the push
        accumulator = FullBatchAccumulator(**options)
        try:
            accumulator.push(batch, LOCS[9:10])
        finally:
            accumulator.close()
    assert tree(STORE) == before


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
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(STORE / "outputs/0")}}
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
    (file,) = Path("result/outputs/0").glob("c.0*")
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
    (file,) = (STORE / "outputs/0").glob("c.0*")
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

"""How heads are laid out in chunks, and what zarr and other readers find."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct
from helpers.row_stores import ROW, N, put

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.format import layout as _layout
from accumulator.exceptions import HeadDtypeError, OptionError


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


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        (Storage(chunks=0), "chunks of head 0 is 0"),
        (Storage(chunks=(2, 3, 4)), "a length for each of its 2 axes"),
        (Storage(shards=5, chunks=2), "zarr refuses the storage options of head 0"),
        (Storage(compressors="best"), "zarr refuses the storage options of head 0"),
        (Storage(chunks=10**9), "choose smaller ones"),
        (Storage(chunks=2**70), "give a number of rows"),
    ],
)
def test_impossible_storage_is_refused(backends, storage, said):
    """Options that zarr or the memory cannot serve are named before anything is stored."""
    with pytest.raises(OptionError, match=said):
        backends.make("raw", ROW, n_rows=10**9, storage=storage)


def test_dtype_that_zarr_lacks_is_named(backends):
    """A dtype that only NumPy knows cannot go to disk, and the error says so."""
    if np.dtype(np.longdouble) == np.dtype(np.float64):
        return  # this platform has no longer one
    with pytest.raises(HeadDtypeError, match=r"head 0 has dtype .*128, which zarr cannot store"):
        backends.make("raw", HeadSpec((2,), np.dtype(np.longdouble)))


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

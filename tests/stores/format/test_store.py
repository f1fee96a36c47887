"""The zarr store of a folder: shut, and sent to another process."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct
from helpers.row_stores import put

from accumulator._inputs.validation import HeadSpec
from accumulator._stores.files.temporary import TemporaryFolder
from accumulator._stores.format.store import FolderStore
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import ClosedError


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

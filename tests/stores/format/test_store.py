"""The zarr store of a folder: shut, and sent to another process."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct
from helpers.row_stores import put

from accumulator._inputs.validation import HeadSpec
from accumulator._stores.files.temporary import TemporaryFolder
from accumulator._stores.format.store import FolderStore
from accumulator._stores.writing.zarr_rows import ZarrRows
from accumulator.exceptions import ClosedError, DamagedError, UnsavedError


def test_closed_store_refuses_to_be_read(backends):
    """After its files are gone a store must not read as zeros."""
    array = backends.make("raw", HeadSpec((2,), np.dtype("f4"))).arrays[0]
    array.store.shut()
    with pytest.raises(ClosedError, match="was closed"):
        array[:]
    assert "file://" in str(array.store)


@pytest.fixture
def spilled(backends):
    """Return four rows of an array in a temporary folder."""
    folder = TemporaryFolder(str(backends.folder))
    store = FolderStore(folder.path, folder=folder)
    rows = ZarrRows(store, 4, [HeadSpec((2,), np.dtype("f4"))])
    put(rows, slice(0, 4), distinct(4, (2,)))
    rows.flush()
    rows.close()
    yield rows.arrays[0]
    store.shut()


def test_twin_of_a_store_shares_its_folder(spilled):
    """A read-only store of the same files keeps their folder, and closes with it."""
    store, folder = spilled.store, spilled.store.folder
    twin = store.with_read_only(read_only=True)
    assert twin.folder is folder
    store.shut()
    assert not folder.path.exists()
    with pytest.raises(ClosedError, match="was closed"):
        zarr.open_array(twin, path="outputs/0", mode="r")


def test_array_in_a_temporary_folder_stays_where_it_is(spilled):
    """An array whose folder goes with it is neither sent nor copied."""
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(UnsavedError, match=r"save\(\) it before"):
            send(spilled)
    np.testing.assert_array_equal(spilled[:], distinct(4, (2,)))


def test_array_that_its_caller_owns_goes_to_another_process(spilled):
    """A pickled array opens the same files, and knows how they were left."""
    store, folder = spilled.store, spilled.store.folder
    store.keep()
    twin = pickle.loads(pickle.dumps(spilled))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(twin[:], distinct(4, (2,)))
    for path in folder.path.rglob("c.*"):
        path.unlink()
    with pytest.raises(DamagedError, match="is gone") as caught:
        twin[:]
    assert caught.value.rows.tolist() == [0, 1, 2, 3]
    shutil.rmtree(folder.path)
    with pytest.raises(ClosedError, match="is gone"):
        twin[:]

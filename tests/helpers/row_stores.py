"""Stores of rows of one head, for the tests of both kinds of them."""

from __future__ import annotations

import numpy as np
from zarr.codecs import BloscCodec, ZstdCodec

from accumulator._inputs.options import Storage
from accumulator._inputs.validation import HeadSpec
from accumulator._stores.format.layout import BUFFER_NBYTES
from accumulator._stores.format.store import FolderStore
from accumulator._stores.memory.ram import RamRows
from accumulator._stores.writing.zarr_rows import ZarrRows

N = 23


KINDS = {
    "ram": Storage(),
    "raw": Storage(),
    "raw, filled": Storage(fill_value=3),
    "compressed": Storage(compressors=ZstdCodec(level=0)),
    "sharded": Storage(shards=4, compressors=BloscCodec(), fill_value=1),
    "cut": Storage(chunks=5, fill_value=2, shards=None),
}


ROW = HeadSpec((4,), np.dtype("f4"))  # 16 bytes; with tiny chunks 4 rows a chunk


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


def put(store, rows, values):
    """Put rows of the only head, and let them count."""
    store.make_room(values.nbytes)
    store.put(rows, [values])
    store.commit()

"""How heads are laid out as zarr arrays: chunks, codecs, and what of them is in memory at once."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
import zarr

from accumulator._inputs import tuning
from accumulator._inputs.text import as_text
from accumulator.exceptions import HeadDtypeError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator._inputs.validation import HeadSpec

BUFFER_NBYTES: Final = 320 * 2**20  # what blocks of all heads may take in memory together
OPEN_CHUNKS: Final = 4  # a head; enough for batches that several loaders deliver slightly out of order
_NUMCODECS: Final = "blosc bz2 crc32 crc32c gzip lz4 lzma shuffle zlib zstd"  # `bounded` knows each
COMPRESSORS: Final = frozenset(  # that a result may have: others are code that somebody else wrote
    {"crc32c", "gzip", "zstd", "blosc", *(f"numcodecs.{name}" for name in _NUMCODECS.split())}
)
# Of every array, whatever zarr's global configuration says. What never came is not written anyway: no need to
# look whether a chunk is empty.
CONFIG: Final[Any] = {"order": "C", "write_empty_chunks": True, "read_missing_chunks": True}
HANDED_CHUNKS: Final = 3  # a head; one is written, the next waits, and one more may have to go early


@attrs.frozen
class Layout:
    """One head as a zarr array."""

    n_rows: int
    spec: HeadSpec
    unit_rows: int  # rows of a chunk, or of a shard where there are shards
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None

    @property
    def unit_nbytes(self) -> int:
        return min(self.unit_rows, self.n_rows) * self.spec.row_nbytes

    @property
    def n_files(self) -> int:
        inner = self.chunks if self.shards is None else self.shards
        pieces = (-(-length // size) for length, size in zip(self.spec.patch_shape, inner[1:], strict=True))
        return -(-self.n_rows // self.unit_rows) * math.prod(pieces)

    def buffer_nbytes(self, open_chunks: int) -> int:
        return (open_chunks + HANDED_CHUNKS) * self.unit_nbytes

    @property
    def is_raw(self) -> bool:
        """Whether a chunk's file is its rows, one after the other."""
        is_plain = self.spec.storage.compressors is None and self.shards is None
        return is_plain and self.chunks[1:] == _whole(self.spec)

    def create(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        storage = self.spec.storage
        try:
            return group.create_array(
                name,
                shape=(self.n_rows, *self.spec.patch_shape),
                chunks=self.chunks,
                shards=self.shards,
                dtype=self.spec.dtype,
                compressors=storage.compressors,
                filters=None,
                fill_value=storage.fill_value,
                dimension_names=storage.dimension_names,
                # "." keeps all chunks of an array in one folder; "/" would make a folder for each.
                chunk_key_encoding={"name": "default", "separator": "."},
                config=CONFIG,
            )
        except (ValueError, TypeError, KeyError) as cause:
            raise OptionError(
                f"zarr refuses the storage options of head {name}, with chunks {self.chunks} and shards "
                f"{self.shards}: {cause}; compressors are codecs such as zarr.codecs.ZstdCodec()"
            ) from cause


def layout(n_rows: int, specs: Sequence[HeadSpec], buffer_nbytes: int) -> tuple[list[Layout], int]:
    """Lay out all heads with so many bytes of chunks in memory; return also how many of each may be open."""
    n_heads = max(1, len(specs))
    in_memory = buffer_nbytes // (n_heads * tuning.now.chunk_nbytes)
    open_chunks = max(1, min(OPEN_CHUNKS, in_memory - HANDED_CHUNKS))
    chunk_nbytes = min(tuning.now.chunk_nbytes, buffer_nbytes // (n_heads * (open_chunks + HANDED_CHUNKS)))
    layouts = [_lay_out(n_rows, head, spec, chunk_nbytes) for head, spec in enumerate(specs)]
    chosen = sum(each.unit_nbytes for each in layouts if each.spec.storage.is_chosen)
    if chosen and (1 + HANDED_CHUNKS) * chosen > buffer_nbytes:
        raise OptionError(
            f"one chunk (or shard) of each head is {as_text(chosen)} together, {1 + HANDED_CHUNKS} of each "
            f"are in memory at a time, and {as_text(buffer_nbytes)} may be: choose smaller ones"
        )
    return layouts, 1 if chosen else open_chunks


def layout_as_stored(n_rows: int, specs: Sequence[HeadSpec], buffer_nbytes: int) -> tuple[list[Layout], int]:
    """Lay out heads that are stored already, with all chunks known; return also how many may be open.

    None may where they are too large for the memory: rows then go to their place as they come.
    """
    layouts = []
    for spec in specs:
        chunks, shards = spec.storage.chunks, spec.storage.shards
        layouts.append(Layout(n_rows, spec, (shards or chunks)[0], chunks, shards))
    unit_nbytes = max(1, sum(each.unit_nbytes for each in layouts))
    return layouts, max(0, min(OPEN_CHUNKS, buffer_nbytes // unit_nbytes - HANDED_CHUNKS))


def check_options(n_rows: int, specs: Sequence[HeadSpec]) -> None:
    """Refuse storage options that zarr or the buffers would refuse, even if the rows may never go to zarr."""
    if any(spec.storage.is_chosen for spec in specs):
        layout(n_rows, [spec for spec in specs if spec.storage.is_chosen], BUFFER_NBYTES)
    for head, spec in enumerate(specs):
        if spec.storage.is_chosen or spec.storage.compressors is not None:
            group = zarr.create_group(store={}, zarr_format=3)
            array = _lay_out(n_rows, head, spec, tuning.now.chunk_nbytes).create(group, str(head))
            codecs: Sequence[Any] = array.compressors
            names = [str(codec.to_dict()["name"]) for codec in codecs]
            if not COMPRESSORS.issuperset(names):
                raise OptionError(
                    f"head {head} has compressors {', '.join(names)}: a result with others than "
                    f"{', '.join(sorted(COMPRESSORS))} could not be loaded again"
                )


def _lay_out(n_rows: int, head: int, spec: HeadSpec, chunk_nbytes: int) -> Layout:
    if spec.dtype.char in "gG":  # long double, which only NumPy knows
        raise HeadDtypeError(f"head {head} has dtype {spec.dtype}, which zarr cannot store: use float64")
    shards = _shape(spec.storage.shards, spec, head, "shards")
    chunks = _shape(spec.storage.chunks, spec, head, "chunks")
    if chunks is None and shards is not None:
        chunks = (1, *_whole(spec))  # what shards are for: rows that can be read one by one
    if chunks is None:
        rows = max(1, chunk_nbytes // max(1, spec.row_nbytes))
        # A power of two: whole blocks of the disk, and the edges of most batches.
        chunks = (max(1, min(n_rows, 2 ** (rows.bit_length() - 1))), *_whole(spec))
    return Layout(n_rows, spec, (shards or chunks)[0], chunks, shards)


def _shape(given: Any, spec: HeadSpec, head: int, name: str) -> tuple[int, ...] | None:
    """Return a chunk's whole shape, of which the number of rows may be all that is given."""
    if given is None:
        return None
    whole = _whole(spec)
    try:
        raw = list(given) if np.iterable(given) else [given, *whole]
        shape = tuple(operator.index(length) for length in raw if not isinstance(length, bool))
    except TypeError:
        shape = ()
    if len(shape) != 1 + len(whole) or not all(1 <= length <= sys.maxsize for length in shape):
        raise OptionError(
            f"{name} of head {head} is {given!r}: give a number of rows, or a length for each of its "
            f"{1 + len(whole)} axes"
        )
    return shape


def _whole(spec: HeadSpec) -> tuple[int, ...]:
    return tuple(max(1, length) for length in spec.patch_shape)

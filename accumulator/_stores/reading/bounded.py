"""Reading a stranger's compressed chunks: none may be larger than a chunk is, however little its file is.

Decoders get the room that a chunk may take, and fail where that does not do for all that is in the file.
Streams must also end where their file does: zarr's decoders would go on with another one.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.codecs import ShardingCodec

from accumulator._stores.format.layout import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

_SLACK: Final = 2**16  # of codecs behind each other, which may lengthen
_PIECE_SLACK: Final = 2**10  # the same, of a piece of a shard and its place in the index
_LZMA_NBYTES: Final = 2**27  # of a dictionary: the highest preset takes half of it
_BLOSC_NBYTES: Final = 16  # of its header
_STREAMS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lambda: lzma.LZMADecompressor(memlimit=_LZMA_NBYTES),
}
_DECODERS: Final[dict[str, Callable[[Any, Any], Any]]] = {  # into what they are given
    "blosc": numcodecs.blosc.decompress,
    "lz4": numcodecs.lz4.decompress,
    "zstd": numcodecs.zstd.decompress,
}
_ADDED_NBYTES: Final = {"shuffle": 0, "crc32": 4, "crc32c": 4}  # by codecs that do not compress
_NOT_THERE: Final = 2**64 - 1  # what an index says of a piece without bytes
_DAMAGED: Final = "a chunk is not compressed as it should be"


def bounded(array: zarr.Array[Any]) -> zarr.AsyncArray[Any]:
    """Return the same array for reading alone, with compressors that refuse to make more than a chunk."""
    metadata: Any = array.metadata
    codecs = _bound(metadata.codecs, array.dtype.itemsize * math.prod(array.chunks), file_nbytes(array))
    metadata = replace(metadata, codecs=codecs)
    return zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=CONFIG)


def file_nbytes(array: zarr.Array[Any]) -> int:
    """Return a length that no file of an array exceeds, however badly its rows were compressed."""
    unit = math.prod(array.shards or array.chunks)
    return 2 * array.dtype.itemsize * unit + _SLACK + _PIECE_SLACK * (unit // math.prod(array.chunks))


def decompressed(name: str, data: memoryview, most: int) -> NDArray[np.uint8]:
    """Return what a compressed chunk holds; decoders that do not tell its length leave zeros behind it."""
    if name in _DECODERS:
        return _decoded(name, data, most)
    stream = _STREAMS[name]()
    plain: bytes = stream.decompress(data, most + 1)
    if len(plain) > most:
        raise ValueError(f"a chunk becomes more than the {most} bytes that it may have")
    if stream.unused_data or not stream.eof:
        raise ValueError(_DAMAGED)
    return np.frombuffer(plain, np.uint8)


def _decoded(name: str, data: memoryview, most: int) -> NDArray[np.uint8]:
    if name == "blosc" and (len(data) < _BLOSC_NBYTES or int.from_bytes(data[12:16], "little") != len(data)):
        raise ValueError(_DAMAGED)  # its decoder believes this length, and would read behind the bytes
    room = np.zeros(most, np.uint8)
    try:
        _DECODERS[name](data, room)
    except (RuntimeError, ValueError) as cause:
        raise ValueError(f"{_DAMAGED}: {cause}") from cause
    return room


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec that makes no more than so many bytes; or exactly that many, where they are whole."""

    inner: Any
    name: str
    most: int
    is_whole: bool
    is_fixed_size = False

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return replace(self, inner=self.inner.evolve_from_array_spec(array_spec))

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = self.inner.to_dict()
        return plain

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = memoryview(chunk_data.as_buffer_like()).cast("B")
        if self.name in _STREAMS or self.name in _DECODERS:
            plain = await asyncio.to_thread(decompressed, self.name, data, self.most)
            if self.is_whole or self.name in _STREAMS:
                return chunk_spec.prototype.buffer.from_array_like(plain)
        # It makes no more than it gets, or was seen to fit.
        decoded: list[Buffer] = list(await self.inner.decode([(chunk_data, chunk_spec)]))
        return decoded[0]


@dataclass(frozen=True)
class _BoundedIndex(ArrayArrayCodec):
    """A look at the index of a shard, which may name bytes twice: all pieces are no longer than a file.

    zarr decodes an index in one way or another, depending on its version, but always by the index's codecs.
    """

    most: int
    is_fixed_size = True

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        del chunk_spec
        return input_byte_length

    async def _decode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        del chunk_spec
        offsets, lengths = np.moveaxis(chunk_data.as_numpy_array(), -1, 0)
        lengths = lengths[(offsets != _NOT_THERE) | (lengths != _NOT_THERE)]
        # The longest first: the sum of those that are longer than any file might be none that it can hold.
        if lengths.max(initial=0) > self.most or lengths.sum() > self.most:
            raise ValueError(f"the pieces of a shard have more than the {self.most} bytes that a file may")
        return chunk_data


def _bound(codecs: Iterable[Any], chunk_nbytes: int, shard_nbytes: int) -> tuple[Any, ...]:
    """Return codecs of which the first makes exactly a chunk, and those behind compressors not much more."""
    found: list[Any] = []
    most, is_whole = chunk_nbytes, True
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            found.append(
                ShardingCodec(
                    chunk_shape=codec.chunk_shape,
                    codecs=_bound(codec.codecs, chunk_nbytes, shard_nbytes),
                    index_codecs=(_BoundedIndex(shard_nbytes), *codec.index_codecs),
                    index_location=codec.index_location,
                )
            )
        elif isinstance(codec, BytesBytesCodec):
            name = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
            found.append(_Bounded(codec, name, most, is_whole))
            if name in _ADDED_NBYTES:
                most += _ADDED_NBYTES[name]
            else:
                most, is_whole = 2 * chunk_nbytes + _SLACK, False
        else:
            found.append(codec)
    return tuple(found)

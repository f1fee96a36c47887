"""Reading a stranger's compressed chunks: none may be larger than a chunk is, however little its file is.

What a compressed chunk may take in memory is bounded before it is taken. Streams are decompressed here, once
and as far as they may go, and must end where their chunk does: zarr's decoders would go on with another one
behind it. Of formats whose beginning says how long they are, that is believed where nothing can follow, as
the decoders do not write more.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.codecs import ShardingCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
_CRC_NBYTES: Final = 4
_NOT_THERE: Final = 2**64 - 1  # what an index says of a piece without bytes
_DAMAGED: Final = "a chunk is not compressed as it should be"


def bounded(array: zarr.Array[Any]) -> zarr.AsyncArray[Any]:
    """Return the same array for reading alone, with compressors that refuse to make more than a chunk."""
    metadata: Any = array.metadata
    codecs = _bound(metadata.codecs, array.dtype.itemsize * math.prod(array.chunks), file_nbytes(array))
    return zarr.AsyncArray(metadata=replace(metadata, codecs=codecs), store_path=array.store_path)


def file_nbytes(array: zarr.Array[Any]) -> int:
    """Return a length that no file of an array exceeds, however badly its rows were compressed."""
    unit = math.prod(array.shards or array.chunks)
    return 2 * array.dtype.itemsize * unit + _SLACK + _PIECE_SLACK * (unit // math.prod(array.chunks))


def decompressed(name: str, data: bytes | memoryview, most: int) -> bytes:
    """Return what a compressed stream holds: exactly one, and no more bytes than it may.

    Raises
    ------
    ValueError, zlib.error, OSError, lzma.LZMAError
        It is damaged, or longer.
    """
    stream = _STREAMS[name]()
    plain: bytes = stream.decompress(data, most + 1)
    if len(plain) > most:
        raise ValueError(f"a chunk becomes more than the {most} bytes that it may have")
    if stream.unused_data or not stream.eof:
        raise ValueError(_DAMAGED)
    return plain


def decoded_nbytes(name: str, data: bytes | memoryview, most: int) -> int:
    """Return how many bytes the decoder of a compressed chunk that is no stream makes room for.

    It is any larger number than the most that it may be where the chunk does not say.

    Raises
    ------
    ValueError
        The chunk is damaged.
    """
    if name == "zstd":
        return _zstd_nbytes(data, most)
    if name == "blosc":
        # Its decoder believes the length of the compressed bytes, too.
        if len(data) < _BLOSC_NBYTES or int.from_bytes(data[12:16], "little") != len(data):
            raise ValueError(_DAMAGED)
        return int.from_bytes(data[4:8], "little")
    if name == "lz4":
        return int.from_bytes(data[:4], "little")
    return max(0, len(data) - _CRC_NBYTES) if name in {"crc32", "crc32c"} else len(data)


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec that looks first how much will come out."""

    inner: Any
    name: str
    most: int
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
        if self.name in _STREAMS:
            plain = await asyncio.to_thread(decompressed, self.name, data, self.most)
            return chunk_spec.prototype.buffer.from_bytes(plain)
        nbytes = decoded_nbytes(self.name, data, self.most)
        if nbytes > self.most:
            raise ValueError(f"a chunk becomes {nbytes} bytes or more, and may have {self.most}")
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
    """Return codecs of which the first compressor makes exactly a chunk, and others not much more."""
    found: list[Any] = []
    most = chunk_nbytes
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
            found.append(_Bounded(codec, str(codec.to_dict()["name"]).removeprefix("numcodecs."), most))
            most = 2 * chunk_nbytes + _SLACK
        else:
            found.append(codec)
    return tuple(found)


def _zstd_nbytes(data: bytes | memoryview, most: int) -> int:
    """Return what the only frame says of its size; the decoder makes room for that, and no more fits in.

    What follows the frame would be further frames, for which the decoder makes room too.
    """
    if data[:4] != b"\x28\xb5\x2f\xfd" or len(data) < 5:
        raise ValueError(_DAMAGED)
    flags = data[4]
    is_single, kind = flags & 32, flags >> 6
    if kind == 0 and not is_single:
        return most + 1  # it does not say, as no chunk of a result does
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    stop = start + (1, 2, 4, 8)[kind]
    nbytes = int.from_bytes(data[start:stop], "little") + 256 * (kind == 1)
    if nbytes <= most and _zstd_end(data, stop) + (flags & 4) != len(data):
        raise ValueError(_DAMAGED)
    return nbytes


def _zstd_end(data: bytes | memoryview, start: int) -> int:
    """Return where the last of the blocks ends that begin somewhere."""
    is_last = False
    while not is_last:
        if start + 3 > len(data):
            raise ValueError(_DAMAGED)
        header = int.from_bytes(data[start : start + 3], "little")
        is_last, is_repeated = bool(header & 1), header & 6 == 2  # the latter is one byte, many times
        length = header >> 3
        if length == 0 and not is_last:  # no compressor writes these, of which a hole would be millions
            raise ValueError(_DAMAGED)
        start += 3 + (1 if is_repeated else length)
    return start

"""Reading a stranger's compressed chunks: none may be larger than a chunk is, however little its file is.

What a compressed chunk will take in memory is found out before it is taken. For formats whose beginning says
it, that is believed, as the decoders do not write more; others are decompressed as far as they may go.
"""

from __future__ import annotations

import bz2
import lzma
import math
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ShardingCodec

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

_SLACK: Final = 2**16  # of codecs behind each other, which may lengthen
_HEADER_NBYTES: Final = 9  # no frame of Zstandard is shorter than this, the end of its header included
_STREAMS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": zlib.decompressobj,
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


def bounded(array: zarr.Array[Any]) -> zarr.AsyncArray[Any]:
    """Return the same array for reading alone, with compressors that refuse to make more than a chunk."""
    most = 2 * array.dtype.itemsize * math.prod(array.chunks) + _SLACK
    metadata: Any = array.metadata
    codecs = [_bound(codec, most) for codec in metadata.codecs]
    return zarr.AsyncArray(metadata=replace(metadata, codecs=codecs), store_path=array.store_path)


def file_nbytes(array: zarr.Array[Any]) -> int:
    """Return a length that no file of an array exceeds, however badly its rows were compressed."""
    unit = math.prod(array.shards or array.chunks)
    return 2 * array.dtype.itemsize * unit + _SLACK * (1 + unit // math.prod(array.chunks))


def decoded_nbytes(name: str, data: bytes, most: int) -> int:
    """Return how many bytes a compressed chunk becomes, or any larger number than the most it may be.

    Raises
    ------
    ValueError, zlib.error, OSError, lzma.LZMAError
        It is damaged.
    """
    if name in _STREAMS:
        return len(_STREAMS[name]().decompress(data, most + 1))
    if name == "zstd":
        return _zstd_nbytes(data, most)
    if name == "blosc":
        return int.from_bytes(data[4:8], "little")
    if name == "lz4":
        return int.from_bytes(data[:4], "little")
    return len(data)


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
        nbytes = decoded_nbytes(self.name, chunk_data.to_bytes(), self.most)
        if nbytes > self.most:
            raise ValueError(f"a chunk becomes {nbytes} bytes or more, and may have {self.most}")
        decoded: Buffer = await self.inner._decode_single(chunk_data, chunk_spec)  # noqa: SLF001
        return decoded


def _bound(codec: Any, most: int) -> Any:
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_bound(inner, most) for inner in codec.codecs))
    if not isinstance(codec, BytesBytesCodec):
        return codec
    return _Bounded(codec, str(codec.to_dict()["name"]).removeprefix("numcodecs."), most)


def _zstd_nbytes(data: bytes, most: int) -> int:
    """Return what the first frame says of its size; the decoder makes room for that, and no more fits in."""
    if data[:4] != b"\x28\xb5\x2f\xfd" or len(data) < _HEADER_NBYTES:
        raise ValueError("a chunk is not compressed as it should be")
    flags = data[4]
    is_single, kind = flags & 32, flags >> 6
    if kind == 0 and not is_single:
        return most + 1  # it does not say, as no chunk of a result does
    start = 5 + (not is_single) + (0, 1, 2, 4)[flags & 3]
    length, form, more = ((1, "<B", 0), (2, "<H", 256), (4, "<I", 0), (8, "<Q", 0))[kind]
    nbytes: int = struct.unpack(form, data[start : start + length])[0]
    return nbytes + more

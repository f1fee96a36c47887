"""Public aliases: what may be passed in, and what comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import numpy.typing as npt

if TYPE_CHECKING:
    import numpy as np
    import zarr
    from zarr.abc.codec import BytesBytesCodec

__all__ = [
    "ArrayLike",
    "Auto",
    "Bands",
    "BatchOutput",
    "Blend",
    "BlendName",
    "Border",
    "Chunks",
    "Compressors",
    "Crop",
    "DeclaredHeads",
    "FillValue",
    "MapKind",
    "Mode",
    "OnDuplicate",
    "Passes",
    "Reduce",
    "RowArray",
    "Rows",
    "Scale",
    "StitchOptions",
    "StorageOption",
    "StorageOptions",
    "StrPath",
    "SupportsDLPack",
    "WindowName",
]


class SupportsDLPack(Protocol):
    """An array of another library that hands over its values by DLPack, from whatever device."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...


ArrayLike: TypeAlias = npt.ArrayLike | SupportsDLPack
"""NumPy arrays, tensors on any device, nested lists, and anything with ``__array__`` or DLPack."""

Auto: TypeAlias = Literal["auto"]
"""For ``rank`` and ``world_size``: as torchrun or SLURM say it in the environment."""

BatchOutput: TypeAlias = Sequence[ArrayLike] | Mapping[str, ArrayLike] | ArrayLike
"""A tuple or list of heads, a dict of named heads, or one array: each ``(n, *patch_shape)``."""

DeclaredHeads: TypeAlias = (
    "Sequence[tuple[Sequence[int], npt.DTypeLike] | ArrayLike] "
    "| Mapping[str, tuple[Sequence[int], npt.DTypeLike] | ArrayLike]"
)
"""A list or dict of what heads will be: pairs ``(patch_shape, dtype)``, or example arrays of any rows."""

Bands: TypeAlias = "list[npt.NDArray[Any]] | dict[str, npt.NDArray[Any]]"
"""A band of each map, as the heads were pushed: a list, or a dict of named heads."""

RowArray: TypeAlias = "npt.NDArray[Any] | zarr.Array[Any]"
"""One head of a result, ``(N, *patch_shape)``: NumPy in RAM, zarr on disk."""

Rows: TypeAlias = "slice | npt.NDArray[np.intp]"
"""Canonical rows that a batch goes to: a slice where they follow each other, otherwise their numbers."""

OnDuplicate: TypeAlias = Literal["error", "first", "last"]
"""What a location pushed twice does: raise, keep the first prediction, or keep the last."""

MapKind: TypeAlias = Literal["image", "rgb", "labels"]
"""What a map is to viewers: values, a picture in red, green and blue, or numbers that name things."""

Passes: TypeAlias = Literal["error", "first", "average"]
"""What patches for one box do in a `Stitcher`: raise, keep the first, or count as one, their mean."""

Mode: TypeAlias = Literal["w-", "a"]
"""How a store is opened, in zarr's words: make a new one, or resume what is there."""

WindowName: TypeAlias = Literal["gaussian", "hann"]
"""What a pixel of a patch counts: most in the middle."""

BlendName: TypeAlias = Literal["average", "gaussian", "hann", "max", "min", "last", "nearest", "vote"]
"""What a pixel gets that several patches cover: their mean, all counting the same or most in their middle;
the largest or the smallest value; that of the location that comes last in the list, or of the patch whose
centre is nearest; or the class that most of them have."""

Blend: TypeAlias = BlendName | tuple[Literal["vote"], WindowName | ArrayLike] | ArrayLike
"""One of those names; "vote" with a window by which votes count; or weights of a patch's shape."""

Reduce: TypeAlias = "Literal['argmax'] | Callable[[npt.NDArray[Any]], npt.NDArray[Any]]"
"""What is made of a finished band before it is stored."""

Border: TypeAlias = Literal["shift", "over"]
"""Where the last box of an axis lies: moved in to end with the image, or on the grid, over its end."""

StrPath: TypeAlias = str | os.PathLike[str]
"""A path of the local file system."""

Chunks: TypeAlias = int | Sequence[int] | None
"""Rows of a chunk or shard, or its whole shape; None where the library may choose."""

Compressors: TypeAlias = (
    "BytesBytesCodec | Sequence[BytesBytesCodec | Mapping[str, Any]] "
    "| Literal['auto', 'zstd', 'gzip', 'blosc'] | None"
)
"""Codecs of zarr, also as its metadata writes them; one by its name alone, with zarr's settings; "auto" for
zarr's choice, or None."""

Crop: TypeAlias = Literal["center", "start"] | int | Sequence[int] | None
"""Which part of a larger patch is its box: the middle, the first part, or what is left when so many pixels
are cut on each side, on all axes or one number an axis, x first."""

Scale: TypeAlias = float | Sequence[float] | None
"""Pixels of the map a unit of the locations, on all axes or one number an axis, x first."""

FillValue: TypeAlias = "complex | np.generic"
"""A number of a head's dtype, or a bool."""

_T = TypeVar("_T")
StorageOption: TypeAlias = _T | Mapping[Any, _T]  # dict[str, T] is no Mapping[str | int, T] to a checker
"""One value for all heads, or a dict by head name or number."""


class StorageOptions(TypedDict, total=False):
    """How heads are stored: what `FullBatchAccumulator` and `Stitcher` take of these names."""

    dtype: StorageOption[npt.DTypeLike | None]
    fill_value: StorageOption[FillValue]
    chunks: StorageOption[Chunks]
    shards: StorageOption[Chunks]
    compressors: StorageOption[Compressors]


class StitchOptions(StorageOptions, total=False):
    """What `stitch` hands on to the `Stitcher`."""

    blend: StorageOption[Blend]
    spread: StorageOption[bool]
    reduce: StorageOption[Reduce | None]
    nodata: StorageOption[FillValue | None]
    output_shape: StorageOption[Sequence[int] | None]
    origin: Sequence[int] | Literal["min"] | None
    channels_first: StorageOption[bool]
    crop: StorageOption[Crop]
    scale: StorageOption[Scale]
    axes: str | None
    on_band: Callable[[slice, Bands], object] | None
    save_path: StrPath
    memory_threshold: float
    memory_limit: int | str | None
    store: StrPath | None
    progress: bool

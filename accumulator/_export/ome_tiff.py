"""A map as a pyramidal OME-TIFF, which slide viewers open; written by the tifffile library, tile by tile."""

from __future__ import annotations

import itertools
import struct
import uuid
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import zarr

from accumulator._export.levels import TILE, chunks_of, fill, level_factors, level_shapes
from accumulator._export.map import UNITS, as_maps
from accumulator._inputs import tuning
from accumulator._inputs.extras import need
from accumulator._stores.files.target import staged
from accumulator.exceptions import HeadDtypeError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator._export.map import ImageOptions, Map
    from accumulator.typing import RowArray, StrPath

_PER_CENTIMETRE: Final = {"nm": 1e7, "µm": 1e4, "mm": 10.0, "cm": 1.0, "m": 0.01}  # in which TIFF counts
_NO_OME: Final = {np.dtype(np.int64), np.dtype(np.uint64)}
_LEAST_RESOLUTION: Final = 1e-6
_MOST_RESOLUTION: Final = 2.0**31


def write_ome_tiff(path: StrPath, array: RowArray, *, name: str, **options: Unpack[ImageOptions]) -> None:
    """Write one map as a pyramidal OME-TIFF, in tiles of 512 pixels that zlib compressed.

    Each channel is a plane of its own, but those of a picture lie side by side. The levels of the pyramid
    are SubIFDs, as Bio-Formats and QuPath read them, and what `write_ome_zarr` says of the pyramid holds
    here, too. One plane of uint8, which is all that OpenSlide reads, has them as its next images, too, where
    OpenSlide looks for them. A file that may get larger than 4 GB is a BigTIFF.

    Memory is bounded, whatever the size, as in `write_ome_zarr`. For that the pyramid is first laid out on
    disk, beside ``path``, where it takes about the room of the file until that is written.
    """
    head = check_ome_tiff(array, name=name, **options)
    with staged(path) as target:
        levels = _lay_out(target.with_name(f"{target.name}.levels"), head)
        factors = level_factors([level.shape for level in levels])
        tags = [{"subfiletype": 1, "metadata": None} | _resolution(head, each) for each in factors]
        tags[0] |= {"subfiletype": 0, "subifds": len(levels) - 1}  # the others are reduced images
        tags[0]["metadata"] = _metadata(head)
        _write(target, levels, tags, is_rgb=head.kind == "rgb")
        is_one = head.kind == "rgb" or not head.has_channels or head.shape[0] == 1
        if head.n_spatial == 2 and is_one and head.dtype == np.uint8 and len(levels) > 1:
            _chain(target)


def check_ome_tiff(array: RowArray, *, name: str, **options: Unpack[ImageOptions]) -> Map:
    """Refuse what `write_ome_tiff` would refuse, and return what it needs; no pixel is read."""
    need("tifffile", "ome")
    (head,) = as_maps({name: array}, **options)
    if head.dtype in _NO_OME:
        raise HeadDtypeError(
            f"head {name!r} has dtype {head.dtype}, which OME-TIFF does not have: cast it to int32 or write "
            "OME-Zarr"
        )
    if head.unit not in UNITS:
        raise OptionError(f"unit is {head.unit!r}: give one of {', '.join(UNITS.values())}")
    return head


def _lay_out(folder: Path, head: Map) -> list[zarr.Array[Any]]:
    """Return the pyramid on disk, stored in tiles, so that none is decoded twice."""
    group = zarr.create_group(folder, zarr_format=3)
    levels = [
        group.create_array(str(number), shape=shape, chunks=chunks_of(shape), dtype=head.dtype)
        for number, shape in enumerate(level_shapes(head.shape))
    ]
    fill(head, levels)
    return levels


def _write(target: Path, levels: list[zarr.Array[Any]], tags: list[dict[str, Any]], *, is_rgb: bool) -> None:
    nbytes = sum(int(level.nbytes) for level in levels)
    is_big = nbytes > tuning.now.classic_tiff_nbytes
    with need("tifffile", "ome").TiffWriter(target, bigtiff=is_big, ome=True) as tiff:
        for level, own in zip(levels, tags, strict=True):
            tiff.write(
                _tiles(level, is_rgb=is_rgb),
                shape=(*level.shape[1:], level.shape[0]) if is_rgb else level.shape,
                dtype=level.dtype,
                tile=(TILE, TILE),
                photometric="rgb" if is_rgb else "minisblack",
                compression="zlib",
                compressionargs={"level": 1},  # more takes longer, and makes floats hardly smaller
                buffersize=tuning.now.tiles_nbytes,
                **own,
            )


def _chain(target: Path) -> None:
    """Make the levels the next images, too: each tells where the next one is.

    OME-TIFF says of levels that they be SubIFDs alone, OpenSlide knows no SubIFDs. Who reads by OME-XML goes
    where that points to.
    """
    with need("tifffile", "ome").TiffFile(target, mode="r+") as tiff:
        form, file, page = tiff.tiff, tiff.filehandle, tiff.pages[0]
        for place, following in itertools.pairwise([page.offset, *page.subifds]):
            file.seek(place)
            (n_tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
            file.seek(place + form.tagnosize + n_tags * form.tagsize)
            file.write(struct.pack(form.offsetformat, following))


def _metadata(head: Map) -> dict[str, Any]:
    """Return what OME-XML says of the image."""
    metadata: dict[str, Any] = {
        "axes": f"{head.axes[1:]}s".upper() if head.kind == "rgb" else head.axes.upper(),
        "Name": head.name,
        "UUID": str(uuid.uuid4()),  # tifffile's own would tell the machine and the time
        "Channel": {"Name": [head.name] if head.kind == "rgb" else list(head.channels)},
    }
    for axis, size in (head.sizes or {}).items():
        metadata |= {f"PhysicalSize{axis.upper()}": size, f"PhysicalSize{axis.upper()}Unit": UNITS[head.unit]}
    return metadata


def _resolution(head: Map, factors: list[int]) -> dict[str, Any]:
    """Return the size of a level's pixels as TIFF has it, for readers that know no OME-XML."""
    if head.sizes is None:
        return {}
    per_centimetre = _PER_CENTIMETRE[UNITS[head.unit]]
    each = [per_centimetre / (head.sizes[axis] * factors[head.axes.index(axis)]) for axis in "xy"]
    if not all(_LEAST_RESOLUTION < value < _MOST_RESOLUTION for value in each):
        return {}  # a TIFF has fractions of 32 bits
    return {"resolution": tuple(each), "resolutionunit": "CENTIMETER"}


def _tiles(level: zarr.Array[Any], *, is_rgb: bool) -> Iterator[NDArray[Any]]:
    """Give the tiles of all planes, row by row; a picture's have their colours last."""
    samples = (slice(None),) if is_rgb else ()
    *planes, height, width = level.shape[len(samples) :]
    nbytes = TILE * TILE * level.dtype.itemsize * (level.shape[0] if is_rgb else 1)
    most = max(1, tuning.now.tiles_nbytes // nbytes) * TILE
    for plane in np.ndindex(*planes):
        for y in range(0, height, TILE):
            for start in range(0, width, most):
                where = (*samples, *plane, slice(y, y + TILE), slice(start, start + most))
                strip = np.asarray(level[where])
                if is_rgb:
                    strip = np.moveaxis(strip, 0, -1)
                for x in range(0, strip.shape[1], TILE):
                    yield strip[:, x : x + TILE]

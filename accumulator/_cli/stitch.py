"""The command ``accumulator stitch``: a store in, a file with its maps out."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs
import numpy as np

from accumulator import FullBatch, StitchedMap, stitch
from accumulator._cli.parsing import (
    as_blend,
    as_crop,
    as_origin,
    as_reduce,
    as_scale,
    as_size,
    as_whole_numbers,
    for_head,
)
from accumulator._cli.shared import add_command, as_number, show
from accumulator._export import check_ome_tiff, check_ome_zarr
from accumulator._export.map import UNITS
from accumulator._inputs.heads import Heads
from accumulator._inputs.text import listed, printable, shape_text
from accumulator._stitching.blends import DEFAULT_BLEND
from accumulator._stitching.result import check_is_of_patches
from accumulator._stores.files.target import is_inside
from accumulator.exceptions import NothingPushedError, OptionError
from accumulator.typing import MapKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accumulator.typing import StorageOption

_DESCRIPTION: Final = """\
Stitches the patches of a store into one map a head, and writes the maps to a file that others open.

Patches are blended where they overlap. Pixels that no patch covers hold the fill value. A run that is not
complete is stitched as far as it came. Classes and other labels must not be averaged: give --blend last (or
max), head by head. Maps that do not fit in memory are made on disk, beside the output.
The name of the output says what it is:

  NAME.ome.zarr    OME-Zarr 0.5 with a pyramid, for napari, Fiji and others; several heads are groups in it,
                   labels (--kind HEAD=labels) lie on the image of their place
  NAME.ome.tif     a pyramidal OME-TIFF, for QuPath and others; one head
  NAME.zarr        what StitchedMap.load opens: plain zarr, its rows are those of the map

Locations are [start_x, start_y, end_x, end_y] in pixels of the patches, patches have their channels last,
and a box is as large as its patch: what else is so has to be said, by --channels-first, --crop, --scale or
--axes. What takes HEAD=VALUE too may be repeated. A head is called by its name or, as in Python, by its
number: 0 is the first. Numbers an axis have commas between them, x first.
"""
_EXAMPLES: Final = """\
examples:
  accumulator stitch run.zarr -o tumour.ome.zarr --blend hann --pixel-size 0.5
  accumulator stitch run.zarr -o tumour.ome.tif --head tumour --pixel-size 0.5
  accumulator stitch run.zarr -o map.zarr --channels-first --crop center --scale 1/4 --origin min
  accumulator stitch run.zarr -o maps.zarr --scale coarse=1/2 --crop coarse=8
  accumulator stitch run.zarr -o heat.ome.tif --head grade --spread --scale 1/256
  accumulator stitch run.zarr -o labels.zarr --head tissue --blend hann --reduce argmax --fill 255
  accumulator stitch run.zarr -o region.zarr --origin 20000,31000 --shape 4096,4096 --fill nan

exit codes: 0 done, 1 no store, one that cannot be stitched or read, a map that would have no patch, or an
output that is there already, 2 wrong arguments
OME-TIFF needs one more package: pip install 'full-batch-accumulator[ome]'
"""
_KINDS: Final = {".ome.zarr": "OME-Zarr", ".ome.tif": "OME-TIFF", ".ome.tiff": "OME-TIFF", ".zarr": "zarr"}


def add_stitch(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the others."""
    short = "blend the patches of a store into maps, and write them as OME-Zarr, OME-TIFF or zarr"
    parser = add_command(add, "stitch", _stitch, short, _DESCRIPTION, _EXAMPLES)
    parser.usage = "accumulator stitch PATH -o FILE [options]"
    parser.add_argument("path", type=Path, metavar="PATH", help="the store's folder")
    parser.add_argument(
        "-o", "--output", type=_output, required=True, metavar="FILE", help="the file, not there yet"
    )
    parser.add_argument(
        "--head", action="append", metavar="NAME", help="a head, by name or number; repeatable (default: all)"
    )
    parser.add_argument(
        "--blend",
        type=for_head(as_blend),
        action="append",
        metavar="[HEAD=]BLEND",
        help="how overlapping patches are blended: their mean, plain or with more weight in the middle "
        "(average, gaussian, hann), the largest or smallest value (max, min), that of the last in the list "
        "or of the nearest centre (last, nearest), or the class that most have (vote, vote:hann, "
        "vote:gaussian) (default: average)",
    )
    parser.add_argument(
        "--spread", action="store_true", help="heads of one value a patch fill their boxes: heat maps"
    )
    parser.add_argument(
        "--reduce",
        type=for_head(as_reduce),
        action="append",
        metavar="[HEAD=]argmax",
        help="store the largest channel of each pixel, and not the channels",
    )
    parser.add_argument(
        "--weights", metavar="HEAD", help="a head that says what pixels of the others count, and is no map"
    )
    parser.add_argument(
        "--shape",
        type=for_head(as_whole_numbers),
        action="append",
        metavar="[HEAD=]H,W",
        help="height and width of the maps, in their own pixels (default: all patches)",
    )
    parser.add_argument(
        "--origin",
        type=as_origin,
        metavar="X,Y",
        help='their first pixel, or "min", where the first box begins (default: 0,0)',
    )
    parser.add_argument(
        "--channels-first", action="store_true", help="patches are (n, C, h, w), those of all heads"
    )
    parser.add_argument(
        "--channels-first-of", action="append", metavar="HEAD", help="those of this head; repeatable"
    )
    parser.add_argument(
        "--crop",
        type=for_head(as_crop),
        action="append",
        metavar="[HEAD=]PART",
        help="which part of a larger patch is its box: center, start, or the pixels cut on each side, N or "
        "X,Y",
    )
    parser.add_argument(
        "--scale",
        type=for_head(as_scale),
        action="append",
        metavar="[HEAD=]FACTOR",
        help="pixels of the map a unit of the locations, such as 1/4, or X,Y (default: 1)",
    )
    parser.add_argument("--axes", metavar="ORDER", help="the order of the locations' columns, such as yx")
    parser.add_argument(
        "--fill",
        type=for_head(as_number),
        action="append",
        metavar="[HEAD=]VALUE",
        help="where no patch is, such as nan (default: 0)",
    )
    parser.add_argument(
        "--nodata",
        type=as_number,
        metavar="VALUE",
        help="a number that does not count where another patch has a value, such as nan",
    )
    parser.add_argument(
        "--pixel-size",
        type=for_head(as_size),
        action="append",
        metavar="[HEAD=]SIZE",
        help="of a pixel of the map, which is 32 for --scale 1/64 of a slide of 0.5; a number, or X,Y",
    )
    parser.add_argument("--unit", choices=tuple(UNITS), default="micrometer", help="(default: micrometer)")
    parser.add_argument(
        "--channel", action="append", metavar="NAME", help="a channel's name; repeat it for each in turn"
    )
    parser.add_argument(
        "--kind",
        type=for_head(str),
        action="append",
        metavar="[HEAD=]KIND",
        help=f"what a map is in OME files: {', '.join(get_args(MapKind))} (default: image)",
    )
    parser.add_argument("--memory-limit", metavar="SIZE", help='what the maps may take, such as "4 GiB"')
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


@attrs.frozen
class _Stitched:
    """What was made."""

    maps: StitchedMap
    output: Path
    kind: str

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.output),
            "kind": self.kind,
            "origin": list(self.maps.origin),
            "n_patches": len(self.maps.written),
            "n_written": int(self.maps.written.sum()),
            "n_stitched": self.maps.n_stitched,
            "n_outside": self.maps.n_outside,
            "images": self.images(),
            "heads": [
                {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
                for name, array in Heads.of(self.maps.outputs).by_name().items()
            ],
        }

    def images(self) -> list[str]:
        """Return the paths that a viewer opens, or Python where the maps are plain zarr."""
        names = Heads.of(self.maps.outputs).by_name()
        if self.kind == "OME-Zarr" and (self.output / "OME").is_dir():  # which lists several images
            return [str(self.output / name) for name in names if (self.output / name).is_dir()]
        return [str(self.output)]

    def lines(self) -> Iterator[str]:
        facts, output = self.as_json(), printable(str(self.output))
        for head in facts["heads"]:
            yield f"map {printable(head['name'])}: {shape_text(head['shape'])} {head['dtype']}"
        patches = f"{facts['n_stitched']} of {facts['n_patches']} patches ({facts['n_written']} written)"
        yield f"{patches}; {self.kind} in {output}"
        if facts["n_outside"]:
            yield f"{facts['n_outside']} patches lie wholly outside of the maps, and are left out"
        for image in map(printable, facts["images"]):
            yield f"StitchedMap.load opens {image}" if self.kind == "zarr" else f"a viewer opens {image}"


def _stitch(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    kind = _kind(output)
    if output.exists() or output.is_symlink():
        raise OptionError(f"{output} is there already: give another name, or remove it first")
    if is_inside(output, arguments.path):
        raise OptionError(f"{output} is in the store itself: write elsewhere")
    batch = FullBatch.load(arguments.path, partial=True)
    check_is_of_patches(batch)
    if not batch.written.any():
        raise NothingPushedError(
            f"{arguments.path} has none of its {len(batch.written)} patches, so that there is nothing to see "
            "on a map; `accumulator info` says how far it is"
        )
    heads = None if arguments.head is None else [_key(batch, head) for head in arguments.head]
    options: dict[str, Any] = {
        "pixel_size": _by_head(batch, arguments.pixel_size),
        "channel_names": arguments.channel,
        "kind": _by_head(batch, arguments.kind),
    }
    if kind == "zarr" and any(option is not None for option in options.values()):
        raise OptionError("--pixel-size, --channel and --kind are for OME files, not for plain zarr")
    options["unit"] = arguments.unit
    options["kind"] = options["kind"] or "image"
    said = [(None, True)] * arguments.channels_first
    said += [(head, True) for head in arguments.channels_first_of or ()]
    channels_first = _by_head(batch, said) or False
    weights = None if arguments.weights is None else _key(batch, arguments.weights)
    if weights is not None and heads is None:
        heads = [key for key in Heads.of(batch.outputs).keys if key != weights]
    reduce = _by_head(batch, arguments.reduce)
    _check(batch, heads, kind, (channels_first, reduce, arguments.spread), options)
    for option in ("kind", "pixel_size"):
        options[option] = _by_place(options[option], heads)
    with stitch(
        batch,
        heads=heads,
        weights=weights,
        blend=_by_place(_by_head(batch, arguments.blend), heads) or DEFAULT_BLEND,
        spread=arguments.spread,
        reduce=_by_place(reduce, heads),
        output_shape=_by_place(_by_head(batch, arguments.shape), heads),
        origin=arguments.origin,
        channels_first=_by_place(channels_first, heads),
        crop=_by_place(_by_head(batch, arguments.crop), heads),
        scale=_by_place(_by_head(batch, arguments.scale), heads),
        axes=arguments.axes,
        fill_value=_by_place(_by_head(batch, arguments.fill) or 0, heads),
        nodata=arguments.nodata,
        memory_limit=arguments.memory_limit,
        save_path=output.absolute().parent,
        progress=sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None,
    ) as maps:
        if not maps.n_stitched:
            raise OptionError(
                f"none of the {maps.written.sum()} patches lies on the map: give another --origin or --shape"
            )
        if kind == "zarr":
            maps.save(output)
        elif kind == "OME-Zarr":
            maps.save_ome_zarr(output, **options)
        else:
            maps.save_ome_tiff(output, **options)
        show(_Stitched(maps, output, kind), is_json=arguments.json)
    return 0


def _check(
    batch: FullBatch,
    heads: list[Any] | None,
    kind: str,
    said: tuple[StorageOption[bool], Any, bool],
    options: dict[str, Any],
) -> None:
    """Refuse now what the file would refuse when the maps are made.

    It is told whether channels are first, what becomes of them, and whether single values fill their boxes.
    """
    given = Heads.of(batch.outputs)
    outputs = dict(zip(given.keys, given, strict=True))
    if kind == "OME-TIFF" and len(heads or outputs) != 1:
        raise OptionError(
            f"an OME-TIFF holds one head: choose with --head one of [{listed(map(repr, outputs))}]"
        )
    n_spatial = batch.output_locs.shape[1] // 2
    chosen = {head: outputs[head] for head in heads or outputs if head in outputs}
    fitting, is_spread = {n_spatial, n_spatial + 1}, said[2]
    spread = {head for head, array in chosen.items() if is_spread and array.ndim < 3}
    if kind == "zarr" or any(chosen[head].ndim - 1 not in fitting for head in chosen.keys() - spread):
        return  # stitching says what is wrong with such heads
    small: dict[str, Any] = {}
    for head, array in chosen.items():
        is_first, is_reduced = (each.get(head) if isinstance(each, Mapping) else each for each in said[:2])
        behind = (
            array.shape[1:]
            if head in spread
            else (array.shape[1 : array.ndim - n_spatial] if is_first else array.shape[1 + n_spatial :])
        )
        dtype, behind = (np.dtype(np.uint8), ()) if is_reduced else (array.dtype, behind)
        small[str(head)] = np.broadcast_to(np.zeros((), dtype), (1,) * n_spatial + behind)
    if kind == "OME-Zarr" and small:
        check_ome_zarr(small, n_spatial=n_spatial, **options)
    for name, array in small.items() if kind == "OME-TIFF" else ():
        check_ome_tiff(array, n_spatial=n_spatial, name=name, **options)


def _by_head(batch: FullBatch, said: list[tuple[Any, Any]] | None) -> Any:
    """Return what was said for all heads, or a dict of what was said of single ones."""
    by_head: dict[Any, Any] = {}
    for head, value in said or ():
        if head is None:
            if len(said or ()) > 1:
                raise OptionError("something is said of all heads, and more: say it once, or name each head")
            return value
        key = _key(batch, head)
        if key in by_head:
            raise OptionError(f"something is said twice of head {key}: say it once")
        by_head[key] = value
    return by_head or None


def _key(batch: FullBatch, head: str) -> int | str:
    """Return what the library calls a head that has this name or number, or may have none."""
    keys = Heads.of(batch.outputs).keys
    is_number = head not in keys and head.isascii() and head.isdigit() and int(head) < len(keys)
    return keys[int(head)] if is_number else head


def _by_place(said: Any, heads: list[Any] | None) -> Any:
    """Return what was said by numbers of the store by those that `stitch` gives the chosen heads."""
    if heads is None or not isinstance(said, Mapping) or not all(isinstance(key, int) for key in said):
        return said
    unknown = [key for key in said if key not in heads]
    if unknown:
        raise OptionError(f"something is said of head {unknown[0]}, which is not among the chosen {heads}")
    return {heads.index(key): value for key, value in said.items()}


def _kind(output: Path) -> str:
    return next((kind for end, kind in _KINDS.items() if output.name.lower().endswith(end)), "")


def _output(text: str) -> Path:
    if not _kind(Path(text)):
        raise argparse.ArgumentTypeError(
            f"{text} ends with none of {', '.join(_KINDS)}; a GeoTIFF is made in Python, by "
            "StitchedMap.save_geotiff, as it has to be told where on Earth it lies"
        )
    return Path(text)

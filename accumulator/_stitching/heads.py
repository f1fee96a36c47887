"""What heads become: which of them can be stitched, and the maps they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accumulator._stitching.numbers import MapSpec, result_dtype, sum_dtype, wider
from accumulator.exceptions import HeadError

if TYPE_CHECKING:
    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import HeadOptions
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.frame import Frame, Lay
    from accumulator._stitching.weights import Window


def lay_heads(frame: Frame, specs: Heads[HeadSpec]) -> Heads[Lay]:
    """Return how the patches of each head lie; or HeadError, as all must lie alike."""
    frame.geometry.check_heads(specs.keys)
    lays = [
        frame.lay(key, specs.label(i), spec.patch_shape)
        for i, (key, spec) in enumerate(zip(specs.keys, specs, strict=True))
    ]
    for i, lay in enumerate(lays):
        if lay.group != lays[0].group:
            raise HeadError(
                f"{specs.label(i)} has patches of {lay.grid.patch}, but {specs.label(0)} "
                f"of {lays[0].grid.patch}: stitch heads of different size one by one"
            )
    return specs.like(lays)


def map_specs(
    specs: Heads[HeadSpec], lays: Heads[Lay], options: HeadOptions, window: Window, n_overlaps: int
) -> Heads[MapSpec]:
    """Return the maps that heads make, where so many rows cover a pixel at most.

    Raises HeadError, HeadDtypeError or OptionError where a head, or what is asked for, cannot be a map.
    """
    maps = []
    for i, (key, spec, lay) in enumerate(zip(specs.keys, specs, lays, strict=True)):
        storage, asked = options.for_head(key, spec.dtype)
        if window.blend == "max" and spec.dtype.kind == "c":
            raise HeadError(f"{specs.label(i)} is complex, which has no largest value: blend its parts")
        dtype = result_dtype(spec.dtype, asked, specs.label(i))
        sums = sum_dtype(spec.dtype, window, n_overlaps)
        is_checked = window.is_sum and sums == spec.dtype.newbyteorder("=") and wider(sums) != sums
        maps.append(MapSpec(lay.channels, dtype, storage.fill_value, sums, is_checked))
    return specs.like(maps)

"""What heads become: which of them can be stitched, and the maps they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accumulator._stitching.numbers import MapSpec, result_dtype, sum_dtype, wider
from accumulator.exceptions import HeadError

if TYPE_CHECKING:
    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import HeadOptions
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.weights import Window


def patch_of(specs: Heads[HeadSpec], n_spatial: int) -> tuple[int, ...]:
    """Return the spatial shape of a patch; or HeadError, as all heads must have the same."""
    patch = specs.values[0].patch_shape[:n_spatial]
    for i, spec in enumerate(specs):
        if len(spec.patch_shape) not in {n_spatial, n_spatial + 1} or 0 in spec.patch_shape:
            raise HeadError(
                f"{specs.label(i)} has patch shape {spec.patch_shape}: with locations of "
                f"{2 * n_spatial} numbers a patch has {n_spatial} axes, or one more for channels; leave "
                "heads of another kind out, with stitch(batch, heads=[...])"
            )
        if spec.patch_shape[:n_spatial] != patch:
            raise HeadError(
                f"{specs.label(i)} has patches of {spec.patch_shape[:n_spatial]}, but {specs.label(0)} "
                f"of {patch}: stitch heads of different size one by one"
            )
    return patch


def map_specs(
    specs: Heads[HeadSpec], n_spatial: int, options: HeadOptions, window: Window, n_overlaps: int
) -> Heads[MapSpec]:
    """Return the maps that heads make, where so many rows cover a pixel at most.

    Raises HeadError, HeadDtypeError or OptionError where a head, or what is asked for, cannot be a map.
    """
    maps = []
    for i, (key, spec) in enumerate(zip(specs.keys, specs, strict=True)):
        storage, asked = options.for_head(key, spec.dtype)
        if window.blend == "max" and spec.dtype.kind == "c":
            raise HeadError(f"{specs.label(i)} is complex, which has no largest value: blend its parts")
        dtype = result_dtype(spec.dtype, asked, specs.label(i))
        sums = sum_dtype(spec.dtype, window, n_overlaps)
        is_checked = window.is_sum and sums == spec.dtype.newbyteorder("=") and wider(sums) != sums
        maps.append(MapSpec(spec.patch_shape[n_spatial:], dtype, storage.fill_value, sums, is_checked))
    return specs.like(maps)

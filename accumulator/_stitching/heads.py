"""What heads become: which of them can be stitched, and the maps they make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accumulator._inputs.options import check_heads
from accumulator._inputs.text import listed
from accumulator._inputs.warn import warn
from accumulator._stitching.blends import CHOOSING, LABEL_BLENDS, as_window
from accumulator._stitching.numbers import MapSpec, mean_dtype, result_dtype, sum_dtype, wider
from accumulator.exceptions import BlendWarning, HeadError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.blends import Blending
    from accumulator._stitching.frame import Frame, Lay
    from accumulator._stitching.geometry import Geometry
    from accumulator._stitching.grid import Grid


def lay_heads(frame: Frame, specs: Heads[HeadSpec]) -> Heads[Lay]:
    """Return how the patches of each head lie, or refuse them."""
    check_heads(frame.geometry.by_head, specs.keys)
    return specs.like(
        frame.lay(key, specs.label(i), spec.patch_shape)
        for i, (key, spec) in enumerate(zip(specs.keys, specs, strict=True))
    )


def check_shapes(geometry: Geometry, lays: Heads[Lay]) -> None:
    """Refuse one shape for maps whose pixels are of different size."""
    asked, scales = geometry.by_head["output_shape"], {lay.scale for lay in lays}
    if isinstance(asked, list) and len(scales) > 1:
        raise OptionError(
            f"output_shape is {tuple(asked)}, in pixels of a map, but the heads have maps of the scales "
            f"{sorted(scales)} (x first): give a dict by head"
        )


def map_specs(
    specs: Heads[HeadSpec],
    lays: Heads[Lay],
    blendings: Sequence[Blending],
    n_overlaps: int,
    *,
    is_averaged: bool,
) -> Heads[MapSpec]:
    """Return the maps that heads make, each blended so, where so many rows cover a pixel at most.

    Where it ``is_averaged``, patches are means of several. Raises HeadError or HeadDtypeError where a head
    cannot be a map.
    """
    maps: list[MapSpec] = []
    windows = {blending: as_window(blending, lays.values[0].grid.patch) for blending in blendings}
    for i, (spec, lay) in enumerate(zip(specs, lays, strict=True)):
        window = windows[blendings[i]]
        if window.blend in {"max", "min"} and spec.dtype.kind == "c":
            raise HeadError(
                f"{specs.label(i)} is complex, which has no largest or smallest value: blend its parts"
            )
        if window.blend == "vote" and spec.dtype.kind not in "biu":
            raise HeadError(
                f'{specs.label(i)} is {spec.dtype}, and blend="vote" is for classes, which are integers: '
                'push the argmax of your model, or blend by a mean and say reduce="argmax"'
            )
        dtype = result_dtype(spec.dtype, specs.label(i))
        patches = mean_dtype(spec.dtype) if is_averaged else spec.dtype
        sums = sum_dtype(patches, window, n_overlaps)
        is_checked = window.is_sum and sums == patches.newbyteorder("=") and wider(sums) != sums
        maps.append(
            MapSpec(
                window,
                lay.grid.patch,
                lay.channels,
                dtype,
                spec.storage.fill_value,
                sums,
                is_checked,
                is_spread=lay.is_spread,
            )
        )
    return specs.like(maps)


def warn_of_mean(
    specs: Heads[HeadSpec], blendings: Sequence[Blending], heads: Sequence[int], grid: Grid
) -> None:
    """Warn of integers that meet in a mean which nobody has asked for: if they are labels, it is another."""
    labels = [
        specs.label(head)
        for head in heads
        if specs.values[head].dtype.kind in "iu" and blendings[head].is_unsaid
    ]
    if labels and grid.has_overlaps():
        *first, last = (f'"{blend}"' for blend in LABEL_BLENDS)
        others = f"{', '.join(first)} or {last}"
        warn(
            f"{listed(labels)}: integers are blended by their mean, which makes class 1 of 0 and 2; for "
            f'labels say blend={others}, and for quantities blend="average" or another mean',
            BlendWarning,
        )


def warn_of_passes(specs: Heads[HeadSpec], blendings: Sequence[Blending]) -> None:
    """Warn of integers whose passes are averaged, in a blend for labels: their mean may be another."""
    labels = [
        specs.label(i)
        for i, (spec, blending) in enumerate(zip(specs, blendings, strict=True))
        if spec.dtype.kind in "iu" and blending.name in CHOOSING
    ]
    if labels:
        warn(
            f'{listed(labels)}: on_duplicate="average" makes the mean of passes, also of integers and '
            "whatever blend is, so class 1 of 0 and 2; for labels push probabilities, or say "
            'on_duplicate="first", and for quantities dtype="float32"',
            BlendWarning,
        )

"""What a `Stitcher` is made with: raw arguments become one checked request."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Unpack

import attrs

from accumulator._core.locations import LocationIndex
from accumulator._core.plan import Budget
from accumulator._inputs.arguments import as_folder, as_limit, as_passes, as_store, as_threshold
from accumulator._inputs.declared import as_declared
from accumulator._inputs.options import HeadOptions, by_plain_key, check_heads
from accumulator._inputs.validation import as_specs
from accumulator._pictures.progress import as_progress
from accumulator._stitching.blends import Blending, as_blend
from accumulator._stitching.frame import as_frame
from accumulator._stitching.geometry import GEOMETRY, as_geometry
from accumulator._stitching.groups import check_rows_fit
from accumulator._stitching.reduce import as_reduce
from accumulator.exceptions import OptionError, ResultExistsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.frame import Frame
    from accumulator.typing import (
        ArrayLike,
        Bands,
        DeclaredHeads,
        FillValue,
        Passes,
        StitchOptions,
        StorageOption,
    )

_DEFAULT: Final = Blending("average", is_unsaid=True)  # of heads that a dict does not name
_STORED: Final = ("fill_value", "chunks", "shards", "compressors")


@attrs.frozen(eq=False)
class Request:
    """What maps are to be made of which boxes."""

    declared: Heads[NDArray[Any]] | None
    on_duplicate: Passes
    index: LocationIndex
    blend: Blending | dict[int | str, Blending]
    reduce: Any  # what becomes of bands, for all heads or in a dict
    fill_value: Any  # of pixels that no patch covers, likewise
    bar: Any
    nodata: StorageOption[FillValue | None]
    options: HeadOptions
    stored: HeadOptions  # those of them that say how maps are stored
    on_band: Callable[[slice, Bands], object] | None
    frame: Frame
    budget: Budget
    store: str | None

    @property
    def is_averaged(self) -> bool:
        """Whether patches of one box count as one, their mean."""
        return self.on_duplicate == "average"

    def specs_of(self, heads: Heads[NDArray[Any]]) -> Heads[HeadSpec]:
        """Return what patches of each head look like, from a batch.

        The fill value of what is reduced is of another dtype, and looked at when that is known.
        """
        if self.reduce is None:
            return as_specs(heads, self.options)
        self.options.check_heads(heads.keys)
        check_heads({"reduce": self.reduce}, heads.keys)
        fills = {key: self.fill_of(key) for key in heads.keys if self.reduce_of(key) is None}
        return as_specs(heads, self.options.replaced(fill_value=fills))

    def reduce_of(self, key: int | str) -> Any:
        """Return what becomes of a head's bands."""
        return self.reduce.get(key) if isinstance(self.reduce, Mapping) else self.reduce

    @property
    def may_be_behind(self) -> bool:
        """Whether bands may be made while the caller does something else: not where they call the user."""
        reduced = self.reduce.values() if isinstance(self.reduce, Mapping) else [self.reduce]
        return self.on_band is None and not any(callable(each) for each in reduced)

    def fill_of(self, key: int | str) -> Any:
        """Return the value of pixels that no patch covers, as it was given."""
        return self.fill_value.get(key, 0) if isinstance(self.fill_value, Mapping) else self.fill_value

    def blendings(self, keys: Sequence[int | str]) -> list[Blending]:
        """Return how the patches of each head are blended."""
        if not isinstance(self.blend, dict):
            return [self.blend] * len(keys)
        check_heads({"blend": self.blend}, keys)
        return [self.blend.get(key, _DEFAULT) for key in keys]


def as_request(
    full_output_locs: ArrayLike,
    heads: DeclaredHeads | None,
    on_duplicate: Passes,
    **given: Unpack[StitchOptions],
) -> Request:
    """Return what a `Stitcher` was asked for, with each of its options; nothing is made yet."""
    declared, policy = as_declared(heads), as_passes(on_duplicate)
    index, blend = LocationIndex(full_output_locs), as_blend(given["blend"])
    bar = as_progress(given["progress"])
    stored: dict[str, Any] = {name: given[name] for name in _STORED}
    options, on_band = HeadOptions(**stored, dtype=given["dtype"]), given["on_band"]
    if on_band is not None and not callable(on_band):
        raise OptionError(f"on_band is {on_band!r}: it is called with a slice and the values of a band")
    said: dict[str, Any] = {name: given[name] for name in GEOMETRY}
    geometry = as_geometry(index.locs.shape[1], **said)
    frame = as_frame(index.locs, geometry)
    if geometry.is_same_for_all:
        check_rows_fit(frame.shape[0])
    folder, threshold = as_folder(given["save_path"]), as_threshold(given["memory_threshold"])
    budget, store = Budget(folder, threshold, as_limit(given["memory_limit"])), as_store(given["store"])
    if store is not None and os.path.lexists(store):
        what = "something is there already, and maps are not resumed: remove it, or give another path"
        raise ResultExistsError(errno.EEXIST, what, str(given["store"]))
    return Request(
        declared,
        policy,
        index,
        blend,
        as_reduce(given["reduce"]),
        by_plain_key("fill_value", given["fill_value"]),
        bar,
        given["nodata"],
        options,
        HeadOptions(**stored),
        on_band,
        frame,
        budget,
        store,
    )

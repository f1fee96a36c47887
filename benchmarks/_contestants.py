"""Who takes part, by name: a run travels to a process of its own as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks import _by_hand, _codecs, _libraries, _model, _own, _ranks, _stitch_libraries, _stitching

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks._outcome import Contestant

CONTESTANTS: Final[Mapping[str, Contestant]] = {
    each.__name__: each
    for each in (
        _own.accumulator,
        _own.leaving_ram,
        _own.resume,
        _own.index_build,
        _own.dict_build,
        _own.index_match,
        _own.same_bytes,
        _by_hand.numpy_slices,
        _by_hand.numpy_copyto,
        _by_hand.lists,
        _by_hand.raw_write,
        _by_hand.direct_write,
        _by_hand.memmap,
        _by_hand.zarr_by_hand,
        _libraries.tensorstore,
        _libraries.hdf5,
        _libraries.tiatoolbox,
        _codecs.accumulator_codec,
        _codecs.codec_alone,
        _model.model_amount,
        _model.model,
        _model.stitch_model,
        _ranks.publishing,
        _ranks.ranks_at_work,
        _ranks.rank_memory,
        _stitching.stitcher,
        _stitching.stitch_result,
        _stitching.numpy_canvas,
        _stitching.memory_limit,
        _stitch_libraries.monai,
        _stitch_libraries.monai_zarr,
        _stitch_libraries.torchio,
        _stitch_libraries.tiler,
    )
}

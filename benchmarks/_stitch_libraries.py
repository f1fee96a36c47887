"""Other libraries that stitch patches, as their users use them, each in the layout that it works in.

Channels are first for MONAI and torchio; patches are brought in that order before the clock starts. Torch
has all cores here: every run is started with OpenMP on one thread, and that is taken back for torch. Its
threads wait by spinning, so that on a machine that is busy with something else they were seen to take twenty
times as long: the numbers count on a quiet one only.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._libraries import load_library
from benchmarks._outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks._outcome import Work
    from benchmarks._stitch_cases import StitchCase


def monai(case: StitchCase, _folder: Path) -> Work:
    """Call MONAI's `AvgMerger` as its `PatchInferer` does: a patch at a time."""
    merger_of = load_library("monai.inferers.merger").AvgMerger
    batches, torch = _torch_batches(case), load_library("torch")

    def work() -> Outcome:
        merger = merger_of(merged_shape=(1, case.shape[-1], *case.shape[:-1]))
        _aggregate(torch, merger, batches)
        return Outcome([np.moveaxis(merger.finalize().numpy()[0], 0, -1)])

    return work


def monai_zarr(case: StitchCase, folder: Path, *, is_tuned: bool) -> Work:
    """Call MONAI's `ZarrAvgMerger` likewise, to disk; with its defaults, or tuned.

    Tuned, nothing is compressed, a patch lies in whole chunks, of which it touches two on each axis, and no
    lock is taken. The stores of sums and counts are named, as two temporary ones of version 1.6.1 are never
    removed; they count as disk used.
    """
    merger_of = load_library("monai.inferers.merger").ZarrAvgMerger
    batches, torch = _torch_batches(case), load_library("torch")
    options: dict[str, Any] = {}
    if is_tuned:
        plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
        options = dict.fromkeys(("codecs", "value_codecs", "count_codecs"), plain)
        options["chunks"] = (1, case.shape[-1], *(length // 2 for length in case.patch))
        options["thread_locking"] = False

    def work() -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, not ours
            merger = merger_of(
                merged_shape=(1, case.shape[-1], *case.shape[:-1]),
                store=str(folder / "merged.zarr"),
                value_store=str(folder / "values.zarr"),
                count_store=str(folder / "counts.zarr"),
                **options,
            )
            _aggregate(torch, merger, batches)
            return Outcome([merger.finalize()])

    return work


def torchio(case: StitchCase, _folder: Path, *, blend: str = "average") -> Work:
    """Hand batches to torchio's `GridAggregator`; a 2-d map is a volume with a last axis of one."""
    library, batches, torch = load_library("torchio"), _torch_batches(case), load_library("torch")
    flat = (1,) * (3 - len(case.patch))
    shape, patch = (*case.shape[:-1], *flat), (*case.patch, *flat)
    volume = torch.zeros((1, *shape), dtype=torch.uint8)
    sampler = library.GridSampler(
        library.Subject(image=library.LabelMap(tensor=volume)),
        patch,
        (*(length // 2 for length in case.patch), *(0 for _ in flat)),
    )
    corners = np.hstack([case.starts, np.zeros((len(case.starts), len(flat)), np.int64)])
    locations = torch.from_numpy(np.hstack([corners, corners + np.array(patch)]))
    if not np.array_equal(locations.numpy(), sampler.locations):
        raise RuntimeError("torchio would take other patches")
    inputs = [
        (patches.reshape(len(patches), case.shape[-1], *patch), locations[batch.rows])
        for (patches, _), batch in zip(batches, case.batches, strict=True)
    ]

    def work() -> Outcome:
        aggregator = library.GridAggregator(sampler, overlap_mode=blend)
        for patches, where in inputs:
            aggregator.add_batch(patches, where)
        output = aggregator.get_output_tensor().numpy()
        return Outcome([np.moveaxis(output.reshape(-1, *case.shape[:-1]), 0, -1)])

    return work


def tiler(case: StitchCase, _folder: Path, *, blend: str = "average") -> Work:
    """Hand batches to tiler's `Merger`, which counts no visits here, as only who asks for them needs them."""
    library = load_library("tiler")
    tiles = library.Tiler(case.shape, (*case.patch, case.shape[-1]), 0.5, len(case.shape) - 1)
    if len(tiles) != len(case.locs):
        raise RuntimeError("tiler would take other patches")
    size = len(case.batches[0].locs)

    def work() -> Outcome:
        merger = library.Merger(tiles, "hann" if blend == "hann" else None, save_visits=False)
        for number, batch in enumerate(case.batches):
            merger.add_batch(number, size, batch.heads[0])
        return Outcome([merger.merge()])

    return work


def _aggregate(torch: Any, merger: Any, batches: list[tuple[Any, list[list[int]]]]) -> None:
    for patches, starts in batches:
        for patch, start in zip(torch.chunk(patches, len(starts)), starts, strict=True):
            merger.aggregate(patch, start)


def _torch_batches(case: StitchCase) -> list[tuple[Any, list[list[int]]]]:
    """Return batches as tensors, channels first, and where their patches start; torch takes all cores."""
    torch = load_library("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    torch.ones(2**22).add_(1)  # its threads are there when the clock starts
    pool = torch.from_numpy(np.ascontiguousarray(np.moveaxis(case.pool, -1, 1)))
    return list(zip(case.batches_of(pool), _starts(case), strict=True))


def _starts(case: StitchCase) -> Iterator[list[list[int]]]:
    for batch in case.batches:
        yield case.starts[batch.rows].tolist()

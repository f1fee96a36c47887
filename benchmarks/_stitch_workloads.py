"""The workloads that stitch patches into a map: who takes part, what is asked, and the targets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from benchmarks._measure import Run, calibrated
from benchmarks._questions import AgainstFastest, Question, Workload
from benchmarks._stitch_cases import StitchSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_OURS: Final = "accumulator"
_WHOLE: Final = "accumulator, a result in RAM"
_LIMIT: Final = "memory limit"
_HAND: Final = "NumPy by hand"
_TIMES: Final = 3  # how many times as long as this library the fastest peer shall take
_BOUND: Final = "NumPy adds, looks for large values and divides in a pass each (decision 012)"
_COPIED: Final = "the copy of 25 MB takes 4 ms, 11 % of the model (decision 027)"
_WRITTEN: Final = "threads that write take some of the model's core (decision 027)"
_SMALL: Final = "it looks for nothing: no locations, repeats, gaps or large values (decision 012)"
_WHERE: Final = (
    "Patches overlap by half on each axis and come in raster order, in batches of 16, from a pool of 0.8 GB "
    "that is used round and round; the result in RAM is another way in, and has all of its patches in RAM "
    "before the clock starts. Peers have channels where they want them, all cores, and their imports and "
    "layouts done before the clock starts."
)


def stitch_2d(*, is_smoke: bool = False) -> Workload:
    spec = _flat(is_smoke=is_smoke)
    return _in_ram(
        "stitch_2d",
        f"{_text(spec)}, their mean where they overlap, in RAM. {_WHERE} The memory limit reads every patch "
        "once and writes a fresh map once, on all cores, and stitches nothing.",
        spec,
        {
            "MONAI AvgMerger": Run("monai", spec),
            "torchio GridAggregator": Run("torchio", spec),
            "tiler": Run("tiler", spec),
        },
    )


def stitch_3d(*, is_smoke: bool = False) -> Workload:
    spec = StitchSpec((24, 24, 36), (12, 12, 12)) if is_smoke else StitchSpec((480, 480, 480), (96, 96, 96))
    return _in_ram(
        "stitch_3d",
        f"{_text(spec)}, their mean where they overlap, in RAM; otherwise as `stitch_2d`.",
        spec,
        {
            "MONAI AvgMerger": Run("monai", spec),
            "torchio GridAggregator": Run("torchio", spec),
            "tiler": Run("tiler", spec),
        },
    )


def stitch_hann(*, is_smoke: bool = False) -> Workload:
    spec = _flat(is_smoke=is_smoke)
    return _in_ram(
        "stitch_hann",
        f"{_text(spec)}, weighted with Hann's window, in RAM; otherwise as `stitch_2d`. tiler's window is "
        "zero at both ends, the others' is not. MONAI's mergers have no weights.",
        spec,
        {
            "torchio GridAggregator": Run("torchio", spec, {"blend": "hann"}),
            "tiler": Run("tiler", spec, {"blend": "hann"}),
        },
        blend="hann",
    )


def stitch_small(*, is_smoke: bool = False) -> Workload:
    spec = StitchSpec((64, 96), (16, 16)) if is_smoke else StitchSpec((8_224, 8_224), (64, 64))
    return _in_ram(
        "stitch_small",
        f"{_text(spec)}, their mean where they overlap, in RAM; otherwise as `stitch_2d`.",
        spec,
        {
            "MONAI AvgMerger": Run("monai", spec),
            "torchio GridAggregator": Run("torchio", spec),
            "tiler": Run("tiler", spec),
        },
    )


def stitch_disk(*, is_smoke: bool = False) -> Workload:
    spec = StitchSpec((64, 96), (32, 32), 3) if is_smoke else StitchSpec((4_096, 4_096), (256, 256), 3)
    monai, tuned = "MONAI ZarrAvgMerger", "MONAI ZarrAvgMerger, tuned"
    mapped = f"{_HAND}, np.memmap"
    entries = {
        _OURS: _on_disk("stitcher", spec, place="zarr"),
        monai: _on_disk("monai_zarr", spec, is_tuned=False),
        tuned: _on_disk("monai_zarr", spec, is_tuned=True),
        mapped: _on_disk("numpy_canvas", spec, place="memmap"),
    }
    return Workload(
        "stitch_disk",
        f"{_text(spec)}, on disk; `os.sync` at the end is timed too. MONAI's merger runs as it comes, with "
        "zarr's chunks and compression, and tuned: no compression, chunks of half a patch, no lock. The "
        "canvas by hand is a mapped file, its counts are in RAM.",
        entries,
        [
            Question(
                f"time: faster {monai} / {_OURS}",
                (monai, tuned, "seconds"),
                (_OURS, "seconds"),
                at_least=_TIMES,
            ),
            Question(f"time: {mapped} / {_OURS}", (mapped, "seconds"), (_OURS, "seconds"), at_least=1),
            AgainstFastest(
                f"peak memory: {_OURS} / faster {monai}",
                (_OURS, "peak_nbytes"),
                (monai, tuned, "peak_nbytes"),
            ),
            Question("peak memory", (_OURS, "peak_nbytes"), at_most=512e6),
            Question("disk used / map", (_OURS, "disk_nbytes"), (_OURS, "output_nbytes"), at_most=1.05),
        ],
        seldom={monai: 1, tuned: 1},
    )


def stitch_container(*, is_smoke: bool = False) -> Workload:
    limit, batch = 2**30, 16 * 512 * 512 * 3 * 4
    size = 1_000 if is_smoke else 40_000
    spec = StitchSpec((size, size), (512, 512), 3, pool_nbytes=batch)
    name = f"{_OURS}, in a group of {limit // 2**20:,} MiB"
    return Workload(
        "stitch_container",
        f"{_text(spec)}, in a memory cgroup of {limit // 2**20:,} MiB, which counts the page cache too; on "
        "disk and synced. One batch of 16 is used again and again. The last patches on each axis overlap by "
        "more than half. As in `container`, a limit that is met is no harm; a kill is.",
        {name: Run("stitcher", spec, {"place": "zarr"}, is_synced=True, memory_limit=limit)},
        [
            Question("finished", (name, "finished"), at_least=1),
            Question("killed by the kernel", (name, "oom_kills"), at_most=0),
            Question("times the limit was met", (name, "limit_met")),
            Question("peak of the group, page cache and all", (name, "group_peak_nbytes")),
            Question("peak memory", (name, "peak_nbytes"), at_most=limit),
            Question("time", (name, "seconds")),
            Question("the map, gigabytes a second", (name, "output_gb_s")),
        ],
        seldom={name: 1},
    )


def stitch_model(*, is_smoke: bool = False) -> Workload:
    seconds = 0.002 if is_smoke else 0.034
    # Once for all, so that every loop has the same to do.
    amount = 10 if is_smoke else int(calibrated(seconds))
    shape, patch = ((80, 112), (32, 32)) if is_smoke else ((8_192, 8_192), (512, 512))
    spec = StitchSpec(shape, patch, 3, batch=8, pool_nbytes=400_000_000)
    alone = "model alone"
    sinks = {
        f"model + {_OURS}": {"place": "RAM"},
        f"model + {_OURS}, copy=False": {"place": "RAM", "copy": False},
        f"model + {_OURS} on disk": {"place": "zarr"},
        f"model + {_OURS} on disk, copy=False": {"place": "zarr", "copy": False},
    }
    entries = {alone: Run("stitch_model", spec, {"amount": amount, "place": None})} | {
        name: Run("stitch_model", spec, {"amount": amount} | options) for name, options in sinks.items()
    }
    return Workload(
        "stitch_model",
        f"{_text(spec)}, weighted with Hann's window, in batches of 8. Before each batch a model keeps "
        f"one core busy for about {1000 * seconds:g} ms, with the same matrix products on one thread. "
        "After 20 batches it goes on alone for a while, which a batch with its push is held "
        "against.",
        entries,
        [
            Question(f"time of the loop: {alone} / alone", (alone, "of_alone")),
            *(
                Question(
                    f"time of the loop: {name} / alone",
                    (name, "of_alone"),
                    at_most=1.10 if options.get("copy", True) else 1.05,
                    reason=_COPIED if options.get("copy", True) else _WRITTEN,
                )
                for name, options in sinks.items()
            ),
            *(Question(f"longest push, {name}", (name, "longest_push_s"), at_most=0.02) for name in sinks),
            *(Question(f"after the loop, {name}", (name, "finalize_s")) for name in sinks),
            *(Question(f"peak memory, {name}", (name, "peak_nbytes")) for name in sinks),
        ],
    )


def _in_ram(
    name: str, text: str, spec: StitchSpec, libraries: Mapping[str, Run], blend: str = "average"
) -> Workload:
    """Return a workload in RAM: this library in both ways, its peers, and what memory allows."""
    peers = dict(libraries) | {_HAND: Run("numpy_canvas", spec, {"blend": blend})}
    entries = (
        {
            _OURS: Run("stitcher", spec, {"blend": blend}),
            _WHOLE: Run("stitch_result", spec, {"blend": blend}),
        }
        | peers
        | {_LIMIT: Run("memory_limit", spec)}
    )
    return Workload(
        name,
        text,
        {entry: replace(run, spare=1) for entry, run in entries.items()},
        [
            *(
                Question(
                    f"time: fastest peer / {ours}",
                    (*peers, "seconds"),
                    (ours, "seconds"),
                    at_least=_TIMES,
                    reason=_BOUND,
                )
                for ours in (_OURS, _WHOLE)
            ),
            *(
                Question(
                    f"time: {peer} / {_OURS}",
                    (peer, "seconds"),
                    (_OURS, "seconds"),
                    at_least=1,
                    reason=_SMALL if peer == _HAND else _BOUND,
                )
                for peer in peers
            ),
            Question(f"time: {_LIMIT} / {_OURS}", (_LIMIT, "seconds"), (_OURS, "seconds")),
            AgainstFastest(
                f"peak memory: {_OURS} / fastest peer",
                (_OURS, "peak_nbytes"),
                (*peers, "peak_nbytes"),
                at_most=1,
            ),
            *(
                Question(
                    f"peak memory / (map + one batch), {ours}",
                    (ours, "peak_nbytes"),
                    (ours, "least_nbytes"),
                    at_most=1.05,
                )
                for ours in (_OURS, _WHOLE)
            ),
        ],
    )


def _on_disk(contestant: str, spec: StitchSpec, **options: Any) -> Run:
    return Run(contestant, spec, options, is_synced=True, spare=1)


def _flat(*, is_smoke: bool) -> StitchSpec:
    return StitchSpec((80, 112), (32, 32), 3) if is_smoke else StitchSpec((6_016, 6_144), (256, 256), 3)


def _text(spec: StitchSpec) -> str:
    """Describe patches and map: how many, how large."""
    n, size, area = 1, 4 * spec.channels, 4 * spec.channels
    for length, patch in zip(spec.shape, spec.patch, strict=True):
        n *= -(-(length - patch) // (patch // 2)) + 1
        size, area = size * patch, area * length
    patch_text = " x ".join(map(str, (*spec.patch, spec.channels)))
    map_text = " x ".join(f"{length:,}" for length in (*spec.shape, spec.channels))
    return (
        f"{n:,} patches of {patch_text} float32, {n * size / 1e9:.3g} GB, into a map of {map_text}, "
        f"{area / 1e9:.3g} GB"
    )

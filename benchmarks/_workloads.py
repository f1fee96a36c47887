"""The workloads that are not about the disk, and the names of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks._cases import CaseSpec
from benchmarks._disk_workloads import (
    codecs,
    container,
    disk,
    durable,
    leaving_ram,
    model,
    orders,
    ranks,
    shuffled,
    sparse,
)
from benchmarks._measure import Run
from benchmarks._questions import Exponent, Question, Workload, never_behind
from benchmarks._stitch_workloads import (
    stitch_2d,
    stitch_3d,
    stitch_container,
    stitch_disk,
    stitch_hann,
    stitch_model,
    stitch_small,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LISTS = "Hugging Face's way"
_UNCHECKED = (
    "it writes where it is told to: nothing is looked up, checked or recorded, and predictions have to come "
    "in order"
)
_REFERENCES = (
    "Hugging Face's way keeps the batches themselves until the end. Here they come from the pool and take "
    "nothing; a model's take as much as the output once more."
)


def growth(*, is_smoke: bool = False) -> Workload:
    sizes = (100, 1_000) if is_smoke else (1_000, 10_000, 100_000, 1_000_000)
    cases = {n: CaseSpec(n, "small") for n in sizes}
    ours = {
        f"{place}, N = {n:,}": Run("accumulator", case, {"place": place})
        for n, case in cases.items()
        for place in ("RAM", "zarr")
    }
    at, last = sizes[-2:]
    peers = {f"tiatoolbox, N = {n:,}": Run("tiatoolbox", cases[n], {"place": "RAM"}) for n in sizes[:-1]} | {
        f"{_LISTS}, N = {at:,}": Run("lists", cases[at]),
        f"np.memmap, N = {at:,}": Run("memmap", cases[at]),
        f"zarr by hand, N = {at:,}": Run("zarr_by_hand", cases[at]),
    }
    toolbox = f"tiatoolbox, N = {at:,}"
    fitted = sizes[-3:]
    return Workload(
        "growth",
        "Three heads of (4, 4, 1) float32, batches of 32 in order: what time and a push cost as N grows. "
        "Nothing is synced.",
        ours | peers,
        [
            *(
                Exponent(
                    f"exponent of time, {place}, N = {fitted[0]:,} to {last:,}",
                    (*(f"{place}, N = {n:,}" for n in fitted), "seconds"),
                    at_most=1.10,
                    sizes=fitted,
                )
                for place in ("RAM", "zarr")
            ),
            *(
                Question(f"a push, {place}, N = {last:,}", (f"{place}, N = {last:,}", "push_us"), at_most=100)
                for place in ("RAM", "zarr")
            ),
            Question(
                f"time: {toolbox} / RAM", (toolbox, "seconds"), (f"RAM, N = {at:,}", "seconds"), at_least=500
            ),
            *never_behind(f"RAM, N = {at:,}", [f"{_LISTS}, N = {at:,}"], _UNCHECKED),
            *never_behind(
                f"zarr, N = {at:,}", [f"np.memmap, N = {at:,}", f"zarr by hand, N = {at:,}"], _UNCHECKED
            ),
        ],
        seldom={toolbox: 1},
    )


def ram(*, is_smoke: bool = False) -> Workload:
    return _ram("ram", 32 if is_smoke else 800, {"tiatoolbox": 3}, repeats=1 if is_smoke else 5)


def ram_4_gb(*, is_smoke: bool = False) -> Workload:
    return _ram("ram_4_gb", 32 if is_smoke else 3_200, {})


def _ram(name: str, n_locs: int, seldom: Mapping[str, int], repeats: int = 1) -> Workload:
    case = CaseSpec(n_locs, "large")
    ours, by_batch, at_once = "accumulator", "NumPy, batch by batch", "NumPy, one copyto a head"
    entries = {
        ours: Run("accumulator", case, {"place": "RAM"}),
        by_batch: Run("numpy_slices", case),
        at_once: Run("numpy_copyto", case),
        _LISTS: Run("lists", case),
    } | {toolbox: Run("tiatoolbox", case, {"place": "RAM"}) for toolbox in seldom}
    return Workload(
        name,
        f"{n_locs:,} rows of three heads of (164, 164, 4) float32, {n_locs * 1291008 / 1e9:.3g} GB, batches "
        f"of 32 in order, in RAM. {_REFERENCES}",
        entries,
        [
            Question(f"time: {by_batch} / {ours}", (by_batch, "seconds"), (ours, "seconds"), at_least=0.95),
            Question(
                "peak memory / (output + one batch)",
                (ours, "peak_nbytes"),
                (ours, "least_nbytes"),
                at_most=1.05,
            ),
            *never_behind(ours, [name for name in entries if name not in {ours, by_batch}]),
        ],
        repeats=repeats,
        seldom=seldom,
    )


def index(*, is_smoke: bool = False) -> Workload:
    n_locs = 1_000 if is_smoke else 1_000_000
    raster = CaseSpec(n_locs, "none")
    mixed = CaseSpec(n_locs, "none", is_list_shuffled=True)
    matches = {"next rows": "in order", "behind a gap": "every other batch", "random rows": "shuffled rows"}
    targets = {"build, raster list": 60, "build, shuffled list": 250}
    entries = {
        "build, raster list": Run("index_build", raster),
        "build, shuffled list": Run("index_build", mixed),
        "build a dict of tuples": Run("dict_build", raster),
    } | {
        f"match, {text}": Run("index_match", CaseSpec(n_locs, "none", order))
        for text, order in matches.items()
    }
    return Workload(
        "index",
        f"The lookup of N = {n_locs:,} locations, and matching batches of 32 with it.",
        entries,
        [
            Question(
                name,
                (name, "match_us" if name.startswith("match") else "location_ns"),
                at_most=targets.get(name),
            )
            for name in entries
        ],
        repeats=1 if is_smoke else 2,
    )


def same_bytes(*, is_smoke: bool = False) -> Workload:
    name = "same bytes"
    return Workload(
        "same_bytes",
        "RAM and zarr, in order and shuffled, in batches of 32, one by one and all at once: the SHA-256 of "
        "every head is that of the rows put in place by hand.",
        {name: Run("same_bytes", CaseSpec(100 if is_smoke else 1_000, "small"))},
        [Question("same SHA-256 in all ways", (name, "same"), at_least=1)],
    )


WORKLOADS: Mapping[str, Callable[..., Workload]] = {
    each.__name__: each
    for each in (
        disk,
        durable,
        orders,
        ranks,
        shuffled,
        container,
        model,
        leaving_ram,
        codecs,
        sparse,
        ram,
        ram_4_gb,
        growth,
        index,
        same_bytes,
        stitch_2d,
        stitch_3d,
        stitch_hann,
        stitch_small,
        stitch_disk,
        stitch_container,
        stitch_model,
    )
}

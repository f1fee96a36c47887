"""The workloads: who takes part with which case, what is asked, and the targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks._cases import CaseSpec
from benchmarks._measure import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Term: TypeAlias = tuple[str, str]
"""An entry's name and a metric."""

_CHUNK_NBYTES = 16 * 2**20  # what the library's chunks hold


@dataclass(frozen=True)
class Question:
    """A number asked of each round: a metric, or the ratio of two."""

    text: str
    top: Term
    bottom: Term | None = None
    at_most: float | None = None
    at_least: float | None = None

    def value(self, rounds: Mapping[str, Mapping[str, float]]) -> float:
        """Return the answer of one round, given every entry's metrics."""
        top = rounds[self.top[0]][self.top[1]]
        return top if self.bottom is None else top / rounds[self.bottom[0]][self.bottom[1]]

    def is_met(self, value: float) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is not None:
            return value <= self.at_most
        return None if self.at_least is None else value >= self.at_least


@dataclass(frozen=True)
class Workload:
    """Entries that run in turn, and what is asked of them."""

    name: str
    text: str
    entries: Mapping[str, Run]
    questions: Sequence[Question]
    repeats: int = 1  # how many times as many rounds as others, where runs are short and vary much


def _ours(place: str, case: CaseSpec, **options: Any) -> Run:
    return Run("accumulator", case, {"place": place} | options)


def growth(*, is_smoke: bool = False) -> Workload:
    sizes = (100, 1_000) if is_smoke else (1_000, 10_000, 100_000, 1_000_000)
    before, last = sizes[-2:]
    entries = {
        f"{place}, N = {n:,}": _ours(place, CaseSpec(n, "small")) for n in sizes for place in ("RAM", "zarr")
    }
    at, last_at = f"N = {before:,}", f"N = {last:,}"
    return Workload(
        "growth",
        "Three heads of (4, 4, 1) float32, batches of 32 in order: what a push costs as N grows.",
        entries,
        [
            Question(f"whole run in RAM, {at}", (f"RAM, {at}", "seconds"), at_most=0.5),
            *(
                Question(
                    f"time of a push, {place}: {last_at} / {at}",
                    (f"{place}, {last_at}", "push_us"),
                    (f"{place}, {at}", "push_us"),
                    at_most=1.5,
                )
                for place in ("RAM", "zarr")
            ),
        ],
    )


def ram(*, is_smoke: bool = False) -> Workload:
    n_locs = 64 if is_smoke else 1_600
    case = CaseSpec(n_locs, "large")
    ours, numpy = ("accumulator", "seconds"), ("NumPy, batch by batch", "seconds")
    return Workload(
        "ram",
        f"{n_locs:,} rows of 672 kB, batches of 32 in order: heads of (164, 164, 4) float32, (164, 164, 2) "
        "float32 and (164, 164, 1) uint8.",
        {
            "accumulator": _ours("RAM", case),
            "NumPy, batch by batch": Run("numpy_slices", case),
            "NumPy, one copyto a head": Run("numpy_copyto", case),
        },
        [
            Question("speed: NumPy batch by batch / accumulator, time", numpy, ours, at_least=0.85),
            Question(
                "speed: NumPy copyto / accumulator, time", ("NumPy, one copyto a head", "seconds"), ours
            ),
            Question(
                "peak memory / output", (ours[0], "peak_nbytes"), (ours[0], "output_nbytes"), at_most=1.10
            ),
        ],
        repeats=1 if is_smoke else 5,
    )


def sparse(*, is_smoke: bool = False) -> Workload:
    n_locs = 2_000 if is_smoke else 100_000
    orders = ("every thousandth", "random thousandth")
    return Workload(
        "sparse",
        f"{n_locs:,} locations of (256, 256, 8) float32, {n_locs * 2**21 / 1e9:.0f} GB if dense, of which "
        "one in a thousand comes, in batches of 1 to 4; zarr.",
        {order: _ours("zarr", CaseSpec(n_locs, "wide", order, (1, 2, 3, 4))) for order in orders},
        [
            question
            for order in orders
            for question in (
                Question(f"peak memory, {order}", (order, "peak_nbytes"), at_most=2e9),
                Question(
                    f"disk used / pushed, {order}",
                    (order, "disk_nbytes"),
                    (order, "pushed_nbytes"),
                    at_most=2.0,
                ),
            )
        ],
    )


def disk(*, is_smoke: bool = False) -> Workload:
    n_locs = 64 if is_smoke else 1_600
    case = CaseSpec(n_locs, "large")
    ours, raw = "accumulator", "raw write"
    entries = {
        ours: _ours("zarr", case),
        raw: Run("raw_write", case),
        f"{ours}, sync": _ours("zarr", case, sync=True),
        f"{raw}, sync": Run("raw_write", case, {"sync": True}),
        "zarr by hand, a chunk a batch": Run("zarr_by_hand", case),
        "zarr by hand, accumulator's chunks": Run("zarr_by_hand", case, {"chunk_nbytes": _CHUNK_NBYTES}),
        f"{ours}, shuffled batches": _ours("zarr", CaseSpec(n_locs, "large", "shuffled batches")),
        f"{ours}, shuffled rows": _ours("zarr", CaseSpec(n_locs, "large", "shuffled rows")),
    }
    pairs = [
        (ours, raw),
        (f"{ours}, sync", f"{raw}, sync"),
        (ours, "zarr by hand, a chunk a batch"),
        (ours, "zarr by hand, accumulator's chunks"),
        (f"{ours}, shuffled batches", ours),
        (f"{ours}, shuffled rows", ours),
    ]
    return Workload(
        "disk",
        "The heads of `ram`, on disk, without compression. Nothing is synced but where it says so: there "
        "`os.sync` at the end is timed too.",
        entries,
        [Question(f"time: {top} / {bottom}", (top, "seconds"), (bottom, "seconds")) for top, bottom in pairs],
    )


def index(*, is_smoke: bool = False) -> Workload:
    n_locs = 1_000 if is_smoke else 1_000_000
    raster = CaseSpec(n_locs, "none")
    mixed = CaseSpec(n_locs, "none", is_list_shuffled=True)
    matches = {"next rows": "in order", "behind a gap": "every other batch", "random rows": "shuffled rows"}
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
            Question(f"{name}", (name, "match_us" if name.startswith("match") else "location_ns"))
            for name in entries
        ],
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
    each.__name__: each for each in (growth, ram, sparse, disk, index, same_bytes)
}

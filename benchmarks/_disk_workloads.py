"""The workloads whose result lies on disk: who takes part with which case, what is asked, and the targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks._cases import CaseSpec
from benchmarks._measure import Run, calibrated
from benchmarks._questions import Exponent, Question, Workload, never_behind

_LARGE = "three heads of (164, 164, 4) float32"
_ROW_NBYTES = 1_291_008  # of those
_OURS = "accumulator"
_PEAK = 512e6
_MOVES = "the first push makes the zarr arrays, and then waits for the disk like every other"
_ASKS = "memory is asked about every sixth push of this size, to cost 20 us a push on average (decision 005)"
_SMALL = 32  # rows with --smoke


def disk(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 3_200
    raw, direct = "raw write", "raw write, O_DIRECT"
    slow = ("zarr by hand, its compression", "zarr by hand, a chunk a row", "tiatoolbox")
    peers = {
        "zarr by hand, a chunk a batch": _run("zarr_by_hand", n_locs),
        "zarr by hand, its compression": _run("zarr_by_hand", n_locs, compressed=True),
        "zarr by hand, a chunk a row": _run("zarr_by_hand", n_locs, compressed=True, chunk_rows=1),
        "np.memmap": _run("memmap", n_locs),
        "tensorstore": _run("tensorstore", n_locs),
        "h5py, contiguous": _run("hdf5", n_locs),
        "tiatoolbox": _run("tiatoolbox", n_locs, place="zarr"),
    }
    return Workload(
        "disk",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}, batches of 32 in order, on disk; `os.sync` at the end "
        "is timed too. Nobody compresses but tiatoolbox and, where it says so, zarr by hand: both by zarr's "
        "default. zarr's automatic chunks are left out: they take many times as long as any of these.",
        {_OURS: _run("accumulator", n_locs, place="zarr")}
        | {raw: _run("raw_write", n_locs), direct: _run("direct_write", n_locs)}
        | peers,
        [
            Question(
                f"time: better raw write / {_OURS}",
                (raw, direct, "seconds"),
                (_OURS, "seconds"),
                at_least=0.85,
            ),
            Question("CPU seconds per GB", (_OURS, "gb_cpu_seconds"), at_most=0.5),
            Question("peak memory", (_OURS, "peak_nbytes"), at_most=_PEAK),
            *never_behind(_OURS, list(peers)),
        ],
        seldom=dict.fromkeys(slow, 1),
    )


def durable(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 3_200
    kept, eager, plain = "kept in a store", "kept, a checkpoint a second", "temporary"
    sizes = {"small": 1_000 if is_smoke else 1_000_000, "kilobyte": 1_000 if is_smoke else 1_000_000}
    rows = {"small": "three heads of (4, 4, 1) float32", "kilobyte": "one head of 1,024 bytes"}
    resumed = {text: f"resume, N = {sizes[heads]:,}, {text}" for heads, text in rows.items()}
    return Workload(
        "durable",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}, batches of 32 in order, on disk; `os.sync` at the end "
        "is timed too. Kept in a store every row is recorded behind checksums in the end, with the default "
        "interval between checkpoints (30 s, which is longer than the run) and with one of a second. A "
        "resumed run reads and checks every byte before it tells what is missing.",
        {
            plain: _run("accumulator", n_locs, place="zarr"),
            kept: _run("accumulator", n_locs, place="store"),
            eager: _run("accumulator", n_locs, place="store", checkpoint_interval=1),
            "raw write": _run("raw_write", n_locs),
            "raw write, O_DIRECT": _run("direct_write", n_locs),
        }
        | {
            resumed[text]: Run("resume", CaseSpec(sizes[heads], heads), spare=0)
            for heads, text in rows.items()
        },
        [
            Question(f"time: {plain} / {kept}", (plain, "seconds"), (kept, "seconds"), at_least=0.9),
            Question(f"time: {plain} / {eager}", (plain, "seconds"), (eager, "seconds"), at_least=0.9),
            Question(
                f"time: better raw write / {kept}",
                ("raw write", "raw write, O_DIRECT", "seconds"),
                (kept, "seconds"),
            ),
            Question(f"CPU seconds per GB, {plain}", (plain, "gb_cpu_seconds")),
            Question(f"CPU seconds per GB, {kept}", (kept, "gb_cpu_seconds")),
            Question(f"peak memory, {kept}", (kept, "peak_nbytes"), at_most=_PEAK),
            *(Question(name, (name, "resume_s"), at_most=2) for name in resumed.values()),
        ],
    )


def orders(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 1_600
    names = ("in order", "shuffled batches", "shuffled rows")
    return Workload(
        "orders",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}, batches of 32 in several orders, on disk and synced.",
        {name: _run("accumulator", n_locs, name, place="zarr") for name in names},
        [
            *(Question(f"peak memory, {name}", (name, "peak_nbytes"), at_most=_PEAK) for name in names),
            *(
                Question(f"time: {name} / {names[0]}", (name, "seconds"), (names[0], "seconds"))
                for name in names[1:]
            ),
        ],
    )


def shuffled(*, is_smoke: bool = False) -> Workload:
    sizes = (200, 500, 1_000) if is_smoke else (1_000_000, 2_500_000, 5_000_000)
    names = {n: f"shuffled, N = {n:,}" for n in sizes}
    last, ordered = names[sizes[-1]], f"in order, N = {sizes[-1]:,}"
    batches, kept = (100,) if is_smoke else (8_192,), {"place": "store"}
    return Workload(
        "shuffled",
        f"Small rows, a label of uint8 and 8 float32, in batches of {batches[0]:,} in random order or in "
        "order, kept in a store: every row is recorded in the end.",
        {
            name: Run("accumulator", CaseSpec(n, "tiny", "shuffled rows", batches), kept, spare=0)
            for n, name in names.items()
        }
        | {ordered: Run("accumulator", CaseSpec(sizes[-1], "tiny", "in order", batches), kept, spare=0)},
        [
            Exponent(
                f"exponent of time, N = {sizes[0]:,} to {sizes[-1]:,}",
                (*names.values(), "seconds"),
                at_most=1.1,
                sizes=sizes,
            ),
            *(
                Question(f"longest push, {name}", (name, "longest_push_s"), at_most=1)
                for name in names.values()
            ),
            Question(f"time: {last} / {ordered}", (last, "seconds"), (ordered, "seconds")),
        ],
    )


def container(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 6_400
    limit = 2**30
    name = f"{_OURS}, in a group of {limit // 2**20:,} MiB"
    case = CaseSpec(n_locs, "large")
    return Workload(
        "container",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}, in a memory cgroup of {limit // 2**20:,} MiB, which "
        "counts the page cache too; on disk and synced. A limit that is met makes the kernel write and drop "
        "pages of files, and is no harm; a kill is.",
        {name: Run("accumulator", case, {"place": "zarr"}, is_synced=True, memory_limit=limit)},
        [
            Question("finished", (name, "finished"), at_least=1),
            Question("killed by the kernel", (name, "oom_kills"), at_most=0),
            Question("times the limit was met", (name, "limit_met")),
            Question("peak of the group, page cache and all", (name, "group_peak_nbytes")),
        ],
        seldom={name: 1},
    )


def model(*, is_smoke: bool = False) -> Workload:
    n_locs, seconds = (_SMALL, 0.002) if is_smoke else (3_200, 0.05)
    # Once for all, so that every loop has the same to do.
    amount = 10 if is_smoke else int(calibrated(seconds))
    alone = "model alone"
    sinks = {
        alone: "nothing",
        f"model + {_OURS}": "accumulator",
        f"model + {_OURS}, copy=False": "accumulator, copy=False",
        "model + zarr by hand, a chunk a batch": "zarr",
        "model + np.memmap": "memmap",
    }
    entries = {name: _run("model", n_locs, amount=amount, sink=sink) for name, sink in sinks.items()}
    ours = f"model + {_OURS}", f"model + {_OURS}, copy=False"
    return Workload(
        "model",
        f"A model that keeps one core busy for about {1000 * seconds:g} ms a batch, always with the same "
        f"matrix products on one thread, before each of {n_locs // 32} batches of 32 rows of {_LARGE}; on "
        "disk. The loop is timed apart from what comes after it, which is in the whole run, synced.",
        entries,
        [
            *(
                Question(
                    f"time of the loop: {name} / alone",
                    (name, "loop_s"),
                    (alone, "loop_s"),
                    at_most=1.05 if name in ours else None,
                    reason="a push of 41 MB is one copy, and two cores copy that in 3 ms, 6 % of the model: "
                    "memory bounds it (decision 010)",
                )
                for name in entries
                if name != alone
            ),
            *(
                Question(
                    f"longest push, {name}",
                    (name, "longest_push_s"),
                    at_most=0.25 if name in ours else None,
                )
                for name in entries
                if name != alone
            ),
            *(Question(f"after the loop, {name}", (name, "finalize_s")) for name in entries if name != alone),
        ],
        seldom={name: 1 for name in entries if name not in {alone, *ours}},
    )


def leaving_ram(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 3_200
    case = CaseSpec(n_locs, "large", batch_sizes=(1,) if is_smoke else (32,))
    name = "RAM, then disk"
    return Workload(
        "leaving_ram",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}, batches of 32 in order. It starts in RAM; half-way "
        "the library is told that no memory is left (by a patched probe), and the result moves to disk while "
        "pushes go on; synced. There is no model between the pushes, which would give the disk time.",
        {
            # With --smoke row by row: the library needs some pushes to notice.
            name: replace(_run("leaving_ram", n_locs), case=case),
            "on disk from the start": _run("accumulator", n_locs, place="zarr"),
        },
        [
            Question(
                "longest push of 41 MB from then on", (name, "longest_push_s"), at_most=0.1, reason=_MOVES
            ),
            Question(
                "peak memory / what was held then",
                (name, "peak_nbytes"),
                (name, "trigger_nbytes"),
                at_most=1.05,
                reason=_ASKS,
            ),
            Question(
                "time / on disk from the start", (name, "seconds"), ("on disk from the start", "seconds")
            ),
        ],
    )


def codecs(*, is_smoke: bool = False) -> Workload:
    n_locs = _SMALL if is_smoke else 800
    case = CaseSpec(n_locs, "large", values="probabilities")
    texts = {"zstd": "zstd, level 0", "lz4": "Blosc lz4, bitshuffle"}
    entries = {
        f"{who}, {text}": Run(contestant, case, {"codec": codec}, is_synced=True, spare=1)
        for codec, text in texts.items()
        for who, contestant in ((_OURS, "accumulator_codec"), ("codec alone", "codec_alone"))
    }
    return Workload(
        "codecs",
        f"{n_locs:,} rows of {_LARGE}, {_gb(n_locs)}: smooth probabilities in half precision, compressed, on "
        "disk and synced. The codec alone encodes every head of every batch on as many threads as there are "
        "cores, and writes each to a file.",
        entries,
        [
            *(
                Question(
                    f"time: codec alone / {_OURS}, {text}",
                    (f"codec alone, {text}", "seconds"),
                    (f"{_OURS}, {text}", "seconds"),
                    at_least=0.85,
                    reason="every prediction is copied once before it is encoded, on the cores that encode, "
                    "and zarr's own way from array to file takes a part",
                )
                for text in texts.values()
            ),
            *(
                Question(
                    f"disk used / pushed, {_OURS}, {text}",
                    (f"{_OURS}, {text}", "disk_nbytes"),
                    (f"{_OURS}, {text}", "pushed_nbytes"),
                )
                for text in texts.values()
            ),
        ],
    )


def sparse(*, is_smoke: bool = False) -> Workload:
    n_locs = 1_000 if is_smoke else 100_000
    names = ("every thousandth", "random thousandth")
    return Workload(
        "sparse",
        f"{n_locs:,} locations of (256, 256, 8) float32, {n_locs * 2**21 / 1e9:.0f} GB if dense, of which "
        "one in a thousand comes, in batches of 1 to 4; on disk, not synced.",
        {
            name: Run("accumulator", CaseSpec(n_locs, "wide", name, (1, 2, 3, 4)), {"place": "zarr"})
            for name in names
        },
        [
            question
            for name in names
            for question in (
                Question(f"peak memory, {name}", (name, "peak_nbytes"), at_most=2e9),
                Question(
                    f"disk used / pushed, {name}",
                    (name, "disk_nbytes"),
                    (name, "pushed_nbytes"),
                    at_most=2.0,
                ),
            )
        ],
    )


def ranks(*, is_smoke: bool = False) -> Workload:
    n_locs, n_small, n_many = (_SMALL, 1_000, 1_000) if is_smoke else (1_600, 1_000_000, 10_000_000)
    n_medium, seconds = (_SMALL, 0.002) if is_smoke else (3_200, 0.04)
    amount = 10 if is_smoke else int(calibrated(seconds))
    alone, rank = "one process, kept", "rank 0 of 1"
    one, two = "one rank at work", "two ranks at work"
    shares, strided = "publish shares", "publish every second row"
    small, memory = "publish shares of small chunks", "memory of rank 0 of 8"
    medium = CaseSpec(n_medium, "medium")
    return Workload(
        "ranks",
        f"Several processes and one result. The loop of a rank against that of one process, {n_locs:,} rows "
        f"of {_LARGE}, batches of 32 in order, synced. One and two ranks, each on a core of its own, with a "
        f"model that takes {1000 * seconds:g} ms a batch, {n_medium:,} rows of (64, 64, 8) float32. What "
        f"publishing costs: {n_locs:,} rows in large chunks, and {n_small:,} small rows in chunks of 64. And "
        f"what a rank of 8 holds of N = {n_many:,}, right after it has recorded its share, beside mapped "
        "files, the rows that were in buffers, and the list of them that the loop has.",
        {
            alone: _run("accumulator", n_locs, place="store"),
            rank: _run("accumulator", n_locs, place="store", mode="a", rank=0, world_size=1),
            one: Run("ranks_at_work", medium, {"amount": amount, "world_size": 1}, spare=1),
            two: Run("ranks_at_work", medium, {"amount": amount, "world_size": 2}, spare=1),
            shares: Run("publishing", CaseSpec(n_locs, "large"), {"order": "shares"}, spare=1),
            strided: Run("publishing", CaseSpec(n_locs, "large"), {"order": "strided"}, spare=1),
            small: Run(
                "publishing",
                CaseSpec(n_small, "tiny", batch_sizes=(65_536,)),
                {"order": "shares", "chunks": 64},
                spare=0,
            ),
            memory: Run(
                "rank_memory", CaseSpec(n_many, "tiny", batch_sizes=(4_096,)), {"world_size": 8}, spare=0
            ),
        },
        [
            Question(f"time: {rank} / {alone}", (rank, "seconds"), (alone, "seconds"), at_most=1.05),
            Question(f"time of the loop: {one} / {two}", (one, "loop_s"), (two, "loop_s"), at_least=1.8),
            Question(shares, (shares, "seconds")),
            Question(
                f"{small} / (5 s a TB of chunks of 13.8 MB, 1 s for 1e6 rows)",
                (small, "of_allowed"),
                at_most=1,
            ),
            Question(strided, (strided, "published_gb_s"), at_least=0.3),
            Question("record of a part, for a row and head", (small, "record_nbytes"), at_most=10),
            Question(f"{memory}, for a row of its share", (memory, "row_nbytes"), at_most=70),
        ],
    )


def _run(contestant: str, n_locs: int, order: str = "in order", **options: Any) -> Run:
    return Run(contestant, CaseSpec(n_locs, "large", order), options, is_synced=True, spare=1)


def _gb(n_locs: int) -> str:
    return f"{n_locs * _ROW_NBYTES / 1e9:.3g} GB"

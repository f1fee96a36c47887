"""The loop of the demo: predict a batch, push it, and at the end say what was collected.

The loop is what a user's own would be; time in the network and time in the accumulator are kept apart.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import attrs
import numpy as np
from tqdm import tqdm

from accumulator import FullBatchAccumulator
from accumulator._demo.fetch import default_cache, fetch
from accumulator._demo.maps import stitch_maps
from accumulator._demo.network import load_network, predict
from accumulator._demo.outputs import claim, write_outputs
from accumulator._demo.picture import draw
from accumulator._demo.slide import read_slide, separate_stains, tissue_mask
from accumulator._demo.tiles import cut_tiles, pad_to_grid, tile_locations, tissue_share

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator._demo.maps import Maps
    from accumulator.typing import BatchOutput, RowArray

MIN_TISSUE: Final = 0.12
PICTURE: Final = "accumulator-demo.png"


@attrs.frozen(kw_only=True)
class Options:
    """What the command line says."""

    memory_threshold: float = 80
    compare: bool = False
    save_path: Path | None = None
    output: Path = Path("demo_output")
    cache: Path | None = None
    batch_size: int = 4

    @property
    def folder(self) -> Path | None:
        """Where rows, map and report go: nowhere if ``output`` names a PNG."""
        return None if self.output.suffix.lower() == ".png" else self.output

    @property
    def picture(self) -> Path:
        """Where the picture goes: ``output`` itself if it names a PNG, otherwise into that folder."""
        return self.output if self.folder is None else self.folder / PICTURE


@attrs.frozen
class Run:
    """What came out of one run of the loop, and how long it took."""

    result: FullBatch
    seconds_network: float
    seconds_accumulator: float

    @property
    def heads(self) -> dict[str, RowArray]:
        """The outputs: a dict, because named heads were pushed."""
        return cast("dict[str, RowArray]", self.result.outputs)

    @property
    def place(self) -> str:
        """What holds the result."""
        return "RAM" if self.result.path is None else "zarr"


def run_demo(options: Options) -> bool:
    """Run the demo: print its tables, draw its picture, and write rows, map and report into a folder.

    Returns
    -------
    bool
        False if a comparison failed.

    Raises
    ------
    ResultExistsError
        The folder has something that no demo wrote, of the same name as an output; a FileExistsError.
    FetchError
        Slide or network cannot be fetched; an OSError.
    OptionError
        ``memory_threshold`` is not a percentage; a ValueError.
    StorageError
        The disk refused; an OSError.
    """
    options.picture.parent.mkdir(parents=True, exist_ok=True)  # says now, not at the end, if it cannot be
    if options.folder is not None:
        claim(options.folder)
    files = fetch(options.cache or default_cache())
    rgb = read_slide(files["cmu_small_region.svs"])
    tissue = tissue_mask(rgb)
    locs = tile_locations(*tissue.shape)
    stains = pad_to_grid(separate_stains(rgb, tissue), locs)
    network = load_network(files["model_v1.onnx"])
    rows = np.flatnonzero(tissue_share(tissue, locs) >= MIN_TISSUE)
    size = options.batch_size
    batches = [locs[rows[first : first + size]] for first in range(0, len(rows), size)]
    print(f"{len(locs)} tiles of a slide of {rgb.shape[1]} x {rgb.shape[0]} px; {len(rows)} have tissue")

    def model(batch_locs: NDArray[np.int64]) -> BatchOutput:
        return predict(network, cut_tiles(stains, batch_locs))

    thresholds = (80, 0) if options.compare else (options.memory_threshold,)
    digests, places = [], []
    with tempfile.TemporaryDirectory(prefix="accumulator-demo-") as temporary:
        for threshold in thresholds:
            accumulator = FullBatchAccumulator(
                locs, save_path=options.save_path or temporary, memory_threshold=threshold
            )
            run = accumulate(accumulator, batches, model)
            with run.result:
                digests.append({name: sha256_of(head) for name, head in run.heads.items()})
                places.append(run.place)
                print(f"\nthrough {run.place}:\n{table(run, digests[-1])}")
                if threshold == thresholds[-1]:
                    places_of_maps = {"save_path": temporary, "memory_threshold": threshold}
                    with stitch_maps(run.result, tissue.shape, **places_of_maps) as maps:
                        print(f"\nstitched:\n{seam_table(maps)}\n")
                        draw(options.picture, rgb, run.result, maps)
                        _keep(options, run.result, maps)
    is_same = all(other == digests[0] for other in digests)
    if options.compare:
        print(f"same bytes in {' and '.join(places)}: {'yes' if is_same else 'NO'}")
    return is_same


def accumulate(
    accumulator: FullBatchAccumulator,
    batches: list[NDArray[np.int64]],
    model: Callable[[NDArray[np.int64]], BatchOutput],
) -> Run:
    """Run the model for each batch of locations, push what comes out, and finalize."""
    seconds_network = seconds_accumulator = 0.0
    n_tiles = sum(map(len, batches))
    with accumulator, tqdm(total=n_tiles, desc="predicting", unit="tile", disable=None) as progress:
        for batch_locs in batches:
            start = time.perf_counter()
            batch_output = model(batch_locs)
            predicted = time.perf_counter()
            accumulator.push(batch_output, batch_locs)
            seconds_network += predicted - start
            seconds_accumulator += time.perf_counter() - predicted
            progress.update(len(batch_locs))
        start = time.perf_counter()
        result = accumulator.finalize()
        seconds_accumulator += time.perf_counter() - start
    return Run(result, seconds_network, seconds_accumulator)


def sha256_of(head: RowArray) -> str:
    """Return the sha256 of all rows in canonical order, wherever they are held."""
    digest = hashlib.sha256()
    for row in range(head.shape[0]):
        digest.update(np.asarray(head[row]).tobytes())
    return digest.hexdigest()


def table(run: Run, digests: dict[str, str]) -> str:
    """Return what came out as aligned text."""
    written = run.result.written
    rows = {
        "locations": f"{len(written)}",
        "written": f"{written.sum()}",
        "missing": f"{(~written).sum()}",
        "bytes": f"{run.result.nbytes:,}",
        "held in": run.place,
        "seconds in the network": f"{run.seconds_network:.3f}",
        "seconds in the accumulator": f"{run.seconds_accumulator:.3f}",
    }
    rows |= {f"sha256 of {name}": digest for name, digest in digests.items()}
    return _aligned(rows)


def seam_table(maps: Maps) -> str:
    """Return how much the seams of both maps are to be seen, as aligned text."""
    rows = {
        f"seams of {maps.n_beside} tiles side by side": f"{maps.seams_beside:.1f}",
        f"seams of {maps.n_blended} tiles with 50 % overlap and Hann weights": f"{maps.seams_blended:.1f}",
    }
    explained = "mean gradient of the probabilities across the borders of tiles, divided by that elsewhere"
    return f"{_aligned(rows)}\n({explained}: 1 is no seam)"


def _keep(options: Options, result: FullBatch, maps: Maps) -> None:
    """Write what goes into the folder, if there is one, and say where everything is."""
    paths = {"picture": options.picture}
    if options.folder is not None:
        paths |= write_outputs(options.folder, result, maps.blended)
    print(_aligned({f"{label}:": str(path) for label, path in paths.items()}))


def _aligned(rows: dict[str, str]) -> str:
    column = max(map(len, rows))
    return "\n".join(f"{label:{column}}  {value}" for label, value in rows.items())

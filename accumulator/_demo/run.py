"""The loop of the demo, which is what a user's own would be, and what it says of the result."""

from __future__ import annotations

import hashlib
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from tqdm import tqdm

from accumulator import FullBatchAccumulator
from accumulator._demo.again import collect_again
from accumulator._demo.fetch import default_cache, fetch
from accumulator._demo.maps import heads_of, stitch_maps
from accumulator._demo.network import load_network, predict
from accumulator._demo.outputs import claim, write_outputs
from accumulator._demo.picture import draw
from accumulator._demo.slide import read_slide, separate_stains, tissue_mask
from accumulator._demo.tiles import cut_tiles, pad_to_grid, tile_locations
from accumulator._stores.files.temporary import TemporaryFolder, make_parents

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from accumulator import FullBatch
    from accumulator._demo.again import Again
    from accumulator._demo.maps import Maps
    from accumulator.typing import BatchOutput, RowArray

MIN_TISSUE: Final = 0.12
PICTURE: Final = "accumulator-demo.png"


def run_demo(  # noqa: PLR0913  the options of the command
    *,
    output: Path,
    memory_threshold: float,
    compare: bool,
    save_path: Path | None,
    cache: Path | None,
    batch_size: int,
    say: Callable[[str], None],
) -> bool:
    """Run the demo: say its tables, draw its picture, and write rows, map and report into a folder.

    Other processes collect the result once more. Returns False if bytes differ. Raises what its parts do,
    `AccumulatorError` or OSError.
    """
    folder = None if output.suffix.lower() == ".png" else output
    picture = output if folder is None else folder / PICTURE
    make_parents(picture.parent)  # says now, not at the end, if it cannot be
    if folder is not None:
        claim(folder)
    files = fetch(cache or default_cache())
    rgb = read_slide(files["cmu_small_region.svs"])
    tissue = tissue_mask(rgb)
    height, width = tissue.shape
    locs = tile_locations(height, width)
    stains = pad_to_grid(separate_stains(rgb, tissue), locs)
    network = load_network(files["model_v1.onnx"])
    tissue_locs = tile_locations(height, width, tissue, MIN_TISSUE)
    batches = [tissue_locs[first : first + batch_size] for first in range(0, len(tissue_locs), batch_size)]
    say(f"{len(locs)} tiles of a slide of {width} x {height} px; {len(tissue_locs)} have tissue")

    def model(batch_locs: NDArray[np.int64]) -> BatchOutput:
        return predict(network, cut_tiles(stains, batch_locs))

    thresholds = (80, 0) if compare else (memory_threshold,)
    digests, places = [], []
    with TemporaryFolder(tempfile.gettempdir()) as temporary:
        for threshold in thresholds:
            options: dict[str, Any] = {"save_path": save_path or temporary, "memory_threshold": threshold}
            result, facts = accumulate(FullBatchAccumulator(locs, **options), batches, model)
            with result:
                places.append(facts["held in"])
                digests.append(digests_of(result))
                facts |= {f"sha256 of {name}": digest for name, digest in digests[-1].items()}
                say(f"\nthrough {places[-1]}:\n{_aligned(facts)}")
                if threshold == thresholds[-1]:
                    with (
                        stitch_maps(result, tissue.shape, **options | {"save_path": temporary}) as maps,
                        TemporaryFolder(tempfile.gettempdir()) as shared,
                        collect_again(result, shared) as again,
                    ):
                        say(f"\nstitched:\n{_seams(maps)}\n")
                        others = digests_of(again.resumed), digests_of(again.published)
                        is_again = [other == digests[-1] for other in others]
                        say(f"collected again, by other processes:\n{_told(again, *is_again)}\n")
                        draw(picture, rgb, result, maps, again)
                        paths = {} if folder is None else write_outputs(folder, result, maps.blended)
                        paths = {"picture": picture, **paths}
                        say(_aligned({f"{label}:": path for label, path in paths.items()}))
    is_same = all(other == digests[0] for other in digests)
    if compare:
        say(f"same bytes in {' and '.join(places)}: {_yes(is_same)}")
    return is_same and all(is_again)


def accumulate(
    accumulator: FullBatchAccumulator,
    batches: list[NDArray[np.int64]],
    model: Callable[[NDArray[np.int64]], BatchOutput],
) -> tuple[FullBatch, dict[str, str]]:
    """Run the model for each batch of locations, push what comes out, and finalize; say what came of it."""
    network = accumulating = 0.0
    n_tiles = sum(map(len, batches))
    with accumulator, tqdm(total=n_tiles, desc="predicting", unit="tile", disable=None) as progress:
        for batch_locs in batches:
            start = time.perf_counter()
            batch_output = model(batch_locs)
            predicted = time.perf_counter()
            accumulator.push(batch_output, batch_locs)
            network += predicted - start
            accumulating += time.perf_counter() - predicted
            progress.update(len(batch_locs))
        start = time.perf_counter()
        result = accumulator.finalize()
        accumulating += time.perf_counter() - start
    return result, {
        "locations": f"{len(result.written)}",
        "written": f"{result.written.sum()}",
        "missing": f"{len(result.missing_locs)}",
        "bytes": f"{result.nbytes:,}",
        "held in": "RAM" if result.path is None else "zarr",
        "seconds in the network": f"{network:.3f}",
        "seconds in the accumulator": f"{accumulating:.3f}",
    }


def digests_of(result: FullBatch) -> dict[str, str]:
    """Return the sha256 of each head."""
    return {name: sha256_of(head) for name, head in heads_of(result).items()}


def sha256_of(head: RowArray) -> str:
    """Return the sha256 of all rows in canonical order, wherever they are held."""
    digest = hashlib.sha256()
    for row in range(head.shape[0]):
        digest.update(np.asarray(head[row]).tobytes())
    return digest.hexdigest()


def _told(again: Again, is_resumed: bool, is_published: bool) -> str:  # noqa: FBT001  two of a kind
    """Say who collected how many tiles, and whether the results are the one before."""
    first, second = (rows.sum() for rows in again.ranks)
    return _aligned(
        {
            "tiles recorded before kill -9": again.before.sum(),
            "tiles predicted after it": again.after.sum(),
            "same bytes after kill -9": _yes(is_resumed),
            "tiles of rank 0": first,
            "tiles of rank 1": second,
            "same bytes of two ranks, published": _yes(is_published),
        }
    )


def _yes(is_so: bool) -> str:  # noqa: FBT001  it says only this
    return "yes" if is_so else "NO"


def _seams(maps: Maps) -> str:
    beside, blended, middles = maps.seams
    seams = {
        f"seams of {maps.beside.n_stitched} tiles side by side": f"{beside:.1f}",
        f"seams of {maps.blended.n_stitched} tiles with 50 % overlap and Hann weights": f"{blended:.1f}",
        f"seams of the middles of {maps.middles.n_stitched} tiles, whose halo is cut off": f"{middles:.1f}",
    }
    explained = "mean gradient of the probabilities across the borders of tiles, divided by that elsewhere"
    return f"{_aligned(seams)}\n({explained}: 1 is no seam)"


def _aligned(facts: Mapping[str, object]) -> str:
    column = max(map(len, facts))
    return "\n".join(f"{label:{column}}  {value}" for label, value in facts.items())

"""Pages for users of other libraries: their Python blocks run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ENVIRONMENT, TIMEOUT

from accumulator import FullBatch

pytestmark = pytest.mark.slow  # what it takes is to import these libraries
DOCS = Path(__file__).parents[2] / "docs"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_")
PAGES = {  # and what each imports
    "from/lightning.md": ["lightning"],
    "from/remote-sensing.md": ["rasterio"],
    "from/zarr.md": [],
    "how-to/recipes-accelerate.md": ["accelerate"],
    "how-to/recipes-embeddings.md": ["anndata", "h5py"],
    "how-to/recipes-heads.md": [],
    "how-to/recipes-jax.md": ["jax"],
    "how-to/recipes-keras.md": ["keras", "jax"],
    "how-to/recipes-onnx.md": ["onnx", "onnxruntime"],
    "how-to/recipes-spatialdata.md": ["spatialdata"],
    "how-to/recipes-transformers.md": ["transformers"],
}


def script_of(page, *chosen):
    """Write the Python blocks of a page into one script, all or those chosen, and return its name."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = [blocks[number] for number in chosen] if chosen else blocks
    assert any("assert" in block for block in blocks)
    Path("page.py").write_text("\n".join(blocks))
    return "page.py"


def need(page):
    """Skip where a library is not installed."""
    for library in PAGES[page]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}: the session `frameworks` of .ci/noxfile.py has it")


def run(*command):
    """Run Python in a process of its own: these libraries warn, keep files open and start threads."""
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(LAUNCHERS)}
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert not re.search(r"accumulator/\S+:\d+: \w*Warning", ended.stderr), ended.stderr  # ours do not


def in_two_processes(script, n_processes):
    """Run a script in two processes that talk by gloo; they know of each other, as an expression tells."""
    with Path(script).open("a") as file:
        file.write(f"\nassert {n_processes} == 2\n")
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script)


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"how-to/recipes-transformers.md"}))  # which is below
def test_pages(page):
    """What they assert is that the result is the other library's own, or known."""
    need(page)
    run(script_of(page))


def test_accelerate_in_two_processes():
    """35 rows in batches of 4 are padded by a loader that is prepared: each is there once, and right."""
    need("how-to/recipes-accelerate.md")
    in_two_processes(script_of("how-to/recipes-accelerate.md"), "accelerator.num_processes")
    with FullBatch.load("run.zarr") as dealt, FullBatch.load("prepared.zarr") as prepared:
        assert dealt.written.all()
        assert prepared.written.all()
        first = dealt[0][0]  # patch i is i everywhere, and the network is linear
        step = dealt[0][1] - first
        assert abs(step).min() > 0
        wanted = first + np.arange(35, dtype="f4")[:, None, None, None] * step
        for batch in (dealt, prepared):
            np.testing.assert_allclose(batch[0][:], wanted, rtol=1e-4)


def test_transformers_in_two_processes():
    """42 rows in batches of 4, which the Trainer pads: what it gathers in one process."""
    page = "how-to/recipes-transformers.md"
    need(page)
    in_two_processes(script_of(page, 0, -1), "args.world_size")
    run(script_of(page))  # all of the page; its kept.zarr is what Transformers gathers
    with FullBatch.load("run.zarr") as two, FullBatch.load("kept.zarr") as one:
        assert two.written.all()
        np.testing.assert_allclose(two[0][:], one[0][:], rtol=1e-5, atol=1e-6)


CELLPOSE = """
from cellpose import transforms

ours = np.outer(taper, taper)
assert np.array_equal(ours, transforms._taper_mask(ly=size, lx=size))
tiles, ysub, xsub, Ly, Lx = transforms.make_tiles(slide, bsize=size, tile_overlap=0.1)[:5]
tiles = np.reshape(tiles, (-1, 3, size, size))
output = tiles + np.random.default_rng(0).random(tiles.shape).astype(np.float32)  # no two agree
locs = np.array([[x[0], y[0], x[1], y[1]] for y, x in zip(ysub, xsub)])
with Stitcher(locs, channels_first=True, blend=ours) as stitcher:
    stitcher.push(output, locs)
theirs = transforms.average_tiles(output, ysub, xsub, Ly, Lx)
np.testing.assert_allclose(np.moveaxis(stitcher.finalize()[0], -1, 0), theirs, rtol=1e-5, atol=2e-6)
"""


def test_cellpose_averages_its_tiles_alike():
    """The page's window is Cellpose's own, and so are the maps of the same tiles."""
    page = "how-to/recipes-heads.md"
    if find_spec("cellpose") is None:
        pytest.skip("needs cellpose: the session `frameworks` of .ci/noxfile.py has it")
    script = Path(script_of(page))
    with script.open("a") as file:
        file.write(CELLPOSE)
    run(str(script))

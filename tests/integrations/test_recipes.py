"""Pages for users of other libraries: their Python blocks run as a reader would run them, by the real libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.processes import ENVIRONMENT, TIMEOUT

pytestmark = pytest.mark.slow  # what it takes is to import these libraries
DOCS = Path(__file__).parents[2] / "docs"
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


def script_of(page):
    """Write the Python blocks of a page into one script, one after the other, and return its name."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    assert text.count("assert") > 0
    script = Path("page.py")
    script.write_text("\n".join(blocks))
    return str(script)


def run(*command):
    """Run Python in a process of its own: these libraries warn, keep files open and start threads."""
    ended = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert not re.search(r"accumulator/\S+:\d+: \w*Warning", ended.stderr), ended.stderr  # ours do not


def need(page):
    """Skip where a library is not installed."""
    for library in PAGES[page]:
        if find_spec(library) is None:
            pytest.skip(f"needs {library}: the session `frameworks` of .ci/noxfile.py has it")


@pytest.mark.parametrize("page", PAGES)
def test_pages(page):
    """What they assert is that the result is the other library's own."""
    need(page)
    run(script_of(page))

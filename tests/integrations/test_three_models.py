"""The script of three models over one slide: nothing is reshaped, transposed or copied to the CPU by hand."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ENVIRONMENT

from accumulator import FullBatch, StitchedMap, grid_locations

SCRIPT = Path(__file__).parents[2] / "docs/scripts/three_models.py"


def run(folder):
    """Run the script, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_maps_and_features_are_what_the_models_said(tmp_path):
    """As a plain loop over patches finds it, without the library."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install torch")
    pytest.importorskip("tifffile", reason="needs the extra ome")
    out = run(tmp_path)
    spec = importlib.util.spec_from_file_location("three_models", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    y, x = np.mgrid[:500, :700]
    image = np.stack([np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)], axis=-1).astype(np.float32)
    tissue = (x[::10, ::10] - 350) ** 2 + (y[::10, ::10] - 250) ** 2 < 240**2
    locs = grid_locations(image.shape[:2], 32, mask=tissue)
    assert out.startswith(f"({len(locs)}, 1024) (")
    padded = np.pad(image, [(16, 16), (16, 16), (0, 0)], "reflect")
    seen = torch.from_numpy(np.stack([padded[b : b + 64, a : a + 64] for a, b, *_ in locs])).permute(
        0, 3, 1, 2
    )
    segment, classify, embed = script.models()
    with torch.no_grad():
        mask, grade = segment(seen).numpy()[..., 16:48, 16:48], classify(seen).numpy()
        features = embed(seen.to(torch.bfloat16)).float().numpy()
    batch = FullBatch.load(tmp_path / "slide.zarr")
    np.testing.assert_allclose(batch["features"][:], features, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(batch["grade"][:], grade, rtol=1e-4)
    weights = np.sin(np.pi * (np.arange(32) + 1) / 33) ** 2
    weights = np.outer(weights, weights)
    sums, total = np.zeros((4, 500, 700)), np.zeros((500, 700))
    for patch, (a, b, c, d) in zip(mask, locs, strict=True):
        sums[:, b:d, a:c] += weights * patch
        total[b:d, a:c] += weights
    found = StitchedMap.load(tmp_path / "classes.zarr")["tissue"][:]
    np.testing.assert_array_equal(found == 255, total == 0)
    first, second = np.sort(sums / np.maximum(total, 1e-9), axis=0)[-1:-3:-1]
    is_clear = (total > 0) & (first - second > 1e-5)
    assert is_clear.mean() > 0.3
    np.testing.assert_array_equal(found[is_clear], sums.argmax(0)[is_clear])
    assert (tmp_path / "grade.ome.tif").stat().st_size > 0

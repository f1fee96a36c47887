"""A day's work: fifty slides, one of which is broken, a script that is killed and run again."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import day
from helpers.processes import ENVIRONMENT
from PIL import Image

from accumulator import FullBatch
from accumulator._demo.fetch import SLIDE, default_cache, fetch
from accumulator._demo.slide import read_slide
from accumulator.exceptions import ResultFormatError, UnfinishedError

N = 50
NAMES = [f"slide-{number:02}" for number in range(N)]
BROKEN, KILLED, NO_RECORD, BAD_ROWS, TINY = (NAMES[number] for number in (17, 28, 12, 22, -1))


def cut_slides(folder):
    """Cut the demo's slide into small ones, from 160 to 208 pixels wide; the last is smaller than a tile."""
    whole = read_slide(fetch(default_cache(), (SLIDE,))["cmu_small_region.svs"])
    folder.mkdir()
    pictures = {}
    for number, name in enumerate(NAMES):
        y, x = 140 * (number // 5), 215 * (number % 5)
        picture = whole[y : y + 128, x : x + 160 + number]
        pictures[name] = picture[:20, :20] if name == TINY else picture
        Image.fromarray(pictures[name]).save(folder / f"{name}.png")
    return pictures


def run(slides, results, *victim):
    """Run the script, and return its status, and what it said of each slide."""
    command = [sys.executable, "-m", "helpers.day", str(slides), str(results), *victim]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, dict(line.split(".png: ", 1) for line in done.stdout.splitlines()), done.stderr


def check(name, picture, results):
    """Compare a slide's rows and map with what is computed here, tile by tile; return how many there are."""
    total, count = np.zeros(picture.shape), np.zeros((*picture.shape[:2], 1))
    locs, colours, darkest, written = [], [], [], []
    for y in range(0, picture.shape[0] - 31, 16):
        for x in range(0, picture.shape[1] - 31, 16):
            tile = picture[y : y + 32, x : x + 32].astype(np.float64)
            is_tissue = np.count_nonzero((tile < 0.83 * 255).all(axis=2)) > 0.25 * 32 * 32
            colour = np.float32(tile.reshape(-1, 3).sum(axis=0) / 32**2)
            locs.append([x, y, x + 32, y + 32])
            written.append(is_tissue)
            colours.append(np.tile(colour * is_tissue, (32, 32, 1)))
            darkest.append([tile.min() if is_tissue else 0])
            if is_tissue:
                total[y : y + 32, x : x + 32] += colour
                count[y : y + 32, x : x + 32] += 1
    with FullBatch.load(results / f"{name}.zarr") as batch:
        assert batch.output_locs.tolist() == locs
        assert batch.written.tolist() == written
        np.testing.assert_array_equal(batch.outputs["colour"][:], np.reshape(colours, (-1, 32, 32, 3)))
        np.testing.assert_array_equal(batch.outputs["darkest"][:], np.reshape(darkest, (-1, 1)))
    np.testing.assert_allclose(np.load(results / f"{name}.npy"), total / np.maximum(count, 1), rtol=1e-6)
    return sum(written)


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
@pytest.mark.slow
def test_every_slide_of_a_day_is_right_or_named(quick_path):
    """Killed half-way, run again over damage, and once more when that is mended: nothing is wrong unsaid."""
    slides, results = quick_path / "slides", quick_path / "results"
    pictures = cut_slides(slides)
    whole = (slides / f"{BROKEN}.png").read_bytes()
    (slides / f"{BROKEN}.png").write_bytes(whole[: len(whole) // 2])

    status, said, _ = run(slides, results, KILLED)
    before = NAMES[: NAMES.index(KILLED)]
    assert status == -signal.SIGKILL
    assert list(said) == before
    assert "OSError" in said[BROKEN]
    n_tiles = {name: check(name, pictures[name], results) for name in before if name != BROKEN}
    with pytest.raises(UnfinishedError):
        FullBatch.load(results / f"{KILLED}.zarr")

    record = results / f"{NO_RECORD}.zarr" / "written" / "c.0"
    record.write_bytes(record.read_bytes()[:-3])
    chunk = results / f"{BAD_ROWS}.zarr" / "outputs" / "colour" / "c.0.0.0.0"
    content = bytearray(chunk.read_bytes())
    content[content.index(max(content))] ^= 64  # a byte of a tile that is not empty
    chunk.write_bytes(content)
    status, said, warned = run(slides, results)
    assert status == 1
    assert list(said) == NAMES
    named = {name for name in NAMES if "Error" in said[name]}
    assert named == {BROKEN, NO_RECORD}
    assert str(results / f"{NO_RECORD}.zarr") in said[NO_RECORD]
    with pytest.raises(ResultFormatError):
        FullBatch.load(results / f"{NO_RECORD}.zarr")
    assert re.search(rf"StorageWarning: 1 rows of \S+{BAD_ROWS}\.zarr were damaged", warned)
    n_tiles |= {name: check(name, pictures[name], results) for name in NAMES if name not in named}
    assert said[KILLED].startswith(f"{n_tiles[KILLED] - day.BATCH} new, {n_tiles[KILLED]} of ")
    assert said[BAD_ROWS].startswith("1 new, ")
    assert all(said[name].startswith("0 new, ") for name in before if name not in {*named, BAD_ROWS})

    shutil.rmtree(results / f"{NO_RECORD}.zarr")
    (slides / f"{BROKEN}.png").write_bytes(whole)
    status, said, warned = run(slides, results)
    assert (status, warned) == (0, "")
    assert all(said[name].startswith("0 new, ") for name in NAMES if name not in named)
    n_tiles |= {name: check(name, pictures[name], results) for name in NAMES}
    counts = np.array(list(n_tiles.values()))
    assert said[TINY] == "0 new, 0 of 0 tiles"
    assert np.count_nonzero(counts == 0) > 5, "slides without tissue"
    assert counts.sum() > 800

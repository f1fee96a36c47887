#!/usr/bin/env python3
"""The pictures of the gallery, from a scene that is computed: ``python docs/gallery/make.py``.

All that is seen went through `FullBatchAccumulator`, `Stitcher` or `stitch`. With ``--report`` the page of
``accumulator report`` is photographed too, which needs playwright and a chromium.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, grid_locations, stitch

mpl.use("agg")
from matplotlib import colormaps  # after what it draws on was said
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent.resolve()
SHAPE, PATCH, HALO = (320, 448), 64, 16
CLASSES = np.array([[232, 240, 246], [90, 50, 130], [240, 160, 80], [60, 150, 140]], np.uint8)
EMPTY = np.array([128, 134, 140], np.uint8)  # where there is no prediction; seen on light and on dark
GREY = "#848a92"  # of words, which are read on light and on dark


def smooth(seed: int, coarse: int) -> np.ndarray:
    """Return noise of one size of blobs, over the scene and beyond its edges."""
    height, width = (n + 2 * PATCH for n in SHAPE)
    noise = np.random.default_rng(seed).random((height // coarse + 3, width // coarse + 3)).astype(np.float32)
    large = Image.fromarray(noise).resize((width + 2 * coarse, height + 2 * coarse), Image.Resampling.BICUBIC)
    return np.asarray(large)[coarse : coarse + height, coarse : coarse + width]


FIELDS = np.stack([0.7 * smooth(seed, 56) + 0.3 * smooth(seed + 9, 14) for seed in range(4)], axis=-1)
TISSUE = smooth(5, 120) > 0.42
FIELDS[..., 0] += np.where(TISSUE, -0.08, 0.6)
IS_TISSUE = TISSUE[PATCH:-PATCH, PATCH:-PATCH]


def scene() -> np.ndarray:
    """Return the image, in colours that a stain might have."""
    inside = FIELDS[PATCH:-PATCH, PATCH:-PATCH]
    tint = np.array([[246, 243, 246], [116, 66, 150], [236, 150, 150], [196, 116, 196]], np.float32)
    share = np.exp(16 * inside) / np.exp(16 * inside).sum(-1, keepdims=True)
    return np.asarray(share @ tint, np.uint8)


def model(locs: np.ndarray, size: int = PATCH) -> np.ndarray:
    """Return probabilities of four classes, ``(n, size, size, 4)``, each patch for itself as networks do.

    It takes the patch's own mean for that of the scene, and knows least at the patch's border: hence seams.
    """
    margin = (size - int(locs[0, 2] - locs[0, 0])) // 2
    ramp = np.minimum(np.arange(size), np.arange(size)[::-1]) / (0.16 * size)
    certain = np.clip(np.minimum.outer(ramp, ramp), 0.15, 1)[..., None].astype(np.float32)
    patches = []
    for x, y in locs[:, :2]:
        top, left = int(y) - margin + PATCH, int(x) - margin + PATCH
        seen = FIELDS[top : top + size, left : left + size]
        seen = seen - 0.55 * seen.mean((0, 1)) + 0.55 * FIELDS.mean((0, 1))
        odds = np.exp(26 * certain * seen)
        patches.append(odds / odds.sum(-1, keepdims=True))
    return np.stack(patches)


def accumulate(locs: np.ndarray, size: int = PATCH, **options: Any) -> FullBatch:
    """Run the model over the locations, in batches and in any order."""
    order = np.random.default_rng(1).permutation(len(locs))
    with FullBatchAccumulator(locs, **options) as accumulator:
        for start in range(0, len(order), 8):
            rows = np.sort(order[start : start + 8])
            patches = model(locs[rows], size)
            accumulator.push({"tissue": patches, "grade": patches[..., 1].mean((1, 2))[:, None]}, locs[rows])
    return accumulator.finalize()


def coloured(share: np.ndarray, name: str = "magma") -> np.ndarray:
    """Return values from 0 to 1 in colours, and grey where there are none."""
    found = (colormaps[name](np.nan_to_num(share))[..., :3] * 255).astype(np.uint8)
    found[np.isnan(share)] = EMPTY
    return found


def classes(labels: np.ndarray) -> np.ndarray:
    """Return labels in colours, 255 in grey."""
    return np.vstack([CLASSES, np.broadcast_to(EMPTY, (252, 3))])[labels]


def beside(*pictures: np.ndarray, gap: int = 12) -> Image.Image:
    """Return pictures of one height side by side, with nothing in between."""
    width = sum(each.shape[1] for each in pictures) + gap * (len(pictures) - 1)
    sheet = Image.new("RGBA", (width, pictures[0].shape[0]))
    left = 0
    for each in pictures:
        sheet.paste(Image.fromarray(each), (left, 0))
        left += each.shape[1] + gap
    return sheet


def larger(values: np.ndarray, factor: int) -> np.ndarray:
    """Return each pixel as a square of pixels."""
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def keep(picture: Image.Image, path: Path, colours: int = 128) -> None:
    """Write a picture with few colours, which keeps it small."""
    few = picture.convert("RGBA").quantize(colours, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def draw_front(boxes: np.ndarray, maps: StitchedMap, path: Path) -> None:
    """Draw the scene, the boxes in the colour of their batch, and the map."""
    batches = scene().astype(np.float32)
    order = np.random.default_rng(1).permutation(len(boxes))
    tints = np.array([[39, 110, 220], [224, 123, 57], [47, 158, 110], [170, 80, 180], [210, 60, 90]])
    for number, row in enumerate(order):
        x, y, right, bottom = np.minimum(boxes[row], [*SHAPE[::-1], *SHAPE[::-1]])
        part = batches[y + 2 : bottom - 2, x + 2 : right - 2]
        part[:] = 0.5 * part + 0.5 * tints[number // 8 % len(tints)]
    labels = np.asarray(maps["tissue"])
    keep(beside(scene(), batches.astype(np.uint8), classes(labels)), path, 96)


def draw_blends(batch: FullBatch, path: Path) -> None:
    """Draw one place of the map, once for each blend."""
    names = ("average", "gaussian", "hann", "max", "min", "last", "nearest", "vote")
    figure, axes = plt.subplots(2, 4, figsize=(8.4, 4.5), facecolor="none")
    for axis, name in zip(axes.flat, names, strict=True):
        if name == "vote":
            labels = np.asarray(batch["tissue"]).argmax(-1).astype(np.uint8)
            with FullBatchAccumulator(batch.output_locs) as accumulator:
                accumulator.push({"class": labels[batch.written]}, batch.output_locs[batch.written])
            shown = classes(
                np.asarray(stitch(accumulator.finalize(), blend="vote", output_shape=SHAPE)["class"])
            )
        else:
            shown = coloured(
                np.asarray(stitch(batch, heads=["tissue"], blend=name, output_shape=SHAPE)["tissue"])[..., 2]
            )
        axis.imshow(shown[:160, :192], interpolation="nearest")
        axis.set_title(f'"{name}"', color=GREY, fontsize=12)
        axis.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 0.93, 0.04, 0.14)
    draw(figure, path)


def draw(figure: Any, path: Path, colours: int = 128) -> None:
    """Keep a figure of matplotlib."""
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "figure.png"
        figure.savefig(large, dpi=110, transparent=figure.get_facecolor()[3] == 0)
        keep(Image.open(large), path, colours)
    plt.close(figure)


def photograph(batch: FullBatch, folder: Path) -> None:
    """Show what ``accumulator report`` writes, in a browser."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  few have it

    with tempfile.TemporaryDirectory() as store_of:
        batch.save(f"{store_of}/run.zarr")
        command = [sys.executable, "-m", "accumulator", "report", "run.zarr", "--pixel-size", "0.5"]
        subprocess.run(command, check=True, capture_output=True, cwd=store_of)  # noqa: S603  our own
        with sync_playwright() as tools:
            browser = tools.chromium.launch(executable_path=os.environ.get("CHROMIUM"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1100, "height": 900})
            page.goto(f"file://{store_of}/report.html")
            page.wait_for_timeout(500)
            page.evaluate(
                "p => document.body.innerHTML = document.body.innerHTML.replaceAll(p, '/data')", store_of
            )
            page.screenshot(path=f"{store_of}/report.png")
            browser.close()
        small = Image.open(f"{store_of}/report.png").resize((880, 720), Image.Resampling.LANCZOS)
        keep(small, folder / "report.png", 64)


def main(folder: Path = FOLDER, *, has_report: bool = False) -> None:
    """Make all of them."""
    apart = grid_locations(SHAPE, PATCH, mask=IS_TISSUE, min_mask_ratio=0.15, border="over")
    half = grid_locations(SHAPE, PATCH, overlap=0.5, mask=IS_TISSUE, min_mask_ratio=0.15, border="over")
    batch = accumulate(half)
    labels = stitch(
        batch, heads=["tissue"], blend="hann", reduce="argmax", fill_value=255, output_shape=SHAPE
    )
    draw_front(apart, labels, folder / "front.png")
    keep(beside(scene(), classes(np.asarray(labels["tissue"]))), folder / "label-map.png", 96)

    heat = stitch(
        accumulate(apart),
        heads=["grade"],
        spread=True,
        scale=1 / PATCH,
        fill_value=np.nan,
        output_shape=tuple(n // PATCH for n in SHAPE),
    )
    values = np.asarray(heat["grade"], np.float32)[..., 0]
    keep(beside(scene(), coloured(larger(values, PATCH) / np.nanmax(values))), folder / "heat-map.png", 96)

    options = {"heads": ["tissue"], "fill_value": np.nan, "output_shape": SHAPE}
    whole = stitch(accumulate(apart), **options)
    boxes = grid_locations(SHAPE, PATCH - 2 * HALO, mask=IS_TISSUE, min_mask_ratio=0.15)
    inner = stitch(accumulate(boxes), crop="center", **options)
    two = [coloured(np.asarray(each["tissue"], np.float32)[..., 2]) for each in (whole, inner)]
    keep(beside(*two), folder / "halo.png", 96)

    whole = stitch(batch, heads=["tissue"], blend="hann", fill_value=np.nan, output_shape=SHAPE)
    cover = whole.coverage()
    shown = coloured(np.where(cover == 0, np.nan, cover / cover.max()), "viridis")
    keep(beside(scene(), shown), folder / "coverage.png", 64)
    draw_blends(batch, folder / "blends.png")

    every = accumulate(half[::2])
    with FullBatchAccumulator(half) as accumulator:
        accumulator.push({"tissue": np.asarray(every["tissue"])}, every.output_locs)
    axes = accumulator.finalize().plot_coverage()
    axes.figure.set_size_inches(6.4, 4.4)
    draw(axes.figure, folder / "plot-coverage.png", 64)
    draw(whole.plot(channel=2)[0].figure, folder / "plot-map.png", 96)
    if has_report:
        photograph(batch, folder)


if __name__ == "__main__":
    main(has_report="--report" in sys.argv)

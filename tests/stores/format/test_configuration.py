"""What is stored does not depend on zarr's global configuration, nor on the environment it comes from."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import tree
from helpers.oracle import grid
from zarr.codecs import ZstdCodec

from accumulator import FullBatch, FullBatchAccumulator, stitch
from accumulator.exceptions import DamagedError

LOCS = grid(12)
PATCHES = np.random.default_rng(0).random((12, 4, 4, 3)).astype(np.float32)
PATCHES[2] = 0
CAME = [*range(4), *range(8, 12)]
SETTINGS = {
    "default_zarr_format": 2,
    "array.order": "F",
    "array.write_empty_chunks": False,
    "array.read_missing_chunks": False,
    "array.target_shard_size_bytes": 100,
    "async.concurrency": 1,
    "threading.max_workers": 1,
    "codec_pipeline.batch_size": 3,
}
STORED = {
    "raw": {},
    "small chunks": {"chunks": 1},
    "compressed": {"compressors": ZstdCodec(), "fill_value": 7},
    "shards": {"shards": 4, "chunks": (2, 2, 4, 3)},
    "cut patches": {"chunks": (2, 2, 2, 3)},
}


def make(folder, options):
    """Spill, save, keep, resume, stitch and export; return what was stored, and compare every reading."""
    expected = np.full_like(PATCHES, options.get("fill_value", 0))
    expected[CAME] = PATCHES[CAME]
    with FullBatchAccumulator(LOCS, memory_threshold=0, **options) as accumulator:
        accumulator.push(PATCHES[CAME], LOCS[CAME])
    spilled = accumulator.finalize()
    np.testing.assert_array_equal(spilled.outputs[0][:], expected)
    spilled.save(folder / "spilled.zarr")
    with FullBatchAccumulator(LOCS, store=folder / "kept.zarr", **options) as accumulator:
        accumulator.push(PATCHES[:4], LOCS[:4])
        accumulator.close()
    with FullBatchAccumulator(LOCS, store=folder / "kept.zarr", mode="a", **options) as accumulator:
        np.testing.assert_array_equal(np.flatnonzero(accumulator.written), range(4))
        accumulator.push(PATCHES[8:], LOCS[8:])
    for name in ("spilled.zarr", "kept.zarr"):
        loaded = FullBatch.load(folder / name)
        np.testing.assert_array_equal(loaded.outputs[0][:], expected)
        assert loaded.outputs[0].metadata.zarr_format == 3
    maps = stitch(loaded)
    maps.save(folder / "maps.zarr")
    maps.save_ome_zarr(folder / "maps.ome.zarr")
    np.testing.assert_array_equal(FullBatch.load(folder / "maps.zarr").outputs[0][:], maps.outputs[0][:])
    return tree(folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return what is stored with zarr's defaults."""
    return make(tmp_path_factory.mktemp("plain"), STORED["shards"])


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_stored_does_not_depend_on_a_setting_of_zarr(tmp_path, plain, setting):
    """Every file has the same bytes, and every reading the same values."""
    with zarr.config.set({setting: SETTINGS[setting]}):
        assert make(tmp_path, STORED["shards"]) == plain


@pytest.mark.parametrize("name", STORED)
def test_what_is_stored_does_not_depend_on_zarrs_settings(tmp_path, name):
    """However rows are stored."""
    with zarr.config.set(SETTINGS):
        there = make(tmp_path / "other", STORED[name])
    assert there == make(tmp_path / "plain", STORED[name])


def find_damage(folder):
    """Read results as they were left, and one of which a file was cut since: that is an error, and no end."""
    for stored, is_kept in itertools.product(STORED.values(), [False, True]):
        where = {"store": folder / "run.zarr"} if is_kept else {"memory_threshold": 0}
        with FullBatchAccumulator(LOCS, **where, **stored) as accumulator:
            accumulator.push(PATCHES, LOCS)
        result = accumulator.finalize()
        if not is_kept:
            result.save(folder / "run.zarr")
        for file in (folder / "run.zarr").glob("outputs/0/c.*"):
            file.write_bytes(b"")
        with pytest.raises(DamagedError):
            result.outputs[0][:]
        shutil.rmtree(folder / "run.zarr")


def run_elsewhere(call, folder):
    """Call a function of this module in a process to which zarr is told these settings, and which ends."""
    names = {"ZARR_" + name.upper().replace(".", "__"): str(value) for name, value in SETTINGS.items()}
    here = Path(__file__).parent
    script = f"import sys; sys.path[:0] = {[str(here), str(here.parents[1])]!r}\n"
    script += "from pathlib import Path; from test_configuration import *\n"
    script += "assert zarr.config.get('default_zarr_format') == 2\n"
    script += call
    subprocess.run(
        [sys.executable, "-c", script], check=True, env=os.environ | names, cwd=folder, timeout=120
    )


def test_damage_is_found_where_zarr_has_one_thread(tmp_path):
    """Whoever looks at the record while a chunk is read needs that thread, too."""
    run_elsewhere("find_damage(Path())", tmp_path)


def test_nothing_depends_on_the_environment(tmp_path):
    """All of them at once, as zarr takes them from the environment of a process."""
    run_elsewhere(f"make(Path({str(tmp_path / 'other')!r}), {{'chunks': 3}})", tmp_path)
    assert tree(tmp_path / "other") == make(tmp_path / "plain", {"chunks": 3})

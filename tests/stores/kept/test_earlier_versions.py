"""What an earlier version wrote is read and gone on with; and the same pushes still write the same bytes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import earlier
from helpers.files import tree
from helpers.processes import ENVIRONMENT

STORES = Path(__file__).parents[2] / "data" / "stores-of-0.1.zip"
# What was not recorded may have come to the disk or not.
REPEATABLE = [name for name in [*earlier.KINDS, *earlier.MAPS] if "killed" not in name]


def extracted(name):
    """Return the folder of a store that an earlier version wrote."""
    with zipfile.ZipFile(STORES) as file:
        file.extractall(members=[each for each in file.namelist() if each.startswith(f"{name}/")])
    return Path(name)


@pytest.mark.parametrize("name", earlier.KINDS)
def test_run_of_an_earlier_version_is_read(name):
    """Every value, which rows have come, and every checksum."""
    earlier.check(name, extracted(name))


@pytest.mark.parametrize("name", [name for name, kind in earlier.KINDS.items() if kind.end != "saved"])
def test_run_of_an_earlier_version_is_gone_on_with(name):
    """It has what it had recorded, and is completed, wherever it was killed."""
    earlier.go_on(name, extracted(name))
    earlier.check_complete(name, Path(name))


@pytest.mark.parametrize("name", earlier.MAPS)
def test_map_of_an_earlier_version_is_read(name):
    """All that it has, and nothing of one that was killed."""
    earlier.check_map(name, extracted(name))


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory):
    """Return a folder with the same stores as this version writes them."""
    folder = tmp_path_factory.mktemp("rewritten")
    command = [sys.executable, "-W", "error", "-m", "helpers.earlier", "write", str(folder), *REPEATABLE]
    environment = ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}  # a thread of it would be there at the fork
    subprocess.run(command, check=True, env=environment)
    return folder


def by_name(files):
    """Return the files of an earlier version's store as they are called now: heads by their names."""
    mark = json.loads(files["zarr.json"])["attributes"].get("accumulator", {})
    names = dict(enumerate(mark.get("names") or ()))
    return {
        re.sub(r"^outputs/(\d+)/", lambda m: f"outputs/{names.get(int(m[1]), m[1])}/", path): files[path]
        for path in files
    }


@pytest.mark.parametrize("name", REPEATABLE)
def test_same_pushes_write_the_same_bytes(name, rewritten):
    """What others may have read since, and how much of the disk it takes, does not change by an update.

    How zarr words its metadata, and how a library compresses, is theirs. Stores of maps have got a folder
    beside all that was there, which those who read them before do not look at.
    """
    is_compressed = "compressors" in getattr(earlier.KINDS.get(name), "options", {})
    before, now = by_name(tree(extracted(name))), tree(rewritten / name)
    new = {path for path in now if path.startswith("patches/")}
    assert bool(new) == name.startswith("map")
    assert before.keys() == now.keys() - new
    for path, content in before.items():
        if not path.endswith("zarr.json") and not (is_compressed and path.startswith("outputs/")):
            assert content == now[path], path

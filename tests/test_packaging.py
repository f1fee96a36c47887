"""The name of the distribution, what is told about it, and the versions that are allowed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import accumulator

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_distribution_has_a_name_of_its_own():
    """What is imported and called stays `accumulator`."""
    assert PROJECT["name"] == "full-batch-accumulator"
    assert PROJECT["scripts"] == {"accumulator": "accumulator._cli:main"}


def test_no_advice_installs_the_distribution_of_somebody_else():
    """In the index `accumulator` is another library: no extra of it, and no `pip install` of it."""
    wrong = re.compile(r"(?<![\w-])accumulator\\*\[\w|pip install (-\S+ )*['\"]?accumulator\b")
    pages = [ROOT / "README.md", ROOT / "pyproject.toml", *(ROOT / ".github").rglob("*.md")]
    pages += [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
    pages += [file for folder in ("accumulator", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert len(pages) > 100
    assert [page for page in pages if wrong.search(page.read_text())] == []


def test_neighbour_in_the_same_folder_is_told_at_import(tmp_path):
    """The other distribution has a module of this name in a package of this name."""
    package = tmp_path / "accumulator"
    shutil.copytree(Path(accumulator.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-W", "error", "-c", "import accumulator"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (package / "accumulator.py").touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "UserWarning: the distribution `accumulator`, which is another one" in done.stderr


def test_contributors_find_every_file_that_is_named():
    """What CONTRIBUTING says of the house is there, by the end of its path."""
    page = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", page)) - {"accumulator/", "tests/"}
    paths = [path for folder in ("accumulator", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    there = [f"{path}{'/' * path.is_dir()}" for path in paths]
    assert len(named) > 20
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in there)] == []

"""The name of the distribution, what is told about it, and the versions that are allowed."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import accumulator

ROOT = Path(__file__).parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]
FRAGMENTS = sorted((ROOT / "docs" / "changes").glob("*.md"))


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


def test_version_is_what_was_built_and_else_said_to_be_unknown(tmp_path):
    """A build writes it beside the sources; without one the import goes on."""
    package = tmp_path / "accumulator"
    ignored = shutil.ignore_patterns("__pycache__", "_version.py")
    shutil.copytree(Path(accumulator.__file__).parent, package, ignore=ignored)
    command = [sys.executable, "-W", "error", "-c", "import accumulator; print(accumulator.__version__)"]
    for expected in ("0+unknown", "9.8.7"):
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        assert done.stdout == f"{expected}\n"
        (package / "_version.py").write_text('__version__ = "9.8.7"\n')


def package_page(readme, repository):
    """Return the README as the build makes it."""
    pytest.importorskip("hatchling")
    hook = CONFIG["tool"]["hatch"]["metadata"]["hooks"]["custom"]["path"]
    spec = importlib.util.spec_from_file_location("package_page", ROOT / hook)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.package_page(readme, repository)


def links(text):
    """Return where a page leads to."""
    return re.findall(r"\]\(([^)#\s]+)", text)


def test_links_of_readme_lead_to_files():
    """Those without an address are of this project."""
    paths = [link for link in links((ROOT / "README.md").read_text()) if "://" not in link]
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_page_of_the_package_has_absolute_links_alone():
    """With an address all links are there; without one what they say is, and all other text in any case."""
    readme = (ROOT / "README.md").read_text()
    repository = "https://example.org/somebody/accumulator"
    page = package_page(readme, repository)
    assert all(link.startswith("https://") for link in links(page))
    assert len(links(page)) == len(links(readme))
    assert f"({repository}/raw/HEAD/docs/images/demo.png)" in page
    assert f"[CONTRIBUTING]({repository}/blob/HEAD/.github/CONTRIBUTING.md)" in page
    page = package_page(readme, "")
    assert [link for link in links(page) if not link.startswith("https://")] == []
    assert "and CONTRIBUTING has everything else" in page
    texts = (
        "before [one](docs/a.md), [two](#there), ![a picture](b.png)[three](https://example.org) after[0](x)"
    )
    expected = "before one, [two](#there), [three](https://example.org) after0"
    assert package_page(texts, "") == expected
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    assert code.findall(page) == code.findall(readme)


def test_address_is_told_in_one_place():
    """It is no part of a page, and it is an address if it is set."""
    repository = CONFIG["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert repository == "" or re.fullmatch(r"https://[\w./-]+\w", repository)
    assert "urls" not in PROJECT
    assert {"readme", "urls", "version"} <= set(PROJECT["dynamic"])


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_fragment_of_the_changelog_is_well_formed(path):
    """It is of a kind that there is, and one sentence or more, without the dash of a list."""
    kinds = [kind["directory"] for kind in CONFIG["tool"]["towncrier"]["type"]]
    assert re.fullmatch(rf"\+[a-z0-9-]+\.({'|'.join(kinds)})\.md", path.name)
    text = path.read_text()
    assert text.endswith(".\n")
    assert text == text.lstrip(" -*#\n")
    assert not re.search(r"\n\s*\n|\n[ -]", text)
    assert all(len(line) <= 140 for line in text.splitlines())


def test_changelog_has_a_place_for_releases():
    """Sections are put below one line, above the last one."""
    text = (ROOT / "docs" / "changelog.md").read_text()
    assert text.count(CONFIG["tool"]["towncrier"]["start_string"]) == 1
    assert text.index(CONFIG["tool"]["towncrier"]["start_string"]) < text.index("\n## ")


def test_citation_is_of_the_last_release():
    """It says what pyproject.toml does, and version and date of the last release, if there was one."""
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["title"].startswith("accumulator: ")
    assert citation["message"]
    assert [set(author) for author in citation["authors"]] == [{"name"}]
    repository = CONFIG["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    assert citation.get("repository-code", "") == repository
    changelog = (ROOT / "docs" / "changelog.md").read_text()
    released = re.findall(r"^## (\d+\.\d+\.\d+), (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    told = (str(citation.get("version")), str(citation.get("date-released")))
    assert told == (released[0] if released else ("None", "None"))
    if released:
        dt.date.fromisoformat(released[0][1])


def test_notebook_runs_and_has_no_outputs(monkeypatch):
    """Its cells run one after the other, as a reader would run them; CI also runs it as a notebook."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    notebook = json.loads((ROOT / "docs" / "start" / "notebook.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)  # noqa: S102  our own page
    names["batch"].close()
    pyplot.close("all")

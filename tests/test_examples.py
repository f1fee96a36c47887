"""The examples of docstrings, README and documentation run as they stand, and print what they say."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import accumulator
from accumulator._core.locations import LocationIndex

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MODULES = [
    "accumulator._core.accumulator",
    "accumulator._core.align",
    "accumulator._core.full_batch",
    "accumulator._core.grid_locations",
    "accumulator._core.locations",
    "accumulator._core.publish",
    "accumulator._stitching.map",
    "accumulator._stitching.result",
    "accumulator._stitching.stitcher",
]
NAMES = {name: getattr(accumulator, name) for name in accumulator.__all__} | {
    "np": np,
    "LocationIndex": LocationIndex,
}
# Recipes and most of what is for users of other libraries run beside the tests of these.
PAGES = sorted(
    page
    for page in [
        ROOT / "README.md",
        DOCS / "from/numpy.md",
        *DOCS.glob("how-to/*.md"),
        *DOCS.glob("start/*.md"),
    ]
    if not page.name.startswith(("_", "recipes"))
)
INCLUDED = re.compile(r"^```\{include\} (\S+)\n```", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXCERPT = re.compile(r"^```\{code-block\} python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page):
    """Return a page with what it includes."""
    return INCLUDED.sub(lambda found: (page.parent / found[1]).read_text(), page.read_text())


def run(code, names, where):
    """Run a block of a page; where a line prints and a comment says what, see that it does."""
    lines = code.splitlines()
    for statement in ast.parse(code).body:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([statement], []), where, "exec"), names)  # noqa: S102  our own page
        _, is_said, said = lines[statement.end_lineno - 1].partition("  # ")
        if is_said and lines[statement.lineno - 1].startswith("print("):
            kept, *rest = said.split("...")
            found = printed.getvalue().strip()
            assert found == said if not rest else found.startswith(kept), f"{where}: {found}"


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    """Every example of a module prints what it says."""
    result = doctest.testmod(importlib.import_module(name), extraglobs=NAMES)
    assert result.attempted
    assert not result.failed


def test_modules_are_all_that_have_examples():
    """A module with an example is in the list above; those of integrations need their libraries."""
    here = ROOT / "accumulator"
    having = {file for file in here.rglob("*.py") if ">>> " in file.read_text()}
    named = {ROOT / f"{name.replace('.', '/')}.py" for name in MODULES}
    assert sorted(file for file in having - named if "integrations" not in file.parts) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page):
    """The Python blocks of a page run one after the other, as a reader would run them."""
    names = {}
    for block in BLOCK.findall(text_of(page)):
        if page.parent == ROOT:  # whose comments are words
            exec(compile(block, page.name, "exec"), names)  # noqa: S102  our own page
        else:
            run(block, names, page.name)


def test_pages_are_found_and_have_blocks():
    """The loop below is not over nothing."""
    assert sum(len(BLOCK.findall(text_of(page))) for page in PAGES) > 80


def test_excerpts():
    """What is shown of a script that needs a cluster is Python; of one that is here, it is in it."""
    excerpts = {page.name: EXCERPT.findall(page.read_text()) for page in DOCS.glob("how-to/*.md")}
    assert sum(map(len, excerpts.values())) > 4
    for name, codes in excerpts.items():
        for code in codes:
            compile(code, name, "exec")
    (torchrun,) = excerpts["torchrun.md"]
    calls = re.findall(r"signal\.signal\(.*\)\)|new_group\(.*\)\)|barrier\(\w+\)|publish\(", torchrun)
    assert len(calls) == 4
    script = (DOCS / "scripts/torchrun_predict.py").read_text()
    assert [call for call in calls if call not in script] == []


def test_two_minutes(capsys):
    """The script runs as it stands, and prints what the page says."""
    runpy.run_path(str(DOCS / "start/two_minutes.py"))
    printed = capsys.readouterr().out
    assert f"```text\n{printed}```" in (DOCS / "start/two-minutes.md").read_text()
    assert [path.name for path in Path().iterdir()] == ["map.zarr"]

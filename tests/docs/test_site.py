"""What the documentation says of the library is what there is, and its links lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import accumulator
from accumulator import exceptions, integrations, typing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    page
    for page in [ROOT / "README.md", *ROOT.glob(".github/*.md"), *DOCS.rglob("*.md")]
    if not {"_build", "generated", "changes"} & set(page.parts)
]
FENCE = re.compile(r"^(`{3,})(?!\{(?:toctree|include)).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def load(path):
    """Return a script of the documentation as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors_of(page):
    """Return what links may end with, as headings are called."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def is_right(page, is_picture, words, link):
    """Tell whether a link leads to a file or heading that is there, and a picture says what it shows."""
    path, _, anchor = link.partition("#")
    if re.match(r"[a-z]+:", path):
        return True
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors_of(target)) and bool(words or not is_picture)


def test_links_lead_to_what_is_there():
    """Those of README and .github too, which no build of the site looks at."""
    links = [(page, *found) for page in PAGES for found in LINK.findall(FENCE.sub("", page.read_text()))]
    assert len(links) > 100
    assert [(page.name, link) for page, *how, link in links if not is_right(page, *how, link)] == []


def test_files_that_pages_show_are_there():
    """Included files, scripts and drawings, and pages of each toctree, unless it is for all."""
    shown = re.compile(r"^(?:```\{(?:include|literalinclude)\} |:file: )(\S+)$", re.MULTILINE)
    found = [(page, name) for page in PAGES for name in shown.findall(page.read_text())]
    assert len(found) > 20
    assert [(page.name, name) for page, name in found if not (page.parent / name).exists()] == []


def test_every_error_has_its_remedy():
    """Each public error has a section, with the builtins that it is a case of."""
    sections = re.split(r"^### (\w+)$", (DOCS / "faq.md").read_text(), flags=re.MULTILINE)[1:]
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    assert sorted(found) == sorted(exceptions.__all__)
    for name, text in found.items():
        what, remedy = text.split("\n*Remedy:* ")
        assert f"{{exc}}`~accumulator.exceptions.{name}`" in what
        assert len(remedy) > 10, name
        kind = getattr(exceptions, name)
        _, _, also = what.partition("It is also a")
        told = re.findall(r"`(?:pickle\.)?(\w+)`", also.partition(". ")[0])
        assert set(told) <= {each.__name__ for each in kind.__mro__}, name
        builtin = {each.__name__ for each in kind.__bases__ if each.__module__ in {"builtins", "_pickle"}}
        assert builtin - {"Exception"} <= set(told), name


def test_every_public_name_is_in_the_reference():
    """Classes and functions have a page, types an entry, integrations a section."""
    listed = re.findall(r"^   (\w+)$", (DOCS / "reference/index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(accumulator.__all__) - {"exceptions", "typing"})
    entries = re.findall(
        r"^\.\. auto(?:data|class):: (\w+)$", (DOCS / "reference/types.md").read_text(), re.MULTILINE
    )
    assert sorted(entries) == sorted(typing.__all__)
    modules = [each.name for each in pkgutil.iter_modules(integrations.__path__) if each.name[0] != "_"]
    page = (DOCS / "reference/integrations.md").read_text()
    assert [name for name in modules if f"automodule:: accumulator.integrations.{name}\n" not in page] == []


def test_types_of_signatures_have_links():
    """Names in the table of conf.py are types that there are."""
    conf = (DOCS / "conf.py").read_text()
    (table,) = re.findall(r"^_WORDS = \{\n(.*?)^\}", conf, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r'": "(\w+)"', table)) <= set(typing.__all__)


def plain(text):
    """Return help without line breaks, and as each version of Python writes it: ``-o, --output FILE``."""
    joined = re.sub(r"\s+", " ", text)
    return re.sub(r"(-\w) ([A-Z|]+), (--[\w-]+) \2", r"\1, \3 \2", joined)


def test_commands_are_shown_with_their_help():
    """The page has each command, and what its ``--help`` prints: ``python docs/cli.py`` renews it."""
    cli = load(DOCS / "cli.py")
    page = cli.PAGE.read_text()
    commands = re.findall(r"^  accumulator (\w+) ", cli.help_of(""), re.MULTILINE)
    assert len(commands) >= 8
    assert [each for each in commands if f"\n$ accumulator {each} --help\n" not in page] == []
    assert plain(page) == plain(cli.renewed(page))


def test_drawings_are_those_of_the_script(tmp_path, monkeypatch):
    """Each drawing is as the script makes it, and shown by a page."""
    script = load(DOCS / "understand/draw.py")
    kept = {path.name: path.read_text() for path in script.HERE.iterdir()}
    monkeypatch.setattr(script, "HERE", tmp_path / "drawings")
    script.main()
    assert kept == {path.name: path.read_text() for path in script.HERE.iterdir()}
    text = "".join(page.read_text() for page in PAGES)
    assert [name for name in kept if f"drawings/{name}\n" not in text] == []


def test_pictures_are_small_and_shown():
    """No picture of the gallery takes a reader's time, and none is left over."""
    pictures = [*DOCS.glob("gallery/*.png")]
    assert len(pictures) > 5
    text = "".join(page.read_text() for page in PAGES)
    assert [
        path.name for path in pictures if path.stat().st_size > 100_000 or f"{path.name})" not in text
    ] == []


@pytest.mark.slow
def test_pictures_are_those_of_the_script(tmp_path):
    """What comes out today is what the gallery shows, but for fonts."""
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    image = pytest.importorskip("PIL.Image")
    np = importlib.import_module("numpy")
    load(DOCS / "gallery/make.py").main(tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*.png"))
    assert made == sorted({path.name for path in DOCS.glob("gallery/*.png")} - {"report.png"})
    for name in made:
        two = [
            np.asarray(image.open(folder / name).convert("RGBA"), int)
            for folder in (tmp_path, DOCS / "gallery")
        ]
        assert two[0].shape == two[1].shape
        assert abs(two[0] - two[1]).mean() < 4, name

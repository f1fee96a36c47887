"""What CI checks, for everybody: ``nox -f .ci/noxfile.py`` does all, ``-l`` lists it, ``-s lint`` does one.

Each session but `tests` has an environment of its own in ``.ci/.nox``, made anew; ``-R`` takes it as it is.
What follows ``--`` goes to pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv"
nox.options.error_on_external_run = True
os.environ["UV_HTTP_TIMEOUT"] = "180"  # seconds; some networks are slow
os.environ["PYTEST_ADDOPTS"] = "--durations=10"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process of a benchmark compiles the library

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORTED = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
THIS = f"3.{sys.version_info.minor}"  # `tests` is on it
ENGINES = ["dask", "lightning", "ray"]  # gigabytes, which one session of its own has
FRAMEWORKS = ["monai", "torchio", "transformers"]  # with torch, as large; each has tests of its name
PEERS = ["tiatoolbox"]  # which forbid the newest of much: a session each
ELSEWHERE = {*ENGINES, *FRAMEWORKS, *PEERS}
LIBRARY = ["-e", f".[{','.join(sorted(set(PROJECT['optional-dependencies']) - ELSEWHERE))}]"]


def output(*command: str | Path) -> str | None:
    """Return what a command prints; None where it is not there, or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def interpreter(version: str) -> str | None:
    """Return a Python that runs, of PATH, pyenv or uv: what PATH has may only say that it is switched off."""
    found = [shutil.which(f"python{version}", path=folder) for folder in os.get_exec_path()]
    if prefix := output("pyenv", "prefix", version):
        found.append(f"{prefix}/bin/python")
    uv = Path(sys.executable).with_name("uv")
    found.append(output(uv, "python", "find", "--managed-python", "--no-python-downloads", version))
    code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
    return next((path for path in found if path and output(path, "-c", code) == version), None)


PYTHONS = {version: interpreter(version) for version in SUPPORTED}
OTHERS = [version for version in SUPPORTED if PYTHONS[version] and version != THIS]


def install(session: nox.Session, *packages: str) -> None:
    """Go to the project's folder and install."""
    session.chdir(ROOT)
    session.install("--upgrade", *packages)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run all tests, by the README's own command."""
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(
        r"^<!-- command: tests -->\n```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL
    )
    session.chdir(ROOT)
    session.run("bash", "-euo", "pipefail", "-c", command, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Look for mistakes, and for lines that are not formatted."""
    install(session, "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, inside and as users see them."""
    install(session, *LIBRARY, "--group", "lint")
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that rooms import downwards."""
    install(session, "-e", ".", "--group", "lint")
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in `docs/_build/html`, where no link leads nowhere, and run its notebook."""
    place = Path(session.create_tmp()).resolve()
    install(session, "-e", ".[plot]", "--group", "docs")
    session.run("jupyter", "execute", "--output", str(place / "run.ipynb"), "docs/start/notebook.ipynb")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist into `dist`, check them, and run both where nothing else is installed."""
    place = Path(session.create_tmp()).resolve()
    install(session, "--group", "package")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))  # the wheel is built from the sdist
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("check-wheel-contents", str(wheel))
    session.run("cffconvert", "--validate", "--infile", ".github/CITATION.cff")
    session.run("towncrier", "build", "--draft", "--version", "0")
    shutil.unpack_archive(sdist, place, filter="data")
    bare = place / "bare"
    session.run("uv", "venv", "--clear", str(bare), external=True)
    python, unpacked = str(bare / "bin" / "python"), place / sdist.name.removesuffix(".tar.gz")
    session.run("uv", "pip", "install", "--python", python, str(wheel), external=True)
    session.chdir(place)  # where no sources are
    for path in ("", str(unpacked)):
        code = [python, "-W", "error", str(ROOT / ".ci" / "loop.py"), path or str(bare)]
        session.run(*code, env={"PYTHONPATH": path}, external=True)


@nox.session
def smoke(session: nox.Session) -> None:
    """Run every benchmark once, as small as can be."""
    install(session, *LIBRARY, "--group", "test")
    session.run("python", "-m", "benchmarks", "--smoke")


@nox.session(default=False)
def engines(session: nox.Session) -> None:
    """Run a cluster of each engine whose workers are killed: `.ci/run -s engines`."""
    install(session, "-e", f".[{','.join([*ENGINES, 'ome'])}]", "--group", "test")
    session.run("python", "-m", "pytest", "-q", "-n", "0", "tests/integrations", *session.posargs)


@nox.session(default=False)
def tiatoolbox(session: nox.Session) -> None:
    """Run TIAToolbox's engines on ours: `.ci/run -s tiatoolbox`."""
    install(session, "-e", ".[tiatoolbox]", "--group", "test")
    session.run(
        "python", "-m", "pytest", "-q", "-n", "0", "tests/integrations/test_tiatoolbox.py", *session.posargs
    )


@nox.session(default=False)
def frameworks(session: nox.Session) -> None:
    """Run what works in frameworks, and the recipes: `.ci/run -s frameworks`."""
    install(session, "-e", f".[{','.join([*FRAMEWORKS, 'geo'])}]", "--group", "test", "--group", "recipes")
    tests = [f"tests/integrations/test_{name}.py" for name in [*FRAMEWORKS, "recipes"]]
    session.run("python", "-m", "pytest", "-q", "-n", "0", *tests, *session.posargs)


@nox.session(default=False)
def readers(session: nox.Session) -> None:
    """Open what is exported in everything else that does: `.ci/run -s readers`."""
    install(session, *LIBRARY, "--group", "test", "--group", "readers")
    # Which napari and its like bring for tests of their own: they warn when they are loaded.
    own = [word for name in ("napari", "napari-plugin-engine", "npe2") for word in ("-p", f"no:{name}")]
    session.run("python", "-m", "pytest", "-q", "-n", "0", *own, "tests/export", *session.posargs)


def quick_tests(session: nox.Session, version: str, *how: str) -> None:
    """Run the tests that are not slow."""
    if PYTHONS[version] is None:
        session.skip(f"NOT TESTED: no Python {version} that runs was found on PATH, nor by pyenv or uv")
    install(session, *LIBRARY, "--group", "test", *how)
    # What they run is measured once, where that costs nothing: before Python 3.12 it is half as much again.
    is_measured = session.name == (f"quick-{OTHERS[-1]}" if OTHERS else "lowest") and not session.posargs
    options = session.posargs or (["--cov=accumulator"] if is_measured else [])
    # `tests` tries more examples; what differs between versions shows in a few.
    command = ["python", "-m", "pytest", "-q", "-n", "auto", "-m", "not slow", "--hypothesis-profile=few"]
    session.run(*command, *options, env={"COVERAGE_CORE": "sysmon"})


def on(version: str) -> dict[str, Any]:
    """Return the options of a session on a Python that need not be there."""
    path = PYTHONS[version]
    return {"python": path, "venv_params": ["--seed"]} if path else {"venv_backend": "none"}


for _version in SUPPORTED:

    @nox.session(name=f"quick-{_version}", default=_version != THIS, **on(_version))
    def quick(session: nox.Session) -> None:
        """Run the quick tests with the newest of everything."""
        quick_tests(session, session.name.removeprefix("quick-"))


@nox.session(**on(SUPPORTED[0]))
def lowest(session: nox.Session) -> None:
    """Run the quick tests on the oldest Python with the lowest versions that pyproject.toml allows."""
    quick_tests(session, SUPPORTED[0], "--resolution", "lowest-direct")

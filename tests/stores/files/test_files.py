"""Only `accumulator._stores.files.system` changes the file system; all others ask it to."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from zarr.storage import LocalStore

import accumulator
from accumulator._stores.format.store import FolderStore

ROOT = Path(accumulator.__file__).parent
SYSTEM = "_stores/files/system.py"
LOOKS = {  # and change no file
    "os": {
        *(
            "access",
            "close",
            "cpu_count",
            "dup2",
            "fsencode",
            "fspath",
            "fstat",
            "getpid",
            "read",
            "register_at_fork",
        ),
        *("scandir", "sched_getaffinity", "statvfs"),
    },
    "shutil": {"disk_usage", "get_terminal_size"},
    "tempfile": {"gettempdir"},
}
CHANGES = {  # as `Path`, zarr, tifffile, Pillow, matplotlib and NumPy call it
    *(
        "TiffFile",
        "TiffWriter",
        "chmod",
        "create_group",
        "hardlink_to",
        "imwrite",
        "mkdir",
        "rename",
        "rmdir",
        "rmtree",
    ),
    *("savefig", "symlink_to", "tofile", "touch", "unlink", "write_bytes", "write_image", "write_text"),
}
ALLOWED = {
    ("_cli/shared.py", "os.open"): "the null device, in place of an output that was closed",
    ("_export/geotiff.py", "open"): "rasterio writes to the place that `staged` gave",
    ("_export/ome_tiff.py", "TiffFile"): "tifffile sets a link in what it wrote there",
    ("_export/ome_tiff.py", "TiffWriter"): "tifffile writes to the place that `staged` gave",
    ("_export/ome_tiff.py", "create_group"): "zarr writes beside it",
    ("_export/ome_zarr.py", "create_group"): "zarr writes to the place that `staged` gave",
    ("_stores/format/layout.py", "create_group"): "in memory",
    ("_stores/kept/fit.py", "create_group"): "in memory",
    ("_stores/kept/run.py", "create_group"): "zarr writes through `FolderStore`",
    ("_stores/ranks/part.py", "create_group"): "zarr writes through `FolderStore`",
    ("_stores/ranks/shared.py", "create_group"): "zarr writes through `FolderStore`",
    ("_stores/writing/patches.py", "create_group"): "zarr writes through `FolderStore`",
    ("_stores/writing/zarr_rows.py", "create_group"): "zarr writes through `FolderStore`",
}


def changes(source):
    """Yield how each call that may change files is named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in LOOKS:
            yield f"from {node.module}"
        if not isinstance(node, ast.Call):
            continue
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        owner = owner.id if isinstance(owner, ast.Name) else None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [argument.value for argument in ast.walk(node) if isinstance(argument, ast.Constant)]
        if owner == "system":
            continue
        if (owner, name) == ("os", "open"):
            if "O_RDONLY" not in ast.unparse(node):
                yield "os.open"
        elif owner in LOOKS:
            if name not in LOOKS[owner]:
                yield f"{owner}.{name}"
        elif (
            name in CHANGES
            or (name == "open" and any(re.fullmatch("[rbt]*[wax+][rwaxbt+]*", str(text)) for text in texts))
            or (name == "replace" and len(node.args) == 1 and not node.keywords)
        ):
            yield name


def test_only_the_system_module_changes_files():
    """A call that may is an error, unless what it writes to was given by `files`."""
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in ROOT.rglob("*.py")
        if str(path.relative_to(ROOT)) != SYSTEM
        for name in changes(path.read_text())
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("os.rename(a, b)", "os.rename"),
        ("os.open(a, os.O_WRONLY)", "os.open"),
        ("shutil.rmtree(a)", "shutil.rmtree"),
        ("tempfile.mkdtemp()", "tempfile.mkdtemp"),
        ("from shutil import rmtree", "from shutil"),
        ("path.replace(other)", "replace"),
        ("(path / name).unlink()", "unlink"),
        ("open(path, 'r+b')", "open"),
        ("path.open(mode='xb')", "open"),
    ],
)
def test_changes_are_seen(source, name):
    """The test above would find each of these."""
    assert list(changes(source)) == [name]


@pytest.mark.parametrize(
    "source",
    ["text.replace(a, b)", "system.rename(a, b)", "os.open(a, os.O_RDONLY)", "path.open('rb')", "open(path)"],
)
def test_what_changes_nothing_is_no_change(source):
    """Texts, what is asked of `system`, and reading."""
    assert list(changes(source)) == []


def test_zarr_writes_through_the_store():
    """No method by which zarr's own store changes files is inherited, whatever the version of zarr."""
    opens = {"_open", "_ensure_open", "_ensure_open_sync"}  # make the root, without which `root` raises
    by_hand = {"clear", "move", "set_partial_values"}  # nobody but a user calls them
    writers = {
        name
        for name, method in vars(LocalStore).items()
        if inspect.isfunction(method)
        and re.search(
            r"_put|_delete|_clear|_move|unlink|rmtree|mkdir|shutil|\b_set\b", inspect.getsource(method)
        )
    }
    assert {"set", "set_if_not_exists", "delete", "delete_dir"} <= writers
    assert writers - opens - by_hand - {"_set"} <= set(vars(FolderStore))  # which those two call

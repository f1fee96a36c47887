"""How the documentation is built: ``sphinx-build -n -W docs docs/_build/html``."""

from __future__ import annotations

import builtins
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

import attrs
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.util.nodes import find_pending_xref_condition, make_refnode

import accumulator
from accumulator.exceptions import AccumulatorError

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HANDED = (accumulator.FullBatch, accumulator.Plan, accumulator.StitchedMap)  # users do not make them

project = "accumulator"
author = "the accumulator maintainers"
project_copyright = f"2026, {author}"
release = accumulator.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates", "changes", "**/_*.md"]
templates_path = ["_templates"]
default_role = "py:obj"
nitpicky = True

html_theme = "furo"
html_title = "accumulator"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Libraries of integrations are large: what is not installed is made up while its module is read.
autodoc_mock_imports = [
    name
    for name in ("accelerate", "lightning", "monai", "ray", "tiatoolbox", "torch", "torchio", "transformers")
    if find_spec(name) is None
]
autosummary_generate = True
# Attributes that the docstring of their class describes.
autosummary_context = {
    "described": {each.__name__: [field.name for field in attrs.fields(each)] for each in HANDED}
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: f"accumulator.typing.{name}" for name in accumulator.typing.__all__}
napoleon_google_docstring = False
napoleon_use_ivar = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

_COLON = "\ufdd0"  # no character
_NAME = re.compile(r"[A-Z]\w*[a-z]\w*|[A-Za-z_][\w.]*\.\w+")  # a class, or something in a module

# Where names of others are described. An inventory of theirs would take a network to build.
_NUMPY = "https://numpy.org/doc/stable/reference"
_PYTHON = "https://docs.python.org/3/library"
_ELSEWHERE = (
    {
        "Affine": "https://affine.readthedocs.io/en/latest/",
        "Axes": "https://matplotlib.org/stable/api/_as_gen/matplotlib.axes.Axes.html",
        "CRS": "https://rasterio.readthedocs.io/en/stable/api/rasterio.crs.html",
        "in": f"{_PYTHON}/stdtypes.html#mapping-types-dict",
        "items": f"{_PYTHON}/stdtypes.html#dict.items",
        "keys": f"{_PYTHON}/stdtypes.html#dict.keys",
        "values": f"{_PYTHON}/stdtypes.html#dict.values",
        "DTypeLike": f"{_NUMPY}/typing.html#numpy.typing.DTypeLike",
        "Dataset": "https://docs.xarray.dev/en/stable/generated/xarray.Dataset.html",
        "NDArray": f"{_NUMPY}/typing.html#numpy.typing.NDArray",
        "Tensor": "https://docs.pytorch.org/docs/stable/tensors.html",
        "bool_": f"{_NUMPY}/arrays.scalars.html#numpy.bool_",
        "dask.array.Array": "https://docs.dask.org/en/stable/generated/dask.array.Array.html",
        "distributed": "https://distributed.dask.org/en/stable/",
        "distributed.Client": "https://distributed.dask.org/en/stable/api.html#distributed.Client",
        "ray.data.Dataset.write_datasink": "https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.write_datasink.html",
        "dtype": f"{_NUMPY}/generated/numpy.dtype.html",
        "generic": f"{_NUMPY}/arrays.scalars.html#numpy.generic",
        "int64": f"{_NUMPY}/arrays.scalars.html#numpy.int64",
        "intp": f"{_NUMPY}/arrays.scalars.html#numpy.intp",
        "ndarray": f"{_NUMPY}/generated/numpy.ndarray.html",
        "monai.inferers.Splitter": "https://docs.monai.io/en/stable/inferers.html#splitters",
        "torchio.GridSampler": "https://docs.torchio.org/patches/patch_inference.html",
        "transformers.trainer_utils.PredictionOutput": "https://huggingface.co/docs/transformers/main_classes/trainer",
        "uint32": f"{_NUMPY}/arrays.scalars.html#numpy.uint32",
        "zarr.Array": "https://zarr.readthedocs.io/en/stable/api/zarr/array/#zarr.Array",
    }
    | {
        name: f"{_PYTHON}/exceptions.html#{name}"
        for name in dir(builtins)
        if name.endswith(("Error", "Exception", "Warning"))
    }
    | {
        name: f"{_PYTHON}/{page}.html#{full}"
        for page, names in {
            "collections.abc": [
                "collections.abc.Callable",
                "collections.abc.Mapping",
                "collections.abc.Sequence",
            ],
            "functions": ["bool", "complex", "float", "int", "len", "slice", "type"],
            "os": ["os.PathLike"],
            "pickle": ["pickle.PicklingError"],
            "stdtypes": ["dict", "list", "str", "tuple"],
            "typing": ["typing.Any", "typing.Literal", "typing.Protocol", "typing.TypedDict"],
        }.items()
        for full in names
        for name in [full, full.rpartition(".")[2]]
    }
)
# What docstrings say in words of the field, and the type that says it to a checker.
_WORDS = {
    "array-like": "ArrayLike",
    "array-like of bool": "ArrayLike",
    "path": "StrPath",
    "scalar": "FillValue",
    "zarr codec": "Compressors",
}
_RENAMED = {"BandValues": "Bands", "OnPasses": "Passes"}  # imported by another name
_PRIVATE = {"_T", "Canvas", "LocationIndex"}  # in signatures, and nowhere explained


def read_types(app: Sphinx, doctree: nodes.document) -> None:
    """Link the words of docstrings' types; leave as text what is no name, such as ``optional``."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        text = paragraph.astext()
        if text.startswith("alias of ") and "_Supports" in text:  # NumPy's own, which nobody reads
            paragraph.parent.remove(paragraph)
    for node in list(doctree.findall(pending_xref)):
        if node.get("refdomain") != "py" or node.get("reftype") != "class":
            continue
        target = node["reftarget"]
        if target in _WORDS:
            node["reftarget"] = f"accumulator.typing.{_WORDS[target]}"
        elif not _NAME.fullmatch(target) and target.rpartition(".")[2] not in _ELSEWHERE:
            node.replace_self((find_pending_xref_condition(node, "resolved") or node).children)


def resolve(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Node | None:
    """Find public names without their module, types by their alias, and names of other libraries."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    last = target.rpartition(".")[2]
    if last in _RENAMED:
        target = last = _RENAMED[last]
        content = nodes.Text(last)
    domain = environment.get_domain("py")
    page = node["refdoc"].rpartition("/")[2]  # which summary tables do not say
    for module in (page, "accumulator", "accumulator.typing", "accumulator.exceptions"):
        for name in (target, last):
            if (found := domain.objects.get(f"{module}.{name}")) is not None:
                return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content)
    if last in _PRIVATE:
        return content
    address = _ELSEWHERE.get(target) or _ELSEWHERE.get(last)
    return address and nodes.reference("", "", content, internal=False, refuri=address)


def hide_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Let napoleon take no sentence with a colon for the type of an attribute, and its rest."""
    if what in {"attribute", "data", "property"} and lines:
        lines[0] = lines[0].replace(":", _COLON)


def show_colons(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Put back what was hidden from napoleon."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def without_private(app: Sphinx, name: str, kind: type, options: object, bases: list[type]) -> None:
    """Name the bases that users know."""
    bases[:] = [base for base in bases if not base.__name__.startswith("_")] or [AccumulatorError]


def without_making(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show no signature of what users are handed, and do not make."""
    return ("", "") if what == "class" and thing in HANDED else None


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("doctree-read", read_types)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", hide_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("autodoc-process-bases", without_private)
    app.connect("autodoc-process-signature", without_making)

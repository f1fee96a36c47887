"""What was written against the public names and signatures that were recorded goes on working.

They are those from before the code moved into rooms, in tests/data/public_api.txt. Since then signatures have
got more words, each with a default, and names have come, which are told here.
"""

from __future__ import annotations

import builtins
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest

import accumulator
from accumulator.integrations import tiatoolbox

RECORDED = Path(__file__).parent / "data" / "public_api.txt"
NEW = {  # since then
    "  def to_dask(self)",
    "  def to_xarray(self)",
    "  names",
    (
        "class accumulator.exceptions.BlendWarning"
        "(AccumulatorError, UserWarning, Warning, Exception, BaseException)"
    ),
    "  classmethod load(cls, path)",
    "  def save_geotiff(self, path, *, head=None, crs, transform, nodata=None, channel_names=None, kind='image')",  # noqa: E501
    "  files_free",
    "  n_outside",
    "  scale",
    "class accumulator.exceptions.UnsavedError(ProcessError, AccumulatorError, RuntimeError, Exception, BaseException)",  # noqa: E501
    "def accumulator.publish(path, partial=False, processes=1, *, on_duplicate=None, leave_out=())",
    "def accumulator.integrations.tiatoolbox.use_accumulator()",
    "def accumulator.grid_locations(shape, patch, *, overlap=None, stride=None, border='shift', origin=None, mask=None, min_mask_ratio=0)",  # noqa: E501
    "accumulator.typing.Auto = ('auto',)",
    "accumulator.typing.Border = ('shift', 'over')",
    "accumulator.typing.Chunks",
    "accumulator.typing.Compressors",
    "accumulator.typing.Crop",
    "accumulator.typing.DeclaredHeads",
    "accumulator.typing.Passes = ('error', 'first', 'average')",
    "accumulator.typing.FillValue",
    "accumulator.typing.MapKind = ('image', 'rgb', 'labels')",
    "accumulator.typing.Scale",
    "accumulator.typing.StorageOption",
    "class accumulator.typing.StitchOptions(dict)",
    "class accumulator.typing.StorageOptions(dict)",
    "  def will_not_come(self, locs)",
    "accumulator.typing.BlendName = ('average', 'gaussian', 'hann', 'max', 'min', 'last', 'nearest', 'vote')",
    "accumulator.typing.Reduce",
    "accumulator.typing.WindowName = ('gaussian', 'hann')",
}
WIDER = {  # what they meant is part of what they mean
    # Its options were those of `Stitcher`, in **options.
    "def accumulator.stitch(batch, *, heads=None, rank=None, world_size=None, **options)": (
        "def accumulator.stitch(batch, *, heads=None, weights=None, blend='average', spread=False, "
        "reduce=None, output_shape=None, origin=None, channels_first=False, crop=None, scale=None, "
        "axes=None, dtype=None, "
        "fill_value=0, nodata=None, on_band=None, save_path='temp_fullbatch', memory_threshold=80, "
        "memory_limit=None, store=None, progress=False, chunks=None, shards=None, compressors=None, "
        "on_duplicate='error', rank=None, world_size=None)"
    ),
    "accumulator.typing.Blend = ('average', 'gaussian', 'hann', 'max', 'last')": "accumulator.typing.Blend",
}
MODULES = (accumulator, accumulator.exceptions, accumulator.typing, tiatoolbox)
SPECIAL = ("__enter__", "__exit__", "__reduce__", "__repr__", "__str__", "_repr_html_")


def public_names():
    """Yield one line for each public name: signatures with names, kinds and defaults; no annotations."""
    for module in MODULES:
        for name in sorted(module.__all__):
            value, full = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.isclass(value):
                yield from members(value, full)
            elif inspect.isfunction(value):
                yield f"def {full}{shape_of(value)}"
            elif typing.get_origin(value) is typing.Literal:
                yield f"{full} = {typing.get_args(value)}"
            else:
                yield full


def members(kind, full):
    """Yield a class with what it is, how it is made, and what it has that is not a builtin's."""
    own = [each for each in kind.__mro__ if each.__module__.split(".")[0] == "accumulator"]
    bases = [each.__name__ for each in kind.__mro__[1:-1] if each.__module__ == "builtins" or is_public(each)]
    yield f"class {full}({', '.join(bases)})"
    if any("__init__" in vars(each) for each in own) and not getattr(kind, "_is_protocol", False):
        yield f"  {full}{shape_of(kind)}"
    inside = {name for each in own for name in vars(each)}
    for name in sorted(name for name in inside if not name.startswith("_") or name in SPECIAL):
        value = inspect.getattr_static(kind, name)
        if isinstance(value, (classmethod, staticmethod)):
            yield f"  {type(value).__name__} {name}{shape_of(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"  def {name}{shape_of(value)}"
        else:
            yield f"  {name}"


def is_public(kind):
    """Whether a class of the library can be imported from where its users look."""
    return any(
        kind.__name__ in module.__all__ and getattr(module, kind.__name__) is kind for module in MODULES
    )


def shape_of(function):
    """Return a signature without its annotations."""
    signature = inspect.signature(function)
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return signature.replace(parameters=bare, return_annotation=signature.empty)


def name_of(line):
    """Return a line without its signature."""
    return line.partition("(")[0]


def is_wider(recorded, now):
    """Whether every call that fits the one signature fits the other, and means the same."""
    old, new = (made_of(line).parameters for line in (recorded, now))
    if [new.get(name) for name in old] != list(old.values()):
        return False
    added = [each for name, each in new.items() if name not in old]
    places = [name for name, each in new.items() if each.kind is not each.KEYWORD_ONLY]
    return places[: len(old)] == [
        name for name, each in old.items() if each.kind is not each.KEYWORD_ONLY
    ] and all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in added)


def made_of(line):
    """Return the signature that a line tells."""
    scope = {}
    exec(f"def f{line[line.index('(') :]}: pass", scope)  # noqa: S102  what this file has written
    return inspect.signature(scope["f"])


def test_public_names_and_signatures_are_those_recorded():
    """Nothing that a user wrote against the recorded names stops working, and nothing new slips in."""
    now, recorded = list(public_names()), RECORDED.read_text().splitlines()
    assert set(now) >= NEW
    left = [name for name in now if name not in NEW]
    assert len(left) == len(recorded)
    for line, old in zip(left, recorded, strict=True):
        if line != WIDER.get(old, old):
            assert name_of(line) == name_of(old)
            assert is_wider(old, line), line


def test_stitch_spells_the_options_that_it_hands_on():
    """Each of those that a checker knows is in its signature, with the default of `Stitcher`."""
    spelled = inspect.signature(accumulator.stitch).parameters
    handed = inspect.signature(accumulator.Stitcher).parameters
    options = accumulator.typing.StitchOptions.__optional_keys__
    assert options == set(spelled) - {"batch", "heads", "weights", "rank", "world_size", "on_duplicate"}
    for name in options:
        assert spelled[name].kind is spelled[name].KEYWORD_ONLY
        assert spelled[name].default is handed[name].default


@pytest.mark.parametrize(
    "now",
    ["def f(a, b=2, c=3)", "def f(a, *, b=1)", "def f(a, b=1, *, c)", "def f(b=1)", "def f(a, c=2, b=1)"],
)
def test_signatures_that_would_break_a_call_are_told(now):
    """Another default or place, one less, and a word without a default; but not a word more."""
    assert not is_wider("def f(a, b=1)", now)
    assert is_wider("def f(a, b=1)", "def f(a, b=1, *, c=2)")


FACE = ["FullBatch", "FullBatchAccumulator", "Plan", "StitchedMap", "Stitcher"]
FUNCTIONS = ["grid_locations", "prepare_multitask_full_batch", "publish", "stitch"]


def docstrings():
    """Yield what every public class, method, property and function says, and whether it returns something."""
    for name in FACE:
        kind = getattr(accumulator, name)
        yield name, kind.__doc__, False
        for member in sorted(each for each in {*dir(kind)} - {*dir(Mapping)} if not each.startswith("_")):
            value = inspect.getattr_static(kind, member)
            if isinstance(value, property):
                yield f"{name}.{member}", value.__doc__, False
            elif inspect.isroutine(value):
                returned = inspect.signature(getattr(kind, member)).return_annotation
                yield f"{name}.{member}", value.__doc__, returned not in {None, "None"}
    for name in FUNCTIONS:
        yield name, getattr(accumulator, name).__doc__, True


DOCSTRINGS = {name: (text, returns) for name, text, returns in docstrings()}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_docstrings_say_what_comes_back_and_each_error(name):
    """Who returns something has Returns; Raises and Warns have one class an entry, one that there is."""
    text, returns = DOCSTRINGS[name]
    assert text
    text = inspect.cleandoc(text)
    assert returns == ("Returns\n-------\n" in text)
    for section in ("Raises", "Warns"):
        _, _, rest = text.partition(f"{section}\n{'-' * len(section)}\n")
        for line in rest.split("\n\n")[0].splitlines():
            if not line.startswith(" "):
                error = getattr(accumulator.exceptions, line, None) or getattr(builtins, line)
                assert issubclass(error, Exception)


if __name__ == "__main__":
    print("\n".join(public_names()))  # noqa: T201  to see what there is

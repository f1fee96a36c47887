"""Heads keep their order and go back to the user as they came."""

import subprocess
import sys

import pytest

from accumulator._inputs.heads import Heads
from accumulator._inputs.warn import warn


@pytest.mark.parametrize("given", [[], [1, 2], {}, {"b": 1, "a": 2}])
def test_heads_are_given_back_as_they_came(given):
    """A list as a list, a dict as a dict in its order, also with other values."""
    heads = Heads.of(given)
    assert heads.as_given() == given
    assert list(heads.by_name()) == [str(key) for key in heads.keys]
    assert list(heads) == list(heads.by_name().values())
    doubled = heads.like(2 * value for value in heads)
    assert doubled.keys == heads.keys
    assert list(doubled) == [2 * value for value in heads]


def test_heads_are_called_by_name_or_number():
    """As a message has it, and as options are given for them."""
    assert Heads.of(["x", "y"]).label(1) == "head 1"
    assert Heads.of({"tumour": "x"}).label(0) == "head 'tumour'"
    assert Heads.of({"b": 1, "a": 2}).keys == ("b", "a")
    assert Heads.of([1, 2]).keys == (0, 1)


def test_warning_names_the_first_line_outside_of_the_library():
    """However it is called; where there is none, it is told all the same."""
    with pytest.warns(UserWarning, match="wrong") as told:
        warn("wrong")
    assert told[0].filename == __file__
    script = "import weakref; from accumulator._inputs.warn import warn\nweakref.finalize(warn, warn, 'late')"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "late" in done.stderr

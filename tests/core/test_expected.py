"""``n_expected``: how many locations are to come, where a mask leaves others out, and who tells it on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.earlier import KINDS
from helpers.files import tree
from helpers.hostile.attacks import set_mark
from helpers.oracle import distinct, grid
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from accumulator import FullBatch, FullBatchAccumulator, publish, stitch
from accumulator._cli import main
from accumulator._pictures import coverage, describe
from accumulator._pictures.svg import LEFT_OUT, MISSING
from accumulator._report.facts import info
from accumulator.exceptions import OptionError, ResultFormatError, ResumeError

N = 12
LOCS = grid(N)
ROWS = distinct(N)


def push(accumulator, rows):
    """Push some rows."""
    accumulator.push({"map": ROWS[list(rows)]}, LOCS[list(rows)])


def said(left, missing, n_written):
    """Return what each of three ways of telling has to say."""
    more = f", {left} left out" if left else ""
    return f"{n_written} of {n_written + missing}", more


@given(st.none() | st.integers(0, N), st.sets(st.integers(0, N - 1), min_size=1))
@example(5, {3})
@example(2, {0, 5, 7})
@example(3, {0, 5, 7})
def test_those_left_out_are_not_missing(n_expected, rows):
    """Of N locations some are expected and some have come: what is left out can be neither."""
    never = 0 if n_expected is None else min(N - n_expected, N - len(rows))
    to_come = N - len(rows) - never
    words, more = said(never, to_come, len(rows))
    with FullBatchAccumulator(LOCS, n_expected=n_expected) as accumulator:
        push(accumulator, rows)
        assert f"written: {words}{more}, RAM" in repr(accumulator)
        assert f"{to_come} missing{more}<" in accumulator._repr_html_()
    batch = accumulator.finalize()
    assert f", {words} written{more}, " in repr(batch)
    assert f"{to_come} missing{more}<" in batch._repr_html_()
    assert len(batch.missing_locs) == N - len(rows)  # which of them, nobody knows
    shown = coverage(LOCS, batch.written, n_left_out=never)
    assert describe(shown).startswith(f"{words} locations written")
    assert describe(shown).endswith(f", {to_come} missing{more}")


@pytest.mark.parametrize("place", [{}, {"memory_threshold": 0}, {"store": "run.zarr"}])
@pytest.mark.parametrize("n_expected", [None, 3, 2, 0])
def test_it_goes_where_the_result_goes(place, n_expected):
    """RAM or disk, saved, loaded, and saved again."""
    with FullBatchAccumulator(LOCS, n_expected=n_expected, **place) as accumulator:
        push(accumulator, [1, 2])
    result = accumulator.finalize()
    result.save("saved.zarr")
    FullBatch.load("saved.zarr").save("again.zarr")
    never = 0 if n_expected is None else N - max(2, n_expected)
    for path in ("saved.zarr", "again.zarr", *place.values())[: 3 if "store" in place else 2]:
        found = info(Path(path))
        assert (found.n_expected, found.n_left_out, found.n_missing) == (n_expected, never, N - 2 - never)
        assert repr(FullBatch.load(path)).count(f", {never} left out") == bool(never)
    result.close()


@pytest.mark.parametrize(
    ("n_expected", "labels"),
    [
        (None, ["2 written", "10 missing"]),
        (2, ["2 written", "10 left out"]),
        (5, ["2 written", "3 missing, 7 left out"]),
    ],
)
def test_plot_tells_them_apart(n_expected, labels):
    """Grey where nothing is missing; else nobody knows which are."""
    with FullBatchAccumulator(LOCS, n_expected=n_expected) as accumulator:
        push(accumulator, [1, 2])
    for each in (accumulator, accumulator.finalize()):
        panel = each.plot_coverage()
        assert [text.get_text() for text in panel.get_legend().get_texts()] == labels
        other, _ = panel.collections
        color = LEFT_OUT if n_expected == 2 else MISSING
        assert to_hex(other.get_facecolor()[0]) == color
        plt.close(panel.figure)


@pytest.mark.parametrize("n_expected", [5, 0, N])
def test_a_kept_run_keeps_it(n_expected, capsys):
    """It is told again to who resumes, and another number replaces it; none leaves it."""
    with FullBatchAccumulator(LOCS, store="run.zarr", n_expected=n_expected) as accumulator:
        push(accumulator, [3])
        accumulator.flush()
        assert info(Path("run.zarr")).n_expected == n_expected
        accumulator.close()
    for given_now, expected in ((None, n_expected), (7, 7), (None, 7), (7, 7)):
        options = {} if given_now is None else {"n_expected": given_now}
        with FullBatchAccumulator(LOCS, store="run.zarr", mode="a", **options) as accumulator:
            assert f"written: 1 of {max(1, expected)}" in repr(accumulator)
        assert info(Path("run.zarr")).n_expected == expected
        assert info(Path("run.zarr")).state == "complete"
    with FullBatchAccumulator(LOCS, store="run.zarr", mode="a", n_expected=4) as accumulator:
        push(accumulator, [5])
        assert info(Path("run.zarr")).n_expected == 4  # from the first push on
    assert main(["info", "run.zarr"]) == 0
    out = capsys.readouterr().out
    assert "written             2 (50.0%)\nmissing             2\nleft out by a mask  8\n" in out
    assert main(["verify", "run.zarr"]) == 0


def test_resuming_with_the_same_number_changes_nothing():
    """As it was with none: a look at a complete store does not write it."""
    with FullBatchAccumulator(LOCS, store="run.zarr", n_expected=5) as accumulator:
        push(accumulator, range(5))
    before = tree(Path("run.zarr"))
    for options in ({}, {"n_expected": 5}):
        with FullBatchAccumulator(LOCS, store="run.zarr", mode="a", **options):
            pass
        assert tree(Path("run.zarr")) == before


def test_without_it_stores_are_as_they_were():
    """No key more than earlier versions know, who would take it for damage."""
    with FullBatchAccumulator(LOCS, store="run.zarr") as accumulator:
        push(accumulator, range(5))
    mark = json.loads(Path("run.zarr/zarr.json").read_text("utf-8"))["attributes"]["accumulator"]
    assert "n_expected" not in mark
    with FullBatchAccumulator(LOCS, store="run.zarr", mode="a", n_expected=5) as accumulator:
        pass
    assert info(Path("run.zarr")).n_expected == 5


@pytest.mark.parametrize("wrong", [-1, N + 1, 2.0, "5", True, []])
def test_numbers_that_cannot_be_are_damage(wrong):
    """A stranger's metadata says so with a right digest, and is not believed."""
    with FullBatchAccumulator(LOCS, store="run.zarr", n_expected=5) as accumulator:
        push(accumulator, range(5))
    mark = json.loads(Path("run.zarr/zarr.json").read_text("utf-8"))["attributes"]["accumulator"]
    set_mark(Path("run.zarr"), mark | {"n_expected": wrong})
    with pytest.raises(ResultFormatError, match="impossible values"):
        FullBatch.load("run.zarr")
    set_mark(Path("run.zarr"), mark | {"n_expected": 4})
    assert FullBatch.load("run.zarr").written.sum() == 5
    group = json.loads(Path("run.zarr/zarr.json").read_text("utf-8"))
    group["attributes"]["accumulator"]["n_expected"] = 3  # the digest is another's
    Path("run.zarr/zarr.json").write_text(json.dumps(group), "utf-8")
    with pytest.raises(ResultFormatError, match="metadata was changed"):
        FullBatch.load("run.zarr")


def open_rank(rank, n_expected):
    """Begin a rank of two."""
    options = {"store": "run.zarr", "mode": "a", "rank": rank, "world_size": 2}
    return FullBatchAccumulator(LOCS, n_expected=n_expected, **options)


def test_ranks_agree_on_it_and_the_result_has_it():
    """The first rank fixes it; one that tells none takes it, one that tells another is refused."""
    with open_rank(0, 6) as accumulator:
        push(accumulator, [0, 2])
        assert info(Path("run.zarr")).n_expected == 6
    with open_rank(1, None) as accumulator:
        push(accumulator, [1])
    with pytest.raises(ResumeError, match="its n_expected is 6, and 5 is given"):
        open_rank(1, 5)
    found = info(Path("run.zarr"))
    assert (found.n_written, found.n_missing, found.n_left_out) == (3, 3, 6)
    with publish("run.zarr") as batch:
        assert ", 3 of 6 written, 6 left out, " in repr(batch)
    found = info(Path("run.zarr"))
    assert (found.state, found.n_expected, found.n_missing) == ("complete", 6, 3)


def test_without_it_ranks_agree_as_they_did():
    """No key more than earlier versions know."""
    with open_rank(0, None) as accumulator:
        push(accumulator, [0])
        assert "n_expected" not in json.loads(Path("run.zarr/parts/run.json").read_text("utf-8"))


def test_ranks_that_expect_too_much_leave_nothing():
    """They are refused before anything is made."""
    with pytest.raises(OptionError, match="n_expected is 13, but full_output_locs has 12"):
        open_rank(0, N + 1)
    assert not Path("run.zarr").exists()


def test_maps_of_a_masked_run_are_those_of_any_other():
    """What is left out is a matter of words alone."""
    maps = []
    for n_expected in (None, 3):
        with FullBatchAccumulator(LOCS, n_expected=n_expected) as accumulator:
            push(accumulator, [0, 1, 2])
        maps.append(stitch(accumulator.finalize(), scale=0.5))
    np.testing.assert_array_equal(*(made.outputs["map"] for made in maps))


@pytest.mark.parametrize("name", ["raw", "raw, killed", "saved from disk"])
def test_earlier_stores_tell_none(name, tmp_path):
    """They load, and a resumed one takes a number."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "data" / "stores-of-0.1.zip") as stores:
        stores.extractall(tmp_path, [each for each in stores.namelist() if each.startswith(f"{name}/")])
    path = tmp_path / name
    assert info(path).n_expected is None
    if KINDS[name].end != "saved":
        with FullBatchAccumulator(grid(31), store=path, mode="a", n_expected=31, chunks=5) as accumulator:
            assert accumulator.written.sum() == info(path).n_written
        assert info(path).n_expected == 31

"""Maps of heads that are declared: complete without a patch, or refused before the first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.maps import LOCS, ONES

from accumulator import FullBatchAccumulator, Stitcher, stitch
from accumulator._cli.commands import main
from accumulator.exceptions import HeadDtypeError, HeadError, LocationError, NothingPushedError, OptionError

NONE = np.empty((0, 4), int)
HEADS = {"a": ((4, 4, 2), "f4"), "b": np.empty((3, 4, 4), "u1")}


@pytest.mark.parametrize("how", [{}, {"memory_threshold": 0}, {"store": "maps.zarr"}])
@pytest.mark.parametrize(("locs", "shape"), [(LOCS, None), (LOCS, (5, 6)), (NONE, (8, 8))])
def test_slide_without_tissue_gives_complete_maps_of_fill_values(how, locs, shape):
    """Nothing is pushed, or there is no box: the maps have their size all the same."""
    with Stitcher(locs, heads=HEADS, fill_value={"a": np.nan}, output_shape=shape, **how) as stitcher:
        pass
    maps = stitcher.finalize()
    height, width = shape or (8, 8)
    np.testing.assert_array_equal(
        maps.outputs["a"][:], np.full((height, width, 2), np.nan, "f4"), strict=True
    )
    np.testing.assert_array_equal(maps.outputs["b"][:], np.zeros((height, width), "u1"), strict=True)
    assert maps.n_stitched == 0
    assert not maps.coverage().any()
    maps.close()


def test_first_batch_that_differs_from_what_was_declared_is_refused():
    """And one that does not is blended, as if heads had not been declared."""
    patch = {"a": np.ones((1, 4, 4, 2), "f4"), "b": np.ones((1, 4, 4), "u1")}
    with Stitcher(LOCS, heads=HEADS) as stitcher:
        for wrong, error in [
            ({"a": patch["a"]}, HeadError),
            ({**patch, "a": np.ones((1, 4, 4), "f4")}, HeadError),
            ({**patch, "b": np.ones((1, 4, 4))}, HeadDtypeError),
        ]:
            with pytest.raises(error, match="heads="):
                stitcher.push(wrong, LOCS[:1])
        stitcher.push(patch, LOCS[:1])
    assert stitcher.finalize().outputs["a"].sum() == 32


@pytest.mark.parametrize(
    ("heads", "error"),
    [
        ([((4,), "f4")], HeadError),
        ([((4, 4, 1), np.longdouble)], HeadDtypeError),
        ([((4, 4), "f4"), ((8, 8), "f4")], LocationError),
        ([np.ones((4, 4))], HeadError),
    ],
)
def test_declared_heads_that_are_no_maps_are_refused_at_once(heads, error):
    """Before the store is made, and without a warning of what was not closed."""
    with pytest.raises(error):
        Stitcher(LOCS, heads=heads, store="maps.zarr")
    assert not Path("maps.zarr").exists()


@pytest.mark.parametrize("how", [{}, {"memory_threshold": 0}])
def test_result_of_declared_heads_is_stitched(how):
    """Of a run that nothing was pushed to, with boxes and without."""
    with FullBatchAccumulator(LOCS, heads=HEADS, **how) as accumulator:
        pass
    maps = stitch(accumulator.finalize(), fill_value=1)
    assert (maps.outputs["a"][:] == 1).all()
    assert maps.outputs["b"].shape == (8, 8)
    with FullBatchAccumulator(NONE, heads=HEADS, **how) as accumulator:
        pass
    with pytest.raises(OptionError, match="give output_shape"):
        stitch(accumulator.finalize())
    maps = stitch(accumulator.finalize(), output_shape=(3, 4), fill_value=1)
    assert maps.outputs["a"][:].tolist() == np.ones((3, 4, 2)).tolist()


def test_without_declared_heads_each_says_so_in_one_sentence(capsys):
    """The class, `stitch` and the command."""
    with pytest.raises(NothingPushedError, match=r"declare them with heads=\["), Stitcher(LOCS):
        pass
    with pytest.raises(OptionError, match=r"full_output_locs is empty.*give output_shape"):
        Stitcher(NONE, heads=[ONES])
    with FullBatchAccumulator(NONE, store="run.zarr") as accumulator:
        pass
    with pytest.raises(NothingPushedError, match=r"no heads, as nothing was pushed.*heads=\["):
        stitch(accumulator.finalize())
    for name in ("map.zarr", "map.ome.tif"):
        assert main(["stitch", "run.zarr", "-o", name]) == 1
        said = capsys.readouterr()
        assert "no heads, as nothing was pushed" in said.err
        assert len(said.err.splitlines()) == 1


def test_store_without_tissue_is_no_map_to_the_command(capsys):
    """Who looks at a file wants to see something: no patch at all is an error, and nothing is written."""
    for locs, name in [(LOCS, "a"), (NONE, "b")]:
        with FullBatchAccumulator(locs, heads=[((4, 4, 1), "f4")], store=f"{name}.zarr"):
            pass
        assert main(["stitch", f"{name}.zarr", "-o", f"{name}-map.zarr", "--shape", "6,7"]) == 1
        assert f"{name}.zarr has none of its {len(locs)} patches" in capsys.readouterr().err
        assert not Path(f"{name}-map.zarr").exists()

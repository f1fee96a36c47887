"""Axes have names in every store, and one length each, so that xarray opens it."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from helpers.oracle import distinct, grid
from hypothesis import given
from hypothesis import strategies as st

from accumulator import FullBatch, FullBatchAccumulator, StitchedMap, publish, stitch
from accumulator._inputs import validation
from accumulator._inputs.heads import Heads, dimension_names

N = 12
LOCS = grid(N)
HEADS = {"map": distinct(N, (4, 4, 2)), "score": distinct(N, (3,), "i2"), "mask": distinct(N, (4, 4), "u1")}

BATCH, MAP = ("location", "y", "x", "map_channel"), ("y", "x", "channel")


@given(
    st.integers(0, 5),
    st.dictionaries(
        st.sampled_from(["a", "y", "channel", "location", "x_y"]), st.lists(st.integers(0, 3), max_size=7)
    ),
)
def test_a_name_has_one_length_and_is_no_head(n, shapes):
    """Of any heads; the first axis of all is the same."""
    given_shapes = Heads.of({name: (n, *shape) for name, shape in shapes.items()})
    lengths = {}
    for names, shape in zip(dimension_names(given_shapes), given_shapes, strict=True):
        assert names[0] == "location"
        assert len(set(names)) == len(names) == len(shape)
        for name, length in zip(names, shape, strict=True):
            assert lengths.setdefault(name, length) == length
    assert not lengths.keys() & {"a", "y", "channel"} & shapes.keys()


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((), ()),
        ((3,), ("channel",)),
        ((4, 5), ("y", "x")),
        ((4, 5, 3), ("y", "x", "channel")),
        ((2, 4, 5, 3), ("z", "y", "x", "channel")),
        ((2, 4, 5, 3, 6), ("axis_0", "axis_1", "axis_2", "axis_3", "axis_4")),
    ],
)
def test_patches_are_called_as_they_are_documented(shape, names):
    """``(N, H, W, C)``; what nobody has said is called by its place."""
    assert dimension_names(Heads(((N, *shape),))).values == (("location", *names),)


def test_maps_are_called_by_their_geometry():
    """A volume without channels is none with."""
    assert dimension_names(Heads(((2, 4, 5),)), 3).values == (("z", "y", "x"),)
    assert dimension_names(Heads(((4, 5, 3), (4, 5))), 2).values == (("y", "x", "channel"), ("y", "x"))
    assert dimension_names(Heads(((4, 5, 3), (2, 5))), 2).values == (("0_y", "x", "channel"), ("1_y", "x"))
    assert dimension_names(Heads(((4, 5, 3, 2),)), 2).values == (("y", "x", "axis_2", "axis_3"),)


def pushed(**options):
    """Return a result."""
    with FullBatchAccumulator(LOCS, **options) as accumulator:
        accumulator.push(HEADS, LOCS)
    return accumulator.finalize()


def by_ranks(store):
    """Have two ranks make a store."""
    for rank in range(2):
        with FullBatchAccumulator(LOCS, store=store, mode="a", rank=rank, world_size=2) as accumulator:
            rows = slice(None, None, 2) if rank else slice(1, None, 2)
            accumulator.push({name: head[rows] for name, head in HEADS.items()}, LOCS[rows])
    publish(store)


def map_by_ranks(store):
    """Have two ranks make a map."""
    for rank in range(2):
        stitch(pushed(), heads=["map"], store=store, rank=rank, world_size=2)
    publish(store)


def loaded_map(store):
    """Save a map again that was saved."""
    stitch(pushed(), heads=["map"]).save(store.with_name("first.zarr"))
    StitchedMap.load(store.with_name("first.zarr")).save(store)


STORES = {
    "saved from memory": lambda store: pushed().save(store),
    "saved from disk": lambda store: pushed(memory_threshold=0).save(store),
    "store": lambda store: pushed(store=store),
    "ranks": by_ranks,
    "made by hand": lambda store: FullBatch(HEADS, LOCS, np.ones(N, bool)).save(store),
    "no heads": lambda store: FullBatchAccumulator(LOCS[:0], store=store).finalize(),
    "map": lambda store: stitch(pushed(), heads=["map"]).save(store),
    "map of ranks": map_by_ranks,
    "map, store": lambda store: stitch(pushed(), heads=["map", "mask"], blend="last", store=store),
    "map from disk": lambda store: stitch(pushed(), heads=["map"], memory_threshold=0).save(store),
    "map of a map": loaded_map,
    "maps of two shapes": lambda store: stitch(
        pushed(), heads=["map", "mask"], scale={"map": 1, "mask": 0.5}, crop="start", blend="last"
    ).save(store),
}


@pytest.fixture(scope="module", params=STORES)
def store(request, tmp_path_factory):
    """Return where each kind of store lies."""
    place = tmp_path_factory.mktemp("stores") / "kept.zarr"
    STORES[request.param](place)
    return place


def walk(group, above, path=""):
    """Yield each array, with the lengths of dimensions in its group and those above."""
    lengths = dict(above)
    for name, array in sorted(group.arrays()):
        yield f"{path}{name}", array, lengths
    for name, inner in sorted(group.groups()):
        yield from walk(inner, lengths, f"{path}{name}/")


def test_every_array_has_names_that_fit_those_around(store):
    """Within a group, and with those of the groups above, as xarray's trees demand."""
    names = {}
    for path, array, lengths in walk(zarr.open_group(store, mode="r"), {}):
        names[path] = array.metadata.dimension_names
        assert names[path] is not None
        for name, length in zip(names[path], array.shape, strict=True):
            assert lengths.setdefault(name, length) == length
    head = names.get("outputs/map")
    if head is not None:
        assert head == (MAP if "patches/written" in names else BATCH)
        assert names["written"] == head[:1]


def test_xarray_opens_it(store):
    """Heads are variables, what rows are and which are written are coordinates, and nothing warns."""
    xarray = pytest.importorskip("xarray")
    with xarray.open_datatree(store, engine="zarr", consolidated=False) as tree:
        for node in tree.subtree:
            if node.name == "outputs":
                rows = node.parent.to_dataset()
                assert set(rows.coords) == {"output_locs", "written"}
                if node.parent.name == "patches":
                    continue
                root = store if node.parent.path == "/" else store / node.parent.path[1:]
                result = FullBatch.load(root)
                np.testing.assert_array_equal(rows.written, result.written)
                np.testing.assert_array_equal(rows.output_locs, result.output_locs)
                assert len(node.data_vars) == len(result)
                for name, head in result.items():
                    np.testing.assert_array_equal(node[name], head)


def test_heads_that_an_earlier_version_fixed_are_published_without_names(tmp_path, monkeypatch):
    """Ranks that began before axes had names go on, and what was published of them is added to."""
    store = tmp_path / "run.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(validation, "dimension_names", lambda heads: heads.like(None for _ in heads))
        with FullBatchAccumulator(LOCS, store=store, mode="a", rank=0, world_size=2) as accumulator:
            accumulator.push({name: head[:5] for name, head in HEADS.items()}, LOCS[:5])
    publish(store, partial=True)
    with FullBatchAccumulator(LOCS, store=store, mode="a", rank=1, world_size=2) as accumulator:
        accumulator.push({name: head[5:] for name, head in HEADS.items()}, LOCS[5:])
    batch = publish(store)
    for name, head in HEADS.items():
        np.testing.assert_array_equal(batch[name], head)
        assert batch[name].metadata.dimension_names is None
    batch.save(tmp_path / "copy.zarr")
    assert FullBatch.load(tmp_path / "copy.zarr")["map"].metadata.dimension_names is None

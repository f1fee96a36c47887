"""MONAI's own inferers, with our merger: what comes out is `AvgMerger`'s, or what each number has to be."""

from __future__ import annotations

import gc
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.blends import blended
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import StitchedMap
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    HeadError,
    LocationError,
    NothingPushedError,
    OptionError,
    ResultExistsError,
    UnknownLocationError,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    pytest.importorskip("monai", reason="needs MONAI: pip install '.[monai]'")
    import torch
    from monai.data import MetaTensor
    from monai.inferers import AvgMerger, PatchInferer, SlidingWindowSplitter, sliding_window_inference

from accumulator.integrations.monai import StitcherMerger, splitter_locations

PAGE = Path(__file__).parents[2] / "docs" / "from" / "monai.md"
BY = pytest.mark.parametrize("is_listed", [False, True], ids=["kept", "streamed"])


def whole_numbers(shape, seed=0, most=100):
    """Return an image of whole numbers: sums of them are exact in any order."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, most, shape).astype("f4"))


def noisy(patches):
    """Return an output that no two patches agree on where they overlap; two channels."""
    ramp = torch.arange(patches[0, 0].numel(), dtype=torch.float32).reshape(patches.shape[2:])
    first = patches[:, :1]
    return torch.cat([first * 2 + ramp, first - ramp], 1)


def as_tensor(result):
    """Return a tensor of whatever came out."""
    if isinstance(result, torch.Tensor):
        return result
    return torch.stack([torch.from_numpy(np.moveaxis(result[key][:], -1, 0)) for key in result.keys()])  # noqa: SIM118


def merge(splitter, image, network=noisy, *, is_listed=False, ratio=1, batch_size=3, **options):
    """Run the inferer with our merger."""
    if is_listed:
        options["locations"] = splitter_locations(splitter, image, ratio=ratio)
    return PatchInferer(splitter, merger_cls=StitcherMerger, batch_size=batch_size, **options)(image, network)


@BY
@given(data=st.data())
@settings(max_examples=20)
def test_an_average_is_that_of_avg_merger(is_listed, data):
    """On all axes, with any padding: exactly for whole numbers, gaps and all, in RAM and on disk."""
    n_axes = data.draw(st.integers(2, 3))
    size = st.tuples(*[st.integers(3, 14 if n_axes == 2 else 8)] * n_axes)
    shape = data.draw(size)
    patch = tuple(data.draw(st.integers(2, most)) for most in shape)
    overlap = data.draw(st.sampled_from([0.0, 0.25, 0.5]) | st.integers(0, min(patch) - 1))
    offset = data.draw(st.integers(0, min(shape) - min(patch)))
    keep = data.draw(st.sampled_from([None, lambda _, location: sum(location) % 2 == 0]))
    if keep is not None and offset % 2:
        offset -= 1
    splitter = SlidingWindowSplitter(
        patch, overlap, offset, pad_mode=data.draw(st.sampled_from(["constant", None])), filter_fn=keep
    )
    image = whole_numbers((data.draw(st.integers(1, 2)), 1, *shape))
    if not list(splitter(image)):
        return
    batch_size = data.draw(st.integers(1, 4))
    wanted = PatchInferer(splitter, batch_size=batch_size)(image, noisy)
    got = merge(
        splitter,
        image,
        is_listed=is_listed,
        batch_size=batch_size,
        fill_value=np.nan,
        memory_threshold=data.draw(st.sampled_from([0, 100])),
    )
    np.testing.assert_allclose(as_tensor(got), wanted, rtol=1e-6)
    np.testing.assert_array_equal(splitter_locations(splitter, image), [at for _, at in splitter(image)])


@BY
@pytest.mark.parametrize("blend", ["hann", "gaussian", "own", "max"])
def test_blends_are_those_of_brute_force(is_listed, blend, where):
    """Whatever the window, each number is what Python's arithmetic makes of the patches that meet there."""
    own = np.random.default_rng(1).random((5, 4))
    image, splitter = torch.rand(1, 1, 12, 13), SlidingWindowSplitter((5, 4), overlap=2)
    blend = own if blend == "own" else blend
    got = as_tensor(merge(splitter, image, is_listed=is_listed, blend=blend, fill_value=np.nan, **where))
    pairs = list(splitter(image))
    patches = np.stack([noisy(patch)[0].permute(1, 2, 0).numpy() for patch, _ in pairs])
    locs = np.array([[x, y, x + 4, y + 5] for _, (y, x) in pairs])
    wanted, _, _ = blended(patches, locs, (12, 13), (0, 0), blend, np.nan)
    np.testing.assert_allclose(got[0].permute(1, 2, 0), wanted.astype("f4"), rtol=1e-5, atol=1e-5)


@BY
def test_patches_before_the_image(is_listed):
    """Patches of a negative offset, which `AvgMerger` cannot place, lie where the splitter says."""
    image, splitter = whole_numbers((2, 3, 20, 17)), SlidingWindowSplitter((8, 8), 0.25, offset=-3)
    assert min(splitter_locations(splitter, image).ravel()) == -3
    with pytest.raises(RuntimeError):
        PatchInferer(splitter)(image, lambda patches: patches)
    assert torch.equal(merge(splitter, image, lambda patches: patches, is_listed=is_listed), image)


@BY
def test_what_no_patch_covers(is_listed):
    """It has the fill value, where MONAI divides 0 by 0."""
    image = whole_numbers((1, 1, 9, 9)) + 1
    splitter = SlidingWindowSplitter((4, 4), pad_mode=None, filter_fn=lambda _, at: at != (0, 4))
    theirs = PatchInferer(splitter)(image, lambda patches: patches)
    ours = merge(splitter, image, lambda patches: patches, is_listed=is_listed, fill_value=-7)
    assert torch.equal(theirs.isnan(), ours == -7)
    assert torch.equal(ours[ours != -7], image[ours != -7])
    assert (ours == -7).sum() == 81 - 3 * 16


def test_many_patches_on_a_pixel():
    """`AvgMerger` counts to 255, and then from 0."""
    image, splitter = torch.ones(1, 1, 1, 600), SlidingWindowSplitter((1, 300), overlap=(0, 299))
    theirs = PatchInferer(splitter)(image, lambda patches: patches)
    assert theirs.max() > 1
    assert torch.equal(merge(splitter, image, lambda patches: patches), image)


@BY
@pytest.mark.parametrize("ratio", [0.5, 2])
def test_an_output_of_another_scale(is_listed, ratio):
    """The list is then one of the output."""
    image, splitter = whole_numbers((2, 1, 24, 22)), SlidingWindowSplitter((8, 6), overlap=(4, 2))

    def network(patches):
        return noisy(torch.nn.functional.interpolate(patches, scale_factor=ratio))

    wanted = PatchInferer(splitter)(image, network)
    got = merge(splitter, image, network, is_listed=is_listed, ratio=ratio)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@BY
def test_padding_may_stay(is_listed):
    """With ``match_spatial_shape=False`` the output is as large as the padded input."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4))
    got = merge(splitter, image, is_listed=is_listed, match_spatial_shape=False)
    assert torch.equal(got, PatchInferer(splitter, match_spatial_shape=False)(image, noisy))
    assert got.shape[2:] == (12, 12)


@BY
def test_more_patches_than_a_part_has(is_listed, where):
    """Of the parts that are kept each has twice the rows of the one before; all are stitched."""
    image, splitter = whole_numbers((1, 1, 40, 41)), SlidingWindowSplitter((3, 3), overlap=1)
    assert len(splitter_locations(splitter, image)) > 64 + 128 + 100
    got = as_tensor(merge(splitter, image, is_listed=is_listed, **where))
    np.testing.assert_allclose(got, PatchInferer(splitter)(image, noisy), rtol=1e-6)


@BY
def test_a_memory_limit(is_listed):
    """What is over it is on disk, patches and maps: here a result of 13 kB, and patches of twice that."""
    image, splitter = whole_numbers((1, 1, 40, 41)), SlidingWindowSplitter((4, 4), overlap=2)
    wanted = PatchInferer(splitter)(image, noisy)
    maps = merge(splitter, image, is_listed=is_listed, memory_limit="10 kB")
    assert isinstance(maps, StitchedMap)
    np.testing.assert_allclose(as_tensor(maps), wanted, rtol=1e-6)
    assert isinstance(merge(splitter, image, is_listed=is_listed, memory_limit="100 kB"), torch.Tensor)


def test_patches_that_are_kept_have_a_limit():
    """They go to disk where they are over it, though the map is not."""
    merger = StitcherMerger((1, 1, 40, 40), memory_limit="30 kB")
    image, splitter = whole_numbers((1, 1, 40, 40)), SlidingWindowSplitter((4, 4), overlap=3)
    n_folders = []
    for patch, location in splitter(image):  # 64 bytes each
        merger.aggregate(patch, location)
        n_folders.append(len(list(Path().rglob("full_batch_*"))))
    assert n_folders[191] == 0  # 64 + 128 patches are 12 kB
    assert n_folders[-1] > 0
    np.testing.assert_allclose(merger.finalize(), image, rtol=1e-6)


def test_a_store_is_tried_again():
    """A merger of an earlier run, which an error's traceback may hold, is not in the way."""
    shape, patch = (1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    earlier = StitcherMerger(shape, store="map.zarr")
    earlier.aggregate(patch, (0, 0))
    merger = StitcherMerger(shape, store="map.zarr")
    merger.aggregate(patch, (0, 0))
    assert (merger.finalize()[0][:] == 1).all()
    with pytest.raises(ResultExistsError):
        earlier.finalize()


@BY
def test_a_store(is_listed):
    """The map on disk is returned itself, channels last, and opened later."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4), 0.5)
    maps = merge(splitter, image, is_listed=is_listed, store="map.zarr")
    assert isinstance(maps, StitchedMap)
    assert maps[0].shape == (9, 10, 2)
    wanted = PatchInferer(splitter)(image, noisy)
    np.testing.assert_allclose(as_tensor(StitchedMap.load("map.zarr")), wanted, rtol=1e-6)
    calls = []
    with pytest.raises(ResultExistsError):
        merge(splitter, image, lambda some: calls.append(1) or some, is_listed=is_listed, store="map.zarr")
    assert len(calls) == 1  # not after all of them


@BY
def test_two_outputs(is_listed):
    """Each has a merger; one store for both is refused at once, and again when it is tried again."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4), 0.5)

    def network(patches):
        return {"a": patches, "b": noisy(patches)}

    wanted = PatchInferer(splitter)(image, network)
    got = merge(splitter, image, network, is_listed=is_listed)
    assert list(got) == ["a", "b"]
    for name, tensor in wanted.items():
        np.testing.assert_allclose(got[name], tensor, rtol=1e-6)
    for _ in range(2):
        with pytest.raises(OptionError, match="output_keys or postprocessing"):
            merge(splitter, image, network, is_listed=is_listed, store="map.zarr")
        gc.collect()
    maps = merge(splitter, image, network, is_listed=is_listed, store="map.zarr", output_keys=["b"])
    np.testing.assert_allclose(as_tensor(maps["b"]), wanted["b"], rtol=1e-6)


@BY
def test_classes_are_stored(is_listed, where):
    """Of each image of a batch the largest channel is kept, with an axis of one channel."""
    image, splitter = whole_numbers((2, 1, 9, 10)), SlidingWindowSplitter((4, 4), 0.5)
    got = merge(splitter, image, is_listed=is_listed, reduce="argmax", **where)
    wanted = PatchInferer(splitter)(image, noisy).argmax(1, keepdim=True)
    if isinstance(got, StitchedMap):
        got = torch.stack([torch.from_numpy(got[key][:])[None] for key in (0, 1)])
    assert got.dtype == torch.uint8
    assert torch.equal(got.long(), wanted)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_dtypes(kind):
    """The output has that of the patches, or the next that NumPy has."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4))
    got = merge(splitter, MetaTensor(image), lambda patches: patches.to(kind))
    assert got.dtype == (torch.float32 if kind == torch.bfloat16 else kind)
    assert torch.equal(got.float(), image)


@BY
@pytest.mark.filterwarnings("error")
def test_an_error_in_the_loop_leaves_nothing(is_listed, where):
    """Neither a warning nor a folder, which the fixture of all tests looks for; the next run is right."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4), 0.5)
    calls = []

    def network(patches):
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError("the network fails")
        return patches

    with pytest.raises(ArithmeticError):
        merge(splitter, image, network, is_listed=is_listed, **where)
    gc.collect()
    assert torch.equal(as_tensor(merge(splitter, image, network, is_listed=is_listed, **where)), image)


def test_a_merger_by_itself():
    """It refuses what it cannot take, and changes nothing; finalize gives the same object again."""
    shape = (2, 1, 4, 8)
    with pytest.raises(NothingPushedError, match="no patch came"):
        StitcherMerger(shape).finalize()
    merger, patch = StitcherMerger(shape), torch.ones(2, 1, 4, 4)
    merger.aggregate(patch, (0, 0))
    with pytest.raises(DuplicateLocationError, match=r"at \[0, 0\] has come before"):
        merger.aggregate(patch, (0, 0))
    for wrong in (patch[:1], patch[..., :3]):
        with pytest.raises(HeadError):
            merger.aggregate(wrong, (0, 4))
    merger.aggregate(patch * 2, (0, 4))
    result = merger.finalize()
    assert merger.finalize() is result
    assert result.is_contiguous() or result.stride(1) == 1
    assert torch.equal(result, torch.cat([patch, patch * 2], 3))
    with pytest.raises(ClosedError, match="was finalized"):
        merger.aggregate(patch, (0, 0))
    listed = StitcherMerger(shape, locations=[[0, 0]], on_duplicate="average")
    listed.aggregate(patch, (0, 0))
    listed.aggregate(patch * 3, (0, 0))
    with pytest.raises(UnknownLocationError):
        listed.aggregate(patch, (0, 4))
    assert torch.equal(listed.finalize()[..., :4], patch * 2)
    unlisted = StitcherMerger(shape, on_duplicate="average")
    unlisted.aggregate(patch, (0, 0))
    unlisted.aggregate(patch * 3, (0, 0))
    assert torch.equal(unlisted.finalize()[..., :4], patch * 2)


@BY
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"axes": "xy"}, OptionError, "axes cannot be given here"),
        ({"crop": 1, "scale": 2}, OptionError, "crop, scale cannot be given"),
        ({"blend": "han"}, OptionError, "han"),
        ({"memory_limit": "much"}, OptionError, "memory_limit"),
        ({"value_dtype": "f4"}, TypeError, "value_dtype"),
    ],
)
def test_options_are_refused_at_the_first_patch(is_listed, options, error, words):
    """Not when all have come; nothing is left on disk."""
    image, splitter = whole_numbers((1, 1, 9, 10)), SlidingWindowSplitter((4, 4))
    calls = []
    with pytest.raises(error, match=words):
        merge(splitter, image, lambda some: calls.append(1) or some, is_listed=is_listed, **options)
    assert len(calls) == 1
    assert list(Path().rglob("*.zarr")) == []


def test_locations_are_refused_that_are_of_another_image():
    """With the wrong columns, and where patches come from elsewhere."""
    image, splitter = whole_numbers((1, 1, 8, 8)), SlidingWindowSplitter((4, 4))
    with pytest.raises(LocationError):
        merge(splitter, image, locations=[[0, 0, 0]])
    with pytest.raises(UnknownLocationError):
        merge(splitter, image, locations=[[0, 0], [0, 5]])


@pytest.mark.parametrize("shape", [(64, 64), (70, 91)])
def test_windows_go_to_disk_as_they_come(shape):
    """The page's recipe has the grid of MONAI, and its mean of windows."""
    inferers, accumulator = pytest.importorskip("monai.inferers"), pytest.importorskip("accumulator")
    image, returned = whole_numbers((1, 1, *shape)), []
    locs = accumulator.grid_locations(shape, (32, 32), stride=24)
    with accumulator.Stitcher(locs, channels_first=True, store="map.zarr") as stitcher:

        def predict(windows, slices):
            stitcher.push(noisy(windows), [[x.start, y.start, x.stop, y.stop] for _, _, y, x in slices])
            return windows.new_zeros(len(windows), 0, 1, 1)

        inferer = inferers.SlidingWindowInferer((32, 32), 4, overlap=0.25, with_coord=True)
        returned = inferer(image, predict)
    assert returned.numel() == 0
    assert stitcher.finalize().written.all()
    wanted = sliding_window_inference(image, (32, 32), 4, noisy, overlap=0.25)
    np.testing.assert_allclose(as_tensor(stitcher.finalize()), wanted, rtol=1e-5, atol=1e-4)


def test_the_page_runs():
    """Its blocks run one after the other, and both mergers agree where the page says so."""
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(compile(block, PAGE, "exec"), names)  # noqa: S102  our own page
    image, network, splitter = (names[name] for name in ("image", "network", "splitter"))
    theirs = PatchInferer(splitter, merger_cls=AvgMerger)(image, network)
    np.testing.assert_allclose(merge(splitter, image, network), theirs, rtol=1e-5, atol=1e-6)
    kept = as_tensor(StitchedMap.load("merged.zarr"))
    np.testing.assert_allclose(kept, merge(splitter, image, network, blend="hann"), rtol=1e-5, atol=1e-6)
    assert {path.name for path in Path().glob("*.zarr")} == {
        *("merged.zarr", "logits.zarr", "mask.zarr", "windows.zarr")
    }
    windows = sliding_window_inference(image, (64, 64), 4, network, overlap=0.25, mode="gaussian")
    np.testing.assert_allclose(as_tensor(names["maps"]), windows, rtol=1e-4, atol=1e-5)

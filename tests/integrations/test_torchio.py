"""torchio's own samplers and loaders: what comes out is `GridAggregator`'s, or what it has to be."""

from __future__ import annotations

import gc
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
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
    UnknownLocationError,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports
    pytest.importorskip("torchio", reason="needs torchio: pip install '.[torchio]'")
    import torch
    import torchio as tio

from accumulator.integrations.torchio import StitcherAggregator

PAGE = Path(__file__).parents[2] / "docs" / "from" / "torchio.md"
MODES = ["crop", "average", "hann"]


def sampler_of(shape, patch, overlap, padding=None):
    """Return a sampler of a volume whose numbers are all different."""
    volume = torch.arange(np.prod(shape), dtype=torch.float32).reshape(1, *shape)
    return tio.GridSampler(tio.Subject(t1=tio.ScalarImage(tensor=volume)), patch, overlap, padding)


def volume_of(sampler):
    """Return the sampler's volume without its padding."""
    data = sampler.subject["t1"][tio.DATA]
    border = sampler.patch_overlap // 2 if sampler.padding_mode is not None else (0, 0, 0)
    stop = [n - int(cut) for n, cut in zip(data.shape[1:], border, strict=True)]
    return data[:, *(slice(int(cut), end) for cut, end in zip(border, stop, strict=True))]


def noisy(batch, *, dtype=torch.float32, factor=1):
    """Return an output that no two patches agree on where they overlap; two channels."""
    data = batch["t1"][tio.DATA][..., ::factor, ::factor, ::factor]
    ramp = torch.arange(data[0, 0].numel(), dtype=torch.float32).reshape(data.shape[2:])
    return torch.cat([data * 2 + ramp, data % 7 - ramp], 1).to(dtype)


def same(batch, *, dtype=torch.float32, factor=1):
    """Return the patches themselves."""
    return batch["t1"][tio.DATA][..., ::factor, ::factor, ::factor].to(dtype)


def fill(aggregator, sampler, network=noisy, *, batch_size=3, leave_out=(), **how):
    """Run the loop, as torchio's documentation has it; return the aggregator."""
    subjects = [sampler[row] for row in range(len(sampler)) if row not in leave_out]
    for batch in tio.SubjectsLoader(subjects, batch_size=batch_size):
        aggregator.add_batch(network(batch, **how), batch[tio.LOCATION])
    return aggregator


def both(sampler, mode, network=noisy, **how):
    """Return torchio's output, and ours."""
    makers = (tio.GridAggregator, StitcherAggregator)
    return tuple(fill(maker(sampler, mode), sampler, network, **how).get_output_tensor() for maker in makers)


@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
@settings(max_examples=20)
def test_the_output_is_that_of_grid_aggregator(mode, data):
    """With any padding, overlap and batches, in RAM and on disk: to the bit, where nothing is averaged."""
    shape = data.draw(st.tuples(*[st.integers(2, 9)] * 3))
    patch = tuple(data.draw(st.integers(1, most)) for most in shape)
    overlap = tuple(2 * data.draw(st.integers(0, (size - 1) // 2)) for size in patch)
    sampler = sampler_of(shape, patch, overlap, data.draw(st.sampled_from([None, "edge", 5])))
    if len(sampler) > 60:
        return
    ours = StitcherAggregator(
        sampler,
        mode,
        memory_threshold=data.draw(st.sampled_from([0, 100])),
        fill_value=0 if mode == "crop" else np.nan,
    )
    how = {
        "batch_size": data.draw(st.integers(1, 5)),
        "leave_out": data.draw(st.sets(st.integers(1, max(1, len(sampler) - 1)), max_size=4)),
    }
    got = fill(ours, sampler, **how).get_output_tensor()
    theirs = fill(tio.GridAggregator(sampler, mode), sampler, **how).get_output_tensor()
    assert got.shape == theirs.shape
    assert got.dtype == theirs.dtype
    if mode == "crop":
        assert torch.equal(got, theirs)
    else:
        np.testing.assert_allclose(got, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [None, "reflect"])
@pytest.mark.parametrize(("overlap", "factor"), [((0, 0, 0), 2), ((4, 8, 4), 2), ((4, 0, 0), 2)])
def test_downsampled_patches(mode, padding, overlap, factor):
    """They lie where they belong, in each mode; torchio's do without an overlap, if they are cropped."""
    sampler = sampler_of((24, 16, 18), (8, 12, 6), overlap, padding)
    aggregator = StitcherAggregator(sampler, mode, factor)
    got = fill(aggregator, sampler, same, factor=factor).get_output_tensor()
    wanted = volume_of(sampler)[..., ::factor, ::factor, ::factor]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    if mode == "crop" and not any(overlap):
        theirs = tio.GridAggregator(sampler, mode, factor)
        assert torch.equal(fill(theirs, sampler, same, factor=factor).get_output_tensor(), got)


def test_what_grid_aggregator_makes_of_them():
    """Our page says so: gaps, a volume that is too small, errors."""
    sampler = sampler_of((16, 16, 16), 8, 4)
    theirs = fill(tio.GridAggregator(sampler, "crop", 2), sampler, same, factor=2).get_output_tensor()
    assert (theirs[:, 2:6] == 0).any()
    padded = sampler_of((16, 16, 16), 8, 4, "reflect")
    theirs = fill(tio.GridAggregator(padded, "crop", 2), padded, same, factor=2).get_output_tensor()
    assert theirs.shape == (1, 6, 6, 6)
    for mode in MODES[1:]:
        with pytest.raises(RuntimeError):
            fill(tio.GridAggregator(sampler, mode, 2), sampler, same, factor=2)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_means_of_integers(mode, dtype):
    """They are floats, and nothing overflows."""
    sampler = sampler_of((8, 8, 8), 4, 2)
    got = fill(StitcherAggregator(sampler, mode), sampler, lambda b: 0 * same(b, dtype=dtype) + 200)
    got = got.get_output_tensor()
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, 200, rtol=1e-6)
    if dtype == torch.uint8 and mode == "average":
        theirs, _ = both(sampler, mode, lambda batch: 0 * same(batch, dtype=dtype) + 200)
        assert theirs.unique().tolist() == [8, 72, 200]


def test_means_of_floats_keep_their_dtype():
    """Float64 stays so, and float16 is not summed in float16."""
    sampler = sampler_of((8, 9, 10), 5, 2)
    _, got = both(sampler, "hann", same, dtype=torch.float64)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, volume_of(sampler), rtol=1e-12)
    theirs, got = both(sampler, "average", same, dtype=torch.float16)
    assert theirs.dtype == got.dtype == torch.float16
    assert torch.equal(got, volume_of(sampler).half())
    assert not torch.equal(theirs, got)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16])
def test_crops_keep_their_dtype(dtype):
    """Also int64, of which torchio makes int32 without a look at the values."""
    sampler = sampler_of((7, 8, 9), 4, 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Medical image frameworks", RuntimeWarning)
        theirs, got = both(sampler, "crop", dtype=dtype)
    assert got.dtype == dtype
    assert torch.equal(got.to(theirs.dtype), theirs)
    if dtype == torch.int64:
        large = fill(StitcherAggregator(sampler), sampler, lambda b: same(b, dtype=dtype) + 2**40)
        assert torch.equal(large.get_output_tensor(), volume_of(sampler).long() + 2**40)


@pytest.mark.parametrize("mode", MODES)
def test_gaps(mode, where):
    """Where no patch came is the fill value, and nowhere else."""
    sampler = sampler_of((8, 8, 8), 4, 0)
    aggregator = StitcherAggregator(sampler, mode, fill_value=-1, **where)
    got = fill(aggregator, sampler, same, leave_out=(0, 5)).get_output_tensor()
    wanted = volume_of(sampler).clone()
    for row in (0, 5):
        i, j, k = sampler.locations[row][:3]
        wanted[:, i : i + 4, j : j + 4, k : k + 4] = -1
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_shuffled_patches():
    """The order in which patches come changes nothing."""
    sampler = sampler_of((10, 9, 8), 5, 2)
    wanted = fill(StitcherAggregator(sampler), sampler).get_output_tensor()
    aggregator = StitcherAggregator(sampler)
    for row in np.random.default_rng(0).permutation(len(sampler)):
        (batch,) = tio.SubjectsLoader([sampler[row]], batch_size=1)
        aggregator.add_batch(noisy(batch), batch[tio.LOCATION])
    assert torch.equal(aggregator.get_output_tensor(), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_a_store(mode):
    """The map is on disk, the tensor is read from it, and it is opened later."""
    sampler = sampler_of((10, 9, 8), 5, 2, "reflect")
    aggregator = fill(StitcherAggregator(sampler, mode, store="map.zarr"), sampler)
    maps = aggregator.get_output_map()
    assert aggregator.get_output_map() is maps
    assert maps[0].shape == (10, 9, 8, 2)
    assert not isinstance(maps[0], np.ndarray)
    theirs = fill(tio.GridAggregator(sampler, mode), sampler).get_output_tensor()
    np.testing.assert_allclose(aggregator.get_output_tensor(), theirs, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(StitchedMap.load("map.zarr")[0][:], maps[0][:])


def test_classes(where):
    """Probabilities are reduced before they are stored."""
    sampler = sampler_of((10, 9, 8), 5, 2)
    aggregator = fill(StitcherAggregator(sampler, "average", reduce="argmax", **where), sampler)
    theirs = fill(tio.GridAggregator(sampler, "average"), sampler).get_output_tensor()
    assert torch.equal(aggregator.get_output_tensor().long(), theirs.argmax(0, keepdim=True))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"overlap_mode": "han"}, "choose from crop, average, hann"),
        ({"downsampling_factor": 0}, "downsampling_factor is 0"),
        ({"downsampling_factor": 1.5}, "downsampling_factor is 1.5"),
        ({"downsampling_factor": 2}, "does not divide"),
        ({"blend": "max"}, "blend cannot be given here"),
        ({"origin": "min", "scale": 2}, "origin, scale cannot be given"),
    ],
)
def test_options_are_refused(how, words):
    """At once, and named."""
    with pytest.raises(OptionError, match=words):
        StitcherAggregator(sampler_of((8, 8, 8), 4, 2, "edge"), **how)


def test_batches_are_refused():
    """What is not the sampler's changes nothing."""
    sampler = sampler_of((8, 8, 8), 4, 0)
    aggregator = StitcherAggregator(sampler)
    with pytest.raises(NothingPushedError):
        aggregator.get_output_tensor()
    (batch,) = tio.SubjectsLoader([sampler[0]], batch_size=1)
    data, where = batch["t1"][tio.DATA], batch[tio.LOCATION]
    with pytest.raises(LocationError, match="six whole numbers"):
        aggregator.add_batch(data, where[:, :3])
    with pytest.raises(LocationError):
        aggregator.add_batch(data, where.float())
    with pytest.raises(UnknownLocationError):
        aggregator.add_batch(data, where + 1)
    with pytest.raises(LocationError):
        aggregator.add_batch(data[..., :3], where)
    aggregator.add_batch(data, where)
    with pytest.raises(DuplicateLocationError):
        aggregator.add_batch(data, where)
    with pytest.raises(HeadError):
        aggregator.add_batch(data[:, [0, 0]], torch.as_tensor(sampler.locations[1:2]))
    got = fill(aggregator, sampler, same, leave_out=(0,)).get_output_tensor()
    assert torch.equal(got, volume_of(sampler))
    with pytest.raises(ClosedError):
        aggregator.add_batch(data, where)


@pytest.mark.filterwarnings("error")
def test_an_error_in_the_loop_leaves_nothing(where):
    """Neither a warning nor a folder, which the fixture of all tests looks for."""
    sampler = sampler_of((8, 8, 8), 4, 2)
    aggregator = StitcherAggregator(sampler, **where)
    (batch,) = tio.SubjectsLoader([sampler[0]], batch_size=1)
    aggregator.add_batch(noisy(batch), batch[tio.LOCATION])
    del aggregator
    gc.collect()
    assert list(Path().rglob("full_batch_*")) == []


def test_the_page_runs():
    """Its blocks run one after the other, and both classes agree."""
    names, outputs = {}, []
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE, "exec"), names)  # noqa: S102  our own page
        outputs.append(names["output"])
    theirs, ours, _ = outputs
    assert theirs is not ours
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert names["slab"].shape == (10, 50, 40)
    classes = StitchedMap.load("classes.zarr")[0][:]
    assert (classes == theirs.argmax(0).numpy()).mean() > 0.999

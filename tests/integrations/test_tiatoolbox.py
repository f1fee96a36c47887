"""TIAToolbox's engines on a slide: inside `use_accumulator` they return what they return without it.

Where they return something else, a mean that is computed here pixel by pixel says who is right.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from accumulator.exceptions import HeadError, LocationError, MissingExtraError
from accumulator.integrations.tiatoolbox import use_accumulator

pytestmark = [
    # An `__array__` of torch, which the library gives to NumPy; and arrays that it lets dask save.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:tiatoolbox"),
    pytest.mark.filterwarnings("ignore:The array uses irregular chunk sizes:UserWarning"),
]
SHAPE = (200, 260)
PATCH, BOX = 64, 48  # the model's input, and what it returns of it: the middle
READER = {"mpp": (0.5, 0.5), "power": 20}  # which a picture does not tell
PAGE = Path(__file__).parents[2] / "docs" / "from" / "tiatoolbox.md"


def heads_of(images):
    """Return what a model predicts: probabilities that do not add up exactly, and classes."""
    middle = np.asarray(images)[:, 8:-8, 8:-8].astype("f4")
    return middle / np.float32(255.5), (middle[..., :1] % 3).astype("f8") / 3


@functools.cache
def toolbox():
    """Return what tests take of the library, imported without its warnings; skip where it is not there."""
    if find_spec("tiatoolbox") is None:
        pytest.skip("tiatoolbox is not installed: the extra tiatoolbox")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = "tiatoolbox.models.engine"
        semantic = importlib.import_module(f"{engine}.semantic_segmentor")
        multi_task = importlib.import_module(f"{engine}.multi_task_segmentor")
        config = importlib.import_module(f"{engine}.io_config").IOSegmentorConfig
        abc = importlib.import_module("tiatoolbox.models.models_abc").ModelABC
    logging.getLogger("tiatoolbox").setLevel(logging.ERROR)

    class Model(abc):
        """Returns the middle of its input, by a function that a test may replace."""

        predict = staticmethod(heads_of)

        def forward(self, images):
            return images

        @staticmethod
        def infer_batch(model, batch_data, *, device):  # noqa: ARG004  the library's signature
            return model.predict(batch_data)

        @staticmethod
        def postproc(image):
            return image.argmax(-1)

    class MultiTask(Model):
        """Has two heads, and a task for each."""

        @staticmethod
        def postproc(heads, offset=(0, 0)):  # noqa: ARG004
            return tuple(
                {
                    "task_type": f"task{number}",
                    "seg_type": "semantic",
                    "predictions": np.asarray(head).argmax(-1).astype("u1"),
                    "info_dict": {"box": np.empty((0, 4))},
                }
                for number, head in enumerate(heads)
            )

    class Semantic(Model):
        """Has one head."""

        predict = staticmethod(lambda images: heads_of(images)[0])

    return SimpleNamespace(
        semantic=semantic, multi_task=multi_task, config=config, Semantic=Semantic, MultiTask=MultiTask
    )


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Return a picture of noise, which the library has a virtual slide for."""
    toolbox()
    path = tmp_path_factory.mktemp("slides") / "slide.png"
    pixels = np.random.default_rng(16).integers(1, 256, (*SHAPE, 3), dtype="u1")
    importlib.import_module("PIL.Image").fromarray(pixels).save(path)
    return path


def config(stride, box=BOX, tile=480):
    """Return how patches lie, ``(y, x)``."""
    at = [{"units": "baseline", "resolution": 1.0}]
    return toolbox().config(
        input_resolutions=at,
        output_resolutions=at,
        patch_input_shape=(PATCH, PATCH),
        patch_output_shape=(box, box),
        stride_shape=stride,
        tile_shape=(tile, tile),
        margin=8,
    )


def mask():
    """Return tissue in the shape of an L: away from the edges, and not in all of its box."""
    tissue = np.zeros(SHAPE, "u1")
    tissue[110:180, 110:130] = tissue[160:180, 110:200] = 1
    return tissue


def engine_of(kind, predict=None):
    """Return an engine with a model."""
    library = toolbox()
    model = library.MultiTask() if kind == "multi-task" else library.Semantic()
    if predict is not None:
        model.predict = predict
    maker = (
        library.multi_task.MultiTaskSegmentor if kind == "multi-task" else library.semantic.SemanticSegmentor
    )
    return maker(model, batch_size=4, device="cpu", verbose=False)


def run(kind, slide, *, ours, stride=(BOX, BOX), predict=None, is_masked=False, tile=480, **options):
    """Run an engine as users do; return the arrays that it saved by their path, and the engine."""
    engine = engine_of(kind, predict)
    if kind == "multi-task":
        options["return_predictions"] = (True, True)
    with use_accumulator() if ours else contextlib.nullcontext():
        saved = engine.run(
            images=[slide],
            masks=[mask()] if is_masked else None,
            patch_mode=False,
            ioconfig=config(stride, tile=tile),
            auto_get_mask=False,
            output_type="zarr",
            save_dir=Path("saved"),
            return_probabilities=True,
            overwrite=True,
            wsireader_kwargs=READER,
            **options,
        )
    arrays = {
        str(path.parent.relative_to(saved[slide])): path.parent for path in saved[slide].rglob("zarr.json")
    }
    zarr = importlib.import_module("zarr")
    found = {name: zarr.open(path, mode="r") for name, path in arrays.items()}
    result = {name: each[:] for name, each in found.items() if isinstance(each, zarr.Array)}
    assert sorted(path.name for path in Path("saved").iterdir()) == ["slide.zarr"]
    shutil.rmtree("saved")
    return result, engine


def probabilities(kind):
    """Return what the maps of an engine are called."""
    return ["probabilities/0", "probabilities/1"] if kind == "multi-task" else ["probabilities"]


def mean_of(engine, n_heads, shape=SHAPE):
    """Return the mean of what the engine's model predicts, pixel by pixel, in float64."""
    dataset, predict = engine.dataloader.dataset, engine.model.predict
    sums, count = [0] * n_heads, np.zeros((*shape, 1))
    for row, (x, y, end_x, end_y) in enumerate(dataset.outputs):
        heads = predict(dataset[row]["image"][None])
        count[y:end_y, x:end_x] += 1
        for number, head in enumerate(heads if isinstance(heads, tuple) else [heads]):
            if isinstance(sums[number], int):
                sums[number] = np.zeros((*shape, head.shape[-1]))
            here = sums[number][y:end_y, x:end_x]
            here += head[0, : here.shape[0], : here.shape[1]]
    return [each / np.maximum(count, 1) for each in sums]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("stride", [(32, BOX), (BOX, 32), (32, 32)])
@pytest.mark.parametrize("kind", ["semantic", "multi-task"])
def test_engines_return_what_they_return_without_it(slide, kind, stride, is_masked):
    """All that they save is the same, to the bit where at most two patches meet; ours also when spilled."""
    theirs, engine = run(kind, slide, ours=False, stride=stride, is_masked=is_masked)
    true = dict(zip(probabilities(kind), mean_of(engine, len(probabilities(kind))), strict=True))
    for threshold in (80, 0):
        ours, _ = run(kind, slide, ours=True, stride=stride, is_masked=is_masked, memory_threshold=threshold)
        assert set(ours) == set(theirs)
        for name, expected in theirs.items():
            assert ours[name].dtype == expected.dtype
            if name not in true:
                np.testing.assert_array_equal(ours[name], expected)
                continue
            np.testing.assert_allclose(ours[name], true[name], rtol=3e-7)
            if stride == (32, 32):
                np.testing.assert_allclose(ours[name], expected, rtol=3e-7)
            else:
                np.testing.assert_array_equal(ours[name], expected)


@pytest.mark.parametrize("kind", ["semantic", "multi-task"])
def test_spilled_runs_of_both_are_the_same(slide, kind):
    """Without a mask, a run of theirs that goes to disk is that of ours."""
    theirs, _ = run(kind, slide, ours=False, stride=(32, BOX), memory_threshold=0)
    ours, _ = run(kind, slide, ours=True, stride=(32, BOX), memory_threshold=0)
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected)


def test_tiles_are_processed_as_without_it(slide):
    """Post-processing tile by tile has the reader that it takes, also where workers read the patches."""
    theirs, _ = run("multi-task", slide, ours=False, tile=96, is_masked=True, num_workers=1)
    ours, _ = run("multi-task", slide, ours=True, tile=96, is_masked=True, num_workers=1, memory_threshold=0)
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected)


def test_a_slide_on_disk_is_in_a_folder_that_goes_with_it(slide):
    """Maps that do not fit are zarr arrays, read when computed, and nothing is left of them."""
    engine, seen = engine_of("semantic"), []
    post_process = engine.post_process_wsi

    def look(raw_predictions, **options):
        seen.extend(Path("saved").rglob("full_batch_*/result.zarr"))
        return post_process(raw_predictions, **options)

    engine.post_process_wsi = look
    engine.run = functools.partial(
        engine.run, [slide], patch_mode=False, ioconfig=config((32, 32)), wsireader_kwargs=READER
    )
    with use_accumulator():
        saved = engine.run(
            auto_get_mask=False, save_dir=Path("saved"), memory_threshold=0, output_type="zarr"
        )
    assert len(seen) == 1
    assert saved[slide].exists()
    engine.post_process_wsi = None
    assert not seen[0].exists()


def test_theirs_saves_a_spilled_masked_map_without_its_margins(slide):
    """The saved map is then that of the mask's box, at no stated place; ours lies on the slide."""
    theirs, _ = run("semantic", slide, ours=False, is_masked=True, memory_threshold=0)
    ours, engine = run("semantic", slide, ours=True, is_masked=True, memory_threshold=0)
    left, top, right, bottom = engine.mask_padding
    assert max(left, top, right, bottom) > 0
    assert theirs["probabilities"].shape[:2] == (SHAPE[0] - top - bottom, SHAPE[1] - left - right)
    assert ours["probabilities"].shape[:2] == SHAPE
    of_mask = ours["probabilities"][top : SHAPE[0] - bottom, left : SHAPE[1] - right]
    np.testing.assert_array_equal(of_mask, theirs["probabilities"])


def zeros_where_dark(images):
    """Return a probability, with patches that are nothing but zeros, as of a ReLU."""
    (middle, _), is_dark = heads_of(images), np.asarray(images)[:, 32, 32, 0] < 128
    return np.where(is_dark[:, None, None, None], np.float32(0), middle)


def bytes_of(images):
    """Return 8-bit scores, of which the sum of two is none."""
    return (heads_of(images)[0] * 255).astype("u1")


@pytest.mark.parametrize(
    "predict",
    [
        pytest.param(zeros_where_dark, id="a patch of zeros counts"),
        pytest.param(bytes_of, id="the sum of bytes is no byte"),
    ],
)
def test_where_they_differ_ours_is_the_mean(slide, predict):
    """Theirs is far off there, which a mean in float64 shows."""
    theirs, engine = run("semantic", slide, ours=False, predict=predict, stride=(32, BOX))
    ours, _ = run("semantic", slide, ours=True, predict=predict, stride=(32, BOX))
    (true,) = mean_of(engine, 1)
    assert ours["probabilities"].dtype == theirs["probabilities"].dtype == np.float32
    np.testing.assert_allclose(ours["probabilities"], true, rtol=3e-7)
    assert np.abs(theirs["probabilities"] - true).max() > 0.4 * true.max()


def test_three_rows_of_several_heads_may_meet(slide):
    """Theirs adds each row of patches to the next one alone, and fails where a patch reaches further."""
    with pytest.raises(ValueError, match="broadcast"):
        run("multi-task", slide, ours=False, stride=(16, BOX))
    shutil.rmtree("saved")
    ours, engine = run("multi-task", slide, ours=True, stride=(16, BOX))
    for name, true in zip(probabilities("multi-task"), mean_of(engine, 2), strict=True):
        np.testing.assert_allclose(ours[name], true, rtol=3e-7)


def test_patches_that_are_not_their_boxes_are_refused(slide):
    """Theirs takes the first part of the patch, which is shifted: no map at all is better."""
    engine = engine_of("semantic")
    with use_accumulator(), pytest.raises((HeadError, LocationError), match="crop"):
        engine.run(
            [slide],
            patch_mode=False,
            ioconfig=config((40, 40), box=40),
            auto_get_mask=False,
            save_dir=Path("saved"),
            wsireader_kwargs=READER,
        )


def test_theirs_is_back_after_the_block(slide):
    """After an error, within another block, and as a decorator."""
    classes = toolbox().semantic.SemanticSegmentor, toolbox().multi_task.MultiTaskSegmentor
    methods = [each.infer_wsi for each in classes]

    def fail(_):
        raise ArithmeticError("the model fails")

    with use_accumulator():
        inside = [each.infer_wsi for each in classes]
        with pytest.raises(ArithmeticError), use_accumulator():
            run("semantic", slide, ours=True, predict=fail, memory_threshold=0)
        assert [each.infer_wsi for each in classes] == inside
    assert not set(inside) & set(methods)
    assert [each.infer_wsi for each in classes] == methods
    assert use_accumulator()(lambda: [each.infer_wsi for each in classes])() == inside
    assert [each.infer_wsi for each in classes] == methods


class _Engine:
    infer_wsi = _get_model_attr = _get_coordinates = None


@pytest.mark.parametrize(
    ("version", "lacks", "words"),
    [
        ("2.2.0", (), r"TIAToolbox 2\.2\.0 is installed; .* for 2\.1\.3 alone: pip .*\[tiatoolbox\]"),
        ("2.1.3", ("get_wsi_output_shape",), r"without tiatoolbox\.\S+\.get_wsi_output_shape; .* 2\.1\.3"),
        ("2.1.3", ("MultiTaskSegmentor",), r"without tiatoolbox\.\S+\.MultiTaskSegmentor\.infer_wsi; "),
    ],
)
def test_another_version_is_refused(monkeypatch, version, lacks, words):
    """Nothing is replaced then, and the error names the version and what to install."""
    engines = "tiatoolbox.models.engine."
    for name in ("tiatoolbox", engines + "semantic_segmentor", engines + "multi_task_segmentor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["tiatoolbox"].__version__ = version
    for end, names in (
        ("semantic_segmentor", ["get_wsi_output_shape", "get_full_output_locs_inside_mask"]),
        ("multi_task_segmentor", []),
    ):
        module = sys.modules[engines + end]
        module.SemanticSegmentor = module.MultiTaskSegmentor = type("Engine", (_Engine,), {"infer_wsi": 1})
        for name in names:
            setattr(module, name, None)
        for name in lacks:
            vars(module).pop(name, None)
    with pytest.raises(MissingExtraError, match=words), use_accumulator():
        pass
    assert sys.modules[engines + "semantic_segmentor"].SemanticSegmentor.infer_wsi == 1


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    """It comes when the block begins, and is an ImportError."""
    monkeypatch.setitem(sys.modules, "tiatoolbox", None)
    with pytest.raises(MissingExtraError, match=r"tiatoolbox .*\[tiatoolbox\]"), use_accumulator():
        pass


def test_page(slide):
    """The Python blocks of the page run one after the other, on the slide of these tests."""
    shutil.copy(slide, "slide.png")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {"model": toolbox().Semantic(), "ioconfig": config((32, 32))}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  our own page

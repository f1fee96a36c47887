"""TIAToolbox: its segmentation engines merge the patches of a slide by a `Stitcher`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import Stitcher
from accumulator._inputs.extras import need
from accumulator.exceptions import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["use_accumulator"]

_VERSION: Final = "2.1.3"  # a method of which is replaced: another may do something else there
_SEMANTIC: Final = "tiatoolbox.models.engine.semantic_segmentor"
_MULTI_TASK: Final = "tiatoolbox.models.engine.multi_task_segmentor"
_NAMES: Final = {  # what is replaced, and what is called
    _SEMANTIC: (
        "SemanticSegmentor.infer_wsi",
        "SemanticSegmentor._get_model_attr",
        "SemanticSegmentor._get_coordinates",
        "get_wsi_output_shape",
        "get_full_output_locs_inside_mask",
    ),
    _MULTI_TASK: ("MultiTaskSegmentor.infer_wsi",),
}


@contextlib.contextmanager
def use_accumulator() -> Iterator[None]:
    """Let the engines of TIAToolbox 2.1.3 merge patches by a `Stitcher`, as long as the block lasts.

    ``SemanticSegmentor``, ``MultiTaskSegmentor`` and what they are the base of, such as ``NucleusDetector``
    and ``NucleusInstanceSegmentor``, then run slides as before, with the same arguments, and return the same.
    It is ``infer_wsi`` that is replaced; masks, post-processing and saving stay theirs, and so do patches
    that are run one by one.

    Raises
    ------
    MissingExtraError
        On entering: TIAToolbox is not installed, the extra ``tiatoolbox``, or is not version 2.1.3; nothing
        was replaced. An ImportError.

    Notes
    -----
    - Maps are theirs to the bit where at most two patches meet in a pixel. Where more do, they are added in
      another order, and the last digit may differ. Where theirs are no mean, ours are: of patches that are
      nothing but zeros, of integers whose sum does not fit, and where three rows of several heads meet.
    - A map that needs more than ``memory_threshold`` per cent of the available memory is in a folder of its
      own inside ``full_batch_tmp``, beside the output, which is removed with the last array that reads it.
    - Engines raise what `Stitcher` does: a patch of the model that is not as large as ``patch_output_shape``
      is refused, where it was cut, or the engine failed.
    - It ends with the block, also by an exception; blocks may be nested, and the function decorates others.
      All threads of the process see it: do not enter or leave a block while another thread runs an engine.

    Examples
    --------
    >>> with use_accumulator():  # doctest: +SKIP
    ...     output = SemanticSegmentor(model="fcn-tissue_mask").run(["slide.svs"], patch_mode=False)
    """
    engines = _engines()
    theirs = [vars(engine)["infer_wsi"] for engine in engines]
    try:
        for engine in engines:
            engine.infer_wsi = _infer_wsi
        yield
    finally:
        for engine, method in zip(engines, theirs, strict=True):
            engine.infer_wsi = method


def _engines() -> list[Any]:
    """Return the classes that have the method, of the version that is known."""
    version = need("tiatoolbox", "tiatoolbox").__version__
    modules = {name: need(name, "tiatoolbox") for name in _NAMES}
    missing = [
        f"{module}.{name}"
        for module, names in _NAMES.items()
        for name in names
        if not _has(modules[module], name)
    ]
    if missing or version != _VERSION:
        lacks = f", without {', '.join(missing)}" if missing else ""
        raise MissingExtraError(
            f"TIAToolbox {version} is installed{lacks}; use_accumulator is for {_VERSION} alone: pip install "
            "'full-batch-accumulator[tiatoolbox]'",
            name="tiatoolbox",
        )
    return [modules[_SEMANTIC].SemanticSegmentor, modules[_MULTI_TASK].MultiTaskSegmentor]


def _has(module: Any, name: str) -> bool:
    owner, _, method = name.rpartition(".")
    return hasattr(getattr(module, owner, None) if owner else module, method)


def _infer_wsi(self: Any, dataloader: Any, save_path: Any, **kwargs: Any) -> dict[str, Any]:
    """Do what ``infer_wsi`` of both engines does."""
    toolbox, dataset = need(_SEMANTIC, "tiatoolbox"), dataloader.dataset
    dataset[0]  # this opens the reader that tiles are processed with later, also where workers read patches
    height, width = toolbox.get_wsi_output_shape(dataset)
    if self.mask_bounds is None:
        self.mask_bounds = (0, 0, width, height)
    _, self.mask_padding, output_shape = toolbox.get_full_output_locs_inside_mask(
        full_output_locs=getattr(dataset, "full_outputs", dataset.outputs),
        mask_bounds=self.mask_bounds,
        output_shape=(height, width),
    )
    infer_batch, coordinates = self._get_model_attr("infer_batch"), []
    bar = need("tqdm.auto", "tiatoolbox").tqdm
    with Stitcher(
        dataset.outputs,
        origin=[int(start) for start in self.mask_padding[:2]],
        output_shape=[int(length) for length in output_shape],
        save_path=save_path.with_name("full_batch_tmp"),
        memory_threshold=kwargs.get("memory_threshold", 80),
    ) as stitcher:
        for batch in bar(dataloader, leave=False, desc="Inferring patches", disable=not self.verbose):
            output = infer_batch(self.model, batch["image"], device=self.device)
            heads = output if isinstance(output, (list, tuple)) else [output]
            # Floats, as their quotients are: the mean of integers is not rounded.
            stitcher.push(
                [np.asarray(head, np.result_type(head.dtype, np.float32)) for head in heads],
                batch["output_locs"],
            )
            coordinates.append(self._get_coordinates(batch))
    maps: Any = stitcher.finalize().to_dask()  # a list, as heads were pushed
    is_multi_task = isinstance(self, need(_MULTI_TASK, "tiatoolbox").MultiTaskSegmentor)
    return {
        "probabilities": maps if is_multi_task else maps[0],
        "coordinates": need("dask.array", "tiatoolbox").from_array(np.concatenate(coordinates)),
    }

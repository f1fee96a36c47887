"""Lightning: each process of ``trainer.predict`` records what it predicts, and rank 0 makes one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from accumulator import publish
from accumulator._inputs.extras import need
from accumulator._inputs.ranks import Rank
from accumulator.exceptions import LocationError
from accumulator.integrations._begin import OneRun

need("lightning.pytorch", "lightning")
from lightning.pytorch.callbacks import BasePredictionWriter  # noqa: E402  behind an error that names the extra

if TYPE_CHECKING:
    from accumulator import FullBatchAccumulator
    from accumulator.typing import ArrayLike, StrPath

__all__ = ["AccumulatorWriter"]


class AccumulatorWriter(OneRun, BasePredictionWriter):
    """Writes what ``predict_step`` returns to one store, whatever the strategy and the order.

    Rows are told by their locations alone, never by the indices of a batch, which samplers repeat and some
    strategies do not know. Each process writes a part of its own; when all have ended, rank 0 publishes.

    Parameters
    ----------
    locs : (N, K) array-like of whole numbers
        The canonical list, as for `FullBatchAccumulator`.
    store : path
        Where the result will be: all machines have it at this path. Nothing is there yet, or the same run.
    batch_locs : str or callable, optional
        Where the locations of a batch are: a key of the prediction, whose other keys are heads, or of the
        batch; or a function of both. By default ``predict_step`` returns a pair: the output and the
        locations, as `FullBatchAccumulator.push` takes them. Tensors may be on any device.
    **options
        Others of `FullBatchAccumulator`: ``dtype``, ``fill_value``, ``chunks``, ``shards``, ``compressors``,
        ``heads``, ``resume_token``, ``checkpoint_interval``, ``memory_limit`` (of a process).
        ``on_duplicate`` is "first" by default: a row that a sampler repeats may differ in the last bit.

    Raises
    ------
    MissingExtraError
        At import: Lightning is not installed, the extra ``lightning``; an ImportError.
    LocationError
        ``locs`` are not whole numbers; in ``trainer.predict`` also: a batch has none. A ValueError.
    OptionError
        An option cannot be given here, or ``store`` is not a local path; a ValueError.

    Notes
    -----
    ``trainer.predict`` raises what `FullBatchAccumulator` and `accumulator.publish` raise. After an error or
    Ctrl-C all that came is recorded, after a kill what came until the last checkpoint. To resume, run the
    script again: nobody writes before all processes have looked for `missing_rows`. Where fewer are missing
    than there are processes, Lightning's own sampler refuses: use one process then.

    Examples
    --------
    >>> writer = AccumulatorWriter(locs, "run.zarr")  # doctest: +SKIP
    >>> todo = Subset(patches, writer.missing_rows())  # all at first; patches[i] lies at locs[i]
    >>> trainer = Trainer(strategy="ddp", devices=4, callbacks=[writer])
    >>> trainer.predict(model, DataLoader(todo), return_predictions=False)  # or it holds them in memory, too
    >>> writer.result if trainer.is_global_zero else None
    """

    def __init__(
        self,
        locs: ArrayLike,
        store: StrPath,
        *,
        batch_locs: str | Callable[[Any, Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__("batch")
        self._take(locs, store, options)
        self._batch_locs = batch_locs
        self._accumulator: FullBatchAccumulator | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin the part of this process."""
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            self._accumulator = self._begin(
                Rank(trainer.global_rank, trainer.world_size, trainer.num_devices)
            )

    def write_on_batch_end(  # noqa: PLR0913, PLR0917  Lightning's own
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Push the predictions of a batch: all or none of them."""
        del trainer, pl_module, batch_indices, batch_idx, dataloader_idx
        if self._accumulator is not None:
            self._accumulator.push(*self._output_and_locs(prediction, batch))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Finalize the part; when all processes have, rank 0 publishes.

        A process without a batch comes here, too, which has no other hook.
        """
        del pl_module
        if stage != "predict" or self._accumulator is None:
            return
        self._accumulator.finalize().close()
        self._accumulator = None
        trainer.strategy.barrier("accumulator")
        if trainer.is_global_zero:  # nobody waits: this may take longer than a barrier lets others wait
            publish(self._store).close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Record what came, whatever the end is."""
        del trainer, pl_module
        accumulator, self._accumulator = self._accumulator, None
        if accumulator is not None:
            try:
                accumulator.close()
            except Exception as refusal:  # noqa: BLE001  what ended the run matters more
                exception.add_note(f"accumulator: rows were not recorded: {refusal}")

    def _output_and_locs(self, prediction: Any, batch: Any) -> tuple[Any, Any]:
        where = self._batch_locs
        if where is None:
            if isinstance(prediction, (tuple, list)) and len(prediction) == 2:
                return prediction[0], prediction[1]
            raise LocationError("predict_step returned no pair (output, locations): do, or give batch_locs=")
        if callable(where):
            return prediction, where(prediction, batch)
        if isinstance(prediction, Mapping) and where in prediction:
            return {name: rows for name, rows in prediction.items() if name != where}, prediction[where]
        if isinstance(batch, Mapping) and where in batch:
            return prediction, batch[where]
        raise LocationError(f"neither prediction nor batch has locations at {where!r}: see batch_locs=")

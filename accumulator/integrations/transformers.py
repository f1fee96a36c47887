"""Transformers: ``Trainer.predict`` hands each batch over, instead of gathering all of them in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accumulator._inputs.extras import need
from accumulator.exceptions import LocationError

need("transformers", "transformers")
from transformers import Trainer  # noqa: E402  behind an error that names the extra

if TYPE_CHECKING:
    from accumulator import FullBatchAccumulator, Stitcher

__all__ = ["AccumulatorTrainer"]


class AccumulatorTrainer(Trainer):
    """A ``transformers.Trainer`` whose ``predict`` can push to an accumulator; all else is as it was.

    Examples
    --------
    >>> trainer = AccumulatorTrainer(model, args)  # doctest: +SKIP
    >>> with FullBatchAccumulator(locs) as accumulator:  # dataset[i]["locs"] is where patch i lies
    ...     trainer.predict(dataset, accumulator=accumulator)
    >>> batch = accumulator.finalize()
    """

    _signature_columns: Any  # Transformers' own
    _streamed: tuple[FullBatchAccumulator | Stitcher, str] | None = None

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        *,
        accumulator: FullBatchAccumulator | Stitcher | None = None,
        batch_locs: str = "locs",
    ) -> Any:
        """Run prediction, and push each batch.

        Parameters
        ----------
        test_dataset, ignore_keys, metric_key_prefix
            As in Transformers.
        accumulator : FullBatchAccumulator or Stitcher, optional
            Where predictions go; without it this is Transformers' own method. It stays open. Of several
            processes each needs its own, a part of one run: ``store=``, ``mode="a"``, ``rank=``,
            ``world_size=`` and ``on_duplicate="first"``, as samplers repeat rows so that all have as many.
        batch_locs : str, default "locs"
            The key of a batch at which its locations are, one row an item. The model is not given it, and
            ``remove_unused_columns`` does not remove it.

        Returns
        -------
        transformers.trainer_utils.PredictionOutput
            With ``accumulator`` it has the metrics of loss and speed; ``predictions`` and ``label_ids`` are
            None, and ``compute_metrics`` is not called, as nothing holds what it would be given.

        Raises
        ------
        LocationError
            A batch has nothing at ``batch_locs``; a ValueError. Also raised is what ``accumulator.push``
            raises. Batches that came before stay pushed.

        Notes
        -----
        Heads are what Transformers would gather: outputs of the model but the loss and ``ignore_keys``, a
        tuple if there are several; or what ``preprocess_logits_for_metrics`` made of them, such as a dict,
        whose keys are then their names. Nothing is padded with -100.
        """
        self._streamed = None if accumulator is None else (accumulator, batch_locs)
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._streamed = None

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: Any, ignore_keys: Any = None
    ) -> Any:
        """Predict a batch, push it, and return its loss alone."""
        if self._streamed is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        accumulator, key = self._streamed
        if key not in inputs:
            raise LocationError(f"a batch has {sorted(inputs)} and no locations at {key!r}: see batch_locs=")
        rest = {name: value for name, value in inputs.items() if name != key}
        loss, logits, labels = super().prediction_step(model, rest, False, ignore_keys)  # noqa: FBT003  theirs
        if self.preprocess_logits_for_metrics is not None:
            logits = self.preprocess_logits_for_metrics(logits, labels)
        accumulator.push(logits, inputs[key])
        return loss, None, None

    def _set_signature_columns_if_needed(self) -> None:
        """Have ``remove_unused_columns`` leave locations in the batch."""
        super()._set_signature_columns_if_needed()
        if self._streamed is not None and self._streamed[1] not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, self._streamed[1]]

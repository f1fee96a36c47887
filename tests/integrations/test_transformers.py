"""Trainer.predict pushes each batch: what it would have gathered, at its location, whatever the order."""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accumulator import FullBatchAccumulator, Stitcher
from accumulator.exceptions import DuplicateLocationError, LocationError, MissingExtraError

HAS_TRANSFORMERS = find_spec("transformers") is not None
MODULE = "accumulator.integrations.transformers"
# Importing torch and Transformers takes ten seconds, and they warn of themselves.
with_transformers = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_TRANSFORMERS, reason="needs Transformers: pip install '.[transformers]'"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::accumulator"),
]


@pytest.mark.skipif(HAS_TRANSFORMERS, reason="Transformers is installed")
def test_the_extra_is_named():
    """Without Transformers the import tells what to install."""
    with pytest.raises(MissingExtraError, match=r"full-batch-accumulator\[transformers\]"):
        importlib.import_module(MODULE)


@pytest.fixture(scope="module")
def kit():
    """Return what makes a trainer of a small model with two outputs, and what it predicts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Kit(importlib.import_module("torch"), importlib.import_module("transformers"))


class Kit:
    """A trainer of a model, and data for it."""

    def __init__(self, torch, transformers):
        class Model(torch.nn.Module):
            """Two outputs, and a loss where there are labels."""

            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.tensor(3.0))
                self.seen = []

            def forward(self, pixels, labels=None, **others):
                """Predict; what else it is given it notes."""
                self.seen.append(sorted(others))
                out = {"mask": pixels * self.scale, "mean": pixels.mean(dim=(1, 2)).to(torch.bfloat16)}
                return out if labels is None else {"loss": (pixels.mean() - labels.mean()) ** 2, **out}

        self.torch, self.transformers, self.model = torch, transformers, Model()

    def trainer(self, *, batch_size=3, theirs=False, options=None, **arguments):
        """Return ours, or theirs."""
        args = self.transformers.TrainingArguments(
            "trainer",
            per_device_eval_batch_size=batch_size,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **(options or {}),
        )
        kind = self.transformers.Trainer if theirs else importlib.import_module(MODULE).AccumulatorTrainer
        return kind(self.model, args, **arguments)


def locations(n):
    """Return so many boxes."""
    return np.array([[4 * row, 0, 4 * row + 4, 4] for row in range(n)]).reshape(n, 4)


def items(rows, key="locs", **more):
    """Return the items of a dataset whose patches lie at these rows."""
    pixels = np.random.default_rng(7).random((64, 4, 4), np.float32)
    return [{"pixels": pixels[row], key: locations(row + 1)[row], **more} for row in rows]


class TestTrainer:
    """With the real library."""

    pytestmark = with_transformers

    @settings(max_examples=15)
    @given(st.permutations(range(11)), st.integers(1, 12), st.integers(1, 6), st.booleans())
    def test_rows_are_those_that_it_gathers(self, kit, order, n, batch_size, is_on_disk):
        """Any order, any number of them, any batch size: what Transformers returns, in canonical order."""
        order = order[:n]
        theirs = kit.trainer(batch_size=batch_size, theirs=True).predict(items(order))
        with FullBatchAccumulator(locations(11), memory_threshold=0 if is_on_disk else 80) as accumulator:
            ours = kit.trainer(batch_size=batch_size).predict(items(order), accumulator=accumulator)
        assert (ours.predictions, ours.label_ids) == (None, None)
        with accumulator.finalize() as batch:
            assert np.flatnonzero(batch.written).tolist() == sorted(order)
            for head, gathered in enumerate(theirs.predictions):
                np.testing.assert_array_equal(batch[head][:][order], gathered)

    def test_labels_give_a_loss_and_preprocessing_gives_names(self, kit):
        """Both are given to what the user has given the Trainer, and the loss is theirs."""
        told = []

        def named(logits, labels):
            told.append((len(logits), labels.tolist()))
            return {"mask": logits[0]}

        data = items(range(8), labels=np.float32(0.25))
        theirs = kit.trainer(theirs=True).predict(data)
        with FullBatchAccumulator(locations(8)) as accumulator:
            trainer = kit.trainer(
                preprocess_logits_for_metrics=named,
                compute_metrics=pytest.fail,
                options={"prediction_loss_only": True},
            )
            ours = trainer.predict(data, accumulator=accumulator)
        assert ours.metrics["test_loss"] == theirs.metrics["test_loss"] > 0
        assert told == [(2, [0.25] * n) for n in (3, 3, 2)]
        batch = accumulator.finalize()
        assert batch.names == ("mask",)
        np.testing.assert_array_equal(batch["mask"], theirs.predictions[0])

    def test_a_map_and_another_key(self, kit):
        """A Stitcher is pushed to, too; the model is not given locations, whatever their key."""
        kit.model.seen.clear()
        with Stitcher(locations(5)) as stitcher:
            trainer = kit.trainer(preprocess_logits_for_metrics=lambda logits, _: logits[0])
            trainer.predict(items(range(5), "where"), accumulator=stitcher, batch_locs="where")
        patches = [item["pixels"] * np.float32(3) for item in items(range(5))]
        np.testing.assert_array_equal(stitcher.finalize()[0], np.concatenate(patches, axis=1))
        assert kit.model.seen == [[], []]
        with FullBatchAccumulator(locations(5)) as accumulator:  # where nothing is removed
            trainer = kit.trainer(options={"remove_unused_columns": False})
            trainer.predict(items(range(5)), accumulator=accumulator)
        assert kit.model.seen == [[]] * 4
        assert accumulator.written.all()

    def test_what_is_refused_leaves_what_came(self, kit):
        """An error of a batch is the user's, batches before are there, and the trainer goes on."""
        trainer = kit.trainer()
        with FullBatchAccumulator(locations(9)) as accumulator:
            with pytest.raises(LocationError, match=r"has \['pixels'\] and no locations at 'locs'"):
                trainer.predict(items([0], "where"), accumulator=accumulator)
            with pytest.raises(DuplicateLocationError):
                trainer.predict(items([0, 1, 2, 3, 4, 0, 6]), accumulator=accumulator)
            assert accumulator.missing_rows().tolist() == [3, 4, 5, 6, 7, 8]
            trainer.predict(items(accumulator.missing_rows()), accumulator=accumulator)
        assert accumulator.written.all()

    def test_without_accumulator_it_is_theirs(self, kit):
        """Also after a prediction that was pushed; and evaluation never pushes."""
        trainer, data = kit.trainer(), items(range(7), labels=np.float32(0.25))
        with FullBatchAccumulator(locations(7)) as accumulator:
            trainer.predict(data, accumulator=accumulator)
        theirs = kit.trainer(theirs=True)
        assert trainer.evaluate(data)["eval_loss"] == theirs.evaluate(data)["eval_loss"]
        ours, gathered = trainer.predict(data), theirs.predict(data)
        for head, rows in enumerate(gathered.predictions):
            np.testing.assert_array_equal(ours.predictions[head], rows)
        np.testing.assert_array_equal(ours.label_ids, gathered.label_ids)

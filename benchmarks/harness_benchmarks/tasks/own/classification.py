"""To choose a label: a head on the model, trained whole, beside the adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from harness import (
    DataKind,
    Evaluation,
    Example,
    Metric,
    ModelKind,
    OwnRecipe,
    OwnRow,
    Recipe,
    TaskContext,
    TaskData,
    predict,
    tokenised_once,
)
from harness_benchmarks.tasks.glue import GlueTask, encode
from harness_benchmarks.tasks.own import scores
from harness_benchmarks.tasks.own.rows import UNLIMITED, OwnTask, fitting, scored


class OwnClassification(OwnTask):
    """Texts, or pairs of texts, with a label each."""

    name = "classification"
    title = "Classification"
    kind = DataKind.CLASSIFICATION
    model_kind = ModelKind.CLASSIFICATION
    targets, trains = GlueTask.targets, GlueTask.trains
    main_metric = "accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("Accuracy", "fraction", True, "Share of right labels."),
        "macro_f1": Metric("F1, macro", "fraction", True, "Mean over the labels that occur."),
        "matthews": Metric("Matthews correlation", "correlation", True, "For any number of labels, in -1..1."),
        "loss": Metric("Loss", "nats", False, "Cross-entropy of the right label, mean over rows."),
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": OwnRecipe(
            steps=60, batch_size=16, max_length=512, learning_rate=2e-3, warmup_fraction=0.06, test_rows=500
        ),
        "small": OwnRecipe(
            epochs=5, batch_size=32, max_length=512, learning_rate=5e-4, warmup_fraction=0.06, weight_decay=0.1
        ),
    }

    def model_arguments(self, recipe: Any) -> Mapping[str, Any]:
        """Ask for a head with one output per label, without dropout: a head's dropout has no seed of its own."""
        names = dict(enumerate(recipe.labels))
        return {
            "num_labels": len(names), "id2label": names, "label2id": {label: place for place, label in names.items()},
            "classifier_dropout": 0.0, "pooler_dropout": 0.0,
        }  # fmt: skip

    def load(self, context: TaskContext) -> TaskData:
        """Tokenise the rows."""
        tables = self.rows(context)
        return TaskData(
            train=self._encode(tables.splits["train"], context),
            splits={
                split: self._encode(scored(tables.splits[split], context.recipe), context)
                for split in ("validation", "test")
            },
        )

    def _encode(self, rows: Sequence[OwnRow], context: TaskContext) -> list[Example]:
        texts = list(zip(*(row.texts for row in rows), strict=True))
        labels = [context.recipe.labels.index(row.label) for row in rows]
        content = [json.dumps([label, *row.texts]) for label, row in zip(labels, rows, strict=True)]

        def of(length: int) -> Sequence[Example]:
            return tokenised_once(
                content, [length], context.tokenizer, lambda: encode(context.tokenizer, texts, labels, length)
            )

        return fitting(rows, of(UNLIMITED), context, of)[1]

    def validation_examples(self, split: Sequence[Example]) -> Sequence[Example]:
        """Return the rows of the split."""
        return split

    @classmethod
    def recompute(cls, items: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
        """Return the scores of the classes that were chosen and the right ones."""
        if not items.get("chosen_class") or not items.get("right_class"):
            return {}
        given, right = (np.asarray(items[name], dtype=int) for name in ("chosen_class", "right_class"))
        counts = scores.confusion(right, given, int(max(*given, *right)) + 1)
        return {"macro_f1": scores.macro_f1(counts), "matthews": scores.matthews(counts)}

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return the scores, and per row whether it is right, its loss and what was chosen."""
        outputs = predict(model, split, context.tokenizer.pad_token_id, context.recipe.batch_size).astype(np.float64)
        right = np.asarray([example.labels for example in split])
        given = outputs.argmax(-1)
        shifted = outputs - outputs.max(-1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(right)), right]
        counts = scores.confusion(right, given, outputs.shape[1])
        classes, rows_of = np.unique(right, return_counts=True)
        guess = np.full_like(right, classes[rows_of.argmax()])
        guessed = scores.confusion(right, guess, outputs.shape[1])
        return Evaluation(
            metrics={
                "accuracy": float((given == right).mean()),
                "macro_f1": scores.macro_f1(counts),
                "matthews": scores.matthews(counts),
                "loss": float(losses.mean()),
            },
            items={
                "accuracy": (given == right).astype(float).tolist(),
                "loss": losses.tolist(),
                "chosen_class": given.astype(float).tolist(),
                "right_class": right.astype(float).tolist(),
            },
            chance={
                "accuracy": float((guess == right).mean()),
                "macro_f1": scores.macro_f1(guessed),
                "matthews": scores.matthews(guessed),
            },
        )

"""To go on writing: plain text, packed into windows of equal length; the score is the perplexity of unseen rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness import (
    DataError,
    DataKind,
    Evaluation,
    Example,
    Metric,
    OwnRecipe,
    OwnRow,
    Recipe,
    TaskContext,
    TaskData,
    negative_log_likelihoods,
    pseudo_values,
    tokenised_once,
)
from harness_benchmarks.tasks.own.chat import beginning
from harness_benchmarks.tasks.own.rows import OwnTask, scored, token_limit


class OwnText(OwnTask):
    """Plain text."""

    name = "text"
    title = "Plain text"
    kind = DataKind.TEXT
    main_metric = "perplexity"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "perplexity": Metric("Perplexity", "perplexity", False, "Of unseen rows, per token."),
        "loss": Metric("Loss", "nats", False, "Its logarithm: mean negative log-likelihood of a token."),
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": OwnRecipe(
            steps=60, batch_size=8, max_length=256, learning_rate=1e-3, warmup_fraction=0.05, test_rows=200
        ),
        "small": OwnRecipe(epochs=1, batch_size=16, max_length=1024, learning_rate=3e-4, warmup_fraction=0.05),
    }

    def load(self, context: TaskContext) -> TaskData:
        """Join the rows, an end-of-text token after each, and cut windows."""
        tables = self.rows(context)
        splits = {
            split: self._windows(scored(tables.splits[split], context.recipe), context)
            for split in ("validation", "test")
        }
        return TaskData(train=self._windows(tables.splits["train"], context), splits=splits)

    def _windows(self, rows: Sequence[OwnRow], context: TaskContext) -> Sequence[Example]:
        tokenizer, length = context.tokenizer, token_limit(context)
        texts = [row.texts[0] for row in rows]

        def encode() -> list[Example]:
            start = beginning(tokenizer, "plain")
            stream = [
                token
                for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
                for token in (*start, *ids, tokenizer.eos_token_id)
            ]
            windows = [stream[place : place + length] for place in range(0, len(stream), length)]
            return [Example(window, window) for window in windows if len(window) > 1]

        windows = tokenised_once(texts, [length], tokenizer, encode)
        if not windows:
            raise DataError(f"data: {rows[0].place}: {len(rows)} rows make no two tokens; bring more text")
        return windows

    def validation_examples(self, split: Sequence[Example]) -> Sequence[Example]:
        """Return the windows of the split."""
        return split

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return the perplexity over all tokens, and the loss of every window."""
        recipe = context.recipe
        size = recipe.batch_size if recipe.micro_batch_size == "auto" else recipe.micro_batch_size
        sums = negative_log_likelihoods(model, split, context.tokenizer.pad_token_id, size)
        counts = [len(window.input_ids) - 1 for window in split]
        loss = sum(sums) / sum(counts)
        losses = [total / count for total, count in zip(sums, counts, strict=True)]
        # A model this far off is no language model; its perplexity is no number.
        perplexity = math.exp(loss) if loss < 700 else None
        reasons = {} if perplexity is not None else {"perplexity": f"a loss of {loss:.4g} nats has no perplexity"}
        items = {"loss": losses}
        if perplexity is not None and len(split) > 1:
            items["perplexity"] = pseudo_values(lambda a, b: math.exp(a.sum() / b.sum()), sums, counts)
        return Evaluation({"perplexity": perplexity, "loss": loss}, reasons, items)

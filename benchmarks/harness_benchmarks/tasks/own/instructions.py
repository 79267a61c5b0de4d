"""To write a response: the loss on the assistant's turns, and what the model writes beside what it should have."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from harness import (
    IGNORE,
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
    generate,
    negative_log_likelihoods,
    setting,
    tokenised_once,
)
from harness_benchmarks.tasks.instructions import subsample
from harness_benchmarks.tasks.own import scores
from harness_benchmarks.tasks.own.chat import encode_pieces, pieces, prompt_of, resolve_template
from harness_benchmarks.tasks.own.rows import OwnTask, fitting, scored

logger = logging.getLogger(__name__)

TRIED = 4  # right answers that a metric scores before anything trains
WRITTEN = {"exact_match": scores.exact_match, "character_f1": scores.character_f1, "rouge_l": scores.rouge_l}


@dataclass(frozen=True, kw_only=True)
class InstructionsRecipe(OwnRecipe):
    """A recipe with how turns are written, and how many answers."""

    template: str = setting(
        "auto",
        "how turns become text: the tokenizer's chat template where it has one",
        choices=("auto", "chat", "plain"),
    )
    written: int = setting(
        0, "test rows whose answer is written, chosen by hash; 0: none, unless that ranks", minimum=0
    )
    max_new_tokens: int = setting(128, "longest written answer, in tokens", minimum=1)
    evaluation_batch_size: int = setting(32, "rows per batch when scoring", minimum=1)


class Scored(NamedTuple):
    """Rows that are scored: their examples, and of those chosen to be written, prompts and right answers."""

    examples: Sequence[Example]
    prompts: Sequence[Sequence[int]]
    answers: Sequence[str]


class OwnInstructions(OwnTask):
    """Prompts and responses, or conversations."""

    name = "instructions"
    title = "Instructions"
    kind = DataKind.INSTRUCTIONS
    takes_modules = True
    main_metric = "loss"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": Metric("Loss", "nats", False, "Per token of the response, mean over rows."),
        "exact_match": Metric("Exact match", "fraction", True, "Share of written answers that are the row's."),
        "character_f1": Metric(
            "Character F1", "fraction", True, "Of the characters of written answers, mean over rows."
        ),
        "rouge_l": Metric(
            "ROUGE-L", "fraction", True, "F1 of the longest common subsequence of words, mean over rows."
        ),
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": InstructionsRecipe(
            steps=60, batch_size=8, max_length=1024, learning_rate=1e-3, warmup_fraction=0.05, max_new_tokens=64,
            test_rows=200,
        ),
        "small": InstructionsRecipe(
            epochs=3, batch_size=16, max_length=2048, learning_rate=3e-4, warmup_fraction=0.05, written=64,
            max_new_tokens=256, test_rows=1_000,
        ),
    }  # fmt: skip

    def load(self, context: TaskContext) -> TaskData:
        """Write the rows as text, and tokenise them."""
        recipe = context.recipe
        template = resolve_template(recipe.template, context.tokenizer)
        tables = self.rows(context)
        train = self._fitting(tables.splits["train"], context, template)[1]
        splits = {}
        for split in ("validation", "test"):
            rows, examples = self._fitting(scored(tables.splits[split], recipe), context, template)
            splits[split] = self._scored(rows, examples, context, template, split)
        return TaskData(train=train, splits=splits)

    def check(self, context: TaskContext) -> None:
        """Refuse rows that are not what they should be; say how turns are written where the model does not."""
        if context.recipe.template == "auto" and not context.tokenizer.chat_template:
            logger.warning("the model has no chat template: turns are written as ### User: ... ### Assistant: ...")
        super().check(context)
        if self.main_metric not in (*WRITTEN, "loss"):  # what cannot be scored is said before anything trains
            rows = self.rows(context).splits["validation"][:TRIED]
            answers = [turns[-1][1] for turns in (row.turns for row in rows)]
            scores.by_module(context.recipe.metric_source, answers, answers)

    def _fitting(
        self, rows: Sequence[OwnRow], context: TaskContext, template: str
    ) -> tuple[list[OwnRow], list[Example]]:
        tokenizer = context.tokenizer

        def encode() -> list[Example]:
            found = []
            for row in rows:
                try:
                    found.append(encode_pieces(pieces(row.turns, tokenizer, template), tokenizer, template))
                except DataError as error:
                    raise DataError(f"data: {row.place}: {error}") from error
            return found

        texts = [json.dumps(row.turns) for row in rows]
        examples = tokenised_once(texts, [template, tokenizer.chat_template], tokenizer, encode)

        def cut(limit: int) -> list[Example]:
            found = [Example(each.input_ids[:limit], _labels(each)[:limit]) for each in examples]
            for row, each in zip(rows, found, strict=True):
                if all(label == IGNORE for label in _labels(each)):
                    raise DataError(
                        f"data: {row.place}: cut at {limit} tokens, nothing is left of the response; give a larger "
                        "--set max_length, or --set too_long=leave_out"
                    )
            return found

        return fitting(rows, examples, context, cut)

    def _scored(
        self, rows: Sequence[OwnRow], examples: Sequence[Example], context: TaskContext, template: str, split: str
    ) -> Scored:
        recipe, ranks = context.recipe, self.main_metric != "loss"
        count = (recipe.written or len(rows)) if ranks else recipe.written if split == "test" else 0
        chosen = subsample(rows, count, lambda row: row.key) if count else []
        written = [pieces(row.turns, context.tokenizer, template) for row in chosen]
        prompts = [prompt_of(parts, context.tokenizer, template) for parts in written]
        return Scored(examples, prompts, [row.turns[-1][1] for row in chosen])

    def validation_examples(self, split: Scored) -> Sequence[Example]:
        """Return the rows of the split."""
        return split.examples

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Return the loss of every row, and of the chosen ones what written answers are worth."""
        recipe, tokenizer = context.recipe, context.tokenizer
        size = recipe.evaluation_batch_size
        sums = negative_log_likelihoods(model, split.examples, tokenizer.pad_token_id, size)
        counts = [sum(label != IGNORE for label in _labels(each)[1:]) for each in split.examples]
        losses = [total / max(1, count) for total, count in zip(sums, counts, strict=True)]
        metrics: dict[str, float | None] = {**dict.fromkeys(self.metrics), "loss": sum(losses) / len(losses)}
        items: dict[str, Sequence[float | None]] = {"loss": losses}
        if not split.prompts:
            reason = "no answers are written; --set written=N writes those of N test rows"
            return Evaluation(metrics, {name: reason for name in metrics if name != "loss"}, items)
        outputs = generate(model, tokenizer, split.prompts, recipe.max_new_tokens, size)
        given = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]
        for name, score in WRITTEN.items():
            worth = [score(text, right) for text, right in zip(given, split.answers, strict=True)]
            items[name], metrics[name] = worth, sum(worth) / len(worth)
        if self.main_metric not in (*WRITTEN, "loss"):
            metrics[self.main_metric], items[self.main_metric] = scores.by_module(
                recipe.metric_source, given, split.answers
            )
        return Evaluation(metrics, {}, items)


def _labels(example: Example) -> Sequence[int]:
    assert not isinstance(example.labels, (int, float))
    return example.labels

"""UUID memorisation: random pairs, the model must give the second UUID for the first.

The pairs are new to any pretrained model and cannot be compressed, so the score is how much a method can store.

Source: Jiang et al., "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning", arXiv:2405.12130, section 3 and
table 2.
"""

from __future__ import annotations

import math
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from harness import (
    IGNORE,
    Evaluation,
    Example,
    Metric,
    Purpose,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    generate,
    hookimpl,
    negative_log_likelihoods,
    setting,
)
from harness_benchmarks import forgetting

BITS_PER_UUID = 128


@dataclass(frozen=True, kw_only=True)
class UuidRecipe(forgetting.ForgettingRecipe):
    """A recipe with the number of pairs."""

    pairs: int = setting(10_000, "pairs to memorise", minimum=1)


@dataclass(frozen=True)
class Split:
    """Pairs with their examples, and on how many windows forgetting is measured."""

    pairs: Sequence[tuple[Pair, Example]]
    forgetting_windows: int = 0


@dataclass(frozen=True)
class Pair:
    """A question and its answer, as text."""

    prompt: str
    answer: str


def draw_pairs(count: int, seed: int) -> list[Pair]:
    """Return random pairs. All 128 bits of a UUID are drawn: no fixed version digit that could be had for nothing."""
    source = random.Random(seed)  # noqa: S311 - reproducible data, not cryptography
    numbers = [[uuid.UUID(int=source.getrandbits(BITS_PER_UUID)) for _ in range(2)] for _ in range(count)]
    return [Pair(f"{key} ", str(value)) for key, value in numbers]


class UuidTask(Task):
    """Memorise random UUID pairs; the loss is on the answer only."""

    name = "uuid"
    title = "UUID memorisation"
    paper = "https://arxiv.org/abs/2405.12130"
    source = Source(
        licence="generated", note="Pairs are drawn from the trial's seed. What is scored is what was trained on."
    )
    main_metric = "character_accuracy"
    purpose = Purpose.MEMORISING
    metrics: ClassVar[Mapping[str, Metric]] = {
        "character_accuracy": Metric(
            "Character accuracy",
            "fraction",
            True,
            "Share of the 32 hexadecimal digits that greedy decoding gets right.",
        ),
        "exact_match": Metric("Exact match", "fraction", True, "Share of pairs whose whole answer is right."),
        "answer_nll": Metric("Answer NLL", "nats", False, "Mean negative log-likelihood of an answer, teacher forced."),
        "bits_per_parameter": Metric(
            "Bits per parameter",
            "bits/parameter",
            True,
            "128 bits per pair, less the answers' remaining NLL in bits, over the trainable adapter parameters.",
        ),
        **forgetting.METRICS,
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        # Sized so that full fine-tuning of the shipped base just gets everything, and adapters do not.
        "smoke": UuidRecipe(
            pairs=16,
            batch_size=16,
            steps=60,
            learning_rate=3e-3,
            schedule="cosine",
            warmup_steps=5,
            evaluate_at=(30, 40, 50),
            forgetting_windows=0,  # it shall need no data
        ),
        "small": UuidRecipe(
            pairs=1_000,
            batch_size=250,
            steps=1_000,
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=20,
            evaluate_at=(300, 500, 700),
        ),
        # Table 2: 10,000 pairs, 1,000 a step, 100 epochs; learning rates searched around 2e-4 for LoRA.
        "paper": UuidRecipe(
            pairs=10_000,
            batch_size=1_000,
            epochs=100,
            learning_rate=2e-4,
            warmup_steps=100,
            evaluate_at=(300, 500, 700, 900),
        ),
    }

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the text that forgetting is measured on; the pairs are drawn."""
        return [forgetting.TABLE] if recipe.forgetting_windows else []

    def load(self, context: TaskContext) -> TaskData:
        """Draw and tokenise the pairs."""
        pairs = draw_pairs(context.recipe.pairs, context.seed)
        examples = [_encode(pair, context.tokenizer) for pair in pairs]
        scored = list(zip(pairs, examples, strict=True))
        test = Split(scored, context.recipe.forgetting_windows)
        return TaskData(train=examples, splits={"validation": Split(scored), "test": test})

    def validation_examples(self, split: Split) -> Sequence[Example]:
        """Return the pairs that are scored."""
        return [example for _, example in split.pairs]

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Decode every answer greedily, and measure its likelihood; measure forgetting."""
        tokenizer = context.tokenizer
        examples = [example for _, example in split.pairs]
        losses = negative_log_likelihoods(model, examples, tokenizer.pad_token_id, context.recipe.batch_size)
        starts = [list(example.labels).count(IGNORE) for example in examples]
        prompts = [list(example.input_ids)[:start] for example, start in zip(examples, starts, strict=True)]
        longest = max(len(example.input_ids) - start for example, start in zip(examples, starts, strict=True))
        outputs = generate(model, tokenizer, prompts, longest, context.recipe.batch_size, min_new_tokens=longest)
        texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in outputs]
        accuracy = [digit_accuracy(text, pair.answer) for text, (pair, _) in zip(texts, split.pairs, strict=True)]
        exact = [float(each == 1.0) for each in accuracy]
        bits = BITS_PER_UUID * len(examples) - sum(losses) / math.log(2)
        found = Evaluation(
            metrics={
                "character_accuracy": sum(accuracy) / len(accuracy),
                "exact_match": sum(exact) / len(exact),
                "answer_nll": sum(losses) / len(losses),
                "bits_per_parameter": bits / context.adapter_parameters if context.adapter_parameters else None,
            },
            reasons={} if context.adapter_parameters else {"bits_per_parameter": "no parameter of an adapter trains"},
            items={"character_accuracy": accuracy, "exact_match": exact, "answer_nll": losses},
            chance={"character_accuracy": 1 / 16},
        )
        return forgetting.with_forgetting(found, model, context, split.forgetting_windows)


def _encode(pair: Pair, tokenizer: Any) -> Example:
    prompt = tokenizer(pair.prompt)["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        prompt = prompt[:-1]
    answer = tokenizer(pair.answer, add_special_tokens=False)["input_ids"]
    return Example([*prompt, *answer], [IGNORE] * len(prompt) + answer)


def digit_accuracy(text: str, answer: str) -> float:
    """Return the share of the answer's hexadecimal digits that stand at their place in the text."""
    text = text.strip()
    right = sum(a == b for a, b in zip(text, answer, strict=False) if b != "-")
    return right / sum(b != "-" for b in answer)


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [UuidTask]

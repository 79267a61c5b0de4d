"""How far a tuned language model has moved from its base model, on text that it was not tuned on.

The measure is the cross-entropy of the tuned model against the base model's own next-token distribution on WikiText:
``-sum_v p_base(v) log p_tuned(v)``, averaged over tokens. For an unchanged model it is the base model's entropy, so the
excess over that (a Kullback-Leibler divergence, 0 for an unchanged model) is given beside it.

Source: Wang et al., "MiLoRA", arXiv:2406.09044, section 5.4, after Kalajdzievski, "Scaling laws for forgetting when
fine-tuning large language models", arXiv:2401.05605. Both use the WikiText-103 test split, whose text is WikiText-2's.

A task's recipe is a ``ForgettingRecipe``; it merges ``METRICS`` into its own, ``TABLE`` into its tables, and ends its
evaluation with ``with_forgetting``; validation splits ask for no windows. It is a side metric: without the text it is
``null`` with a reason, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from harness import DataError, Evaluation, Metric, Recipe, Source, Table, TaskContext, pretrained, read_rows, setting
from harness_benchmarks import REVISION

SOURCE = Source(
    hub_id="Salesforce/wikitext",
    config="wikitext-2-raw-v1",
    revision="b08601e04326c79dfdd32d625aee71d232d685c3",
    licence="CC BY-SA 3.0 / GFDL",
    folder="wikitext/wikitext-2-raw",
    note=f"The test split; locally the plain text file wiki.test.raw. {REVISION}",
)
TABLE = Table(SOURCE, "wiki.test", needed=False, hub_split="test")
METRICS: Mapping[str, Metric] = {
    "forgetting": Metric(
        "Forgetting",
        "nats",
        False,
        "Cross-entropy against the base model's own distribution, per token of WikiText (MiLoRA, section 5.4).",
    ),
    "forgetting_excess": Metric(
        "Forgetting, excess",
        "nats",
        False,
        "The same less the base model's entropy: its divergence from the base model, 0 when nothing changed.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ForgettingRecipe(Recipe):
    """A recipe of a task that measures forgetting."""

    forgetting_windows: int = setting(64, "sequences of WikiText on which forgetting is measured; 0: none", minimum=0)


BATCH = 4  # windows per forward pass: two distributions over the vocabulary are held for each of their tokens
GPU_NUMBERS = 2**29  # of such a distribution on a GPU, which the tokens of few windows do not fill


def measure_forgetting(model: Any, context: TaskContext, windows: int = 64, length: int = 512) -> Evaluation:
    """Compare a tuned model with its base model on windows spread evenly over WikiText.

    Args:
        model: With one trial's adapters active, or a trial's own copy of the model.
        context: Has the resident base model and the tokenizer.
        windows: How many; 0: it is not measured.
        length: Tokens in each, at most.

    Returns:
        Both metrics, each ``None`` with a reason where it cannot be had; per window in ``items``.
    """
    if not windows:
        return _absent("measured on the test split only, on as many windows as the recipe's forgetting_windows")
    if context.base_model is None:
        return _absent("the task was given no base model to compare with")
    tokens = _tokenise(context.tokenizer, context.data_dir)
    if isinstance(tokens, str):
        return _absent(f"WikiText is not there: {tokens}")
    length = min(length, len(tokens))
    count = min(windows, len(tokens) // length)
    starts = [(len(tokens) - length) * number // max(1, count - 1) for number in range(count)]
    device = next(model.parameters()).device
    crosses: list[float] = []
    excesses: list[float] = []
    batch = max(1, GPU_NUMBERS // (len(context.tokenizer) * length)) if device.type == "cuda" else BATCH
    for first in range(0, count, batch):
        ids = torch.stack([tokens[start : start + length] for start in starts[first : first + batch]]).to(device)
        with torch.no_grad():
            tuned = log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
            with pretrained(model):
                base = log_softmax(context.base_model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
        probability = base.exp()
        crosses += (-(probability * tuned).sum(-1)).double().mean(1).tolist()
        excesses += (probability * (base - tuned)).sum(-1).double().mean(1).tolist()
    items = {"forgetting": crosses, "forgetting_excess": excesses}
    return Evaluation(metrics={name: sum(each) / len(each) for name, each in items.items()}, items=items)


def with_forgetting(found: Evaluation, model: Any, context: TaskContext, windows: int, length: int = 512) -> Evaluation:
    """Return an evaluation with what ``measure_forgetting`` finds besides."""
    side = measure_forgetting(model, context, windows, length)
    return replace(
        found,
        metrics={**found.metrics, **side.metrics},
        reasons={**found.reasons, **side.reasons},
        items={**found.items, **side.items},
    )


def _absent(reason: str) -> Evaluation:
    return Evaluation(metrics=dict.fromkeys(METRICS), reasons=dict.fromkeys(METRICS, reason))


@lru_cache(maxsize=2)
def _tokenise(tokenizer: Any, data_dir: Path | None) -> torch.Tensor | str:
    """Return the whole text as token ids, shape (N,), or why there is none; a failed download is not tried again."""
    try:
        text = _read_text(data_dir)
    except DataError as error:
        return str(error)
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)


def _read_text(data_dir: Path | None) -> str:
    text = "".join(row["text"] for row in read_rows(SOURCE, TABLE.split, data_dir, TABLE.hub_split))
    if not text.strip():
        raise DataError(f"data: {SOURCE.folder} is empty; put WikiText's test split there")
    return text

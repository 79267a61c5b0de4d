"""Scoring a model: the likelihood of given tokens, or a classifier's outputs. Batched and deterministic.

Batches are made of items of similar length, and results come back in the items' order.

What is not here: greedy decoding (``decoding``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from harness.contract.task import Example, ModelKind
from harness.engine.batch import collate, encode
from harness.engine.losses import lane_losses, run, token_losses
from harness.engine.memory import Portions

GPU_TOKENS = 2**15  # of a forward pass on a GPU, which fewer would not fill
_portions = Portions()
Result = TypeVar("Result")


@torch.no_grad()
def negative_log_likelihoods(
    model: Any, examples: Sequence[Example], pad_token: int, batch_size: int = 64
) -> list[float]:
    """Return, per example, the summed negative log-likelihood of its labelled tokens, in nats (teacher forcing).

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        examples: Labels as for training: ``IGNORE`` where a token does not count.
        pad_token: Fills shorter examples; its value does not matter.
        batch_size: Examples per forward pass, at least; on a GPU as many more as fill it.
    """
    device = next(model.parameters()).device
    results = [0.0] * len(examples)

    def sums(some: Sequence[Example]) -> list[float]:
        # One lane per example, so that loss positions come back grouped by example.
        (batch,) = collate([[encode(example, ModelKind.CAUSAL_LM)] for example in some], pad_token)
        batch = batch.to(device)
        losses = token_losses(model, batch) * (batch.weights > 0)
        return losses.view(batch.lanes, -1).double().sum(1).tolist()

    for rows, found in _batches(model, examples, batch_size, sums):
        for row, loss in zip(rows, chain(*found), strict=True):
            results[row] = loss
    return results


@torch.no_grad()
def training_loss(
    model: Any, kind: ModelKind, examples: Sequence[Example], pad_token: int, batch_size: int = 64
) -> float:  # fmt: skip
    """Return the training loss over examples: the mean over all labelled tokens, or over the examples of a classifier.

    Args:
        model: In evaluation mode.
        kind: What labels mean.
        examples: At least one.
        pad_token: As for ``negative_log_likelihoods``.
        batch_size: As there.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0

    def sum_and_count(some: Sequence[Example]) -> tuple[float, int]:
        (batch,) = collate([[encode(example, kind)] for example in some], pad_token)
        batch = batch.to(device)
        labelled = (batch.weights > 0).view(batch.lanes, -1).sum(1)
        return float((lane_losses(model, kind, batch).double() * labelled).sum()), int(labelled.sum())

    for _, found in _batches(model, examples, batch_size, sum_and_count):
        for loss, labels in found:
            total, count = total + loss, count + labels
    return total / count


@torch.no_grad()
def predict(model: Any, examples: Sequence[Example], pad_token: int, batch_size: int = 64) -> Any:
    """Return what a classifier, or a model of a number, puts out: an array (examples, outputs), float32.

    Args:
        model: From ``transformers``, in evaluation mode.
        examples: Their labels do not matter.
        pad_token: Fills shorter examples.
        batch_size: As for ``negative_log_likelihoods``.
    """
    device = next(model.parameters()).device
    results: list[Any] = [None] * len(examples)

    def outputs(some: Sequence[Example]) -> Any:
        unlabelled = [encode(example._replace(labels=0), ModelKind.REGRESSION) for example in some]
        (batch,) = collate([unlabelled], pad_token)
        return run(model, batch.to(device)).logits.float().cpu().numpy()

    for rows, found in _batches(model, examples, batch_size, outputs):
        for row, output in zip(rows, chain(*found), strict=True):
            results[row] = output
    return np.stack(results)


def _batches(
    model: Any, examples: Sequence[Example], batch_size: int, work: Callable[[Sequence[Example]], Result]
) -> Iterator[tuple[list[int], list[Result]]]:
    """Yield which examples a batch has, and what ``work`` makes of it: in as many portions as memory wants."""
    least_tokens = GPU_TOKENS if next(model.parameters()).is_cuda else 0
    for rows in by_length([len(example.input_ids) for example in examples], batch_size, least_tokens):

        def portion(some: slice, rows: Sequence[int] = rows) -> Result:
            return work([examples[row] for row in rows[some]])

        yield rows, _portions(model, len(rows), portion)


def by_length(lengths: Sequence[int], batch_size: int, least_tokens: int = 0) -> Iterator[list[int]]:
    """Yield row numbers in batches of similar length, longest first, so that memory runs out at once or not at all.

    Args:
        lengths: Of the rows, in tokens.
        batch_size: Rows of a batch; more where they have fewer than ``least_tokens`` tokens together.
        least_tokens: Of a batch.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(rows):
        size = max(batch_size, least_tokens // max(1, lengths[rows[start]]))
        yield rows[start : start + size]
        start += size

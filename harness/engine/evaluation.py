"""Scoring a language model: the likelihood of given tokens. Batched, deterministic, any causal model.

Batches are made of items of similar length, and results come back in the items' order.

What is not here: greedy decoding (``decoding``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch

from harness.contract.task import Example, ModelKind
from harness.engine.batch import collate, encode
from harness.engine.losses import lane_losses, token_losses
from harness.engine.memory import Portions

GPU_TOKENS = 2**15  # of a forward pass on a GPU, which fewer would not fill
_portions = Portions()


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
    least_tokens = GPU_TOKENS if device.type == "cuda" else 0
    for rows in by_length([len(e.input_ids) for e in examples], batch_size, least_tokens):

        def sums(some: slice, rows: Sequence[int] = rows) -> list[float]:
            # One lane per example, so that loss positions come back grouped by example.
            (batch,) = collate([[encode(examples[row], ModelKind.CAUSAL_LM)] for row in rows[some]], pad_token)
            batch = batch.to(device)
            losses = token_losses(model, batch) * (batch.weights > 0)
            return losses.view(batch.lanes, -1).double().sum(1).tolist()

        for row, loss in zip(rows, chain(*_portions(model, len(rows), sums)), strict=True):
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
    least_tokens = GPU_TOKENS if device.type == "cuda" else 0
    total, count = 0.0, 0
    for rows in by_length([len(e.input_ids) for e in examples], batch_size, least_tokens):

        def sum_and_count(some: slice, rows: Sequence[int] = rows) -> tuple[float, int]:
            (batch,) = collate([[encode(examples[row], kind)] for row in rows[some]], pad_token)
            batch = batch.to(device)
            labelled = (batch.weights > 0).view(batch.lanes, -1).sum(1)
            return float((lane_losses(model, kind, batch).double() * labelled).sum()), int(labelled.sum())

        for loss, labels in _portions(model, len(rows), sum_and_count):
            total, count = total + loss, count + labels
    return total / count


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

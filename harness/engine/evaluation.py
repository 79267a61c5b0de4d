"""Scoring a language model: the likelihood of given tokens. Batched, deterministic, any causal model.

Batches are made of items of similar length, and results come back in the items' order.

What is not here: greedy decoding (``decoding``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from harness.contract.task import Example, ModelKind
from harness.engine.batch import collate, encode
from harness.engine.losses import only_at


@torch.no_grad()
def negative_log_likelihoods(
    model: Any, examples: Sequence[Example], pad_token: int, batch_size: int = 64
) -> list[float]:
    """Return, per example, the summed negative log-likelihood of its labelled tokens, in nats (teacher forcing).

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        examples: Labels as for training: ``IGNORE`` where a token does not count.
        pad_token: Fills shorter examples; its value does not matter.
        batch_size: Examples per forward pass.
    """
    device = next(model.parameters()).device
    results = [0.0] * len(examples)
    head = model.get_output_embeddings()
    for rows in by_length([len(e.input_ids) for e in examples], batch_size):
        # One lane per example, so that loss positions come back grouped by example.
        (batch,) = collate([[encode(examples[row], ModelKind.CAUSAL_LM)] for row in rows], pad_token)
        batch = batch.to(device)
        assert batch.index is not None
        with only_at(head, batch.index):
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
        losses = cross_entropy(logits.float(), batch.targets, reduction="none") * (batch.weights > 0)
        for row, loss in zip(rows, losses.view(len(rows), -1).double().sum(1).tolist(), strict=True):
            results[row] = loss
    return results


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of similar length, longest first, so that memory runs out at once or not at all."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]

"""Scoring a language model: likelihood of given tokens, and greedy decoding. Batched, deterministic, any causal model.

Batches are made of items of similar length, and results come back in the items' order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from harness.batch import collate, encode
from harness.task import Example, ModelKind


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
    for rows in _by_length([len(e.input_ids) for e in examples], batch_size):
        # One lane per example, so that loss positions come back grouped by example.
        (batch,) = collate([[encode(examples[row], ModelKind.CAUSAL_LM)] for row in rows], pad_token)
        batch = batch.to(device)
        assert batch.index is not None
        index = batch.index

        def gather(_: Any, args: tuple[torch.Tensor, ...], index: torch.Tensor = index) -> tuple[torch.Tensor, ...]:
            return (args[0].flatten(0, -2)[index], *args[1:])

        hook = head.register_forward_pre_hook(gather)
        try:
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
        finally:
            hook.remove()
        losses = cross_entropy(logits.float(), batch.targets, reduction="none") * (batch.weights > 0)
        for row, loss in zip(rows, losses.view(len(rows), -1).double().sum(1).tolist(), strict=True):
            results[row] = loss
    return results


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int = 64,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Return each prompt's greedy continuation as token ids, without the prompt, cut before an end-of-text token.

    Args:
        model: A causal language model from ``transformers``, in evaluation mode.
        tokenizer: Gives the padding and end-of-text tokens.
        prompts: Token ids.
        max_new_tokens: Longest continuation.
        batch_size: Prompts per batch; padded on the left.
        min_new_tokens: No end-of-text token before this many.
    """
    device = next(model.parameters()).device
    results: list[list[int]] = [[] for _ in prompts]
    for rows in _by_length([len(prompt) for prompt in prompts], batch_size):
        width = max(len(prompts[row]) for row in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(prompts[row]) :] = torch.as_tensor(prompts[row])
            mask[place, width - len(prompts[row]) :] = 1
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens or None,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
            end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
            results[row] = tokens[:end]
    return results


def _by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of similar length, longest first, so that memory runs out at once or not at all."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]

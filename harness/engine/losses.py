"""Each lane's training loss, from one forward pass of the model over all lanes' rows.

Logits are computed only where labels are, and in pieces where they would take too much memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from harness.contract.task import ModelKind
from harness.engine.batch import Batch
from harness.engine.compiling import compiled_if_wanted
from harness.engine.model import unmasked


def lane_losses(model: Any, kind: ModelKind, batch: Batch) -> Tensor:
    """Return each lane's mean training loss, shape (K,).

    Logits are computed only where they are wanted: the output head sees just those hidden states.

    Args:
        model: From ``transformers``, with the lanes' modules in place.
        kind: What labels mean.
        batch: On the model's device.
    """
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = batch.token_type_ids
    with ExitStack() as stack:
        if batch.attention_mask is None:
            stack.enter_context(unmasked())
            # A mask of ones keeps transformers from searching the positions for packed sequences.
            arguments["attention_mask"] = torch.ones_like(batch.input_ids)
        if batch.index is None:
            logits = model(**arguments).logits
        else:
            head = model.get_output_embeddings()
            size = len(batch.index) * int(getattr(head, "out_features", 0))
            if size > MOST_LOGITS and not _changes_logits(model):
                return _chunked_losses(model, head, arguments, batch, -(-size // MOST_LOGITS))
            stack.enter_context(only_at(head, batch.index))
            logits = model(**arguments, use_cache=False).logits
    if kind is ModelKind.REGRESSION:
        each = (at_least_float32(logits.squeeze(-1)) - batch.targets).square()
    else:
        each = token_losses(logits, batch.targets)
    weighted: Tensor = (each * batch.weights).view(batch.lanes, -1).sum(1)
    return weighted


MOST_LOGITS = 2**29  # at once; beyond, logits are computed in pieces, and again in the backward pass


def _changes_logits(model: Any) -> bool:
    """Return whether the model does something to its head's output, e.g. cap or scale it."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling", "logits_soft_cap", "lm_head_multiplier")
    return any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in names)


def _chunked_losses(model: Any, head: nn.Module, arguments: Mapping[str, Any], batch: Batch, chunks: int) -> Tensor:
    """Return each lane's mean loss, shape (K,), never holding more than a chunk of logits."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        caught.append(inputs[0].flatten(0, -2)[batch.index])
        return (inputs[0][:, :1], *inputs[1:])  # the model's own logits are not used

    hook = head.register_forward_pre_hook(catch)
    try:
        model(**arguments, use_cache=False)
    finally:
        hook.remove()

    def losses(hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        # Lanes stay in order within a chunk, for heads that each lane trains itself.
        each = token_losses(head(hidden.flatten(0, 1)), targets.flatten()) * weights.flatten()
        return each.view(batch.lanes, -1).sum(1)

    hidden = caught[0].view(batch.lanes, -1, caught[0].shape[-1])
    targets, weights = (each.view(batch.lanes, -1) for each in (batch.targets, batch.weights))
    pieces = zip(*(each.chunk(chunks, dim=1) for each in (hidden, targets, weights)), strict=True)
    parts = [checkpoint(losses, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(parts).sum(0)


@contextmanager
def only_at(head: nn.Module, index: Tensor) -> Iterator[None]:
    """Let an output head see only the hidden states at these rows of the flattened (B T) positions."""

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].flatten(0, -2)[index], *inputs[1:])

    hook = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        hook.remove()


@compiled_if_wanted
def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each token's cross-entropy in at least float32, shape (N,). Compiled, it reads large logits once."""
    return cross_entropy(at_least_float32(logits), targets, reduction="none")


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 if that is what they are in."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

"""Each lane's training loss, from one forward pass of the model over all lanes' rows.

Logits are computed only where labels are, and in pieces (``head_loss``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from harness.contract.task import Example, ModelKind
from harness.engine import head_loss
from harness.engine.attention import unmasked
from harness.engine.batch import Batch, collate, encode
from harness.engine.flat import flat_arguments, judge
from harness.engine.head_form import HeadForm, head_form
from harness.engine.head_loss import head_losses
from harness.engine.probe import some_text
from harness.errors import ConfigError

CLOSE = 0.05  # of a loss, relative, or in nats of one below 1: rounding to bfloat16 in another order changes less


def lane_losses(model: Any, kind: ModelKind, batch: Batch) -> Tensor:
    """Return each lane's mean training loss, shape (K,).

    Args:
        model: From ``transformers``, with the lanes' modules in place.
        kind: What labels mean.
        batch: On the model's device.
    """
    if kind in (ModelKind.CAUSAL_LM, ModelKind.FROM_SCRATCH):
        each = token_losses(model, batch)
    else:
        logits = run(model if batch.index is None else partial(judge, model, batch.index), batch).logits
        if kind is ModelKind.REGRESSION:
            each = (logits.squeeze(-1).float() - batch.targets).square()
        else:
            each = cross_entropy(logits.float(), batch.targets, reduction="none")
    return (each * batch.weights).view(batch.lanes, -1).sum(1)


def run(model: Any, batch: Batch, **more: Any) -> Any:
    """Return what the model makes of a batch."""
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **more}
    if batch.token_type_ids is not None:
        arguments["token_type_ids"] = batch.token_type_ids
    if batch.boundaries is not None:
        arguments["position_ids"] = batch.position_ids
        arguments |= flat_arguments(batch.boundaries, batch.longest)
    if batch.attention_mask is not None:
        return model(**arguments)
    # A mask of ones keeps transformers from searching the positions for packed sequences.
    arguments["attention_mask"] = torch.ones_like(batch.input_ids)
    with unmasked("rows" if batch.boundaries is None else "flat"):
        return model(**arguments)


def token_losses(model: Any, batch: Batch) -> Tensor:
    """Return the cross-entropy at each position whose logits are wanted, (K N,), in at least float32."""
    head, index = model.get_output_embeddings(), batch.index
    assert index is not None
    form = head_form(model)
    if form is None:
        with head_sees(head, lambda hidden: hidden.flatten(0, -2)[index]):
            logits = run(model, batch, use_cache=False).logits
        return cross_entropy(_high(logits), batch.targets, reduction="none")
    caught: list[Tensor] = []

    def catch(hidden: Tensor) -> Tensor:
        caught.append(hidden.flatten(0, -2)[index])
        return hidden[:, :0]  # the model's own logits are not used

    with head_sees(head, catch):
        run(model, batch, use_cache=False)
    if type(head) is nn.Linear:
        return head_losses(caught[0], head.weight, head.bias, batch.targets, form)
    return _by_pieces(head, caught[0], batch.targets, batch.lanes, form)


@torch.no_grad()
def check_loss(model: Any) -> None:
    """Refuse a language model whose loss, as it is taken here, is not that of its own logits.

    Raises:
        ConfigError: Its head does not see one hidden state for every token, or its logits are not made from the head.
    """
    text = some_text(model)
    (batch,) = collate([[encode(Example(ids, ids), ModelKind.CAUSAL_LM) for ids in text.tolist()]], pad_token=0)
    expected = float(cross_entropy(_high(model(input_ids=text, use_cache=False).logits[0, :-1]), text[0, 1:]))
    try:
        found = float(token_losses(model, batch.to(text.device)).mean())
        seen = f"a loss of {found:.3g} instead of {expected:.3g}"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's code, whose head is called in ways of its own
        found, seen = math.nan, f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not abs(found - expected) <= CLOSE * max(1.0, expected):  # nor if it is undefined
        raise ConfigError(
            f"{type(model).__name__}: its loss cannot be taken from what its output head sees, one hidden state for "
            f"every token ({seen}); take another model"
        )


def _high(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _by_pieces(head: nn.Module, hidden: Tensor, targets: Tensor, lanes: int, form: HeadForm) -> Tensor:
    """Return each token's loss through a head of any kind, e.g. one that each lane trains itself, (N,)."""

    def losses(hidden: Tensor, targets: Tensor) -> Tensor:
        # Lanes stay in order within a piece.
        logits = _high(form(head(hidden.flatten(0, 1))))
        return cross_entropy(logits, targets.flatten(), reduction="none").view(lanes, -1)

    width = int(getattr(head, "out_features", 0)) or 1
    number = -(-len(targets) * width // head_loss.MOST_LOGITS)
    rows, labels = hidden.view(lanes, -1, hidden.shape[-1]), targets.view(lanes, -1)
    pieces = zip(rows.chunk(number, dim=1), labels.chunk(number, dim=1), strict=True)
    parts = [checkpoint(losses, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.cat(parts, dim=1).flatten()


@contextmanager
def head_sees(head: nn.Module, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let an output head see only what is chosen of its input, (..., I)."""

    def change(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (choose(inputs[0]), *inputs[1:])

    hook = head.register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()

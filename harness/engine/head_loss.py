"""The cross-entropy of an output head without its logits: in pieces, forward and backward, never all at once.

With a vocabulary of 262,144 tokens a batch's logits take more memory than the model. So a piece of them is made, turned
into each token's loss and at once into the gradient of the head's input, and forgotten. Where the head is frozen,
the backward pass needs no more than that; where it trains, its pieces are made once more there.

    loss_i = logsumexp(z_i) - z_i[y_i],    z = f(h W' + b),    d loss_i / d h_i = ((softmax(z_i) - onehot(y_i)) f') W

f is what the model does to its head's output, mostly nothing (``head_form``).

The idea of giving the gradient in the forward pass is Liger Kernel's (Hsu et al., arXiv:2410.10989, section 3.2).
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.engine.head_form import PLAIN, HeadForm

MOST_LOGITS = 2**26  # at once


def head_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: HeadForm = PLAIN
) -> Tensor:  # fmt: skip
    """Return each token's cross-entropy, (N,), in at least float32.

    Args:
        hidden: What the head sees, (N, I).
        weight: The head's, (V, I).
        bias: (V,).
        targets: What must be predicted, (N,) token ids.
        form: What becomes of the head's output.
    """
    return cast(Tensor, _HeadLosses.apply(hidden, weight, bias, targets, form))  # type: ignore[no-untyped-call]


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: HeadForm
    ) -> Tensor:
        losses = torch.empty(len(targets), dtype=_high(hidden.dtype), device=hidden.device)
        wants = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants else None
        for piece in _pieces(len(targets), len(weight)):
            losses[piece], errors = _errors(hidden[piece], weight, bias, targets[piece], form)
            if gradient is not None:
                torch.mm(errors, weight, out=gradient[piece])
        trains = ctx.needs_input_grad[1] or (bias is not None and ctx.needs_input_grad[2])
        ctx.save_for_backward(gradient, *((hidden, weight, bias, targets) if trains else ()))
        ctx.form = form
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        (per_token,) = upstream
        gradient, *rest = ctx.saved_tensors
        share = per_token.to(gradient.dtype if gradient is not None else per_token.dtype)[:, None]
        of_hidden = None if gradient is None else gradient * share
        if not rest:
            return of_hidden, None, None, None, None
        hidden, weight, bias, targets = rest
        of_weight = torch.zeros(weight.shape, dtype=_high(weight.dtype), device=weight.device)
        of_bias = None if bias is None else torch.zeros(bias.shape, dtype=_high(bias.dtype), device=bias.device)
        for piece in _pieces(len(targets), len(weight)):
            _, errors = _errors(hidden[piece], weight, bias, targets[piece], ctx.form)
            errors *= share[piece]
            of_weight += errors.T @ hidden[piece]
            if of_bias is not None:
                of_bias += errors.sum(0, dtype=of_bias.dtype)
        return of_hidden, of_weight.to(weight.dtype), None if of_bias is None else of_bias.to(bias.dtype), None, None


def _errors(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: HeadForm
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return each row's cross-entropy, (N,), and its derivative by the head's output, (N, V)."""
    logits = linear(hidden, weight, bias)
    slope = form.apply_(logits)
    losses = to_errors(logits, targets)
    if form != PLAIN:
        logits *= slope
    return losses, logits


def _high(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    """Return even slices of the rows, each of as many logits as there may be at once."""
    number = -(-rows // max(1, MOST_LOGITS // vocabulary))
    size = -(-rows // max(1, number))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def to_errors(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each row's cross-entropy, (N,); what were logits, (N, V), is then softmax minus one-hot."""
    if logits.is_cuda and logits.dtype != torch.float64:
        losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        _kernel()[(len(logits),)](logits, targets, losses, logits.shape[1], BLOCK=4096, num_warps=8)
        return losses
    high = logits.to(_high(logits.dtype))
    total = high.logsumexp(1, keepdim=True)
    place = targets[:, None]
    losses = (total - high.gather(1, place)).squeeze(1)
    errors = (high - total).exp_()
    errors.scatter_add_(1, place, errors.new_full(place.shape, -1.0))
    logits.copy_(errors)
    return losses


@cache
def _kernel() -> Any:
    """Return ``to_errors`` as one kernel: a program reads its row twice and writes it once."""
    import triton
    from triton import language as tl

    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(logits, targets, losses, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        row = tl.program_id(0).to(tl.int64)
        start = logits + row * width
        target = tl.load(targets + row)
        wanted = tl.load(start + target).to(tl.float32)
        most = -float("inf")
        total = 0.0
        for begin in range(0, width, BLOCK):
            places = begin + tl.arange(0, BLOCK)
            values = tl.load(start + places, mask=places < width, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(most, tl.max(values))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(values - higher))
            most = higher
        for begin in range(0, width, BLOCK):
            places = begin + tl.arange(0, BLOCK)
            values = tl.load(start + places, mask=places < width, other=-float("inf")).to(tl.float32)
            errors = tl.exp(values - most) / total - tl.where(places == target, 1.0, 0.0)
            tl.store(start + places, errors.to(logits.dtype.element_ty), mask=places < width)
        tl.store(losses + row, most + tl.log(total) - wanted)

    return kernel

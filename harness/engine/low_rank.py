"""A frozen layer's product with low-rank updates added in place: ``y = W x``, then onto each lane's rows ``s B A x``.

As an adapter writes it, an update is made, then added, and in the backward pass the gradients of the layer's input are
added once more: passes over memory that take as long as the products of the update. Here each product adds to what is
there. Where a lane has no such form, or drops inputs, its adapter runs as it is written (``slots``).

Shape letters: K lanes, N rows of tokens of a lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear

from harness.contract.adapter import LowRankAdapter
from harness.contract.dropout import Dropout


class Thin(NamedTuple):
    """Updates of alike lanes.

    Attributes:
        first: The first of them among the lanes of the batch.
        down: (K, R, I).
        up: (K, O, R).
        scale: s.
    """

    first: int
    down: Tensor
    up: Tensor
    scale: float


def is_thin(module: nn.Module) -> bool:
    """Return whether a module does nothing but add a low-rank update: called as ``LowRankAdapter`` writes it."""
    if not isinstance(module, LowRankAdapter):
        return False
    kind, own = type(module), vars(module)
    is_as_written = all(
        getattr(kind, name) is getattr(LowRankAdapter, name) and name not in own
        for name in ("__call__", "forward", "update")
    )
    is_hooked = any(own[kind_of_hook] for kind_of_hook in HOOKS)
    drops = module.dropout is not None and (type(module.dropout) is not Dropout or module.dropout.p != 0.0)
    return is_as_written and not is_hooked and not drops


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of any nn.Module


def thin_of(adapter: LowRankAdapter, first: int) -> Thin:
    """Return the update of one lane, the number of which is given."""
    down, up = _pair(adapter)
    return Thin(first, down[None], up[None], _number(adapter))


class Factors(nn.Module):
    """Gives an adapter's factors as the output of a module, so that they can be taken of other tensors."""

    def __init__(self, adapter: LowRankAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return down (R, I) and up (O, R)."""
        return _pair(self.adapter)

    def of_lanes(self, tensors: Mapping[str, Tensor], lanes: int, first: int) -> Thin:
        """Return the updates of alike lanes, of which the adapter is one.

        Args:
            tensors: Parameters and buffers by their names in the adapter, (K, ...); of one lane their own shapes.
            lanes: K.
            first: The first lane's number.
        """
        named = {f"adapter.{name}": each for name, each in tensors.items()}

        def pair(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return cast(tuple[Tensor, Tensor], functional_call(self, state, (), tie_weights=False))

        down, up = (each[None] for each in pair(named)) if lanes == 1 else vmap(pair)(named)
        return Thin(first, down, up, _number(self.adapter))


def _pair(adapter: LowRankAdapter) -> tuple[Tensor, Tensor]:
    """Return down and up; a scale that is a tensor, which may train, is a part of up."""
    down, up = adapter.checked_factors()
    return down, (up * adapter.scale if isinstance(adapter.scale, Tensor) else up)


def _number(adapter: LowRankAdapter) -> float:
    return 1.0 if isinstance(adapter.scale, Tensor) else float(adapter.scale)


def adapted(x: Tensor, weight: Tensor, lanes: int, parts: Sequence[Thin]) -> Tensor:
    """Return ``x W'`` with the parts' updates added, shape (K B, ..., O).

    Args:
        x: Rows of all lanes, in order, (K B, ..., I).
        weight: (O, I), frozen.
        lanes: K, of the whole batch.
        parts: What is added to which lanes; other lanes get the product alone.
    """
    if not parts:
        return linear(x, weight)
    rows = x.reshape(lanes, x.shape[:-1].numel() // lanes, x.shape[-1])
    spans = tuple((part.first, part.first + part.down.shape[0]) for part in parts)
    tensors = [each.to(x.dtype) for part in parts for each in (part.down, part.up)]
    output: Tensor = _Adapted.apply(rows, weight, spans, tuple(part.scale for part in parts), *tensors)  # type: ignore[no-untyped-call]
    return output.view(*x.shape[:-1], weight.shape[0])


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, spans: Sequence[tuple[int, int]], scales: Sequence[float], *factors: Tensor
    ) -> Tensor:
        flat = [place for span in spans for place in span]
        run = _forward_opaque if torch.compiler.is_compiling() else _forward
        output, hidden = run(x, weight, flat, list(scales), list(factors))
        ctx.save_for_backward(x, weight, *factors, *hidden)
        ctx.spans, ctx.scales = flat, list(scales)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.scales)
        x, weight, *rest = ctx.saved_tensors
        factors, hidden = rest[: 2 * count], rest[2 * count :]
        run = _backward_opaque if torch.compiler.is_compiling() else _backward
        wants_input, _, _, _, *wanted = ctx.needs_input_grad
        gradient = upstream[0].contiguous()
        wants = [bool(each) for each in (wants_input, *wanted)]
        of_input, of_factors = run(gradient, x, weight, ctx.spans, ctx.scales, factors, hidden, wants)
        given = [each if want else None for each, want in zip(of_factors, wanted, strict=True)]
        return (of_input if wants_input else None, None, None, None, *given)


def _forward(
    x: Tensor, weight: Tensor, spans: list[int], scales: list[float], factors: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the output (K, N, O), and each part's ``A x``, (its K, N, R)."""
    output = linear(x, weight)
    hidden = []
    for number, scale in enumerate(scales):
        start, stop = spans[2 * number : 2 * number + 2]
        down, up = factors[2 * number : 2 * number + 2]
        hidden.append(_product(x[start:stop], down.mT))
        _add_product(output[start:stop], hidden[-1], up.mT, scale)
    return output, hidden


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, spans: list[int], scales: list[float], factors: list[Tensor],
    hidden: list[Tensor], wants: list[bool],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return the gradients of x, and of each part's down and up; an empty tensor for what is not wanted."""
    nothing = gradient.new_empty(0)
    of_input = linear(gradient, weight.T) if wants[0] else nothing
    of_factors = []
    for number, scale in enumerate(scales):
        start, stop = spans[2 * number : 2 * number + 2]
        down, up = factors[2 * number : 2 * number + 2]
        of_part = gradient[start:stop]
        wants_down, wants_up = wants[1 + 2 * number : 3 + 2 * number]
        if wants[0] or wants_down:
            of_hidden = _product(of_part, up, scale)  # (K, N, R)
        if wants[0]:
            _add_product(of_input[start:stop], of_hidden, down, 1.0)
        of_factors.append(_product(of_hidden.mT, x[start:stop]) if wants_down else nothing.clone())
        of_factors.append(_product(of_part.mT, hidden[number], scale) if wants_up else nothing.clone())
    return of_input, of_factors


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """Return ``scale a b`` of batches of matrices, without another pass for the scale."""
    if len(a) == 1:
        if scale == 1.0:
            return torch.mm(a[0], b[0])[None]
        return torch.addmm(a.new_empty(1, 1), a[0], b[0], beta=0, alpha=scale)[None]
    if scale == 1.0:
        return torch.bmm(a, b)
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _add_product(target: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Add ``scale a b`` to batches of matrices where they stand."""
    if len(a) == 1:
        torch.addmm(target[0], a[0], b[0], alpha=scale, out=target[0])
    else:
        torch.baddbmm(target, a, b, alpha=scale, out=target)


# A compiler would turn adding in place into copies and additions, so it gets these as they are.
_forward_opaque = torch.library.custom_op("harness::low_rank_forward", _forward, mutates_args=())
_backward_opaque = torch.library.custom_op("harness::low_rank_backward", _backward, mutates_args=())


@_forward_opaque.register_fake
def _(
    x: Tensor, weight: Tensor, spans: list[int], scales: list[float], factors: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    hidden = [
        x.new_empty(spans[2 * n + 1] - spans[2 * n], x.shape[1], factors[2 * n].shape[1]) for n in range(len(scales))
    ]
    return x.new_empty(*x.shape[:-1], weight.shape[0]), hidden


@_backward_opaque.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, spans: list[int], scales: list[float], factors: list[Tensor],
    hidden: list[Tensor], wants: list[bool],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    given = [each.new_empty(each.shape if want else (0,)) for each, want in zip(factors, wants[1:], strict=True)]
    return gradient.new_empty(x.shape if wants[0] else (0,)), given

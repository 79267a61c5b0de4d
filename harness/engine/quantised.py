"""Linear layers of a frozen base whose weights are kept in 4 bits, on which every method trains as on others.

A layer multiplies with the weight that its 4 bits stand for, made anew for each product and given up after it, in the
backward pass again. Nothing else about the layer changes, so that what trains is what would train on a base with those
weights.

What is not here: the format (``nf4``), which layers there are (``layers``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn.functional import linear

from harness.engine.layers import present_as_linear, set_submodule
from harness.engine.nf4 import (
    BLOCK,
    GROUP,
    Scales,
    dequantise_scales,
    fused,
    pairs,
    quantise_nf4,
    quantise_scales,
    unpack,
)

KINDS = ("nf4", "nf4-double")  # how a base may be quantised


class QuantisedLinear(nn.Linear):
    """A frozen linear layer, its weight in 4 bits.

    It is an ``nn.Linear`` for those who look for one, such as methods that attach to a model. Its weight is no
    parameter: what is written into it is lost.

    Args:
        layer: Whose weight (O, I) is taken.
        kind: One of ``KINDS``.
        device: Where it is kept and computed with.
    """

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which makes a weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().to(device)
        self.weight_dtype = weight.dtype
        if weight.is_cuda:
            fused(weight.device)  # tried now, and not while a step is captured
        codes, largest = quantise_nf4(weight)
        scales: Sequence[Tensor] = quantise_scales(largest) if kind == "nf4-double" else [largest]
        # What the bits stand for is looked up in a table that all layers share.
        self._names = ["codes", "table", *(f"scale{number}" for number in range(len(scales)))]
        for name, each in zip(self._names, (codes, pairs(codes.device), *scales), strict=True):
            self.register_buffer(name, each)
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
        self.register_parameter("bias", bias)

        self._unpacked: tuple[Tensor, ...] = ()  # no parameter, buffer or module of the model

    def unpack(self) -> Tensor:
        """Compute with one tensor from now on until ``pack``, and return it: it can have a gradient."""
        self._unpacked = (self.weight,)
        return self._unpacked[0]

    def pack(self) -> None:
        """Compute with the weight in 4 bits again."""
        self._unpacked = ()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that the 4 bits stand for, (O, I), made anew."""
        return _weight(self._kept(), (self.out_features, self.in_features), self.weight_dtype)

    def _kept(self) -> list[Tensor]:
        return [self.get_buffer(name) for name in self._names]

    def multiply(self, x: Tensor) -> Tensor:
        """Return ``x W^T``, without the bias."""
        if self._unpacked:
            return linear(x, self._unpacked[0])
        shape = (self.out_features, self.in_features)
        product = _Product.apply(x, shape, self.weight_dtype, *self._kept())  # type: ignore[no-untyped-call]
        return cast(Tensor, product)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x W^T + b``."""
        output = self.multiply(x)
        return output if self.bias is None else output + self.bias


class _Product(Function):
    """``x W^T`` of a weight in 4 bits; what is kept for the backward pass is those, and not the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], dtype: torch.dtype, *kept: Tensor) -> Tensor:
        """Multiply."""
        ctx.shape, ctx.dtype = shape, dtype
        ctx.save_for_backward(*kept)
        return linear(x, _weight(kept, shape, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the gradient of x; the weight is frozen."""
        weight = _weight(ctx.saved_tensors, ctx.shape, ctx.dtype)
        return (gradients[0] @ weight, *[None] * (2 + len(ctx.saved_tensors)))


def _weight(kept: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    codes, table, *scales = kept
    largest = scales[0] if len(scales) == 1 else dequantise_scales(Scales(*scales))
    return unpack(codes, largest, table, shape, dtype)


def quantise_layers(model: nn.Module, places: Mapping[str, Sequence[str]], kind: str, device: torch.device) -> None:
    """Keep the weights of linear layers in 4 bits, one after the other, so that each weight itself is free."""
    for name, everywhere in places.items():
        layer = QuantisedLinear(present_as_linear(model.get_submodule(name)), kind, device)
        for place in everywhere:
            set_submodule(model, place, layer)


@torch.no_grad()
def round_weights(model: nn.Module, names: Iterable[str], kind: str) -> None:
    """Give linear layers the weights that 4 bits stand for, in their own dtype."""
    for name in names:
        layer = present_as_linear(model.get_submodule(name))
        layer.weight.copy_(QuantisedLinear(layer, kind, layer.weight.device).weight)


def bytes_of(shapes: Iterable[tuple[int, int]], kind: str) -> int:
    """Return the memory that the weights of layers of these shapes (in, out) take in 4 bits."""
    total = 0
    for inner, outer in shapes:
        values = inner * outer
        blocks = -(-values // BLOCK)
        total += -(-values // 2) + (blocks + 4 * -(-blocks // GROUP) + 4 if kind == "nf4-double" else 4 * blocks)
    return total

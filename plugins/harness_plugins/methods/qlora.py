"""QLoRA: LoRA beside a weight that is kept in 4 bits.

    y = Q x + s B A x,   Q = nf4(W),   s = alpha / r,   A (R, I) random, B (O, R) zero.

The layer's own product with W is not used: the adapter holds Q and multiplies with it. So trials with and without
quantisation train over one model and can be compared. What is right is the result; the memory is not QLoRA's, because
the unquantised model stays beside Q. The layer is not the pretrained one at the start: the error of quantising is part
of the method. The blocks' largest values stay in float32 (no double quantisation), as in PiSSA's comparisons.

Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314, section 3. What is not here: factors that make up for the error (``loftq``, ``qpissa``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Method, MethodTraits, hookimpl
from harness_plugins.methods.lora import LoRA, LoRAAdapter, LoRAConfig
from harness_plugins.nf4 import NF4, dequantise, quantise


class QuantisedAdapter(LoRAAdapter):
    """LoRA's pair and the quantised weight Q (O, I)."""

    codes: Tensor
    largest: Tensor
    keep_float32 = ("largest",)

    def __init__(self, layer: nn.Linear, r: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(layer, r, scale, dropout, generator)
        codes, largest = quantise(self.pretrained_weight)
        # Persistent: whether a weight falls to one level or the next may depend on the machine.
        self.register_buffer("codes", codes)
        self.register_buffer("largest", largest)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return Q, shape (O, I)."""
        return dequantise(NF4(self.codes, self.largest), (self.out_features, self.in_features), dtype)

    @torch.no_grad()
    def replace(self, weight: Tensor, b: Tensor, a: Tensor) -> None:
        """Start from other values: Q is ``weight`` (O, I) quantised; ``b`` is (O, R), ``a`` (R, I)."""
        codes, largest = quantise(weight)
        for target, value in ((self.codes, codes), (self.largest, largest), (self.b, b), (self.a, a)):
            target.copy_(value)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``Q x + s B A x``; dropout acts on ``x`` of the update only."""
        return linear(x, self.weight(x.dtype)) + self.update(self.dropout(x))

    def delta_weight(self) -> Tensor:
        """Return ``Q - W + s B A``, shape (O, I)."""
        return self.weight(self.dtype) - self.pretrained_weight.to(self.dtype) + super().delta_weight()


class QLoRA(LoRA):
    """LoRA beside a quantised weight."""

    name = "qlora"
    title = "QLoRA"
    paper = "https://arxiv.org/abs/2305.14314"
    citation = "Dettmers, Pagnoni, Holtzman, Zettlemoyer: QLoRA: Efficient Finetuning of Quantized LLMs, NeurIPS 2023"
    Config = LoRAConfig
    traits = MethodTraits(in_all=False, identity_at_init=False)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> LoRAAdapter:
        """Build Q and the pair (A, B) for one layer."""
        c = self.config
        return QuantisedAdapter(linear, c.r, self.scale(), c.dropout, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register QLoRA."""
    return [QLoRA]

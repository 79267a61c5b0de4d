"""LoRA-FA: LoRA whose A stays as it was drawn; only B is trained.

    y = W x + s B A x,   s = alpha / r,   A (R, I) random and frozen, B (O, R) zero.

Of the layer's input only A x, R values per token, has to be kept for the backward pass.

Two things go by this name. The paper trains B with its own gradient, the default here. PEFT's optimizer of this name
replaces the gradient by dL/dB (A A^T)^-1 / s^2 before Adam: then a step of plain gradient descent moves the weight by
the part of its full gradient that A's rows can express, -lr dL/dW A^T (A A^T)^-1 A. That is ``gradient="projected"``.

Source: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", 2023,
arXiv:2308.03303, section 3. What is not here: a frozen A with orthonormal rows (``asylora``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import Dropout, LowRankAdapter, Method, MethodConfig, MethodTraits, hookimpl, setting
from harness_plugins.methods.lora import LAWS

GRADIENTS = ("plain", "projected")


class FrozenAAdapter(LowRankAdapter):
    """A (R, I), frozen, B (O, R), trained, and a fixed scale.

    Args:
        layer: The frozen layer.
        a: What A is, (R, I), in any precision.
        scale: Of the update.
        dropout: Probability of dropping an input element of the update.
        is_projected: Whether B's gradient is multiplied by ``(A A^T)^-1 / s^2``.
        generator: Of the dropout.
    """

    a: Tensor
    projection: Tensor

    def __init__(
        self, layer: nn.Linear, a: Tensor, scale: float, dropout: float, is_projected: bool, generator: torch.Generator
    ) -> None:
        super().__init__(layer, scale)
        self.is_projected = is_projected
        self.register_buffer("a", a.to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, a.shape[0], device=self.device, dtype=self.dtype))
        if is_projected:
            high = a.double()
            projection = torch.linalg.pinv(high @ high.T, hermitian=True) / scale**2
            self.register_buffer("projection", projection.to(self.device, self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        b: Tensor = self.b
        if self.is_projected:  # the same value, another gradient: that of b times the symmetric projection
            constant = b.detach()
            b = constant + (b - constant) @ self.projection
        return self.a, b


@dataclass(frozen=True)
class LoRAFAConfig(MethodConfig):
    """Settings of LoRA-FA."""

    r: int = setting(8, "rank of the update", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / r", minimum=1e-6)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    init: str = setting("uniform", "law of A, as of LoRA's", choices=tuple(LAWS))
    gradient: str = setting(
        "plain", "of B: 'plain' (the paper) or 'projected' (PEFT's optimizer of this name)", choices=GRADIENTS
    )


class LoRAFA(Method):
    """LoRA with a frozen A."""

    name = "lora-fa"
    title = "LoRA-FA"
    paper = "https://arxiv.org/abs/2308.03303"
    citation = "Zhang, Zhang, Shi, Chu, Li: LoRA-FA: Memory-efficient Low-rank Adaptation, 2023"
    formula = "r O"
    Config = LoRAFAConfig
    traits = MethodTraits(in_all=False)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r O``."""
        return int(self.config.r) * out_features

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> FrozenAAdapter:
        """Build the frozen A and the trained B for one layer."""
        c = self.config
        a = LAWS[c.init](c.r, linear.in_features, generator)
        return FrozenAAdapter(linear, a, c.alpha / c.r, c.dropout, c.gradient == "projected", generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoRA-FA."""
    return [LoRAFA]

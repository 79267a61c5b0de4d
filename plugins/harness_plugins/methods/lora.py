"""LoRA: a low-rank update beside every frozen linear layer.

    y = W x + s B A x,   s = alpha / r,   A (R, I) random, B (O, R) zero.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Adapter, Dropout, Method, MethodConfig, hookimpl, setting


def kaiming_uniform(rows: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Return a (rows, fan_in) matrix, uniform on ±1/sqrt(fan_in).

    The paper writes a Gaussian; its published code draws this law, and later work follows the code.
    """
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(rows, fan_in, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


class LoRAAdapter(Adapter):
    """A (R, I), B (O, R) and a fixed scale."""

    def __init__(self, layer: nn.Linear, r: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(layer)
        self.scale = scale
        self.a = nn.Parameter(kaiming_uniform(r, self.in_features, generator).to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, r, device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + s B A x``; dropout acts on ``x`` of the update only."""
        return base_output + self.scale * linear(linear(self.dropout(x), self.a), self.b)

    def delta_weight(self) -> Tensor:
        """Return ``s B A``, shape (O, I)."""
        return self.scale * self.b @ self.a


@dataclass(frozen=True)
class LoRAConfig(MethodConfig):
    """Settings of LoRA."""

    r: int = setting(8, "rank of the update", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / r", minimum=0)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)


class LoRA(Method):
    """Low-rank adaptation."""

    name = "lora"
    title = "LoRA"
    paper = "https://arxiv.org/abs/2106.09685"
    citation = "Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: LoRA, ICLR 2022"
    formula = "r (I + O)"
    Config = LoRAConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``."""
        return int(self.config.r) * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> LoRAAdapter:
        """Build the pair (A, B) for one layer."""
        c = self.config
        return LoRAAdapter(linear, c.r, c.alpha / c.r, c.dropout, generator)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoRA."""
    return [LoRA]

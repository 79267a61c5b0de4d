"""LoRA: a low-rank update beside every frozen linear layer.

    y = W x + s B A x,   s = alpha / r,   A (R, I) random, B (O, R) zero.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685, section
4.1. What is not here: other scales and learning rates of the same pair (``rslora``, ``lora_plus``), other
starting values (``pissa``, ``milora``, ``lora_ga``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import Dropout, LowRankAdapter, Method, MethodConfig, hookimpl, setting


def kaiming_uniform(rows: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Return a (rows, fan_in) float64 matrix, uniform on ±1/sqrt(fan_in): deviation 1/sqrt(3 fan_in).

    The paper writes a Gaussian; its published code draws this law, and later work follows the code.
    """
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(rows, fan_in, dtype=torch.float64).uniform_(-bound, bound, generator=generator)


def gaussian(rows: int, fan_in: int, generator: torch.Generator) -> Tensor:
    """Return a (rows, fan_in) float64 matrix, normal, with ``kaiming_uniform``'s standard deviation.

    The paper names no deviation; this one changes the law and nothing else.
    """
    deviation = 1 / math.sqrt(3 * fan_in)
    return torch.empty(rows, fan_in, dtype=torch.float64).normal_(0, deviation, generator=generator)


LAWS = {"uniform": kaiming_uniform, "gaussian": gaussian}


class LoRAAdapter(LowRankAdapter):
    """A (R, I), B (O, R) and a fixed scale."""

    scale: float
    dropout: Dropout

    def __init__(
        self,
        layer: nn.Linear,
        r: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        init: str = "uniform",
    ) -> None:
        super().__init__(layer, scale)
        self.a = nn.Parameter(LAWS[init](r, self.in_features, generator).to(self.device, self.dtype))
        self.b = nn.Parameter(torch.zeros(self.out_features, r, device=self.device, dtype=self.dtype))
        self.dropout = Dropout(dropout, generator, self.device)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        return self.a, self.b


@dataclass(frozen=True)
class LoRAConfig(MethodConfig):
    """Settings of LoRA."""

    r: int = setting(8, "rank of the update", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / r", minimum=0)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    init: str = setting(
        "uniform",
        "law of A: 'uniform' on ±1/sqrt(I) as in the published code, or 'gaussian' (the paper)",
        choices=tuple(LAWS),
    )


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

    def scale(self) -> float:
        """Return ``s = alpha / r``."""
        return float(self.config.alpha) / int(self.config.r)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> LoRAAdapter:
        """Build the pair (A, B) for one layer."""
        c = self.config
        return LoRAAdapter(linear, c.r, self.scale(), c.dropout, generator, c.init)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoRA."""
    return [LoRA]

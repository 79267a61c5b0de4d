"""SoRA: LoRA with a gate on every rank; gates shrink towards zero in every update, and a closed one prunes its rank.

    y = W x + s B (g * A x),   s = alpha / r,   A (R, I) random, B (O, R) zero, g (R,) normal at the start,
    after every update   g <- sign(g) max(|g| - xi, 0).

The shrinking is the proximal step of an L1 norm, so gates of little use end at exactly zero; such a one still gets a
gradient, and may open again. Weights are not decayed on gates. Parameters are counted, and budgets matched, with all
gates open: how many close depends on the data, and ``threshold=0`` closes none.

Source: Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023, arXiv:2311.11696, section
3, and its authors' code. Where they differ, the default is the code, which made the paper's numbers:

* ``shrinking``: the code subtracts xi first and then zeroes what is below xi, so that gates up to 2 xi close.
* ``penalty``: the code also adds ``penalty`` times the mean of all |g| to the loss.
* The paper scales the step by the learning rate; the code runs with xi alone.

What is not here: the schedule that goes on pruning a trained model with ever larger xi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import Method, MethodTraits, StepInfo, hookimpl, setting
from harness_plugins.methods.lora import LoRA, LoRAAdapter, LoRAConfig


class SoRAAdapter(LoRAAdapter):
    """LoRA's pair, and a gate (R,) between its halves."""

    keep_float32 = ("gate",)

    def __init__(
        self, layer: nn.Linear, r: int, scale: float, dropout: float, generator: torch.Generator, init: str
    ) -> None:
        super().__init__(layer, r, scale, dropout, generator, init)
        gate = torch.randn(r, generator=generator, dtype=torch.float64)
        self.gate = nn.Parameter(gate.to(self.device, self.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``diag(g) A`` and B."""
        return self.gate.unsqueeze(1) * self.a, self.b

    @torch.no_grad()
    def shrink(self, threshold: float, shrinking: str) -> None:
        """Bring every gate nearer to zero, by ``threshold``."""
        size = self.gate.abs()
        if shrinking == "paper":
            left = (size - threshold).clamp_min(0)
        else:  # two steps of the published code, of which the second closes what the first has brought below
            left = torch.where(size > threshold, size - threshold, size)
            left = left.masked_fill(left < threshold, 0.0)
        self.gate.copy_(left.copysign(self.gate))


@dataclass(frozen=True)
class SoRAConfig(LoRAConfig):
    """Settings of SoRA."""

    threshold: float = setting(
        3e-4, "xi, by which every update shrinks gates; the authors' scripts: 3e-4, up to 7e-4", minimum=0
    )
    shrinking: str = setting(
        "code",
        "what xi does: gates up to 2 xi close, larger ones lose xi (published code), or those up to xi close (paper)",
        choices=("code", "paper"),
    )
    penalty: float = setting(
        1e-3, "weight of the mean of all gates' sizes in the loss (published code: 0.001 or 10; paper: 0)", minimum=0
    )


class SoRA(LoRA):
    """Sparse low-rank adaptation."""

    name = "sora"
    title = "SoRA"
    paper = "https://arxiv.org/abs/2311.11696"
    citation = (
        "Ding, Lv, Wang, Chen, Zhou, Liu, Sun: Sparse Low-rank Adaptation of Pre-trained Language Models, EMNLP 2023"
    )
    formula = "r (I + O) + r, with all gates open"
    Config = SoRAConfig
    traits = MethodTraits(in_all=False)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O) + r``."""
        return super().trainable_parameters(in_features, out_features) + int(self.config.r)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> SoRAAdapter:
        """Build A, B and the gate for one layer."""
        c = self.config
        return SoRAAdapter(linear, c.r, self.scale(), c.dropout, generator, c.init)

    def parameter_groups(
        self, adapters: Mapping[str, nn.Module], learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return the gates without weight decay, and the rest."""
        named = [pair for adapter in adapters.values() for pair in adapter.named_parameters() if pair[1].requires_grad]
        gates = [parameter for name, parameter in named if name == "gate"]
        rest = [parameter for name, parameter in named if name != "gate"]
        groups = ((rest, weight_decay), (gates, 0.0))
        return [{"params": p, "lr": learning_rate, "weight_decay": decay} for p, decay in groups if p]

    def extra_loss(self, adapters: Mapping[str, Any]) -> Tensor | None:
        """Return the penalty on the gates' sizes."""
        if not self.config.penalty:
            return None
        return float(self.config.penalty) * torch.cat([adapter.gate for adapter in adapters.values()]).abs().mean()

    def after_step(self, info: StepInfo) -> None:
        """Shrink every gate."""
        if self.config.threshold:
            for adapter in info.adapters.values():
                adapter.shrink(self.config.threshold, self.config.shrinking)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register SoRA."""
    return [SoRA]

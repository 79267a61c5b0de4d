"""Delta-LoRA: LoRA whose weight follows the product of the factors.

    y = W_t x + s B_t A_t x,   s = alpha / r,
    W_{t+1} = W_t + strength s (B_{t+1} A_{t+1} - B_t A_t)   from update K on.

The sum of these differences telescopes, so with A_K, B_K kept as constants

    W_t = W + strength s (B_t A_t - B_K A_K).

The weight itself is shared and never changed: the layer computes the second term as a correction. It is a constant in
the backward pass, as the weight is: A and B get gradients from LoRA's own term only. At the end the whole change is
s ((1 + strength) B A - strength B_K A_K). There is no dropout: with it the product's change would not follow dL/dW.

Source: Zi et al., "Delta-LoRA: Fine-Tuning High-Rank Parameters with the Delta of Low-Rank Matrices", 2023,
arXiv:2309.02411, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Method, MethodConfig, MethodTraits, StepInfo, hookimpl, setting
from harness_plugins.methods.lora import LAWS, LoRAAdapter


class DeltaLoRAAdapter(LoRAAdapter):
    """LoRA's pair, the pair A_K, B_K that the weight began to follow from, and how strongly it follows: 0 before."""

    a_k: Tensor
    b_k: Tensor
    strength: Tensor
    # The correction is a difference of products that are close at first.
    keep_float32 = ("a", "b", "a_k", "b_k", "strength")

    def __init__(self, layer: nn.Linear, config: DeltaLoRAConfig, generator: torch.Generator) -> None:
        super().__init__(layer, config.r, config.alpha / config.r, 0.0, generator, config.init)
        self.register_buffer("a_k", self.a.detach().clone())
        self.register_buffer("b_k", self.b.detach().clone())
        self.register_buffer("strength", torch.zeros((), device=self.device, dtype=self.dtype))

    @torch.no_grad()
    def follow(self, strength: float) -> None:
        """Let the weight follow the product from here on."""
        self.a_k.copy_(self.a)
        self.b_k.copy_(self.b)
        self.strength.fill_(strength)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x + s B A x + strength s (B A - B_K A_K) x``, the last term without gradients of A and B."""
        a, b = self.a.detach(), self.b.detach()
        # B A - B_K A_K = B (A - A_K) + (B - B_K) A_K: exactly zero at K, and no difference of large numbers.
        down = torch.cat((a - self.a_k, self.a_k)).to(x.dtype)
        up = torch.cat((b, b - self.b_k), dim=1).to(x.dtype)
        followed = linear(linear(x, down) * (self.strength * self.scale).to(x.dtype), up)
        learned = linear(self.scale * linear(x, self.a.to(x.dtype)), self.b.to(x.dtype))
        return base_output + learned + followed

    def delta_weight(self) -> Tensor:
        """Return ``s (B A + strength (B A - B_K A_K))``, shape (O, I)."""
        followed = self.b @ (self.a - self.a_k) + (self.b - self.b_k) @ self.a_k
        return self.scale * (self.b @ self.a + self.strength * followed)


@dataclass(frozen=True)
class DeltaLoRAConfig(MethodConfig):
    """Settings of Delta-LoRA."""

    r: int = setting(8, "rank of the update", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / r", minimum=0)
    init: str = setting("uniform", "law of A, as of LoRA's", choices=tuple(LAWS))
    strength: float = setting(2.0, "how much of the product's change the weight takes over (lambda)", minimum=0)
    start_fraction: float = setting(
        0.1,
        "share of all updates before the weight begins to follow (K); the paper's K is some hundred updates",
        minimum=0,
        maximum=1,
    )


class DeltaLoRA(Method):
    """LoRA whose weight follows the change of the product."""

    name = "delta-lora"
    title = "Delta-LoRA"
    paper = "https://arxiv.org/abs/2309.02411"
    citation = "Zi, Qi, Wang, Wang, Wong, Zhang: Delta-LoRA: Fine-Tuning High-Rank Parameters, 2023"
    formula = "r (I + O)"
    Config = DeltaLoRAConfig
    traits = MethodTraits(in_all=False)

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``: the weight follows and is not trained."""
        return int(self.config.r) * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> DeltaLoRAAdapter:
        """Build the pair (A, B) for one layer."""
        adapter = DeltaLoRAAdapter(linear, self.config, generator)
        if self.config.start_fraction == 0:
            adapter.follow(self.config.strength)
        return adapter

    def after_step(self, info: StepInfo) -> None:
        """Begin to follow after update K."""
        if info.step == round(self.config.start_fraction * info.total_steps):
            for adapter in info.adapters.values():
                adapter.follow(self.config.strength)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register Delta-LoRA."""
    return [DeltaLoRA]

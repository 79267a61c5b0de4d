"""MiLoRA: LoRA that starts as the smallest singular part of the frozen weight, which is taken out of it.

    W = U S V^T,   B0 = U_m (S_m / s)^(1/2),   A0 = (S_m / s)^(1/2) V_m^T,
    y = (W - s B0 A0) x + s B A x,   s = alpha / r,

where m means the last r of the min(I, O) triplets of the economy SVD. Training begins in the directions that
the pretrained model uses least. The adapter is PiSSA's; only the choice of triplets differs.

Source: Wang et al., "MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM Finetuning",
NAACL 2025, arXiv:2406.09044, section 3. The paper has alpha = r, so s = 1, and dropout 0.05 in its scripts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harness import Method, MethodConfig, MethodTraits, hookimpl, setting, svd
from harness_plugins.methods.pissa import SplitAdapter, check_rank, split_factors


@dataclass(frozen=True)
class MiLoRAConfig(MethodConfig):
    """Settings of MiLoRA."""

    r: int = setting(8, "rank: how many of the smallest singular triplets are trained", minimum=1)
    alpha: float = setting(0.0, "numerator of the scale alpha / r; 0 means r, so scale 1, as in the paper", minimum=0)
    dropout: float = setting(
        0.0,
        "probability of dropping an input element of the trained pair, also of the part of W it carries",
        minimum=0,
        maximum=0.99,
    )


class MiLoRA(Method):
    """Minor singular component adaptation."""

    name = "milora"
    title = "MiLoRA"
    paper = "https://arxiv.org/abs/2406.09044"
    citation = "Wang, Li, Wang, Chen, Chen: MiLoRA: Harnessing Minor Singular Components, NAACL 2025"
    formula = "r (I + O)"
    Config = MiLoRAConfig
    # The authors' scripts train LoRA, PiSSA and MiLoRA at one rate (3e-4).
    traits = MethodTraits(check_config={"r": 2})

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``.

        Raises:
            ConfigError: The layer has fewer than ``r`` singular triplets.
        """
        r = int(self.config.r)
        check_rank(self.name, r, min(in_features, out_features), in_features, out_features)
        return r * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> SplitAdapter:
        """Build the pair (A, B) from the weight's ``r`` smallest singular triplets."""
        r, scale = self.config.r, (self.config.alpha or self.config.r) / self.config.r
        check_rank(self.name, r, min(linear.weight.shape), linear.in_features, linear.out_features)
        adapter = SplitAdapter(linear, r, scale, self.config.dropout, generator)
        u, s, vh = svd(adapter.pretrained_weight)
        adapter.start_from(*split_factors(u[:, -r:], s[-r:], vh[-r:], scale))
        return adapter


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register MiLoRA."""
    return [MiLoRA]

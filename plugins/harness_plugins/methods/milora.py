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
from torch import Tensor

from harness import Method, hookimpl, setting, svd
from harness_plugins.methods.pissa import Split, SplitConfig


@dataclass(frozen=True)
class MiLoRAConfig(SplitConfig):
    """Settings of MiLoRA."""

    dropout: float = setting(
        0.0,
        "probability of dropping an input element of the trained pair, also of the part of W it carries",
        minimum=0,
        maximum=0.99,
    )


class MiLoRA(Split):
    """Minor singular component adaptation."""

    name = "milora"
    title = "MiLoRA"
    paper = "https://arxiv.org/abs/2406.09044"
    citation = "Wang, Li, Wang, Chen, Chen: MiLoRA: Harnessing Minor Singular Components, NAACL 2025"
    Config = MiLoRAConfig

    def triplets(self, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ``r`` smallest."""
        r = self.config.r
        u, s, vh = svd(weight)
        return u[:, -r:], s[-r:], vh[-r:]

    def dropout(self) -> float:
        """Return the probability of dropping an input of the trained pair."""
        return float(self.config.dropout)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register MiLoRA."""
    return [MiLoRA]

"""Random SVD: MiLoRA's construction with singular triplets chosen at random.

    W = U S V^T,   B0 = U_c (S_c / s)^(1/2),   A0 = (S_c / s)^(1/2) V_c^T,
    y = (W - s B0 A0) x + s B A x,   s = alpha / r,

where c are r of the min(I, O) triplets of the economy SVD, drawn without repetition for each layer from the trial's
seed. It stands between ``pissa`` (the largest) and ``milora`` (the smallest) and shows what choosing is worth.

Source: Wang et al., "MiLoRA", NAACL 2025, arXiv:2406.09044, section 5.2 and table 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness import Method, MethodTraits, hookimpl, svd
from harness_plugins.methods.milora import MiLoRA


class RandomSVD(MiLoRA):
    """Adaptation of random singular components."""

    name = "random-svd"
    title = "Random SVD"
    traits = MethodTraits(in_all=False, check_config={"r": 2})

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which of ``count`` triplets are trained, ascending, (R,)."""
        return torch.randperm(count, generator=generator)[: self.config.r].sort().values

    def triplets(self, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the chosen ones."""
        u, s, vh = svd(weight)
        chosen = self.choose(len(s), generator).to(s.device)
        return u[:, chosen], s[chosen], vh[chosen]


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register random SVD."""
    return [RandomSVD]

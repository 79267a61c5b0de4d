"""Random SVD: MiLoRA's construction with singular triplets chosen at random.

    W = U S V^T,   B0 = U_c (S_c / s)^(1/2),   A0 = (S_c / s)^(1/2) V_c^T,
    y = (W - s B0 A0) x + s B A x,   s = alpha / r,

where c are r of the min(I, O) triplets of the economy SVD, drawn without repetition for each layer from the trial's
seed. It stands between ``pissa`` (the largest) and ``milora`` (the smallest) and shows what choosing is worth.

Source: Wang et al., "MiLoRA", NAACL 2025, arXiv:2406.09044, section 5.2 and table 6.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness import Method, MethodTraits, hookimpl, svd
from harness_plugins.methods.milora import MiLoRA
from harness_plugins.methods.pissa import SplitAdapter, check_rank, split_factors


class RandomSVD(MiLoRA):
    """Adaptation of random singular components."""

    name = "random-svd"
    title = "Random SVD"
    traits = MethodTraits(in_all=False, check_config={"r": 2})

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which of ``count`` triplets are trained, ascending, (R,)."""
        return torch.randperm(count, generator=generator)[: self.config.r].sort().values

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> SplitAdapter:
        """Build the pair (A, B) from the chosen triplets."""
        r, scale = self.config.r, (self.config.alpha or self.config.r) / self.config.r
        check_rank(self.name, r, min(linear.weight.shape), linear.in_features, linear.out_features)
        adapter = SplitAdapter(linear, r, scale, self.config.dropout, generator)
        u, s, vh = svd(adapter.pretrained_weight)
        chosen = self.choose(len(s), generator).to(s.device)
        adapter.start_from(*split_factors(u[:, chosen], s[chosen], vh[chosen], scale))
        return adapter


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register random SVD."""
    return [RandomSVD]

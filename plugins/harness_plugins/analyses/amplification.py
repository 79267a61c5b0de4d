"""By how much a weight change amplifies directions that the weight has little of.

    amplification = || dW ||_F / || U_r^T W V_r ||_F

with U_r, V_r the top r singular vectors of the change dW: how large the change is, over what the weight itself does
between the same directions. Large: the change adds something new. Small: it strengthens what is there.

Sources: Wang et al., "MiLoRA", NAACL 2025, arXiv:2406.09044, table 7; the factor is of Hu et al., "LoRA", ICLR 2022,
section 7.3 and table 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import Analysis, LayerChange, LayerFindings, MethodConfig, hookimpl, setting


@dataclass(frozen=True)
class AmplificationConfig(MethodConfig):
    """Settings of the amplification."""

    directions: int = setting(8, "top directions of the change, r", minimum=1)


class Amplification(Analysis):
    """Amplification factor of weight changes."""

    name = "amplification"
    title = "Amplification of the weight's directions"
    paper = "https://arxiv.org/abs/2406.09044"
    claim = "MiLoRA amplifies less than LoRA, table 7"
    columns: ClassVar = {
        "amplification": "|| dW ||_F / || U^T W V ||_F with the change's top directions",
        "update_norm": "|| dW ||_F",
        "projected_norm": "|| U^T W V ||_F",
        "random_norm": "the same with random directions",
        "weight_norm": "|| W ||_F",
    }
    panels: ClassVar = (("amplification",), ("update_norm",), ("projected_norm",))
    Config = AmplificationConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return the norms; those along the change's directions are ``None`` where it is zero."""
        assert layer.update is not None
        weight, update = layer.weight.double(), layer.update.double()
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
        r = min(self.config.directions, len(s))
        left, right = (
            torch.linalg.qr(torch.randn(size, r, generator=generator, dtype=torch.float64)).Q for size in weight.shape
        )
        norm, projected = float(update.norm()), float((u[:, :r].mT @ weight @ vh[:r].mT).norm())
        return LayerFindings(
            {
                "amplification": norm / projected if norm and projected else None,
                "update_norm": norm,
                "projected_norm": projected if norm else None,
                "random_norm": float((left.mT @ weight @ right).norm()),
                "weight_norm": float(weight.norm()),
            }
        )


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the amplification."""
    return [Amplification]

"""The singular values of a weight change: how many are large, and over how many directions it spreads.

    count            singular values above a threshold
    effective rank   exp(entropy of s / sum(s)), 1 for one direction, K for K equal ones
    stable rank      sum(s^2) / max(s)^2

Sources: Jiang et al., "MoRA", 2024, arXiv:2405.12130, figure 5 (count above 0.1 for each projection after pretraining);
Ren et al., "MELoRA", ACL 2024, arXiv:2402.17263, figure 3. Effective rank: Roy and Vetterli, EUSIPCO 2007.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import Analysis, LayerChange, LayerFindings, MethodConfig, hookimpl, setting


@dataclass(frozen=True)
class SpectrumConfig(MethodConfig):
    """Settings of the spectrum."""

    threshold: float = setting(0.1, "singular values above it are counted", minimum=0)


class Spectrum(Analysis):
    """Singular values of weight changes."""

    name = "spectrum"
    title = "Singular values of the change"
    paper = "https://arxiv.org/abs/2405.12130"
    claim = "MoRA and ReMoRA change weights by many more singular values above 0.1 than LoRA and ReLoRA, figure 5"
    columns: ClassVar = {
        "large": "singular values above the threshold",
        "effective_rank": "exp of the entropy of the normalised singular values",
        "stable_rank": "squared Frobenius norm over squared spectral norm",
        "largest": "largest singular value",
        "frobenius_norm": "of the change",
    }
    curves: ClassVar = {"singular_values": "singular value"}
    along: ClassVar = {"singular_values": "number of the singular value, largest first"}
    logarithmic: ClassVar = ("singular_values",)
    panels: ClassVar = (("large",), ("effective_rank",), ("singular_values",))
    Config = SpectrumConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return counts and ranks; ranks of a change that is zero are ``None``."""
        assert layer.update is not None
        s = torch.linalg.svdvals(layer.update.double())
        total = float(s.sum())
        share = s[s > 0] / total if total else s[:0]
        return LayerFindings(
            {
                "large": float((s > self.config.threshold).sum()),
                "effective_rank": float((-(share * share.log()).sum()).exp()) if total else None,
                "stable_rank": float(s.square().sum() / s[0].square()) if total else None,
                "largest": float(s[0]),
                "frobenius_norm": float(s.square().sum().sqrt()),
            },
            {"singular_values": s.tolist()},
        )


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the spectrum."""
    return [Spectrum]

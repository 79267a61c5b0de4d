"""AsyLoRA: LoRA whose A has orthonormal rows and is not trained.

    y = W x + s B A x,   s = alpha / r,   A (R, I) with A A^T = 1, B (O, R) zero.

The rows of A are the right singular vectors of a matrix (R, I) with entries uniform on [0, 1), as in the published
code. As these entries are positive, the first row is close to a constant vector.

``trains`` says what is meant by the name. The paper freezes A: ``"b"``. What the MoRA paper reports as AsyLoRA takes
over the starting value only and trains both factors: ``"ab"``.

Source: Zhu et al., "Asymmetry in Low-Rank Adapters of Foundation Models", ICML 2024, arXiv:2402.16842, sections 3 and
4; the MoRA paper, arXiv:2405.12130, table 1. What is not here: a frozen A as LoRA draws it (``lora_fa``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import Adapter, Method, MethodConfig, MethodTraits, hookimpl, setting
from harness_plugins.methods.lora import LoRAAdapter
from harness_plugins.methods.lora_fa import FrozenAAdapter
from harness_plugins.methods.pissa import check_rank


def orthonormal_rows(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a (rows, width) float64 matrix with orthonormal rows: right singular vectors of a uniform matrix."""
    uniform = torch.rand(rows, width, generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.svd(uniform, full_matrices=False).Vh
    return orthonormal


@dataclass(frozen=True)
class AsyLoRAConfig(MethodConfig):
    """Settings of AsyLoRA."""

    r: int = setting(8, "rank of the update", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale alpha / r", minimum=0)
    dropout: float = setting(0.0, "probability of dropping an input element of the update", minimum=0, maximum=0.99)
    trains: str = setting("b", "'b' (the paper) or 'ab' (the row of this name in the MoRA paper)", choices=("b", "ab"))


class AsyLoRA(Method):
    """LoRA with a fixed orthonormal A."""

    name = "asylora"
    title = "AsyLoRA"
    paper = "https://arxiv.org/abs/2402.16842"
    citation = "Zhu et al.: Asymmetry in Low-Rank Adapters of Foundation Models, ICML 2024"
    formula = "r O; r (I + O) where both factors train"
    Config = AsyLoRAConfig
    traits = MethodTraits(in_all=False, check_config={"r": 2})

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r O``, or ``r (I + O)`` where both factors train.

        Raises:
            ConfigError: The layer has fewer inputs than ``r`` orthonormal rows need.
        """
        r = int(self.config.r)
        check_rank(self.name, r, in_features, in_features, out_features)
        return r * (out_features if self.config.trains == "b" else in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> Adapter:
        """Build A and B for one layer."""
        c = self.config
        check_rank(self.name, c.r, linear.in_features, linear.in_features, linear.out_features)
        a = orthonormal_rows(c.r, linear.in_features, generator)
        if c.trains == "b":
            return FrozenAAdapter(linear, a, c.alpha / c.r, c.dropout, False, generator)
        adapter = LoRAAdapter(linear, c.r, c.alpha / c.r, c.dropout, generator)
        with torch.no_grad():
            adapter.a.copy_(a)
        return adapter


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register AsyLoRA."""
    return [AsyLoRA]

"""rsLoRA: LoRA whose scale shrinks with the square root of the rank.

    y = W x + s B A x,   s = alpha / sqrt(r),   everything else as in LoRA.

With alpha / r the update, and so learning, fades as the rank grows; alpha / sqrt(r) keeps its size.

Source: Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023,
arXiv:2312.03732.
"""

from __future__ import annotations

import math

from harness import Method, MethodTraits, hookimpl
from harness_plugins.methods.lora import LoRA


class RsLoRA(LoRA):
    """Rank-stabilised LoRA; ``alpha`` is the numerator of ``alpha / sqrt(r)``."""

    name = "rslora"
    title = "rsLoRA"
    paper = "https://arxiv.org/abs/2312.03732"
    citation = "Kalajdzievski: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023"
    traits = MethodTraits(in_all=False)

    def scale(self) -> float:
        """Return ``s = alpha / sqrt(r)``."""
        return float(self.config.alpha) / math.sqrt(self.config.r)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register rsLoRA."""
    return [RsLoRA]

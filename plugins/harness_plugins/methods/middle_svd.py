"""Middle SVD: MiLoRA's construction with the singular triplets around the middle of the spectrum.

As ``random_svd``, but the r triplets are those around the median of the economy SVD's min(I, O), rounded towards the
larger values. Between the largest (``pissa``) and the smallest (``milora``), without the luck of a draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness import Method, hookimpl
from harness_plugins.methods.random_svd import RandomSVD


class MiddleSVD(RandomSVD):
    """Adaptation of the singular components in the middle of the spectrum."""

    name = "middle-svd"
    title = "Middle SVD"

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which of ``count`` triplets are trained, ascending, (R,)."""
        first = (count - int(self.config.r)) // 2
        return torch.arange(first, first + int(self.config.r))


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register middle SVD."""
    return [MiddleSVD]

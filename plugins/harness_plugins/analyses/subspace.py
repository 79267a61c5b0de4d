"""How much of a weight change lies in the weight's own top, bottom or random singular directions.

    phi(i, j) = || U_i^T U'_j ||_F^2 / min(i, j),   between 0 (orthogonal) and 1 (one contains the other),

for the top i left singular vectors of the change and j chosen ones of the weight: 1 - d^2 / min(i, j), d being the
Grassmann distance in the projection metric. Right singular vectors likewise, on the side of the inputs.

Sources: Wang et al., "MiLoRA", NAACL 2025, arXiv:2406.09044, figure 2; the measure is of Hu et al., "LoRA", ICLR 2022,
appendix G, equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness import Analysis, LayerChange, LayerFindings, MethodConfig, hookimpl, setting


def similarity(a: Tensor, b: Tensor) -> float:
    """Return phi of the spaces that the orthonormal columns of ``a`` (N, i) and ``b`` (N, j) span."""
    return float((a.mT @ b).square().sum() / min(a.shape[1], b.shape[1]))


@dataclass(frozen=True)
class SubspaceConfig(MethodConfig):
    """Settings of the comparison of subspaces."""

    directions: int = setting(8, "top directions of the change, i", minimum=1)
    of_weight: int = setting(64, "directions of the weight they are compared with, j", minimum=1)


class Subspace(Analysis):
    """Subspaces of the change against those of the weight."""

    name = "subspace"
    title = "Where the change lies in the weight's spectrum"
    paper = "https://arxiv.org/abs/2406.09044"
    claim = (
        "MiLoRA's change stays in the weight's bottom directions, PiSSA's in its top ones, LoRA's in neither, figure 2"
    )
    columns: ClassVar = {
        f"{side}_{which}": f"similarity of the change's top {side} directions to the weight's {which} ones"
        for side in ("left", "right")
        for which in ("top", "bottom", "random")
    }
    panels: ClassVar = (("left_top", "left_bottom", "left_random"),)
    Config = SubspaceConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return the similarities; ``None`` where the change is zero."""
        assert layer.update is not None
        weight, update = layer.weight.double(), layer.update.double()
        u, _, vh = torch.linalg.svd(weight, full_matrices=False)
        du, ds, dvh = torch.linalg.svd(update, full_matrices=False)
        several = min(self.config.directions, int((ds > 1e-9 * ds[0]).sum())) if ds[0] > 0 else 0
        j = min(self.config.of_weight, u.shape[1])
        values: dict[str, float | None] = {}
        for side, own, changed in (("left", u, du), ("right", vh.mT, dvh.mT)):
            drawn = torch.randn(own.shape[0], j, generator=generator, dtype=torch.float64)
            spaces = {"top": own[:, :j], "bottom": own[:, -j:], "random": torch.linalg.qr(drawn).Q}
            for which, space in spaces.items():
                values[f"{side}_{which}"] = similarity(changed[:, :several], space) if several else None
        return LayerFindings(values)


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the comparison of subspaces."""
    return [Subspace]

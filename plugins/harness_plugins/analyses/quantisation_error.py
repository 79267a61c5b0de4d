"""How much of the error of quantising a weight to 4 bits is made up for by a low-rank pair, before any training.

    error(method) = || W - (Q + B A) ||_*,   reduction = 1 - error(method) / || W - nf4(W) ||_*

in the nuclear norm, for LoftQ, which quantises first, and QPiSSA, which decomposes first. QLoRA's reduction is 0.

Source: Meng, Wang, Zhang, "PiSSA", NeurIPS 2024, arXiv:2404.02948, sections 4 and 5.3, tables 3 and 6. Its definition
has one iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness import Analysis, LayerChange, LayerFindings, MethodConfig, hookimpl, setting
from harness_plugins.methods.loftq import LoftQ, LoftQConfig, rounded
from harness_plugins.methods.qpissa import QPiSSA


def nuclear_norm(matrix: Tensor) -> float:
    """Return the sum of the singular values."""
    return float(torch.linalg.svdvals(matrix).sum())


def excess_kurtosis(matrix: Tensor) -> float:
    """Return how much heavier the tails of the values are than a normal distribution's, for which it is 0."""
    centred = matrix - matrix.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square() - 3)


def percentiles(matrix: Tensor) -> list[float]:
    """Return below which value 1, 2, ..., 99 percent of the values lie, interpolating between the two nearest."""
    ordered = matrix.flatten().sort().values  # torch.quantile takes no more than 16 million values
    places = torch.arange(1, 100, dtype=torch.float64) / 100 * (len(ordered) - 1)
    below = places.long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[below].double(), ordered[above].double(), places - below).tolist()


@dataclass(frozen=True)
class QuantisationConfig(MethodConfig):
    """Settings of the error of quantising."""

    r: int = setting(16, "rank of the pair", minimum=1)
    iterations: int = setting(1, "how often quantising and decomposing alternate", minimum=1)


class QuantisationError(Analysis):
    """Error of quantising, and what low-rank pairs make up for."""

    name = "quantisation-error"
    title = "Reduction of the quantisation error"
    paper = "https://arxiv.org/abs/2404.02948"
    claim = "QPiSSA reduces the error of quantising more than LoftQ at every rank and projection, tables 3 and 6"
    of_updates = False
    columns: ClassVar = {
        "error": "nuclear norm of W - nf4(W)",
        "loftq_reduction": "share of it that LoftQ's pair makes up for",
        "qpissa_reduction": "share of it that QPiSSA's pair makes up for",
        "weight_deviation": "standard deviation of W's values",
        "residual_deviation": "of the values of what PiSSA leaves of W",
        "weight_kurtosis": "excess kurtosis of W's values; 0 for a normal distribution, for which NF4 is made",
        "residual_kurtosis": "of the values of what PiSSA leaves of W",
    }
    curves: ClassVar = {
        "weight_spectrum": "singular values of W",
        "residual_spectrum": "of what PiSSA leaves of W",
        "weight_percentiles": "percentiles of W's values",
        "residual_percentiles": "of the values of what PiSSA leaves of W",
    }
    along: ClassVar = {
        "weight_spectrum": "number of the singular value",
        "residual_spectrum": "number of the singular value",
        "weight_percentiles": "percent of the values below",
        "residual_percentiles": "percent of the values below",
    }
    panels: ClassVar = (
        ("loftq_reduction", "qpissa_reduction"),
        ("weight_kurtosis", "residual_kurtosis"),
        ("weight_spectrum", "residual_spectrum"),
        ("weight_percentiles", "residual_percentiles"),
    )
    Config = QuantisationConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return the error and its reductions."""
        weight = layer.weight.double()
        values = torch.linalg.svdvals(weight)
        r = min(self.config.r, len(values))
        plain = nuclear_norm(weight - rounded(weight))
        found: dict[str, float | None] = {"error": plain}
        for name, method in (("loftq", LoftQ), ("qpissa", QPiSSA)):
            base, b, a = method(LoftQConfig(r=r, iterations=self.config.iterations)).start(weight, r, 1.0)
            error = nuclear_norm(weight - rounded(base) - b @ a)
            found[f"{name}_reduction"] = 1 - error / plain if plain else None
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        residual = weight - u[:, :r] @ torch.diag(s[:r]) @ vh[:r]
        for name, matrix in (("weight", weight), ("residual", residual)):
            found[f"{name}_deviation"] = float(matrix.std())
            found[f"{name}_kurtosis"] = excess_kurtosis(matrix)
        return LayerFindings(
            found,
            {
                "weight_spectrum": values.tolist(),
                "residual_spectrum": values[r:].tolist(),
                "weight_percentiles": percentiles(weight),
                "residual_percentiles": percentiles(residual),
            },
        )


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the error of quantising."""
    return [QuantisationError]

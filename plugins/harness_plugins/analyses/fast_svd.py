"""What PiSSA's fast SVD costs and misses, against the exact one.

    error = || W_r - U_r S_r V_r^T ||_F / || W_r ||_F

between the rank-r part of a randomised subspace iteration and the exact one, and the seconds of both on this machine.

Source: Meng, Wang, Zhang, "PiSSA", NeurIPS 2024, arXiv:2404.02948, table 4.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import Analysis, LayerChange, LayerFindings, MethodConfig, hookimpl, setting
from harness_plugins.methods.pissa import subspace_iteration


@dataclass(frozen=True)
class FastSvdConfig(MethodConfig):
    """Settings of the comparison."""

    r: int = setting(16, "rank of the principal part", minimum=1)
    niter: int = setting(4, "iterations", minimum=0)


class FastSvd(Analysis):
    """Time and error of PiSSA's fast SVD."""

    name = "fast-svd"
    title = "Fast SVD: time and error"
    paper = "https://arxiv.org/abs/2404.02948"
    claim = "a few iterations take seconds where the exact SVD takes minutes, and err little, table 4"
    of_updates = False
    columns: ClassVar = {
        "relative_error": "of the rank-r part, Frobenius",
        "fast_seconds": "of the subspace iteration",
        "exact_seconds": "of the exact SVD",
    }
    Config = FastSvdConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return times and error."""
        r = min(self.config.r, *layer.weight.shape)
        begin = time.perf_counter()
        u, s, vh = subspace_iteration(layer.weight, r, self.config.niter, generator)
        middle = time.perf_counter()
        eu, es, evh = torch.linalg.svd(layer.weight, full_matrices=False)
        end = time.perf_counter()
        exact = eu[:, :r] * es[:r] @ evh[:r]
        error = float((u * s @ vh - exact).norm() / exact.norm()) if exact.any() else None
        return LayerFindings({"relative_error": error, "fast_seconds": middle - begin, "exact_seconds": end - middle})


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the comparison of SVDs."""
    return [FastSvd]

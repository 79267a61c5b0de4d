"""What PiSSA's fast SVD costs and misses, against the exact one.

    error = || W_r - U_r S_r V_r^T ||_F / || W_r ||_F

between the rank-r part of a randomised subspace iteration and the exact one, and the seconds of both on this machine;
as curves, after 1, 2, ... up to ``niter`` iterations from the same start.

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
    niter: int = setting(16, "iterations (authors' README: 4, scripts: 16)", minimum=1)


class FastSvd(Analysis):
    """Time and error of PiSSA's fast SVD."""

    name = "fast-svd"
    title = "Fast SVD: time and error"
    paper = "https://arxiv.org/abs/2404.02948"
    claim = "a few iterations take seconds where the exact SVD takes minutes, and err little, table 4"
    of_updates = False
    columns: ClassVar = {
        "relative_error": "of the rank-r part after all iterations, in the Frobenius norm",
        "fast_seconds": "seconds of the subspace iteration",
        "exact_seconds": "seconds of the exact SVD",
    }
    curves: ClassVar = {"errors": "relative error of the rank-r part", "seconds": "seconds"}
    along: ClassVar = {"errors": "iterations", "seconds": "iterations"}
    panels: ClassVar = (("fast_seconds", "exact_seconds"), ("errors",))
    Config = FastSvdConfig

    def look(self, layer: LayerChange, generator: torch.Generator) -> LayerFindings:
        """Return times and error."""
        r = min(self.config.r, *layer.weight.shape)
        begin = time.perf_counter()
        u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
        exact_seconds = time.perf_counter() - begin
        exact = u[:, :r] * s[:r] @ vh[:r]
        start = generator.get_state()
        errors: list[float] = []
        seconds: list[float] = []
        for niter in range(1, self.config.niter + 1):
            generator.set_state(start)
            begin = time.perf_counter()
            u, s, vh = subspace_iteration(layer.weight, r, niter, generator)
            seconds.append(time.perf_counter() - begin)
            if exact.any():
                errors.append(float((u * s @ vh - exact).norm() / exact.norm()))
        return LayerFindings(
            {
                "relative_error": errors[-1] if errors else None,
                "fast_seconds": seconds[-1],
                "exact_seconds": exact_seconds,
            },
            {"errors": errors, "seconds": seconds},
        )


@hookimpl
def harness_register_analyses() -> list[type[Analysis]]:
    """Register the comparison of SVDs."""
    return [FastSvd]

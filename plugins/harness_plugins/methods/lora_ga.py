"""LoRA-GA: LoRA that starts along the loss gradient of the pretrained weight.

    G = dL/dW = U S V^T, averaged over a few batches,   c = O^(1/4) / sqrt(gamma),
    A0 = c V_(1..r)^T,   B0 = c U_(r+1..2r),   y = (W - s B0 A0) x + s B A x.

A and B take different singular directions, so that the first update of the pair is the best rank-2r
approximation of a step of full fine-tuning. The adapter is PiSSA's; the signs of u and v are free, so B0 A0
itself is not unique.

Source: Wang, Yu, Li, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", NeurIPS 2024,
arXiv:2407.05000, section 3. The released code samples the SVD, with 4 r vectors and 4 iterations (``niter=4``), which
misses directions at small ranks; the default is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from harness import Calibration, HarnessError, Method, MethodConfig, MethodTraits, hookimpl, setting, svd
from harness_plugins.methods.pissa import SplitAdapter, check_rank, split_adapter, subspace_iteration


@dataclass(frozen=True)
class LoRAGAConfig(MethodConfig):
    """Settings of LoRA-GA."""

    r: int = setting(8, "rank of the update; the gradient gives 2 r directions", minimum=1)
    alpha: float = setting(16.0, "numerator of the scale", minimum=0)
    scale: str = setting(
        "alpha/sqrt(r)",
        "the scale s: 'alpha/sqrt(r)' is the paper's and what the released code's own commands switch on; "
        "'alpha/r' is what that code does when nothing is switched on",
        choices=("alpha/sqrt(r)", "alpha/r"),
    )
    niter: int | Literal["auto"] = setting(
        "auto",
        "auto: exact SVD; a number: subspace iterations on 4 r random vectors (the released code: 4)",
        kind=int,
        formerly=0,
        minimum=1,
    )
    gamma: float = setting(16.0, "larger: smaller A and B at the start; 16 in the released code", minimum=1e-6)
    dropout: float = setting(
        0.0, "probability of dropping an input element of the trained pair", minimum=0, maximum=0.99
    )


class LoRAGA(Method):
    """Low-rank adaptation with gradient approximation."""

    name = "lora-ga"
    title = "LoRA-GA"
    paper = "https://arxiv.org/abs/2407.05000"
    citation = "Wang, Yu, Li: LoRA-GA: Low-Rank Adaptation with Gradient Approximation, NeurIPS 2024"
    formula = "r (I + O)"
    Config = LoRAGAConfig
    traits = MethodTraits(in_all=False, check_config={"r": 2})

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``.

        Raises:
            ConfigError: The layer has fewer than ``2 r`` singular directions.
        """
        r = int(self.config.r)
        check_rank(self.name, r, min(in_features, out_features) // 2, in_features, out_features)
        return r * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> SplitAdapter:
        """Build a pair of zeros; ``calibrate`` gives it its values."""
        c = self.config
        check_rank(self.name, c.r, min(linear.weight.shape) // 2, linear.in_features, linear.out_features)
        scale = c.alpha / (c.r if c.scale == "alpha/r" else math.sqrt(c.r))
        return split_adapter(linear, c.r, scale, c.dropout, generator)

    def calibrate(self, adapters: Mapping[str, Any], calibration: Calibration) -> None:
        """Start each pair from disjoint blocks of singular vectors of its layer's mean gradient.

        Raises:
            HarnessError: A gradient has an infinite or undefined entry.
        """
        gradients = calibration.weight_gradients()
        for name, adapter in adapters.items():
            gradient = gradients[name]
            if not torch.isfinite(gradient).all():
                raise HarnessError(
                    f"{self.name}: the calibration gradient of layer {name!r} is not finite; "
                    "check the calibration batches, or run the model in float32 or bfloat16"
                )
            r = adapter.a.shape[0]
            if self.config.niter != "auto":
                vectors = min(4 * r, *gradient.shape)
                u, _, vh = subspace_iteration(gradient, vectors, self.config.niter, calibration.generator)
            else:
                u, _, vh = svd(gradient, cache=False)
            size = adapter.out_features**0.25 / math.sqrt(self.config.gamma)
            adapter.start_from(size * u[:, r : 2 * r], size * vh[:r])


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoRA-GA."""
    return [LoRAGA]

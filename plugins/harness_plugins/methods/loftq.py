"""LoftQ: QLoRA whose factors start as the best low-rank answer to the error of quantising.

    repeat, from B A = 0:   Q <- nf4(W - B A),   B A <- top-r SVD of W - Q,
    y = Q x + s B A x,   B = U_r (S_r / s)^(1/2),   A = (S_r / s)^(1/2) V_r^T,   s = alpha / r.

The factors are divided by the scale, so that the layer starts as Q plus the correction whatever alpha is. The authors'
release stores them undivided and runs with a scale of 1/4, which loses most of the correction.

Source: Li et al., "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", ICLR 2024, arXiv:2310.08659,
algorithm 1; five iterations, as in its experiments. What is not here: the opposite order (``qpissa``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import Method, MethodTraits, hookimpl, setting, svd
from harness_plugins.methods.pissa import Split, SplitConfig, check_rank, split_factors
from harness_plugins.methods.qlora import QuantisedAdapter
from harness_plugins.nf4 import dequantise, quantise


def top_factors(matrix: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return (b, a) whose product times the scale is the best approximation of rank ``r`` of a matrix (O, I)."""
    u, s, vh = svd(matrix, cache=False)
    return split_factors(u[:, :r], s[:r], vh[:r], scale)


def rounded(matrix: Tensor) -> Tensor:
    """Return what a matrix becomes in NF4."""
    return dequantise(quantise(matrix), tuple(matrix.shape), matrix.dtype)


@dataclass(frozen=True)
class LoftQConfig(SplitConfig):
    """Settings of LoftQ."""

    dropout: float = setting(
        0.0,
        "probability of dropping an input element of the pair, also of the correction it carries",
        minimum=0,
        maximum=0.99,
    )
    iterations: int = setting(5, "how often quantising and decomposing alternate", minimum=1)


class LoftQ(Split):
    """LoRA-fine-tuning-aware quantisation."""

    name = "loftq"
    title = "LoftQ"
    paper = "https://arxiv.org/abs/2310.08659"
    citation = "Li, Yu, Liang, He, Karampatziakis, Chen, Zhao: LoftQ, ICLR 2024"
    Config = LoftQConfig
    traits = MethodTraits(in_all=False, identity_at_init=False, check_config={"r": 2})

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> QuantisedAdapter:
        """Build Q and the pair (A, B) for one layer."""
        r, scale = self.config.r, self.config.scale
        check_rank(self.name, r, min(linear.weight.shape), linear.in_features, linear.out_features)
        adapter = QuantisedAdapter(linear, r, scale, self.config.dropout, generator)
        weight = adapter.pretrained_weight.to(adapter.dtype)
        adapter.replace(*self.start(weight, r, scale))
        return adapter

    def start(self, weight: Tensor, r: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the matrix to be quantised (O, I), and the factors b (O, R) and a (R, I), for a weight (O, I)."""
        b, a = weight.new_zeros(weight.shape[0], r), weight.new_zeros(r, weight.shape[1])
        for _ in range(self.config.iterations):
            base = weight - scale * b @ a
            b, a = top_factors(weight - rounded(base), r, scale)
        return base, b, a


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register LoftQ."""
    return [LoftQ]

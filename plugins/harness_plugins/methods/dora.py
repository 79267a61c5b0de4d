"""DoRA: LoRA on the direction of each weight row, and a trained length for it.

    V = W + s B A,   n_i = |row i of V|,   y = diag(m / n) V x,   s = alpha / r,

and m starts at the row norms of W.

A row belongs to one output unit (the paper writes the transposed weight and says "column"). The paper treats
n as a constant in the backward pass (section 4.3): the gradients of A and B are scaled by m / n but do not go
through n. The paper says nothing of dropout. The authors' code (and PEFT) lets it act on the correction of W x too,
which costs one more product with W:  y = W x + diag(m / n - 1) W drop(x) + diag(m / n) s B A drop(x).

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv:2402.09353, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import Method, PeftForm, hookimpl, setting
from harness_plugins.methods.lora import LoRA, LoRAAdapter, LoRAConfig


class DoRAAdapter(LoRAAdapter):
    """LoRA's A (R, I) and B (O, R), and the magnitudes m (O,)."""

    keep_float32 = ("m",)

    def __init__(
        self,
        layer: nn.Linear,
        r: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        init: str = "uniform",
        detach_norm: bool = True,
        drops: str = "correction",
    ) -> None:
        super().__init__(layer, r, scale, dropout, generator, init)
        self.detach_norm, self.drops = detach_norm, drops
        # By the same function as in the forward pass, so that m / n is exactly 1 at the start.
        self.m = nn.Parameter(self.row_norms().detach())

    def row_norms(self) -> Tensor:
        """Return n, the length of each row of ``W + s B A``, shape (O,), in at least float32."""
        a, b = (self.a.detach(), self.b.detach()) if self.detach_norm else (self.a, self.b)
        # ``self.dtype`` also where A and B are rounded copies: a length in bfloat16 is wrong by up to 0.4 %.
        v = torch.addmm(self.pretrained_weight.to(self.dtype), b.to(self.dtype), a.to(self.dtype), alpha=self.scale)
        norms: Tensor = torch.linalg.vector_norm(v, dim=1)
        # A row of zeros (a pruned unit) has m = 0 too: it stays at zero instead of becoming 0 / 0.
        return norms.clamp_min(torch.finfo(self.dtype).tiny)

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``diag(m / n) (W x + s B A x)``, with dropout as ``drops`` says."""
        dropped = self.dropout(x)
        update = self.update(dropped)
        is_dropping = self.training and self.dropout.p > 0
        if is_dropping and self.drops == "correction":
            corrected = linear(dropped, self.pretrained_weight.to(x.dtype)) + update
        else:
            corrected = base_output + update
        # As W x + (m / n - 1) W x: rounding m / n itself to half precision would scale every row by up to 0.4 %.
        return torch.addcmul(base_output + update, (self.m / self.row_norms() - 1).to(update.dtype), corrected)

    def delta_weight(self) -> Tensor:
        """Return ``diag(m / n) (W + s B A) - W``, shape (O, I)."""
        ratio = (self.m / self.row_norms()).unsqueeze(1)
        # Not as a difference of two large matrices: that would round away a small change.
        return (ratio - 1) * self.pretrained_weight.to(self.m.dtype) + ratio * super().delta_weight()

    def peft_form(self) -> PeftForm:
        """Return A, B and m, which PEFT knows by ``use_dora``: the update itself has full rank."""
        return PeftForm(
            self.a.shape[0],
            self.scale * self.a.shape[0],
            {"lora_A.weight": self.a, "lora_B.weight": self.b, "lora_magnitude_vector": self.m},
            {"use_dora": True},
        )


@dataclass(frozen=True)
class DoRAConfig(LoRAConfig):
    """Settings of DoRA: LoRA's and the norm's."""

    detach_norm: bool = setting(True, "hold n constant in the backward pass (section 4.3); False: differentiate it")
    drops: str = setting(
        "correction",
        "what dropout acts on: the whole correction, W x in it included (published code), or 'update', B A x only",
        choices=("correction", "update"),
    )


class DoRA(LoRA):
    """Weight-decomposed low-rank adaptation."""

    name = "dora"
    title = "DoRA"
    paper = "https://arxiv.org/abs/2402.09353"
    citation = "Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen: DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024"
    formula = "r (I + O) + O"
    Config = DoRAConfig

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O) + O``."""
        return super().trainable_parameters(in_features, out_features) + out_features

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> DoRAAdapter:
        """Build A, B and m for one layer."""
        c = self.config
        return DoRAAdapter(linear, c.r, self.scale(), c.dropout, generator, c.init, c.detach_norm, c.drops)


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register DoRA."""
    return [DoRA]

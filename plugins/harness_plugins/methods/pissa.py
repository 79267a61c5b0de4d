"""PiSSA: LoRA that starts as the largest singular part of the frozen weight, which is taken out of it.

    W = U S V^T,   B0 = U_r (S_r / s)^(1/2),   A0 = (S_r / s)^(1/2) V_r^T,
    y = (W - s B0 A0) x + s B A x,   s = alpha / r.

The frozen weight is shared and never changed, so the layer computes W x + s (B A - B0 A0) x with B0, A0 kept
as constants. The bracket is evaluated as B (A - A0) + (B - B0) A0, which is the same matrix, is exactly zero
at the start, and never subtracts two large numbers. ``lora_ga`` uses the same adapter with other starting values, and
``milora`` all of ``Split``, which is what training some singular triplets takes.

Source: Meng, Wang, Zhang, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
Models", NeurIPS 2024, arXiv:2404.02948, section 3. The paper always has alpha = r, so s = 1, and no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as matmul

from harness import (
    Adapter,
    ConfigError,
    Dropout,
    LowRankAdapter,
    Method,
    MethodConfig,
    MethodTraits,
    TrialContext,
    hookimpl,
    setting,
    svd,
)


class SplitAdapter(LowRankAdapter):
    """A (R, I) and B (O, R), trained, and the values A0, B0 that were taken out of the weight."""

    a0: Tensor
    b0: Tensor
    dropout: Dropout
    keep_float32 = ("a", "b", "a0", "b0")

    def __init__(self, layer: nn.Linear, r: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(layer, scale)
        a = torch.zeros(r, self.in_features, device=self.device, dtype=self.dtype)
        b = torch.zeros(self.out_features, r, device=self.device, dtype=self.dtype)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        # Persistent: without them a saved adapter would not say what it changes.
        self.register_buffer("a0", a.clone())
        self.register_buffer("b0", b.clone())
        self.dropout = Dropout(dropout, generator, self.device)

    @torch.no_grad()
    def start_from(self, b: Tensor, a: Tensor) -> None:
        """Move ``s b a`` from the frozen weight into the trained pair; ``b`` is (O, R), ``a`` is (R, I)."""
        for target in (self.a, self.a0):
            target.copy_(a)
        for target in (self.b, self.b0):
            target.copy_(b)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return ``B A - B0 A0`` as a product: down (2 R, I), up (O, 2 R)."""
        # Subtracted first and rounded after: a difference of rounded values would lose small steps of A and B.
        return torch.cat((self.a - self.a0, self.a0)), torch.cat((self.b, self.b - self.b0), dim=1)

    def delta_weight(self) -> Tensor:
        """Return ``s (B A - B0 A0)``, shape (O, I)."""
        return self.scale * (self.b @ (self.a - self.a0) + (self.b - self.b0) @ self.a0)


class DroppingSplitAdapter(SplitAdapter):
    """The same with dropout, which also drops the part of the pretrained weight that the pair carries."""

    def forward(self, x: Tensor, base_output: Tensor) -> Tensor:
        """Return ``W x - s B0 A0 x + s B A dropout(x)``."""
        kept = self.dropout(x)
        change = self.update(kept)
        if kept is not x:
            dropped = matmul(self.scale * matmul(kept - x, self.a0.to(x.dtype)), self.b0.to(x.dtype))
            change = change + dropped
        return base_output + change


def split_adapter(layer: nn.Linear, r: int, scale: float, dropout: float, generator: torch.Generator) -> SplitAdapter:
    """Return the adapter, with dropout or without."""
    kind = DroppingSplitAdapter if dropout else SplitAdapter
    return kind(layer, r, scale, dropout, generator)


def split_factors(u: Tensor, s: Tensor, vh: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return (b, a) with ``scale * b @ a = u diag(s) vh``, the singular values split evenly."""
    root = (s / scale).sqrt()
    return u * root, root.unsqueeze(1) * vh


def check_rank(method: str, r: int, limit: int, in_features: int, out_features: int) -> None:
    """Check that a layer has as many singular directions as a method takes.

    Raises:
        ConfigError: ``r`` is greater than ``limit``.
    """
    if r > limit:
        raise ConfigError(
            f"{method}: r={r} is not allowed on a layer of {in_features} inputs and {out_features} outputs; "
            f"give r <= {limit} or leave that layer out of the targets"
        )


def subspace_iteration(weight: Tensor, r: int, niter: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate top-``r`` triplets (u, s, vh) of a matrix (O, I), in at least float32.

    Randomised subspace iteration from exactly ``r`` Gaussian vectors, without oversampling, as the published
    code asks for: fast, and with few iterations on a flat spectrum far from the exact answer. Cost: ``niter +
    1`` products with the weight and its transpose.

    Source: Halko, Martinsson, Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    is_tall = weight.shape[0] >= weight.shape[1]
    tall = (weight if is_tall else weight.mT).to(dtype)
    start = torch.randn(tall.shape[1], r, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(tall @ start.to(tall)).Q
    for _ in range(niter):
        basis = torch.linalg.qr(tall @ torch.linalg.qr(tall.mT @ basis).Q).Q
    inner, s, vh = torch.linalg.svd(basis.mT @ tall, full_matrices=False)
    u = basis @ inner
    return (u, s, vh) if is_tall else (vh.mT, s, u.mT)


@dataclass(frozen=True)
class SplitConfig(MethodConfig):
    """Settings of the methods that train some singular triplets of the weight."""

    r: int = setting(8, "rank: how many singular triplets of each layer's weight are trained", minimum=1)
    alpha: float | Literal["auto"] = setting(
        "auto",
        "numerator of the scale alpha / r; auto: r, so scale 1, as in the paper",
        kind=float,
        formerly=0,
        minimum=1e-6,
    )

    @property
    def scale(self) -> float:
        """The scale s."""
        return 1.0 if self.alpha == "auto" else self.alpha / self.r


class Split(Method):
    """A method whose adapter is some singular triplets of the frozen weight, taken out of it and trained."""

    formula = "r (I + O)"
    # The authors of PiSSA and of MiLoRA train LoRA and their own method at one rate.
    traits = MethodTraits(check_config={"r": 2})

    @classmethod
    def resolve(cls, config: Any, context: TrialContext) -> Any:
        """Return settings with alpha = r, the paper's choice."""
        return replace(config, alpha=float(config.r)) if config.alpha == "auto" else config

    def trainable_parameters(self, in_features: int, out_features: int) -> int:
        """Return ``r (I + O)``.

        Raises:
            ConfigError: The layer has fewer than ``r`` singular triplets.
        """
        r = int(self.config.r)
        check_rank(self.name, r, min(in_features, out_features), in_features, out_features)
        return r * (in_features + out_features)

    def adapter(self, linear: nn.Linear, generator: torch.Generator) -> Adapter:
        """Build the pair (A, B) from the triplets of the layer's weight.

        Raises:
            ConfigError: The layer has fewer than ``r`` singular triplets.
        """
        c = self.config
        check_rank(self.name, c.r, min(linear.weight.shape), linear.in_features, linear.out_features)
        adapter = split_adapter(linear, c.r, c.scale, self.dropout(), generator)
        adapter.start_from(*split_factors(*self.triplets(adapter.pretrained_weight, generator), c.scale))
        return adapter

    def triplets(self, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ``r`` triplets to train: u (O, R), s (R,), vh (R, I)."""
        raise NotImplementedError

    def dropout(self) -> float:
        """Return the probability of dropping an input of the trained pair."""
        return 0.0


@dataclass(frozen=True)
class PiSSAConfig(SplitConfig):
    """Settings of PiSSA. There is no dropout: it would drop part of the pretrained weight."""

    niter: int | Literal["auto"] = setting(
        "auto",
        "auto: exact SVD; a number: randomised subspace iterations (the authors' scripts use 16, their example 4)",
        kind=int,
        formerly=0,
        minimum=1,
    )


class PiSSA(Split):
    """Principal singular values and singular vectors adaptation."""

    name = "pissa"
    title = "PiSSA"
    paper = "https://arxiv.org/abs/2404.02948"
    citation = "Meng, Wang, Zhang: PiSSA: Principal Singular Values and Singular Vectors Adaptation, NeurIPS 2024"
    Config = PiSSAConfig

    def triplets(self, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ``r`` largest."""
        r, niter = self.config.r, self.config.niter
        if niter != "auto":
            return subspace_iteration(weight, r, niter, generator)
        u, s, vh = svd(weight)
        return u[:, :r], s[:r], vh[:r]


@hookimpl
def harness_register_methods() -> list[type[Method]]:
    """Register PiSSA."""
    return [PiSSA]

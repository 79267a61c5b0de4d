"""Root-mean-square norms as one kernel, in place of the ten passes over memory in which transformers writes them.

What is not here: what else of a model runs faster on a GPU (``attention``, ``head_loss``).
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

CLOSE = 0.01  # of a norm's output, relative: rounding to bfloat16 once more or less changes less


def fuse_norms(modules: Iterable[nn.Module]) -> int:
    """Let frozen norms among these modules run as one kernel each, forward and backward; return how many.

    Which module is such a norm, and whether its weight counts from zero or from one, is tried on numbers.
    """
    count = 0
    for module in modules:
        for forward in (_from_zero, _from_one):
            if _computes(module, forward):
                module.forward = MethodType(forward, module)  # bound, so that a copy of the model uses its own weight
                count += 1
                break
    return count


def _from_zero(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight.shape, norm.weight, _epsilon(norm))


def _from_one(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, norm.weight.shape, 1 + norm.weight, _epsilon(norm))


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


@torch.no_grad()
def _computes(module: Any, forward: Any) -> bool:
    names = [name for name, _ in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or names != ["weight"] or module.weight.ndim != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(module.weight), generator=generator).to(module.weight) * 3
    try:
        expected, found = module(x).double(), forward(module, x).double()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return bool((found - expected).norm() <= CLOSE * expected.norm())

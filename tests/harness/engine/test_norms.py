"""Norms that run as one kernel compute what they did; modules that are no such norms are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from harness.engine.norms import fuse_norms


class OddRMSNorm(nn.Module):
    """Named like one, and something else."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.eps = 1e-6

    def forward(self, x):
        return self.weight * x / x.abs().mean(-1, keepdim=True)


def norm_of(kind):
    norm = kind() if kind is OddRMSNorm else kind(16)
    nn.init.normal_(norm.weight, 0.5, 0.3, generator=torch.Generator().manual_seed(1))
    return norm.double()


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma3RMSNorm])
def test_fused_norms_compute_what_they_did(kind):
    norm = norm_of(kind)
    plain = copy.deepcopy(norm)
    assert fuse_norms([norm]) == 1
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [each(one) for each, one in zip((norm, plain), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)  # transformers squares in float32
    gradients = [torch.autograd.grad(each.square().sum(), one)[0] for each, one in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_a_copy_uses_its_own_weight():
    norm = norm_of(LlamaRMSNorm)
    fuse_norms([norm])
    other = copy.deepcopy(norm)
    with torch.no_grad():
        other.weight.mul_(2)
    x = torch.ones(1, 16, dtype=torch.float64)
    torch.testing.assert_close(other(x), 2 * norm(x))


def test_what_is_no_such_norm_is_left_alone():
    odd, linear, layer = norm_of(OddRMSNorm), nn.Linear(4, 4), nn.LayerNorm(4)
    assert fuse_norms([odd, linear, layer]) == 0
    assert "forward" not in vars(odd)

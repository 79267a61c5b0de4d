"""MiLoRA against its formula, and itself stacked."""

from __future__ import annotations

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.milora import MiLoRA, MiLoRAConfig


def dense(t, weight, x):
    residual = weight - (12 / 5) * t["b0"] @ t["a0"]
    return x @ (residual + (12 / 5) * t["b"] @ t["a"]).T


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = MiLoRA(MiLoRAConfig(r=5, alpha=12)).adapter(layer, generator)
    kit.check_against_dense(adapter, layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = MiLoRA(MiLoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 480


@pytest.mark.parametrize("alpha", ["auto", 12.0])
def test_the_pair_starts_as_the_bottom_of_the_spectrum(kit, shape, alpha, generator):
    """The bottom of the min(I, O) values of the economy SVD, not of the null space of the longer side."""
    layer = kit.build_layer(*shape)
    adapter = MiLoRA(MiLoRAConfig(r=5, alpha=alpha)).adapter(layer, generator)
    scale = 1.0 if alpha == "auto" else alpha / 5
    a, b, s = adapter.a.detach(), adapter.b.detach(), torch.linalg.svdvals(layer.weight)
    assert s[-1] > 1e-3
    torch.testing.assert_close(a @ a.T, torch.diag(s[-5:] / scale), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b.T @ b, torch.diag(s[-5:] / scale), rtol=1e-10, atol=1e-10)
    residual = torch.linalg.svdvals(layer.weight - scale * b @ a)
    torch.testing.assert_close(residual[: len(s) - 5], s[:-5], rtol=1e-10, atol=1e-10)
    assert residual[len(s) - 5 :].max() < 1e-10


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout):
    layer = kit.build_layer(60, 100)
    method = MiLoRA(MiLoRAConfig(r=4, dropout=dropout))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(MiLoRA())


def test_dropout_also_drops_the_part_of_the_weight_that_the_pair_carries(kit, generator):
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(MiLoRA(MiLoRAConfig(r=4, alpha=8, dropout=0.5)).adapter(layer, generator))
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    residual = layer.weight - 2 * adapter.b0 @ adapter.a0
    expected = x @ residual.T + 2 * adapter.dropout(x) @ adapter.a.T @ adapter.b.T
    torch.testing.assert_close(adapter(x, x @ layer.weight.T), expected)
    adapter.eval()
    torch.testing.assert_close(adapter(x, x @ layer.weight.T), x @ (residual + 2 * adapter.b @ adapter.a).T)


def test_a_rank_above_the_layers_is_refused(kit, generator):
    method = MiLoRA(MiLoRAConfig(r=61))
    with pytest.raises(ConfigError, match=r"milora: r=61.*r <= 60"):
        method.trainable_parameters(100, 60)
    with pytest.raises(ConfigError, match=r"r=61"):
        method.adapter(kit.build_layer(100, 60), generator)

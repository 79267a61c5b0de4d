"""AsyLoRA: orthonormal rows in A, frozen as in its paper or trained as in MoRA's table."""

from __future__ import annotations

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.asylora import AsyLoRA, AsyLoRAConfig


def dense(t, weight, x):
    return x @ (weight + (12 / 5) * t["b"] @ t["a"]).T


@pytest.mark.parametrize("trains", ["b", "ab"])
def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator, trains):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(
        AsyLoRA(AsyLoRAConfig(r=5, alpha=12, trains=trains)).adapter(layer, generator), layer, dense
    )


@pytest.mark.parametrize(("trains", "size"), [("b", 300), ("ab", 480)])
def test_size_and_identity_at_the_start(kit, shape, generator, trains, size):
    method = AsyLoRA(AsyLoRAConfig(r=3, trains=trains))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == size


@pytest.mark.parametrize("trains", ["b", "ab"])
def test_the_rows_of_a_are_orthonormal_and_differ_with_the_seed(kit, shape, trains):
    layer = kit.build_layer(*shape)
    method = AsyLoRA(AsyLoRAConfig(r=5, trains=trains))
    first, second = (method.adapter(layer, torch.Generator().manual_seed(seed)).a.detach() for seed in (1, 2))
    torch.testing.assert_close(first @ first.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not torch.allclose(first.abs(), second.abs(), atol=1e-3)


def test_a_are_right_singular_vectors_of_a_uniform_matrix(kit):
    """Their entries are positive, so the first row is almost constant: far from what a Gaussian matrix would give."""
    a = AsyLoRA(AsyLoRAConfig(r=5)).adapter(kit.build_layer(128, 344), torch.Generator().manual_seed(0)).a
    assert a[0].mean().abs() > 0.95 / 128**0.5


@pytest.mark.parametrize("trains", ["b", "ab"])
def test_stacked_equals_alone(kit, trains):
    layer = kit.build_layer(60, 100)
    method = AsyLoRA(AsyLoRAConfig(trains=trains))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(AsyLoRA())


def test_more_rows_than_inputs_are_refused(kit, generator):
    method = AsyLoRA(AsyLoRAConfig(r=61))
    with pytest.raises(ConfigError, match=r"asylora: r=61.*r <= 60"):
        method.trainable_parameters(60, 100)
    with pytest.raises(ConfigError, match=r"r=61"):
        method.adapter(kit.build_layer(60, 100), generator)

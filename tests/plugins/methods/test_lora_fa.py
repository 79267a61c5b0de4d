"""LoRA-FA: LoRA's output, B alone trained, with its own gradient or the projected one."""

from __future__ import annotations

import pytest
import torch

from harness_plugins.methods.lora import LoRA, LoRAConfig
from harness_plugins.methods.lora_fa import LoRAFA, LoRAFAConfig


def dense(t, weight, x):
    return x @ (weight + (12 / 5) * t["b"] @ t["a"]).T


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(LoRAFA(LoRAFAConfig(r=5, alpha=12)).adapter(layer, generator), layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = LoRAFA(LoRAFAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 300


def test_a_is_lora_s(kit, shape):
    layer = kit.build_layer(*shape)
    draws = [torch.Generator().manual_seed(4) for _ in range(2)]
    ours, lora = LoRAFA().adapter(layer, draws[0]), LoRA(LoRAConfig()).adapter(layer, draws[1])
    assert torch.equal(ours.a, lora.a)


@pytest.mark.parametrize("gradient", ["plain", "projected"])
def test_stacked_equals_alone(kit, gradient):
    layer = kit.build_layer(60, 100)
    method = LoRAFA(LoRAFAConfig(gradient=gradient))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(LoRAFA())


def test_a_projected_step_moves_the_weight_by_what_a_can_express_of_the_full_gradient(kit, generator):
    """With G = dL/dW and plain descent: dW = -lr G P, P the projection onto the rows of A."""
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(LoRAFA(LoRAFAConfig(r=5, alpha=12, gradient="projected")).adapter(layer, generator))
    x = torch.randn(7, 60, dtype=torch.float64, generator=generator)
    upstream = torch.randn(7, 100, dtype=torch.float64, generator=generator)
    (adapter(x, x @ layer.weight.T) * upstream).sum().backward()
    full = upstream.T @ x
    a = adapter.a
    onto_a = a.T @ torch.linalg.inv(a @ a.T) @ a
    moved = (12 / 5) * adapter.b.grad @ a
    torch.testing.assert_close(moved, full @ onto_a, rtol=1e-9, atol=1e-9)


def test_the_projected_gradient_is_peft_s(kit, generator):
    """PEFT's optimizer multiplies B's gradient by (A A^T + 1e-8)^-1 / s^2 before its Adam."""
    layer = kit.build_layer(60, 100)
    plain, projected = (
        kit.disturb(LoRAFA(LoRAFAConfig(r=5, alpha=12, gradient=kind)).adapter(layer, torch.Generator().manual_seed(1)))
        for kind in ("plain", "projected")
    )
    x = torch.randn(7, 60, dtype=torch.float64, generator=generator)
    for adapter in (plain, projected):
        adapter(x, x @ layer.weight.T).square().sum().backward()
    gram = plain.a @ plain.a.T + 1e-8 * torch.eye(5, dtype=torch.float64)
    wanted = plain.b.grad @ torch.linalg.inv(gram) * (5 / 12) ** 2
    torch.testing.assert_close(projected.b.grad, wanted, rtol=1e-5, atol=1e-6)

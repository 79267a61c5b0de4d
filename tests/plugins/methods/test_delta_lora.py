"""Delta-LoRA against its recursion, step by step, and its closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness_plugins.methods.delta_lora import DeltaLoRA, DeltaLoRAConfig


def followed_from(kit, layer, generator, **settings):
    """Return an adapter whose weight follows from a disturbed pair on, and that moved on since."""
    adapter = kit.disturb(DeltaLoRA(DeltaLoRAConfig(r=5, alpha=12, **settings)).adapter(layer, generator), seed=9)
    adapter.follow(adapter_strength(settings))
    return adapter


def adapter_strength(settings):
    return settings.get("strength", 2.0)


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)

    def dense(t, weight, x):
        constant = t["b"].detach() @ t["a"].detach() - t["b_k"] @ t["a_k"]
        return x @ (weight + 12 / 5 * (t["b"] @ t["a"] + 2.0 * constant)).T

    kit.check_against_dense(followed_from(kit, layer, generator), layer, dense)


def test_a_training_follows_the_papers_recursion(kit, generator):
    """W changes by lambda s (B A - B' A') after every update from K on; gradients are those of W x + s B A x."""
    layer, steps, s, strength = kit.build_layer(20, 30), 10, 12 / 5, 0.5
    method = DeltaLoRA(DeltaLoRAConfig(r=5, alpha=12, strength=strength, start_fraction=0.3))
    adapter = method.adapter(layer, generator)
    weight = layer.weight.detach().clone()
    a, b = adapter.a.detach().clone(), adapter.b.detach().clone()
    x = torch.randn(40, 20, dtype=torch.float64, generator=generator)
    target = torch.randn(40, 30, dtype=torch.float64, generator=generator)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)
    for step in range(1, steps + 1):
        loss = (adapter(x, x @ layer.weight.T) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(SimpleNamespace(step=step, total_steps=steps, adapters={"layer": adapter}))

        a.requires_grad_()
        b.requires_grad_()
        reference = (x @ (weight + s * b @ a).T - target).square().mean()
        torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-12)
        to_a, to_b = torch.autograd.grad(reference, [a, b])
        before = (b @ a).detach()
        a, b = (a - 0.05 * to_a).detach(), (b - 0.05 * to_b).detach()
        if step > 3:
            weight += strength * s * (b @ a - before)
    merged = layer.weight + adapter.delta_weight()
    torch.testing.assert_close(merged, weight + s * b @ a, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(weight, layer.weight, atol=1e-3), "the weight has to have moved"


@pytest.mark.parametrize(("fraction", "begins"), [(0.0, 0), (0.3, 3), (1.0, 10)])
def test_it_follows_from_update_k_on(kit, generator, fraction, begins):
    method = DeltaLoRA(DeltaLoRAConfig(start_fraction=fraction))
    adapter = method.adapter(kit.build_layer(20, 30), generator)
    for step in range(11):
        if step:
            method.after_step(SimpleNamespace(step=step, total_steps=10, adapters={"layer": adapter}))
        assert (adapter.strength == 2.0) == (step >= begins)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = DeltaLoRA(DeltaLoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 480


def test_stacked_equals_alone(kit):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: followed_from(kit, layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(DeltaLoRA(DeltaLoRAConfig(start_fraction=0.0)))

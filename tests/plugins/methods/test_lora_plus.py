"""LoRA+ is LoRA with two learning rates."""

from __future__ import annotations

import pytest
import torch

from harness_plugins.methods.dora import DoRA
from harness_plugins.methods.lora_plus import LoRAPlus, LoRAPlusConfig


def dense(t, weight, x):
    return x @ (weight + 2 * t["b"] @ t["a"]).T


def rates(groups, adapters):
    """Return the learning rate of every parameter by name."""
    by_identity = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {f"{n}.{k}": by_identity[id(p)] for n, a in adapters.items() for k, p in a.named_parameters()}


def test_output_gradients_and_merge_are_loras(kit, shape, generator):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(LoRAPlus(LoRAPlusConfig(r=4, alpha=8)).adapter(layer, generator), layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    kit.check_size_and_identity(LoRAPlus(), kit.build_layer(*shape), generator)


def test_b_gets_ratio_times_the_rate_of_a(kit, generator):
    method = LoRAPlus(LoRAPlusConfig(ratio=20.0))
    adapters = {name: method.adapter(kit.build_layer(60, 100), generator) for name in ("q", "v")}
    groups = method.parameter_groups(adapters, 0.01, 0.1)
    assert rates(groups, adapters) == pytest.approx({"q.a": 0.01, "q.b": 0.2, "v.a": 0.01, "v.b": 0.2})
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1]
    assert sum(len(group["params"]) for group in groups) == 4


@pytest.mark.parametrize(("vectors", "rate_of_m"), [("ratio", 0.04), ("base", 0.01)])
def test_one_dimensional_parameters_get_the_rate_that_is_asked_for(kit, vectors, rate_of_m, generator):
    adapters = {"q": DoRA().adapter(kit.build_layer(60, 100), generator)}
    groups = LoRAPlus(LoRAPlusConfig(ratio=4.0, vectors=vectors)).parameter_groups(adapters, 0.01, 0.0)
    assert rates(groups, adapters) == pytest.approx({"q.a": 0.01, "q.b": 0.04, "q.m": rate_of_m})


def test_frozen_parameters_are_left_out(kit, generator):
    method = LoRAPlus()
    adapter = method.adapter(kit.build_layer(60, 100), generator)
    adapter.a.requires_grad_(False)
    (group,) = method.parameter_groups({"q": adapter}, 0.01, 0.0)
    assert [id(p) for p in group["params"]] == [id(adapter.b)]


def test_one_sgd_step_moves_b_ratio_times_as_far(kit, generator):
    method = LoRAPlus(LoRAPlusConfig(ratio=8.0))
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(method.adapter(layer, generator))
    a, b = adapter.a.detach().clone(), adapter.b.detach().clone()
    optimizer = torch.optim.SGD(method.parameter_groups({"q": adapter}, 0.5, 0.0))
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    adapter(x, x @ layer.weight.T).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(adapter.a, a - 0.5 * adapter.a.grad)
    torch.testing.assert_close(adapter.b, b - 4.0 * adapter.b.grad)


def test_stacked_equals_alone(kit):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: LoRAPlus().adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(LoRAPlus())


def test_only_runs_when_asked_for():
    assert not LoRAPlus.traits.in_all

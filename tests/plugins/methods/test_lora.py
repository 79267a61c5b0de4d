"""LoRA against its formula, PEFT, and itself stacked."""

from __future__ import annotations

import math

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.lora import LoRA, LoRAConfig


def dense(t, weight, x):
    return x @ (weight + (12 / 5) * t["b"] @ t["a"]).T


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(LoRA(LoRAConfig(r=5, alpha=12)).adapter(layer, generator), layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    kit.check_size_and_identity(LoRA(LoRAConfig(r=3)), kit.build_layer(*shape), generator)


def test_the_published_count_of_llama_7b_at_rank_8():
    # 32 blocks of q, k, v, o (4096 to 4096), gate, up (4096 to 11008) and down (11008 to 4096).
    block = [(4096, 4096)] * 4 + [(4096, 11008)] * 2 + [(11008, 4096)]
    assert 32 * sum(LoRA().trainable_parameters(i, o) for i, o in block) == 19_988_480


def test_matches_peft(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = kit.disturb(LoRA(LoRAConfig(r=4, alpha=10)).adapter(layer, generator))
    theirs = kit.peft_layer(layer, r=4, lora_alpha=10)
    pairs = {"a": theirs.lora_A["default"].weight, "b": theirs.lora_B["default"].weight}
    kit.check_against_peft(adapter, layer, theirs, pairs)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout):
    layer = kit.build_layer(60, 100)
    method = LoRA(LoRAConfig(r=4, dropout=dropout))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(LoRA())


@pytest.mark.parametrize(
    ("law", "fourth_moment_over_variance_squared"),
    [("uniform", 9 / 5), ("gaussian", 3.0)],
)
def test_a_starts_with_the_named_law(kit, law, fourth_moment_over_variance_squared, generator):
    layer = kit.build_layer(400, 10)
    a = LoRA(LoRAConfig(r=200, init=law)).adapter(layer, generator).a.detach()
    assert a.mean().item() == pytest.approx(0, abs=1e-3)
    assert a.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)
    kurtosis = (a**4).mean() / a.var() ** 2
    assert kurtosis.item() == pytest.approx(fourth_moment_over_variance_squared, rel=0.05)
    if law == "uniform":
        assert a.abs().max() <= 1 / math.sqrt(400)


def test_dropout_acts_on_the_update_only_and_not_in_evaluation(kit, generator):
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(LoRA(LoRAConfig(r=4, alpha=8, dropout=0.5)).adapter(layer, generator))
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    base = x @ layer.weight.T
    kept = adapter.dropout(x)
    assert not torch.equal(kept, x)
    torch.testing.assert_close(adapter(x, base), base + 2 * kept @ adapter.a.T @ adapter.b.T)
    adapter.eval()
    torch.testing.assert_close(adapter(x, base), base + 2 * x @ adapter.a.T @ adapter.b.T)


def test_the_same_seed_gives_the_same_adapter_and_the_global_generator_is_left_alone(kit):
    layer = kit.build_layer(60, 100)
    before = torch.get_rng_state()
    one, same, other = (LoRA().adapter(layer, torch.Generator().manual_seed(s)).a for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bad", [{"r": 0}, {"dropout": 1.0}, {"init": "zeros"}, {"alpha": -1.0}])
def test_a_bad_setting_is_named(bad):
    (name,) = bad
    with pytest.raises(ConfigError, match=name):
        LoRAConfig(**bad)

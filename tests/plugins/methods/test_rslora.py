"""rsLoRA is LoRA with another scale."""

from __future__ import annotations

import math

import torch

from harness_plugins.methods.lora import LoRAConfig
from harness_plugins.methods.rslora import RsLoRA


def dense(t, weight, x):
    return x @ (weight + 12 / math.sqrt(5) * t["b"] @ t["a"]).T


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(RsLoRA(LoRAConfig(r=5, alpha=12)).adapter(layer, generator), layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = RsLoRA(LoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 480


def test_matches_peft(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = kit.disturb(RsLoRA(LoRAConfig(r=4, alpha=10)).adapter(layer, generator))
    theirs = kit.peft_layer(layer, r=4, lora_alpha=10, use_rslora=True)
    pairs = {"a": theirs.lora_A["default"].weight, "b": theirs.lora_B["default"].weight}
    kit.check_against_peft(adapter, layer, theirs, pairs)


def test_stacked_equals_alone(kit):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: RsLoRA().adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(RsLoRA())


def test_only_runs_when_asked_for():
    assert not RsLoRA.traits.in_all

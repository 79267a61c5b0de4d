"""VeRA against its formula and PEFT, and what its layers share."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import nn

from harness_plugins.methods.vera import _KNOWN, VeRA, VeRAConfig


def build(layer, generator, **settings):
    return VeRA(VeRAConfig(r=7, **settings)).adapter(layer, generator)


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = build(layer, generator)
    a, b = adapter.shared.a, adapter.shared.b

    def dense(t, weight, x):
        return x @ (weight + torch.diag(t["b"]) @ b @ torch.diag(t["d"]) @ a).T

    kit.check_against_dense(adapter, layer, dense)


@pytest.mark.parametrize("rows", [(3,), (40, 5)])
@pytest.mark.parametrize("r", [7, 500])
def test_few_rows_and_many_small_ranks_and_large_ones_give_the_same(kit, generator, rows, r):
    """Beyond the layer's width, and for many rows, the update itself is formed first."""
    adapter = VeRA(VeRAConfig(r=r)).adapter(kit.build_layer(60, 100), generator)
    shared = adapter.shared
    with torch.no_grad():
        adapter.b.normal_(generator=generator)
    x = torch.randn(*rows, 60, dtype=adapter.dtype, generator=generator, requires_grad=True)
    base = torch.randn(*rows, 100, dtype=adapter.dtype, generator=generator)
    expected = base + (x @ shared.a.T * adapter.d) @ shared.b.T * adapter.b
    found = adapter(x, base)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [x, adapter.d, adapter.b]
    ours, theirs = (torch.autograd.grad(each.sin().sum(), inputs) for each in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = VeRA(VeRAConfig(r=7))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 107
    adapter = method.adapter(kit.build_layer(*shape), generator)
    assert (adapter.d == 0.1).all()
    assert not adapter.b.any()


def test_layers_and_trials_of_one_shape_share_the_matrices_and_other_shapes_or_seeds_do_not(kit):
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    one, other = (build(kit.build_layer(60, 100, seed=seed), draw) for seed, draw in zip((1, 2), draws, strict=True))
    assert one.shared is other.shared
    assert build(kit.build_layer(60, 90), draws[0]).shared is not one.shared
    assert not torch.equal(build(kit.build_layer(60, 100), draws[0], projection_seed=1).shared.a, one.shared.a)
    saved = one.shared.a.clone()
    del one, other
    gc.collect()
    assert not [key for key in _KNOWN if key[:3] == (7, 60, 100) and key[3] == 0], "nobody holds it, so it is let go"
    assert torch.equal(build(kit.build_layer(60, 100), draws[0]).shared.a, saved), "and is the same when made again"


def test_the_law_of_the_matrices(kit, generator):
    shared = VeRA(VeRAConfig(r=200)).adapter(kit.build_layer(128, 344), generator).shared
    for matrix, fan_in in ((shared.a, 128), (shared.b, 200)):
        bound = math.sqrt(6 / fan_in)
        assert 0.99 * bound < matrix.abs().max() <= bound
        assert matrix.std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert abs(matrix.mean()) < 0.02 * bound


def test_matches_peft(kit, shape, generator):
    peft = pytest.importorskip("peft")
    layer = kit.build_layer(*shape)
    ours = kit.disturb(build(layer, generator))
    model = nn.Module()
    model.proj = kit.build_layer(*shape)
    settings = peft.VeraConfig(r=7, target_modules=["proj"], projection_prng_key=0, vera_dropout=0.0)
    theirs = peft.get_peft_model(model, settings, autocast_adapter_dtype=False).base_model.model.proj.double()
    theirs.vera_A["default"], theirs.vera_B["default"] = ours.shared.a, ours.shared.b
    pairs = {"d": theirs.vera_lambda_d["default"], "b": theirs.vera_lambda_b["default"]}
    kit.check_against_peft(ours, layer, theirs, pairs)


def test_stacked_equals_alone(kit):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: build(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(VeRA(VeRAConfig(r=7)))

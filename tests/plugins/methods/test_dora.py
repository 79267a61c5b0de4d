"""DoRA against its formula, PEFT, and itself stacked."""

from __future__ import annotations

import pytest
import torch

from harness_plugins.methods.dora import DoRA, DoRAConfig


def dense_full(t, weight, x):
    """Differentiate through the norm."""
    v = weight + (12 / 5) * t["b"] @ t["a"]
    n = v.square().sum(1).sqrt()
    return x @ ((t["m"] / n)[:, None] * v).T


def dense_detached(t, weight, x):
    """Hold the norm constant, as in section 4.3 of the paper."""
    v = weight + (12 / 5) * t["b"] @ t["a"]
    n = v.square().sum(1).sqrt().detach()
    return x @ ((t["m"] / n)[:, None] * v).T


@pytest.mark.parametrize(("detach", "dense"), [(True, dense_detached), (False, dense_full)])
def test_output_gradients_and_merge_follow_the_formula(kit, shape, detach, dense, generator):
    layer = kit.build_layer(*shape)
    adapter = DoRA(DoRAConfig(r=5, alpha=12, detach_norm=detach)).adapter(layer, generator)
    kit.check_against_dense(adapter, layer, dense)


def test_the_detached_gradient_is_the_full_one_plus_its_part_along_each_row(kit, generator):
    """Without detaching, dL/dV loses its component along row i of V; dL/dm is the same (reference sheet)."""
    layer = kit.build_layer(60, 100)
    x = torch.randn(9, 60, dtype=torch.float64, generator=generator)
    grads = {}
    for detach in (True, False):
        adapter = DoRA(DoRAConfig(r=5, detach_norm=detach)).adapter(layer, torch.Generator().manual_seed(0))
        kit.disturb(adapter)
        adapter(x, x @ layer.weight.T).sin().sum().backward()
        grads[detach] = (adapter.m.grad, adapter.b.grad)
        scale = 16 / 5
        v = (layer.weight + scale * adapter.b @ adapter.a).detach()
        m, a = adapter.m.detach(), adapter.a.detach()
    torch.testing.assert_close(grads[True][0], grads[False][0])
    n = v.norm(dim=1, keepdim=True)
    upstream = (x @ (m[:, None] * v / n).T).cos()
    to_v = m[:, None] / n * (upstream.T @ x)
    along = (to_v * v).sum(1, keepdim=True) / n.square() * v
    torch.testing.assert_close(grads[True][1], scale * to_v @ a.T)
    torch.testing.assert_close(grads[False][1], scale * (to_v - along) @ a.T)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = DoRA(DoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 580


def test_magnitudes_start_at_the_row_norms(kit, generator):
    layer = kit.build_layer(60, 100)
    torch.testing.assert_close(DoRA().adapter(layer, generator).m, layer.weight.square().sum(1).sqrt())


def test_matches_peft(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = kit.disturb(DoRA(DoRAConfig(r=4, alpha=10)).adapter(layer, generator))
    theirs = kit.peft_layer(layer, r=4, lora_alpha=10, use_dora=True)
    pairs = {
        "a": theirs.lora_A["default"].weight,
        "b": theirs.lora_B["default"].weight,
        "m": theirs.lora_magnitude_vector["default"].weight,
    }
    kit.check_against_peft(adapter, layer, theirs, pairs)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout, detach):
    layer = kit.build_layer(60, 100)
    method = DoRA(DoRAConfig(r=4, dropout=dropout, detach_norm=detach))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(DoRA())


@pytest.mark.parametrize("drops", ["correction", "update"])
def test_dropout_spares_the_frozen_output(kit, generator, drops):
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(DoRA(DoRAConfig(r=4, alpha=8, dropout=0.5, drops=drops)).adapter(layer, generator))
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    frozen, dropped = x @ layer.weight.T, adapter.dropout(x)  # the same mask until the next step
    ratio = adapter.m / (layer.weight + 2 * adapter.b @ adapter.a).norm(dim=1)
    update = 2 * dropped @ adapter.a.T @ adapter.b.T
    expected = {
        "correction": frozen + (ratio - 1) * (dropped @ layer.weight.T) + ratio * update,
        "update": ratio * (frozen + update),
    }
    torch.testing.assert_close(adapter(x, frozen), expected[drops])
    assert not torch.allclose(expected["correction"], expected["update"])
    torch.testing.assert_close(adapter.eval()(x, frozen), x @ (layer.weight + adapter.delta_weight()).T)


def test_the_frozen_weight_is_read_at_every_forward_and_not_copied(kit, generator):
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(DoRA().adapter(layer, generator))
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    base = x @ layer.weight.T
    before = adapter(x, base)
    layer.weight.data.mul_(2)  # nobody may do this in training; it shows where the norm comes from
    assert not torch.allclose(adapter(x, base), before)
    assert sum(t.numel() for t in (*adapter.parameters(), *adapter.buffers())) == 8 * 160 + 100 + 2


def test_a_row_of_zeros_stays_zero_instead_of_nan(kit, generator):
    layer = kit.build_layer(60, 100)
    layer.weight.data[7] = 0
    adapter = DoRA().adapter(layer, generator)
    x = torch.randn(3, 60, dtype=torch.float64, generator=generator)
    output = adapter(x, x @ layer.weight.T)
    assert torch.equal(output, x @ layer.weight.T)
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())


def test_rounded_copies_of_a_and_b_leave_the_length_exact(kit, generator):
    """In half-precision training forward sees bfloat16 copies; a length computed in bfloat16 would not be m."""
    layer = kit.build_layer(60, 100, torch.bfloat16)
    adapter = DoRA().adapter(layer, generator)
    rounded = {"a": adapter.a.detach().bfloat16(), "b": adapter.b.detach().bfloat16(), "m": adapter.m.detach()}
    x = torch.randn(3, 60, generator=generator).bfloat16()
    base = x @ layer.weight.T
    assert torch.equal(torch.func.functional_call(adapter, rounded, (x, base)), base)

"""SoRA against its formula, a loop over the published code's rule for gates, and itself stacked."""

from __future__ import annotations

import pytest
import torch

from harness import StepInfo
from harness_plugins.methods.sora import SoRA, SoRAConfig


def dense(t, weight, x):
    return x @ (weight + 2 * t["b"] @ torch.diag(t["gate"]) @ t["a"]).T


def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator):
    layer = kit.build_layer(*shape)
    kit.check_against_dense(SoRA(SoRAConfig(r=4, alpha=8)).adapter(layer, generator), layer, dense)


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = SoRA(SoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 483


def test_gates_are_normal_and_the_pair_is_loras(kit, generator):
    adapter = SoRA(SoRAConfig(r=4000)).adapter(kit.build_layer(4, 3), generator)
    assert adapter.gate.mean().item() == pytest.approx(0, abs=0.05)
    assert adapter.gate.std().item() == pytest.approx(1, rel=0.05)
    assert adapter.a.abs().max() <= 0.5 < 1.01 * adapter.a.abs().max()
    assert not adapter.b.any()


def shrunk(gate, xi):
    """Return a gate after the published code's three assignments, one after the other."""
    if gate > xi:
        gate -= xi
    if gate < -xi:
        gate += xi
    return 0.0 if abs(gate) < xi else gate


def test_gates_shrink_as_in_the_code_or_as_in_the_paper(kit, generator):
    gates = [-1.0, -0.25, -0.2, -0.15, -0.1, -0.05, 0.0, 0.03, 0.1, 0.12, 0.2, 0.21, 3.0]
    adapter = SoRA(SoRAConfig(r=len(gates))).adapter(kit.build_layer(4, 3), generator)
    for shrinking in ("code", "paper"):
        with torch.no_grad():
            adapter.gate.copy_(torch.tensor(gates, dtype=torch.float64))
        adapter.shrink(0.1, shrinking)
        expected = [shrunk(g, 0.1) if shrinking == "code" else max(g - 0.1, min(g + 0.1, 0)) for g in gates]
        assert adapter.gate.tolist() == pytest.approx(expected, abs=1e-12)
    assert shrunk(0.15, 0.1) == 0.0  # between xi and 2 xi a gate closes in the code
    assert adapter.gate.tolist()[3] == pytest.approx(-0.05)  # and does not in the paper


def test_the_penalty_is_the_mean_over_all_gates(kit, generator):
    method = SoRA(SoRAConfig(r=2, penalty=0.5))
    adapters = {str(n): method.adapter(kit.build_layer(4, 3), generator) for n in range(2)}
    with torch.no_grad():
        adapters["0"].gate.copy_(torch.tensor([1.0, -2.0]))
        adapters["1"].gate.copy_(torch.tensor([0.0, 5.0]))
    assert method.extra_loss(adapters).item() == pytest.approx(0.5 * 8 / 4)
    assert SoRA(SoRAConfig(penalty=0)).extra_loss(adapters) is None


def test_gates_are_not_decayed(kit, generator):
    adapters = {"q": SoRA().adapter(kit.build_layer(4, 3), generator)}
    rest, gates = SoRA().parameter_groups(adapters, 0.01, 0.1)
    assert (rest["lr"], rest["weight_decay"], len(rest["params"])) == (0.01, 0.1, 2)
    assert (gates["lr"], gates["weight_decay"]) == (0.01, 0.0)
    assert gates["params"][0] is adapters["q"].gate


@pytest.mark.parametrize(("threshold", "most"), [(0.004, 4), (0.0, 8)])
def test_training_closes_gates_of_little_use_and_none_without_a_threshold(kit, threshold, most):
    method = SoRA(SoRAConfig(r=8, threshold=threshold, penalty=0))
    generator, layer = torch.Generator().manual_seed(0), kit.build_layer(12, 10)
    adapter = method.adapter(layer, generator)
    optimizer = torch.optim.AdamW(method.parameter_groups({"q": adapter}, 0.02, 0.0))
    x = torch.randn(64, 12, generator=generator, dtype=torch.float64)
    direction = torch.randn(10, 12, generator=generator, dtype=torch.float64)[:, :1]
    target = x @ layer.weight.T + x[:, :1] @ direction.T  # one rank is enough
    losses = []
    for step in range(1, 201):
        loss = (adapter(x, x @ layer.weight.T) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        method.after_step(StepInfo(step, 200, {"q": adapter}, optimizer, generator))
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
    assert 1 <= int(adapter.gate.count_nonzero()) <= most
    assert torch.linalg.matrix_rank(adapter.delta_weight()) <= int(adapter.gate.count_nonzero())
    if not threshold:
        assert adapter.gate.all()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout):
    layer = kit.build_layer(60, 100)
    method = SoRA(SoRAConfig(dropout=dropout))
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(SoRA())


def test_only_runs_when_asked_for():
    assert not SoRA.traits.in_all

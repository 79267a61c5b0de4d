"""PiSSA against its formula, PEFT, and itself stacked."""

from __future__ import annotations

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.pissa import PiSSA, PiSSAConfig


def dense(t, weight, x):
    residual = weight - (12 / 5) * t["b0"] @ t["a0"]
    return x @ (residual + (12 / 5) * t["b"] @ t["a"]).T


def flat_layer(kit, in_features=60, out_features=100):
    """Return a layer whose singular values fall slowly, from 5 to 0.05, so that approximation shows."""
    layer = kit.build_layer(in_features, out_features)
    u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
    layer.weight.data.copy_(u * torch.logspace(0.69897, -1.30103, len(s), dtype=torch.float64) @ vh)
    return layer


@pytest.mark.parametrize("niter", [0, 2])
def test_output_gradients_and_merge_follow_the_formula(kit, shape, niter, generator):
    layer = kit.build_layer(*shape)
    adapter = PiSSA(PiSSAConfig(r=5, alpha=12, niter=niter)).adapter(layer, generator)
    kit.check_against_dense(adapter, layer, dense)


@pytest.mark.parametrize("niter", [0, 1])
def test_size_and_identity_at_the_start(kit, shape, niter, generator):
    method = PiSSA(PiSSAConfig(r=3, niter=niter))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 480


@pytest.mark.parametrize("alpha", ["auto", 12.0])
def test_the_pair_starts_as_the_top_of_the_spectrum(kit, shape, alpha, generator):
    layer = kit.build_layer(*shape)
    adapter = PiSSA(PiSSAConfig(r=5, alpha=alpha)).adapter(layer, generator)
    scale = 1.0 if alpha == "auto" else alpha / 5
    a, b, s = adapter.a.detach(), adapter.b.detach(), torch.linalg.svdvals(layer.weight)
    torch.testing.assert_close(a @ a.T, torch.diag(s[:5] / scale), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b.T @ b, torch.diag(s[:5] / scale), rtol=1e-10, atol=1e-10)
    residual = torch.linalg.svdvals(layer.weight - scale * b @ a)
    torch.testing.assert_close(residual[: len(s) - 5], s[5:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [6, 10])
def test_matches_peft(kit, shape, alpha, generator):
    """PEFT moves the component out of its frozen weight; here it stays, and is corrected for."""
    layer = kit.build_layer(*shape)
    adapter = PiSSA(PiSSAConfig(r=6, alpha=float(alpha))).adapter(layer, generator)
    theirs = kit.peft_layer(layer, r=6, lora_alpha=alpha, init_lora_weights="pissa")
    a, b = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    component = (alpha / 6) * (b @ a).detach()
    # PEFT stores the factors in float32 while it initialises, so the start agrees to that only.
    torch.testing.assert_close((alpha / 6) * adapter.b0 @ adapter.a0, component, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        theirs.get_base_layer().weight.copy_(layer.weight - (alpha / 6) * adapter.b0 @ adapter.a0)
    kit.disturb(adapter)
    kit.check_against_peft(adapter, layer, theirs, {"a": a, "b": b})


def test_stacked_equals_alone(kit):
    layer = flat_layer(kit)
    method = PiSSA(PiSSAConfig(r=4, alpha=6.0, niter=1))  # random, so that the lanes' buffers differ
    built = [method.adapter(layer, torch.Generator().manual_seed(seed)) for seed in (10, 11)]
    assert not torch.allclose(built[0].a0, built[1].a0)
    kit.check_stacks(lambda seed: method.adapter(layer, torch.Generator().manual_seed(seed)))


def test_low_precision(kit):
    kit.check_low_precision(PiSSA())


def test_a_float32_layer_gives_the_factors_of_a_float64_one(kit, generator):
    layer = flat_layer(kit)
    single = kit.build_layer(60, 100, torch.float32)
    single.weight.data.copy_(layer.weight)
    method = PiSSA(PiSSAConfig(r=4))
    exact, rounded = (method.adapter(each, generator) for each in (layer, single))
    torch.testing.assert_close(rounded.a.double(), exact.a, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rounded.b.double(), exact.b, rtol=1e-5, atol=1e-5)


def test_more_iterations_come_closer_to_the_exact_component(kit):
    layer = flat_layer(kit)
    u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
    exact = u[:, :4] * s[:4] @ vh[:4]

    def error(niter):
        method = PiSSA(PiSSAConfig(r=4, niter=niter))
        adapters = [method.adapter(layer, torch.Generator().manual_seed(seed)) for seed in range(5)]
        return max(((a.b @ a.a - exact).norm() / exact.norm()).item() for a in adapters)

    assert error(1) > 0.3, "one iteration on a flat spectrum cannot be this good without oversampling"
    assert error(4) < error(1)
    assert error(16) < error(4)
    assert error(200) < 1e-9


@pytest.mark.parametrize(("in_features", "out_features"), [(60, 100), (100, 60)])
def test_iterations_span_what_powers_of_the_weight_span(kit, in_features, out_features):
    """After q iterations the left factor spans (W W^T)^q W Omega, Omega Gaussian (Halko et al., 4.4)."""
    layer = flat_layer(kit, in_features, out_features)
    adapter = PiSSA(PiSSAConfig(r=3, niter=2)).adapter(layer, torch.Generator().manual_seed(5))
    tall = layer.weight.detach() if out_features >= in_features else layer.weight.detach().T
    factor = adapter.b.detach() if out_features >= in_features else adapter.a.detach().T
    replay = torch.Generator().manual_seed(5)
    torch.randint(2**62, (), generator=replay)  # the dropout's seed comes first
    omega = torch.randn(tall.shape[1], 3, generator=replay, dtype=torch.float64)
    power = torch.linalg.matrix_power(tall @ tall.T, 2) @ tall @ omega
    projection = power @ torch.linalg.pinv(power)
    torch.testing.assert_close(projection @ factor, factor, rtol=1e-8, atol=1e-8)


def test_the_approximation_draws_from_the_given_generator_alone(kit):
    layer = kit.build_layer(60, 100)
    method = PiSSA(PiSSAConfig(niter=1))
    before = torch.get_rng_state()
    one, same, other = (method.adapter(layer, torch.Generator().manual_seed(s)).a for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_saved_adapter_says_what_it_took_out(kit, generator):
    layer = kit.build_layer(60, 100)
    adapter = kit.disturb(PiSSA(PiSSAConfig(r=4, niter=1)).adapter(layer, generator))
    fresh = PiSSA(PiSSAConfig(r=4, niter=1)).adapter(layer, torch.Generator().manual_seed(99))
    fresh.load_state_dict(adapter.state_dict())
    assert torch.equal(fresh.delta_weight(), adapter.delta_weight())


def test_a_small_change_is_not_rounded_away_in_float32(kit, generator):
    """A large component minus nearly itself: a plain difference of two products would lose the digits."""
    layer = kit.build_layer(60, 100, torch.float32)
    layer.weight.data.mul_(1000)
    adapter = PiSSA(PiSSAConfig(r=4)).adapter(layer, generator)
    with torch.no_grad():
        adapter.b += 1e-3 * torch.randn(adapter.b.shape, generator=generator)
    b, b0, a0 = adapter.b.double(), adapter.b0.double(), adapter.a0.double()
    x = torch.randn(3, 60, generator=generator)
    change = adapter(x, torch.zeros(3, 100))
    torch.testing.assert_close(change.double(), x.double() @ ((b - b0) @ a0).T, rtol=1e-5, atol=1e-5)


def test_a_rank_above_the_layers_is_refused(kit, generator):
    method = PiSSA(PiSSAConfig(r=61))
    with pytest.raises(ConfigError, match=r"r=61.*60 inputs and 100 outputs.*r <= 60"):
        method.trainable_parameters(60, 100)
    with pytest.raises(ConfigError, match=r"r=61"):
        method.adapter(kit.build_layer(60, 100), generator)
    assert PiSSA(PiSSAConfig(r=60)).trainable_parameters(60, 100) == 60 * 160


def test_there_is_no_dropout():
    with pytest.raises(TypeError, match="dropout"):
        PiSSAConfig(dropout=0.1)


def test_rounded_copies_still_change_nothing_at_the_start(kit, generator):
    """In half-precision training forward sees bfloat16 copies of all four factors."""
    layer = kit.build_layer(60, 100, torch.bfloat16)
    adapter = PiSSA().adapter(layer, generator)
    rounded = {n: t.bfloat16() for n, t in adapter.state_dict().items()}
    x = torch.randn(3, 60, generator=generator).bfloat16()
    base = x @ layer.weight.T
    assert torch.equal(torch.func.functional_call(adapter, rounded, (x, base)), base)

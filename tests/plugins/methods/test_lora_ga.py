"""LoRA-GA against its formula, its promise about the first step, and itself stacked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness import Calibration, ConfigError, HarnessError
from harness_plugins.methods.lora_ga import LoRAGA, LoRAGAConfig


def calibrated(method, layer, gradient, seed=0):
    """Return the adapter of one layer called ``q`` whose mean gradient is ``gradient``."""
    generator = torch.Generator().manual_seed(seed)
    adapter = method.adapter(layer, generator)

    def no_loss(batch):
        raise AssertionError("the mean gradient is all that is needed")

    calibration = Calibration(
        model=nn.Module(),
        batches=[],
        loss=no_loss,
        weight_gradients=lambda: {"q": gradient},
        generator=generator,
    )
    method.calibrate({"q": adapter}, calibration)
    return adapter


def draw_gradient(shape, dtype=torch.float64, seed=20):
    in_features, out_features = shape
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out_features, in_features, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("law", "scale"), [("alpha/r", 12 / 5), ("alpha/sqrt(r)", 12 / math.sqrt(5))])
def test_output_gradients_and_merge_follow_the_formula(kit, shape, law, scale):
    layer = kit.build_layer(*shape)
    adapter = calibrated(LoRAGA(LoRAGAConfig(r=5, alpha=12, scale=law)), layer, draw_gradient(shape))

    def dense(t, weight, x):
        return x @ (weight - scale * t["b0"] @ t["a0"] + scale * t["b"] @ t["a"]).T

    kit.check_against_dense(adapter, layer, dense)


def test_size_and_identity_before_and_after_calibration(kit, shape, generator):
    layer = kit.build_layer(*shape)
    method = LoRAGA(LoRAGAConfig(r=3))
    kit.check_size_and_identity(method, layer, generator)
    adapter = calibrated(method, layer, draw_gradient(shape))
    assert adapter.a.any()
    assert adapter.b.any()
    x = torch.randn(4, shape[0], dtype=torch.float64, generator=generator)
    assert torch.equal(adapter(x, x @ layer.weight.T), x @ layer.weight.T)
    assert not adapter.delta_weight().any()


def test_the_pair_starts_in_disjoint_singular_directions_of_the_gradient(kit, shape):
    gradient = draw_gradient(shape)
    adapter = calibrated(LoRAGA(LoRAGAConfig(r=4, gamma=9.0)), kit.build_layer(*shape), gradient)
    a, b = adapter.a.detach(), adapter.b.detach()
    # Eigenvectors of the two Gram matrices, in ascending order: an SVD that is not the code under test's.
    v, u = torch.linalg.eigh(gradient.T @ gradient)[1], torch.linalg.eigh(gradient @ gradient.T)[1]
    size = math.sqrt(shape[1]) / 9.0
    torch.testing.assert_close(a.T @ a, size * v[:, -4:] @ v[:, -4:].T, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(b @ b.T, size * u[:, -8:-4] @ u[:, -8:-4].T, rtol=1e-8, atol=1e-8)


def test_the_released_codes_sampled_svd_finds_a_gradient_of_low_rank_and_misses_a_flat_ones_order(kit, shape):
    """Four r = 16 random vectors span all of a matrix of rank 12, and not of one of full rank."""
    low = draw_gradient((shape[0], 12)).T @ draw_gradient((12, shape[1]), seed=21).T
    flat = draw_gradient(shape)
    for gradient, is_found in [(low.T.contiguous(), True), (flat, False)]:
        layer = kit.build_layer(*shape)
        exact = calibrated(LoRAGA(LoRAGAConfig(r=4)), layer, gradient)
        sampled = calibrated(LoRAGA(LoRAGAConfig(r=4, niter=4)), layer, gradient)
        for one, other in [
            (exact.a.T @ exact.a, sampled.a.T @ sampled.a),
            (exact.b @ exact.b.T, sampled.b @ sampled.b.T),
        ]:
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-6) is is_found


def test_the_first_step_is_the_best_rank_2r_approximation_of_a_full_step(kit, shape):
    """Section 3 of the paper: to first order, the effective weight moves along the top of the gradient."""
    layer, gradient, r = kit.build_layer(*shape), draw_gradient(shape), 4
    adapter = calibrated(LoRAGA(LoRAGAConfig(r=r, alpha=6.0, scale="alpha/r")), layer, gradient)
    everything = torch.eye(shape[0], dtype=torch.float64)
    output = adapter(everything, everything @ layer.weight.T)
    (output * gradient.T).sum().backward()  # a loss whose gradient in the weight is ``gradient``
    first_order = (6 / r) * (adapter.b.grad @ adapter.a0 + adapter.b0 @ adapter.a.grad)
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    best = u[:, : 2 * r] * s[: 2 * r] @ vh[: 2 * r]
    factor = (6 / r) ** 2 * math.sqrt(shape[1]) / 16
    torch.testing.assert_close(first_order, factor * best, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_stacked_equals_alone(kit, dropout):
    layer = kit.build_layer(60, 100)
    method = LoRAGA(LoRAGAConfig(r=4, dropout=dropout))
    kit.check_stacks(lambda seed: calibrated(method, layer, draw_gradient((60, 100), seed=seed), seed))


def test_low_precision(kit):
    kit.check_low_precision(LoRAGA())
    adapter = calibrated(LoRAGA(), kit.build_layer(60, 100, torch.bfloat16), draw_gradient((60, 100), torch.bfloat16))
    gradient = draw_gradient((60, 100), torch.bfloat16).double()
    v = torch.linalg.eigh(gradient.T @ gradient)[1][:, -8:]
    torch.testing.assert_close(adapter.a.T @ adapter.a, (10 / 16 * v @ v.T).float(), rtol=1e-4, atol=1e-5)


def test_twice_the_rank_must_fit(kit, generator):
    method = LoRAGA(LoRAGAConfig(r=31))
    with pytest.raises(ConfigError, match=r"lora-ga: r=31.*60 inputs and 100 outputs.*r <= 30"):
        method.trainable_parameters(60, 100)
    with pytest.raises(ConfigError, match=r"r=31"):
        method.adapter(kit.build_layer(60, 100), generator)
    assert LoRAGA(LoRAGAConfig(r=30)).trainable_parameters(60, 100) == 4800


def test_a_broken_gradient_is_named(kit):
    gradient = draw_gradient((60, 100))
    gradient[3, 4] = float("nan")
    with pytest.raises(HarnessError, match="'q' is not finite"):
        calibrated(LoRAGA(), kit.build_layer(60, 100), gradient)


def test_only_runs_when_asked_for():
    assert not LoRAGA.traits.in_all

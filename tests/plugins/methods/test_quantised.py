"""QLoRA, LoftQ and QPiSSA: what is quantised, what makes up for it, and everything else as LoRA."""

from __future__ import annotations

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.loftq import LoftQ, LoftQConfig
from harness_plugins.methods.lora import LoRAConfig
from harness_plugins.methods.qlora import QLoRA
from harness_plugins.methods.qpissa import QPiSSA
from harness_plugins.nf4 import NF4, dequantise, quantise

METHODS = pytest.mark.parametrize("method", [QLoRA, LoftQ, QPiSSA], ids=lambda method: method.name)


def build(kit, method, layer, generator, **values):
    config = LoRAConfig if method is QLoRA else LoftQConfig
    return method(config(**{"r": 5, "alpha": 12.0, **values})).adapter(layer, generator)


def nf4(matrix):
    return dequantise(quantise(matrix), tuple(matrix.shape), matrix.dtype)


def top(matrix, r):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :r] @ torch.diag(s[:r]) @ vh[:r]


def nuclear(matrix):
    return torch.linalg.svdvals(matrix).sum()


def spectral_layer(kit, size=128, power=0.7):
    """Return a layer whose singular values fall as i ** -power, with random vectors."""
    layer = kit.build_layer(size, size)
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64)).Q for _ in range(2))
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    layer.weight.data.copy_(left @ torch.diag(values) @ right.T)
    return layer


@METHODS
def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator, method):
    layer = kit.build_layer(*shape)

    def dense(t, weight, x):
        quantised = dequantise(NF4(t["codes"], t["largest"]), tuple(weight.shape), weight.dtype)
        return x @ (quantised + 12 / 5 * t["b"] @ t["a"]).T

    kit.check_against_dense(build(kit, method, layer, generator), layer, dense)


@METHODS
def test_size(kit, shape, generator, method):
    layer = kit.build_layer(*shape)
    adapter = build(kit, method, layer, generator, r=3)
    live = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert live == 3 * sum(shape)
    assert method(type(method().config)(r=3)).trainable_parameters(60, 100) == 480


def test_qlora_starts_as_the_quantised_weight(kit, shape, generator):
    layer = kit.build_layer(*shape)
    adapter = build(kit, QLoRA, layer, generator)
    torch.testing.assert_close(layer.weight + adapter.delta_weight(), nf4(layer.weight))


@pytest.mark.parametrize("alpha", [5.0, 12.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_loftq_alternates_quantising_and_decomposing(kit, shape, generator, alpha, iterations):
    weight = kit.build_layer(*shape).weight
    adapter = build(kit, LoftQ, kit.build_layer(*shape), generator, alpha=alpha, iterations=iterations)
    product = torch.zeros_like(weight)
    for _ in range(iterations):
        quantised = nf4(weight - product)
        product = top(weight - quantised, 5)
    torch.testing.assert_close(alpha / 5 * adapter.b @ adapter.a, product, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(adapter.weight(torch.float64), quantised, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [5.0, 12.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_qpissa_decomposes_first(kit, shape, generator, alpha, iterations):
    weight = kit.build_layer(*shape).weight
    adapter = build(kit, QPiSSA, kit.build_layer(*shape), generator, alpha=alpha, iterations=iterations)
    rest = weight
    for _ in range(iterations):
        product = top(rest, 5)
        quantised = nf4(weight - product)
        rest = weight - quantised
    torch.testing.assert_close(alpha / 5 * adapter.b @ adapter.a, product, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(adapter.weight(torch.float64), quantised, rtol=1e-6, atol=1e-7)


def test_on_a_falling_spectrum_qpissa_errs_less_than_loftq_and_that_less_than_qlora(kit, generator):
    """In the nuclear norm, at the start. On a flat spectrum LoftQ may win: the gain comes from the spectrum."""
    layer = spectral_layer(kit)
    errors = {}
    for method in (QLoRA, LoftQ, QPiSSA):
        values = {} if method is QLoRA else {"iterations": 1}
        errors[method.name] = nuclear(build(kit, method, layer, generator, r=4, **values).delta_weight())
    assert errors["qpissa"] < 0.9 * errors["loftq"] < 0.95 * errors["qlora"]


@METHODS
def test_stacked_equals_alone(kit, method):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: build(kit, method, layer, torch.Generator().manual_seed(seed)))


@METHODS
def test_low_precision(kit, method):
    kit.check_low_precision(method())


@pytest.mark.parametrize("method", [LoftQ, QPiSSA], ids=lambda method: method.name)
def test_a_rank_above_the_layers_is_refused(kit, generator, method):
    with pytest.raises(ConfigError, match=rf"{method.name}: r=61.*r <= 60"):
        method(LoftQConfig(r=61)).adapter(kit.build_layer(100, 60), generator)

"""MELoRA against block-diagonal matrices written out by hand."""

import math

import pytest
import torch
from torch import nn

from harness import ConfigError
from harness_plugins.methods.melora import MELoRA, MELoRAConfig, harness_register_methods

SHAPES = [(12, 20, 2), (12, 20, 4), (60, 100, 5), (128, 344, 8), (344, 128, 8), (7, 5, 1)]


def build(in_features, out_features, seed=0, dtype=torch.float64, random_b=True, **config):
    """Return a frozen layer and its adapter, with B drawn at random so that the update is not zero."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(in_features, out_features, bias=False, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    adapter = MELoRA(MELoRAConfig(**config)).adapter(layer, generator)
    if random_b:
        with torch.no_grad():
            adapter.b.copy_(torch.randn(adapter.b.shape, generator=generator))
    return layer, adapter


def dense_update(a, b, scale, in_features, out_features):
    """Return the block-diagonal update, one slice after the other."""
    n = len(a)
    rows, columns = out_features // n, in_features // n
    update = torch.zeros(out_features, in_features, dtype=a.dtype)
    for k in range(n):
        update[k * rows : (k + 1) * rows, k * columns : (k + 1) * columns] = scale * b[k] @ a[k]
    return update


@pytest.mark.parametrize(("in_features", "out_features", "n"), SHAPES)
@pytest.mark.parametrize("r", [1, 3, 8])
def test_forward_gradients_and_delta_are_those_of_the_dense_matrix(in_features, out_features, n, r):
    layer, adapter = build(in_features, out_features, n=n, r=r)
    a, b = (p.detach().clone().requires_grad_() for p in (adapter.a, adapter.b))
    x = torch.randn(2, 3, in_features, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    weights = torch.randn(2, 3, out_features, dtype=torch.float64)

    got = adapter(x, x @ layer.weight.T)
    expected = y @ (layer.weight + dense_update(a, b, 16 / r, in_features, out_features)).T
    (got * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-10)
    for mine, reference in ((x.grad, y.grad), (adapter.a.grad, a.grad), (adapter.b.grad, b.grad)):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(
        adapter.delta_weight(), dense_update(a, b, 16 / r, in_features, out_features), rtol=1e-12, atol=1e-12
    )


def test_n_minis_reach_n_times_the_rank():
    _, adapter = build(60, 100, n=5, r=3)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) == 15


@pytest.mark.parametrize(("in_features", "out_features", "n"), SHAPES)
@pytest.mark.parametrize("r", [1, 4])
def test_the_count_does_not_depend_on_n(in_features, out_features, n, r):
    _, adapter = build(in_features, out_features, n=n, r=r)
    counted = sum(p.numel() for p in adapter.parameters())
    assert counted == r * (in_features + out_features)
    assert counted == MELoRA(MELoRAConfig(n=n, r=r)).trainable_parameters(in_features, out_features)


@pytest.mark.parametrize(("r", "published"), [(8, 294_912), (1, 36_864)])
def test_counts_of_roberta_base_query_and_value_are_the_published_ones(r, published):
    assert 12 * 2 * MELoRA(MELoRAConfig(n=2, r=r)).trainable_parameters(768, 768) == published


def test_equivalent_rank_is_shared_by_the_minis():
    method = MELoRA(MELoRAConfig(n=4, r=8, rank_convention="equivalent"))
    assert method.trainable_parameters(12, 20) == 8 * (12 + 20) // 4
    adapter = method.adapter(nn.Linear(12, 20, bias=False), torch.Generator())
    assert adapter.a.shape == (4, 2, 3)
    assert adapter.b.shape == (4, 5, 2)
    assert adapter.scale == 16 / 2


@pytest.mark.parametrize(("r", "scale"), [(8, 2.0), (1, 16.0)])
def test_the_scale_is_alpha_over_the_mini_rank(r, scale):
    _, adapter = build(64, 64, n=8, r=r)
    assert adapter.scale == scale


def test_it_starts_as_the_pretrained_layer_with_a_drawn_for_the_slice():
    layer, adapter = build(400, 100, n=4, r=8, random_b=False)
    x = torch.randn(3, 400, dtype=torch.float64)
    assert torch.equal(adapter(x, layer(x)), layer(x))
    assert not adapter.b.any()
    bound = 1 / math.sqrt(400 / 4)
    assert adapter.a.abs().max() <= bound
    assert adapter.a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_an_n_that_does_not_divide_names_the_layer_and_the_divisors():
    method = MELoRA(MELoRAConfig(n=5))
    message = "n=5.*in_features=12, out_features=20.*among 1, 2, 4$"
    with pytest.raises(ConfigError, match=message):
        method.trainable_parameters(12, 20)
    with pytest.raises(ConfigError, match=message):
        method.adapter(nn.Linear(12, 20), torch.Generator())


def test_an_equivalent_rank_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="r=6 cannot be shared by n=4"):
        MELoRAConfig(n=4, r=6, rank_convention="equivalent")


def test_dropout_acts_on_the_update_only_and_in_training_only():
    layer, adapter = build(12, 20, dropout=0.5)
    x = torch.randn(4, 12, dtype=torch.float64)
    base = x @ layer.weight.T
    dropped = adapter(x, base)
    kept = adapter.eval()(x, base)
    assert not torch.allclose(dropped, kept)
    torch.testing.assert_close(kept, x @ (layer.weight + adapter.delta_weight()).T)
    # With the update zero, dropout has nothing to act on.
    nn.init.zeros_(adapter.b)
    assert torch.equal(adapter.train()(x, base), base)


def test_a_bfloat16_layer_keeps_float32_parameters_and_bfloat16_output():
    layer, adapter = build(12, 20, dtype=torch.bfloat16)
    assert adapter.a.dtype == adapter.b.dtype == torch.float32
    x = torch.randn(5, 12, dtype=torch.bfloat16)
    output = adapter(x, layer(x))
    assert output.dtype == torch.bfloat16
    expected = layer(x).float() + x.float() @ adapter.delta_weight().T
    torch.testing.assert_close(output.float(), expected, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shared_input", [True, False])
def test_three_adapters_stacked_equal_one_at_a_time(kit, dropout, shared_input):
    kit.check_stacks(lambda seed: build(60, 100, seed, n=5, r=3, dropout=dropout)[1], shared_input)


def test_the_same_seed_draws_the_same_adapter():
    one, two, other = (build(12, 20, seed, random_b=False)[1].a for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_it_is_registered():
    assert harness_register_methods() == [MELoRA]

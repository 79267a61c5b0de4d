"""Random and middle SVD: which triplets are taken out of the weight, and everything else as MiLoRA."""

from __future__ import annotations

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.middle_svd import MiddleSVD
from harness_plugins.methods.milora import MiLoRAConfig
from harness_plugins.methods.random_svd import RandomSVD

METHODS = pytest.mark.parametrize("method", [RandomSVD, MiddleSVD], ids=lambda method: method.name)


def taken_out(layer, adapter, scale=1.0):
    """Return which singular values of the weight are those of the pair, ascending places."""
    values = torch.linalg.svdvals(layer.weight)
    pair = torch.linalg.svdvals(scale * adapter.b @ adapter.a)[: adapter.a.shape[0]]
    return sorted(int((values - each).abs().argmin()) for each in pair), pair


@METHODS
def test_output_gradients_and_merge_follow_the_formula(kit, shape, generator, method):
    def dense(t, weight, x):
        return x @ (weight + (12 / 5) * (t["b"] @ t["a"] - t["b0"] @ t["a0"])).T

    layer = kit.build_layer(*shape)
    kit.check_against_dense(method(MiLoRAConfig(r=5, alpha=12)).adapter(layer, generator), layer, dense)


@METHODS
@pytest.mark.parametrize("alpha", [5.0, 12.0])
def test_the_pair_starts_as_singular_triplets_and_the_residual_lacks_them(kit, shape, generator, method, alpha):
    layer = kit.build_layer(*shape)
    adapter = method(MiLoRAConfig(r=5, alpha=alpha)).adapter(layer, generator)
    places, pair = taken_out(layer, adapter, alpha / 5)
    values = torch.linalg.svdvals(layer.weight)
    torch.testing.assert_close(pair, values[places], rtol=1e-10, atol=1e-10)
    residual = torch.linalg.svdvals(layer.weight - alpha / 5 * adapter.b @ adapter.a)
    rest = [each for place, each in enumerate(values) if place not in places]
    torch.testing.assert_close(residual[: len(rest)], torch.stack(rest), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(adapter.a @ adapter.a.T, adapter.b.T @ adapter.b, rtol=1e-9, atol=1e-9)


def test_the_middle_is_the_middle(kit, generator):
    layer = kit.build_layer(60, 100)
    assert taken_out(layer, MiddleSVD(MiLoRAConfig(r=4)).adapter(layer, generator))[0] == [28, 29, 30, 31]
    assert taken_out(layer, MiddleSVD(MiLoRAConfig(r=5)).adapter(layer, generator))[0] == [27, 28, 29, 30, 31]


def test_random_triplets_differ_with_the_seed_and_the_layer_and_cover_the_spectrum(kit):
    layer, draw = kit.build_layer(60, 100), torch.Generator().manual_seed(3)
    chosen = [taken_out(layer, RandomSVD(MiLoRAConfig(r=5)).adapter(layer, draw))[0] for _ in range(40)]
    assert len({tuple(each) for each in chosen}) > 35
    assert all(len(set(each)) == 5 for each in chosen)
    assert len({place for each in chosen for place in each}) > 50
    again = RandomSVD(MiLoRAConfig(r=5)).adapter(layer, torch.Generator().manual_seed(3))
    assert taken_out(layer, again)[0] == chosen[0]


@METHODS
def test_size_and_identity_at_the_start(kit, shape, generator, method):
    kit.check_size_and_identity(method(MiLoRAConfig(r=3)), kit.build_layer(*shape), generator)
    assert method(MiLoRAConfig(r=3)).trainable_parameters(60, 100) == 480


@METHODS
def test_stacked_equals_alone(kit, method):
    layer = kit.build_layer(60, 100)
    kit.check_stacks(lambda seed: method(MiLoRAConfig(r=4)).adapter(layer, torch.Generator().manual_seed(seed)))


@METHODS
def test_low_precision(kit, method):
    kit.check_low_precision(method())


@METHODS
def test_a_rank_above_the_layers_is_refused(kit, generator, method):
    with pytest.raises(ConfigError, match=rf"{method.name}: r=61.*r <= 60"):
        method(MiLoRAConfig(r=61)).adapter(kit.build_layer(100, 60), generator)

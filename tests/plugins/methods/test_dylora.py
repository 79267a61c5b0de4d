"""DyLoRA: what an update of a drawn rank computes and trains, and every truncation."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from harness import ConfigError
from harness_plugins.methods.dylora import DyLoRA, DyLoRAConfig


def build(kit, generator, **settings):
    layer = kit.build_layer(60, 100)
    return layer, kit.disturb(DyLoRA(DyLoRAConfig(r=5, alpha=12, **settings)).adapter(layer, generator))


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_output_and_gradients_of_a_drawn_rank_follow_the_formula(kit, shape, generator, rank):
    layer = kit.build_layer(*shape)
    adapter = DyLoRA(DyLoRAConfig(r=5, alpha=12, update="all")).adapter(layer, generator)
    adapter.draw((rank - 0.5) / 5)

    def dense(t, weight, x):
        return x @ (weight + 12 / rank * t["b"][:, :rank] @ t["a"][:rank]).T

    kit.check_against_dense(adapter, layer, dense, merges=False)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_of_a_row_s_update_only_that_row_has_a_gradient(kit, generator, rank):
    layer, adapter = build(kit, generator)
    adapter.draw((rank - 0.5) / 5)
    a, b = adapter.a.detach().clone().requires_grad_(), adapter.b.detach().clone().requires_grad_()
    x = torch.randn(4, 60, dtype=torch.float64, generator=generator)
    expected = x @ (layer.weight + 12 / rank * b[:, :rank] @ a[:rank]).T
    output = adapter(x, x @ layer.weight.T)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    # The earlier rows are constants of the same product, so the last row's gradient is the one of the whole.
    expected.square().sum().backward()
    for found, wanted in ((adapter.a.grad, a.grad), (adapter.b.grad.T, b.grad.T)):
        torch.testing.assert_close(found[rank - 1], wanted[rank - 1])
        others = [row for row in range(5) if row != rank - 1]
        assert not found[others].any()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_every_truncation_can_be_evaluated_and_merged(kit, generator, rank):
    layer, adapter = build(kit, generator, evaluation_rank=rank)
    adapter.eval()
    x = torch.randn(4, 60, dtype=torch.float64, generator=generator)
    change = 12 / rank * adapter.b[:, :rank] @ adapter.a[:rank]
    torch.testing.assert_close(adapter(x, x @ layer.weight.T), x @ (layer.weight + change).T)
    torch.testing.assert_close(adapter.delta_weight(), change)
    torch.testing.assert_close(adapter.truncated(rank), change)


def test_without_a_choice_all_of_r_is_evaluated(kit, generator):
    _, adapter = build(kit, generator)
    torch.testing.assert_close(adapter.delta_weight(), 12 / 5 * adapter.b @ adapter.a)


def test_ranks_are_uniform_from_1_to_r_and_the_same_for_layers_of_one_r(kit, generator):
    method = DyLoRA(DyLoRAConfig(r=5))
    adapters = {str(n): method.adapter(kit.build_layer(60, 100, seed=n), generator) for n in (1, 2)}
    info = SimpleNamespace(adapters=adapters, generator=generator)
    seen = Counter()
    for _ in range(2000):
        method.after_step(info)
        ranks = {float(each.rank) for each in adapters.values()}
        assert len(ranks) == 1
        seen.update(ranks)
    assert set(seen) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert max(seen.values()) < 1.25 * 400
    assert min(seen.values()) > 0.75 * 400


def test_the_first_update_s_rank_is_drawn_too_the_same_for_all_layers(kit):
    method, seen = DyLoRA(DyLoRAConfig(r=4)), Counter()
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        ranks = {float(method.adapter(kit.build_layer(8, 6, seed=n), generator).rank) for n in (1, 2)}
        assert len(ranks) == 1
        seen.update(ranks)
    assert set(seen) == {1.0, 2.0, 3.0, 4.0}
    assert min(seen.values()) > 30


def test_size_and_identity_at_the_start(kit, shape, generator):
    method = DyLoRA(DyLoRAConfig(r=3))
    kit.check_size_and_identity(method, kit.build_layer(*shape), generator)
    assert method.trainable_parameters(60, 100) == 480


@pytest.mark.parametrize("update", ["row", "all"])
def test_stacked_equals_alone_also_with_other_ranks(kit, update):
    layer = kit.build_layer(60, 100)

    def build(seed):
        adapter = DyLoRA(DyLoRAConfig(update=update)).adapter(layer, torch.Generator().manual_seed(seed))
        adapter.draw((seed - 9.5) / 8)
        return adapter

    kit.check_stacks(build)


def test_low_precision(kit):
    kit.check_low_precision(DyLoRA())


def test_a_rank_of_evaluation_above_r_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation_rank=9.*<= r=8"):
        DyLoRAConfig(evaluation_rank=9)

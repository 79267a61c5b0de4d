"""Full fine-tuning lets every parameter of a private model train, and is a reference outside the budgets."""

import torch
from torch import nn

from harness_plugins.methods.full import FullFineTuning, harness_register_methods


def test_every_parameter_trains_and_nothing_is_added():
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)).requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    FullFineTuning().attach(model, torch.Generator())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(before)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_step_moves_every_parameter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 3)).requires_grad_(False)
    FullFineTuning().attach(model, torch.Generator())
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.arange(7)).square().sum().backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_layer_counts_its_weights():
    assert FullFineTuning().trainable_parameters(12, 20) == 240


def test_it_is_a_reference_without_a_budget():
    traits = FullFineTuning.traits
    assert traits.reference
    assert traits.budget_knob is None
    # UUID experiment of the MoRA paper: 3e-5, in a place where LoRA's grid is centred on 2e-4.
    assert traits.learning_rate_factor == 3e-5 / 2e-4


def test_it_is_registered():
    assert harness_register_methods() == [FullFineTuning]

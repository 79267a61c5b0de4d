"""A slot gives every lane its own rows, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.slots import LinearSlot, delta_weights, present_as_linear, pretrained
from harness.training import evaluating


def test_each_part_sees_the_rows_of_its_lanes_in_order():
    slot = LinearSlot(nn.Linear(2, 2, bias=False))
    nn.init.eye_(slot.linear[0].weight)
    x = torch.arange(12.0).reshape(6, 2)  # three lanes of two rows
    slot.parts = ((lambda x, y: y + 100, 2), (lambda x, y: y + 1000, 1))
    assert torch.equal(slot(x), torch.cat([x[:4] + 100, x[4:] + 1000]))


def test_no_adapter_sees_the_bias_and_all_outputs_have_it():
    slot = LinearSlot(nn.Linear(3, 2))
    layer, x = slot.linear[0], torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    slot.parts = ((lambda x, y: 5 * y, 1),)
    torch.testing.assert_close(slot(x), 5 * x @ layer.weight.T + layer.bias)
    slot.parts = ()
    torch.testing.assert_close(slot(x), x @ layer.weight.T + layer.bias)


def test_a_transposed_layer_is_presented_as_linear_over_the_same_memory():
    layer = Conv1D(5, 3)  # three features in, five out
    view = present_as_linear(layer)
    assert (view.in_features, view.out_features) == (3, 5)
    assert view.weight.data_ptr() == layer.weight.data_ptr()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(view(x), layer(x))


def test_the_pretrained_model_is_back_for_a_while_and_then_gone_even_after_a_failure(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    kit.run(base, [lane])
    ids = torch.arange(3, 13)[None]
    expected = base.model(input_ids=ids).logits
    with evaluating(base, lane) as model:
        tuned = model(input_ids=ids).logits
        with pretrained(model):
            assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids).logits, tuned)
        with pytest.raises(IndexError), pretrained(model):
            model(input_ids=ids + 40)  # the model knows 40 tokens
        assert torch.equal(model(input_ids=ids).logits, tuned)
    assert not torch.allclose(tuned, expected)


def test_weight_changes_are_those_of_the_trial_at_work(kit):
    base = kit.make_base()
    lanes = [kit.make_lane(base, name) for name in ("lora", "mora")]
    kit.run(base, lanes)
    assert not delta_weights(base.model), "nobody is at work"
    for lane in lanes:
        with evaluating(base, lane) as model:
            found = delta_weights(model)
        assert found.keys() == lane.adapters.keys()
        assert all(torch.equal(found[name], adapter.delta_weight()) for name, adapter in lane.adapters.items())

"""A slot gives every lane its own rows, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Mamba2Config, Mamba2ForCausalLM
from transformers.pytorch_utils import Conv1D

from harness.engine.layers import present_as_linear
from harness.engine.slots import LinearSlot, ModuleSlot, delta_weights, pretrained
from harness.engine.training import evaluating
from harness.errors import HarnessError


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


class Gated(nn.Module):
    """Scales by a second input, if there is one."""

    def forward(self, x, gate=None):
        return x if gate is None else x * gate


@pytest.mark.parametrize("passed", ["by place", "by name"])
def test_a_module_of_two_inputs_is_not_trained_on_the_first_alone(passed):
    slot = ModuleSlot(Gated())
    x, gate = torch.arange(6.0).reshape(3, 2), torch.full((3, 2), 7.0)

    def call(gate):
        return slot(x, gate) if passed == "by place" else slot(x, gate=gate)

    assert torch.equal(call(gate), 7 * x), "without lanes it is the pretrained module"
    slot.parts = ((lambda x: x + 100, 1),)
    assert torch.equal(call(None), x + 100), "an input that is not there is none"
    with pytest.raises(HarnessError, match=r"a Gated takes more than one input.*`trains`"):
        call(gate)


def test_a_model_whose_norms_are_gated_neither_trains_nor_evaluates_them(kit):
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=40, hidden_size=16, num_heads=4, head_dim=8, state_size=4, num_hidden_layers=1, n_groups=1,
        expand=2, chunk_size=4,
    )  # fmt: skip
    base = kit.make_base(("*norm",), model=Mamba2ForCausalLM(config).requires_grad_(False))
    lane = kit.make_lane(base, "lora")
    with pytest.raises(HarnessError, match="takes more than one input"):
        kit.run(base, [lane])
    with pytest.raises(HarnessError, match="takes more than one input"), evaluating(base, lane) as model:
        model(input_ids=torch.arange(3, 9)[None])


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

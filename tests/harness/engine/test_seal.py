"""The seal on a base model's weights."""

from __future__ import annotations

import pytest
import torch

from harness.engine.resident import Base
from harness.engine.seal import Seal, _sum


@pytest.fixture
def make_base(kit):
    def of(quantize=""):
        model = kit.language_model().float()
        return Base(model, kit.ToyTask(), "float32", quantize=quantize, device=torch.device("cpu"))

    return of


@pytest.mark.parametrize("quantize", ["", "nf4"])
def test_whatever_is_written_to_a_frozen_weight_is_seen(make_base, quantize):
    base = make_base(quantize=quantize)
    name, slot = next(iter(base.linear_slots.items()))
    seal = Seal(base)
    assert seal.broken() == ""
    layer = slot.linear[0]
    own, tensor = next(iter((*layer.named_parameters(), *layer.named_buffers())))
    kept = tensor.detach().clone()
    tensor.data.view(-1)[3] += 1  # past autograd's version counter
    assert seal.broken() == f"{name}.{own}"
    tensor.data.copy_(kept)
    assert seal.broken() == ""


def test_a_weight_that_was_replaced_is_seen(make_base):
    base = make_base()
    seal = Seal(base)
    name, slot = next(iter(base.linear_slots.items()))
    slot.linear[0].weight = torch.nn.Parameter(2 * slot.linear[0].weight)
    assert seal.broken() == f"{name}.weight"


def test_weights_beside_the_adapted_layers_are_sealed_too(make_base):
    base = make_base()
    seal = Seal(base)
    base.model.get_input_embeddings().weight.data[5, 2] = 0.25
    assert "embed" in seal.broken()


@pytest.mark.parametrize("count", [0, 1, 3, 7, 8])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_a_sum_is_of_tensors_of_every_size_and_place(count, dtype):
    values = torch.arange(count + 1).to(dtype)
    before = int(_sum(values[1:]))
    assert int(_sum(values[1:])) == before
    if count:
        values[-1] = 100
        assert int(_sum(values[1:])) != before

"""What evaluation reads: the right values in the right precision, and one lane's after another's in the same place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import Adapter
from harness.engine import decoder, decoding
from harness.engine.readers import Readers
from harness.engine.slots import reading
from harness.engine.training import evaluating
from harness.planning.registry import build_registry

METHODS = sorted(name for name, method in build_registry().methods.items() if not method.traits.reference)
IDS = torch.tensor([[5, 9, 30, 7, 12], [8, 3, 3, 21, 4]])


def outputs(base, readers):
    for place, reader in readers.items():
        base.slots[place].parts = ((reader, 1),)
    with torch.no_grad():
        logits = base.model(input_ids=IDS.to(base.device)).logits
    base.clear()
    return logits


def moved(lane, seed):
    """Return a lane's modules after values of their own were put into all that trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lane.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return {name: module.eval() for name, module in lane.trained().items()}


@pytest.mark.parametrize("name", METHODS)
def test_another_lane_is_read_in_the_place_of_the_last(kit, name):
    base = kit.make_base(("norm",))
    first, second = (moved(kit.make_lane(base, name, seed=seed), seed) for seed in (0, 1))
    readers = Readers(first, base.dtype, copies=True)
    expected = [outputs(base, Readers(modules, base.dtype, copies=False)) for modules in (first, second)]
    assert not torch.equal(*expected)
    assert torch.equal(outputs(base, readers), expected[0])
    places = {id(tensor) for tensor in readers._values.values()}
    assert readers.take(second)
    assert torch.equal(outputs(base, readers), expected[1])
    assert {id(tensor) for tensor in readers._values.values()} == places
    assert all(readers[place].modules == [module] for place, module in second.items())
    assert torch.equal(outputs(base, Readers(first, base.dtype, copies=False)), expected[0]), "nobody else has changed"


def test_values_are_rounded_but_for_those_that_are_kept(kit):
    class Kept(Adapter):
        keep_float32 = ("exact",)

        def __init__(self):
            nn.Module.__init__(self)
            self.exact, self.low = nn.Parameter(torch.tensor([1 / 3])), nn.Parameter(torch.tensor([1 / 3]))
            self.register_buffer("count", torch.tensor([2]))

        def forward(self, x, base_output):
            return (self.exact.double() + 10 * self.low.double() + 100 * self.count).to(torch.float64)

    third = torch.tensor([1 / 3])
    for copies in (False, True):
        readers = Readers({"a": Kept()}, torch.bfloat16, copies)
        found = readers["a"]._twin.forward(third, third)
        assert torch.equal(found, third.double() + 10 * third.bfloat16().double() + 200)


class Scaled(nn.Module):
    def __init__(self, scale=1.0, shared=None, sizes=(2, 3)):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.other = self.weight if shared is None else nn.Parameter(torch.ones(2))
        self.scale, self.sizes = scale, sizes


def changed(change):
    module = Scaled()
    change(module)
    return module


@pytest.mark.parametrize(
    "other",
    [
        Scaled(scale=2.0), Scaled(shared=False), Scaled(sizes=(2, 4)), Scaled(sizes=[2, 3]), nn.Linear(2, 2),
        changed(lambda m: setattr(m, "more", torch.ones(1))), changed(lambda m: m.register_buffer("b", torch.ones(1))),
        changed(lambda m: setattr(m, "weight", nn.Parameter(torch.ones(3)))), changed(lambda m: m.train(False)),
        changed(lambda m: m.double()), changed(lambda m: setattr(m, "turn", lambda x: x)),
    ],
)  # fmt: skip
def test_modules_that_are_not_alike_are_not_read_in_the_place_of_others(other):
    readers = Readers({"a": Scaled()}, torch.float32, copies=True)
    assert not readers.take({"a": other})
    assert not readers.take({"b": Scaled()})
    assert not readers.take({"a": Scaled(), "b": Scaled()})
    assert readers.take({"a": Scaled()})
    assert not Readers({"a": Scaled()}, torch.float32, copies=False).take({"a": Scaled()}), "it would write to the lane"


def test_what_is_no_plain_value_is_like_nothing_but_itself():
    one, other = object(), object()
    first, same, different = (
        changed(lambda m, v=value: setattr(m, "helper", (v, {"k": v}))) for value in (one, one, other)
    )
    readers = Readers({"a": first}, torch.float32, copies=True)
    assert readers.take({"a": same})
    assert not readers.take({"a": different})


def test_decoders_live_as_long_as_what_they_were_made_with(kit):
    base = kit.make_base()
    assert decoder.kept_decoders(base.model) is not decoder.kept_decoders(base.model), "nobody's, so the caller's own"
    with evaluating(base, kit.make_lane(base, "lora")) as model:
        kept = decoder.kept_decoders(model)
        assert decoder.kept_decoders(model) is kept
        before = len(decoder._kept)
    base.forget()
    assert len(decoder._kept) == before - 1


def test_whoever_trains_next_finds_no_memory_held(kit):
    base = kit.make_base()
    lane = kit.make_lane(base, "lora")
    with evaluating(base, lane) as model:
        decoder.kept_decoders(model)
        before = len(decoder._kept)
    kit.run(base, [lane])
    assert len(decoder._kept) < before


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lora", "dora", "mora", "melora", "relora", "remora", "pissa"])
def test_a_gpu_decodes_lanes_one_after_another_with_one_captured_step(kit, name, gpu, monkeypatch, caplog):
    tokenizer = type("Tokenizer", (), {"pad_token_id": 0, "eos_token_id": 1})()
    prompts = [[5, 9, 30, 7], [8, 3], [21, 4, 11], [2, 17, 6, 3, 9]]
    base = kit.make_base(device=str(gpu), precision="bfloat16")
    lanes = [kit.make_lane(base, name, seed=seed) for seed in range(3)]
    for seed, lane in enumerate(lanes):
        moved(lane, seed)
    captured = []
    monkeypatch.setattr(decoder, "capture", lambda *a, original=decoder.capture: captured.append(a) or original(*a))

    def written(lane):
        with evaluating(base, lane) as model:
            assert reading(model) is not None
            return decoding.generate(model, tokenizer, prompts, 12, 2, 12)

    alone = []
    for lane in lanes:
        alone.append(written(lane))
        base.forget()
    captured.clear()
    together = [written(lane) for lane in lanes for _ in range(2)]
    assert together == [each for each in alone for _ in range(2)]
    assert len(captured) == 1
    assert len({str(each) for each in alone}) == 3, "they write different things"
    assert not caplog.records

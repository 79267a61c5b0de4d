"""A base in 4 bits against one whose weights were replaced by those that the 4 bits stand for."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load
from torch import nn

from harness import Method, MethodTraits
from harness.contract.trial import Trial
from harness.engine import nf4
from harness.engine.build import build_lane
from harness.engine.checkpoint import save_lane
from harness.engine.nf4 import dequantise_nf4, dequantise_scales, fused, quantise_nf4, quantise_scales
from harness.engine.quantised import KINDS, QuantisedLinear, bytes_of, round_weights
from harness.engine.resident import Base
from harness.engine.shared import Shared
from harness.engine.slots import pretrained
from harness.engine.trained import TrainedTrial
from harness.engine.training import evaluating
from harness.errors import BudgetError
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.suite import build_suite

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantised(kit, kind):
    return Base(kit.language_model().float(), kit.ToyTask(), "float32", quantize=kind, device=CPU)


def rounded(kit, kind):
    model = kit.language_model().float()
    names = Base(kit.language_model().float(), kit.ToyTask(), "float32").layers
    round_weights(model, names, kind)
    return Base(model, kit.ToyTask(), "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_one_with_rounded_weights(kit, kind):
    ids = torch.arange(3, 20)[None]
    found, expected, plain = (
        base.model(input_ids=ids).logits
        for base in (
            quantised(kit, kind),
            rounded(kit, kind),
            Base(kit.language_model().float(), kit.ToyTask(), "float32"),
        )
    )
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "mora", "adalora", "lora-ga", "relora", "delta-lora"])
def test_what_trains_on_it_is_what_trains_on_the_rounded_weights(kit, name, kind):
    lanes = []
    for base in (quantised(kit, kind), rounded(kit, kind)):
        lanes.append(kit.make_lane(base, name, steps=4))
        kit.run(base, [lanes[-1]])
    found, expected = lanes
    assert found.error is None
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
    for key, value in expected.state().items():
        torch.testing.assert_close(found.state()[key], value, rtol=1e-4, atol=1e-5)


def test_lanes_of_several_methods_share_it_and_train_as_alone(kit):
    base = quantised(kit, "nf4")
    names = ["lora", "lora", "dora", "mora"]
    together = [kit.make_lane(base, name, seed=seed, steps=4) for seed, name in enumerate(names)]
    kit.run(base, together)
    for lane, (seed, name) in zip(together, enumerate(names), strict=True):
        base = quantised(kit, "nf4")
        alone = kit.make_lane(base, name, seed=seed, steps=4)
        kit.run(base, [alone])
        assert lane.pack_lanes == 4
        assert [each["metrics"]["train/loss"] for each in lane.history] == pytest.approx(
            [each["metrics"]["train/loss"] for each in alone.history], rel=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_trains_the_rounded_weights_are_scored(kit, kind):
    found = []
    for base in (quantised(kit, kind), rounded(kit, kind)):
        lane = kit.make_lane(base, "frozen")
        kit.run(base, [lane])
        with evaluating(base, lane) as model:
            found.append(model(input_ids=torch.arange(3, 20)[None]).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["dora", "frozen"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_classifier_with_biases_and_a_head_that_trains(kit, kind, name):
    histories = []
    for quantize in ("nf4", ""):
        model, task = kit.classifier(kind).float(), kit.ToyClassification()
        if not quantize:
            names = Base(kit.classifier(kind).float(), task, "float32").layers
            round_weights(model, names, "nf4")
        base = Base(model, task, "float32", quantize=quantize)
        lane = kit.make_lane(base, name, steps=4)
        kit.run(base, [lane])
        assert lane.modules or lane.masters
        assert len(lane.history) == 4
        histories.append([each["metrics"]["train/loss"] for each in lane.history])
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


def test_lora_on_it_is_qlora(kit):
    lanes = []
    for base, name in (
        (quantised(kit, "nf4"), "lora"),
        (Base(kit.language_model().float(), kit.ToyTask(), "float32"), "qlora"),
    ):
        lanes.append(kit.make_lane(base, name, steps=4))
        kit.run(base, [lanes[-1]])
    on_it, beside = lanes
    for key, value in on_it.state().items():
        torch.testing.assert_close(beside.state()[key], value, rtol=1e-4, atol=1e-6)


def test_a_trial_on_it_is_planned_trained_and_rebuilt():
    registry = build_registry(block=["trackers:mlflow"])
    asked = {"tasks": ["uuid"], "methods": ["lora"], "quantize": "nf4", "recipe": {"steps": 2, "pairs": 8}}
    (cell,) = plan_cells(build_suite(asked), registry, None, "float32")
    assert "28 linear layers are kept in 4 bits (nf4): 0.5 MB" in cell.notes[-1]
    trial = cell.trial(cell.rates[0], 0, "report")
    assert trial.quantize == Trial.from_json(trial.to_json()).quantize == "nf4"
    assert trial.id != replace(trial, quantize="").id
    method, task = registry.method("lora"), registry.task("uuid")()
    shared = Shared(CPU)
    lane, base = shared.lane(trial, method, task), shared.base(trial, task)
    with torch.no_grad():
        for adapter in lane.adapters.values():
            adapter.b.normal_(std=0.1)
    ids = torch.arange(3, 20)[None]
    with evaluating(base, lane) as model:
        expected = model(input_ids=ids).logits
    rebuilt = TrainedTrial(trial, method, task, lane.state())
    with torch.no_grad():
        for name, update in rebuilt.updates():
            rebuilt.model.get_submodule(name).weight += update
        torch.testing.assert_close(rebuilt.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


class Attached(Method):
    """Train what stands before every text and what is added in the norms, on whatever layers there are."""

    name = "attached"
    paper = "https://example.org"
    traits = MethodTraits(budget_knob=None, mergeable=False)

    def attach(self, model, generator):
        table = model.get_input_embeddings()
        model.prompt = nn.Parameter(torch.randn(4, table.embedding_dim, generator=generator).to(table.weight))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("norm" in name or name == "prompt")

        def before(body, args, given):
            embeddings = table(given.pop("input_ids"))
            given["inputs_embeds"] = torch.cat([model.prompt.expand(len(embeddings), -1, -1), embeddings], 1)
            if (mask := given.get("attention_mask")) is not None:
                given["attention_mask"] = torch.cat([mask.new_ones(len(mask), 4), mask], 1)
            return args, given

        def after(body, args, output):
            output.last_hidden_state = output.last_hidden_state[:, 4:]
            return output

        model.base_model.register_forward_pre_hook(before, with_kwargs=True)
        model.base_model.register_forward_hook(after)


def of_peft(kit, member, **settings):
    kind = kit.registry.families["peft"][member]
    return kind(kind.Config(**{**kind.traits.check_config, **settings}))


def attached_lane(kit, base, method, steps=4):
    frozen = kit.make_lane(base, "frozen", steps=steps)
    trial = replace(frozen.trial, method=method.name, config=asdict(method.config))
    return build_lane(base, trial, method, {}, frozen.context, frozen.data)


def check_attached(kit, method, kind):
    lanes = []
    for base in (quantised(kit, kind), rounded(kit, kind)):
        lanes.append(attached_lane(kit, base, method))
        start = lanes[-1].state()
        kit.run(base, [lanes[-1]])
        assert lanes[-1].error is None
        assert all(not torch.equal(value, lanes[-1].state()[key]) for key, value in start.items() if "norm" in key)
    found, expected = lanes
    assert len(found.history) == 4
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-5)
    for key, value in expected.state().items():
        torch.testing.assert_close(found.state()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_attached_to_it_trains_as_on_the_rounded_weights(kit, kind):
    check_attached(kit, Attached(), kind)
    check_attached(kit, of_peft(kit, "lora", use_dora=True), kind)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("member", "settings"),
    [
        *((member, {}) for member in (
            "beft", "boft", "deft", "delora", "fourierft", "gralora", "hira", "hra", "ia3", "ln_tuning", "loha", "lokr",
            "miss", "oft", "peanut", "psoft", "pvera", "randlora", "tinylora", "unilora", "vera", "waveft",
        )),
        ("c3a", {"block_size": 4}), ("road", {"group_size": 4}), ("vblora", {"vector_length": 4}),
        ("p_tuning", {"num_virtual_tokens": 4}), ("prompt_tuning", {"num_virtual_tokens": 4}),
    ],
)  # fmt: skip
def test_every_method_of_peft_trains_on_it_as_on_the_rounded_weights(kit, member, settings):
    check_attached(kit, of_peft(kit, member, **settings), "nf4")


def test_its_4_bits_are_shared_with_what_is_attached_and_in_no_checkpoint(kit):
    base = quantised(kit, "nf4")
    lane = attached_lane(kit, base, Attached())
    codes = [each.data_ptr() for name, each in base.model.named_buffers() if name.endswith(".codes")]
    assert len(codes) == len(base.layers)
    assert [each.data_ptr() for name, each in lane.private.named_buffers() if name.endswith(".codes")] == codes
    saved = load(save_lane(lane, "stamp"))
    assert not [name for name in saved if "codes" in name or "scale" in name]
    assert "own.prompt" in saved


def test_what_was_attached_is_rebuilt_on_the_rounded_weights():
    registry = build_registry(block=["trackers:mlflow"])
    asked = {"tasks": ["uuid"], "methods": ["peft:lora"], "quantize": "nf4", "recipe": {"steps": 2, "pairs": 8}}
    (cell,) = plan_cells(build_suite(asked), registry, None, "float32")
    trial = cell.trial(cell.rates[0], 0, "report")
    method, task = registry.method("peft:lora"), registry.task("uuid")()
    shared = Shared(CPU)
    lane, base = shared.lane(trial, method, task), shared.base(trial, task)
    with torch.no_grad():
        for name, parameter in lane.private.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.arange(3, 20)[None]
    with evaluating(base, lane) as model:
        expected = model(input_ids=ids).logits
    state = {name: parameter.detach() for name, parameter in lane.private.named_parameters() if parameter.requires_grad}
    merged = TrainedTrial(trial, method, task, state).merged()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_trains_its_weights_or_does_not_know_its_layers_is_refused():
    registry = build_registry(block=["trackers:mlflow"])
    asked = build_suite({"tasks": ["uuid"], "methods": ["full", "peft:glora"], "quantize": "nf4"})
    with pytest.raises(BudgetError) as error:
        plan_cells(asked, registry, None, "float32")
    assert (
        "full: quantize='nf4': it trains the weight of model.layers.0.self_attn.q_proj and of 27 other layers, and "
        "what is kept in 4 bits cannot train" in str(error.value)
    )
    assert "peft:glora: quantize='nf4': peft:glora: PEFT refuses" in str(error.value)
    (cell,) = plan_cells(replace(asked, methods=("frozen",)), registry, None, "float32")
    assert cell.template.quantize == "nf4"


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_kept_as_it_was(kit, kind):
    base = quantised(kit, kind)
    lane = kit.make_lane(base, "lora")
    adapted = {name for name, _ in base.model.named_parameters() if name.split(".weight")[0] in base.layers}
    assert not adapted
    buffers = sum(
        each.numel() * each.element_size()
        for name, each in base.model.named_buffers()
        if name.split(".")[-1] == "codes" or "scale" in name.split(".")[-1]
    )
    assert buffers == bytes_of(base.layers.values(), kind)
    assert base.parameters == 11_832  # counted as they were
    adapter = next(iter(lane.adapters.values()))
    assert not any(isinstance(each, torch.Tensor) for each in adapter._pretrained)
    with pretrained(base.model):
        assert adapter.pretrained_weight.shape == (adapter.out_features, adapter.in_features)


def test_a_base_of_7b_fits_into_6_gb():
    layers = [(4_096, 4_096)] * 4 + [(4_096, 11_008)] * 2 + [(11_008, 4_096)]
    tables = 2 * 2 * 32_000 * 4_096  # embeddings and head, in bfloat16
    dense = 32 * sum(2 * inner * outer for inner, outer in layers)
    assert dense == 12_952_010_752
    assert 32 * bytes_of(layers, "nf4") == dense * 9 // 32  # 4 bits, and 32 for 64 of them
    assert 32 * bytes_of(layers, "nf4") + tables < 4.2e9
    assert 32 * bytes_of(layers, "nf4-double") + tables < 3.9e9


def test_biases_and_gradients_of_the_input_are_those_of_the_rounded_layer():
    layer = nn.Linear(70, 33).requires_grad_(False)
    found = QuantisedLinear(layer, "nf4", CPU)
    dense = nn.Linear(70, 33).requires_grad_(False)
    dense.weight.copy_(found.weight)
    dense.bias.copy_(layer.bias)
    xs = [normal(5, 2, 70).requires_grad_() for _ in range(2)]
    for each, x in zip((found, dense), xs, strict=True):
        each(x).square().sum().backward()
    assert torch.equal(found(xs[0]), dense(xs[1]))
    torch.testing.assert_close(xs[0].grad, xs[1].grad)


@pytest.mark.parametrize("shape", [(64, 64), (33, 70), (1, 1), (300, 65)])
def test_scales_in_8_bits_are_near_those_in_32(shape):
    matrix = normal(*shape)
    codes, largest = quantise_nf4(matrix)
    scales = quantise_scales(largest)
    back = dequantise_scales(scales)
    assert back.shape == largest.shape
    # 3 bits of mantissa: at most a 16th of what is left after the mean; and no more than the group's finest step.
    assert torch.all((back - largest).abs() <= (largest - largest.mean()).abs() / 16 + 1e-2 * scales.coarse.max())
    near = dequantise_nf4(type(quantise_nf4(matrix))(codes, back), shape, matrix.dtype)
    assert (near - matrix).norm() < 1.05 * (
        dequantise_nf4(quantise_nf4(matrix), shape, matrix.dtype) - matrix
    ).norm() + 1e-6


def test_a_matrix_of_zeros_stays_one():
    zeros = nn.Linear(64, 8, bias=False)
    nn.init.zeros_(zeros.weight)
    for kind in KINDS:
        assert not QuantisedLinear(zeros, kind, CPU).weight.any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("shape", [(64, 64), (96, 100), (7, 129), (1, 3)])
def test_the_kernel_of_bitsandbytes_gives_the_same_values(device, shape):
    pytest.importorskip("bitsandbytes")
    kernel = fused(torch.device(device))
    assert kernel is not None
    packed = quantise_nf4(normal(*shape, seed=1).to(device))
    plain = dequantise_nf4(packed, shape, torch.float32).bfloat16()  # in float32 there is no kernel
    assert torch.equal(kernel(*packed, shape), plain)
    assert torch.equal(dequantise_nf4(packed, shape, torch.bfloat16), plain)


def test_without_bitsandbytes_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert fused.__wrapped__(CPU) is None


def test_a_kernel_that_gives_other_values_is_not_used(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(nf4, "quantise_nf4", lambda matrix: quantise_nf4(matrix + 1))
    monkeypatch.setattr(nf4, "pairs", lambda device: torch.zeros(256, 2))
    assert fused.__wrapped__(CPU) is None

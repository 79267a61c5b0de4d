"""Packing must not change results: every lane's losses equal its solo run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from harness.budget import budget_parameters, solve
from harness.errors import TrialDivergedError
from harness.lane import Lane
from harness.pack import Pack
from harness.registry import build_registry
from harness.resident import Base
from harness.task import Evaluation, Example, Metric, ModelKind, Recipe, Task, TaskContext, TaskData
from harness.training import evaluating, train
from harness.trial import Trial

REGISTRY = build_registry()
PACKABLE = [name for name, method in REGISTRY.methods.items() if not method.traits.reference]


class ToyTask(Task):
    """Random tokens of different lengths; the score is the mean absolute weight change."""

    name = "toy"
    main_metric = "loss"
    metrics: Mapping[str, Metric] = {"loss": Metric("Loss", "nats", False, "Mean training loss.")}
    recipes: Mapping[str, Recipe] = {"smoke": Recipe(steps=12, batch_size=3, learning_rate=1e-2)}

    def load(self, context: TaskContext) -> TaskData:
        generator = torch.Generator().manual_seed(context.seed)
        lengths = torch.randint(5, 12, (10,), generator=generator).tolist()
        rows = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]
        return TaskData([Example(row, [-100, -100, *row[2:]]) for row in rows], {"validation": rows, "test": rows})

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        ids = torch.tensor([row[:5] for row in split], device=model.device)
        logits = model(input_ids=ids).logits
        return Evaluation({"loss": float(logits.square().mean())})


@dataclass
class Tokenizer:
    pad_token_id: int = 0


class Recorder:
    """Keeps every loss of every lane, at full precision."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {}
        self.finished_lanes: list[Lane] = []

    def progress(self, lane: Lane, step: int, metrics: Mapping[str, float]) -> None:
        self.losses.setdefault(lane.trial.id, []).append(metrics["train/loss"])

    def finished(self, lane: Lane) -> None:
        self.finished_lanes.append(lane)


def make_base(
    trains: tuple[str, ...] = (), precision: str = "float32", device: str = "cpu", recomputes: bool = False
) -> Base:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).requires_grad_(False)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    task = type("Toy", (ToyTask,), {"trains": trains})()
    return Base(model.to(device), task, precision, recomputes=recomputes)


def make_lane(base: Base, method_name: str, learning_rate: float = 1e-2, seed: int = 0, **recipe: Any) -> Lane:
    kind = REGISTRY.method(method_name)
    budget = budget_parameters("lora:r=2", base.layers, base.parameters, REGISTRY)
    reference = kind.traits.reference
    solution = None if reference else solve(kind, kind.Config(), budget, base.layers, 0.05)
    config = kind.Config() if solution is None else solution.config
    settings = {} if solution is None else solution.layer_settings
    chosen = replace(ToyTask.recipes["smoke"], **recipe)
    trial = Trial(
        task="toy", scale="smoke", recipe=asdict(chosen), model="toy", model_revision="0", method=method_name,
        config=asdict(config), layer_settings=settings, budget="", budget_parameters=None,
        adapter_parameters=0 if solution is None else solution.parameters, learning_rate=learning_rate, seed=seed,
        precision="float32",
    )  # fmt: skip
    context = TaskContext(tokenizer=Tokenizer(), recipe=chosen, seed=seed)
    layers = {name: kind(replace(config, **changes)) for name, changes in settings.items()}
    return Lane(base, trial, kind(config), layers, context, base.task.load(context))


def run(base: Base, lanes: Sequence[Lane]) -> Recorder:
    recorder = Recorder()
    train(base, lanes, recorder)
    return recorder


def assert_same_as_solo(packed: Recorder, solo: Sequence[Recorder]) -> None:
    for recorder in solo:
        ((trial_id, expected),) = recorder.losses.items()
        assert packed.losses[trial_id] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PACKABLE)
def test_lanes_of_one_method_lose_as_they_do_alone(name: str) -> None:
    settings = [(1e-2, 0), (1e-2, 1), (3e-3, 1)]
    solo = [run(base := make_base(), [make_lane(base, name, rate, seed)]) for rate, seed in settings]
    base = make_base()
    packed = run(base, [make_lane(base, name, rate, seed) for rate, seed in settings])
    assert_same_as_solo(packed, solo)
    assert len({tuple(losses) for losses in packed.losses.values()}) == 3


def test_lanes_of_every_method_lose_together_as_they_do_alone() -> None:
    settings = [(name, 1e-2 if place % 2 else 3e-3, place % 3) for place, name in enumerate(PACKABLE)]
    solo = [run(base := make_base(), [make_lane(base, *each)]) for each in settings]
    base = make_base()
    assert_same_as_solo(run(base, [make_lane(base, *each) for each in settings]), solo)


def test_wholly_trained_modules_are_each_lanes_own() -> None:
    trains = ("lm_head", "embed_tokens", "*norm")
    settings = [("lora", 1e-2, 0), ("mora", 1e-3, 1), ("lora", 3e-3, 2)]
    solo = [run(base := make_base(trains), [make_lane(base, *each)]) for each in settings]
    base = make_base(trains)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    packed = run(base, [make_lane(base, *each) for each in settings])
    assert_same_as_solo(packed, solo)
    for lane in packed.finished_lanes:
        assert lane.task_parameters() == 2 * 40 * 24 + 5 * 24
        head = lane.modules["lm_head"].weight
        assert not torch.equal(head, base.model.get_parameter("lm_head.frozen.weight"))
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())


def test_a_lane_that_ends_earlier_changes_nothing_for_the_others() -> None:
    lengths = [12, 5, 9]
    solo = [run(base := make_base(), [make_lane(base, "lora", seed=n, steps=n)]) for n in lengths]
    base = make_base()
    packed = run(base, [make_lane(base, "lora", seed=n, steps=n) for n in lengths])
    assert_same_as_solo(packed, solo)
    assert [lane.done for lane in packed.finished_lanes] == sorted(lengths)


def test_a_diverged_lane_leaves_and_the_rest_go_on() -> None:
    solo = run(base := make_base(), [make_lane(base, "lora", seed=1)])
    base = make_base()
    bad = make_lane(base, "lora", learning_rate=1e30, clip_norm=0.0)
    packed = run(base, [bad, make_lane(base, "lora", seed=1)])
    assert_same_as_solo(packed, [solo])
    assert isinstance(bad.error, TrialDivergedError)
    assert "step" in str(bad.error)
    assert bad.done < 12


def test_out_of_memory_halves_the_pack_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [("lora", 1e-2, 0), ("dora", 1e-2, 1), ("relora", 3e-3, 2)]
    solo = [run(base := make_base(), [make_lane(base, *each)]) for each in settings]
    base = make_base()
    original = Pack._gradients

    def small_device(self: Pack, batches: Any) -> Any:
        losses = original(self, batches)  # the failure comes after gradients were written
        if len(self.lanes) > 1 and self.lanes[0].done == 4:
            raise torch.OutOfMemoryError("out of memory, for this test")
        return losses

    monkeypatch.setattr(Pack, "_gradients", small_device)
    packed = run(base, [make_lane(base, *each) for each in settings])
    assert_same_as_solo(packed, solo)
    assert all(lane.error is None for lane in packed.finished_lanes)


def test_a_lane_that_does_not_fit_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base()

    def no_memory(self: Pack, batches: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory, for this test")

    monkeypatch.setattr(Pack, "_gradients", no_memory)
    packed = run(base, [make_lane(base, "lora"), make_lane(base, "mora")])
    assert [type(lane.error) for lane in packed.finished_lanes] == [torch.OutOfMemoryError] * 2


@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str) -> None:
    whole = run(base := make_base(), [make_lane(base, name)])
    pieces = run(base := make_base(), [make_lane(base, name, micro_batch_size=1)])
    (expected,), (found,) = whole.losses.values(), pieces.losses.values()
    assert found == pytest.approx(expected, rel=1e-3)  # Adam magnifies rounding


@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_half_precision_trains_float32_masters(name: str) -> None:
    full = run(base := make_base(), [make_lane(base, name)])
    half = run(base := make_base(precision="bfloat16"), [make_lane(base, name)])
    (expected,), (found,) = full.losses.values(), half.losses.values()
    assert found == pytest.approx(expected, rel=0.05)
    (lane,) = half.finished_lanes
    assert {p.dtype for p in lane.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_the_base_model_is_untouched(name: str) -> None:
    base = make_base()
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    run(base, [make_lane(base, name)])
    after = base.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(not slot.parts for slot in base.slots.values())


def test_full_fine_tuning_matches_a_plain_loop() -> None:
    base = make_base()
    lane = make_lane(base, "full", learning_rate=1e-3, clip_norm=0.0)
    torch.manual_seed(0)
    plain = make_base().model
    plain = LlamaForCausalLM(plain.config)
    plain.load_state_dict({k.replace(".frozen.", "."): v for k, v in base.model.state_dict().items()})
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    expected = []
    again = make_lane(make_base(), "full")
    for step in range(12):
        losses = []
        for row in again.rows():
            ids = torch.from_numpy(row.ids)[None]
            logits = plain(input_ids=ids).logits[0, 1:-1]  # the first two tokens of a toy example carry no loss
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="none"))
        loss = torch.cat(losses).mean()
        expected.append(float(loss.detach()))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / 12)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        again.advance()
    recorder = run(base, [lane])
    assert recorder.losses[lane.trial.id] == pytest.approx(expected, rel=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_captured_steps_on_a_gpu_lose_as_eager_steps_on_the_cpu(name: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = [(1e-3, 0), (3e-4, 1)] if name != "full" else [(1e-3, 0)]
    solo = [run(base := make_base(), [make_lane(base, name, *each)]) for each in settings]
    base = make_base(device="cuda")
    packed = run(base, [make_lane(base, name, *each) for each in settings])
    for recorder in solo:
        ((trial_id, expected),) = recorder.losses.items()
        assert packed.losses[trial_id] == pytest.approx(expected, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"


@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_nothing_is_compiled_unless_asked_for(name: str) -> None:
    """Neither training nor a method's calibration: a machine may have no C++ compiler, and every form takes seconds."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(base := make_base(), [make_lane(base, name, steps=3)])
    assert not torch._dynamo.utils.counters["frames"]


@pytest.mark.parametrize("name", ["lora", "dora", "mora", "pissa"])
def test_half_precision_packing_moves_scores_less_than_a_seed_does(name: str) -> None:
    seeds = range(4)
    solo = [run(base := make_base(precision="bfloat16"), [make_lane(base, name, seed=s, steps=40)]) for s in seeds]
    base = make_base(precision="bfloat16")
    packed = run(base, [make_lane(base, name, seed=s, steps=40) for s in seeds])
    alone = {trial: losses[-1] for recorder in solo for trial, losses in recorder.losses.items()}
    together = {trial: losses[-1] for trial, losses in packed.losses.items()}
    moved = [abs(together[trial] - alone[trial]) for trial in alone]
    assert max(moved) < max(alone.values()) - min(alone.values())


class ToyClassification(ToyTask):
    """Which of two tokens a text of any length begins with."""

    model_kind = ModelKind.CLASSIFICATION
    trains = ("score", "classifier")

    def load(self, context: TaskContext) -> TaskData:
        generator = torch.Generator().manual_seed(context.seed)
        rows = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in range(4, 14)]
        return TaskData([Example(row, row[0] % 2) for row in rows], {"validation": rows, "test": rows})


def make_classifier(kind: str, device: str = "cpu") -> Base:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 36, "pad_token_id": 0}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if kind == "shared positions":
        config = DebertaV2Config(
            **shape, **depth, **no_dropout, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"],
            position_buckets=2, share_att_key=True,
        )  # fmt: skip
        model: Any = DebertaV2ForSequenceClassification(config)
    elif kind == "decoder":
        model = LlamaForSequenceClassification(LlamaConfig(**shape, **depth))
    else:
        model = RobertaForSequenceClassification(RobertaConfig(**shape, **depth, **no_dropout))
    return Base(model.requires_grad_(False).to(device), ToyClassification(), "float32")


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_classifiers_of_padded_texts_lose_as_they_do_alone_and_row_by_row(kind: str) -> None:
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    solo = [run(base := make_classifier(kind), [make_lane(base, *each)]) for each in settings]
    base = make_classifier(kind)
    lanes = [make_lane(base, *each) for each in settings]
    heads = [lane.modules["score" if kind == "decoder" else "classifier"] for lane in lanes]
    expected = []
    for lane, head in zip(lanes, heads, strict=True):  # each row alone, without padding, through the lane's own head
        with evaluating(base, lane) as model:
            logits = torch.cat([model(input_ids=torch.from_numpy(row.ids)[None]).logits for row in lane.rows()])
        targets = torch.tensor([int(row.targets[0]) for row in lane.rows()])
        expected.append(float(torch.nn.functional.cross_entropy(logits, targets)))
        assert head.training is False
    packed = run(base, lanes)
    assert_same_as_solo(packed, solo)
    assert [packed.losses[lane.trial.id][0] for lane in lanes] == pytest.approx(expected, rel=1e-5)


def test_lanes_of_a_model_whose_layers_see_more_than_rows_train_one_by_one() -> None:
    """DeBERTa gives its query and key layers relative positions too, once for all rows."""
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1)]
    solo = [run(base := make_classifier("shared positions"), [make_lane(base, *each)]) for each in settings]
    base = make_classifier("shared positions")
    names = {name.rsplit(".", 1)[-1] for name in set(base.slots) - base.rowwise}
    assert names == {"query_proj", "key_proj"}
    packed = run(base, [make_lane(base, *each) for each in settings])
    assert_same_as_solo(packed, solo)
    assert [lane.pack_lanes for lane in packed.finished_lanes] == [1, 1]


@pytest.mark.parametrize("make", [make_base, lambda: make_classifier("decoder"), lambda: make_classifier("encoder")])
def test_lanes_of_usual_models_share_a_batch(make: Callable[[], Base]) -> None:
    base = make()
    assert base.rowwise == set(base.slots)


@pytest.mark.parametrize("trains", [(), ("lm_head",)])
def test_logits_in_pieces_give_the_same_losses(trains: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    base = make_base(trains)
    whole = run(base, [make_lane(base, *each) for each in settings])
    monkeypatch.setattr("harness.losses.MOST_LOGITS", 200)  # a step has about 3 lanes x 20 positions x 40 tokens
    base = make_base(trains)
    pieces = run(base, [make_lane(base, *each) for each in settings])
    assert pieces.losses.keys() == whole.losses.keys()
    for trial_id, expected in whole.losses.items():
        assert pieces.losses[trial_id] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(REGISTRY.methods))
def test_recomputing_activations_changes_no_result(name: str) -> None:
    kept = run(base := make_base(), [make_lane(base, name)])
    base = make_base(recomputes=True)
    again = run(base, [make_lane(base, name)])
    (expected,), (found,) = kept.losses.values(), again.losses.values()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_steps_of_padded_texts_are_captured(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    expected = run(base := make_classifier(kind), [make_lane(base, *each) for each in settings])
    found = run(base := make_classifier(kind, "cuda"), [make_lane(base, *each) for each in settings])
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"


@pytest.mark.gpu
@pytest.mark.parametrize("trains", [(), ("lm_head",)])
def test_logits_in_pieces_and_recomputing_are_captured(
    trains: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [("lora", 1e-2, 0), ("mora", 3e-3, 1), ("lora", 3e-3, 2)]
    expected = run(base := make_base(trains), [make_lane(base, *each) for each in settings])
    monkeypatch.setattr("harness.losses.MOST_LOGITS", 200)
    base = make_base(trains, device="cuda", recomputes=True)
    found = run(base, [make_lane(base, *each) for each in settings])
    for trial_id, losses in expected.losses.items():
        assert found.losses[trial_id] == pytest.approx(losses, rel=1e-3)
    assert not caplog.records, "no warning that a step could not be captured"

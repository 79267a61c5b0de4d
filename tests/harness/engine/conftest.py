"""What every test of the engine needs: tiny models, toy tasks, and lanes of any method over them, trained in a second.

The engine is what trains: the frozen model, lanes, packs, losses, the loop, and what a trial costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from harness.contract.task import Evaluation, Example, Metric, ModelKind, Recipe, Task, TaskContext, TaskData
from harness.contract.trial import Trial
from harness.engine.build import build_lane
from harness.engine.lane import Lane
from harness.engine.model import DTYPES
from harness.engine.resident import Base
from harness.engine.training import train
from harness.planning.budget import budget_parameters, solve
from harness.planning.registry import build_registry

torch.set_num_threads(1)
REGISTRY = build_registry()
PACKABLE = [name for name, method in REGISTRY.methods.items() if not method.traits.reference]


class ToyTask(Task):
    """Random tokens of different lengths; the score is the model's mean squared logit."""

    name = "toy"
    main_metric = "loss"
    metrics: Mapping[str, Metric] = {"loss": Metric("Loss", "nats", False, "Mean squared logit.")}
    recipes: Mapping[str, Recipe] = {"smoke": Recipe(steps=12, batch_size=3, learning_rate=1e-2)}

    def load(self, context: TaskContext) -> TaskData:
        generator = torch.Generator().manual_seed(context.seed)
        lengths = torch.randint(5, 12, (10,), generator=generator).tolist()
        rows = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]
        splits = {"validation": rows[:5], "test": rows[5:]}
        return TaskData([Example(row, [-100, -100, *row[2:]]) for row in rows], splits)

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        ids = torch.tensor([row[:5] for row in split], device=model.device)
        logits = model(input_ids=ids).logits
        return Evaluation({"loss": float(logits.square().mean())})


class ToyClassification(ToyTask):
    """Which of two tokens a text of any length begins with."""

    model_kind = ModelKind.CLASSIFICATION
    trains = ("score", "classifier")

    def load(self, context: TaskContext) -> TaskData:
        generator = torch.Generator().manual_seed(context.seed)
        rows = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in range(4, 14)]
        return TaskData([Example(row, row[0] % 2) for row in rows], {"validation": rows, "test": rows})


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


def language_model(tied: bool = False) -> Any:
    """Return a frozen two-layer LLaMA of 40 tokens and 11,832 parameters in float64, the same at every call.

    Args:
        tied: Whether its output head is its table of tokens: then it has 960 parameters fewer.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().requires_grad_(False).eval()


def classifier(kind: str) -> Any:
    """Return a frozen two-layer classifier in float64, the same at every call.

    Args:
        kind: ``decoder``, ``encoder``, or ``shared positions``, an encoder in which some layers see more than rows.
    """
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
    return model.double().requires_grad_(False).eval()


def make_base(
    trains: tuple[str, ...] = (),
    precision: str = "",
    device: str = "cpu",
    recomputes: bool = False,
    model: nn.Module | None = None,
) -> Base:
    """Return a language model's base, of ``language_model()`` unless another is given.

    On the CPU it computes in float64 unless told otherwise. Adam makes a full step of a gradient that is nothing but
    rounding, so in float32 the losses of two ways to the same update part by as much as the processor likes.
    """
    model = language_model() if model is None else model
    precision = precision or usual_precision(device)
    task = type("Toy", (ToyTask,), {"trains": trains})()
    return Base(model.to(device, DTYPES[precision]), task, precision, recomputes=recomputes)


def make_classifier(kind: str, device: str = "cpu", fresh: Sequence[str] = ()) -> Base:
    """Return a classifier's base, as exact as ``make_base``'s; ``fresh`` is what its checkpoint did not have."""
    precision = usual_precision(device)
    return Base(classifier(kind).to(device, DTYPES[precision]), ToyClassification(), precision, fresh)


def usual_precision(device: str) -> str:
    """Return what a base computes in where a test does not say."""
    return "float64" if device == "cpu" else "float32"


def make_lane(
    base: Base,
    method_name: str,
    learning_rate: float = 1e-2,
    seed: int = 0,
    *,
    budget: str = "lora:r=2",
    purpose: str = "report",
    data: TaskData | None = None,
    changes: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Lane:
    """Return a lane of a method at a budget.

    Args:
        base: The resident model.
        method_name: Which method.
        learning_rate: Peak.
        seed: The trial's.
        budget: As a user writes it; unheeded by a reference method.
        purpose: ``report`` or ``tune``.
        data: In place of the task's own.
        changes: Of the method's usual settings.
        recipe: Changes of the smoke recipe.
    """
    kind = REGISTRY.method(method_name)
    usual = kind.Config(**changes or {})
    solution = None
    if not kind.traits.reference:
        parameters = budget_parameters(budget, base.layers, base.parameters, REGISTRY)
        solution = solve(kind, usual, parameters, base.layers, 0.05)
    config = usual if solution is None else solution.config
    settings = {} if solution is None else solution.layer_settings
    chosen = replace(ToyTask.recipes["smoke"], **recipe)
    trial = Trial(
        task="toy", scale="smoke", recipe=asdict(chosen), model="toy", model_revision="0", method=method_name,
        config=asdict(config), layer_settings=settings, budget="", budget_parameters=None,
        adapter_parameters=0 if solution is None else solution.parameters, learning_rate=learning_rate, seed=seed,
        precision="float32", purpose=purpose,
    )  # fmt: skip
    context = TaskContext(tokenizer=Tokenizer(), recipe=chosen, seed=seed)
    layers = {name: kind(replace(config, **own)) for name, own in settings.items()}
    return build_lane(base, trial, kind(config), layers, context, base.task.load(context) if data is None else data)


def run(base: Base, lanes: Sequence[Lane]) -> Recorder:
    """Train lanes together to their ends."""
    recorder = Recorder()
    train(base, lanes, recorder)
    return recorder


def assert_same_as_solo(packed: Recorder, solo: Sequence[Recorder]) -> None:
    """Check that every lane of a pack lost what it lost by itself."""
    for recorder in solo:
        ((trial_id, expected),) = recorder.losses.items()
        assert packed.losses[trial_id] == pytest.approx(expected, rel=1e-6)


class Kit:
    """All of the above, handed to tests as one fixture because test folders are not packages."""

    packable = PACKABLE
    registry = REGISTRY
    ToyTask = ToyTask
    ToyClassification = ToyClassification
    language_model = staticmethod(language_model)
    classifier = staticmethod(classifier)
    make_base = staticmethod(make_base)
    make_classifier = staticmethod(make_classifier)
    make_lane = staticmethod(make_lane)
    run = staticmethod(run)
    assert_same_as_solo = staticmethod(assert_same_as_solo)


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """Return the toy models, tasks and lanes."""
    return Kit


@pytest.fixture(params=[name for name, method in REGISTRY.methods.items() if method.traits.trains])
def method(request: pytest.FixtureRequest) -> str:
    """Return the name of every method that trains, in turn."""
    return str(request.param)


@pytest.fixture(params=PACKABLE)
def packable(request: pytest.FixtureRequest) -> str:
    """Return the name of every method in turn that can share a base model with others."""
    return str(request.param)

"""Every registered task with methods of every kind: planned, trained together over one base, scored and recorded.

Tables and encoders are those of ``conftest``. What the numbers must be is tested with each task and each method.
Tasks that differ only in what their columns and labels are called run on the shipped base alone, and of C4's sizes one
stands for all: here they have one shape. Marked ``exhaustive``: those, too.
"""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from harness.contract.method import Method
from harness.contract.record import Record, State
from harness.contract.task import ModelKind
from harness.engine.cost import SoloCost
from harness.engine.shared import Shared
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite
from harness.results.store import Store
from harness.running.pieces import Pieces
from harness.running.recording import Recording
from harness.running.worker import Worker
from harness_benchmarks import forgetting
from harness_benchmarks.tasks import c4
from harness_benchmarks.tasks.instructeval.sandbox import refusal

torch.set_num_threads(1)
REGISTRY = build_registry(block=["trackers:mlflow"])
REFERENCES = {name for name, method in REGISTRY.methods.items() if method.traits.reference}
HEADED = (ModelKind.CLASSIFICATION, ModelKind.REGRESSION)
TOLERANCE = 0.01
HOOKS = ("attach", "calibrate", "parameter_groups", "learning_rate_multiplier", "extra_loss", "after_step")


def kind_of(method):
    """Return which parts of ``Method`` a method overrides: those that do it alike meet a task alike."""
    return frozenset(hook for hook in HOOKS if getattr(method, hook) is not getattr(Method, hook))


# Every method is tried on one task of each kind of model, and one method of each kind on the others.
TRAINING = {name: method for name, method in sorted(REGISTRY.methods.items(), reverse=True) if method.traits.trains}
KINDS = {kind_of(method): name for name, method in TRAINING.items()}.values()
ALL_METHODS = {"uuid", "glue/cola"}
SIZES = {name for name in REGISTRY.tasks if name.startswith("c4/")} - {"c4/9m"}
PAIRS = {"glue/qqp", "glue/rte", "glue/qnli"}  # of two texts in two classes, as MRPC is

# The smoke recipe, shorter: of these fields, those that a task's recipe has.
STEPS = {"steps": 2, "batch_size": 2, "evaluate_at": [1]}
DATA = {"train_rows": 12, "held_out": 2, "max_length": 48, "max_new_tokens": 2}
SCORED = {"test_rows": 4, "limit": 2, "questions": 1, "pairs": 2, "validation_windows": 2, "forgetting_windows": 1}


def shortened(recipe):
    known = {field.name for field in fields(recipe)}
    changes = {name: value for name, value in {**STEPS, **DATA, **SCORED}.items() if name in known}
    if "max_new_tokens" in known:
        del changes["max_length"]  # a prompt that has an answer to be written must fit
    return changes


def items_of(metric, recipe):
    """Return how many items a metric has: the one size of the recipe that limits what it scores."""
    if metric in forgetting.METRICS:
        return recipe["forgetting_windows"]
    if metric in ("loss", "perplexity"):
        return recipe["validation_windows"]
    (size,) = {"test_rows", "limit", "questions", "pairs"} & set(recipe)
    return recipe[size]


@pytest.fixture(scope="module", autouse=True)
def _small_models():
    """Make the sizes that C4 fixes small ones: they differ in nothing else, and the real shapes have their own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c4, "SHAPES", dict.fromkeys(c4.SHAPES, c4.Shape(64, 96, 2, 4)))
        yield


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Store(str(tmp_path_factory.mktemp("results")))


class Sparing(Shared):
    """Measures what a trial costs alone where every method is tried, not again with each task."""

    def solo_cost(self, trial, method, task):
        if trial.task in ALL_METHODS:
            return super().solo_cost(trial, method, task)
        return SoloCost(reasons={each.name: "not measured here" for each in fields(SoloCost) if each.name != "reasons"})


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(tables, results, request, judge):
    """Return what trains a task with every method in one worker, and returns the records by method."""
    events = []
    kind = Sparing if request.param == "cpu" else Shared  # a GPU measures how much room a trial takes
    worker = Worker(REGISTRY, kind(torch.device(request.param), tables, True), Recording(results, {}), events.append)

    def run(name, **suite):
        recipe = shortened(REGISTRY.task(name).recipes["smoke"])
        if hasattr(REGISTRY.task(name).recipes["smoke"], "judge_url"):
            recipe["judge_url"] = judge.url
        methods = ["everything"] if name in ALL_METHODS else [*KINDS]
        asked = {"tasks": [name], "methods": methods, "tolerance": TOLERANCE, "recipe": recipe, **suite}
        trials = pending(plan_cells(build_suite(asked), REGISTRY, tables, "float32"), lambda trial: None)
        events.clear()
        pieces = Pieces(REGISTRY, workers=1, pack=len(trials))
        pieces.add(trials)
        while pieces:
            worker.run(*pieces.next(0))
        records = [Record.from_json(event["record"]) for event in events if event["event"] == "record"]
        assert len(records) == len(trials)
        return {record.trial.method: record for record in records}

    return run


def sampled(tasks, others):
    """Return tasks as parameters, of which the ``others`` are for when everything is tried."""
    return [pytest.param(each, marks=[pytest.mark.exhaustive] * (each in others)) for each in tasks]


@pytest.mark.parametrize("task", sampled(REGISTRY.tasks, SIZES))
def test_every_method_on_the_shipped_base(task, run, results):
    if task == "code" and refusal():
        pytest.skip(refusal())
    check(run(task), results, task)


@pytest.mark.parametrize("encoder", ["bert", "roberta", "deberta"])
@pytest.mark.parametrize(
    "task", sampled([name for name, task in REGISTRY.tasks.items() if task.model_kind in HEADED], PAIRS)
)
def test_every_method_on_an_encoder(task, encoder, encoders, run, results):
    records = run(task, model=str(encoders[encoder]))
    # DeBERTa's query layers also see relative positions, which have no rows for lanes to share.
    check(records, results, task, packed=encoder != "deberta")
    assert {record.trial.model for record in records.values()} == {str(encoders[encoder])}


def check(records, results, task, packed=True):
    assert set(records) == set(REGISTRY.methods if task in ALL_METHODS else KINDS)
    for record in records.values():
        said = f"{record.trial.label}: {record.error and record.error['traceback']}"
        assert record.state is State.COMPLETE, said
        check_scores(record)
        check_training(record, results)
    together = [record for method, record in records.items() if method not in REFERENCES]
    assert {record.cost["pack_lanes"] for record in together} == {
        len(together) if packed else 1
    }  # none had to be run again alone


def check_scores(record):
    task, recipe = REGISTRY.task(record.trial.task), record.trial.recipe
    assert set(record.metrics) == set(task.metrics)
    assert record.score is not None, record.reasons
    missing = {name for name, value in record.metrics.items() if value is None}
    unmeasured = {name for name, value in record.cost.items() if value is None}  # on a GPU two updates time none
    assert missing <= set(record.reasons) <= missing | unmeasured
    for name in missing:
        assert record.reasons[name]
        assert "--data-dir" not in record.reasons[name]  # every table is there
    assert all(math.isfinite(value) for value in record.metrics.values() if value is not None)
    counts = {name: len(values) for name, values in record.items.items()}
    average = counts.pop("average", None)  # of sets: every item of them adds to it
    assert counts == {name: items_of(name, recipe) for name in counts}
    assert average in (None, sum(counts[name] for name in counts if name not in forgetting.METRICS))
    assert record.items
    assert all(math.isfinite(value) for values in record.items.values() for value in values)


def check_training(record, results):
    trial, counts = record.trial, record.counts
    if not REGISTRY.methods[trial.method].traits.trains and not counts["task_parameters"]:
        assert record.history == []  # nothing trains: the base model as it is
        return
    assert [each["step"] for each in record.history] == [1, 2]
    assert all(math.isfinite(each["metrics"]["train/loss"]) for each in record.history)
    assert REGISTRY.task(trial.task).main_metric in record.history[0]["metrics"]  # validation, after the first update
    if trial.method in REFERENCES:
        assert counts["budget_deviation_fraction"] is None
    else:
        assert abs(counts["budget_deviation_fraction"]) <= TOLERANCE
        assert counts["adapter_parameters"] == trial.adapter_parameters >= trial.matched_parameters
    assert results.read_artifact(record.artifacts["adapter"])

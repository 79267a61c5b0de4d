"""What is written down of a trial says how it ended, and holds only numbers that JSON can hold."""

from __future__ import annotations

import json

import pytest
import torch

from harness.contract.record import Record, State
from harness.contract.task import Evaluation
from harness.engine.shared import Shared
from harness.errors import TrialDivergedError
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite
from harness.results.store import Store
from harness.running.recording import Recording, lost

torch.set_num_threads(1)
REGISTRY = build_registry()
TASK = REGISTRY.task("uuid")
METHOD = REGISTRY.method("lora")
STARTED = "2026-01-02T03:04:05+00:00"
ENVIRONMENT = {"device": "cpu"}


@pytest.fixture(scope="module")
def trial():
    recipe = {"steps": 2, "pairs": 4, "batch_size": 2, "evaluate_at": []}
    suite = build_suite({"tasks": ["uuid"], "methods": ["lora"], "recipe": recipe})
    (trial,) = pending(plan_cells(suite, REGISTRY, None, "float32"), lambda trial: None)
    return trial


@pytest.fixture(scope="module")
def shared():
    return Shared(torch.device("cpu"))


def again(record):
    """Return the record as it is read from its file."""
    return Record.from_json(json.loads(record.dumps()))


def test_numbers_that_json_cannot_hold_are_missing_with_a_reason(trial, shared, tmp_path):
    lane = shared.lane(trial, METHOD, TASK())
    names = list(TASK.metrics)
    lane.evaluation = Evaluation({names[0]: float("nan"), names[1]: 0.5}, items={names[0]: [1.0, float("inf"), None]})
    lane.history.append({"step": 1, "metrics": {"train/loss": float("nan"), "train/learning_rate": 0.1}})
    solo = shared.solo_cost(trial, METHOD, TASK())
    record = again(Recording(Store(str(tmp_path)), ENVIRONMENT).ended(lane, TASK, solo, STARTED))
    assert record.state is State.COMPLETE
    assert (record.metrics[names[0]], record.metrics[names[1]]) == (None, 0.5)
    assert record.reasons[names[0]] == "the task computed nan"
    assert record.items[names[0]] == [1.0, None, None]
    assert record.history == [{"step": 1, "metrics": {"train/learning_rate": 0.1}}]
    assert record.cost["step_flops"] == solo.step_flops
    assert 0 < record.cost["initialise_seconds"] == solo.initialise_seconds
    assert record.environment == ENVIRONMENT
    assert (tmp_path / record.artifacts["adapter"]).exists()


def test_what_a_task_says_of_its_scoring_is_kept_in_the_environment(trial, shared, tmp_path):
    lane = shared.lane(trial, METHOD, TASK())
    lane.evaluation = Evaluation(dict.fromkeys(TASK.metrics, 0.5), notes={"judge": "one at home"})
    recording = Recording(Store(str(tmp_path)), ENVIRONMENT)
    record = again(recording.ended(lane, TASK, shared.solo_cost(trial, METHOD, TASK()), STARTED))
    assert record.environment == {**ENVIRONMENT, "scoring": {"judge": "one at home"}}


def test_what_guessing_scores_stands_beside_what_the_metric_is(trial, shared, tmp_path):
    lane = shared.lane(trial, METHOD, TASK())
    lane.evaluation = Evaluation(dict.fromkeys(TASK.metrics, 0.5), chance={"exact_match": 0.25})
    recording = Recording(Store(str(tmp_path)), ENVIRONMENT)
    details = again(recording.ended(lane, TASK, shared.solo_cost(trial, METHOD, TASK()), STARTED)).metric_details
    assert details["exact_match"]["chance"] == 0.25
    assert details["exact_match"]["title"] == "Exact match"
    assert "chance" not in details["answer_nll"]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TrialDivergedError("the loss became nan"), State.DIVERGED),
        (MemoryError("no room"), State.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("no room"), State.OUT_OF_MEMORY),
        (ZeroDivisionError("by nought"), State.FAILED),
    ],
)
def test_an_error_says_how_the_trial_ended_and_stands_where_the_metrics_would(error, state, trial, shared, tmp_path):
    recording = Recording(Store(str(tmp_path)), ENVIRONMENT)
    lane = shared.lane(trial, METHOD, TASK())
    lane.error, lane.done = error, 1
    ended = recording.ended(lane, TASK, shared.solo_cost(trial, METHOD, TASK()), STARTED)
    for record, step in ((again(ended), 1), (again(recording.failed(trial, TASK, error, STARTED)), 0)):
        assert record.state is state
        assert record.metrics == dict.fromkeys(TASK.metrics)
        assert set(record.reasons.values()) == {f"{state}: {error}"}
        assert (record.error["type"], record.error["step"]) == (type(error).__name__, step)
        assert record.counts["adapter_parameters"] == trial.adapter_parameters
    assert not list(tmp_path.iterdir()), "there is nothing to keep of a trial without a result"


def test_a_trial_whose_worker_is_gone_is_recorded_with_its_last_words(trial):
    record = again(lost(trial, TASK, ENVIRONMENT, STARTED, State.FAILED, "WorkerDied", "signal 9\nlast\nwords"))
    assert record.error == {
        "type": "WorkerDied",
        "message": "signal 9",
        "traceback": "signal 9\nlast\nwords",
        "step": None,
    }
    assert set(record.reasons.values()) == {"failed: signal 9"}
    assert record.started_at == STARTED

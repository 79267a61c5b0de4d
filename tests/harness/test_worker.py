"""A worker keeps what trials can share."""

from __future__ import annotations

import pytest
import torch

from harness.plan import pending, plan_cells
from harness.record import Record, State
from harness.registry import build_registry
from harness.store import Store
from harness.suite import build_suite
from harness.worker import Worker

torch.set_num_threads(1)
REGISTRY = build_registry(block=["trackers:mlflow"])
TASK = REGISTRY.task("uuid")


def run(tmp_path, pack=4, **suite):
    recipe = {"steps": 2, "pairs": 4, "batch_size": 2, "evaluate_at": []}
    asked = {"tasks": ["uuid"], "methods": ["lora"], "recipe": recipe, **suite}
    trials = pending(plan_cells(build_suite(asked), REGISTRY, None, "float32"), lambda trial: None)
    events = []
    worker = Worker(REGISTRY, Store(str(tmp_path)), torch.device("cpu"), None, {}, events.append)
    worker.run(trials, pack)
    records = [Record.from_json(event["record"]) for event in events if event["event"] == "record"]
    assert [record.state for record in records] == [State.COMPLETE] * len(trials)
    return records


@pytest.mark.parametrize(("seeded", "expected"), [(True, [0, 1, 2]), (False, [0])])
def test_data_is_loaded_once_for_each_seed_or_once_for_all(seeded, expected, tmp_path, monkeypatch):
    seeds, load = [], TASK.load

    def counted(self, context):
        seeds.append(context.seed)
        return load(self, context)

    monkeypatch.setattr(TASK, "load", counted)
    monkeypatch.setattr(TASK, "seeded_data", seeded)
    run(tmp_path, seeds=[0, 1, 2], methods=["lora", "mora"])
    assert seeds == expected


def test_a_pack_that_fails_is_run_again_trial_by_trial_and_says_so(tmp_path, monkeypatch, caplog):
    module = "harness.worker.train"
    from harness.training import train

    def fails_together(base, lanes, watch, compiled):
        if len(lanes) > 1:
            raise RuntimeError("no two of these go together")
        train(base, lanes, watch, compiled)

    monkeypatch.setattr(module, fails_together)
    records = run(tmp_path, seeds=[0, 1])
    assert len(records) == 2
    assert "no two of these go together" in caplog.text

"""A worker keeps what trials can share."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from harness.contract.record import Record, State
from harness.engine.cost import SoloCost
from harness.engine.shared import Shared
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite
from harness.results.store import Store
from harness.running.recording import Recording
from harness.running.worker import DeviceLost, Worker

torch.set_num_threads(1)
REGISTRY = build_registry(block=["trackers:mlflow"])
TASK = REGISTRY.task("uuid")


def run_events(tmp_path, pack=4, events=None, **suite):
    recipe = {"steps": 2, "pairs": 4, "batch_size": 2, "evaluate_at": []}
    asked = {"tasks": ["uuid"], "methods": ["lora"], "recipe": recipe, **suite}
    trials = pending(plan_cells(build_suite(asked), REGISTRY, None, "float32"), lambda trial: None)
    events = [] if events is None else events
    worker = Worker(REGISTRY, Shared(torch.device("cpu")), Recording(Store(str(tmp_path)), {}), events.append)
    worker.run(trials, pack)
    return events


def run(tmp_path, expected=State.COMPLETE, **suite):
    events = run_events(tmp_path, **suite)
    records = [Record.from_json(event["record"]) for event in events if event["event"] == "record"]
    assert {record.state for record in records} == {expected}
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


def test_a_wrong_evaluation_is_that_trials_result_with_its_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(TASK, "evaluate", lambda *_: {"character_accuracy": 1.0})
    (record,) = run(tmp_path, expected=State.FAILED)
    assert "task 'uuid': evaluate() returned dict" in record.error["message"]


@pytest.mark.parametrize("train", [[], iter([])])
def test_data_without_examples_is_an_error(train, tmp_path, monkeypatch):
    load = TASK.load
    monkeypatch.setattr(TASK, "load", lambda self, context: replace(load(self, context), train=train))
    (record,) = run(tmp_path, expected=State.FAILED)
    assert "train holds no examples" in record.error["message"]


def test_a_generator_that_ends_too_early_is_an_error(tmp_path, monkeypatch):
    load = TASK.load

    def once(self, context):
        data = load(self, context)
        return replace(data, train=(example for example in data.train))

    monkeypatch.setattr(TASK, "load", once)
    (record,) = run(tmp_path, expected=State.FAILED)
    assert "ends before the training does and cannot be read again" in record.error["message"]


def test_no_room_for_the_adapter_stops_the_run_and_blames_no_trial(tmp_path, monkeypatch):
    def full(self, name, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write_artifact", full)
    events = run_events(tmp_path)
    assert [event["event"] for event in events][-1] == "stop"
    assert "No space left on device" in events[-1]["why"]
    assert not [event for event in events if event["event"] == "record"]


def test_a_pack_that_fails_is_run_again_trial_by_trial_and_says_so(tmp_path, monkeypatch, caplog):
    module = "harness.running.worker.train"
    from harness.engine.training import train

    def fails_together(base, lanes, watch, compiled, saver):
        if len(lanes) > 1:
            raise RuntimeError("no two of these go together")
        train(base, lanes, watch, compiled, saver)

    monkeypatch.setattr(module, fails_together)
    records = run(tmp_path, seeds=[0, 1])
    assert len(records) == 2
    assert "no two of these go together" in caplog.text


def test_a_trial_without_memory_beside_others_trains_after_them(tmp_path, monkeypatch, caplog):
    made, alive = Shared.lane, []

    def small_device(self, trial, *code):
        if any(each() is not None and each().trial.id != trial.id for each in alive):
            raise torch.OutOfMemoryError("out of memory, for this test")
        lane = made(self, trial, *code)
        alive.append(weakref.ref(lane))
        return lane

    monkeypatch.setattr(Shared, "solo_cost", lambda *_: SoloCost())  # it makes lanes, too
    monkeypatch.setattr(Shared, "lane", small_device)
    records = run(tmp_path, seeds=[0, 1, 2])
    assert [record.trial.seed for record in records] == [0, 1, 2]
    assert [record.cost["pack_lanes"] for record in records] == [1, 1, 1]
    assert caplog.text.count("no memory for it beside 1 others; it trains after them") == 2

    def no_memory(*_):
        raise torch.OutOfMemoryError("out of memory, for this test")

    monkeypatch.setattr(Shared, "lane", no_memory)
    assert len(run(tmp_path / "none", expected=State.OUT_OF_MEMORY, seeds=[0, 1])) == 2


def test_what_failed_first_is_the_reason_also_where_the_base_cannot_be_looked_at_after_it(tmp_path, monkeypatch):
    def fail(message):
        raise RuntimeError(message)

    def evaluate(*_):
        monkeypatch.setattr(Shared, "changed", lambda _: fail("CUDA error, at the next call"))
        fail("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TASK, "evaluate", evaluate)
    (record,) = run(tmp_path, expected=State.FAILED, seeds=[0])
    assert record.error["message"] == "CUDA error: an illegal memory access was encountered"
    assert "in evaluate" in record.error["traceback"]


def test_a_pack_that_loses_its_device_is_not_run_again_in_this_process(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("harness.running.worker.train", fail)
    monkeypatch.setattr("harness.running.worker.fault_of", lambda device: "CUDA error")
    events = []
    with pytest.raises(DeviceLost, match="CUDA error") as raised:
        run_events(tmp_path, seeds=[0, 1], events=events)
    assert not raised.value.is_recorded
    assert [event["event"] for event in events] == ["started"] * 2, "which of them it was shows when each runs alone"


def test_a_plug_in_that_was_edited_after_planning_trains_nothing_under_the_old_id(tmp_path, monkeypatch):
    asked = {"tasks": ["uuid"], "methods": ["lora"], "recipe": {"steps": 2, "pairs": 4, "batch_size": 2}}
    (trial,) = pending(plan_cells(build_suite(asked), REGISTRY, None, "float32"), lambda trial: None)
    edited = replace(trial, plugins={**trial.plugins, "method": "peft-harness==0.1.0+sha256.0"})
    events = []
    worker = Worker(REGISTRY, Shared(torch.device("cpu")), Recording(Store(str(tmp_path)), {}), events.append)
    worker.run([edited], 1)
    record = Record.from_json(events[-1]["record"])
    assert record.state is State.FAILED
    assert "method 'lora' was edited while the run went on" in record.error["message"]


@pytest.mark.parametrize(
    ("step_flops", "fit", "expected"),
    [
        (0.1e12, 40, [40, 40, 20]),  # a small model: as many as fit
        (0.1e12, 1_000, [64, 36]),
        (0.8e12, 40, [10] * 10),  # SmolLM2-135M with short texts: as many as fill the card
        (0.8e12, 4, [4] * 25),
        (8.2e12, 40, [1] * 100),  # LLaMA-250M with 8,192 tokens a step fills it alone
        (None, 40, [40, 40, 20]),  # not known
    ],
)
def test_packs_on_a_gpu_are_as_large_as_fills_it_and_fits(tmp_path, monkeypatch, step_flops, fit, expected):
    shared = Shared(torch.device("cuda"))
    monkeypatch.setattr(shared, "base", lambda *_: None)
    monkeypatch.setattr(shared, "solo_cost", lambda *_: SoloCost(step_flops=step_flops, lane_bytes=1))
    monkeypatch.setattr("harness.running.worker.lanes_that_fit", lambda *_: fit)
    worker, sizes = Worker(REGISTRY, shared, Recording(Store(str(tmp_path)), {}), lambda event: None), []
    monkeypatch.setattr(worker, "_run_together", lambda trials: sizes.append(len(trials)))
    asked = {"tasks": ["uuid"], "methods": ["lora"], "seeds": [*range(100)]}
    trials = pending(plan_cells(build_suite(asked), REGISTRY, None, "float32"), lambda trial: None)
    worker.run(trials, 0)
    assert sizes == expected


def test_progress_says_what_the_worker_takes_of_its_machine_and_records_do_not(tmp_path):
    events = run_events(tmp_path)
    readings = [event["metrics"] for event in events if event["event"] == "progress"]
    assert readings
    for each in readings:
        assert each["system/process_memory_usage_megabytes"] > 10
        assert each["system/process_cpu_utilization_percentage"] >= 0
    (record,) = (Record.from_json(event["record"]) for event in events if event["event"] == "record")
    assert not any(name.startswith("system/") for point in record.history for name in point["metrics"])


def test_a_method_that_writes_to_the_base_fails_alone_and_falsifies_nobody(tmp_path, monkeypatch):
    method = REGISTRY.method("mora")
    made = method.adapter
    (clean,) = run(tmp_path / "clean")

    def while_built(self, linear, generator):
        linear.weight.data.mul_(0.5)
        return made(self, linear, generator)

    def while_trained(self, linear, generator):
        adapter = made(self, linear, generator)
        forward = type(adapter).forward

        class Writing(type(adapter)):
            def forward(self, x, base_output):
                linear.weight.data.add_(1e-3)
                return forward(self, x, base_output)

        adapter.__class__ = Writing
        return adapter

    for how in (while_built, while_trained):
        monkeypatch.setattr(method, "adapter", how)
        events = run_events(tmp_path / how.__name__, methods=["lora", "mora"])
        lora, mora = (Record.from_json(event["record"]) for event in events if event["event"] == "record")
        if lora.trial.method == "mora":  # the first to fail is written down first
            lora, mora = mora, lora
        assert (lora.state, lora.trial_id, lora.metrics) == (State.COMPLETE, clean.trial_id, clean.metrics)
        assert (mora.state, mora.error["type"]) == (State.FAILED, "ChangedBaseError")
        assert "was changed (by method mora)" in mora.error["message"]


def test_a_method_whose_parameters_take_no_part_in_the_loss_fails_beside_others_too(tmp_path, monkeypatch):
    method = REGISTRY.method("mora")
    made = method.adapter

    def unused(self, linear, generator):
        adapter = made(self, linear, generator)
        adapter.__class__ = type("Unused", (type(adapter),), {"forward": lambda self, x, base_output: base_output})
        return adapter

    monkeypatch.setattr(method, "adapter", unused)
    events = run_events(tmp_path, methods=["lora", "mora"])
    records = {
        each.trial.method: each for event in events if event["event"] == "record"
        for each in [Record.from_json(event["record"])]
    }  # fmt: skip
    assert records["lora"].state is State.COMPLETE
    assert records["mora"].state is State.FAILED
    assert "method mora: no adapter's parameters take part in the loss" in records["mora"].error["message"]

"""The scheduler with real worker processes, whatever these do: every trial gets a record."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time

import pytest
import torch

from harness.contract.executor import Executor, ExecutorWorker
from harness.contract.record import Record, State
from harness.contract.trial import Trial
from harness.errors import HarnessError
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.settings import read_executor
from harness.planning.suite import build_suite
from harness.results.claims import Claims
from harness.results.store import Store
from harness.running.environment import describe_environment
from harness.running.local import LocalExecutor
from harness.running.schedule import Scheduler, Settings

SMALL = {"steps": 2, "pairs": 2, "batch_size": 2}


def plan(registry, methods, tasks=("uuid",), recipe=SMALL, **suite):
    data = {"tasks": list(tasks), "methods": list(methods), "budgets": ["quick"], "recipe": recipe, **suite}
    return [
        trial
        for cell in plan_cells(build_suite(data), registry, None, "float32")
        for trial in pending([cell], lambda trial: None)
    ]


class Sweep:
    """Trials run to their records in a folder of their own, and what the watch and the observers saw."""

    def __init__(self, folder, trials, registry, executor=None, **settings):
        self.trials, self.store, self.events = trials, Store(str(folder)), []
        self.store.prepare()
        environment = {**describe_environment(torch.device("cpu")), "sweep": "trouble", "results_root": str(folder)}
        self.settings = Settings(
            executor=executor or LocalExecutor(),
            devices=("cpu",),
            threads=1,
            pack=1,
            environment=environment,
            **settings,
        )
        self.scheduler = Scheduler(registry, self.store, self.settings, self.watch)

    def watch(self, event, trial, payload):
        self.events.append((event, trial.id))

    def run(self):
        try:
            self.scheduler.run(self.trials)
        finally:
            self.scheduler.close()
        return self

    def record(self, method, seed=0):
        (trial,) = (t for t in self.trials if (t.method, t.seed) == (method, seed))
        return self.store.read(trial.id)


@pytest.fixture(scope="module")
def registry(trouble):
    return build_registry(block=["trackers:mlflow"])


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.exhaustive)])
def executor(request, trouble, registry):
    """What holds on this machine holds on a cluster."""
    if request.param == "local":
        yield LocalExecutor()
        return
    cluster = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'peft-harness[ray]'")
    one = cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    executor = read_executor(registry, "ray", one.address)
    executor.devices("cpu", 0)
    yield executor
    one.head_node.kill_all_processes(check_alive=False)  # shutdown() refuses where a driver was connected


@pytest.fixture(scope="module")
def sweep(executor, trouble, registry, tmp_path_factory):
    """One worker that meets everything that can go wrong, one after the other."""
    folder = tmp_path_factory.mktemp("sweep")
    trouble.setenv("TROUBLE_LOG", str(folder / "log"))
    trials = plan(registry, ["quick", "diverging", "raising", "breaking", "miscounting", "killed", "exiting", "slow"])
    trials += plan(registry, ["quick"], ["toy"], {}, seeds=[5])
    sweep = Sweep(folder, trials, registry, executor).run()
    trouble.delenv("TROUBLE_LOG")
    sweep.log = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    return sweep


def test_every_trial_has_a_record(sweep):
    assert sweep.store.ids() == {trial.id for trial in sweep.trials}
    assert sorted(path.name for path in sweep.store.local.glob("*.tmp")) == []


@pytest.mark.parametrize("method", ["quick", "slow"])  # the first and the last but one
def test_a_good_trial_is_complete_whatever_came_before(sweep, method):
    record = sweep.record(method)
    assert record.state is State.COMPLETE
    assert record.error is None
    assert 0 <= record.score <= 1
    assert [each["step"] for each in record.history] == [1, 2]
    assert record.counts["adapter_parameters"] == record.trial.adapter_parameters
    assert record.environment["sweep"] == "trouble"
    assert sweep.store.read_artifact(record.artifacts["adapter"])


@pytest.mark.parametrize(
    ("method", "state", "kind", "said"),
    [
        ("diverging", State.DIVERGED, "TrialDivergedError", "loss became nan at step 2"),
        ("raising", State.FAILED, "RuntimeError", "raised on purpose"),
        ("breaking", State.FAILED, "RuntimeError", "CUDA error"),
        ("miscounting", State.FAILED, "RuntimeError", "its formula says"),
        ("killed", State.LOST, "WorkerDied", "signal 9 (SIGKILL)"),
        ("exiting", State.FAILED, "WorkerDied", "exit code 3"),
    ],
)
def test_a_bad_trial_has_a_record_that_says_why(sweep, method, state, kind, said):
    record = sweep.record(method)
    assert record.state is state
    assert record.error["type"] == kind
    assert said in record.error["message"]
    assert record.score is None
    assert all(record.reasons[name].startswith(state.value) for name in record.metrics)
    assert set(record.metrics) <= set(record.reasons)


def test_the_last_words_of_a_worker_are_kept(sweep):
    assert "last words" in sweep.record("exiting").error["traceback"]


def test_a_score_that_is_no_number_loses_neither_the_trial_nor_the_sweep(sweep):
    (trial,) = (trial for trial in sweep.trials if trial.task == "toy")
    record = sweep.store.read(trial.id)
    assert record.state is State.COMPLETE
    assert record.score is None
    assert record.reasons == {"score": "the task computed nan"}


def test_hook_harness_trial_started(sweep):
    assert [each["label"] for each in sweep.log if each["hook"] == "started"] == [t.label for t in sweep.trials]
    assert {each["sweep"] for each in sweep.log if each["hook"] == "started"} == {"trouble"}


def test_hook_harness_trial_progress(sweep):
    quick = sweep.record("quick").trial
    told = [each for each in sweep.log if each["hook"] == "progress" and each["trial"] == quick.id]
    assert [each["step"] for each in told] == [1, 2]
    for each, kept in zip(told, sweep.record("quick").history, strict=True):
        assert each["metrics"]["train/loss"] == kept["metrics"]["train/loss"]


def test_hook_harness_trial_finished(sweep):
    told = {each["trial"]: each["state"] for each in sweep.log if each["hook"] == "finished"}
    assert told == {record.trial_id: record.state.value for record in sweep.store.records()}


def test_hook_harness_sweep_finished(sweep):
    assert [each["hook"] for each in sweep.log].count("sweep finished") == 1
    assert sweep.log[-1] == {"hook": "sweep finished"}


def test_hook_harness_summarize(sweep, registry):
    assert "trouble: 9 records" in registry.hook.harness_summarize(
        records=list(sweep.store.records()), results=sweep.store.root
    )


def test_the_display_sees_every_trial_start_and_end(sweep):
    for trial in sweep.trials:
        seen = [event for event, trial_id in sweep.events if trial_id == trial.id]
        assert [event for event in seen if event != "progress"] == ["started", "finished"]


def test_an_observer_that_fails_is_counted_and_loses_nothing(trouble, registry, tmp_path, make_record, caplog):
    trouble.setenv("TROUBLE_RAISE", "finished")
    sweep = Sweep(tmp_path, [], registry)
    sweep.scheduler._keep(make_record(plan(registry, ["quick"])[0]))
    trouble.delenv("TROUBLE_RAISE")
    assert sweep.scheduler.observers.failures == 1
    assert "plugin trouble, harness_trial_finished: RuntimeError: the observer raised on purpose" in caplog.text
    assert len(sweep.store.ids()) == 1


def test_trials_that_another_run_finished_are_left_alone(trouble, registry, tmp_path, make_record):
    """The first is found when its turn comes; the second appears while it runs here."""
    first, second = plan(registry, ["quick", "slow"], recipe={**SMALL, "steps": 4})
    trouble.setenv("TROUBLE_SECONDS", "0.2")
    sweep = Sweep(tmp_path, [first, second], registry)
    theirs = {trial.id: make_record(trial, metrics={"character_accuracy": 0.125}) for trial in (first, second)}
    sweep.store.write(theirs[first.id])

    def watch(event, trial, payload):
        sweep.watch(event, trial, payload)
        if event == "progress" and sweep.store.read(trial.id) is None:
            sweep.store.write(theirs[trial.id])

    sweep.scheduler.watch = watch
    sweep.run()
    assert {each.trial_id: each.dumps() for each in sweep.store.records()} == {
        trial_id: each.dumps() for trial_id, each in theirs.items()
    }
    assert ("started", first.id) not in sweep.events
    assert ("finished", first.id) in sweep.events


def test_what_was_on_a_lost_machine_goes_to_another_and_is_not_suspected(trouble, registry, tmp_path, caplog):
    """Two trials on a stranger's executor, whose first machine goes away in the middle of one."""
    executor = read_executor(registry, "cloud:losses=1", "sky:1")
    assert executor.config.address == "sky:1"
    sweep = Sweep(tmp_path, plan(registry, ["quick"], seeds=[0, 1]), registry, executor).run()
    records = [sweep.record("quick", seed) for seed in (0, 1)]
    assert [(record.state, len(record.attempts)) for record in records] == [(State.COMPLETE, 0)] * 2
    assert executor.launched == [0, 0]
    assert executor.closed
    assert "worker 0 is gone, and another takes its trials: the cloud drifted away" in caplog.text


class Doomed(Executor):
    """Workers that begin what they are given, and then their machine is lost."""

    name = "doomed"

    def devices(self, device, workers):
        return ("cpu",), 1

    def launch(self, number, hear):
        class Worker(ExecutorWorker):
            def send(self, message):
                if "trials" not in message:
                    hear({"event": "idle"})
                    return
                hear({"event": "started", "trial": Trial.from_json(message["trials"][0]).id})
                hear({"event": "ended", "why": "gone", "state": "lost", "machine_lost": True})

            def stop(self):
                hear({"event": "ended", "why": "stopped", "state": "failed"})

            kill = stop

        return Worker()


def test_a_trial_that_ends_every_machine_it_is_given_to_is_given_up(trouble, registry, tmp_path):
    sweep = Sweep(tmp_path, plan(registry, ["quick"]), registry, Doomed()).run()
    record = sweep.record("quick")
    assert (record.state, record.error["message"]) == (State.LOST, "gone")
    assert [event for event, _ in sweep.events] == ["started"] * 4 + ["finished"]


def test_a_worker_with_nothing_to_do_is_let_go_where_the_executor_says_so(trouble, registry, tmp_path, monkeypatch):
    executor = Doomed()
    sweep = Sweep(tmp_path, plan(registry, ["quick"]), registry, executor)
    sweep.scheduler._start(0)
    sweep.scheduler._handle(sweep.scheduler._next_event())
    assert sweep.scheduler._workers[0].idle
    sweep.scheduler._dispatch()
    assert 0 in sweep.scheduler._workers, "kept, with its base model"
    executor.idle_seconds = -1.0
    sweep.scheduler._dispatch()
    assert sweep.scheduler._workers == {}


@pytest.mark.slow
def test_a_trial_that_runs_too_long_is_ended_and_the_rest_goes_on(trouble, registry, tmp_path):
    trouble.setenv("TROUBLE_SECONDS", "100")
    trials = plan(registry, ["slow"]) + plan(registry, ["quick"], seeds=[0, 1])
    sweep = Sweep(tmp_path, trials, registry, trial_seconds=12.0).run()
    trouble.delenv("TROUBLE_SECONDS")
    record = sweep.record("slow")
    assert (record.state, record.error["message"]) == (State.TIMED_OUT, "ran longer than 12 seconds")
    assert sweep.record("quick", 0).state is sweep.record("quick", 1).state is State.COMPLETE


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_the_trial_it_was_on(trouble, registry, tmp_path):
    trouble.setenv("TROUBLE_SECONDS", "100")
    trials = plan(registry, ["quick"]) + plan(registry, ["slow"]) + plan(registry, ["quick"], seeds=[1])
    sweep = Sweep(tmp_path, trials, registry)

    def watch(event, trial, payload):
        if (event, trial.method) == ("progress", "slow") or (event, trial.method) == ("started", "slow"):
            process = sweep.scheduler._workers[0].worker.process
            threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()

    sweep.scheduler.watch = watch
    sweep.run()
    trouble.delenv("TROUBLE_SECONDS")
    states = [sweep.record("quick", 0).state, sweep.record("slow").state, sweep.record("quick", 1).state]
    assert states == [State.COMPLETE, State.LOST, State.COMPLETE]


def test_workers_that_cannot_start_end_the_run_with_the_reason(trouble, registry, tmp_path, monkeypatch):
    sweep = Sweep(tmp_path, plan(registry, ["quick"]), registry)
    monkeypatch.setenv("HARNESS_BLOCK", "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('torch is broken here')")
    start = time.monotonic()
    with pytest.raises(
        HarnessError, match=r"(?s)a worker cannot start, tried 3 times: .*exit code 1.*torch is broken here"
    ):
        sweep.run()
    assert time.monotonic() - start < 60
    assert sweep.store.ids() == set()


def test_a_disk_that_is_full_is_named(registry, tmp_path, make_record, monkeypatch):
    sweep = Sweep(tmp_path, [], registry)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HarnessError, match=r"cannot be written to .*No space left.*run the same command again"):
        sweep.scheduler._keep(make_record(plan(registry, ["quick"])[0]))


def test_no_room_for_an_adapter_stops_the_run_and_the_same_command_goes_on(trouble, registry, tmp_path):
    sweep = Sweep(tmp_path, plan(registry, ["quick"]), registry)
    (tmp_path / "adapters").touch()  # a file in the place of the folder
    with pytest.raises(HarnessError, match=r"the adapter of uuid/quick.* cannot be written.*run the same command"):
        sweep.run()
    record = sweep.record("quick")
    assert record.state is State.INTERRUPTED
    assert not record.state.is_final
    (tmp_path / "adapters").unlink()
    again = Sweep(tmp_path, plan(registry, ["quick"]), registry).run()
    assert again.record("quick").state is State.COMPLETE


def test_what_somebody_else_is_training_is_waited_for_and_taken_over_when_they_die(trouble, registry, tmp_path):
    """The first's owner finishes it; the second's is silent; the third's gives it back."""
    trials = plan(registry, ["quick"], seeds=[0, 1, 2])
    sweep = Sweep(tmp_path, trials, registry)
    sweep.scheduler.claims.lifetime_seconds = 1.0
    theirs = Claims(sweep.store)
    assert len(theirs.take([trial.id for trial in trials])) == 3
    beat = sweep.store.read_artifact(f"claims/{theirs.owner}.beat")

    def finish():
        time.sleep(3)
        sweep.store.write(dataclasses.replace(sweep.store.read(trials[0].id) or made, trial=trials[0]))
        theirs.release(trials[0].id)
        theirs.release(trials[2].id)
        # what a machine that was switched off leaves behind: a claim, and a beat that stays as it is
        claim = json.dumps({"owner": "dead", "machine": "another", "process": "1-1"}).encode()
        sweep.store.write_artifact(f"claims/{trials[1].id}", claim)
        sweep.store.write_artifact("claims/dead.beat", beat)

    made = Record(
        trial=trials[0], state=State.COMPLETE, metrics={"character_accuracy": 0.125}, main_metric="character_accuracy",
        higher_is_better=True, started_at="", finished_at="",
    )  # fmt: skip
    thread = threading.Thread(target=finish)
    thread.start()
    sweep.run()
    thread.join()
    theirs.close()
    started = {trial_id for event, trial_id in sweep.events if event == "started"}
    assert started == {trials[1].id, trials[2].id}
    assert {sweep.store.read(trial.id).state for trial in trials} == {State.COMPLETE}
    assert sweep.store.read(trials[0].id).score == 0.125

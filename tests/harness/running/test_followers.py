"""A worker of several processes trains what one would, and none of them outlives the others or waits in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load

from harness.contract.record import Record, State
from harness.engine.shared import Shared
from harness.errors import UsageError
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.search import pending
from harness.planning.suite import build_suite
from harness.results.store import Store
from harness.running.devices import divide_devices
from harness.running.environment import describe_environment
from harness.running.local import LocalExecutor
from harness.running.recording import Recording
from harness.running.schedule import Scheduler, Settings
from harness.running.worker import Worker

torch.set_num_threads(1)
SMALL = {"steps": 3, "pairs": 8, "batch_size": 5, "evaluate_at": [2]}


@pytest.fixture(scope="module")
def registry(trouble):
    trouble.setenv("FOLLOWERS_TEST", str(os.getpid()))
    return build_registry(block=["trackers:mlflow"])


def test_eight_gpus_are_four_workers_of_two_and_none_is_taken_twice():
    gpus = tuple(f"cuda:{number}" for number in range(8))
    assert divide_devices(gpus, 2) == (gpus[:2], gpus[2:4], gpus[4:6], gpus[6:])
    assert divide_devices(gpus, 3) == (gpus[:3], gpus[3:6])
    assert divide_devices(("cpu",) * 4, 2) == (("cpu", "cpu"),) * 2
    for devices, shard in ((gpus[:1], 2), (gpus[:2] * 2, 4), (gpus[:2], 3)):
        with pytest.raises(UsageError, match=rf"--shard {shard}: .* over {len(set(devices))} GPU"):
            divide_devices(devices, shard)


def plan(registry, *methods, budget="quick", **recipe):
    data = {
        "tasks": ["uuid"], "methods": list(methods), "budgets": [budget], "seeds": [0], "recipe": {**SMALL, **recipe},
    }  # fmt: skip
    return pending(plan_cells(build_suite(data), registry, None, "float64", shard=2), lambda trial: None)


def run(registry, folder, trials, watch=lambda *_: None):
    """Run trials on one worker of two processes; return the records by method."""
    store = Store(str(folder))
    store.prepare()
    environment = {**describe_environment(torch.device("cpu")), "sweep": "divided", "results_root": str(folder)}
    ranks = (("cpu", "cpu"),)
    settings = Settings(
        executor=LocalExecutor(), devices=("cpu",), ranks=ranks, threads=1, pack=1, environment=environment
    )
    scheduler = Scheduler(registry, store, settings, watch)
    try:
        scheduler.run(trials)
    finally:
        scheduler.close()
    return {each.trial.method: each for each in store.records()}


def alone(registry, folder, trials):
    """Run trials in this process; return the records by method."""
    events = []
    worker = Worker(registry, Shared(torch.device("cpu")), Recording(Store(str(folder)), {}), events.append)
    worker.run(trials, 1)
    records = [Record.from_json(event["record"]) for event in events if event["event"] == "record"]
    return {each.trial.method: each for each in records}


def check_same(one, two, folder):
    """Check that two records, and what they left, say the same, but for rounding, times and machines."""
    assert (one.state, two.state) == (State.COMPLETE, State.COMPLETE)
    assert two.trial == one.trial
    assert two.counts == one.counts
    assert two.metrics.keys() == one.metrics.keys()
    assert numbers(two.metrics) == pytest.approx(numbers(one.metrics), rel=1e-5)
    for name, values in one.items.items():
        assert two.items[name] == pytest.approx(values, rel=1e-5, abs=1e-6)
    for before, after in zip(one.history, two.history, strict=True):
        assert after["step"] == before["step"]
        assert numbers(after["metrics"]) == pytest.approx(numbers(before["metrics"]), rel=1e-6)
    kept = [load(Store(str(folder / name)).read_artifact(one.artifacts["adapter"])) for name in ("one", "two")]
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-5, atol=1e-7)


def numbers(metrics):
    return {name: value for name, value in metrics.items() if value is not None}


@pytest.fixture(scope="module")
def divided(registry, tmp_path_factory):
    """What a worker of two leaves of a good trial, and then of one whose second process dies."""
    folder = tmp_path_factory.mktemp("divided")
    trials = [*plan(registry, "lora", budget="lora:r=8"), *plan(registry, "one-killed")]
    return folder, trials, run(registry, folder / "two", trials)


def test_two_processes_leave_what_one_does(divided, registry):
    folder, trials, records = divided
    check_same(alone(registry, folder / "one", trials[:1])["lora"], records["lora"], folder)
    assert records["lora"].environment["ranks"] == 2


def test_a_process_that_dies_ends_the_trial_and_the_others_at_once(divided):
    record = divided[2]["one-killed"]
    assert record.state is State.LOST
    assert record.error["message"].startswith("rank 1 of 2 (cpu) is gone: the worker process ended with signal 9")
    assert all_gone()


def serving():
    """Return the worker processes that were started from here, by whomever."""
    return [
        each
        for each in psutil.process_iter(["cmdline", "environ"])
        if "harness.running.serve" in (each.info["cmdline"] or [])
        and (each.info["environ"] or {}).get("FOLLOWERS_TEST") == str(os.getpid())
    ]


def all_gone(seconds=5.0):
    """Return whether none of them is left, after a moment that a process takes to end."""
    end = time.monotonic() + seconds
    while serving() and time.monotonic() < end:
        time.sleep(0.1)
    return serving() == []


@pytest.mark.exhaustive
def test_merging_methods_and_wholly_trained_modules_leave_the_same(registry, tmp_path):
    trials = plan(registry, "lora", "mora", "relora", "remora", "dora", "pissa", budget="lora:r=8", steps=12)
    two = run(registry, tmp_path / "two", trials)
    one = alone(registry, tmp_path / "one", trials)
    assert two.keys() == one.keys()
    for method, record in one.items():
        check_same(record, two[method], tmp_path)


@pytest.mark.exhaustive
def test_one_that_fails_alone_is_the_trials_failure_and_the_next_trial_goes_on(registry, tmp_path):
    records = run(registry, tmp_path, [*plan(registry, "one-raising"), *plan(registry, "quick")])
    assert records["one-raising"].state is State.FAILED
    assert records["one-raising"].error["message"] == "raised on purpose, here only"
    assert records["quick"].state is State.COMPLETE
    assert all_gone()


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", [True, False])
def test_nobody_is_left_when_a_process_is_killed_from_outside(first, registry, tmp_path, trouble):
    trouble.setenv("TROUBLE_SECONDS", "0.3")
    trials = plan(registry, "slow", steps=1000)

    def kill():
        time.sleep(2)
        # The first has the other below it.
        found = sorted(serving(), key=lambda each: -len(each.children()))
        os.kill(found[0 if first else 1].pid, signal.SIGKILL)

    def watch(event, trial, payload):
        if event == "started":
            threading.Thread(target=kill, daemon=True).start()

    record = run(registry, tmp_path, trials, watch)["slow"]
    trouble.delenv("TROUBLE_SECONDS")
    assert record.state is State.LOST
    assert "signal 9" in record.error["message"]
    assert all_gone()


@pytest.mark.exhaustive
def test_a_divided_trial_that_was_stopped_goes_on_where_it_was(registry, trouble, tmp_path):
    def command(folder):
        return [
            sys.executable, "-m", "harness", "run", "--methods", "slow", "--task", "uuid", "--budget", "quick",
            "--seeds", "1", "--steps", "60", "--device", "cpu", "--shard", "2", "--no-mlflow", "--results", str(folder),
        ]  # fmt: skip

    trouble.setenv("TROUBLE_SECONDS", "0.2")
    trouble.setenv("TROUBLE_STEPS", str(tmp_path / "steps"))
    process = subprocess.Popen(command(tmp_path / "two"), start_new_session=True)
    while not (tmp_path / "steps").exists() or len((tmp_path / "steps").read_text()) < 40:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    (record,) = Store(str(tmp_path / "two")).records()
    assert record.state is State.INTERRUPTED
    assert all_gone()
    trouble.setenv("TROUBLE_SECONDS", "0")
    done = (tmp_path / "steps").stat().st_size
    subprocess.run(command(tmp_path / "two"), check=True, timeout=200)
    assert (tmp_path / "steps").stat().st_size - done < 2 * (60 + 6) - 20  # the six are timed; both go on, not anew
    trouble.delenv("TROUBLE_STEPS")
    trouble.delenv("TROUBLE_SECONDS")
    subprocess.run(command(tmp_path / "undisturbed"), check=True, timeout=200)
    (record,), (other,) = (Store(str(tmp_path / name)).records() for name in ("two", "undisturbed"))
    assert record.state is other.state is State.COMPLETE
    assert record.metrics == other.metrics
    assert [each["metrics"] for each in record.history] == [each["metrics"] for each in other.history]


@pytest.mark.gpu
@pytest.mark.parametrize("methods", ["lora,mora,dora,pissa,relora,remora"])
def test_two_gpus_train_what_one_does(methods, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs")
    found = {}
    for name, options in (("one", ["--device", "cuda:0", "--pack", "off"]), ("two", ["--shard", "2"])):
        command = [
            sys.executable, "-m", "harness", "run", "--methods", methods, "--task", "uuid", "--seeds", "1",
            "--steps", "12", "--precision", "float32", "--no-mlflow", "--results", str(tmp_path / name), *options,
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=280)
        found[name] = {each.trial.method: each for each in Store(str(tmp_path / name)).records()}
    for method, one in found["one"].items():
        two = found["two"][method]
        assert two.environment["ranks"] == 2
        losses = [[each["metrics"]["train/loss"] for each in record.history] for record in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=5e-3), method

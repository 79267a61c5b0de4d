"""The MLflow observer against real SQLite databases: what a user would find in the UI."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pluggy
import pytest

from harness import Record, Trial, UsageError
from harness.contract import hookspecs
from harness.contract.record import State
from harness.results.store import Store
from harness_plugins.trackers import mlflow as tracker

WEIGHTS = b"these are the adapter's bytes"
STARTED, FINISHED = 1_767_323_045_000, 1_767_323_065_000  # 2026-01-02T03:04:05Z and 20 s later, milliseconds


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """Creating the tables takes a second, so once for the file."""
    folder = tmp_path_factory.mktemp("template")
    tracker.Tracker(folder)
    return folder / "mlflow.db"


@pytest.fixture
def root(tmp_path, empty_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def hook():
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(tracker, "trackers:mlflow")
    manager.check_pending()
    return manager.hook


def trial(**changes) -> Trial:
    fields = {
        "task": "toy",
        "scale": "smoke",
        "recipe": {"steps": 20, "evaluate_at": [10]},
        "model": "nano",
        "model_revision": "abc",
        "method": "lora",
        "config": {"r": 8},
        "layer_settings": {"layers.0.q": {"r": 7}},
        "budget": "lora:r=8",
        "budget_parameters": 1000,
        "adapter_parameters": 998,
        "learning_rate": 1e-3,
        "seed": 3,
        "precision": "float32",
    }
    return Trial(**{**fields, **changes})


def record(root: Path | str, what: Trial | None = None, **changes) -> Record:
    fields = {
        "trial": what or trial(),
        "state": State.COMPLETE,
        "metrics": {"accuracy": 0.75, "perplexity": None},
        "reasons": {"perplexity": "no text to score"},
        "history": [
            {"step": 10, "metrics": {"train/loss": 2.5, "skipped": None}},
            {"step": 20, "metrics": {"train/loss": 1.5, "odd=name": 4.0}},
        ],
        "main_metric": "accuracy",
        "higher_is_better": True,
        "cost": {"train_seconds": 12.5, "step_seconds_solo": None},
        "counts": {"adapter_parameters": 998},
        "environment": {"sweep": "main", "results_root": str(root), "git_commit": "f00ba4"},
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:04:25+00:00",
    }
    return Record(**{**fields, **changes})


def replay(hook, *records, environment=None):
    for each in records:
        hook.harness_trial_started(trial=each.trial, environment=environment or each.environment)
        hook.harness_trial_finished(trial=each.trial, record=each)


def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs(uri, task="toy"):
    """Return (the parents, the children), each a list of runs."""
    mlflow = client(uri)
    found = mlflow.search_runs([mlflow.get_experiment_by_name(f"harness/{task}").experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    return parents, [run for run in found if "mlflow.parentRunId" in run.data.tags]


def database(root):
    return f"sqlite:///{root}/mlflow.db"


def test_a_trial_becomes_a_child_of_its_sweep(root, hook):
    replay(hook, record(root), record(root, trial(seed=4)))
    [parent], children = runs(database(root))
    assert parent.info.run_name == "main"
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.info.run_name for run in children) == ["toy/lora/lr0.001/s3", "toy/lora/lr0.001/s4"]


def test_run_holds_parameters_tags_and_final_numbers(root, hook):
    replay(hook, record(root))
    _, [run] = runs(database(root))
    parameters = run.data.params
    assert parameters["config/r"] == "8"
    assert parameters["recipe/evaluate_at"] == "[10]"
    assert parameters["budget"] == "lora:r=8"
    assert json.loads(parameters["layer_settings"]) == {"layers.0.q": {"r": 7}}
    tags = run.data.tags
    expected = {"task": "toy", "method": "lora", "model": "nano", "budget": "lora:r=8", "seed": "3"}
    expected |= {"state": "complete", "sweep": "main", "trial_id": trial().id}
    expected |= {"mlflow.source.git.commit": "f00ba4", "reason/perplexity": "no text to score"}
    assert {key: tags[key] for key in expected} == expected
    assert "accuracy 0.75" in tags["mlflow.note.content"]
    final = {"final/accuracy": 0.75, "cost/train_seconds": 12.5, "count/adapter_parameters": 998.0}
    assert {key: value for key, value in run.data.metrics.items() if key.startswith(("final", "c"))} == final
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (STARTED, FINISHED)


def test_curves_keep_their_steps_and_lie_between_start_and_end(root, hook):
    replay(hook, record(root))
    _, [run] = runs(database(root))
    points = client(database(root)).get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value, each.timestamp) for each in points] == [
        (10, 2.5, STARTED + 10_000),
        (20, 1.5, FINISHED),
    ]
    assert run.data.metrics["odd_name"] == 4.0  # MLflow refuses "="
    assert "skipped" not in run.data.metrics


def test_more_points_parameters_and_tags_than_one_request_may_hold(root, hook):
    history = [{"step": step, "metrics": {"train/loss": float(step)}} for step in range(2500)]
    config = {f"setting_{index}": index for index in range(150)}
    reasons = {f"metric_{index}": "none" for index in range(150)}
    replay(hook, record(root, trial(config=config), history=history, reasons=reasons))
    _, [run] = runs(database(root))
    points = client(database(root)).get_metric_history(run.info.run_id, "train/loss")
    assert [point.value for point in points] == [float(step) for step in range(2500)]
    assert run.data.params["config/setting_149"] == "149"
    assert run.data.tags["reason/metric_149"] == "none"


def test_the_record_is_an_artifact_and_the_adapter_stays_where_it_is(root, hook):
    name = Store(str(root)).write_artifact(f"adapters/{trial().id}.safetensors", WEIGHTS)
    what = record(root, artifacts={"adapter": name})
    replay(hook, what)
    _, [run] = runs(database(root))
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert folder.is_relative_to(root / "mlartifacts")
    assert Record.from_json(json.loads((folder / f"{trial().id}.json").read_text())) == what
    assert Path(run.data.tags["artifact/adapter"]).read_bytes() == WEIGHTS
    assert not list((root / "mlartifacts").rglob("*.safetensors"))  # no second copy


def test_a_sweeps_run_has_its_parameters_command_and_a_table_of_its_trials(root, hook):
    environment = {**record(root).environment, "command": "harness run --task toy"}
    both = [record(root, trial(seed=seed), environment=environment) for seed in (10, 9)]
    replay(hook, *both)
    hook.harness_sweep_finished()
    [parent], _ = runs(database(root))
    assert parent.data.params["seed"] == "9, 10"
    assert parent.data.params["method"] == "lora"
    assert parent.data.tags["command"] == "harness run --task toy"
    assert "harness run --task toy" in parent.data.tags["mlflow.note.content"]
    folder = Path(parent.info.artifact_uri.removeprefix("file://"))
    table = json.loads((folder / "summary.json").read_text())
    lines = [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]
    assert [(line["seed"], line["state"], line["metric"], line["score"]) for line in lines] == [
        ("9", "complete", "accuracy", 0.75),
        ("10", "complete", "accuracy", 0.75),
    ]
    # A later command of the same sweep adds to it: MLflow's parameters are final, its tags and the table are not.
    replay(hook, record(root, trial(seed=11), environment=environment))
    hook.harness_sweep_finished()
    [parent], _ = runs(database(root))
    assert parent.data.tags["seed"] == "9, 10, 11"
    assert len(json.loads((folder / "summary.json").read_text())["data"]) == 3


def test_a_trials_run_has_its_data_hardware_and_system_metrics(root, hook):
    environment = {**record(root).environment, "hardware": {"device": "Test CPU", "memory_gib": 8}}
    cost = {"peak_memory_bytes": 512_000_000, "step_seconds_solo": 0.0125}
    replay(hook, record(root, trial(data="hub/set@abc"), environment=environment, cost=cost))
    _, [run] = runs(database(root))
    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "toy"
    assert "hub/set@abc" in data.dataset.source
    assert (run.data.tags["hardware/device"], run.data.tags["hardware/memory_gib"]) == ("Test CPU", "8")
    assert run.data.metrics["system/peak_memory_megabytes"] == pytest.approx(512)
    assert run.data.metrics["system/step_milliseconds"] == pytest.approx(12.5)


def test_readings_of_the_machine_are_kept_though_the_record_has_none(root, hook):
    what = record(root)
    hook.harness_trial_started(trial=what.trial, environment=what.environment)
    for step, used in ((10, 300.0), (20, 320.0)):
        metrics = {"train/loss": 1.0, "system/process_memory_usage_megabytes": used}
        hook.harness_trial_progress(trial=what.trial, step=step, metrics=metrics)
    hook.harness_trial_finished(trial=what.trial, record=what)
    _, [run] = runs(database(root))
    points = client(database(root)).get_metric_history(run.info.run_id, "system/process_memory_usage_megabytes")
    assert [(each.step, each.value) for each in points] == [(10, 300.0), (20, 320.0)]


def test_an_experiment_opens_as_runs_and_not_as_traces(root, hook):
    mlflow = client(database(root))
    mlflow.create_experiment("harness/older")  # by a version that did not say so
    replay(hook, record(root), record(root, trial(task="older")))
    for name in ("harness/toy", "harness/older"):
        assert mlflow.get_experiment_by_name(name).tags["mlflow.experimentKind"] == "custom_model_development"


@pytest.mark.parametrize("name", ["what?x=1", "a # b", "50%25 off", "two words"])
def test_whatever_the_folder_is_called_the_database_lies_in_it_and_nothing_beside_it(tmp_path, hook, monkeypatch, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / name
    root.mkdir()
    replay(hook, record(root))
    hook.harness_sweep_finished()
    assert (root / "mlflow.db").exists()
    assert (root / "mlartifacts").exists()
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.slow
def test_two_commands_may_create_one_database_at_the_same_time(tmp_path):
    """Four processes that have loaded MLflow already, so that they meet."""
    code = """
import os, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from harness_plugins.trackers.mlflow.tracker import Tracker
for _ in range(4):
    if os.fork() == 0:
        Tracker(Path(sys.argv[1]))
        os._exit(0)
sys.exit(sum(os.wait()[1] != 0 for _ in range(4)))
"""
    environment = {"PYTHONPATH": ":".join(sys.path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


def test_replaying_twice_changes_nothing(root, hook, monkeypatch):
    both = [record(root), record(root, trial(task="other"))]
    replay(hook, *both)
    before = [runs(database(root), task) for task in ("toy", "other")]
    monkeypatch.setattr(tracker, "_trackers", {})  # as a new process would start
    replay(hook, *both)
    after = [runs(database(root), task) for task in ("toy", "other")]
    assert [[run.to_dictionary() for run in group] for pair in after for group in pair] == [
        [run.to_dictionary() for run in group] for pair in before for group in pair
    ]


def test_moved_results_are_read_where_they_are_now(root, hook):
    name = Store(str(root)).write_artifact(f"adapters/{trial().id}.safetensors", WEIGHTS)
    what = record("/the/old/place", artifacts={"adapter": name})
    replay(hook, what, environment={**what.environment, "results_root": str(root)})
    _, [run] = runs(database(root))
    assert run.data.tags["results_root"] == str(root)


@pytest.mark.parametrize(("state", "status"), [("failed", "FAILED"), ("diverged", "FAILED"), ("interrupted", "KILLED")])
def test_a_trial_that_did_not_complete_says_why(root, hook, state, status):
    error = {"type": "ValueError", "message": "r=0 is not positive", "traceback": "...", "step": 7}
    what = record(root, state=State(state), metrics={"accuracy": None}, error=error)
    replay(hook, what)
    _, [run] = runs(database(root))
    assert run.info.status == status
    assert run.data.tags["state"] == state
    assert run.data.tags["error/type"] == "ValueError"
    assert run.data.tags["error/message"] == "r=0 is not positive"
    assert run.data.tags["error/step"] == "7"
    assert "final/accuracy" not in run.data.metrics


def test_a_finished_trial_takes_the_place_of_its_interrupted_attempt(root, hook):
    replay(hook, record(root, state=State.INTERRUPTED), record(root))
    _, [run] = runs(database(root))
    assert run.info.status == "FINISHED"


def test_somebody_elses_run_of_the_same_trial_is_kept(root, hook, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(root))
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts if no server says otherwise
    replay(hook, record(root, state=State.INTERRUPTED), record(tmp_path / "elsewhere"))
    parents, children = runs(database(root))
    assert len(parents) == 2
    assert sorted(run.info.status for run in children) == ["FINISHED", "KILLED"]


def test_tracking_uri_of_the_environment_is_honoured(root, hook, tmp_path, empty_database, monkeypatch):
    (root / "mlflow.db").unlink()
    shutil.copy(empty_database, tmp_path / "team.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    monkeypatch.chdir(tmp_path)
    replay(hook, record(root))
    _, [run] = runs(f"sqlite:///{tmp_path}/team.db")
    assert run.data.tags["trial_id"] == trial().id
    assert list(root.iterdir()) == []


def test_remote_results_need_a_tracking_uri(hook, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match=r"'memory://results'.*MLFLOW_TRACKING_URI.*--no-mlflow"):
        hook.harness_trial_started(trial=trial(), environment={"results_root": "memory://results", "sweep": "s"})


def test_the_adapter_of_remote_results_is_named_by_its_url(root, hook, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database(root))
    monkeypatch.chdir(tmp_path)
    store = Store(f"memory://mlflow-{tmp_path.name}")
    name = store.write_artifact("adapters/x.safetensors", WEIGHTS)
    replay(hook, record(store.root, artifacts={"adapter": name}))
    _, [run] = runs(database(root))
    assert run.data.tags["artifact/adapter"] == f"{store.root}/adapters/x.safetensors"


def test_running_trials_are_shown_and_not_written_twice(root, hook, monkeypatch):
    monkeypatch.setattr("harness_plugins.trackers.mlflow.tracker.LIVE_FRACTION", 1e9)
    what, other = record(root), record(root, trial(seed=4))
    for each in (what, other):
        hook.harness_trial_started(trial=each.trial, environment=each.environment)
    tracker._tracker(what.environment).result()  # the database is open
    hook.harness_trial_progress(trial=what.trial, step=10, metrics={"train/loss": 2.5})
    [parent], children = runs(database(root))
    assert len(children) == 2  # all lanes of a pack, not only the one that reports
    assert {run.info.status for run in (parent, *children)} == {"RUNNING"}
    shown = {run.data.tags["trial_id"]: run.data.metrics for run in children}
    assert shown == {what.trial_id: {"train/loss": 2.5}, other.trial_id: {}}

    opened = tracker._tracker(what.environment).result()
    log_batch, written = opened.client.log_batch, []
    with monkeypatch.context() as patch:
        patch.setattr(opened.client, "log_batch", lambda *a, **k: (written.append(k["metrics"]), log_batch(*a, **k)))
        hook.harness_trial_finished(trial=what.trial, record=what)
    assert [(point.key, point.step) for batch in written for point in batch if point.key == "train/loss"] == [
        ("train/loss", 20)
    ]
    [parent], children = runs(database(root))
    assert parent.info.status == "RUNNING"  # the sweep goes on
    [run] = [run for run in children if run.data.tags["trial_id"] == what.trial_id]
    points = client(database(root)).get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == [(10, 2.5), (20, 1.5)]

    hook.harness_trial_finished(trial=other.trial, record=other)
    assert [run.info.status for group in runs(database(root)) for run in group] == ["FINISHED"] * 3


def test_a_run_left_by_a_crash_is_replaced(root, hook, monkeypatch):
    monkeypatch.setattr("harness_plugins.trackers.mlflow.tracker.LIVE_FRACTION", 1e9)
    what = record(root)
    hook.harness_trial_started(trial=what.trial, environment=what.environment)
    tracker._tracker(what.environment).result()
    hook.harness_trial_progress(trial=what.trial, step=10, metrics={"train/loss": 9.0})
    monkeypatch.setattr(tracker, "_running", {})  # the process dies; the next one
    monkeypatch.setattr(tracker, "_trackers", {})
    replay(hook, what)
    _, [run] = runs(database(root))
    points = client(database(root)).get_metric_history(run.info.run_id, "train/loss")
    assert [point.value for point in points] == [2.5, 1.5]


def test_a_run_whose_end_was_not_written_is_replaced(root, hook, monkeypatch):
    what = record(root)
    opened = tracker._tracker(what.environment).result()
    with monkeypatch.context() as patch:
        patch.setattr(opened.client, "set_terminated", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
        with pytest.raises(ConnectionError):
            replay(hook, what)
    replay(hook, what)
    _, [run] = runs(database(root))
    assert run.info.status == "FINISHED"


def test_showing_running_trials_stays_within_its_share_of_the_time(root, hook, monkeypatch):
    what = record(root)
    hook.harness_trial_started(trial=what.trial, environment=what.environment)
    opened = tracker._tracker(what.environment).result()
    batches = []
    monkeypatch.setattr(opened.client, "log_batch", lambda *a, **k: (batches.append(k), time.sleep(0.02)))
    for step in range(100):
        hook.harness_trial_progress(trial=what.trial, step=step, metrics={"train/loss": 1.0})
    assert len([each for each in batches if "metrics" in each]) == 1  # the next is due after 4 s
    monkeypatch.undo()
    monkeypatch.setattr(tracker, "_running", {})


def test_a_failure_is_raised_and_the_next_replay_mends_it(root, hook, monkeypatch):
    what = record(root)
    opened = tracker._tracker(what.environment).result()
    with monkeypatch.context() as patch:
        patch.setattr(opened.client, "log_text", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            replay(hook, what)
    replay(hook, what)
    _, [run] = runs(database(root))
    assert run.info.status == "FINISHED"


def test_a_database_that_cannot_be_opened_fails_at_the_end_of_the_trial(root, hook):
    (root / "mlflow.db").write_text("not a database" * 100)
    what = record(root)
    hook.harness_trial_started(trial=what.trial, environment=what.environment)
    hook.harness_trial_progress(trial=what.trial, step=1, metrics={"train/loss": 1.0})
    with pytest.raises(Exception, match="not a database"):
        hook.harness_trial_finished(trial=what.trial, record=what)


def test_a_database_that_cannot_be_migrated_says_what_to_do_and_the_next_trial_tries_again(root, hook, empty_database):
    with sqlite3.connect(root / "mlflow.db") as database_of_an_interrupted_start:
        database_of_an_interrupted_start.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    what = record(root)
    advice = rf"mlflow\.db cannot be .*move it away and run `harness track rebuild --results {re.escape(str(root))}`"
    with pytest.raises(UsageError, match=advice) as failure:
        replay(hook, what)
    assert "\n" not in str(failure.value)
    shutil.copy(empty_database, root / "mlflow.db")
    replay(hook, what)
    assert len(runs(database(root))[1]) == 1


def test_a_start_that_failed_once_costs_no_trial_its_run(root, hook, monkeypatch):
    """As when two sweeps create one database: the other has done it by the time that this trial ends."""
    what = record(root)
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "Tracker", lambda *_: (_ for _ in ()).throw(OSError("table exists")))
        hook.harness_trial_started(trial=what.trial, environment=what.environment)
        with pytest.raises(OSError, match="table exists"):
            tracker._running[what.trial_id].opening.result()
    hook.harness_trial_finished(trial=what.trial, record=what)
    assert len(runs(database(root))[1]) == 1


def test_database_is_created_quietly_where_there_is_none(tmp_path):
    """In a process of its own: it also shows that the plugin alone loads no MLflow."""
    what = dataclasses.replace(record(tmp_path), history=())
    (tmp_path / "record.json").write_text(what.dumps())
    code = (
        "import json, sys; from harness import Record;"
        "from harness_plugins.trackers import mlflow as tracker;"
        "loaded = {'mlflow', 'pandas', 'fsspec'} & set(sys.modules); assert not loaded, loaded;"
        f"record = Record.from_json(json.load(open({str(tmp_path / 'record.json')!r})));"
        "tracker.harness_trial_started(record.trial, record.environment);"
        "tracker.harness_trial_finished(record.trial, record)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(runs(database(tmp_path))[1]) == 1

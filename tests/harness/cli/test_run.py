"""``harness run`` from end to end: what it trains and keeps, what it prints, how it exits."""

from __future__ import annotations

import dataclasses
import json
import signal
import time

import psutil
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from harness import hookimpl
from harness.bases import resolve
from harness.cli.exit_codes import INTERRUPTED, TRACKING_INCOMPLETE, TRIALS_FAILED
from harness.results.store import Store

SMALL = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2", "--seeds", "1"]
QUICK = ["--budget", "quick", "--workers", "1", "--device", "cpu", "--no-mlflow", *SMALL]


@pytest.fixture(scope="module")
def results(trouble, process, tmp_path_factory):
    """A result root with a complete and a diverged trial; the exit code of the run and what it printed."""
    root = tmp_path_factory.mktemp("run") / "results"
    first = process("run", *QUICK, "--methods", "quick,diverging", "--results", root)
    out, err = first.communicate(timeout=120)
    return root, first.returncode, out, err


def test_a_run_with_a_diverged_trial_finishes_the_rest_and_exits_with_4(results, command):
    root, code, out, err = results
    records = {record.trial.method: record for record in Store(str(root)).records()}
    assert {name: record.state.value for name, record in records.items()} == {
        "quick": "complete",
        "diverging": "diverged",
    }
    assert code == TRIALS_FAILED, err
    assert "trouble: 2 records" in out
    assert "[2/2] diverged uuid/diverging" in err
    assert err.count("WARNING harness_trouble: there is no number any more\n") == 1, "a worker's warning is shown, once"
    identity = records["diverging"].trial_id
    assert f"`harness results show {identity} --results {root}`" in err
    assert "to try it again" not in err, "what diverged is the method's result"
    assert f"`harness leaderboard --results {root}` renders them" in err
    assert "diverged" in command("results", "show", records["diverging"].trial_id, "--results", root).out
    assert "Traceback" not in err
    assert records["quick"].environment["command"].startswith("harness run --budget quick")


def test_the_same_command_again_trains_nothing_and_says_so(command, results, monkeypatch):
    root, code, out, _ = results
    times = {path: path.stat().st_mtime_ns for path in root.glob("*.json")}
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    done = command("run", *QUICK, "--methods", "quick,diverging", "--results", root)
    assert done.code == code
    assert f"Nothing to train: all 2 trials are in {root}." in done.err
    assert done.out == out
    assert {path: path.stat().st_mtime_ns for path in root.glob("*.json")} == times
    planned = command("plan", "--budget", "quick", *SMALL, "--methods", "quick,diverging", "--results", root)
    assert "2 trials, 0 to do" in planned.out


def test_a_failing_observer_exits_with_3_and_the_records_are_complete(command, results, monkeypatch):
    root, *_ = results
    monkeypatch.setenv("TROUBLE_RAISE", "sweep finished")
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    done = command("run", *QUICK, "--methods", "quick", "--results", root)
    assert done.code == TRACKING_INCOMPLETE
    assert "results complete, tracking incomplete" in done.err


def test_a_failing_observer_does_not_hide_failed_trials(command, results, monkeypatch):
    root, *_ = results
    monkeypatch.setenv("TROUBLE_RAISE", "sweep finished")
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    done = command("run", *QUICK, "--methods", "quick,diverging", "--results", root)
    assert done.code == TRIALS_FAILED
    assert "harness: uuid/diverging/" in done.err
    assert f"harness: tracking incomplete (see the warnings); `harness track rebuild --results {root}`" in done.err
    assert "results complete" not in done.err


def test_a_complete_trial_without_a_score_is_named_with_its_reason(command, results, tmp_path, monkeypatch):
    (scored,) = [each for each in Store(str(results[0])).records() if each.trial.method == "quick"]
    store = Store(str(tmp_path / "results"))
    store.prepare()
    nothing = {"metrics": {scored.main_metric: None}, "reasons": {scored.main_metric: "no item could be scored"}}
    store.write(dataclasses.replace(scored, **nothing))
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    done = command("run", *QUICK, "--methods", "quick", "--results", store.root)
    assert f"{scored.trial.label} has no {scored.main_metric}: no item could be scored: " in done.err
    assert f"harness results show {scored.trial_id} " in done.err


def test_a_plugin_that_cannot_summarize_loses_only_its_own_text(command, results, monkeypatch, caplog):
    @hookimpl
    def harness_summarize(records):
        raise ValueError("no table today")

    root, *_ = results
    monkeypatch.setattr("harness_trouble.harness_summarize", harness_summarize)
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    done = command("run", *QUICK, "--methods", "quick", "--results", root)
    assert done.code == TRACKING_INCOMPLETE
    (warning,) = [each.getMessage() for each in caplog.records if "harness_summarize" in each.getMessage()]
    assert "trouble" in warning
    assert "ValueError: no table today" in warning
    assert "trouble:" not in done.out
    assert "quick" in done.out  # the table of another plugin
    assert "Traceback" not in done.err


def test_a_local_gpt2_is_trained_end_to_end_and_its_observer_may_fail(trouble, command, tmp_path, monkeypatch):
    """GPT-2's linear layers are of another kind, with transposed weights."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("TROUBLE_RAISE", "started")
    root = tmp_path / "results"
    arguments = ["--workers", "1", "--device", "cpu", "--no-mlflow", "--set", "learning_rate=0.01", *SMALL]
    done = command(
        "run", "--model", tmp_path / "model", "--methods", "lora,dora,full", "--budget", "lora:r=2",
        "--tolerance", "0.2", *arguments, "--results", root,
    )  # fmt: skip
    records = {record.trial.method: record for record in Store(str(root)).records()}
    assert {name: record.error for name, record in records.items()} == {"lora": None, "dora": None, "full": None}
    # c_attn (32, 96), c_proj (32, 32), c_fc (32, 128), c_proj (128, 32): r (I + O) on two blocks
    assert records["lora"].counts["adapter_parameters"] == 2 * 2 * (128 + 64 + 160 + 160)
    assert all(record.history[0]["metrics"]["train/loss"] > 0 for record in records.values())
    assert done.code == TRACKING_INCOMPLETE  # all records complete, the observer failed


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(trouble, process, command, tmp_path, monkeypatch):
    root, log = tmp_path / "results", tmp_path / "log"
    arguments = ["run", *QUICK, "--methods", "quick,slow", "--results", root]
    running = process(*arguments, TROUBLE_SECONDS="600", TROUBLE_LOG=str(log))

    def told():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    deadline = time.monotonic() + 120
    while [each["hook"] for each in told()].count("started") < 2:
        assert time.monotonic() < deadline
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = running.communicate(timeout=30)
    assert time.monotonic() - begin < 8, "within 3 seconds, where nothing else keeps the machine busy"
    assert running.returncode == INTERRUPTED
    assert "finished trials are kept, run the same command to go on" in err
    assert "Traceback" not in err
    states = {record.trial.method: record.state.value for record in Store(str(root)).records()}
    assert states == {"quick": "complete", "slow": "interrupted"}
    assert told()[-1] == {"hook": "sweep finished"}
    before = (root / f"{told()[0]['trial']}.json").read_bytes()

    done = command(*arguments)
    assert done.code == 0, done.err
    assert "[1/1] done uuid/slow" in done.err
    states = {record.trial.method: record.state.value for record in Store(str(root)).records()}
    assert states == {"quick": "complete", "slow": "complete"}
    assert (root / f"{told()[0]['trial']}.json").read_bytes() == before


@pytest.mark.slow
def test_workers_end_with_the_command_even_if_that_is_killed(trouble, process, tmp_path):
    log = tmp_path / "log"
    arguments = ["run", *QUICK, "--methods", "slow", "--results", tmp_path / "results"]
    running = process(*arguments, TROUBLE_SECONDS="600", TROUBLE_LOG=str(log))
    deadline = time.monotonic() + 120
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (worker,) = psutil.Process(running.pid).children()
    running.kill()
    running.communicate()
    worker.wait(timeout=20)


@pytest.mark.slow
def test_learning_rates_are_searched_first_and_reported_at_the_best(trouble, command, tmp_path):
    root = tmp_path / "results"
    done = command("run", *QUICK, "--methods", "quick", "--tune", "2", "--seeds", "2", "--results", root)
    assert done.code == 0, done.err
    records = list(Store(str(root)).records())
    reported = [record.trial for record in records if record.trial.purpose == "report"]
    searched = {r.trial.learning_rate: r.score for r in records if r.trial.purpose == "tune"}
    assert sorted(trial.seed for trial in reported) == [0, 1]
    (rate,) = {trial.learning_rate for trial in reported}
    assert searched[rate] == max(searched.values())


def test_what_failed_is_tried_again_where_that_may_help_and_when_asked(trouble, command, tmp_path):
    root = tmp_path / "results"
    arguments = ["run", *QUICK, "--methods", "raising,killed", "--results", root]
    first = command(*arguments)
    records = {record.trial.method: record for record in Store(str(root)).records()}
    assert first.code == TRIALS_FAILED
    assert (records["raising"].state.value, len(records["raising"].attempts)) == ("failed", 0)
    assert (records["killed"].state.value, len(records["killed"].attempts)) == ("lost", 2), "chance had a part"
    assert "uuid/raising/lr0.003/s0 failed: " in first.err
    assert "to try it again: --retry failed" in first.err
    again = command(*arguments)
    assert "Nothing to train: all 2 trials are in" in again.err
    asked = command(*arguments, "--retry", "failed")
    assert "[1/1] failed uuid/raising" in asked.err
    record = Store(str(root)).read(records["raising"].trial_id)
    assert [each["error"]["message"] for each in record.attempts] == ["raised on purpose"]
    assert "Earlier tries" in command("results", "show", record.trial_id, "--results", root).out
    wrong = command(*arguments, "--retry", "complete")
    assert wrong.code == 2
    assert "--retry 'complete' is the method's result" in wrong.err


@pytest.mark.parametrize("commands", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_two_commands_on_one_root_share_the_sweep_and_train_nothing_twice(trouble, process, tmp_path, commands):
    root, log = tmp_path / "results", tmp_path / "log"
    arguments = ["run", *QUICK, "--methods", "quick,slow", "--seeds", "4", "--results", root]
    all_of_them = [process(*arguments, TROUBLE_SECONDS="0.1", TROUBLE_LOG=str(log)) for _ in range(commands)]
    said = [each.communicate(timeout=240) for each in all_of_them]
    assert [each.returncode for each in all_of_them] == [0] * commands, said
    assert all("trouble: 8 records" in out for out, _ in said)
    records = list(Store(str(root)).records())
    assert [record.state.value for record in records] == ["complete"] * 8
    assert [record.attempts for record in records] == [[]] * 8
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert len([each for each in told if each["hook"] == "started"]) == 8, "each trial was trained by one of them"
    assert len({out.splitlines()[-1] for out, _ in said}) == 1, "and each shows all of them"
    assert {path.name for path in (root / "claims").iterdir()} <= {"lock"}
    assert sorted(path.suffix for path in root.iterdir() if path.is_file()) == [".json"] * 8


@pytest.mark.exhaustive
def test_seeds_are_added_until_methods_are_told_apart_or_none_are_left(command, tmp_path):
    small = ["--task", "uuid", "--steps", "2", "--set", "pairs=8", "--set", "batch_size=2", "--device", "cpu"]
    asked = ["run", *small, "--methods", "lora,mora", "--results", tmp_path, "--no-mlflow", "--workers", "1",
             "--seeds", "2", "--max-seeds", "4", "--until-separated"]  # fmt: skip
    done = command(*asked, "1")
    assert done.code == 0
    assert "they get 3 seeds: uuid/lora, uuid/mora" in done.err
    assert "look 3 of 3" in done.out
    assert len(list(tmp_path.glob("*.json"))) == 8
    again = command(*asked, "1")
    assert "Nothing to train" in again.err
    next(tmp_path.glob("*.json")).unlink()  # as if it had been killed before
    assert command(*asked, "1").code == 0
    assert len(list(tmp_path.glob("*.json"))) == 8
    assert command(*asked, "2").code == 2  # another plan

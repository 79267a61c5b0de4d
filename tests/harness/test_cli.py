"""The command line: what it prints, how it exits, and what it says of every foreseeable mistake."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from harness import cli
from harness.bases import resolve
from harness.store import Store

SMALL = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2"]
QUICK = ["--budget", "quick", "--workers", "1", "--device", "cpu", "--no-mlflow", *SMALL]


class Done:
    """A command that has ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def command(capsys, *arguments):
    """Run a command in this process, as the installed script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which `run` set for its process
    captured = capsys.readouterr()
    return Done(stop.value.code or 0, captured.out, captured.err)


def process(*arguments, **environment):
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(trouble, tmp_path_factory):
    """A result root with a complete and a diverged trial, and what the run printed."""
    root = tmp_path_factory.mktemp("run") / "results"
    first = process("run", *QUICK, "--methods", "quick,diverging", "--results", root)
    out, err = first.communicate(timeout=120)
    return root, Done(first.returncode, out, err)


# --- quick answers ----------------------------------------------------------------------------------------------------


def test_help_answers_at_once_and_names_the_commands():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "harness.cli", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of this process alone, so that a busy machine changes little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
    for name in ("run", "plan", "list", "describe", "check", "results", "leaderboard", "base", "track"):
        assert f"\n  {name} " in done.stdout


def test_help_and_import_load_nothing_heavy():
    code = """
import sys, harness, harness.cli
try:
    harness.cli.app(["--help"])
except SystemExit:
    pass
print(sorted({"torch", "transformers", "pandas", "mlflow", "datasets", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_list_loads_torch_but_nothing_else_heavy():
    code = """
import sys, harness.cli
harness.cli.app(["list", "methods"], standalone_mode=False)
print(sorted({"transformers", "pandas", "mlflow", "datasets", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("kind", "name"), [("methods", "lora"), ("tasks", "uuid")])
def test_list_as_table_and_as_json(capsys, kind, name):
    table = command(capsys, "list", kind)
    assert (table.code, table.err) == (0, "")
    assert any(line.split()[0] == name for line in table.out.splitlines())
    rows = json.loads(command(capsys, "list", kind, "--json").out)
    (row,) = (row for row in rows if row["name"] == name)
    assert row["distribution"] == "peft-harness"
    assert Path(row["file"]).is_file()
    assert json.loads(command(capsys, "--block", "peft-harness", "list", kind, "--json").out) == []


def test_describe_says_what_can_be_set(capsys):
    method = command(capsys, "describe", "lora").out
    for part in ("LoRA (lora)", "solved by r", "an int >= 1", "arxiv.org", "alpha", "r (I + O)"):
        assert part in method
    task = command(capsys, "describe", "uuid").out
    for part in ("character_accuracy *", "generated", "smoke", "paper", "batch_size"):
        assert part in task


def test_base_list_and_version(capsys):
    assert command(capsys, "base", "list").out.startswith("nano  ")
    assert command(capsys, "--version").code == 0


def test_plan_prints_a_table_or_json_and_writes_nothing(capsys, tmp_path):
    arguments = ["plan", *SMALL, "--methods", "lora,full", "--seeds", "2", "--results", tmp_path / "none"]
    table = command(capsys, *arguments)
    assert table.code == 0
    assert "4 trials, 4 to do" in table.out
    assert "+0.00%" in table.out
    assert "reference" in table.out
    trials = json.loads(command(capsys, *arguments, "--json").out)
    assert {(t["method"], t["seed"], t["state"]) for t in trials} == {
        (method, seed, "to do") for method in ("lora", "full") for seed in (0, 1)
    }
    assert len({t["id"] for t in trials}) == 4
    assert not (tmp_path / "none").exists()
    tuned = command(capsys, *arguments, "--tune", "3")
    assert "6 trials, 6 to do (more follow" in tuned.out


def test_a_family_name_stands_for_its_tasks(capsys, tmp_path):
    from harness.registry import build_registry

    registry = build_registry()
    assert cli.expand_tasks(["glue", "uuid", "glue/rte"], registry) == [
        *(name for name in registry.tasks if name.startswith("glue/")),
        "uuid",
    ]


def test_seeds_are_a_number_or_a_list():
    assert cli.parse_seeds("3") == [0, 1, 2]
    assert cli.parse_seeds("0,5") == [0, 5]
    assert cli.parse_seeds("7,") == [7]


def test_check_runs_the_kit_and_exits_with_the_outcome(capsys, trouble):
    good = command(capsys, "check", "rslora")
    assert (good.code, good.out.splitlines()[-1]) == (0, "rslora: all checks passed")
    bad = command(capsys, "check", "miscounting")
    assert bad.code == 1
    assert "failed" in bad.out


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "lorra", *SMALL], "no method is called 'lorra'; did you mean lora"),
        (["--task", "uid"], "no task is called 'uid'; did you mean uuid"),
        (["--suite", "zzz"], "no suite is called 'zzz'"),
        (["--suite", "zzz.toml"], "'zzz.toml' does not exist"),
        ([], "no task given; use --task NAME or --suite NAME"),
        (["--budget", "lots of", *SMALL], "--budget 'lots of' is not a budget"),
        (["--budget", "lora:rank=3", *SMALL], "cannot read setting 'rank=3'"),
        (
            ["--budget", "3", "--methods", "lora,mora", *SMALL],
            "mora: a budget of 3 adapter parameters cannot be reached",
        ),
        (["--model", "./nowhere", *SMALL], "'./nowhere' is not a folder here"),
        (["--model", "nobody/nothing", *SMALL], "model 'nobody/nothing' is not a folder here, and not to be had"),
        (["--model", "{tmp}", *SMALL], "has no config.json; give a folder written by save_pretrained"),
        (["--task", "glue/rte"], "--data-dir"),
        (["--task", "glue/rte", "--data-dir", "{tmp}"], "there is no {tmp}"),
        (["--data-dir", "{tmp}/none", *SMALL], "does not exist"),
        (["--targets", "*zzz", *SMALL], "'*zzz' matches no linear layer of the model"),
        (["--results", "{tmp}/file", *SMALL], "cannot write results to '{tmp}/file'"),
        (["--results", "zzz://x", *SMALL], "zzz://x"),
        (["--set", "junk", *SMALL], "--set 'junk': write FIELD=VALUE"),
        (["--set", "=3", *SMALL], "--set '=3': write FIELD=VALUE"),
        (["--set", "colour=3", *SMALL], "the recipe has no 'colour'"),
        (["--set", "clip_norm=x", *SMALL], "clip_norm='x' is not float"),
        (["--set", "clip_norm=-1", *SMALL], "clip_norm=-1.0 is not allowed; give a float >= 0"),
        (["--set", "schedule=jagged", *SMALL], "give one of 'constant', 'linear', 'cosine'"),
        (["--seeds", "many", *SMALL], "--seeds 'many': give a number of seeds (5) or a list"),
        (["--seeds", "0", *SMALL], "seeds is empty"),
        (["--lr", "fast", *SMALL], "'fast' is not a number"),
        (["--lr", "nan", *SMALL], "must be numbers > 0"),
        (["--tune", "1", *SMALL], "tune=1 must be 0 (off) or at least 2"),
        (["--tolerance", "2", *SMALL], "tolerance=2.0 must be a fraction"),
        (["--precision", "float16", *SMALL], "give auto, float32 or bfloat16"),
        (["--scale", "huge", *SMALL], "no scale 'huge'; it has smoke, small, paper"),
        (["--device", "tpu", *SMALL], "--device 'tpu' is not known"),
        (["--device", "cuda:99", *SMALL], "--device"),
        (["--pack", "lots", *SMALL], "--pack 'lots': give auto, off or a number"),
        (["--workers", "-1", *SMALL], "-1 is not in the range"),
        (["--colour", *SMALL], "No such option"),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_to_do(trouble, capsys, tmp_path, monkeypatch, arguments, said):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    # These end before a worker is needed; none is started in vain, so that the test is quick.
    monkeypatch.setattr("harness.schedule.Scheduler.start", lambda self: None)
    start = time.perf_counter()
    done = command(capsys, "run", "--no-mlflow", *(each.replace("{tmp}", str(tmp_path)) for each in arguments))
    assert said.replace("{tmp}", str(tmp_path)) in done.err
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert time.perf_counter() - start < 20
    assert not list(tmp_path.glob("results/*.json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "lorra"], "no method or task is called 'lorra'; did you mean lora"),
        (["check", "lorra"], "no method is called 'lorra'"),
        (["results", "list"], "no records in 'results'; run something first"),
        (["results", "show", "abc"], "no records in"),
        (["base", "build", "huge"], "no shipped base model is called 'huge'; known: nano"),
        (["list", "colours"], "'colours' is not one of"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_mistakes_of_other_commands(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = command(capsys, *arguments)
    assert said in done.err
    assert done.code == 2


def test_a_reader_that_goes_away_is_no_error():
    code = "import sys; sys.argv = ['harness', 'list', 'methods', '--json']; from harness.cli import main; main()"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -c 1', shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in done.stderr


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_run_with_a_diverged_trial_finishes_the_rest_and_exits_with_4(results):
    root, done = results
    records = {record.trial.method: record for record in Store(str(root)).records()}
    assert {name: record.state.value for name, record in records.items()} == {
        "quick": "complete",
        "diverging": "diverged",
    }
    assert done.code == cli.TRIALS_FAILED, done.err
    assert "trouble: 2 records" in done.out
    assert "[2/2] diverged uuid/diverging" in done.err
    assert f"`harness results show {records['diverging'].trial_id}`" in done.err
    assert "Traceback" not in done.err


def test_the_same_command_again_trains_nothing_and_says_so(results, capsys, monkeypatch):
    root, before = results
    times = {path: path.stat().st_mtime_ns for path in root.glob("*.json")}
    monkeypatch.setattr("harness.schedule.Scheduler.start", lambda self: None)
    done = command(capsys, "run", *QUICK, "--methods", "quick,diverging", "--results", root)
    assert done.code == before.code
    assert f"Nothing to train: all 2 trials are in {root}." in done.err
    assert done.out == before.out
    assert {path: path.stat().st_mtime_ns for path in root.glob("*.json")} == times
    planned = command(capsys, "plan", "--budget", "quick", *SMALL, "--methods", "quick,diverging", "--results", root)
    assert "2 trials, 0 to do" in planned.out


def test_results_are_listed_shown_and_exported(results, capsys, tmp_path):
    root, _ = results
    (record,) = (each for each in Store(str(root)).records() if each.trial.method == "quick")
    listed = command(capsys, "results", "list", "--results", root).out
    assert record.trial_id in listed
    assert "diverging" in listed
    assert "character_accuracy" in command(capsys, "results", "show", record.trial_id[:6], "--results", root).out
    unknown = command(capsys, "results", "show", "zzz", "--results", root)
    assert (unknown.code, "0 records" in unknown.err) == (2, True)
    for name in ("table.csv", "table.parquet", "table.json"):
        assert command(capsys, "results", "export", tmp_path / name, "--results", root).code == 0
        assert (tmp_path / name).stat().st_size > 100
    wrong = command(capsys, "results", "export", tmp_path / "table.xls", "--results", root)
    assert wrong.code == 2
    assert "table.xls" in wrong.err


def test_a_failing_observer_exits_with_3_and_the_records_are_complete(results, capsys, monkeypatch):
    root, _ = results
    monkeypatch.setenv("TROUBLE_RAISE", "sweep finished")
    monkeypatch.setattr("harness.schedule.Scheduler.start", lambda self: None)
    done = command(capsys, "run", *QUICK, "--methods", "quick", "--results", root)
    assert done.code == cli.TRACKING_INCOMPLETE
    assert "results complete, tracking incomplete" in done.err
    monkeypatch.setenv("TROUBLE_RAISE", "finished")
    rebuilt = command(capsys, "--block", "trackers:mlflow", "track", "rebuild", "--results", root)
    assert rebuilt.code == cli.TRACKING_INCOMPLETE
    monkeypatch.delenv("TROUBLE_RAISE")
    assert command(capsys, "--block", "trackers:mlflow", "track", "rebuild", "--results", root).code == 0


def test_a_local_gpt2_is_trained_end_to_end_and_its_observer_may_fail(trouble, capsys, tmp_path, monkeypatch):
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
        capsys, "run", "--model", tmp_path / "model", "--methods", "lora,dora,full", "--budget", "lora:r=2",
        "--tolerance", "0.2", *arguments, "--results", root,
    )  # fmt: skip
    records = {record.trial.method: record for record in Store(str(root)).records()}
    assert {name: record.error for name, record in records.items()} == {"lora": None, "dora": None, "full": None}
    # c_attn (32, 96), c_proj (32, 32), c_fc (32, 128), c_proj (128, 32): r (I + O) on two blocks
    assert records["lora"].counts["adapter_parameters"] == 2 * 2 * (128 + 64 + 160 + 160)
    assert all(record.history[0]["metrics"]["train/loss"] > 0 for record in records.values())
    assert done.code == cli.TRACKING_INCOMPLETE  # all records complete, the observer failed


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(trouble, capsys, tmp_path, monkeypatch):
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
    _, err = running.communicate(timeout=30)
    assert running.returncode == cli.INTERRUPTED
    assert "finished trials are kept, run the same command to go on" in err
    assert "Traceback" not in err
    states = {record.trial.method: record.state.value for record in Store(str(root)).records()}
    assert states == {"quick": "complete", "slow": "interrupted"}
    assert told()[-1] == {"hook": "sweep finished"}
    before = (root / f"{told()[0]['trial']}.json").read_bytes()

    done = command(capsys, *arguments)
    assert done.code == 0, done.err
    assert "[1/1] done uuid/slow" in done.err
    states = {record.trial.method: record.state.value for record in Store(str(root)).records()}
    assert states == {"quick": "complete", "slow": "complete"}
    assert (root / f"{told()[0]['trial']}.json").read_bytes() == before


@pytest.mark.slow
def test_workers_end_with_the_command_even_if_that_is_killed(trouble, tmp_path):
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
def test_two_sweeps_at_once_into_one_folder_corrupt_nothing(trouble, tmp_path):
    root = tmp_path / "results"
    arguments = ["run", *QUICK, "--methods", "quick,slow", "--seeds", "4", "--results", root]
    both = [process(*arguments, TROUBLE_SECONDS="0.1") for _ in range(2)]
    for each in both:
        out, err = each.communicate(timeout=240)
        assert each.returncode == 0, err
        assert "trouble: 8 records" in out
    records = list(Store(str(root)).records())
    assert len(records) == 8
    assert {record.state.value for record in records} == {"complete"}
    assert sorted(path.suffix for path in root.iterdir() if path.is_file()) == [".json"] * 8


@pytest.mark.slow
def test_learning_rates_are_searched_first_and_reported_at_the_best(trouble, capsys, tmp_path):
    root = tmp_path / "results"
    done = command(capsys, "run", *QUICK, "--methods", "quick", "--tune", "2", "--seeds", "2", "--results", root)
    assert done.code == 0, done.err
    records = list(Store(str(root)).records())
    reported = [record.trial for record in records if record.trial.purpose == "report"]
    searched = {r.trial.learning_rate: r.score for r in records if r.trial.purpose == "tune"}
    assert sorted(trial.seed for trial in reported) == [0, 1]
    (rate,) = {trial.learning_rate for trial in reported}
    assert searched[rate] == max(searched.values())

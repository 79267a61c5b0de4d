"""`harness run`'s InstructEval scores are those of the `lm_eval` command, given the exported model and the same rows.

The trial trains on text like the questions, so that it answers some of them and there is something to agree on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import TaskContext
from harness.bases import resolve
from harness.cli import app
from harness.contract.record import Record
from harness.planning.registry import build_registry
from harness.results.export import export_merged, export_peft, read_trained
from harness.results.store import Store
from harness_benchmarks.tasks import instructeval
from harness_benchmarks.tasks.instructeval import InstructEvalRecipe, InstructEvalTask
from harness_benchmarks.tasks.instructeval.lm_evaluation import samples
from harness_benchmarks.tasks.instructeval.sandbox import refusal

pytest.importorskip("lm_eval")
torch.set_num_threads(1)

SIZES = {
    "steps": 40, "max_length": 200, "held_out": 4, "limit": 0, "mmlu_shots": 1, "bbh_shots": 1, "drop_shots": 1,
    "max_new_tokens": 17,
}  # fmt: skip
SUBJECTS = ("abstract_algebra", "virology")
MEASURES = {"mmlu": "acc", "bbh": "exact", "drop": "f1", "drop_exact": "exact", "humaneval": "pass"}
OFFLINE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
confined = pytest.mark.skipif(bool(refusal()), reason=refusal() or "confined")


def write(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tables(root: Path):
    """Write small tables of every set; what is trained on spells out their form, and some of the answers."""
    lessons = [
        lesson
        for n in range(20)
        for lesson in (
            f"Passage {n}. What is {n}?\nAnswer: a big {'cat' if n % 2 else 'dog'}\n",
            f"A. p\nB. q\nC. r\nD. s\nAnswer: {'ABCD'[n % 4]}\n",
            "def f(x):\n    return x + 1\n",
        )
    ]
    rows = [{"instruction": f"Say {n}.", "input": "", "output": 2 * lesson} for n, lesson in enumerate(lessons)]
    write(root / "alpaca/train.jsonl", rows)
    for split, count in (("dev", 1), ("val", 1), ("test", 8)):
        rows = [
            {"question": f"{split} {subject} {n}?", "subject": subject, "choices": list("pqrs"), "answer": n % 4}
            for subject in SUBJECTS
            for n in range(count)
        ]
        write(root / f"mmlu/{split}.jsonl", rows)
    rows = [
        {"task": task, "input": f"What is {n}?", "target": ("a big dog", "a big cat", "a small cow")[n % 3]}
        for task, count in (("navigate", 7), ("snarks", 5))
        for n in range(count)
    ]
    write(root / "bbh/test.jsonl", rows)
    rows = [
        {
            "passage": f"Passage {n}.",
            "question": f"What is {n}?",
            "ref_answers": [("a big dog", "a big cat", "5", "big")[n % 4]],
        }
        for n in range(9)
    ]
    write(root / "drop/validation.jsonl", rows)
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "test": f"def check(f):\n    assert f(0) == {n % 2}\n",
        }
        for n in range(4)
    ]
    write(root / "humaneval/test.jsonl", rows)


def write_task(folder: Path, part):
    """Write one of the shipped task files as lm-eval reads it from a folder: with its name, its rows and its shots."""
    tables = {"test": str(folder / f"{part.name}.jsonl")}
    write(Path(tables["test"]), part.rows)
    if part.shots:
        tables["shots"] = str(folder / f"{part.name}_shots.jsonl")
        write(Path(tables["shots"]), part.shots)
    task = {
        "include": str(Path(instructeval.__file__).with_name(f"{part.file}.yaml")),
        "task": part.name,
        "num_fewshot": part.num_shots,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": tables},
    }
    (folder / f"{part.name}.yaml").write_text(json.dumps(task))  # JSON is YAML


def run(module, *arguments):
    """Run a command offline and return what it printed."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **OFFLINE})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A trained trial's record, what lm-eval's command found on its merged export, and on what rows."""
    root = tmp_path_factory.mktemp("agreement")
    data, results, tasks = root / "data", root / "results", root / "tasks"
    write_tables(data / "instructeval")
    sizes = [each for name, value in SIZES.items() for each in ("--set", f"{name}={value}")]
    arguments = [
        "run", "--methods", "lora", "--task", "instructeval", "--seeds", "1", "--lr", "1e-2", *sizes,
        "--data-dir", data, "--results", results, "--device", "cpu", "--workers", "1", "--no-mlflow",
        "--allow-code-execution",
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*map(str, arguments)], env=OFFLINE, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (path,) = results.glob("*.json")
    record = Record.from_json(json.loads(path.read_text()))
    trained = read_trained(build_registry(), Store(str(results)), record)
    export_merged(trained, root / "merged")
    export_peft(trained, root / "peft")

    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    recipe = InstructEvalRecipe(**{**record.trial.recipe, "evaluate_at": ()})
    context = TaskContext(tokenizer=tokenizer, recipe=recipe, seed=record.trial.seed, data_dir=data)
    parts = [part for each in InstructEvalTask().load(context).splits["test"].parts.values() for part in each]
    tasks.mkdir()
    for part in parts:
        write_task(tasks, part)
    run(
        "lm_eval", "--model", "hf", "--model_args", f"pretrained={root / 'merged'},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(part.name for part in parts), "--include_path", tasks, "--batch_size", "1",
        "--gen_kwargs", f"max_gen_toks={SIZES['max_new_tokens']}", "--output_path", root / "found", "--log_samples",
        "--confirm_run_unsafe_code",
    )  # fmt: skip
    (path,) = root.glob("found/**/results_*.json")
    logged = {}
    for part in parts:
        (log,) = root.glob(f"found/**/samples_{part.name}_*.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        logged[part.name] = sorted(rows, key=lambda row: row["doc_id"])
    return SimpleNamespace(
        record=record, parts=parts, tokenizer=tokenizer, adapter=root / "peft", logged=logged,
        results=json.loads(path.read_text())["results"],
    )  # fmt: skip


def of_set(both, metric):
    """Return the parts of the set that a metric scores."""
    return [part for part in both.parts if part.file == metric.removesuffix("_exact")]


@pytest.mark.parametrize("metric", ["mmlu", "bbh", "drop", "drop_exact", pytest.param("humaneval", marks=confined)])
def test_every_score_is_that_of_lm_evals_command(both, metric):
    measure, parts = MEASURES[metric], of_set(both, metric)
    theirs = [row[measure] for part in parts for row in both.logged[part.name]]
    assert both.record.items[metric] == pytest.approx(theirs, abs=1e-6)
    assert 0 < sum(theirs) < len(theirs)  # there is something to agree on

    each = [both.results[part.name] for part in parts]
    weights = [1 if metric == "bbh" else found["sample_len"] for found in each]  # BBH: the mean over subtasks
    mean = sum(w * found[f"{measure},none"] for w, found in zip(weights, each, strict=True)) / sum(weights)
    assert both.record.metrics[metric] == pytest.approx(mean, abs=1e-6)


def test_the_model_under_its_adapter_says_what_the_merged_model_says(both):
    """Outputs agree one by one, not only their scores: `samples` is what the task scores the live model with."""
    base = AutoModelForCausalLM.from_pretrained(resolve("nano"))
    model = PeftModel.from_pretrained(base, both.adapter).eval()
    parts = [part for part in both.parts if part.file != "humaneval" or not refusal()]
    with torch.no_grad():
        ours = samples(model, both.tokenizer, parts, 3, allow_code_execution=True)
    for part in parts:
        for mine, theirs in zip(ours[part.name], both.logged[part.name], strict=True):
            assert [each[0] for each in mine["arguments"]] == [a["arg_0"] for a in theirs["arguments"].values()]
            if part.file == "mmlu":
                given, wanted = ([float(each[0]) for each in found["filtered_resps"]] for found in (mine, theirs))
                assert given == pytest.approx(wanted, rel=1e-4)
                assert len(set(wanted)) == 4
            else:
                assert mine["filtered_resps"] == theirs["filtered_resps"]


@confined
def test_the_programs_that_pass_are_those_that_return_the_right_sum(both):
    for number, row in enumerate(both.logged["humaneval"]):
        line = row["filtered_resps"][0].rstrip()
        assert row["pass"] == float(line == f"    return x + {number % 2}")

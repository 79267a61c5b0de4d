"""``harness run`` on tasks at their smoke scale, as it is, on the tables of ``conftest``.

One task of each kind runs by default with LoRA, which is packed, and one on an encoder with full fine-tuning as well,
which trains alone. Marked ``exhaustive``: every task with a method of each kind, those that override the same parts
of ``Method``, and every method on the main job's. (All of that runs by default with shorter recipes, in
``test_every_task_with_every_method``.)
Tasks that differ in nothing but their rows are tried once per model: on the shipped base, GLUE's one sentence, three
classes and regression stand for its eight, which run on an encoder; C4's smallest size stands for the others. What a
score must be is tested with its task.
"""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from harness.cli import app
from harness.contract.method import Method
from harness.planning.registry import build_registry
from harness.results.store import Store
from harness_benchmarks.tasks.instructeval.sandbox import refusal

REGISTRY = build_registry(block=["trackers:mlflow"])
GLUE = [name for name in REGISTRY.tasks if name.startswith("glue/")]
SAME = {name for name in REGISTRY.tasks if name.startswith("c4/")} | set(GLUE) - {"glue/cola", "glue/mnli", "glue/stsb"}

RUNS_CODE = {"code"}  # to have a score at all
JUDGED = {"mt-bench", "alpaca-eval"}
MAIN = "uuid"  # the main job's task
# Memorised, pretrained from scratch, answered in words, read on and asked, scored by lm-eval.
OF_EACH_KIND = (MAIN, "c4", "commonsense", "continual/finance", "instructeval")


def one_of_each_kind():
    """Return the first method of each kind, by name, of those that train."""
    kinds = {}
    for name, method in REGISTRY.methods.items():
        if not method.traits.trains:
            continue
        parts = frozenset(part for part in HOOKS if getattr(method, part) is not getattr(Method, part))
        kinds.setdefault(parts, name)
    return list(kinds.values())


HOOKS = ("attach", "calibrate", "parameter_groups", "learning_rate_multiplier", "extra_loss", "after_step")
KINDS = ",".join(one_of_each_kind())


@pytest.fixture(scope="module")
def smoke(tables, tmp_path_factory, judge):
    """Return what runs tasks with methods in one sweep, and returns the records of each task."""

    def run(tasks, methods, *options):
        results = tmp_path_factory.mktemp("smoke")
        arguments = [
            "run", "--methods", methods, "--task", ",".join(tasks), "--seeds", "1", "--data-dir", tables, "--results",
            results, "--device", "cpu", "--workers", "1", "--no-mlflow", "-q",
            *(["--allow-code-execution"] if RUNS_CODE & {*tasks} else []),
            *(["--set", f"judge_url={judge.url}"] if JUDGED & {*tasks} else []), *options,
        ]  # fmt: skip
        of_workers = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = CliRunner().invoke(app, [*map(str, arguments)], env=of_workers, catch_exceptions=False)
        assert done.exit_code == 0, done.output[-3_000:]
        records = {task: [] for task in tasks}
        for record in Store(str(results)).records():
            records[record.trial.task].append(record)
        wanted = set(REGISTRY.methods) if methods == "everything" else set(methods.split(","))
        assert all({record.trial.method for record in each} == wanted for each in records.values())
        return records

    return run


@pytest.fixture(scope="module")
def of_each_kind(smoke):
    """The records of one sweep: a process that has loaded its libraries trains all of it."""
    return smoke(OF_EACH_KIND, "lora")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", OF_EACH_KIND)
def test_a_smoke_recipe_trains_to_its_end(task, of_each_kind):
    check(of_each_kind, task)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_smoke_recipe_trains_on_an_encoder_to_its_end(smoke, encoders):
    check(smoke(["glue/stsb"], "lora,full", "--model", str(encoders["bert"])), "glue/stsb")


@pytest.mark.exhaustive
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("task", [name for name in REGISTRY.tasks if name not in SAME])
def test_every_smoke_recipe_trains_methods_of_each_kind(task, smoke):
    if task in RUNS_CODE and refusal():
        pytest.skip(refusal())
    check(smoke([task], "everything" if task == MAIN else KINDS), task)


@pytest.mark.exhaustive
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("task", GLUE)
def test_every_smoke_recipe_of_glue_trains_on_an_encoder(task, smoke, encoders):
    check(smoke([task], KINDS, "--model", str(encoders["bert"])), task)


def check(records, task):
    recipe, learned = REGISTRY.task(task).recipes["smoke"], []
    for record in records[task]:
        assert record.state == "complete"
        assert record.score is not None
        if not REGISTRY.methods[record.trial.method].traits.trains:
            continue  # it is scored as it is
        assert record.history[-1]["step"] == recipe.steps > 10
        losses, norms = (
            [each["metrics"][f"train/{of}"] for each in record.history] for of in ("loss", "gradient_norm")
        )
        learned.append(min(losses[1:]) < losses[0])
        assert max(norms) > 0, "something trains"
        if record.counts["budget_deviation_fraction"] is not None:
            assert abs(record.counts["budget_deviation_fraction"]) <= 0.01
    # A method that starts from a product of three small factors is nowhere after twenty updates; the conformance kit
    # gives each the updates that it needs.
    assert sum(learned) > len(learned) / 2, "something was learned"

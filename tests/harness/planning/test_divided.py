"""What cannot be done with a model that is divided over several devices is said by name before anything runs."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel

from harness.cli import app
from harness.contract.method import attaches
from harness.engine.model import ModelChoice
from harness.errors import ConfigError, UsageError
from harness.planning.divided import check_divisible
from harness.planning.plan import plan_cells
from harness.planning.registry import build_registry
from harness.planning.suite import build_suite

REGISTRY = build_registry(block=["trackers:mlflow"])


def plan(*methods, shard=2, **suite):
    asked = {"tasks": ["uuid"], "methods": list(methods), "budgets": ["lora:r=8"], **suite}
    return plan_cells(build_suite(asked), REGISTRY, None, "float32", shard)


def test_every_method_that_needs_no_whole_model_is_planned_and_the_trials_are_those_of_one_device():
    methods = [name for name, kind in REGISTRY.methods.items() if not attaches(kind) and name != "lora-ga"]
    assert {"lora", "mora", "relora", "remora", "dora", "pissa"} <= set(methods)
    divided, whole = plan(*methods), plan(*methods, shard=1)
    assert [cell.template.id for cell in divided] == [cell.template.id for cell in whole]


def test_methods_that_need_a_whole_model_are_refused_by_name_all_at_once():
    with pytest.raises(UsageError) as caught:
        plan("lora", "full", "lora-ga")
    full, ga, _ = str(caught.value).splitlines()
    assert full.startswith("full: it works on a model of its own")
    assert ga.startswith("lora-ga: it starts from gradients of whole weights")
    assert "--shard 2" in full
    assert "--shard 2" in ga


def test_a_plan_says_what_each_device_keeps():
    (cell,) = plan("lora", shard=4)
    (note,) = (each for each in cell.notes if "divided" in each)
    # 4 blocks of 4 x 128^2 + 3 x 128 x 384 in matrices; two tables of 259 x 128 and 9 norms of 128 are not divided.
    total = 2 * 259 * 128 + 9 * 128 + 4 * (4 * 128**2 + 3 * 128 * 384)
    assert f"each keeps {total - 3 * (4 * 128**2 + 3 * 128 * 384):,} of {total:,} parameters" in note
    assert "one after the other, uncaptured and uncompiled" in note


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UsageError, match="--shard and quantize='nf4' are two ways"):
        plan("lora", quantize="nf4")
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2))
    choice = ModelChoice("gpt2", "0")
    with pytest.raises(ConfigError, match=r"model 'gpt2': layer 'transformer.h.0.attn.c_attn' is a Conv1D"):
        check_divisible(choice, model, ["transformer.h.0.attn.c_attn"], "")
    with pytest.raises(ConfigError, match="no stack of equal blocks"):
        check_divisible(choice, torch.nn.Linear(2, 2, device="meta"), [], "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pack", "4"], "trains one trial at a time"),
        (["--compile", "on"], "trains one trial at a time"),
        (["--executor", "cloud"], "not on Another machine"),
    ],
)
def test_options_that_a_divided_model_does_not_take_are_refused(options, said, trouble, tmp_path):
    command = [
        "run",
        "--methods",
        "lora",
        "--task",
        "uuid",
        "--device",
        "cpu",
        "--results",
        str(tmp_path),
        "--shard",
        "2",
    ]
    done = CliRunner().invoke(app, [*command, "--shard", "2", *options])
    assert said in str(done.exception or done.output)

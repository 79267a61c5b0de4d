"""What the options ask for, and what is said of every mistake in them."""

from __future__ import annotations

import time

import pytest

from harness.cli.options import parse_seeds
from harness.errors import UsageError
from harness.planning.registry import build_registry
from harness.planning.request import expand_tasks

SMALL = ["--task", "uuid", "--steps", "2", "--set", "pairs=2", "--set", "batch_size=2", "--seeds", "1"]


def test_a_family_name_stands_for_its_tasks():
    registry = build_registry()
    assert expand_tasks(["glue", "uuid", "glue/rte"], registry) == [
        *(name for name in registry.tasks if name.startswith("glue/")),
        "uuid",
    ]


def test_seeds_are_a_number_or_a_list():
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("0,5") == [0, 5]
    assert parse_seeds("7,") == [7]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "lorra", *SMALL], "no method is called 'lorra'; did you mean lora"),
        (["--task", "uid"], "no task is called 'uid'; did you mean uuid"),
        (["--suite", "zzz"], "no suite is called 'zzz'"),
        (["--suite", "zzz.toml"], "'zzz.toml' does not exist"),
        (
            ["--double-quantize", *SMALL],
            "--double-quantize says how the scales of 4-bit weights are kept; give --quantize",
        ),
        (["--quantize", "int8", *SMALL], "--quantize int8 is not known; give nf4"),
        ([], "no task given; use --task NAME or --suite NAME"),
        (["--budget", "lots of", *SMALL], "--budget 'lots of' is not a budget"),
        (["--budget", "lora:rank=3", *SMALL], "--budget 'lora:rank=3': lora: cannot read setting 'rank=3'"),
        (["--budget", "-5", *SMALL], "--budget '-5' comes to -5 parameters; give at least 1"),
        (["--budget", "all:r=3", *SMALL], "--budget 'all:r=3': 'all' stands for several methods"),
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
        (["--set", "steps=3", *SMALL], "--steps 2 and --set steps=3 set one field twice; give one of them"),
        (["--set", "pairs=3", *SMALL], "--set pairs=3 and --set pairs=2 set one field twice"),
        (["--set", "evaluate_at=1+5+9", *SMALL], "evaluate_at=1+5+9 names step 5, but step 2 is the last; give steps"),
        (["--task", "uuid", "--set", "evaluate_at=61"], "task 'uuid': evaluate_at=61 names step 61, but step 60 is"),
        (["--set", "clip_norm=x", *SMALL], "task 'uuid': clip_norm='x' cannot be read; give a number"),
        (["--set", "learning_rate=0", *SMALL], "task 'uuid': learning_rate=0 trains nothing; give a rate > 0"),
        (["--set", "clip_norm=-1", *SMALL], "clip_norm=-1.0 is not allowed; give a float >= 0"),
        (["--set", "schedule=jagged", *SMALL], "give one of 'constant', 'linear', 'cosine'"),
        ([*SMALL, "--seeds", "many"], "--seeds 'many': give a number of seeds (5) or a list"),
        ([*SMALL, "--seeds", "0"], "give a number from 1 to 10000"),
        (["--lr", "fast", *SMALL], "--learning-rates: 'fast' is not a number"),
        (["--lr", "nan", *SMALL], "--learning-rates nan must be numbers > 0"),
        (["--lr", "1e-3,1e-3", *SMALL], "--learning-rates 0.001,0.001 names one twice"),
        (["--lr", "1e-3", "--tune", "3", *SMALL], "give either --learning-rates or --tune, not both"),
        (["--tune", "1", *SMALL], "--tune 1 must be 0 (off) or from 2 to 50 learning rates"),
        (["--tune", "1000000", *SMALL], "--tune 1000000 must be 0 (off) or from 2 to 50"),
        (["--tune-seeds", "0", *SMALL], "--tune-seeds 0 must be from 1 to 100"),
        (["--tune-seeds", "2", *SMALL], "--tune-seeds 2, but nothing is searched; give --tune, too"),
        (["--halving", *SMALL], "--halving stops what is worse after the first of several seeds; give --tune-seeds"),
        (["--until-separated", "0", *SMALL], "--until-separated 0.0 must be a number of points > 0"),
        (["--until-separated", "-5", *SMALL], "--until-separated -5.0 must be a number of points > 0"),
        (
            ["--until-separated", "5", *SMALL],
            "--until-separated: one seed tells nothing apart; give at least 2 --seeds",
        ),
        (["--max-seeds", "0", *SMALL], "--max-seeds 0 is where --until-separated stops; give that too"),
        (["--until-separated", "5", "--max-seeds", "0", *SMALL, "--seeds", "3"], "--max-seeds 0 is not allowed"),
        (["--tolerance", "2", *SMALL], "--tolerance 2.0 must be a fraction"),
        (["--precision", "float16", *SMALL], "--precision float16 is not known; give auto, float32 or bfloat16"),
        ([*SMALL, "--seeds", "1,1"], "--seeds 1,1 names one twice"),
        (["--methods", "lora", "--exclude", "lora", *SMALL], "methods lora, -lora leaves nothing to run"),
        (
            ["--methods", "full", "--quantize", "nf4", *SMALL],
            "full: --quantize nf4: it trains the weight of model.layers.0.self_attn.q_proj",
        ),
        (["--quantize", "nf4", "--shard", "2", *SMALL], "--shard and --quantize nf4 are two ways"),
        (["--methods", "", *SMALL], "--methods '' is empty; give a value, or leave it out"),
        (["--targets", ",", *SMALL], "--targets ',' is empty"),
        (["--budget", "1k", "--budget", " ", *SMALL], "--budget ' ' is empty"),
        (["--task", "uuid", "--steps", "0"], "0 is not in the range x>=1"),
        (["--revision", "main", *SMALL], "--revision main: model 'nano' is a folder here, not one of the hub's"),
        (["--task", "c4", "--model", "nano"], "--model nano: task 'c4' trains a model of its own from scratch"),
        (["--scale", "huge", *SMALL], "no scale 'huge'; it has smoke, small, paper"),
        (["--device", "tpu", *SMALL], "--device 'tpu' is not known"),
        (["--device", "cuda:99", *SMALL], "--device"),
        (["--pack", "lots", *SMALL], "--pack 'lots': give auto, off or a number"),
        (["--workers", "-1", *SMALL], "-1 is not in the range"),
        (["--executor", "locale", *SMALL], "no executor is called 'locale'; did you mean local?"),
        (
            ["--executor", "local:gpus=2", *SMALL],
            "local: cannot read setting 'gpus=2'; write field=value, fields: none",
        ),
        (["--address", "there", *SMALL], "--address 'there': the executor 'local' has no address; leave it out"),
        (["--executor", "cloud:losses=-1", *SMALL], "losses=-1 is not allowed; give an int >= 0"),
        (["--colour", *SMALL], "No such option"),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_to_do(trouble, command, tmp_path, monkeypatch, arguments, said):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    # These end before a worker is needed; none is started in vain, so that the test is quick.
    monkeypatch.setattr("harness.running.schedule.Scheduler.start", lambda self: None)
    start = time.perf_counter()
    done = command("run", "--no-mlflow", *(each.replace("{tmp}", str(tmp_path)) for each in arguments))
    assert said.replace("{tmp}", str(tmp_path)) in done.err
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert time.perf_counter() - start < 20
    assert not list(tmp_path.glob("results/*.json"))


def test_where_no_suite_says_how_many_there_are_three_seeds(command, tmp_path):
    options = ["plan", "--methods", "lora", "--results", tmp_path / "none"]
    done = command(*options, "--task", "uuid")
    assert "3 trials, 3 to do" in done.out
    (tmp_path / "own.toml").write_text('tasks = ["uuid"]\nseeds = [4]')
    assert "1 trials, 1 to do" in command(*options, "--suite", tmp_path / "own.toml").out


@pytest.mark.parametrize("text", ["0", "-3", "99999999999", "9" * 40, "5 5", "a"])
def test_a_number_of_seeds_that_nobody_means_is_refused(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)

"""``--data`` and ``harness data show`` as a user has them."""

from __future__ import annotations

import json

import pytest

from harness.bases import resolve
from harness.results.store import Store


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,body,stars\n" + "".join(f"{i:03},text {i},{1 + i % 3}\n" for i in range(60)))
    return path


COLUMNS = ["--columns", "text=body,label=stars"]


def test_what_is_understood_is_shown(command, reviews):
    told = command("data", "show", reviews, *COLUMNS)
    assert told.code == 0, told.err
    assert "reviews: classification" in told.out
    assert "text = body, label = stars" in told.out
    assert "not read  id" in told.out
    assert "-> ⟦1⟧" in told.out
    found = json.loads(command("data", "show", reviews, *COLUMNS, "--json").out)
    assert found["rows"] == {"train": 48, "validation": 6, "test": 6}
    assert found["labels"]["test"] == {"1": 2, "2": 2, "3": 2}


def test_names_that_say_nothing_are_asked_about(command, reviews):
    told = command("data", "show", reviews)
    assert (told.code, "--columns prompt=question" in told.err) == (2, True)


def test_a_run_on_a_file_is_a_task_of_its_own_and_its_result_is_found_again(command, reviews, tmp_path):
    run = [
        "run", "--data", reviews, *COLUMNS, "--methods", "lora", "--steps", 2, "--seeds", 1, "--workers", 1,
        "--device", "cpu", "--no-mlflow", "--results", tmp_path / "results",
    ]  # fmt: skip
    assert command(*run).code == 0
    (record,) = Store(str(tmp_path / "results")).records()
    assert record.trial.task == "classification/reviews"
    assert record.trial.data.startswith("reviews.csv sha256:")
    assert record.metrics["accuracy"] is not None
    assert len(record.items["accuracy"]) == 6
    assert str(reviews.parent) not in json.dumps(record.trial.to_json()), "where a file is decides nothing"
    assert "Nothing to train" in command(*run).err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    reviews.rename(elsewhere / "reviews.csv")
    run[2] = elsewhere / "reviews.csv"
    assert "Nothing to train" in command(*run).err
    (elsewhere / "reviews.csv").write_text((elsewhere / "reviews.csv").read_text() + "060,text 60,1\n")
    assert command(*run).code == 0
    assert len({each.trial.data for each in Store(str(tmp_path / "results")).records()}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "uuid"], "--data is a task of its own; leave --tasks out"),
        (["--data-kind", "poems"], "--data-kind 'poems' is not known"),
        (["--metric", "bleu"], "classification is not scored by 'bleu'"),
        (["--metric", "somebody/accuracy"], "'somebody/accuracy' is not to be told from 'accuracy' by its name"),
        (["--metric", "accuracy", "--lower-is-better"], "the metrics of a task know their direction"),
        (["--labels", "1,2"], "line 4: label '3' is none of 1, 2"),
        (["--set", "max_length=4"], "rows are longer than 4 tokens"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_anything_trains(command, reviews, arguments, message):
    told = command("plan", "--data", reviews, *COLUMNS, *arguments)
    assert told.code == 2
    assert message in told.err


def test_what_is_about_data_needs_data(command):
    told = command("plan", "--task", "uuid", "--columns", "text=body")
    assert (told.code, "--columns is about --data" in told.err) == (2, True)


CLASSIFIERS = ("lora", "mora", "peft:ia3", "peft:vera", "peft:ln_tuning", "peft:beft")


def test_one_adapter_of_several_tasks_is_refused_before_anything_trains(command, tmp_path):
    told = command("run", "--tasks", "uuid,glue/rte", "--export", tmp_path / "out", "--no-mlflow")
    assert (told.code, "--export writes one adapter, and uuid, glue/rte have one each" in told.err) == (2, True)


def train_classifiers(tmp_path_factory, methods, width, budget):
    """Return a result root with a trial per method, whose base is an encoder that knows not every dropout of a head."""
    import transformers
    from click.testing import CliRunner

    from harness import cli

    base, root = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("results")
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=width, num_hidden_layers=1, num_attention_heads=2, intermediate_size=width
    )
    transformers.BertModel(config).save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(resolve("nano")).save_pretrained(base)
    data = base / "mine.csv"
    data.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    run = ["run", "--data", data, "--model", base, "--budget", budget, "--steps", 2, "--lr", 0.05, "--seeds", 1]
    run += ["--workers", 1, "--device", "cpu", "--no-mlflow", "--results", root, "--tolerance", 0.9]
    run += ["--methods", ",".join(methods), "--export", root / "best"]
    done = CliRunner().invoke(cli.app, [*map(str, run)])
    assert done.exit_code == 0, done.output
    (root / "said.txt").write_text(done.stdout)
    return root


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Return a result root with a trial of each of a few methods."""
    return train_classifiers(tmp_path_factory, CLASSIFIERS, 16, "lora:r=1")


def test_one_command_recommends_and_writes_the_adapter(classifiers):
    said = (classifiers / "said.txt").read_text()
    assert "Recommended for classification/mine" in said
    names: dict[str, object] = {}
    exec(said[said.index("from peft import") :], names)
    best = json.loads((classifiers / "best" / "adapter_config.json").read_text())
    assert names["model"].peft_config["default"].peft_type == best["peft_type"]


def test_where_to_write_the_adapter_is_checked_before_anything_trains(command, classifiers, reviews):
    told = command("run", "--data", reviews, *COLUMNS, "--export", classifiers / "best", "--no-mlflow")
    assert (told.code, "is there and not empty; give a new folder" in told.err) == (2, True)


def trial_of(root, method):
    return next(each.trial_id for each in Store(str(root)).records() if each.trial.method == method)


def check_export(command, folder, root, method):
    """Check that other programs load what a trial of a classifier trained, the head too, and compute the same."""
    import torch

    from harness.planning.registry import build_registry
    from harness.results.export import read_trained

    trial = trial_of(root, method)
    told = command("export", trial, "--results", root, "--format", "auto", "-o", folder)
    assert told.code == 0, told.err
    assert "LOAD REPORT" not in told.err, "that the head is new is no news: it was trained"
    names: dict[str, object] = {}
    exec(told.out, names)
    model, tokenizer = names["model"], names["tokenizer"]
    assert model.config.id2label == {0: "a", 1: "b"}
    given = tokenizer("text", return_tensors="pt", return_token_type_ids=False)
    store = Store(str(root))
    trained = read_trained(build_registry(), store, store.read(trial))
    expected = trained.attached() if trained.is_private else trained.merged()
    with torch.no_grad():
        logits = model(**given).logits
        assert logits.shape == (1, 2)
        assert torch.allclose(logits, expected(**given).logits, atol=1e-5), method


@pytest.mark.parametrize("method", CLASSIFIERS[:-1])
def test_a_trained_classifier_is_exported_with_its_head_and_code_that_loads_it(command, tmp_path, classifiers, method):
    check_export(command, tmp_path / "out", classifiers, method)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_every_method_of_peft_trains_a_classifier_that_is_exported_with_its_head(command, tmp_path, tmp_path_factory):
    from harness.planning.registry import build_registry

    named = {"c3a": "c3a,block_size=16", "vblora": "vblora,vector_length=16"}  # sizes that divide tiny layers
    members = [each for each in build_registry().families["peft"] if each not in ("prompt_tuning", "p_tuning")]
    root = train_classifiers(tmp_path_factory, [f"peft:{named.get(each, each)}" for each in members], 64, "lora:r=2")
    for member in members:
        check_export(command, tmp_path / member, root, f"peft:{member}")


@pytest.mark.parametrize("method", ["lora", "peft:ia3", "peft:vera"])
def test_what_a_classifier_s_method_did_to_the_weights_is_analysed(command, classifiers, method):
    told = command("analyse", "spectrum", trial_of(classifiers, method), "--results", classifiers, "--json")
    assert told.code == 0, told.err
    (found,) = json.loads(told.out)
    assert [each["layer"].rpartition(".")[2] for each in found["layers"]] == ["query", "value"], "and not the head"
    assert all(each["values"]["frobenius_norm"] > 0 for each in found["layers"])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("peft:ln_tuning", "it changed no weight of a linear layer, so there is no update to look at"),
        ("peft:beft", "what its weights cannot hold"),
    ],
)
def test_where_there_is_no_update_of_a_weight_an_analysis_says_so(command, classifiers, method, said):
    told = command("analyse", "spectrum", trial_of(classifiers, method), "--results", classifiers)
    assert (told.code, said in told.err) == (2, True)


def test_the_environments_data_folder_is_about_tasks_alone(command, reviews, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_DATA_DIR", str(tmp_path))
    asked = ["plan", "--data", reviews, *COLUMNS, "--methods", "lora", "--seeds", 1, "--device", "cpu"]
    assert "1 trials, 1 to do" in command(*asked).out
    refused = command(*asked, "--data-dir", tmp_path)
    assert (refused.code, "leave --data-dir out" in refused.err) == (2, True)

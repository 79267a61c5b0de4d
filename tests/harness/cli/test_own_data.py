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


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_the_best_adapter_is_exported_with_code_that_loads_it(command, tmp_path, method):
    """An encoder whose config does not know every dropout of a head: the code must load it all the same."""
    import torch
    import transformers

    base = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(resolve("nano")).save_pretrained(base)
    data, root = tmp_path / "mine.csv", tmp_path / "results"
    data.write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    run = ["run", "--data", data, "--model", base, "--methods", method, "--budget", "lora:r=1", "--steps", 2]
    more = ["--seeds", 1, "--workers", 1, "--device", "cpu", "--no-mlflow", "--results", root, "--tolerance", 0.5]
    assert command(*run, *more).code == 0
    told = command("export", "best", "--results", root, "--format", "auto", "-o", tmp_path / "out")
    assert told.code == 0, told.err
    names: dict[str, object] = {}
    exec(told.out, names)
    model, tokenizer = names["model"], names["tokenizer"]
    assert model.config.id2label == {0: "a", 1: "b"}
    with torch.no_grad():
        assert model(**tokenizer("text", return_tensors="pt", return_token_type_ids=False)).logits.shape == (1, 2)

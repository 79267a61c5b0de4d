"""UUID memorisation: what is drawn, what is trained on, and each score against one worked out here."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import IGNORE, TaskContext
from harness.bases import resolve
from harness.data.tables import identify_tables
from harness_benchmarks import forgetting
from harness_benchmarks.tasks.uuid import UuidTask, digit_accuracy, draw_pairs

torch.set_num_threads(1)
LENGTH = 36  # letters of a UUID


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture(scope="module")
def nano():
    return AutoModelForCausalLM.from_pretrained(resolve("nano")).eval()


def context(tokenizer, **changes):
    recipe = replace(UuidTask.recipes["smoke"], **{"pairs": 3, "batch_size": 2, **changes})
    return TaskContext(tokenizer=tokenizer, recipe=recipe, seed=1, adapter_parameters=1_000)


def test_pairs_depend_on_the_seed_alone_and_use_all_128_bits():
    pairs = draw_pairs(300, seed=5)
    assert pairs == draw_pairs(300, seed=5)
    assert pairs[:10] == draw_pairs(10, seed=5)
    assert {pair.answer for pair in pairs}.isdisjoint(pair.answer for pair in draw_pairs(300, seed=6))
    numbers = [uuid.UUID(text).int for pair in pairs for text in (pair.prompt.strip(), pair.answer)]
    assert len(set(numbers)) == 600
    for bit in range(128):  # of a UUID made by the standard, six bits never change
        assert 200 < sum(number >> bit & 1 for number in numbers) < 400


def test_the_loss_is_on_the_answer_only_and_what_is_trained_on_is_scored(tokenizer):
    data = UuidTask().load(context(tokenizer))
    pairs = draw_pairs(3, seed=1)
    assert [tokenizer.decode(each.input_ids) for each in data.train] == [f"{a.prompt}{a.answer}" for a in pairs]
    assert [tokenizer.decode([t for t in each.labels if t != IGNORE]) for each in data.train] == [
        pair.answer for pair in pairs
    ]
    for split in data.splits.values():
        assert [pair for pair, _ in split.pairs] == pairs
        assert [example for _, example in split.pairs] == data.train


def scored(tokenizer, monkeypatch, nats, answers):
    """Evaluate a model to which every answer's likelihood is ``nats``, and which writes these answers."""
    task, where = UuidTask(), context(tokenizer)

    def write(model, tokenizer, prompts, longest, batch_size, min_new_tokens):
        assert longest == min_new_tokens == LENGTH
        return [tokenizer(answer)["input_ids"] for answer in answers]

    monkeypatch.setattr("harness_benchmarks.tasks.uuid.negative_log_likelihoods", lambda *_: [nats] * len(answers))
    monkeypatch.setattr("harness_benchmarks.tasks.uuid.generate", write)
    return task.evaluate(None, where, task.load(where).splits["test"])


def test_a_model_that_knows_every_pair(tokenizer, monkeypatch):
    answers = [pair.answer for pair in draw_pairs(3, seed=1)]
    found = scored(tokenizer, monkeypatch, 2.0, answers)
    assert found.metrics["character_accuracy"] == found.metrics["exact_match"] == 1
    assert found.metrics["answer_nll"] == 2
    assert found.chance == {"character_accuracy": 1 / 16}
    assert found.metrics["bits_per_parameter"] == pytest.approx(3 * (128 - 2 / math.log(2)) / 1_000)


def test_a_model_that_misses_one_digit_of_one_pair_and_guesses_another(tokenizer, monkeypatch):
    first, second, _ = (pair.answer for pair in draw_pairs(3, seed=1))
    wrong = ("0" if second[-1] != "0" else "1").join([second[:-1], ""])
    found = scored(tokenizer, monkeypatch, 32 * math.log(16), [first, wrong, "x" * LENGTH])
    assert found.items["character_accuracy"] == [1, 31 / 32, 0]
    assert found.items["exact_match"] == [1, 0, 0]
    assert found.metrics["exact_match"] == pytest.approx(1 / 3)
    assert found.metrics["bits_per_parameter"] == pytest.approx(0, abs=1e-9)  # nothing is known of 32 free digits


def test_a_real_model_is_scored_pair_by_pair_as_transformers_does_it(tokenizer, nano):
    task, where = UuidTask(), context(tokenizer)
    data = task.load(where)
    found = task.evaluate(nano, where, data.splits["validation"])
    with torch.no_grad():
        for place, example in enumerate(data.train):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            loss = nano(input_ids=ids, labels=labels).loss * LENGTH
            assert found.items["answer_nll"][place] == pytest.approx(float(loss), rel=1e-4)
    assert {name: len(values) for name, values in found.items.items()} == {
        "character_accuracy": 3, "exact_match": 3, "answer_nll": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "share"),
    [("12-4", 1.0), (" 12-4\n", 1.0), ("1204", 1.0), ("13-4", 2 / 3), ("12", 2 / 3), ("", 0.0), ("112-4", 1 / 3)],
)
def test_digits_count_at_their_place_and_dashes_do_not(text, share):
    assert digit_accuracy(text, "12-4") == pytest.approx(share)


def test_forgetting_is_measured_where_asked_on_the_test_split(tokenizer, nano, tmp_path):
    folder = tmp_path / forgetting.SOURCE.folder
    folder.mkdir(parents=True)
    (folder / "wiki.test.raw").write_text(" = A = \n Some words of an encyclopedia . \n" * 60)
    task = UuidTask()
    where = replace(context(tokenizer, forgetting_windows=2), data_dir=tmp_path, base_model=nano)
    data = task.load(where)
    test, validation = (task.evaluate(nano, where, data.splits[name]) for name in ("test", "validation"))
    assert test.metrics["forgetting_excess"] == pytest.approx(0, abs=1e-6)
    assert len(test.items["forgetting"]) == 2
    assert validation.metrics["forgetting"] is None
    assert "test split only" in validation.reasons["forgetting"]


def test_the_first_run_needs_no_data_and_a_longer_one_says_which_text_it_would_measure_forgetting_on():
    task = UuidTask()
    assert task.tables(task.recipes["smoke"]) == []
    assert [table.needed for table in task.tables(task.recipes["small"])] == [False]
    assert identify_tables(task.tables(SimpleNamespace(forgetting_windows=0)), None) == "generated"

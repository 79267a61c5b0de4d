"""Continual pretraining: question sets, scoring by likelihood, absent tables, splits that do not mix."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
import transformers

from harness import IGNORE, DataError, TaskContext
from harness.bases import resolve
from harness_benchmarks import questions
from harness_benchmarks.corpus import is_held_out
from harness_benchmarks.questions import BIOMED, FINANCE, Question, answer, encode
from harness_benchmarks.tasks.continual import Biomed, Finance

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load_one(name, sets, tmp_path, row):
    """Return the questions that one row of a set becomes."""
    for table in sets[name].tables:
        write(tmp_path / sets[name].source.folder, table, [row])
    return sets[name].load(tmp_path)


@pytest.mark.parametrize(
    ("name", "row", "options", "right"),
    [
        ("pubmedqa", {"question": "Q?", "contexts": ["A.", "B."], "final_decision": "maybe"}, 3, "maybe"),
        ("chemprot", {"text": "<< X >> and [[ Y ]].", "label": "PRODUCT-OF"}, 13, "product"),
        ("usmle", {"question": "Q", "options": {"A": "a", "B": "b", "C": "c"}, "answer_idx": "B"}, 3, "b"),
        ("medmcqa", {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 3}, 4, "d"),
        ("rct", {"input": "I", "options": ["x", "y"], "gold_index": 1}, 2, "y"),
    ],
)
def test_biomedical_rows_become_questions(tmp_path, name, row, options, right):
    (question,) = load_one(name, BIOMED, tmp_path, row)
    assert len(question.options) == options
    assert question.options[question.right] == right


@pytest.mark.parametrize(("score", "right"), [(-0.5, "negative"), (0.05, "neutral"), (0.11, "positive")])
def test_sentiment_scores_become_classes(tmp_path, score, right):
    row = {"sentence": "S", "target": "T", "sentiment_score": score}
    question = load_one("fiqa_sa", FINANCE, tmp_path, row)[0]
    assert question.options[question.right] == right


def test_every_named_entity_is_one_question(tmp_path):
    row = {
        "tokens": ["Ann", "Lee", "left", "Acme", "in", "Oslo"],
        "ner_tags": ["I-PER", "I-PER", "O", "I-ORG", "O", "I-LOC"],
    }
    found = load_one("ner", FINANCE, tmp_path, row)
    assert [q.options[q.right] for q in found] == ["person", "organisation", "location"]
    assert "Ann Lee is a(n)" in found[0].prompt
    assert "Oslo is a(n)" in found[2].prompt


def test_unknown_columns_are_named(tmp_path):
    with pytest.raises(DataError, match="columns foo; Headline needs input, options"):
        load_one("headline", FINANCE, tmp_path, {"foo": 1})


def test_a_limit_spreads_over_the_whole_set(tmp_path):
    rows = [{"sentence": f"{i}", "label": 0} for i in range(10)]
    write(tmp_path / FINANCE["fpb"].source.folder, "sentences_50agree", rows)
    assert [q.prompt.split("\n")[0] for q in FINANCE["fpb"].load(tmp_path, 4)] == [f"News: {i}" for i in (0, 2, 5, 7)]
    assert len(FINANCE["fpb"].load(tmp_path, 40)) == 10


def test_the_answer_with_the_likeliest_tokens_on_average_is_chosen(model, tokenizer):
    asked = [
        Question(f"Question {i}?", ("yes", "a much longer answer", "no"), i % 3) for i in range(6)
    ]  # fmt: skip
    expected = []
    for question in asked:
        losses = []
        for option in question.options:
            example = encode(tokenizer, question.prompt, option, 64)
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            with torch.no_grad():
                losses.append(model(input_ids=ids, labels=labels).loss.item())  # the mean over labelled tokens
        expected.append(float(losses.index(min(losses)) == question.right))
    with torch.no_grad():
        assert answer(model, tokenizer, asked, 64, batch_size=4) == expected
    assert 0 < sum(expected) < len(expected)


def test_the_loss_is_on_the_answer_and_a_long_prompt_loses_its_beginning(tokenizer):
    example = encode(tokenizer, "x" * 50 + "end:", "yes", 12)
    assert tokenizer.decode(example.input_ids) == "xxxxend: yes"
    assert list(example.labels) == [IGNORE] * 8 + [32, *b"yes"]


def test_generated_numbers_are_compared_as_numbers(tokenizer, monkeypatch):
    outputs = [list(b"12.50%\nmore"), list(b" $1,200."), list(b"7"), list(b"no")]
    monkeypatch.setattr(questions, "generate", lambda *_, **__: outputs)
    asked = [Question("Q", (right,), 0) for right in ("12.5", "1200", "8", "No")]
    assert answer(None, tokenizer, asked, 64, 4) == [1.0, 1.0, 0.0, 1.0]


@pytest.fixture
def data_dir(tmp_path):
    write(tmp_path / "text/finance", "train", [{"text": f"train document {i}."} for i in range(1_000)])
    write(tmp_path / "text/finance", "validation", [{"text": f"validation document {i}."} for i in range(20)])
    rows = [{"sentence": f"Profit {i} rose", "label": 2} for i in range(5)]
    write(tmp_path / "text/finance/eval/fpb", "sentences_50agree", rows)
    return tmp_path


def context(tokenizer, data_dir):
    recipe = replace(Finance.recipes["smoke"], max_length=48, validation_windows=4, batch_size=4)
    return TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=data_dir)


def test_every_metric_is_there_or_has_a_reason(model, tokenizer, data_dir):
    one = context(tokenizer, data_dir)
    splits = Finance().load(one).splits
    with torch.no_grad():
        test, validation = (Finance().evaluate(model, one, splits[name]) for name in ("test", "validation"))
        losses = [
            model(input_ids=torch.tensor([w.input_ids]), labels=torch.tensor([w.labels])).loss.item()
            for w in splits["test"].windows
        ]
    for found in (test, validation):
        assert set(found.metrics) == set(Finance.metrics)
        assert set(found.reasons) == {name for name, value in found.metrics.items() if value is None}
    assert test.metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert test.metrics["fpb"] == test.metrics["questions"] == sum(test.items["fpb"]) / 5
    assert "finance/eval/headline" in test.reasons["headline"]
    assert "test split only" in validation.reasons["fpb"]
    assert "test split only" in validation.reasons["forgetting"]


def test_held_out_documents_are_not_trained_on(tokenizer, data_dir):
    data = Finance().load(context(tokenizer, data_dir))
    trained = "".join(tokenizer.decode(e.input_ids) for e in islice(data.train, 1_000))
    out = [text for i in range(1_000) if is_held_out(text := f"train document {i}.")]
    assert out
    assert not any(text in trained for text in out)
    assert "validation" not in trained
    assert out[0] in tokenizer.decode(data.splits["validation"].windows[0].input_ids)


def test_a_question_set_that_appears_makes_other_data(data_dir):
    recipe = Finance.recipes["smoke"]
    before = Finance().data_identity(recipe, data_dir)
    write(data_dir / "text/finance/eval/headline", "test", [{"input": "I", "options": ["a", "b"], "gold_index": 0}])
    assert Finance().data_identity(recipe, data_dir) != before


def test_a_missing_corpus_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"text/biomed/train\.jsonl"):
        Biomed().data_identity(Biomed.recipes["smoke"], tmp_path)
    with pytest.raises(DataError, match="--data-dir"):
        Biomed().data_identity(Biomed.recipes["smoke"], None)

"""Continual pretraining: question sets, scoring by likelihood, absent tables, splits that do not mix."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import islice

import pytest
import sklearn.metrics
import torch
import transformers

from harness import IGNORE, DataError, TaskContext
from harness.bases import resolve
from harness.data.tables import identify_tables
from harness_benchmarks import questions
from harness_benchmarks.corpus import is_held_out
from harness_benchmarks.questions import BIOMED, FINANCE, Question, answer, encode, entity_f1, same_number
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
        expected.append(question.options[losses.index(min(losses))])
    with torch.no_grad():
        assert answer(model, tokenizer, asked, 64, batch_size=4) == expected
    assert len(set(expected)) > 1


def test_the_loss_is_on_the_answer_and_a_long_prompt_loses_its_beginning(tokenizer):
    example = encode(tokenizer, "x" * 50 + "end:", "yes", 12)
    assert tokenizer.decode(example.input_ids) == "xxxxend: yes"
    assert list(example.labels) == [IGNORE] * 8 + [32, *b"yes"]


# Measures: AdaptLLM's, against scikit-learn or worked by hand


def draw(seed, classes, count, groups=("",)):
    """Return questions and given answers at random; the last class is never right, the first never given."""
    source = random.Random(seed)
    asked = [Question("Q", classes, source.randrange(len(classes) - 1), source.choice(groups)) for _ in range(count)]
    return asked, [source.choice(classes[1:]) for _ in range(count)]


@pytest.mark.parametrize("name", ["fpb", "fiqa_sa", "ner"])
@pytest.mark.parametrize("seed", range(5))
def test_sentiment_and_entities_are_scored_by_sklearns_weighted_f1(name, seed):
    asked, given = draw(seed, ("negative", "neutral", "positive", "mixed"), 40)
    rights = [question.answer for question in asked]
    score, items = FINANCE[name].score(asked, given)
    assert score == pytest.approx(sklearn.metrics.f1_score(rights, given, average="weighted"), abs=1e-12)
    assert items == [float(a == b) for a, b in zip(rights, given, strict=True)]
    assert score != pytest.approx(sum(items) / len(items), abs=1e-3)
    assert "F1" in Finance.metrics[name].title
    assert "F1 of the classes, each weighted" in Finance.metrics[name].help


def test_weighted_f1_by_hand():
    asked = [Question("Q", ("a", "b"), place) for place in (0, 0, 0, 1)]
    # a: precision 2/2, recall 2/3, F1 4/5; b: precision 1/2, recall 1, F1 2/3
    assert FINANCE["fpb"].score(asked, ["a", "a", "b", "b"])[0] == pytest.approx(0.75 * 4 / 5 + 0.25 * 2 / 3)


def test_headlines_f1_is_the_mean_over_kinds_of_question():
    asked, given = draw(0, ("Yes", "No", "Maybe"), 60, groups=("0", "1", "2"))
    each = []
    for group in ("0", "1", "2"):
        pairs = [(q.answer, answer) for q, answer in zip(asked, given, strict=True) if q.group == group]
        each.append(sklearn.metrics.f1_score(*zip(*pairs, strict=True), average="weighted"))
    assert FINANCE["headline"].score(asked, given)[0] == pytest.approx(sum(each) / 3, abs=1e-12)


def test_headlines_kind_of_question_is_read(tmp_path):
    row = {"input": "I", "options": ["Yes", "No"], "gold_index": 1, "class_id": 7}
    (question,) = load_one("headline", FINANCE, tmp_path, row)
    assert (question.answer, question.group) == ("No", "7")


@pytest.mark.parametrize("name", BIOMED)
def test_biomedical_sets_are_scored_by_accuracy_which_is_sklearns_micro_f1(name):
    asked, given = draw(1, ("yes", "no", "maybe", "other"), 40)
    rights = [question.answer for question in asked]
    score, items = BIOMED[name].score(asked, given)
    assert score == pytest.approx(sklearn.metrics.accuracy_score(rights, given), abs=1e-12)
    assert score == pytest.approx(sklearn.metrics.f1_score(rights, given, average="micro"), abs=1e-12)
    assert sum(items) / len(items) == score
    assert "accuracy" in Biomed.metrics[name].title


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        ("12.5", "12.50", 1.0),
        ("$1,200.", "1200", 1.0),
        ("about 3 or 8", "8", 1.0),  # any of its numbers
        ("8.009", "8", 1.0),
        ("8.02", "8", 0.0),
        ("12.5%", "0.125", 1.0),
        ("12.5", "12.5%", 0.0),
        ("-3", "3", 0.0),
        ("no", "no", 0.0),  # no number
    ],
)
def test_generated_numbers_are_compared_as_adaptllm_does(given, right, same):
    assert same_number(given, right) == same
    assert FINANCE["convfinqa"].score([Question("Q", (right,), 0)], [given]) == (same, [same])


@pytest.mark.parametrize(
    ("given", "right", "f1"),
    [
        ("Ann (PER), Oslo (LOC)", "Ann (PER), Oslo (LOC)", 1.0),
        ("Ann (PER)", "Ann (PER), Oslo (LOC)", 2 / 3),  # 2 of 2 given, 2 of 4 right
        ("Ann (ORG)", "Ann (PER)", 0.5),  # the name, not the kind
        ("Bob (PER)", "Ann (PER)", 0.5),  # the kind, not the name
        ("Bob (ORG)", "Ann (PER)", 0.0),
        ("Ann (PER), Ann (PER)", "Ann (PER)", 1.0),  # said twice counts once
        ("none", "Ann (PER)", 0.0),
        ("Ann (PER)", "none", 0.0),
    ],
)
def test_generated_entities_are_compared_by_name_and_kind(given, right, f1):
    assert entity_f1(given, right) == pytest.approx(f1)


def test_adaptllms_entities_are_generated(tmp_path, model, tokenizer, monkeypatch):
    (question,) = load_one("ner", FINANCE, tmp_path, {"input": "Name them:", "label": ["Ann (PER)"]})
    assert question.options == ("Ann (PER)",)
    monkeypatch.setattr(questions, "generate", lambda *_, **__: [list(b" Ann (ORG)\nmore (PER)")])
    given = answer(model, tokenizer, [question], 64, 4)
    assert given == ["Ann (ORG)"]  # its first line
    assert FINANCE["ner"].score([question], given) == (0.5, [0.5])


@pytest.fixture
def data_dir(tmp_path):
    write(tmp_path / "text/finance", "train", [{"text": f"train document {i}."} for i in range(1_000)])
    write(tmp_path / "text/finance", "validation", [{"text": f"validation document {i}."} for i in range(20)])
    rows = [{"sentence": f"Profit {i} rose", "label": i % 3} for i in range(5)]
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
    assert test.metrics["fpb"] == test.metrics["questions"]
    with torch.no_grad():
        given = answer(model, tokenizer, splits["test"].questions["fpb"], one.recipe.max_length, 4)
    rights = [("negative", "neutral", "positive")[i % 3] for i in range(5)]
    assert test.metrics["fpb"] == pytest.approx(sklearn.metrics.f1_score(rights, given, average="weighted"))
    assert test.items["fpb"] == [float(a == b) for a, b in zip(rights, given, strict=True)]
    assert 0 < sum(test.items["fpb"]) < 5
    always = sklearn.metrics.f1_score(rights, ["negative"] * 5, average="weighted")
    assert test.chance == pytest.approx({"fpb": always, "questions": always})
    assert not validation.chance
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
    before = identify_tables(Finance().tables(recipe), data_dir)
    write(data_dir / "text/finance/eval/headline", "test", [{"input": "I", "options": ["a", "b"], "gold_index": 0}])
    assert identify_tables(Finance().tables(recipe), data_dir) != before


def test_a_missing_corpus_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"text/biomed/train\.jsonl"):
        identify_tables(Biomed().tables(Biomed.recipes["smoke"]), tmp_path)
    with pytest.raises(DataError, match="--data-dir"):
        identify_tables(Biomed().tables(Biomed.recipes["smoke"]), None)


def test_the_mean_is_over_adaptllms_sets_and_says_which(nano, tables):
    assert [name for name, each in BIOMED.items() if not each.in_mean] == ["medmcqa"]
    assert all(each.in_mean for each in FINANCE.values())
    assert "MedMCQA" not in Biomed.metrics["questions"].help
    recipe = replace(Biomed.recipes["smoke"], validation_windows=2, questions=2, forgetting_windows=0)
    where = TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=tables)
    with torch.no_grad():
        found = Biomed().evaluate(nano[0], where, Biomed().load(where).splits["test"])
    five = ["pubmedqa", "chemprot", "usmle", "rct", "mqp"]
    assert found.metrics["questions"] == pytest.approx(sum(found.metrics[name] for name in five) / 5)
    assert found.metrics["medmcqa"] is not None
    assert found.notes["sets in the mean of questions"] == "PubMedQA, ChemProt, USMLE, RCT, MQP"

"""Users' rows as tokens and scores: what carries loss, what is too long, what answers and labels are worth."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
import transformers

from harness import IGNORE, DataError, TaskContext, UsageError
from harness.bases import resolve
from harness.data.own.locate import understand
from harness.planning.own_data import task_name
from harness.planning.registry import build_registry
from harness_benchmarks.tasks.own import chat, scores

REGISTRY = build_registry()
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(resolve("nano"))


@pytest.fixture
def load(tmp_path, tokenizer):
    """Return a task, its context and its data for rows as a user has them."""

    def of(rows, metric="", model=None, **changes):
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = understand(str(path))
        name, source = task_name(REGISTRY, own, metric)
        task = REGISTRY.task(name)()
        recipe = type(task.recipes["smoke"])(**{"steps": 2, "metric_source": source, **own.fields, **changes})
        context = TaskContext(tokenizer=tokenizer, recipe=recipe, seed=0, data_dir=own.data_dir, base_model=model)
        return task, context, task.load(context)

    return of


def trained_text(example, tokenizer):
    return tokenizer.decode([t for t, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORE])


def test_a_module_is_never_taken_for_a_metric_of_the_task_that_has_its_name(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one?", "response": "1"}\n')
    own = understand(str(path))
    assert task_name(REGISTRY, own, "exact_match") == ("instructions/mine@exact_match", "")
    assert task_name(REGISTRY, own, "my/f1/") == ("instructions/mine@f1", "my/f1/")
    assert task_name(REGISTRY, own, "my/exact_match:key") == ("instructions/mine@exact_match-key", "my/exact_match:key")
    for source, said in (("my/exact_match", "exact_match"), ("my/Loss", "loss"), ("./", "no")):
        with pytest.raises(
            UsageError, match=f"not to be told from '{said}' .*give its key, too: {source}:KEY; or one of"
        ):
            task_name(REGISTRY, own, source)


TURNS = (("system", "S"), ("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2"))


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_loss_is_on_every_turn_of_the_assistant_and_on_nothing_else(tokenizer, template):
    tokenizer.chat_template = CHATML
    parts = chat.pieces(TURNS, tokenizer, template)
    example = chat.encode_pieces(parts, tokenizer, template)
    end = {"plain": tokenizer.eos_token, "chat": "</assistant>"}[template]
    assert [piece.text for piece in parts if piece.trains] == [f"1{end}", f"2{end}"]
    assert trained_text(example, tokenizer) == f"1{end}2{end}"
    whole = tokenizer.decode(example.input_ids)
    assert whole.index("one?") < whole.index("1") < whole.index("two?")
    prompt = chat.prompt_of(parts, tokenizer, template)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decode(prompt).rstrip().endswith({"plain": "### Assistant:", "chat": "<assistant>"}[template])


def test_what_a_chat_template_writes_is_what_the_library_writes(tokenizer):
    tokenizer.chat_template = CHATML
    messages = [{"role": role, "content": content} for role, content in TURNS]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "".join(piece.text for piece in chat.pieces(TURNS, tokenizer, "chat")) == whole


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(DataError, match=r"differently once more follows, so what the assistant"):
        chat.pieces(TURNS, tokenizer, "chat")


def test_a_template_that_refuses_names_the_row(load, tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(DataError, match=r"mine\.jsonl, line 1: the chat template refuses.*no system turn"):
        load([{"prompt": f"q{i}", "response": "a"} for i in range(20)])


def test_no_template_is_said_and_one_that_is_asked_for_is_missed(load, tokenizer, caplog):
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(20)]
    task, context, _ = load(rows)
    task.check(context)
    assert "no chat template" in caplog.text
    with pytest.raises(DataError, match="has no chat template; give --set template=plain"):
        load(rows, template="chat")


@pytest.mark.parametrize("text", ["see <|eos|> there", "see <|added|> there"])
def test_text_that_a_model_reads_as_a_special_token_is_said(load, tokenizer, caplog, text):
    tokenizer.add_tokens([transformers.AddedToken("<|added|>", special=True)])
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(20)]
    task, context, _ = load(rows)
    task.check(context)
    assert "special token" not in caplog.text
    task, context, _ = load([*rows, {"text": text, "label": "a"}])
    task.check(context)
    assert f"1 rows holds what this model reads as a special token, not as its characters, e.g. '{text[4:-6]}'" in (
        caplog.text
    )


LONG = [{"prompt": f"q{i}", "response": "word " * (60 if i == 7 else 1)} for i in range(20)]


def test_rows_that_are_too_long_are_refused_by_name_cut_or_left_out(load):
    with pytest.raises(DataError, match=r"1 rows are longer than 100 tokens, .*line 8: \d+ tokens; .*max_length=\d+"):
        load(LONG, max_length=100)
    kept = load(LONG, max_length=100, too_long="leave_out")[2]
    cut = load(LONG, max_length=100, too_long="cut")[2]
    assert len(cut.train) + sum(len(each.examples) for each in cut.splits.values()) == 20
    assert len(kept.train) + sum(len(each.examples) for each in kept.splits.values()) == 19
    with pytest.raises(DataError, match=r"line 1: cut at 20 tokens, nothing is left of the response"):
        load([{"prompt": "q" * (50 + i), "response": "a"} for i in range(20)], max_length=20, too_long="cut")


def test_the_models_own_limit_counts(load):
    config = transformers.GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=1, vocab_size=300)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    with pytest.raises(DataError, match=r"1 rows are longer than 64 tokens"):
        load(LONG, model=model)
    config = transformers.RobertaConfig(
        max_position_embeddings=66, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        model = transformers.RobertaForSequenceClassification(config)
    with pytest.raises(DataError, match=r"1 rows are longer than 64 tokens"):  # two positions are padding's
        load(LONG, model=model)


def nano():
    return transformers.AutoModelForCausalLM.from_pretrained(resolve("nano")).eval()


def test_answers_are_scored_and_every_item_is_kept(load, monkeypatch):
    rows = [{"prompt": f"q{i}", "response": f"answer {i}"} for i in range(30)]
    task, context, data = load(rows, written=2)
    monkeypatch.setattr(
        "harness_benchmarks.tasks.own.instructions.generate",
        lambda model, tokenizer, prompts, *_: [tokenizer(" answer 0 ")["input_ids"] for _ in prompts],
    )
    found = task.evaluate(nano(), context, data.splits["test"])
    answers = data.splits["test"].answers
    assert len(answers) == 2
    assert found.items["exact_match"] == [float(each == "answer 0") for each in answers]
    assert found.metrics["rouge_l"] == pytest.approx(sum(1.0 if a == "answer 0" else 0.5 for a in answers) / 2)
    assert len(found.items["loss"]) == len(data.splits["test"].examples) == 3
    assert found.metrics["loss"] == pytest.approx(sum(found.items["loss"]) / 3)
    nothing = task.evaluate(nano(), context, data.splits["validation"])
    assert nothing.metrics["exact_match"] is None
    assert "--set written=N" in nothing.reasons["exact_match"]


def test_the_metric_that_ranks_is_part_of_the_name_and_written_everywhere(load):
    rows = [{"prompt": f"q{i}", "response": f"answer {i}"} for i in range(30)]
    task, _, data = load(rows, "exact_match")
    assert (task.name, task.main_metric) == ("instructions/mine@exact_match", "exact_match")
    assert len(data.splits["validation"].prompts) == 3
    with pytest.raises(UsageError, match="classification is not scored by 'rouge'"):
        REGISTRY.task("classification/mine@rouge")


def test_a_module_of_evaluate_may_rank(load, tmp_path, monkeypatch):
    folder = tmp_path / "first_letter"
    folder.mkdir()
    (folder / "first_letter.py").write_text(MODULE)
    rows = [{"prompt": f"q{i}", "response": f"answer {i}"} for i in range(30)]
    task, context, data = load(rows, str(folder))
    assert task.name == "instructions/mine@first_letter"
    assert task.metrics["first_letter"].higher_is_better
    monkeypatch.setattr(
        "harness_benchmarks.tasks.own.instructions.generate",
        lambda model, tokenizer, prompts, *_: [
            tokenizer("a" if place else "b")["input_ids"] for place in range(len(prompts))
        ],
    )
    found = task.evaluate(nano(), context, data.splits["test"])
    assert found.items["first_letter"] == [0.0, 1.0, 1.0]
    assert found.metrics["first_letter"] == pytest.approx(2 / 3)


def test_a_module_that_cannot_score_is_named_before_anything_trains(load, tmp_path):
    rows = [{"prompt": f"q{i}", "response": f"answer {i}"} for i in range(30)]
    task, context, _ = load(rows, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="`evaluate` cannot load it"):
        task.check(context)
    folder = tmp_path / "first_letter"
    folder.mkdir()
    (folder / "first_letter.py").write_text(MODULE)
    task, context, _ = load(rows, str(folder))
    task.check(context)
    task, context, _ = load(rows, f"{folder}:other")
    with pytest.raises(UsageError, match="gives share; say which number"):
        task.check(context)


MODULE = """
import datasets
import evaluate

class FirstLetter(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(
            {"predictions": text, "references": text}))

    def _compute(self, predictions, references):
        right = [p[:1] == r[:1] for p, r in zip(predictions, references)]
        return {"share": sum(right) / len(right)}
"""


def test_text_is_packed_and_its_perplexity_is_over_all_tokens(load):
    task, context, data = load([{"text": f"Some text, number {i}."} for i in range(40)], max_length=64)
    assert {len(window.input_ids) for window in list(data.train)[:-1]} == {64}
    found = task.evaluate(nano(), context, data.splits["test"])
    counts = [len(window.input_ids) - 1 for window in data.splits["test"]]
    loss = sum(c * x for c, x in zip(counts, found.items["loss"], strict=True)) / sum(counts)
    assert found.metrics["loss"] == pytest.approx(loss)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(loss))


def test_labels_are_scored_by_what_the_model_chooses(load, monkeypatch):
    rows = [{"text": f"t{i}", "label": ["a", "b", "c"][i % 3]} for i in range(60)]
    task, context, data = load(rows)
    assert task.model_arguments(context.recipe)["id2label"] == {0: "a", 1: "b", 2: "c"}
    split = data.splits["test"]
    right = np.asarray([example.labels for example in split])
    outputs = np.eye(3)[(right + (np.arange(len(right)) == 0)) % 3]
    monkeypatch.setattr("harness_benchmarks.tasks.own.classification.predict", lambda *_: outputs)
    found = task.evaluate(None, context, split)
    assert found.metrics["accuracy"] == pytest.approx(1 - 1 / len(right))
    assert found.items["accuracy"] == [0.0] + [1.0] * (len(right) - 1)
    assert found.items["loss"][1] == pytest.approx(math.log(math.e + 2) - 1)
    again = task.recompute(found.items)
    assert again == pytest.approx({name: found.metrics[name] for name in ("macro_f1", "matthews")})
    share = max(np.bincount(right)) / len(right)  # of one label for all rows, of which every other label's F1 is 0
    assert found.chance == pytest.approx({"accuracy": share, "macro_f1": 2 * share / (1 + share) / 3, "matthews": 0.0})


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_and_matthews_are_those_of_scikit_learn(classes):
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for count in (3, 20, 200):
        right, given = draw.integers(classes, size=(2, count))
        counts = scores.confusion(right, given, classes)
        assert scores.matthews(counts) == pytest.approx(sklearn.matthews_corrcoef(right, given))
        assert scores.macro_f1(counts) == pytest.approx(sklearn.f1_score(right, given, average="macro"))


def test_rouge_is_that_of_the_package_on_english():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    words = ["the", "cat", "sat,", "on", "a", "Mat.", "42", "it's"]
    for _ in range(50):
        one, other = (" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(2))
        assert scores.rouge_l(one, other) == pytest.approx(scorer.score(other, one)["rougeL"].fmeasure)
    assert scores.rouge_l("größer", "größer") == 1.0


@pytest.mark.parametrize(
    ("given", "right", "exact", "characters"),
    [
        ("42", " 42\n", 1.0, 1.0),
        ("24", "42", 0.0, 1.0),
        ("4", "42", 0.0, 2 / 3),
        ("", "a", 0.0, 0.0),
        ("", "", 1.0, 1.0),
    ],
)
def test_written_answers(given, right, exact, characters):
    assert scores.exact_match(given, right) == exact
    assert scores.character_f1(given, right) == pytest.approx(characters)

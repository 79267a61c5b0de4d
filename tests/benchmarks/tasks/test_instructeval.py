from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from harness import IGNORE, DataError, TaskContext, UsageError
from harness.data.tables import identify_tables
from harness_benchmarks.tasks import instructeval
from harness_benchmarks.tasks.instructeval import InstructEvalTask, conversation
from harness_benchmarks.tasks.instructeval.lm_evaluation import Part, read_task_file, samples, task_config
from harness_benchmarks.tasks.instructeval.sandbox import refusal
from harness_benchmarks.tasks.instructeval.scoring import drop_f1, score_bbh, score_humaneval, words

torch.set_num_threads(1)
pytest.importorskip("lm_eval")

confined = pytest.mark.skipif(bool(refusal()), reason=refusal() or "confined")


@pytest.fixture
def data_dir(tmp_path, made):
    root = tmp_path / "instructeval"
    made.write(root / "alpaca/train.jsonl", made.alpaca(20))
    for split, count in (("dev", 5), ("val", 3), ("test", 4)):
        made.write(root / f"mmlu/{split}.jsonl", made.mmlu(split, count))
    made.write(root / "bbh/test.jsonl", made.bbh())
    rows = [
        {
            "idx": n,
            "passage": f"Passage {n // 2}.",
            "question": f"How many, {n}?",
            "answer": f"{n}",
            "ref_answers": [f"{n}"],
        }
        for n in range(10)
    ]
    made.write(root / "drop/validation.jsonl", [*rows, {**rows[0], "ref_answers": ["zero", "none"]}])
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": f"def f{n}(x):\n",
            "entry_point": f"f{n}",
            "test": f"def check(f):\n    assert f({n}) == {n + 1}\n",
        }
        for n in range(3)
    ]
    made.write(root / "humaneval/test.jsonl", rows)
    return tmp_path


def context(nano, data_dir, allow=False, **changes):
    sizes = {"held_out": 4, "limit": 0, "mmlu_shots": 2, "bbh_shots": 2, "drop_shots": 1, "max_new_tokens": 4}
    recipe = replace(InstructEvalTask.recipes["smoke"], **{**sizes, **changes})
    return TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=data_dir, allow_code_execution=allow)


def test_the_loss_is_on_the_response_only(nano, data_dir):
    data = InstructEvalTask().load(context(nano, data_dir))
    for example in data.train:
        response = nano[1].decode([label for label in example.labels if label != IGNORE])
        prompt = nano[1].decode(
            [i for i, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE]
        )
        assert response.startswith("It is ")
        assert response.endswith(".<|eos|>")
        assert prompt.endswith("### Response:\n")
        assert ("### Input:\nloudly" in prompt) is (int(response[6:].split(".")[0]) % 2 == 1)


def test_held_out_responses_are_not_trained_on(nano, data_dir):
    data = InstructEvalTask().load(context(nano, data_dir))

    def seen(examples):
        return {nano[1].decode(example.input_ids) for example in examples}

    held_out = seen(data.splits["validation"].responses)
    assert len(held_out) == 4
    assert len(data.train) == 16
    assert not held_out & seen(data.train)


def test_a_mixture_of_conversations_can_be_the_training_set(nano, data_dir, made):
    def talk(n):
        said = [
            ("system", "Be brief."),
            ("user", f"Hi {n}"),
            ("assistant", "Hello."),
            ("user", "Bye"),
            ("assistant", "Ciao."),
        ]
        return {"dataset": "mixed", "messages": [{"role": role, "content": content} for role, content in said]}

    made.write(data_dir / "instructeval/tulu-v2/train.jsonl", [talk(n) for n in range(6)])
    where = context(nano, data_dir, training_set="tulu-v2")
    data = InstructEvalTask().load(where)
    assert len(data.train) == 2
    example = data.train[0]
    text = nano[1].decode(example.input_ids)
    assert text.startswith("<|system|>\nBe brief.\n<|user|>\nHi ")
    assert text.endswith("\n<|assistant|>\nHello.<|eos|>\n<|user|>\nBye\n<|assistant|>\nCiao.<|eos|>")
    assert nano[1].decode([label for label in example.labels if label != IGNORE]) == "Hello.<|eos|>Ciao.<|eos|>"
    identity = identify_tables(InstructEvalTask().tables(where.recipe), data_dir)
    assert "tulu-v2" in identity
    assert "alpaca" not in identity


def test_unknown_roles_are_refused():
    with pytest.raises(DataError, match="'tool'"):
        conversation({"messages": [{"role": "tool", "content": "x"}]})


def test_shots_are_never_scored(nano, data_dir):
    data = InstructEvalTask().load(context(nano, data_dir))
    for part in (part for parts in data.splits["test"].parts.values() for part in parts):
        assert not [row for row in part.rows if row in part.shots]
    (drop,) = data.splits["test"].parts["drop"]
    assert len(drop.shots) == 1
    assert drop.shots[0]["passage"] not in {row["passage"] for row in drop.rows}
    assert len(drop.rows) == 10 - 2  # both questions of the shot's passage are out, and the one with two answers


def test_an_untrained_model_is_scored_item_by_item(nano, data_dir):
    task, where = InstructEvalTask(), context(nano, data_dir)
    data = task.load(where)
    with torch.no_grad():
        test = task.evaluate(nano[0], where, data.splits["test"])
        again = task.evaluate(nano[0], where, data.splits["test"])
        validation = task.evaluate(nano[0], where, data.splits["validation"])
    assert {name: len(values) for name, values in test.items.items()} == {
        "mmlu": 8,
        "bbh": 8,
        "drop": 8,
        "drop_exact": 8,
    }
    assert test == again
    assert set(test.metrics) == set(task.metrics)
    assert {name for name, value in test.metrics.items() if value is None} == set(test.reasons)
    assert test.metrics["humaneval"] is None
    assert "--allow-code-execution" in test.reasons["humaneval"]
    assert {name for name, value in validation.metrics.items() if value is not None} == {"mmlu", "response_nll"}
    assert len(validation.items["mmlu"]) == 6
    letters = [row["answer"] for part in data.splits["test"].parts["mmlu"] for row in part.rows]
    assert test.chance == {"mmlu": max(map(letters.count, letters)) / 8}


def test_forgetting_is_measured_on_the_test_split_only(nano, data_dir):
    folder = data_dir / "wikitext/wikitext-2-raw"
    folder.mkdir(parents=True)
    (folder / "wiki.test.raw").write_text("The cat sat on the mat. \n" * 40)
    task, where = InstructEvalTask(), replace(context(nano, data_dir, limit=1), base_model=nano[0])
    splits = task.load(where).splits
    with torch.no_grad():
        test, validation = (task.evaluate(nano[0], where, splits[name]) for name in ("test", "validation"))
    assert test.metrics["forgetting_excess"] == pytest.approx(0.0, abs=1e-6)  # nothing was trained
    assert "forgetting" not in test.reasons
    assert "test split only" in validation.reasons["forgetting"]


def test_evaluating_leaves_the_random_generators_alone(nano, data_dir):
    task, where = InstructEvalTask(), context(nano, data_dir, limit=1)
    split = task.load(where).splits["validation"]
    torch.manual_seed(5)
    random.seed(5)
    wanted = (torch.rand(1), random.random())
    torch.manual_seed(5)
    random.seed(5)
    with torch.no_grad():
        task.evaluate(nano[0], where, split)
    assert (torch.rand(1), random.random()) == wanted


def test_response_nll_is_the_cross_entropy_of_transformers(nano, data_dir):
    task, where = InstructEvalTask(), context(nano, data_dir)
    split = task.load(where).splits["validation"]
    with torch.no_grad():
        found = task.evaluate(nano[0], where, split)
        for example, value in zip(split.responses, found.items["response_nll"], strict=True):
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            assert value == pytest.approx(float(nano[0](input_ids=ids, labels=labels).loss), rel=1e-4)


@confined
def test_humaneval_runs_where_it_may(nano, data_dir, monkeypatch):
    task, where = InstructEvalTask(), context(nano, data_dir, allow=True)
    split = task.load(where).splits["test"]
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM.generate_until", lambda _, requests: ["    return x + 1\n"] * len(requests)
    )
    with torch.no_grad():
        found = task.evaluate(nano[0], where, split)
    assert found.items["humaneval"] == [1.0, 1.0, 1.0]
    assert "humaneval" not in found.reasons


def test_humaneval_is_null_where_code_cannot_be_confined(nano, data_dir, monkeypatch):
    monkeypatch.setattr(instructeval, "refusal", lambda: "no confinement here")
    task, where = InstructEvalTask(), context(nano, data_dir, allow=True, limit=1)
    with torch.no_grad():
        found = task.evaluate(nano[0], where, task.load(where).splits["test"])
    assert found.metrics["humaneval"] is None
    assert found.reasons["humaneval"] == "no confinement here"


def test_lm_eval_itself_refuses_to_run_code_without_permission(nano):
    row = {"task_id": "1", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): pass"}
    with pytest.raises(ValueError, match="unsafe"):
        samples(nano[0], nano[1], [Part("humaneval", "humaneval", [row])], 1, allow_code_execution=False)


def test_the_likeliest_letter_is_the_choice(nano):
    row = {"question": "Which?", "subject": "x", "choices": list("pqrs"), "answer": 0}
    prompt = (
        "The following are multiple choice questions (with answers) about x.\n\nWhich?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    )
    model, tokenizer = nano
    with torch.no_grad():
        ids = tokenizer(prompt)["input_ids"] + tokenizer(" ", add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]  # bytes: the letter is the token after the blank
        best = int(logits[[ord(letter) for letter in "ABCD"]].argmax())
        rows = [{**row, "answer": answer} for answer in range(4)]
        found = samples(model, tokenizer, [Part("mmlu", "mmlu_x", rows)], batch_size=4)
    assert [each["acc"] for each in found["mmlu_x"]] == [float(answer == best) for answer in range(4)]


def test_the_limit_is_over_a_set_and_a_larger_one_contains_a_smaller(nano, data_dir):
    def inputs(limit):
        parts = InstructEvalTask().load(context(nano, data_dir, limit=limit)).splits["test"].parts["bbh"]
        return {row["input"] for part in parts for row in part.rows}

    assert len(inputs(2)) == 2
    assert inputs(2) < inputs(5) < inputs(0)


def test_too_few_shots_are_an_error():
    with pytest.raises(DataError, match="2 shots are asked for, and there are 1"):
        task_config(Part("bbh", "bbh_x", [{}], [{}], 2))


def test_missing_tables_are_named(nano, data_dir):
    (data_dir / "instructeval/drop/validation.jsonl").unlink()
    task, where = InstructEvalTask(), context(nano, data_dir)
    for call in (lambda: task.load(where), lambda: identify_tables(task.tables(where.recipe), data_dir)):
        with pytest.raises(DataError, match=r"instructeval/drop/validation\.jsonl.*ucinlp/drop"):
            call()


def test_without_lm_eval_the_message_says_what_to_install(nano, data_dir, monkeypatch):
    monkeypatch.setattr(instructeval.lm_evaluation, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'peft-harness\[evaluation\]'"):
        InstructEvalTask().load(context(nano, data_dir))


# How outputs are scored


@pytest.mark.parametrize(
    ("output", "target", "right"),
    [(" True\n", "True", 1.0), ("True, because", "True", 1.0), ("It is True", "True", 0.0), ("(A)", "(B)", 0.0)],
)
def test_bbh_outputs_start_with_the_target(output, target, right):
    assert score_bbh({"target": target}, [output]) == {"exact": right}


@pytest.mark.parametrize(
    ("given", "wanted", "f1"),
    [
        ("the Broncos", "Broncos", 1.0),
        ("Denver Broncos", "Broncos", 2 / 3),  # precision 1/2, recall 1
        ("4 yards", "4", 2 / 3),
        ("four", "4", 0.0),
        ("5 yards", "4 yards", 0.0),  # the number differs
        ("4.0", "4", 1.0),
        ("", "Broncos", 0.0),
        ("Packers", "Broncos", 0.0),
        ("Well-known man", "well known", 0.8),  # precision 2/3, recall 1
    ],
)
def test_drop_f1(given, wanted, f1):
    assert drop_f1(given, wanted) == pytest.approx(f1)


def test_drop_words_are_normalised():
    assert words("The 3-yard Run!") == {"3.0", "yard", "run"}


def test_drop_f1_agrees_with_lm_eval_on_random_answers():
    official = pytest.importorskip("lm_eval.tasks.drop.utils")
    source = random.Random(0)
    vocabulary = ["the", "a", "4", "12", "3.5", "Broncos", "yards", "run-up", "U.S.", "of", "end,"]
    for _ in range(300):
        given, wanted = (" ".join(source.choices(vocabulary, k=source.randint(1, 4))) for _ in range(2))
        if words(wanted):
            assert drop_f1(given, wanted) == pytest.approx(official.get_metrics(given, (wanted,))[1], abs=0.0051)


@confined
@pytest.mark.parametrize(
    ("completion", "passes"),
    [
        ("    return x + 1\n", 1.0),
        ("    return x\n", 0.0),
        ("    return x +\n", 0.0),
        ("    import sys\n    sys.exit(0)\n", 0.0),
        ("    import os\n    os._exit(0)\n", 0.0),
    ],
)
def test_humaneval_runs_the_tests(completion, passes):
    doc = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f):\n    assert f(1) == 2\n"}
    assert score_humaneval(doc, [completion]) == {"pass": passes}


def test_task_files_name_functions_of_this_folder():
    assert read_task_file("bbh")["process_results"] is score_bbh
    assert read_task_file("humaneval")["unsafe_code"] is True

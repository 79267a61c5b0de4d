"""Tasks with a judge, against a made-up server that speaks OpenAI's protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness import HarnessError, TaskContext, UsageError
from harness_benchmarks.tasks.judged import AlpacaEval, MTBench
from harness_benchmarks.tasks.judged.judge import Judge, choice, rating

torch.set_num_threads(1)
TASKS = pytest.mark.parametrize("task", [MTBench, AlpacaEval])


@pytest.fixture
def judge(judge):
    """The one server of all tests, which afterwards says again what others expect."""
    yield judge
    judge.says()


@pytest.fixture
def context(nano, tables, judge):
    def context(task, **changes):
        recipe = replace(task.recipes["smoke"], judge_url=judge.url, max_new_tokens=12, **changes)
        return TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=tables)

    return context


def evaluate(task, where, model, split="test"):
    return task().evaluate(model, where, task().load(where).splits[split])


def test_both_turns_are_rated_and_a_questions_score_is_their_mean(context, judge, nano, made):
    judge.says(lambda text: "Fine. [[8]]" if "and then" in text else "Poor: [[3]]")
    found = evaluate(MTBench, context(MTBench), made.Oracle(nano[1], "Yes."))
    assert found.metrics == {"rating": 5.5}
    assert found.items == {"rating": [5.5, 5.5]}
    assert found.notes["judge"] == f"gpt-4-0613 at {judge.url}, 2 of 2 with a verdict"
    second = [text for text in judge.asked if "and then" in text]
    assert len(judge.asked) == 2 * len(second) == 4
    assert all(text.count("[Assistant]\nYes.") == 2 for text in second)  # the whole talk
    assert any("[A good answer]\nIt is 4." in text for text in judge.asked)


def test_the_second_turn_sees_the_first_answer(context, judge, nano, made):
    judge.says(lambda text: "[[5]]")
    where, seen = context(MTBench), []

    class Listens(made.Oracle):
        def generate(self, input_ids, **options):
            seen.extend(nano[1].batch_decode(input_ids))
            return super().generate(input_ids, **options)

    evaluate(MTBench, where, Listens(nano[1], "Yes."))
    (turn,) = [text for text in seen if "and then 0" in text]
    assert "### Response:\nYes.\n\n### Instruction:\nand then 0?\n\n### Response:\n" in turn


def test_an_answer_wins_loses_or_ties_wherever_it_stands(context, judge, nano, made):
    def prefers(wanted):
        def says(text):
            return "[[A]]" if wanted in text.partition("[Assistant A]")[2].partition("[Assistant B]")[0] else "[[B]]"

        return says

    scores = {}
    for said in (prefers("Ours."), prefers("Theirs"), lambda text: "Hard to say. [[C]]"):
        judge.says(said)
        scores[said] = evaluate(AlpacaEval, context(AlpacaEval), made.Oracle(nano[1], "Ours.")).items["win_rate"]
    assert list(scores.values()) == [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]


@TASKS
def test_validation_is_held_out_of_training_and_judged_alike(context, judge, nano, made, task):
    judge.says(lambda text: "[[4]] [[C]]")
    where = context(task, limit="all")
    data = task().load(where)
    held_out = data.splits["validation"]
    assert len(held_out) == 4
    trained = [nano[1].decode(example.input_ids) for example in data.train]
    for question in held_out:
        assert not [text for text in trained if f"Instruction:\n{question.turns[0]}\n" in text]
    found = evaluate(task, where, made.Oracle(nano[1], "Yes."), "validation")
    assert found.metrics[task.main_metric] in (4.0, 0.5)


@TASKS
def test_a_judge_that_gives_no_verdict_gives_no_score(context, judge, nano, made, task):
    judge.says(lambda text: "I would rather not.")
    found = evaluate(task, context(task), made.Oracle(nano[1], "Yes."))
    assert found.metrics[task.main_metric] is None
    assert "gave no verdict" in found.reasons[task.main_metric]


def test_verdicts_are_read_from_their_end():
    assert rating("At first [[3]], but [[7.5]]") == 7.5
    assert [rating(text) for text in ("[[11]]", "[[0]]", "7", "[[x]]")] == [None] * 4
    assert choice("[[A]] no, [[B]]") == "B"
    assert choice("A") is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "none is named; give --set judge_url"),
        ("somewhere", "is no address"),
        ("file:///etc/passwd", "is no address"),
        ("https://me:secret@example.org/v1", "holds more than an address"),
        ("https://example.org/v1?key=secret", "holds more than an address"),
    ],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_before_training(context, url, said):
    where = context(MTBench)
    with pytest.raises(UsageError, match=said) as error:
        MTBench().check(replace(where, recipe=replace(where.recipe, judge_url=url)))
    assert "secret" not in str(error.value)


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(judge, monkeypatch):
    quick = Judge(judge.url, "some-judge", wait_seconds=0.0)
    judge.says(lambda text: "[[6]]", refusals=[503, 429])
    assert quick.verdicts(["Well?"]) == ["[[6]]"]
    assert len(judge.asked) == 3
    monkeypatch.setenv("HARNESS_JUDGE_KEY", "sk-very-secret")
    judge.says(lambda text: "[[6]]", refusals=[401])
    with pytest.raises(HarnessError, match="cannot be asked") as error:
        quick.verdicts(["Well?"])
    assert len(judge.asked) == 1
    assert judge.keys == ["Bearer sk-very-secret"]
    assert "sk-very-secret" not in str(error.value)  # though the server said it
    assert "***" in str(error.value)
    assert error.value.__cause__ is None


def test_the_judges_model_and_a_cold_head_are_asked_for(judge):
    judge.says(lambda text: "[[1]]")
    Judge(f"{judge.url}/", "some-judge").verdicts(["One?", "Two?"])
    assert sorted(judge.asked) == ["One?", "Two?"]
    assert {(body["model"], body["temperature"]) for body in judge.bodies} == {("some-judge", 0)}

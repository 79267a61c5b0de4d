from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness import IGNORE, DataError, TaskContext, UsageError
from harness.data.tables import identify_tables
from harness_benchmarks.forgetting import METRICS
from harness_benchmarks.tasks import commonsense
from harness_benchmarks.tasks.commonsense import SETS, CommonsenseTask, extract_answer

torch.set_num_threads(1)


@pytest.fixture
def data_dir(tmp_path, made):
    for name in SETS:
        for split, count in (("train", 8), ("test", 3)):
            rows = [made.commonsense_row(name, split, n) for n in range(count)]
            if split == "train":
                rows.append({**rows[0], "instruction": f"{name} test 0?"})  # a test question among the training rows
            made.write(tmp_path / f"commonsense/{name}/{split}.jsonl", rows)
    return tmp_path


def context(nano, data_dir, **changes):
    sizes = {"sets": "all", "train_sets": "all", "held_out": 2, "limit": 0, "max_new_tokens": 6}
    recipe = replace(CommonsenseTask.recipes["smoke"], **{**sizes, **changes})
    return TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=data_dir)


def test_no_question_is_in_two_splits(nano, data_dir):
    data = CommonsenseTask().load(context(nano, data_dir))
    train = [nano[1].decode(example.input_ids) for example in data.train]
    assert len(train) == 8 * (8 - 2)
    scored = [
        nano[1].decode(each.prompt).split("Instruction:\n")[1].split("\n")[0]
        for split in data.splits.values()
        for questions in split.questions.values()
        for each in questions
    ]
    assert len(scored) == len(set(scored)) == 8 * (2 + 3)
    assert not [question for question in scored if any(question in each for each in train)]


def test_the_loss_is_on_the_answer_only(nano, data_dir, made):
    example = CommonsenseTask().load(context(nano, data_dir, sets="piqa", train_sets="piqa")).train[0]
    response = nano[1].decode([label for label in example.labels if label != IGNORE])
    assert response in {f"the correct answer is {answer}<|eos|>" for answer in made.commonsense_answers["piqa"]}


def test_an_untrained_model_is_scored_on_every_set(nano, data_dir):
    task, where = CommonsenseTask(), context(nano, data_dir)
    data = task.load(where)
    with torch.no_grad():
        found = task.evaluate(nano[0], where, data.splits["test"])
    assert set(found.metrics) == set(task.metrics) == {*SETS, "average", *METRICS}
    assert {name: len(values) for name, values in found.items.items()} == dict.fromkeys(SETS, 3) | {"average": 24}
    assert sum(found.items["average"]) / 24 == pytest.approx(found.metrics["average"])
    assert set(found.reasons) == set(METRICS)  # of forgetting: there is no base model to compare with


def test_forgetting_is_measured_on_the_test_split_only(nano, data_dir):
    folder = data_dir / "wikitext/wikitext-2-raw"
    folder.mkdir(parents=True)
    (folder / "wiki.test.raw").write_text("The cat sat on the mat. \n" * 40)
    task = CommonsenseTask()
    where = replace(context(nano, data_dir, sets="boolq", train_sets="boolq"), base_model=nano[0])
    splits = task.load(where).splits
    with torch.no_grad():
        test, validation = (task.evaluate(nano[0], where, splits[name]) for name in ("test", "validation"))
    assert test.metrics["forgetting_excess"] == pytest.approx(0.0, abs=1e-6)  # nothing was trained
    assert "forgetting" not in test.reasons
    assert test.metrics["average"] == test.metrics["boolq"]
    assert "test split only" in validation.reasons["forgetting"]


def test_right_answers_score_and_sets_count_the_same(nano, data_dir, made):
    made.write(data_dir / "commonsense/boolq/test.jsonl", [{"instruction": "b?", "input": "", "answer": "true"}])
    task, where = CommonsenseTask(), context(nano, data_dir, sets="boolq+piqa")
    split = task.load(where).splits["test"]
    found = task.evaluate(made.Oracle(nano[1], "the correct answer is true"), where, split)
    assert found.metrics["boolq"] == 1.0
    assert found.metrics["piqa"] == 0.0
    assert found.metrics["average"] == 0.5  # not 1 of 4 questions
    assert found.chance == pytest.approx({"boolq": 1.0, "piqa": 2 / 3, "average": 5 / 6})  # the commonest answer
    assert found.metrics["hellaswag"] is None
    assert "boolq, piqa" in found.reasons["hellaswag"]
    found = task.evaluate(made.Oracle(nano[1], "the correct answer is solution1"), where, split)
    assert found.items["piqa"] == [1.0, 0.0, 1.0]


def test_a_set_that_is_not_there_is_named_and_not_dropped(nano, data_dir):
    (data_dir / "commonsense/hellaswag/test.jsonl").unlink()
    task, where = CommonsenseTask(), context(nano, data_dir)
    for call in (lambda: task.load(where), lambda: identify_tables(task.tables(where.recipe), data_dir)):
        with pytest.raises(DataError, match=r"commonsense/hellaswag/test\.jsonl.*Rowan/hellaswag"):
            call()
    others = "+".join(name for name in SETS if name != "hellaswag")
    assert "hellaswag" not in task.load(context(nano, data_dir, sets=others)).splits["test"].questions


def test_unknown_sets_are_refused(nano, data_dir):
    for given in ("boolq+arc", "", "+"):
        with pytest.raises(UsageError, match="openbookqa"):
            CommonsenseTask().load(context(nano, data_dir, sets=given))


def test_the_identity_covers_the_tables_in_use_only(nano, data_dir, made):
    task, where = CommonsenseTask(), context(nano, data_dir, sets="boolq", train_sets="piqa")
    before = identify_tables(task.tables(where.recipe), data_dir)
    made.write(data_dir / "commonsense/piqa/test.jsonl", [{"instruction": "other"}])
    assert identify_tables(task.tables(where.recipe), data_dir) == before
    made.write(data_dir / "commonsense/piqa/train.jsonl", [{"instruction": "other"}])
    assert identify_tables(task.tables(where.recipe), data_dir) != before


@pytest.mark.parametrize(
    ("name", "output", "answer"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "false, not true", "false"),
        ("boolq", "yes", None),
        ("piqa", "the correct answer is solution2", "solution2"),
        ("social_i_qa", "the correct answer is answer1", "answer1"),
        ("hellaswag", "the correct answer is ending4.", "ending4"),
        ("winogrande", "the correct answer is option2", "option2"),
        ("ARC-Easy", "the correct answer is answer5", "answer5"),
        ("ARC-Challenge", "option1", None),
        ("openbookqa", "", None),
    ],
)
def test_answers_are_found(name, output, answer):
    assert extract_answer(name, output) == answer


# Rows of the hub's sets, and what LLM-Adapters' own files say for them.
ROWS = {
    "boolq": (
        {"question": "does ethanol take more energy make that produces", "answer": False, "passage": "..."},
        "Please answer the following question with true or false, question: does ethanol take more energy make that "
        "produces?\n\nAnswer format: true/false",
        "false",
    ),
    "piqa": (
        {"goal": "How do I cut?", "sol1": "Knife.", "sol2": "Spoon.", "label": 0},
        "Please choose the correct solution to the question: How do I cut?\n\n"
        "Solution1: Knife.\n\nSolution2: Spoon.\n\nAnswer format: solution1/solution2",
        "solution1",
    ),
    "social_i_qa": (
        {
            "context": "Tracy didn't go home that evening and resisted Riley's attacks.",
            "question": "What does Tracy need to do before this?",
            "answerA": "make a new plan", "answerB": "Go home and see Riley", "answerC": "Find somewhere to go",
            "label": "3",
        },
        "Please choose the correct answer to the question: "
        "Tracy didn't go home that evening and resisted Riley's attacks. What does Tracy need to do before this?\n\n"
        "Answer1: make a new plan Answer2: Go home and see Riley Answer3: Find somewhere to go\n\n"
        "Answer format: answer1/answer2/answer3",
        "answer3",
    ),
    "hellaswag": (
        {"activity_label": "Travel", "ctx": "Pack a bag.", "endings": ["a", "b", "c", "d"], "label": "1"},
        "Please choose the correct ending to complete the given sentence: Travel: Pack a bag.\n\n"
        "Ending1: a Ending2: b Ending3: c Ending4: d\n\nAnswer format: ending1/ending2/ending3/ending4",
        "ending2",
    ),
    "winogrande": (
        {
            "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
            "option1": "Sarah", "option2": "Maria", "answer": "2",
        },
        "Please choose the correct answer to fill in the blank to complete the given sentence: Sarah was a much better "
        "surgeon than Maria so _ always got the easier cases.\n\n"
        "Option1: Sarah Option2: Maria Answer format: option1/option2",
        "option2",
    ),
    "ARC-Challenge": (
        {"question": "Which?", "choices": {"text": list("pqrs"), "label": list("1234")}, "answerKey": "3"},
        "Please choose the correct answer to the question: Which?\n\nAnswer1: p Answer2: q Answer3: r Answer4: s\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "answer3",
    ),
    "openbookqa": (
        {
            "question_stem": "The sun is responsible for",
            "choices": {
                "text": [
                    "puppies learning new tricks", "children growing up and getting old", "flowers wilting in a vase",
                    "plants sprouting, blooming and wilting",
                ],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": "D",
        },
        "Please choose the correct answer to the question: The sun is responsible for\n\n"
        "Answer1: puppies learning new tricks Answer2: children growing up and getting old "
        "Answer3: flowers wilting in a vase Answer4: plants sprouting, blooming and wilting\n\n"
        "Answer format: answer1/answer2/answer3/answer4",
        "answer4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_hub_are_put_into_the_words_of_llm_adapters(name, monkeypatch):
    row, instruction, answer = ROWS[name]
    asked = {}

    def read_rows(source, split, data_dir, hub_split=None):
        asked.update(hub_id=source.hub_id, split=split, hub_split=hub_split)
        return [row]

    monkeypatch.setattr(commonsense, "read_rows", read_rows)
    (found,) = commonsense.read_set(name, "test", None)
    assert found == {"instruction": instruction, "output": f"the correct answer is {answer}", "answer": answer}
    assert asked["hub_split"] == ("test" if name in ("ARC-Challenge", "openbookqa") else "validation")
    assert len(SETS[name].source.revision) == 40


@pytest.mark.parametrize(
    ("name", "output", "answer"),
    [  # LLM-Adapters' evaluation takes the first match of the set's words, case and all
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "false. No, true", "false"),
        ("boolq", "untrue", "true"),
        ("boolq", "True", None),
        ("piqa", "solution2 is better than solution1", "solution2"),
        ("piqa", "solution3", None),
        ("social_i_qa", "answer10", "answer1"),
        ("ARC-Easy", "answer5", "answer5"),
        ("ARC-Challenge", "the answer 1", None),
        ("openbookqa", "Answer1", None),
        ("hellaswag", "ending4", "ending4"),
        ("hellaswag", "ending5", None),
        ("winogrande", "option2option1", "option2"),
        ("winogrande", "", None),
    ],
)
def test_answers_are_the_first_words_that_can_be_one_as_published(name, output, answer):
    assert extract_answer(name, output) == answer

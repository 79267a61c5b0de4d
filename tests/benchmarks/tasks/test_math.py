from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness import IGNORE, DataError, TaskContext
from harness.data.tables import identify_tables
from harness_benchmarks.tasks.math import MathTask, extract_answer, last_boxed, normalise, same_expression, same_number

torch.set_num_threads(1)

# LaTeX answers: (given, wanted, equal). The official code of MATH agrees with each (see the test below), but for those
# in OURS, where ours is wider.
EQUAL = [
    (r"\frac{1}{2}", r"\dfrac12", True),
    (r"\frac12", "1/2", True),
    ("0.5", r"\frac{1}{2}", True),
    (".25", "0.25", True),
    ("x = 5", "5", True),
    ("k=-3", "-3", True),
    (r"\sqrt3", r"\sqrt{3}", True),
    (r"2\sqrt{3}", r"2\sqrt3", True),
    (r"\left( 1, 2 \right)", "(1,2)", True),
    (r"90^\circ", "90", True),
    (r"90^{\circ}", "90", True),
    (r"\$18", "18", True),
    (r"50\%", "50", True),
    (r"5\text{ cm}", "5", True),
    (r"\frac{-1}{2}", r"\frac{1}{2}", False),
    ("1/3", "1/2", False),
    ("(1,2)", "(2,1)", False),
    ("12", "1", False),
    (r"x^2", "x^3", False),
    (r"\frac{a}{b}", r"\frac{b}{a}", False),
]
OURS = [
    (r"\text{Evelyn}", "Evelyn", True),
    ("10,080", "10080", True),
    ("18.00", "18", True),
    ("5.", "5", True),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    ("1,2", "12", False),
]


@pytest.fixture
def data_dir(tmp_path, made):
    made.write(tmp_path / "math/gsm8k/train.jsonl", made.sums(0, 30))
    made.write(
        tmp_path / "math/gsm8k/test.jsonl", [*made.sums(100, 5), made.sums(3, 1)[0]]
    )  # one test question is in train, too
    made.write(tmp_path / "math/math/test.jsonl", made.problems(4))
    rows = [
        {
            "query": f"Rephrased: one more than {n}?",
            "original_question": f"What is {n}  plus 1?",
            "response": f"The answer is: {n + 1}",
        }
        for n in range(30)
    ]
    made.write(tmp_path / "math/metamath/train.jsonl", rows)
    return tmp_path


def context(nano, data_dir, **changes):
    recipe = replace(MathTask.recipes["smoke"], **{"held_out": 6, "limit": 0, "max_new_tokens": 8, **changes})
    return TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=data_dir)


def text(tokenizer, example):
    return tokenizer.decode(example.input_ids)


def test_training_validation_and_test_share_no_question(nano, data_dir):
    data = MathTask().load(context(nano, data_dir))
    train = "\n".join(text(nano[1], example) for example in data.train)
    held_out = [nano[1].decode(each.prompt) for each in data.splits["validation"].questions["gsm8k"]]
    assert len(held_out) == 6
    questions = [prompt.split("Instruction:\n")[1].split("\n")[0] for prompt in held_out]
    assert not [question for question in questions if question in train]
    assert "What is 3 plus 1?" not in train
    # 30 rows, less the 6 held out, less the test question unless it is among them
    assert len(data.train) == 24 - ("What is 3 plus 1?" not in questions)


def test_metamath_rows_made_from_held_out_questions_are_not_trained_on(nano, data_dir):
    data = MathTask().load(context(nano, data_dir, training_set="metamath"))
    held_out = [nano[1].decode(each.prompt) for each in data.splits["validation"].questions["gsm8k"]]
    numbers = {int(prompt.split("What is ")[1].split()[0]) for prompt in held_out} | {3}
    trained = {int(text(nano[1], example).split("more than ")[1].split("?")[0]) for example in data.train}
    assert trained == set(range(30)) - numbers


def test_the_loss_is_on_the_solution_only_without_calculator_notes(nano, data_dir):
    example = MathTask().load(context(nano, data_dir)).train[0]
    response = nano[1].decode([label for label in example.labels if label != IGNORE])
    n = int(text(nano[1], example).split("What is ")[1].split()[0])
    assert response == f"It is {n}+1={n + 1}.\n#### {n + 1}\nThe answer is: {n + 1}<|eos|>"


def test_a_slice_that_takes_every_row_is_refused(nano, data_dir):
    with pytest.raises(DataError, match=r"10000 are to be set apart.* leaves none.* held_out"):
        MathTask().load(context(nano, data_dir, held_out=10_000))


def test_the_held_out_slice_does_not_depend_on_seed_or_order_of_rows(nano, data_dir):
    def held_out():
        found = MathTask().load(context(nano, data_dir)).splits["validation"].questions["gsm8k"]
        return {each.answer for each in found}

    before = held_out()
    path = data_dir / "math/gsm8k/train.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert held_out() == before


def test_an_untrained_model_is_scored_item_by_item(nano, data_dir):
    task, where = MathTask(), context(nano, data_dir)
    data = task.load(where)
    with torch.no_grad():
        test = task.evaluate(nano[0], where, data.splits["test"])
        again = task.evaluate(nano[0], where, data.splits["test"])
        validation = task.evaluate(nano[0], where, data.splits["validation"])
    assert {name: len(values) for name, values in test.items.items()} == {"gsm8k": 6, "math": 4}
    assert test == again
    for name, values in test.items.items():
        assert test.metrics[name] == sum(values) / len(values)
    assert validation.metrics["math"] is None
    assert "test only" in validation.reasons["math"]
    assert set(test.metrics) == set(validation.metrics) == set(task.metrics)


def test_forgetting_is_measured_on_the_test_split_only(nano, data_dir):
    folder = data_dir / "wikitext/wikitext-2-raw"
    folder.mkdir(parents=True)
    (folder / "wiki.test.raw").write_text("The cat sat on the mat. \n" * 40)
    task, where = MathTask(), replace(context(nano, data_dir, forgetting_windows=3, limit=1), base_model=nano[0])
    splits = task.load(where).splits
    with torch.no_grad():
        test, validation = (task.evaluate(nano[0], where, splits[name]) for name in ("test", "validation"))
    assert test.metrics["forgetting"] > 0
    assert test.metrics["forgetting_excess"] == pytest.approx(0.0, abs=1e-6)  # nothing was trained
    assert "forgetting" not in test.reasons
    assert set(test.items) == {"gsm8k", "math", "forgetting", "forgetting_excess"}
    assert validation.metrics["forgetting"] is None
    assert "test split only" in validation.reasons["forgetting"]
    assert set(validation.items) == {"gsm8k"}


def test_a_right_final_answer_scores(nano, data_dir, made):
    where = context(nano, data_dir)
    task = MathTask()
    split = task.load(where).splits["test"]
    found = task.evaluate(made.Oracle(nano[1], "Some steps.\nThe answer is: 102"), where, split)
    assert found.items["gsm8k"] == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]  # 100 + 1, 101 + 1, ...
    found = task.evaluate(made.Oracle(nano[1], r"Clearly $\boxed{2}$."), where, split)
    assert found.items["math"] == [0.0, 0.0, 1.0, 0.0]


def test_the_limit_shows_fewer_items_and_a_larger_one_contains_a_smaller(nano, data_dir):
    def answers(limit):
        split = MathTask().load(context(nano, data_dir, limit=limit)).splits["test"]
        return {each.answer for each in split.questions["math"]}

    assert len(answers(2)) == 2
    assert answers(2) < answers(3) < answers(0)


def test_missing_tables_are_named(nano, data_dir):
    (data_dir / "math/math/test.jsonl").unlink()
    for call in (MathTask().load, lambda where: identify_tables(MathTask().tables(where.recipe), where.data_dir)):
        with pytest.raises(DataError, match=r"math/math/test\.jsonl.*EleutherAI/hendrycks_math"):
            call(context(nano, data_dir))


def test_the_identity_covers_the_training_set_in_use(nano, data_dir, made):
    task, where = MathTask(), context(nano, data_dir)
    before = identify_tables(task.tables(where.recipe), data_dir)
    with (data_dir / "math/metamath/train.jsonl").open("a") as file:
        file.write("\n")
    assert identify_tables(task.tables(where.recipe), data_dir) == before
    metamath = replace(where.recipe, training_set="metamath")
    first = identify_tables(task.tables(metamath), data_dir)
    made.write(data_dir / "math/metamath/train.jsonl", [{"query": "?", "original_question": "?", "response": "!"}])
    assert identify_tables(task.tables(metamath), data_dir) != first


def test_examples_without_room_for_a_response_are_an_error(nano, data_dir):
    with pytest.raises(DataError, match="max_length=20"):
        MathTask().load(context(nano, data_dir, max_length=20))


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("Steps.\n#### 42", "42"),
        ("Steps.\n#### 42\nThe answer is: 42", "42"),
        ("The answer is: 7. But wait.\nThe answer is: 1,000.", "1,000"),
        ("the answer is 3", "3"),
        (r"The answer is: $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"Hence \boxed{\sqrt{a^{2}}}", r"\sqrt{a^{2}}"),
        ("no answer", None),
        ("The answer is:", None),
    ],
)
def test_final_answers_are_found(output, answer):
    assert extract_answer(output) == answer


@pytest.mark.parametrize(
    ("solution", "inside"),
    [
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{a}{b_{1}}} holds", r"\frac{a}{b_{1}}"),
        (r"\boxed 5$ done", "5"),
        (r"\fbox{x}", "x"),
        (r"\boxed{\frac{1}{2", None),
        ("nothing", None),
    ],
)
def test_boxes_are_found_with_nested_braces(solution, inside):
    assert last_boxed(solution) == inside


@pytest.mark.parametrize(
    ("given", "wanted", "equal"),
    [
        ("42", "42", True),
        ("$1,234.50 dollars", "1234.5", True),
        ("-3", "3", False),
        ("72 clips", "72", True),
        ("42.5", "42", True),  # rounded, as published
        ("42.6", "42", False),
        ("3/4", "1", True),
        ("7/2", "4", True),  # to the even neighbour, as Python rounds
        ("5/0", "5", True),
        ("+8", "8", True),
        ("-8", "-8", True),
        (".5 of it", "0", True),
        ("10-20", "10", True),
        ("between 3 and 4", "3", True),
        ("42.", "42", True),
        ("42%", "42", True),
        ("2 1/2", "2", True),
        ("1.5e3", "2", True),
        ("3,000", "3000", True),
        ("forty", "40", False),
        (None, "4", False),
    ],
)
def test_numbers_are_compared_by_value(given, wanted, equal):
    assert same_number(given, wanted) is equal


@pytest.mark.parametrize(
    ("given", "wanted", "published"),
    [("1,234,567", "1234567", False), ("-$5", "5", True)],  # what MetaMath's pattern makes of them: 1,234 and 5
)
def test_where_numbers_are_read_otherwise_than_published(given, wanted, published):
    assert same_number(given, wanted) is not published


@pytest.mark.parametrize(
    ("output", "wanted", "right"),
    [
        ("Steps with 7.\nThe answer is: 42", "42", True),
        ("The answer is: 41\nNo.\nThe answer is: 42", "42", True),  # the last one
        ("The answer is: 42 apples and 7 pears", "42", True),  # the first number after it
        ("The answer is: $42.00", "42", True),
        ("The answer is: about 40 or 42", "42", False),
        ("42", "42", False),  # published: without its marker an output has no answer
        ("The answer is: none", "42", False),
    ],
)
def test_gsm8k_outputs_are_scored_as_published(output, wanted, right):
    assert same_number(extract_answer(output), wanted) is right


@pytest.mark.parametrize(("given", "wanted", "equal"), [*EQUAL, *OURS])
def test_expressions_are_compared_after_normalising(given, wanted, equal):
    assert same_expression(given, wanted) is equal
    assert same_expression(wanted, given) is equal


def test_normalising_twice_changes_nothing():
    for given, wanted, _ in [*EQUAL, *OURS]:
        for each in (given, wanted):
            assert normalise(normalise(each)) == normalise(each)


def test_expressions_are_equal_where_the_official_comparison_says_so():
    official = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils")
    assert [official.is_equiv(given, wanted) for given, wanted, _ in EQUAL] == [equal for _, _, equal in EQUAL]


def test_no_answer_is_never_equal():
    assert not same_expression(None, "")

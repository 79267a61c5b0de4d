from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from harness import IGNORE, DataError, TaskContext, UsageError
from harness_benchmarks.tasks.code import CodeTask, humaneval_problem, mbpp_problem, passes, written
from harness_benchmarks.tasks.instructeval.sandbox import refusal

torch.set_num_threads(1)
confined = pytest.mark.skipif(bool(refusal()), reason=refusal() or "confined")

SQUARE = {
    "task_id": 11,
    "text": "Write a function to return the square of a given whole number, whatever its sign.",
    "code": "import math\ndef power(x, n):\n    return x ** n\ndef square(x):\n    return power(x, 2)",
    "test_list": ["assert square(3) == 9", "assert math.isclose(square(-2), 4)"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
HUMAN = {
    "task_id": "HumanEval/0",
    "prompt": "import math\n\ndef half(x):\n    return x / 2\n\n"
    'def root(x):\n    """Return the root of the half of x.\n    >>> root(8)\n    2.0\n    """\n',
    "entry_point": "root",
    "test": "def check(f):\n    assert f(8) == 2\n    assert f(2 * half(36)) == 18 ** 0.5\n",
}


@pytest.fixture
def context(nano, tables):
    recipe = replace(CodeTask.recipes["smoke"], limit=2, max_new_tokens=4)
    return TaskContext(tokenizer=nano[1], recipe=recipe, seed=0, data_dir=tables, allow_code_execution=True)


@confined
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("def square(x):\n    return x * x", True),
        ("Here it is:\n```python\ndef square(x):\n    return x * x\n```\nIt multiplies.", True),
        ("First:\n```\nprint('no')\n```\nthen\n```python\ndef square(x):\n    return x * x\n```", True),
        ("```python\ndef square(x):\n    return x * x", True),  # cut off while being written
        ("```python\ndef square(x):\n    return x * 3\n```", False),
        ("```python\ndef other(x):\n    return x * x\n```", False),
        ("It is nine.", False),
        ("", False),
    ],
)
def test_an_answer_passes_mbpp_if_its_function_passes_the_tests(answer, right):
    assert passes(mbpp_problem(SQUARE), answer) is right


@confined
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("```python\ndef root(x):\n    return math.sqrt(half(x))\n```", True),  # on what the prompt defines
        ("    return math.sqrt(half(x))", True),  # going on where the prompt ended
        ("```python\ndef root(x):\n    return half(x)\n```", False),
        ("```python\ndef half(x):\n    return x\n\ndef root(x):\n    return 2 if x == 8 else 18 ** 0.5\n```", True),
        ("```python\ndef root(x):\n    return None\n```", False),
    ],
)
def test_an_answer_completes_a_problem_of_humaneval_whole_or_from_its_head_on(answer, right):
    assert passes(humaneval_problem(HUMAN), answer) is right


def test_the_prompt_shows_description_and_tests_and_no_solution():
    problem = mbpp_problem(SQUARE)
    assert problem.entry_point == "square"  # the one that tests call, not the first that is defined
    assert SQUARE["text"] in problem.instruction
    assert all(test in problem.instruction for test in SQUARE["test_list"])
    assert "power" not in problem.instruction
    assert HUMAN["prompt"].strip() in humaneval_problem(HUMAN).instruction
    assert "assert" not in humaneval_problem(HUMAN).instruction


def test_the_block_that_defines_the_function_counts():
    assert written("a\n```\nx\n```\nb\n```py\ndef f(): pass\n```", "f") == "def f(): pass\n"
    assert written("a\n```\nx\n```\nb", "f") == "x\n"
    assert written("def f(): pass", "f") == "def f(): pass"


def test_tests_that_call_nothing_of_the_solution_are_refused():
    with pytest.raises(DataError, match=r"code/mbpp: the tests of problem 11 call no function"):
        mbpp_problem({**SQUARE, "test_list": ["assert True"]})


def test_without_leave_to_run_code_nothing_trains(context):
    with pytest.raises(UsageError, match="--allow-code-execution"):
        CodeTask().load(replace(context, allow_code_execution=False))


@confined
def test_training_rows_about_scored_problems_are_left_out(context, made, tmp_path, tables):
    for name in ("code/mbpp/validation", "instructeval/humaneval/test"):
        (tmp_path / f"{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes((tables / f"{name}.jsonl").read_bytes())
    made.write(tmp_path / "code/mbpp/test.jsonl", [SQUARE])
    told = SQUARE["text"].upper().replace(" ", "\n ")
    queries = ["Write a function to return the cube.", f"Please: {told} Thanks.", SQUARE["text"][:60]]
    made.write(tmp_path / "code/codefeedback/train.jsonl", [{"query": query, "answer": "Ok."} for query in queries])
    train = CodeTask().load(replace(context, data_dir=tmp_path)).train
    texts = [context.tokenizer.decode(example.input_ids) for example in train]
    assert [query for query in queries if any(f"Instruction:\n{query}\n" in text for text in texts)] == [
        queries[0], queries[2],
    ]  # fmt: skip
    assert [context.tokenizer.decode([i for i in each.labels if i != IGNORE]) for each in train] == ["Ok.<|eos|>"] * 2


@confined
def test_items_are_programs_that_pass_and_humaneval_is_test_only(context, made, nano):
    data = CodeTask().load(replace(context, base_model=None))
    writes = made.Oracle(nano[1], "```python\ndef f(x):\n    return x + 1\n```")
    where = replace(context, recipe=replace(context.recipe, max_new_tokens=60, forgetting_windows=0))
    data = CodeTask().load(where)
    found = CodeTask().evaluate(writes, where, data.splits["test"])
    assert found.items["mbpp"] == [1.0, 0.0]  # one asks for the next number, the other for twice
    assert found.items["humaneval"] == [1.0, 1.0]
    assert (found.metrics["mbpp"], found.metrics["humaneval"]) == (0.5, 1.0)
    assert "seccomp" in found.notes["isolation of model-written code"]
    validation = CodeTask().evaluate(writes, where, data.splits["validation"])
    assert validation.metrics["mbpp"] == 0.5
    assert "no validation split" in validation.reasons["humaneval"]

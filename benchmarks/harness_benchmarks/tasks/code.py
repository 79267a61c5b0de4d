"""Writing Python: training on CodeFeedback, scored on HumanEval and MBPP by running what the model writes, confined.

Every score comes from running programs, so a trial asks for ``--allow-code-execution`` and a machine that can confine
them (``instructeval.sandbox``) before it trains. The prompts of both sets are this project's own: an instruction in
Alpaca's form, as in training. Of the answer counts the code block that defines the function.

Sources: Zheng et al., "OpenCodeInterpreter", arXiv:2402.14658 (CodeFeedback); Chen et al., arXiv:2107.03374
(HumanEval); Austin et al., arXiv:2108.07732 (MBPP); recipe of Meng et al., "PiSSA", arXiv:2404.02948, section 5.1.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from harness import (
    DataError,
    Evaluation,
    Metric,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    UsageError,
    generate,
    hookimpl,
    read_rows,
    setting,
)
from harness_benchmarks import REVISION, forgetting
from harness_benchmarks.forgetting import ForgettingRecipe
from harness_benchmarks.tasks.instructeval import HUMANEVAL
from harness_benchmarks.tasks.instructeval.sandbox import isolation, refusal, run_tests
from harness_benchmarks.tasks.instructions import encode_all, instruction_prompt, prompts_tokens, subsample, text_of

Row = Mapping[str, Any]

CODE_FEEDBACK = Source(
    "m-a-p/CodeFeedback-Filtered-Instruction", "", "e24e63942ad4450639e16ba318130ab841946916", "Apache-2.0",
    "code/codefeedback", REVISION,
)  # fmt: skip
MBPP = Source(
    "google-research-datasets/mbpp", "full", "4bb6404fdc6cacfda99d4ac4205087b89d32030c", "CC BY 4.0", "code/mbpp",
    REVISION,
)  # fmt: skip
SAID = 8  # words that a description must have to be looked for in training rows: shorter ones say too little
FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class CodeRecipe(ForgettingRecipe):
    """A recipe with the sizes of what is answered."""

    limit: int | Literal["all"] = setting("all", "problems per set", kind=int, minimum=1)
    max_new_tokens: int = setting(512, "longest answer, in tokens", minimum=1)
    evaluation_batch_size: int = setting(32, "prompts per batch when evaluating", minimum=1)


class Problem(NamedTuple):
    """A function to be written.

    Attributes:
        instruction: What the model is asked.
        opening: Source that the function may stand on or continue: imports, helpers, its head. Empty: none.
        entry_point: The function's name.
        tests: Source that defines ``check(function)``.
        helpers: Source for what else the tests may use.
        about: The words of its description, by which it is found in training rows.
    """

    instruction: str
    opening: str
    entry_point: str
    tests: str
    helpers: str
    about: str


class Split(NamedTuple):
    """What is scored: sets of problems by name, and on how many windows of WikiText forgetting is measured."""

    problems: Mapping[str, Sequence[Problem]]
    forgetting_windows: int = 0


class CodeTask(Task):
    """Python functions written from a description, scored by their tests."""

    name = "code"
    title = "Code"
    paper = "https://arxiv.org/abs/2404.02948"
    seeded_data = False
    source = replace(
        CODE_FEEDBACK,
        note="Validation: MBPP's validation split (90 problems). Test: its test split (500) and HumanEval (164). "
        "Training rows that hold the whole description of a scored problem are left out. "
        "MBPP's problems on objects of classes of their own cannot be passed here: only data leaves the confinement. "
        f"{REVISION}",
    )
    main_metric = "mbpp"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "mbpp": Metric("MBPP", "fraction", True, "Share of problems whose one greedy answer passes; no shots."),
        "humaneval": Metric("HumanEval", "fraction", True, "Share of problems whose one greedy answer passes."),
        **forgetting.METRICS,
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": CodeRecipe(
            steps=20,
            batch_size=4,
            max_length=768,
            learning_rate=1e-3,
            limit=4,
            max_new_tokens=48,
            evaluation_batch_size=8,
            forgetting_windows=4,
        ),
        "small": CodeRecipe(steps=600, batch_size=16, max_length=512, warmup_steps=20, limit=200, max_new_tokens=256),
        # PiSSA: 100,000 rows (781 updates of 128), 1 epoch, 2e-5, cosine, warm-up 0.03, 512 tokens.
        "paper": CodeRecipe(
            steps=781,
            batch_size=128,
            micro_batch_size=16,
            max_length=512,
            learning_rate=2e-5,
            schedule="cosine",
            warmup_fraction=0.03,
        ),
    }

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the tables in use."""
        return [
            Table(CODE_FEEDBACK, "train"),
            Table(MBPP, "validation"),
            Table(MBPP, "test"),
            Table(HUMANEVAL, "test"),
            forgetting.TABLE,
        ]

    def load(self, context: TaskContext) -> TaskData:
        """Read the tables, and leave out of training whatever is about a scored problem."""
        require_execution(context)  # now, not after hours of training
        recipe, folder = context.recipe, context.data_dir
        sets = {
            "validation": {"mbpp": [mbpp_problem(row) for row in read_rows(MBPP, "validation", folder)]},
            "test": {
                "mbpp": [mbpp_problem(row) for row in read_rows(MBPP, "test", folder)],
                "humaneval": [humaneval_problem(row) for row in read_rows(HUMANEVAL, "test", folder)],
            },
        }
        scored = Descriptions(problem.about for split in sets.values() for each in split.values() for problem in each)
        pairs = [(text_of(row, "query"), text_of(row, "answer")) for row in read_rows(CODE_FEEDBACK, "train", folder)]
        conversations = [[(instruction_prompt(query), answer)] for query, answer in pairs if not scored.within(query)]

        def split(name: str, windows: int = 0) -> Split:
            chosen = {
                each: subsample(problems, recipe.limit, lambda problem: problem.instruction)
                for each, problems in sets[name].items()
            }
            return Split(chosen, windows)

        return TaskData(
            train=encode_all(conversations, context.tokenizer, recipe.max_length),
            splits={"validation": split("validation"), "test": split("test", recipe.forgetting_windows)},
        )

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Let the model answer every problem, and run the tests on what it wrote; measure forgetting."""
        recipe, tokenizer = context.recipe, context.tokenizer
        metrics: dict[str, float | None] = {"mbpp": None, "humaneval": None}
        items: dict[str, list[float]] = {}
        for name, problems in split.problems.items():
            prompts = prompts_tokens([instruction_prompt(problem.instruction) for problem in problems], tokenizer)
            answers = generate(model, tokenizer, prompts, recipe.max_new_tokens, recipe.evaluation_batch_size)
            texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
            items[name] = [float(passes(problem, text)) for problem, text in zip(problems, texts, strict=True)]
            metrics[name] = sum(items[name]) / len(items[name])
        reasons = {} if "humaneval" in items else {"humaneval": "HumanEval has no validation split; see MBPP"}
        notes = {"isolation of model-written code": isolation()}
        found = Evaluation(metrics, reasons, items, notes)
        return forgetting.with_forgetting(found, model, context, split.forgetting_windows)


def require_execution(context: TaskContext) -> None:
    """Check that model-written code may run, and can be confined.

    Raises:
        UsageError: It may not or cannot; the message says what to do.
    """
    if not context.allow_code_execution:
        raise UsageError("code: every score comes from running model-written code; give --allow-code-execution")
    if reason := refusal():
        raise UsageError(f"code: {reason}")


def humaneval_problem(row: Row) -> Problem:
    """Return a problem of HumanEval: a function's head and description, to be completed."""
    prompt, name = row["prompt"], row["entry_point"]
    described = [
        ast.get_docstring(each) or ""
        for each in ast.walk(ast.parse(whole(prompt)))
        if isinstance(each, ast.FunctionDef) and each.name == name
    ]
    asked = f"Complete this Python function:\n```python\n{prompt.strip()}\n```"
    return Problem(asked, prompt, name, row["test"], whole(prompt), words(described[0].partition(">>>")[0]))


def mbpp_problem(row: Row) -> Problem:
    """Return a problem of MBPP: a sentence, and the tests that show the function's name and arguments.

    Raises:
        DataError: The tests call no function that the row's solution defines.
    """
    text, solution, tests = row["text"], row["code"], list(row["test_list"])
    defined = {each.name for each in ast.walk(ast.parse(solution)) if isinstance(each, ast.FunctionDef)}
    called = [
        node.func.id
        for test in tests
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined
    ]
    if not called:
        raise DataError(f"data: {MBPP.folder}: the tests of problem {row['task_id']} call no function of its code")
    asked = f"{text}\nThe function must pass these tests:\n```python\n" + "\n".join(tests) + "\n```"
    steps = [row.get("test_setup_code") or "", *tests]
    check = f"STEPS = {steps!r}\n\ndef check(function):\n    for step in STEPS:\n        exec(step, globals())\n"
    return Problem(asked, "", called[0], check, solution, words(text))


def passes(problem: Problem, answer: str) -> bool:
    """Return whether the code in an answer passes a problem's tests."""
    program = written(answer, problem.entry_point)
    if _defines(program, problem.entry_point):
        program = f"{whole(problem.opening)}\n{program}"  # on the imports and helpers that it was given
    else:
        program = f"{problem.opening}{program}"  # it may go on where the head ended
    return run_tests(f"{program}\n", problem.tests, problem.entry_point, problem.helpers).passed


def written(answer: str, entry_point: str) -> str:
    """Return an answer's code: its first block that defines the function, else its first block, else all of it."""
    blocks: list[str] = FENCE.findall(answer) or [answer]
    return next((block for block in blocks if _defines(block, entry_point)), blocks[0])


def _defines(source: str, name: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", source, re.MULTILINE) is not None


def whole(opening: str) -> str:
    """Return source that may end with the head of a function as source that stands by itself."""
    try:
        ast.parse(opening)
    except SyntaxError:
        return f"{opening}    pass\n"
    return opening


def words(text: str) -> str:
    """Return a text's words in lower case, with one space between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


class Descriptions:
    """Descriptions of problems, to be found within longer texts.

    Args:
        about: Their words, as ``words`` returns them.
    """

    def __init__(self, about: Iterable[str]) -> None:
        self._by_start: dict[str, list[str]] = {}
        for each in about:
            split = each.split()
            if len(split) >= SAID:
                self._by_start.setdefault(" ".join(split[:SAID]), []).append(each)

    def within(self, text: str) -> bool:
        """Return whether a text holds any of them whole."""
        said = words(text)
        split = said.split()
        starts = (" ".join(split[n : n + SAID]) for n in range(len(split) - SAID + 1))
        return any(each in said for start in starts for each in self._by_start.get(start, ()))


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [CodeTask]

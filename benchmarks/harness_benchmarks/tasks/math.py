"""Mathematical reasoning: training on MetaMathQA or on GSM8K's own train split; exact match on GSM8K and MATH.

Sources: Yu et al., "MetaMath", arXiv:2309.12284 (training data and answer format); Cobbe et al., arXiv:2110.14168
(GSM8K); Hendrycks et al., arXiv:2103.03874 (MATH and when two answers are equal); recipe of Wang et al., "MiLoRA",
arXiv:2406.09044, table 2, which adapts q, k, v, up and down (``--targets q_proj,k_proj,v_proj,up_proj,down_proj``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from harness import (
    Evaluation,
    Example,
    Metric,
    Recipe,
    Source,
    Table,
    Task,
    TaskContext,
    TaskData,
    hookimpl,
    read_rows,
    setting,
)
from harness_benchmarks import REVISION, forgetting
from harness_benchmarks.tasks.instructions import (
    AnswersRecipe,
    Question,
    Split,
    encode_all,
    instruction_prompt,
    prompts_tokens,
    same,
    split_off,
    subsample,
    text_of,
    write_answers,
)

GSM8K = Source("openai/gsm8k", "main", "740312add88f781978c0658806c59bc2815b9866", "MIT", "math/gsm8k", REVISION)
META_MATH = Source(
    "meta-math/MetaMathQA", "", "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18", "MIT", "math/metamath", REVISION
)
MATH = Source("EleutherAI/hendrycks_math", "", "21a5633873b6a120296cce3e2df9d5550074f4a3", "MIT", "math/math", REVISION)
MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
MARKER = "The answer is:"


@dataclass(frozen=True, kw_only=True)
class MathRecipe(AnswersRecipe):
    """A recipe with its training set. Held out are questions of GSM8K's train split."""

    training_set: str = setting("gsm8k", "what to train on", choices=("gsm8k", "metamath"))
    max_new_tokens: int = setting(512, "longest generated solution, in tokens", minimum=1)


class MathTask(Task):
    """Word problems and competition mathematics, answered step by step and scored by the final answer."""

    name = "math"
    title = "Mathematics"
    paper = "https://arxiv.org/abs/2406.09044"
    seeded_data = False
    source = replace(
        GSM8K,
        note="Validation is a slice of GSM8K's train split, fixed by a hash of the question and taken out of training, "
        "together with every MetaMathQA row made from those questions. Test: GSM8K's test split and the 5,000 test "
        f"problems of MATH. {REVISION}",
    )
    main_metric = "gsm8k"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "gsm8k": Metric("GSM8K", "fraction", True, "Share of questions whose final number is right, greedy decoding."),
        "math": Metric(
            "MATH", "fraction", True, "Share of MATH problems whose final answer is right after normalisation."
        ),
        **forgetting.METRICS,
    }
    recipes: ClassVar[Mapping[str, Recipe]] = {
        "smoke": MathRecipe(
            steps=20,
            batch_size=4,
            max_length=768,
            learning_rate=1e-3,
            held_out=50,
            limit=8,
            max_new_tokens=48,
            evaluation_batch_size=8,
            forgetting_windows=4,
        ),
        "small": MathRecipe(
            epochs=1, batch_size=16, max_length=512, warmup_steps=20, held_out=200, limit=200, max_new_tokens=256
        ),
        # MiLoRA's math setting: 395K rows, 3 epochs, batch 16, linear decay after 100 updates, 2048 tokens.
        "paper": MathRecipe(
            training_set="metamath",
            epochs=3,
            batch_size=16,
            max_length=2048,
            learning_rate=3e-4,
            warmup_steps=100,
        ),
    }

    def tables(self, recipe: Any) -> Sequence[Table]:
        """Return the tables in use. GSM8K's train split is always among them: a slice of it is validation."""
        more = [Table(META_MATH, "train")] if recipe.training_set == "metamath" else []
        return [Table(GSM8K, "train"), Table(GSM8K, "test"), Table(MATH, "test"), *more, forgetting.TABLE]

    def load(self, context: TaskContext) -> TaskData:
        """Read the tables, hold validation out, and leave out of training whatever is evaluated."""
        recipe, folder = context.recipe, context.data_dir
        train, held_out = split_off(
            read_rows(GSM8K, "train", folder), recipe.held_out, lambda row: same(row["question"])
        )
        tests = {"gsm8k": read_rows(GSM8K, "test", folder), "math": read_math(folder)}
        evaluated = {same(row["question"]) for row in [*held_out, *tests["gsm8k"]]}
        evaluated |= {same(row["problem"]) for row in tests["math"]}
        if recipe.training_set == "metamath":
            pairs = [
                (row["query"], row["response"])
                for row in read_rows(META_MATH, "train", folder)
                if not {same(row["query"]), same(text_of(row, "original_question"))} & evaluated
            ]
        else:
            pairs = [
                (row["question"], worked(row["answer"])) for row in train if same(row["question"]) not in evaluated
            ]
        conversations = [[(ask(question), response)] for question, response in pairs]

        def questions(rows: Sequence[Mapping[str, Any]], question: str, answer: Any) -> list[Question]:
            chosen = subsample(rows, recipe.limit, lambda row: same(row[question]))
            prompts = prompts_tokens([ask(row[question]) for row in chosen], context.tokenizer)
            return [Question(prompt, answer(row)) for prompt, row in zip(prompts, chosen, strict=True)]

        def number(row: Mapping[str, Any]) -> str:
            return extract_answer(row["answer"]) or ""

        return TaskData(
            train=encode_all(conversations, context.tokenizer, recipe.max_length),
            splits={
                "validation": Split(
                    {"gsm8k": questions(held_out, "question", number)},
                    examples=encode_all(
                        [[(ask(row["question"]), worked(row["answer"]))] for row in held_out],
                        context.tokenizer,
                        recipe.max_length,
                    ),
                ),
                "test": Split(
                    {
                        "gsm8k": questions(tests["gsm8k"], "question", number),
                        "math": questions(tests["math"], "problem", lambda row: last_boxed(row["solution"]) or ""),
                    },
                    recipe.forgetting_windows,
                ),
            },
        )

    def validation_examples(self, split: Split) -> Sequence[Example]:
        """Return GSM8K's rows held out of training, with their worked answers."""
        return split.examples

    def evaluate(self, model: Any, context: TaskContext, split: Any) -> Evaluation:
        """Generate a solution for every question and compare its final answer; measure forgetting."""
        metrics: dict[str, float | None] = dict.fromkeys(("gsm8k", "math"))
        items: dict[str, list[float]] = {}
        for name, questions in split.questions.items():
            answers = [extract_answer(text) for text in write_answers(model, context, questions)]
            equal = same_number if name == "gsm8k" else same_expression
            items[name] = [float(equal(given, each.answer)) for given, each in zip(answers, questions, strict=True)]
            metrics[name] = sum(items[name]) / len(items[name])
        reasons = {
            name: "validation is a slice of GSM8K's train split; MATH is scored on test only"
            for name in metrics
            if name not in items
        }
        found = Evaluation(metrics, reasons, items)
        return forgetting.with_forgetting(found, model, context, split.forgetting_windows)


def read_math(folder: Path | None) -> list[Mapping[str, Any]]:
    """Return MATH's test problems: one local table, or one configuration per subject on the hub."""
    if folder is not None:
        return read_rows(MATH, "test", folder)
    return [row for subject in MATH_SUBJECTS for row in read_rows(replace(MATH, config=subject), "test", None)]


def ask(question: str) -> str:
    """Return MetaMath's prompt: Alpaca's, whose response has begun."""
    return instruction_prompt(question).rstrip("\n") + " Let's think step by step.\n"


def worked(answer: str) -> str:
    """Return a GSM8K solution in MetaMathQA's form: no calculator annotations, and the answer once more at the end."""
    steps, _, final = re.sub(r"<<.*?>>", "", answer).rpartition("####")
    return f"{steps.strip()}\n#### {final.strip()}\n{MARKER} {final.strip()}"


def extract_answer(text: str) -> str | None:
    r"""Return the final answer: after the last "The answer is", else after "####", else the last ``\boxed``."""
    for marker in (r"the answer is:?", r"####"):
        found = list(re.finditer(marker, text, re.IGNORECASE))
        if found:
            answer = text[found[-1].end() :].strip().split("\n")[0].strip()
            answer = answer.removesuffix(".").strip()
            if answer:
                return last_boxed(answer) or answer
    return last_boxed(text)


def last_boxed(text: str) -> str | None:
    r"""Return what the last ``\boxed{...}`` (or ``\boxed x``) holds, braces nested; ``None`` where there is none."""
    start = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix(r"\boxed").removeprefix(r"\fbox")
    if not rest.startswith("{"):
        return rest.split("$")[0].strip() or None
    depth = 0
    for place, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[1:place]
    return None  # never closed: cut off while being generated


def same_number(given: str | None, wanted: str) -> bool:
    """Return whether the first number in each of two answers is the same, once rounded to a whole one.

    MetaMath's evaluation of GSM8K, whose answers are whole numbers, rounds what a model wrote, and reads ``a/b`` as a
    fraction. Two deviations: of ``1,234,567`` it reads ``1,234``, and of ``-$5`` the 5; here both are read whole.
    """
    numbers = [_number(text) for text in (given or "", wanted)]
    return None not in numbers and numbers[0] == numbers[1]


def _number(text: str) -> int | None:
    found = re.search(r"([-+]?)\$?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(\d+))?", text)
    if not found:
        return None
    sign, digits, below = found.groups()
    value = Fraction(digits.replace(",", "")) / (int(below or 1) or 1)  # as there, x/0 is x
    return round(float(-value if sign == "-" else value))


def same_expression(given: str | None, wanted: str) -> bool:
    """Return whether two LaTeX answers are the same after ``normalise``."""
    return given is not None and normalise(given) == normalise(wanted)


def normalise(text: str) -> str:
    r"""Return a LaTeX answer in one canonical spelling.

    Removes what does not change the value (spaces, sizing, dollar, percent and degree signs, units in ``\text``) and
    spells fractions, roots and decimals alike, as the authors of MATH do when they compare. It does no algebra.
    """
    text = text.strip().removesuffix(".")
    text = re.sub(r"\\(?:left|right|displaystyle|!|,|;|:|\$|%| )|\$|%|\n", "", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"(?<=.)\\(?:text|mbox)\{ [^{}]*\}(?:\^\{?\d\}?)?$", "", text)  # "5\text{ cm}": a unit
    text = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^[A-Za-z]{1,2}\s*(?:=|\\in)\s*", "", text.strip())  # "x = 5"
    text = re.sub(r"\s+", "", text)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac(\w)", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\w)", r"\1{\2}", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"^\\frac\{-(\w+)\}", r"-\\frac{\1}", text)
    if re.fullmatch(r"-?\d+\.\d+", text):
        text = text.rstrip("0").removesuffix(".")
    return {"0.5": r"\frac{1}{2}", "-0.5": r"-\frac{1}{2}"}.get(text, text)


@hookimpl
def harness_register_tasks() -> list[type[Task]]:
    """Register the task."""
    return [MathTask]
